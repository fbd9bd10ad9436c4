"""The planted model: what its card promises, and the script that plants attributes in heads."""
import json

import literal
import numpy as np
import pytest
import torch
from builders import ROOT, model_of, opened, random_clip, random_images

from models.emojiclip_planted import planting
from models.emojiclip_planted.train import LAYERS, OTHER, OWN, PLANTED
from utils.analysis import truth
from utils.cli import UserError
from utils.decompose.decomposer import Decomposer
from utils.models import loading, names, weights

FOLDER = ROOT / "models" / "emojiclip_planted"


@pytest.mark.parametrize("first", [0, 2])
def test_what_heads_write_in_training_is_what_the_decomposer_says(first):
    clip = random_clip()
    images, decomposer = random_images(32), Decomposer(model_of(clip.visual))
    wanted = decomposer.terms(images)
    clip.visual.requires_grad_(True)
    representation, terms = planting.last_layers(clip.visual, planting.first_layers(clip.visual, images, first), first)
    heads = [place for place, one in enumerate(wanted.components) if one.kind == "attn" and one.layer >= first]
    assert (terms - wanted.values[:, heads]).abs().max() < 1e-6
    assert (representation - wanted.representation).abs().max() < 1e-6
    terms.square().sum().backward()
    attn = clip.visual.transformer.resblocks[-1].attn
    for weight in (attn.in_proj_weight, attn.out_proj.weight, clip.visual.proj, clip.visual.ln_post.weight):
        assert weight.grad.abs().max() > 0


def test_shares_are_their_definition_and_gradients_raise_them():
    rng = np.random.default_rng(0)
    group = torch.from_numpy(rng.integers(4, size=60) * 3)
    terms = torch.from_numpy(rng.normal(size=(60, 2, 5))).requires_grad_()
    found = planting.shares(terms, group)
    for head in range(2):
        assert found[head].item() == pytest.approx(literal.epsilon_squared(terms[:, head].detach().numpy(),
                                                                           group.numpy()))
    found.sum().backward()
    assert (planting.shares(terms + terms.grad, group) > found).all()


def test_attributes_of_sampled_scenes_do_not_depend_on_each_other():
    found = planting.codes(planting.sample(8, seed=5))
    assert (found["object"].bincount() == 8).all()
    for name, group in found.items():
        if name not in ("object", "style"):
            table = np.zeros((6, int(group.max()) + 1))
            np.add.at(table, (found["style"].numpy(), group.numpy()), 1)
            expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
            assert ((table - expected) ** 2 / expected).sum() < 3 * table.size
    of_one = found["style"][found["object"] == 7]
    assert len(of_one.unique()) > 2


def test_heads_are_drawn_by_seed_and_each_attribute_as_often():
    found = [planting.assign(PLANTED, 2, range(12), seed) for seed in range(3)]
    for own in found:
        assert sorted(own.values()) == sorted(PLANTED * 2)
        assert list(own) == sorted(own)
        assert set(own) <= set(range(12))
    assert found[0] != found[1] != found[2]
    assert found[0] == planting.assign(PLANTED, 2, range(12), 0)


def test_the_mean_text_of_each_value_stands_off_the_mean_of_all():
    texts = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    found = planting.class_means(texts, {"a": torch.tensor([0, 0, 1, 1, 1, 2, 2, 0])})["a"]
    for value, rows in enumerate(([0, 1, 7], [2, 3, 4], [5, 6])):
        wanted = texts[rows].mean(0) - texts.mean(0)
        torch.testing.assert_close(found[value], wanted / wanted.norm())


@pytest.fixture(scope="module")
def planted():
    return loading.load(str(FOLDER), None, torch.device("cpu"), text_side=True)


@pytest.fixture(scope="module")
def emojiclip():
    return loading.load("emojiclip", None, torch.device("cpu"), text_side=True)


@pytest.fixture(scope="module")
def seen(planted):
    """1,040 held-out scenes, with the planted model's terms and representations."""
    from torchvision.transforms.functional import normalize

    from utils.data.scenes import draw

    drawn, found, decomposer = planting.sample(4, seed=95_001), [], Decomposer(planted)
    settings = json.loads((FOLDER / "open_clip_config.json").read_text())["preprocess_cfg"]
    for i in range(0, len(drawn), 130):
        pixels = draw(drawn[i:i + 130], 64)[0].float() / 255
        found.append(decomposer.terms(normalize(pixels, settings["mean"], settings["std"])))
    heads = len([one for one in found[0].components if one.kind == "attn"])
    values = torch.cat([terms.values[:, :heads] for terms in found]).unflatten(1, (6, -1)).numpy()
    return drawn, values, torch.cat([terms.representation for terms in found])


