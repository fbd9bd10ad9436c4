"""Second-order effects of neurons: their literal definition, what is kept of them, and the script."""
import json
from types import SimpleNamespace

import literal
import numpy as np
import pytest
import torch
from builders import VARIANTS, images_for, model_of, random_clip, unit_texts

from utils.analysis import neurons
from utils.analysis.neurons import Prepared
from utils.analysis.segmentation import figures, methods
from utils.cli import UserError
from utils.decompose.neurons import Neurons
from utils.runs import files

WITH_LATER_HEADS = [name for name in VARIANTS if name != "one_layer"]


@pytest.mark.parametrize("name", WITH_LATER_HEADS)
def test_effects_equal_their_definition_and_sum_to_the_walked_mlp(name):
    network = random_clip(**VARIANTS[name])
    images, of_model = images_for(network, 2), Neurons(model_of(network.visual), [0])
    effects, directions = of_model.effects(images), of_model.directions(0)
    found = effects.coefficients[0]
    visual = network.visual.double()
    for i, image in enumerate(images.double()):
        coefficients, slow, walked = literal.second_order(visual, image, 0)
        torch.testing.assert_close(found[i, :, :-1].double(), coefficients, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(directions.neurons(slice(None))[:-1].double(), slow, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(directions.total(found)[i].double(), walked, atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(5))  # by chance, the largest over all heads may be the same
def test_the_neurons_that_feed_some_heads_are_those_whose_square_through_these_is_largest(seed):
    rng, heads = np.random.default_rng(seed), {0: ["1.0", "1.1", "2.0", "2.1"], 1: ["2.0", "2.1"]}
    powers = {layer: rng.random((5, len(own))) for layer, own in heads.items()}
    fits = {layer: SimpleNamespace(heads=torch.from_numpy(power)) for layer, power in powers.items()}
    slow = sorted(((power[neuron, [own.index(head) for head in ("1.1", "2.0") if head in own]].sum(), layer, neuron)
                   for (layer, own), power in zip(heads.items(), powers.values()) for neuron in range(5)), reverse=True)
    found = neurons.feeding(fits, heads, ["1.1", "2.0"], 4)
    assert {(layer, neuron) for layer, own in found.items() for neuron in own} == {row[1:] for row in slow[:4]}


def test_the_indirect_effect_is_that_of_each_set_of_neurons_alone():
    network = random_clip()
    model, images = model_of(network.visual), images_for(network, 6)
    of_model, classifier = Neurons(model, [0, 1]), np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    own = torch.nn.functional.normalize(network.encode_image(images), dim=-1)
    labels = (own.numpy() @ classifier).argmax(axis=1)
    labels[0] = (labels[0] + 1) % 3
    means = {layer: values.mean(dim=0) for layer, values in of_model.effects(images_for(network, 9, seed=4))
             .activations.items()}
    fits = {layer: SimpleNamespace(activations=values) for layer, values in means.items()}
    singles = [(0, 3), (1, 7), (0, 11)]
    found = neurons.indirect(of_model, fits, lambda: iter([(images[:4], labels[:4]), (images[4:], labels[4:])]),
                             classifier, singles)
    assert found["images"] == 6
    assert found["baseline"] == pytest.approx(100 * 5 / 6)
    sets = [(layer, list(range(192)), means[layer]) for layer in (0, 1)]
    for entry, own_set in zip([*found["layers"].items(), *found["neurons"]],
                              [*sets, *((layer, [neuron], means[layer]) for layer, neuron in singles)]):
        (changed,) = of_model.without(images, [own_set])
        accuracy = pytest.approx(100 * float(((changed.numpy() @ classifier).argmax(axis=1) == labels).mean()))
        if isinstance(entry, tuple):
            assert entry == (str(own_set[0]), accuracy)
        else:
            assert entry["accuracy"] == accuracy
            assert entry["neuron"] == f"{own_set[0]}.{own_set[1][0]}"
            assert entry["mean_change"] == pytest.approx((changed - own).norm(dim=-1).mean().item(), rel=1e-3)


def test_gram_gives_lengths_of_effects():
    network = random_clip()
    of_model = Neurons(model_of(network.visual), [0, 1])
    effects = of_model.effects(images_for(network, 2))
    for layer in (0, 1):
        directions, c = of_model.directions(layer), effects.coefficients[layer]
        phi = torch.einsum("bjn,njd->bnd", c, directions.neurons(slice(None)))
        squares = torch.einsum("bjn,njk,bkn->bn", c, directions.gram(), c)
        torch.testing.assert_close(squares, phi.pow(2).sum(-1), atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(directions.total(c), phi.sum(1), atol=1e-5, rtol=1e-4)
    own = torch.nn.functional.normalize(network.encode_image(images_for(network, 2)), dim=-1)
    torch.testing.assert_close(effects.representation, own, atol=1e-5, rtol=0)


def test_neurons_at_their_means_are_those_of_a_hooked_model():
    network = random_clip()
    of_model, images = Neurons(model_of(network.visual), [0, 1]), images_for(network, 3)
    means = of_model.effects(images).activations[1].mean(dim=0)

    def replaced(_, inputs):
        changed = inputs[0].clone()
        changed[..., [3, 5]] = means[:, [3, 5]]
        return (changed,)

    hook = network.visual.transformer.resblocks[1].mlp.c_proj.register_forward_pre_hook(replaced)
    slow = torch.nn.functional.normalize(network.encode_image(images), dim=-1)
    hook.remove()
    (found,) = of_model.without(images, [(1, [3, 5], means)])
    torch.testing.assert_close(found, slow, atol=1e-5, rtol=0)


def test_neurons_that_are_off_together_are_those_of_a_hooked_model():
    network = random_clip()
    of_model, images = Neurons(model_of(network.visual), [0, 1]), images_for(network, 3)
    effects = of_model.effects(images).activations
    means = {layer: effects[layer].mean(dim=0) for layer in (0, 1)}
    sets, hooks = [(0, [2], means[0]), (1, [3, 5], means[1])], []
    for layer, own, mean in sets:
        def replaced(_, inputs, own=own, mean=mean):
            changed = inputs[0].clone()
            changed[..., own] = mean[:, own]
            return (changed,)

        hooks.append(network.visual.transformer.resblocks[layer].mlp.c_proj.register_forward_pre_hook(replaced))
    slow = torch.nn.functional.normalize(network.encode_image(images), dim=-1)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(of_model.switched_off(images, sets), slow, atol=1e-5, rtol=0)


def test_layers_that_have_no_effect_are_refused():
    network = random_clip()
    with pytest.raises(UserError, match="choose from 0 to 1"):
        Neurons(model_of(network.visual), [2])
    with pytest.raises(UserError, match="vision transformers alone"):
        Neurons(model_of(torch.nn.Identity(), (32, 32)), [0])


def batches_of(images, size=4):
    return lambda: iter(images.split(size))


def test_fit_is_the_mean_and_first_direction_of_literal_effects():
    network = random_clip()
    of_model, images = Neurons(model_of(network.visual), [0, 1]), images_for(network, 110)
    directions = {layer: of_model.directions(layer) for layer in (0, 1)}
    fits = neurons.fit(of_model, directions, batches_of(images, 32))
    c = of_model.effects(images).coefficients[1][..., :-1]
    phi = torch.einsum("bjn,njd->bnd", c, directions[1].neurons(slice(None))[:-1]).double()
    centred = phi - phi.mean(dim=0)
    norms = centred.norm(dim=-1)
    fitted = fits[1]
    torch.testing.assert_close(fitted.mean.double(), phi.mean(dim=0), atol=1e-6, rtol=0)
    hundredth = norms.sort(dim=0, descending=True)[0][99]
    torch.testing.assert_close(fitted.threshold.double(), hundredth, atol=1e-6, rtol=1e-3)
    for neuron in (0, 7):
        largest = norms[:, neuron].topk(100)[1]
        right = torch.linalg.svd(centred[largest, neuron])[2][0]
        assert abs(right @ fitted.direction[neuron].double()) > 1 - 1e-4
        assert (centred[largest, neuron] @ fitted.direction[neuron].double()).sum() > 0
        through = (c[:, :, neuron] - c[:, :, neuron].mean(dim=0))[..., None] * directions[1].neurons([neuron])[0]
        torch.testing.assert_close(fitted.heads[neuron], through.square().sum(-1).mean(0), atol=1e-7, rtol=1e-2)

    found = Prepared.of(directions[1], fitted).arrays(
        of_model.effects(images).coefficients[1], torch.zeros(110, 20), [2, 3])
    torch.testing.assert_close(found["norms"].double(), norms, atol=1e-5, rtol=1e-3)
    along = (centred * fitted.direction.double()).sum(-1)
    torch.testing.assert_close(found["scores"].double(), along, atol=1e-5, rtol=0)
    torch.testing.assert_close(found["sum"].double(), centred.sum(dim=1), atol=1e-4, rtol=0)
    torch.testing.assert_close(found["picked"].double(), centred[:, 2:4].sum(dim=1), atol=1e-5, rtol=0)
    significant = found["norms"] >= fitted.threshold  # of each neuron one norm lies on the threshold, but for rounding
    assert (significant.sum(dim=0) - 100).abs().max() <= 1
    kept = torch.where(significant[..., None], centred, 0).sum(dim=1)
    torch.testing.assert_close(found["significant"].double(), kept, atol=1e-5, rtol=0)


def test_texts_of_a_direction_are_those_it_was_made_of():
    pool = unit_texts(60, 24).astype(np.float64)
    made = 2.0 * neurons.atoms(pool)[5] - 1.0 * neurons.atoms(pool)[17]
    (row,) = neurons.sparse_texts(made[None], pool, 2)
    assert set(np.flatnonzero(row)) == {5, 17}
    np.testing.assert_allclose(row[[5, 17]], [2, -1], atol=1e-6)


def test_texts_are_compared_with_the_images_on_which_a_neuron_matters():
    rng = np.random.default_rng(1)
    scores, norms, representation = rng.normal(size=(60, 3)), rng.random((60, 3)), rng.normal(size=(60, 8))
    threshold, texts = np.array([0.5, 0.0, 0.9]), rng.normal(size=(3, 8))
    found = neurons.rank_correlations(scores, norms, threshold, representation, texts, least=10)

    def ranks(values):
        return np.array([sum(other < value for other in values) for value in values], float)

    for neuron in range(3):
        own = [i for i in range(60) if norms[i, neuron] >= threshold[neuron]]
        if len(own) < 10:
            assert np.isnan(found[neuron])
            continue
        one = ranks([scores[i, neuron] for i in own])
        other = ranks([representation[i] @ texts[neuron] for i in own])
        assert found[neuron] == pytest.approx(np.corrcoef(one, other)[0, 1])
    assert np.isnan(found[2])


def test_accuracies_are_those_of_representations_made_again():
    rng = np.random.default_rng(0)
    phi, direct = rng.normal(size=(40, 6, 8)), rng.normal(size=(40, 8))
    representation, classifier, labels = phi.sum(1) + direct, rng.normal(size=(8, 3)), rng.integers(0, 3, 40)
    direction, pool = rng.normal(size=(6, 8)), rng.normal(size=(12, 8))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    scores = np.einsum("bnd,nd->bn", phi, direction)
    arrays = {"scores": scores, "sum": phi.sum(1), "significant": phi[:, :2].sum(1), "direct": direct}
    found = neurons.accuracies(arrays, representation, direction, labels, classifier, pool, [8])

    def percent(x):
        return 100 * np.mean((x @ classifier).argmax(1) == labels)

    assert found["baseline"] == percent(representation)
    assert found["ablated"] == percent(direct)
    assert found["significant"] == percent(direct + phi[:, :2].sum(1))
    assert found["first_component"] == percent(direct + scores @ direction)
    assert found["direct_ablated"] == percent(phi.sum(1))
    # Eight texts span the space: they say what the first components say.
    assert found["texts"][8] == pytest.approx(found["first_component"], abs=2.6)


def test_the_script_goes_on_where_it_was_cut_off(tmp_path, folder_of_images, run_script, refused):
    from data.emoji import write
    from utils.data.scenes import sample_scenes

    out, pool = tmp_path / "out", tmp_path / "few.txt"
    pool.write_text("a cat\na dog\nan owl\nred\nblue\n")
    data = ("--model", "emojiclip", "--output_dir", out, "--device", "cpu")
    images = ("--dataset", "imagefolder", "--data_path", folder_of_images)
    run_script("compute_text_projection", *data, *images)
    run_script("compute_text_set_projection", *data, "--data_path", pool)
    (tmp_path / "a.yaml").write_text("color: [red, blue]\nanimal: [a cat, a dog, an owl]\n")
    common = (*data, *images, "--attributes", tmp_path / "a.yaml", "--layers", 3, 4, "--fit_split", "same",
              "--text_dir", tmp_path, "--text_descriptions", "few", "--texts_per_neuron", 2, "--neurons", 3,
              "--indirect_images", 16, "--heads", "5.4", "--per_head")
    code, said, err = run_script("compute_second_order", *common)
    assert code == 0, err
    assert "layer 4: baseline" in said
    found = json.loads((out / "imagefolder_second_order_emojiclip.json").read_text())
    assert len(found["neurons"]) == 3
    assert {"texts", "rank_correlation", "named"} <= found["neurons"][0].keys()
    assert found["neurons"][0]["named"]["attribute"] in ("color", "animal")
    assert set(found["quality"]) == {"color", "animal"}
    assert len(found["feeding"]["neurons"]) == 10
    assert {"original", "without_ten_neurons", "ten_neurons_off"} < found["feeding"].keys()
    assert (out / "imagefolder_second_order_emojiclip.png").is_file()
    scores = np.load(out / "imagefolder_neurons4_scores_emojiclip.npy")
    c, norms = (np.load(out / f"imagefolder_neurons4_{what}_emojiclip.npy") for what in ("c", "norms"))
    assert scores.shape == norms.shape == (15, 768)
    assert c.shape == (15, 6, 769)
    assert (np.abs(scores) <= norms + 1e-5).all()
    write.write_segmentation(tmp_path / "gtsegs_ijcv.mat", sample_scenes(3, seed=5), 64)
    code, said, err = run_script("compute_segmentations", *data, "--train_dataset", "imagenet_seg", "--data_path",
                                 tmp_path / "gtsegs_ijcv.mat", "--classifier_dir", out, "--classifier_dataset",
                                 "imagefolder", "--method", "neurons", "--num_workers", 0)
    assert code == 0, err
    found_by = json.loads((out / "imagenet_seg_segmentation_neurons_emojiclip.json").read_text())["methods"]
    assert 0 < found_by["neurons"]["pixel_accuracy"] < 1
    code, said, _ = run_script("compute_second_order", *common, "--resume")
    assert code == 0
    assert json.loads((out / "imagefolder_second_order_emojiclip.json").read_text())["layers"] == found["layers"]
    assert "choose from 0 to 4" in refused("compute_second_order", *data, *images, "--layers", 5, "--fit_split", "same",
                                           "--text_dir", tmp_path, "--text_descriptions", "few")
    assert "there is no head 2.1" in refused("compute_second_order", *common[:-3], "--heads", "2.1")


def test_neurons_are_named_and_held_against_the_truth_of_scenes(tmp_path):
    """The names are those of compute_head_names.py's functions, on scores that are one neuron's colour and noise."""
    from utils.analysis import neuron_runs, truth
    from utils.data.datasets import Images
    from utils.data.scenes import sample_scenes
    from utils.models.loading import load

    scenes, rng = sample_scenes(1000, seed=3), np.random.default_rng(0)
    codes = truth.codes(scenes)
    scores = rng.normal(size=(1000, 8)).astype(np.float32)
    scores[:, 5] = codes["color"] + 0.1 * scores[:, 5]
    texts = {"color": [f"a {name} background" for name in ("red", "blue", "green")], "count": ["one", "two"]}
    clip = load("emojiclip", None, torch.device("cpu"))
    colors = codes["color"] % 3                                        # what the model says of each image
    representation = clip.embed_texts(texts["color"]).numpy()[colors]
    scores[:, 2] = colors == 1
    run = neuron_runs.NeuronRun.__new__(neuron_runs.NeuronRun)
    run.representation, run.labels = representation, np.zeros(1000, int)
    run.arrays = lambda layer: {"scores": scores}
    entries = [{"neuron": f"3.{neuron}", "mean_norm": 1.0, "texts": [{"text": "red", "weight": 1.0}],
                "heads": [{"head": "5.4", "share": 0.5}]} for neuron in (5, 2, 7)]
    quality = neuron_runs.name(run, entries, clip, texts, 0)
    assert set(quality) == {"color", "count"}
    neuron_runs.explain(run, Images([], [], scenes=scenes), entries)
    assert entries[0]["truth"] == "color"
    assert [entry["named"]["attribute"] for entry in entries[:2]] == ["color", "color"]
    groups = [colors == i for i in range(3)]
    between = sum(group.sum() * (scores[group, 2].mean() - scores[:, 2].mean()) ** 2 for group in groups)
    share = 1 - (1 - between / np.square(scores[:, 2] - scores[:, 2].mean()).sum()) * 999 / 997
    assert entries[1]["named"]["shares"]["color"] == pytest.approx(share, abs=1e-5)
    found = neuron_runs.against_truth(entries, {"red": "color"})
    right = [entry["truth"] == "color" for entry in entries]
    assert found["texts_against_truth"]["agreement"] == pytest.approx(100 * np.mean(right))
    assert found["names_against_truth"]["agreement"] == pytest.approx(
        100 * np.mean([entry["truth"] == entry["named"]["attribute"] for entry in entries]))

    place = files.Place(str(tmp_path), "emoji", "emojiclip")
    neuron_runs.name_heads(entries, place, "aa", 1000)
    assert entries[0]["heads"][0]["name"] is None
    for images, weights, name in ((99, "aa", None), (1000, "bb", None), (1000, "aa", "color")):
        place.path("names", ".json").write_text(json.dumps({
            "images": images, "made_of": {"weights_sha256": weights},
            "heads": [{"layer": 5, "head": 4, "name": "color"}]}))
        neuron_runs.name_heads(entries, place, "aa", 1000)
        assert entries[0]["heads"][0]["name"] == name
    entries[1]["named"]["name"] = "color"
    assert neuron_runs.title(entries[1]) == "3.2 (colour) through 5.4 colour: + red"


def test_neurons_segment_by_their_mean_activation(tmp_path):
    network = random_clip()
    model, images = model_of(network.visual), images_for(network, 3)
    of_model = Neurons(model, [0, 1])
    fits = neurons.fit(of_model, {layer: of_model.directions(layer) for layer in (0, 1)}, batches_of(images))
    place = files.Place(str(tmp_path), "emoji", "x")
    files.write_arrays(place.path("neurons_fit", ".json"), {
        place.path(f"neurons{layer}_direction"): fitted.direction.numpy() for layer, fitted in fits.items()},
        {"pretrained": "w", "weights_sha256": model.weights_hash,
         "identity": {"weights_sha256": model.weights_hash, "layers": [0, 1]}})
    classifier = torch.nn.functional.normalize(torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), dim=0)
    explainer = methods.Explainer(model, classifier, ("neurons",))
    explainer.take_neurons(str(tmp_path), "emoji", "x")
    found = explainer.explain(images)["neurons"]
    activations = of_model.effects(images).activations
    own = torch.nn.functional.normalize(network.encode_image(images), dim=-1)
    for i in range(3):
        column = classifier[:, (own[i] @ classifier).argmax()]
        ranked = sorted(((abs(float(column @ fits[layer].direction[n])), layer, n) for layer in (0, 1)
                         for n in range(192)), reverse=True)[:200]
        slow = sum(activations[layer][i, 1:, n] for _, layer, n in ranked) / len(ranked)
        torch.testing.assert_close(found[i].flatten(), slow, atol=1e-4, rtol=1e-3)
    heat = torch.tensor([[[0.0, 0.4], [0.6, 1.0]]])
    assert figures.foreground(heat, 0.5).tolist() == [[[False, False], [True, True]]]
    with pytest.raises(UserError, match="which --method neurons reads"):
        explainer.take_neurons(str(tmp_path), "imagenet", "x")
