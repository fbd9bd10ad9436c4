"""Weights in a file: their layouts, and the settings that were trained with them."""
import argparse
import json

import numpy as np
import open_clip
import pytest
import torch
from builders import TEXT, VISION, call_script

from utils.cli import UserError
from utils.models import loading, weights
from utils.runs import files

CPU, NAME = torch.device("cpu"), "tiny-of-test_weights"


@pytest.fixture(scope="module", autouse=True)
def small_model(tmp_path_factory):
    """A small model that open_clip knows by name."""
    path = tmp_path_factory.mktemp("configs") / f"{NAME}.json"
    path.write_text(json.dumps({"embed_dim": 20, "vision_cfg": VISION, "text_cfg": TEXT}))
    before = open_clip.factory._MODEL_CONFIG_PATHS[:]
    open_clip.add_model_config(path)
    yield
    open_clip.factory._MODEL_CONFIG_PATHS[:] = before
    open_clip.factory._rescan_model_configs()


@pytest.fixture(scope="module")
def network(small_model):
    torch.manual_seed(3)
    return open_clip.create_model(NAME)


def load(path, **settings):
    return loading.load(NAME, str(path), CPU, settings=settings)


def options():
    """What training scripts keep beside weights."""
    return {"args": argparse.Namespace(lr=1e-3, data="x"), "epoch": 3, "best": np.float64(0.5),
            "optimizer": {"state": {}}}


LAYOUTS = {
    "alone": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, **options()},
    "model": lambda state: {"model": state, **options()},
    "other name": lambda state: {"weights_of_epoch_3": state, **options()},
    "prefix": lambda state: {"model": {f"module._orig_mod.{name}": value for name, value in state.items()}},
    "both": lambda state: {"model_ema": {name: value * 0 for name, value in state.items()}, "model": state},
    "of others": lambda state: state | {"input_resolution": torch.tensor(224), "context_length": torch.tensor(77)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_found_in_any_layout(network, tmp_path, layout):
    torch.save(LAYOUTS[layout](network.state_dict()), tmp_path / "w.pt")
    found = load(tmp_path / "w.pt").network.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in network.state_dict().items())


class Trainer:
    """An object that a file would have to run code for."""


@pytest.mark.parametrize("content, message", [
    (lambda state: {"model": state, "trainer": Trainer()}, r"objects beside weights \(test_weights.Trainer\)"),
    (lambda state: {"student": state, "teacher": state}, r"several sets of weights \(student, teacher\)"),
    (lambda state: {"epoch": 3, "lr": 0.1}, "no dictionary of weights, but epoch, lr; save the state_dict"),
    (lambda state: [1, 2], "no dictionary of weights; save"),
    (lambda state: {name: state[name] for name in list(state)[:-2]}, "lacks 2 of the model's"),
    (lambda state: state | {"more": torch.zeros(1)}, "has 1 that it does not know, such as more"),
    (lambda state: state | {"visual.proj": torch.zeros(2, 3)}, r"visual.proj of shape \[2, 3\] in place of \[48, 20\]"),
])
def test_what_cannot_be_loaded_says_why_in_one_line(network, tmp_path, content, message):
    torch.save(content(network.state_dict()), tmp_path / "w.pt")
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path / "w.pt")
    assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_torchscript_archive_is_refused_with_what_to_do(tmp_path):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "w.pt")
    with pytest.raises(UserError, match="is a TorchScript archive, .* save its weights alone"):
        load(tmp_path / "w.pt")


def test_half_a_file_is_refused(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "w.pt")
    (tmp_path / "w.pt").write_bytes((tmp_path / "w.pt").read_bytes()[:5000])
    with pytest.raises(UserError, match="damaged or no checkpoint"):
        load(tmp_path / "w.pt")