def test_planted_heads_hold_what_the_card_says(seen):
    drawn, values, _ = seen
    run = opened({"attn": values, "mlp": np.zeros((len(values), 1, values.shape[-1]), np.float32)})
    found = truth.explained(run, truth.codes(drawn), run.columns["attn"])
    listed = json.loads((FOLDER / "training.json").read_text())["planted"]
    assert len(listed) == 2 * len(PLANTED)
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for row in listed:
        shares = {name: 100 * share[row["layer"] * 6 + row["head"]] for name, share in found.items()}
        assert row["layer"] in range(6 - LAYERS, 6)
        assert max(shares, key=shares.get) == row["attribute"]
        own = shares.pop(row["attribute"])
        line = next(line for line in card.splitlines() if line.startswith("| {layer}.{head} | ".format(**row)))
        _, _, attribute, said, other, _ = (cell.strip() for cell in line.split("|"))
        assert attribute == row["attribute"]
        assert abs(own - float(said)) < 8, line  # shares move that far with the scenes
        assert max(shares.values()) < 100 * OTHER, line
        assert own > 100 * OWN - 7, line


def test_planted_attributes_are_read_by_text(planted, seen):
    from models.emojiclip.measure import attribute_prompts, naming_accuracy
    from utils.data.captions import templates
    from utils.data.scenes import concepts

    drawn, _, representation = seen
    prompts = {name: (list(own), list(own.values())) for name, own in attribute_prompts().items() if name in PLANTED}
    prompts["object"] = (list(range(len(concepts()))), [[template(concept["name"]) for template in templates("emoji")]
                                                        for concept in concepts()])
    for name, (values, texts) in prompts.items():
        right = naming_accuracy(planted.network, planted.tokenizer, representation, texts,
                                [values.index(getattr(scene, name)) for scene in drawn])
        assert right >= (1.7 if name == "size" else 2) * 100 / len(values), name


def test_only_the_last_layers_of_the_image_tower_are_its_own(planted, emojiclip):
    stored = FOLDER / "open_clip_model.safetensors"
    assert stored.stat().st_size < 10e6
    own, theirs = weights.read(str(stored)), emojiclip.network.state_dict()
    for name, value in planted.network.state_dict().items():
        assert torch.equal(value, own[name].float() if name in own else theirs[name]), name
    assert all(name.startswith("visual.") for name in own)
    assert planted.weights_hash != emojiclip.weights_hash
    assert planted.name == "emojiclip_planted"


@pytest.mark.parametrize("base, message", [("other", "its base is 'other', and only emojiclip can be one"),
                                           (None, "weights"), ("emojiclip", "that it does not know, such as visual.x")])
def test_a_folder_of_changes_that_do_not_fit_is_refused(tmp_path, base, message):
    from safetensors.torch import save_file

    config = json.loads((names.EMOJICLIP / "open_clip_config.json").read_text())
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config | ({"base": base} if base else {})))
    save_file({"visual.x": torch.zeros(1)}, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(UserError, match=message):
        loading.load(f"local-dir:{tmp_path}", None, torch.device("cpu"))


def test_two_steps_of_training_leave_a_model_that_loads(run_script, refused, tmp_path, emojiclip):
    options = ("--steps", 2, "--batch_size", 64, "--objects", 32, "--scenes", 2, "--eval_every", 1, "--seed", 3,
               "--frozen", 3, "--output_dir", tmp_path)
    code, out, err = run_script("models.emojiclip_planted.train", *options)
    assert code == 0, err
    assert {path.name for path in tmp_path.iterdir()} == {"open_clip_config.json", "open_clip_model.safetensors",
                                                          "training_log.csv", "training_curve.png", "training.json"}
    found = json.loads((tmp_path / "training.json").read_text())
    assert [row["attribute"] for row in found["planted"]] == list(planting.assign(PLANTED, 2, range(12), 3).values())
    assert "{layer}.{head} {attribute}".format(**found["planted"][0]) in out
    trained = loading.load(f"local-dir:{tmp_path}", None, torch.device("cpu"))
    moved = {name: (value - emojiclip.network.state_dict()[name]).abs().max()
             for name, value in trained.network.state_dict().items()}
    assert all(bool(change) == name.startswith(("visual.transformer.resblocks.3", "visual.transformer.resblocks.4",
                                                "visual.transformer.resblocks.5", "visual.ln_post", "visual.proj"))
               for name, change in moved.items())
    assert "--scenes 1: a batch of 64 takes 2 scenes of each of 32 objects" in refused(
        "models.emojiclip_planted.train", *options, "--scenes", 1)
