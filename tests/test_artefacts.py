"""Outlying tokens that were planted are found, and moved to a register; terms stay exact."""
import json

import literal
import numpy as np
import pytest
import torch
from builders import VISION, images_for, model_of, random_clip

from utils.analysis import artefacts, retrieval
from utils.cli import UserError
from utils.data import pictures
from utils.decompose import registers
from utils.decompose.decomposer import Decomposer
from utils.decompose.registers import Registers
from utils.models import loading
from utils.runs.run import Run

PATCH, NEURON = 5, 7  # where an outlier is planted, and the neuron of layer 1 that writes it


def planted():
    """A small tower in which one neuron of layer 1 fires at one patch alone, and writes a long vector there."""
    visual = random_clip(vision_cfg={"layers": 5, "width": 48}).visual  # a normed token has a length of about 6.9
    sign = torch.randn(48, generator=torch.Generator().manual_seed(3))
    sign = sign - sign.mean()
    visual.positional_embedding.data[1 + PATCH] = 8 * sign
    first, block = visual.transformer.resblocks[:2]
    for module in (first.attn.out_proj, first.mlp.c_proj, block.attn.out_proj):  # so that the direction is still there
        module.weight.data *= 0.05
        module.bias.data *= 0.05
    block.ln_2.weight.data.fill_(1)
    block.ln_2.bias.data.zero_()
    block.mlp.c_fc.weight.data[NEURON] = 3 * sign / sign.norm()
    block.mlp.c_fc.bias.data[NEURON] = -10.5
    block.mlp.c_proj.weight.data[:, NEURON] = 8 * torch.randn(48, generator=torch.Generator().manual_seed(4))
    return visual


def slow_norms(visual, images, some=None):
    """Norms of the tokens after each block, and the unit representations: open_clip's own modules, and for registers
    the definition, token by token."""
    x = visual.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1) + visual.positional_embedding
    x = visual.ln_pre(x)
    number = some.number if some else 0
    x = torch.cat([x, torch.zeros(len(x), number, x.shape[2])], 1)     # published: at the end
    norms = []
    for layer, block in enumerate(visual.transformer.resblocks):
        x = x + block.ls_1(block.attention(block.ln_1(x)))
        hidden = block.mlp.gelu(block.mlp.c_fc(block.ln_2(x)))
        for i, (own, neuron) in enumerate(some.neurons if some else ()):
            if own == layer:
                for image in hidden:
                    value = image[image[:, neuron].abs().argmax(), neuron].clone()
                    for token in range(1, len(image)):
                        image[token, neuron] = 0
                    image[len(image) - number + i % number, neuron] = value
        x = x + block.ls_2(block.mlp.c_proj(hidden))
        norms.append(x.norm(dim=-1))
    return norms, torch.nn.functional.normalize(visual.ln_post(x[:, 0]) @ visual.proj, dim=-1)


def test_planted_outliers_are_found_and_moved():
    visual = planted()
    model, images = model_of(visual), images_for(random_clip(), 6)
    found = artefacts.measure(model, lambda: iter(images.split(4)), 15, top_layer=1, number=3)
    assert found["register_neurons"][0]["neuron"] == f"1.{NEURON}"
    assert found["outliers"] == pytest.approx(1 / 16)
    slow, _ = slow_norms(visual, images)
    assert (slow[3][:, 1:] > found["threshold"]).nonzero()[:, 1].unique().tolist() == [PATCH]
    assert [row["outliers"] > 0 for row in found["layers"]] == [False, True, True, True, True]
    for row, norms in zip(found["layers"], slow):
        assert row["median"] == pytest.approx(norms[:, 1:].quantile(0.5).item(), rel=1e-4)

    with_one = Registers(1, ((1, NEURON),))
    assert artefacts.norm_map(model, images[:1]).max() > found["threshold"]
    assert artefacts.norm_map(model, images[:1], with_one).max() < found["threshold"]
    moved = list(registers.layers(registers.with_registers(artefacts.known(model), visual, with_one), visual, images))
    assert moved[3].norms[:, 1].min() > found["threshold"]          # the register, behind the class token