def test_what_is_assumed_of_a_file_is_said_with_the_tags_that_differ(network, tmp_path, capsys, monkeypatch):
    tags = {"ours": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}, "theirs": {"quick_gelu": True}, "plain": {}}
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda model: list(tags))
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, tag: tags[tag])
    torch.save(network.state_dict(), tmp_path / "w.pt")
    clip, said = load(tmp_path / "w.pt"), capsys.readouterr().err
    assert said.count("\n") == 1
    assert "open_clip_config.json is not beside it" in said
    assert "assumed are mean 0.481 0.458 0.408, std 0.269 0.261 0.276, bicubic, plain GELU" in said
    assert "ours with mean 0.5 0.5 0.5, std 0.5 0.5 0.5; theirs with quick-GELU." in said
    assert clip.settings["quick_gelu"] is False
    given = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear", "quick_gelu": True}
    clip = load(tmp_path / "w.pt", **given)
    assert capsys.readouterr().err == ""
    assert clip.settings == given | {"resize_mode": "shortest"}
    step = clip.preprocess.transforms[-1]
    assert (list(step.mean), list(step.std)) == (given["mean"], given["std"])
    assert clip.preprocess.transforms[0].interpolation.value == "bilinear"
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    quick = open_clip.create_model(NAME, force_quick_gelu=True)
    quick.load_state_dict(network.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(clip.encode_image(pixels), quick.eval().encode_image(pixels))


def test_a_companion_beside_the_file_is_read(network, tmp_path, capsys):
    torch.save(network.state_dict(), tmp_path / "w.pt")
    config = open_clip.get_model_config(NAME)
    about = {"model_cfg": config | {"quick_gelu": True},
             "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": 0.5, "interpolation": "bilinear"}}
    (tmp_path / weights.COMPANION).write_text(json.dumps(about))
    expected = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "quick_gelu": True,
                "resize_mode": "shortest"}
    assert load(tmp_path / "w.pt").settings == expected
    assert load(tmp_path / "w.pt", mean=[0.1] * 3, quick_gelu=False).settings == expected | {
        "mean": [0.1] * 3, "quick_gelu": False}
    assert capsys.readouterr().err == ""
    about["model_cfg"] = config | {"vision_cfg": config["vision_cfg"] | {"image_size": 448}}
    for content, message in ((about, r"another model \(vision_cfg.image_size differs\)"),
                             ([1], "not as open_clip writes it"),
                             ({"preprocess_cfg": {"mean": "x"}}, "not as open_clip writes it")):
        (tmp_path / weights.COMPANION).write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            load(tmp_path / "w.pt")


def test_settings_travel_with_arrays_and_others_are_refused(tmp_path):
    """A run says how its model was set, and what loads it again takes that; texts of another activation are refused."""
    from PIL import Image

    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (80, 64), "red").save(tmp_path / "images" / name / "0.png")
    common = ("--model", "emojiclip", "--dataset", "imagefolder", "--data_path", tmp_path / "images", "--output_dir",
              tmp_path)
    call_script("compute_prs", *common, "--mean", 0.5, 0.5, 0.5, "--quick_gelu", "True")
    manifest = files.read_manifest(files.manifest_path(tmp_path, "imagefolder", "emojiclip"))
    assert manifest["model_settings"]["mean"] == [0.5, 0.5, 0.5]
    assert manifest["model_settings"]["quick_gelu"] is True
    assert "--mean 0.5 0.5 0.5" in manifest["command"]
    again = loading.load_same(manifest, "emojiclip", None, CPU)
    assert again.settings == manifest["model_settings"]
    call_script("compute_text_projection", *common)
    evaluate = ("compute_ablations", "--model", "emojiclip", "--dataset", "imagefolder", "--input_dir", tmp_path)
    with pytest.raises(UserError, match="was made with quick_gelu False, and the terms with True"):
        call_script(*evaluate)
    call_script("compute_text_projection", *common, "--quick_gelu", "True")
    call_script(*evaluate)
    with pytest.raises(UserError, match="--quick_gelu is of open_clip's models"):
        loading.load("timm:vit_tiny_patch16_224", "none", CPU, settings={"quick_gelu": True})


def test_runs_of_different_preprocessing_are_refused_together():
    one = {"model_settings": {"mean": [0.5] * 3}, "weights_sha256": "a", "pretrained": "w"}
    with pytest.raises(UserError, match="mean .* make it again with the same --mean: COMMAND"):
        files.same_weights("x.npy", one, one | {"model_settings": {"mean": [0.4] * 3}}, "COMMAND")
    files.same_weights("x.npy", one, one | {"model_settings": None}, "COMMAND")


def test_a_model_of_timm_takes_a_file_and_settings(tmp_path):
    import timm

    network = timm.create_model("vit_tiny_patch16_224", num_classes=7)
    torch.save({"state_dict": network.state_dict(), **options()}, tmp_path / "w.pt")
    model = loading.load("timm:vit_tiny_patch16_224", str(tmp_path / "w.pt"), CPU,
                         settings={"mean": [0.1, 0.2, 0.3], "interpolation": "bilinear"})
    assert torch.equal(model.network.state_dict()["norm.weight"], network.state_dict()["norm.weight"])
    assert model.settings["mean"] == [0.1, 0.2, 0.3]
    assert model.preprocess.transforms[0].interpolation.value == "bilinear"
