"""Models of timm through the scripts, on small random members of each family."""
import json

import numpy as np
import pytest
import timm
import torch
from builders import model_of, random_clip, save_timm, walked

from utils.cli import UserError
from utils.data import datasets, loader
from utils.decompose.decomposer import Decomposer
from utils.models import loading


@pytest.mark.parametrize("family, heads, class_token", [
    ("vit", (3, 4), True), ("average", (3, 4), False), ("swin", (8,), False), ("maxvit", (6,), False)])
def test_a_model_of_timm_works_where_a_clip_does(run_script, folder_of_images, tmp_path, family, heads, class_token):
    folder = save_timm(tmp_path, family)
    code, out, err = run_script("compute_prs", "--model", f"timm:local-dir:{folder}", "--dataset", "imagefolder",
                                "--data_path",
                                folder_of_images, "--batch_size", 4, "--num_workers", 0, "--device", "cpu",
                                "--output_dir",
                                tmp_path / "out")
    assert code == 0, err
    found = {path.name.removeprefix("imagefolder_").removesuffix(f"_{family}.npy"): np.load(path)
             for path in (tmp_path / "out").glob(f"*_{family}.npy")}
    assert found["attn"].shape[:-1] == (15, *heads)
    assert ("cls_attn" in found) == class_token
    assert ("conv" in found) == (family == "maxvit")
    vision = loading.load(f"timm:local-dir:{folder}", None, torch.device("cpu"))
    images = datasets.load_images("imagefolder", str(folder_of_images))
    pixels = torch.cat([pixels for pixels, *_ in loader.batches(images, vision.preprocess, 15, 0)])
    own = torch.nn.functional.normalize(vision.encode_image(pixels), dim=-1).numpy()
    total = sum(terms.reshape(15, -1, terms.shape[-1]).sum(axis=1) for what, terms in found.items()
                if what != "cls_attn")
    np.testing.assert_allclose(total, own, atol=1e-5)
    components = tmp_path / "out" / f"imagefolder_components_{family}.json"
    assert components.is_file() == (len(heads) == 1)
    if components.is_file():
        names = json.loads(components.read_text())
        assert {what: len(listed) for what, listed in names.items()} == {what: found[what].shape[1] for what in names}
        assert names["mlp"][0] == {"kind": "embed", "block": -1, "head": None}
        listed = {"swin": [0, 1, 0, 1, 0, 1, 2, 3], "maxvit": [0, 0, 0, 1, 0, 1]}[family]
        assert [entry["head"] for entry in names["attn"]] == listed


def test_average_pooling_of_open_clip_is_walked():
    visual, images = random_clip(vision_cfg={"pool_type": "avg"}).visual, torch.randn(3, 3, 32, 32)
    decomposer = Decomposer(model_of(visual, (32, 32)))
    assert decomposer.check(images, 1)["error"] < 1e-5
    arrays = decomposer.terms(images).arrays()
    assert {what: tuple(values.shape) for what, values in arrays.items()} == {"attn": (3, 3, 4, 20), "mlp": (3, 4, 20)}
    with pytest.raises(UserError, match="keep heads before their output projection"):
        decomposer.readout()
    for options in ({"compiled": True}, {"precision": "float16"}):
        with pytest.raises(UserError, match="operation by operation"):
            Decomposer(model_of(visual, (32, 32)), **options)


def test_the_walk_gives_the_arrays_of_the_fast_path():
    visual, images = random_clip().visual, torch.randn(3, 3, 32, 32)
    fast, slow = Decomposer(model_of(visual)), Decomposer(walked(visual))
    assert fast.patch_size == (8, 8)
    assert slow.patch_size is None
    assert fast.components == slow.components
    arrays = slow.terms(images).arrays()
    for what, values in fast.terms(images).arrays().items():
        torch.testing.assert_close(arrays[what], values, atol=2e-6, rtol=0)


def test_the_size_and_preprocessing_are_timms_own():
    vision = loading.load("timm:vit_tiny_patch16_224", "none", torch.device("cpu"), seed=3)
    assert vision.image_size == (224, 224)
    assert vision.source == "random weights, seed 3"
    assert vision.name == "timm-vit_tiny_patch16_224"
    assert vision.class_token
    again = loading.load("timm:vit_tiny_patch16_224", "none", torch.device("cpu"), seed=3)
    assert vision.weights_hash == again.weights_hash


def test_a_checkpoint_file_with_its_classifier(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(5)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=7).eval()
    save_file(network.state_dict(), tmp_path / "x.safetensors")
    vision = loading.load("timm:vit_tiny_patch16_224", str(tmp_path / "x.safetensors"), torch.device("cpu"))
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(vision.encode_image(images),
                                   network.forward_head(network.forward_features(images), pre_logits=True))
    assert vision.source == str(tmp_path / "x.safetensors")