@pytest.mark.parametrize("number", [1, 2])
def test_terms_with_registers_are_exact(number):
    visual = planted()
    images, some = images_for(random_clip(), 3), Registers(number, ((1, NEURON), (1, 3), (2, 0)))
    decomposer = Decomposer(model_of(visual), registers=some)
    _, own = slow_norms(visual, images, some)
    terms = decomposer.terms(images)
    torch.testing.assert_close(terms.representation, own, atol=1e-5, rtol=0)
    torch.testing.assert_close(terms.values.sum(dim=1), own, atol=1e-5, rtol=0)
    assert decomposer.check(images, repeats=1)["error"] < 1e-5
    tokens = decomposer.tokens(images, own.mean(dim=0)[None, None])
    assert tokens.prefix_tokens == 1 + number
    assert tokens.patches().shape == (1, 3, 4, 4)
    torch.testing.assert_close(tokens.parts[0].sum(-1), own @ own.mean(dim=0), atol=1e-5, rtol=0)
    plain = Decomposer(model_of(visual)).terms(images)
    assert (plain.values - terms.values).abs().max() > 1e-3


def test_registers_need_a_file_of_the_model(tmp_path):
    model = model_of(planted())
    assert registers.read(0, None, tmp_path, model) is None
    with pytest.raises(UserError, match="give --registers 1, too"):
        registers.read(0, "x.json", tmp_path, model)
    with pytest.raises(UserError, match="does not exist"):
        registers.read(1, None, str(tmp_path), model)
    path = tmp_path / "emoji_artefacts_x.json"
    content = {"weights_sha256": model.weights_hash, "register_neurons": [{"neuron": "1.7"}]}
    path.write_text(json.dumps(content))
    assert registers.read(2, None, str(tmp_path), model) == Registers(2, ((1, 7),))
    path.write_text(json.dumps(content | {"weights_sha256": "other"}))
    with pytest.raises(UserError, match="made with other weights"):
        registers.read(1, None, str(tmp_path), model)
    path.write_text(json.dumps(content | {"register_neurons": []}))
    with pytest.raises(UserError, match="no outlying tokens"):
        registers.read(1, None, str(tmp_path), model)
    with pytest.raises(UserError, match="has none"):
        Decomposer(model_of(torch.nn.Identity(), (32, 32)), registers=Registers(1, ((0, 0),)))


def test_what_outliers_get_of_attention_and_add_to_scores_is_the_literal_sum():
    visual, images = planted(), images_for(random_clip(), 3)
    model, classifier = model_of(visual), torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    found = artefacts.measure(model, lambda: iter(images.split(2)), 15, top_layer=1, number=3)
    of_score = artefacts.of_scores(Decomposer(model), lambda: iter(images.split(2)), classifier, found["threshold"])
    outlying = slow_norms(visual, images)[0][3][:, 1:] > found["threshold"]
    slow, classifier = literal.decompose(visual, images), classifier.double()
    attention, sums = np.zeros(5), np.zeros(4)
    with torch.no_grad():
        for i, image in enumerate(images.double()):
            layers, _ = literal.run_image(visual.double(), image)
            for layer, inside in enumerate(layers):
                attention[layer] += sum(head["weights"][0, 1:][outlying[i]].sum() for head in inside["heads"]) / 4 / 3
            predicted = (slow["representation"][i] @ classifier).argmax()
            column = classifier[:, predicted] - classifier.mean(dim=1)
            heat = slow["attn"][i, :, 1:].sum(dim=(0, 2)) @ column
            score = slow["representation"][i] @ column
            sums += [float(value) for value in (heat[outlying[i]].abs().sum(), heat.abs().sum(),
                                                heat[outlying[i]].sum(), score)]
    assert [row["attention"] for row in found["layers"]] == pytest.approx(attention, rel=1e-3)
    assert 0 < sums[0] < 0.9 * sums[1]
    assert of_score["share_of_heat"] == pytest.approx(sums[0] / sums[1], rel=1e-3)
    assert of_score["mean_score_of_outliers"] == pytest.approx(sums[2] / 3, abs=1e-5)
    assert of_score["mean_score"] == pytest.approx(sums[3] / 3, abs=1e-5)


@pytest.fixture
def planted_folder(tmp_path):
    """A model with a planted outlier as a folder in open_clip's format."""
    from safetensors.torch import save_file

    network = random_clip(vision_cfg={"layers": 5, "width": 48})
    network.visual.load_state_dict(planted().state_dict())
    folder = tmp_path / "planted"
    folder.mkdir()
    config = {"embed_dim": 20, "vision_cfg": VISION | {"layers": 5}, "text_cfg": {
        "context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file({name: value.contiguous() for name, value in network.state_dict().items()},
              folder / "open_clip_model.safetensors")
    return folder


def test_scripts_find_outliers_and_take_registers(tmp_path, planted_folder, folder_of_images, run_script, refused):
    from data.emoji import write
    from utils.data.scenes import sample_scenes

    out = tmp_path / "out"
    common = ("--model", f"local-dir:{planted_folder}", "--device", "cpu")
    data = ("--dataset", "imagefolder", "--data_path", folder_of_images, "--output_dir", out)
    assert "does not exist, which names register neurons" in refused("compute_prs", *common, *data, "--registers", 1)
    run_script("compute_text_projection", *common, *data)
    code, said, err = run_script("compute_artefacts", *common, *data, "--register_neurons", 2, "--top_layer", 1)
    assert code == 0, err
    assert "register neurons: 1.7" in said
    found = json.loads((out / "imagefolder_artefacts_planted.json").read_text())
    assert found["outliers"] == pytest.approx(1 / 16)
    assert found["of_score"]["share_of_heat"] > 0
    assert (out / "imagefolder_artefacts_planted.png").is_file()

    code, _, err = run_script("compute_prs", *common, *data, "--registers", 1, "--num_workers", 0)
    assert code == 0, err
    manifest = json.loads((out / "imagefolder_planted.json").read_text())
    assert manifest["registers"]["number"] == 1
    assert manifest["registers"]["neurons"][0] == "1.7"
    with_register = np.load(out / "imagefolder_attn_planted.npy")
    assert "--resume goes on with the same options" in refused("compute_prs", *common, *data, "--resume")

    run = Run.open(str(out), "imagefolder", common[1])  # a picture of the run, decomposed again as the run was
    model, ways = loading.load_same(run.manifest, common[1], None, torch.device("cpu")), [None, [0, 1], [17]]
    picture = pictures.read_option(str(folder_of_images / "cat" / "1.png"))
    np.testing.assert_allclose(retrieval.of_pictures(run, model, [picture], ways),
                               retrieval.vectors(run, np.array([6]), ways), atol=1e-5)

    run_script("compute_prs", *common, *data, "--num_workers", 0)
    assert np.abs(np.load(out / "imagefolder_attn_planted.npy") - with_register).max() > 1e-3
    assert json.loads((out / "imagefolder_planted.json").read_text())["registers"] is None

    image = folder_of_images / "cat" / "1.png"
    code, said, err = run_script("compute_heatmaps", *common, "--image", image, "--text", "a cat", "--registers", 1,
                                 "--artefacts", out / "imagefolder_artefacts_planted.json", "--output",
                                 tmp_path / "h.png")
    assert code == 0, err
    assert "class and register tokens" in said

    write.write_segmentation(tmp_path / "gtsegs_ijcv.mat", sample_scenes(3, seed=5), 32)
    figures = []
    for number in (0, 1):
        code, said, err = run_script("compute_segmentations", *common, "--train_dataset", "imagenet_seg", "--data_path",
                                     tmp_path / "gtsegs_ijcv.mat", "--classifier_dir", out, "--classifier_dataset",
                                     "imagefolder", "--output_dir", out, "--num_workers", 0, "--registers", number)
        assert code == 0, err
        figures.append(json.loads((out / "imagenet_seg_segmentation_decomposition_planted.json").read_text()))
    assert figures[0]["methods"] != figures[1]["methods"]
