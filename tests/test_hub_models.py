"""Models of transformers by hub name or folder: terms that sum to the model's own output, and every script."""
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from builders import call_script, model_of
from hub_models import IMAGE_SIDES, VISION, moved, save_clip, save_image_side
from PIL import Image

from utils.cli import UserError
from utils.decompose.decomposer import Decomposer
from utils.decompose.walk import decompose
from utils.models import loading, names
from utils.runs.run import Run

CPU = torch.device("cpu")


def some_pictures(number: int = 3) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)) for _ in range(number)]


def pixels_of(folder, pictures: list[Image.Image]) -> torch.Tensor:
    return hf.AutoImageProcessor.from_pretrained(folder)(images=pictures, return_tensors="pt")["pixel_values"]


def own_output(kind: str, folder, pixels: torch.Tensor) -> torch.Tensor:
    """Representations by transformers alone."""
    network = hf.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        if kind in ("clip", "siglip"):
            return network.get_image_features(pixel_values=pixels).pooler_output
        found = network(pixel_values=pixels)
    if kind in ("vit", "deit"):
        return found.last_hidden_state[:, 0]
    return found.last_hidden_state.mean(dim=1) if kind == "ijepa" else found.pooler_output


@pytest.mark.parametrize("kind", ["clip", "siglip", *IMAGE_SIDES])
def test_terms_sum_to_the_models_own_output(kind, tmp_path):
    (save_clip if kind in ("clip", "siglip") else save_image_side)(kind, tmp_path)
    model, pictures = loading.load(str(tmp_path), None, CPU), some_pictures()
    pixels = torch.stack([model.preprocess(picture) for picture in pictures])
    torch.testing.assert_close(pixels, pixels_of(tmp_path, pictures), atol=0, rtol=0)
    own = F.normalize(own_output(kind, tmp_path, pixels), dim=-1)
    found = Decomposer(model).terms(pixels)
    torch.testing.assert_close(found.representation, own, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.values.sum(dim=1), own, atol=2e-6, rtol=0)
    blocks = {layer: [component.head for component in found.components
                      if component.kind == "attn" and component.layer == layer] for layer in range(2)}
    assert blocks == {0: [0, 1], 1: [0, 1]}
    assert len(found.of("mlp").unbind(1)) == 2 + ("siglip" in kind)  # SigLIP's pooling ends in an MLP of its own
    tokens = Decomposer(model).tokens(pixels, found.representation[None])
    torch.testing.assert_close(tokens.parts.sum(dim=-1), torch.ones(1, 3))
    assert set(tokens.grids.values()) == {(4, 4)}
    assert (model.encode_text is not None) == (kind in ("clip", "siglip"))


@pytest.mark.parametrize("name, settings, side", [
    ("SwinModel", {"patch_size": 4, "embed_dim": 24, "depths": [2, 1], "num_heads": [2, 4], "window_size": 7}, 56),
    ("ConvNextModel", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}, 64)])
def test_hierarchical_models(name, settings, side):
    kind = getattr(hf, name)
    model = moved(kind(kind.config_class(image_size=side, **settings))).eval()
    images = torch.randn(2, 3, side, side)

    def pooled(images: torch.Tensor) -> torch.Tensor:
        return model(pixel_values=images).pooler_output.flatten(1)

    found = decompose(model, images, pooled)
    torch.testing.assert_close(found.values.sum(dim=1), F.normalize(pooled(images), dim=-1), atol=1e-6, rtol=0)
    blocks = {component.layer for component in found.components if component.kind != "embed"}
    assert len(blocks) == sum(settings["depths"])


def test_clip_goes_the_way_of_open_clips_towers(tmp_path):
    """With another activation and epsilon; its terms are those of the walk through transformers' own layers."""
    save_clip("clip", tmp_path, hidden_act="gelu", layer_norm_eps=1e-3)
    model, images = loading.load(f"hf:{tmp_path}", None, CPU), torch.randn(2, 3, 32, 32)
    walked = Decomposer(model_of(model.network, (32, 32), model.encode_image, 1, True))
    fast, expected = Decomposer(model), walked.terms(images)
    assert fast.patch_size == (8, 8)
    assert walked.patch_size is None
    found = fast.terms(images)
    assert found.components == expected.components
    torch.testing.assert_close(found.values, expected.values, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.cls_attn, expected.cls_attn, atol=1e-6, rtol=0)
    assert fast.readout().shape == (2, 2, VISION["hidden_size"] // 2 + 3, 12)


@pytest.fixture(scope="module")
def hub_run(tmp_path_factory):
    """A CLIP of transformers, pictures of two classes, a pool of texts, and what compute_*.py make of them."""
    folder = tmp_path_factory.mktemp("hub")
    save_clip("clip", folder / "clip")
    for i, picture in enumerate(some_pictures(12)):
        (folder / "images" / ("cat", "dog")[i % 2]).mkdir(parents=True, exist_ok=True)
        picture.save(folder / "images" / ("cat", "dog")[i % 2] / f"{i:02d}.png")
    pool = folder / "texts" / "pool.txt"
    pool.parent.mkdir()
    pool.write_text("a red dog\na blue cat\na photo\nblue\nphoto of a dog\n")
    model, out = ("--model", folder / "clip"), ("--output_dir", folder / "out", "--device", "cpu")
    data = ("--dataset", "imagefolder", "--data_path", folder / "images")
    call_script("compute_prs", *model, *data, *out, "--num_workers", 0)
    call_script("compute_text_projection", "--model", f"hf:{folder / 'clip'}", *data, *out)
    call_script("compute_text_set_projection", *model, "--data_path", pool, *out)
    return folder


def test_a_run_sums_to_the_models_own_output(hub_run):
    run = Run.open(str(hub_run / "out"), "imagefolder", str(hub_run / "clip"))
    pictures = [Image.open(path) for path in sorted((hub_run / "images").rglob("*.png"))]
    own = own_output("clip", hub_run / "clip", pixels_of(hub_run / "clip", pictures))
    whole = sum(np.load(hub_run / "out" / f"imagefolder_{what}_clip.npy").reshape(12, -1, 12).sum(axis=1)
                for what in ("attn", "mlp"))
    np.testing.assert_allclose(whole, F.normalize(own, dim=-1), atol=1e-5)
    assert run.manifest["pretrained"] == str(hub_run / "clip")
    assert loading.options_of(run.manifest["model"], run.manifest["pretrained"]) == (str(hub_run / "clip"), None, 0)


def test_texts_are_embedded_by_the_models_own_tokenizer(hub_run):
    network = hf.CLIPModel.from_pretrained(hub_run / "clip").eval()
    processor = hf.CLIPProcessor.from_pretrained(hub_run / "clip")
    texts = (hub_run / "texts" / "pool.txt").read_text().splitlines()
    with torch.no_grad():
        own = network.get_text_features(**processor(text=texts, padding=True, return_tensors="pt")).pooler_output
    np.testing.assert_allclose(np.load(hub_run / "out" / "pool_clip.npy"), F.normalize(own, dim=-1), atol=1e-6)
    columns = np.load(hub_run / "out" / "imagefolder_classifier_clip.npy")
    assert columns.shape == (12, 2)
    np.testing.assert_allclose(np.linalg.norm(columns, axis=0), 1, atol=1e-6)


def test_every_analysis_takes_a_run_of_transformers(hub_run, run_script):
    run = ("--model", hub_run / "clip", "--dataset", "imagefolder", "--input_dir", hub_run / "out")
    texts = ("--text_dir", hub_run / "texts", "--text_descriptions", "pool", "--texts_per_head", 2)
    data = ("--data_path", hub_run / "images")
    for name, *more in (("compute_ablations",),
                        ("compute_complete_text_set", *texts, "--num_of_last_layers", 1, "--output_dir",
                         hub_run / "out"),
                        ("compute_nearest_neighbors", *data, "--image", hub_run / "images" / "cat" / "00.png",
                         "--neighbors", 2, "--output_dir", hub_run / "out"),
                        ("make_report", *data, *texts, "--images_per_head", 2, "--heat_maps", 1, "--output_dir",
                         hub_run / "page")):
        code, _, err = run_script(name, *run, *more)
        assert code == 0, (name, err)
    assert (hub_run / "out" / "imagefolder_ablations_clip.json").is_file()


def test_heat_maps_of_the_whole_picture(hub_run, run_script, tmp_path):
    some_pictures(1)[0].resize((64, 32)).save(tmp_path / "p.png")
    code, out, err = run_script("compute_heatmaps", "--model", hub_run / "clip", "--image", tmp_path / "p.png",
                                "--text", "a red dog", "--output", tmp_path / "h.png")
    assert code == 0, err
    assert "4 x 8 patches" in out
    assert len(json.loads((tmp_path / "h.json").read_text())["texts"]) == 1


def test_segmentation_by_every_method(hub_run, run_script, tmp_path):
    for i, picture in enumerate(some_pictures(2)):
        for what, shown in (("images", picture), ("masks", Image.fromarray(np.eye(40, 50, dtype=np.uint8) * 255))):
            (tmp_path / what).mkdir(exist_ok=True)
            shown.save(tmp_path / what / f"{i}.png")
    code, out, err = run_script("compute_segmentations", "--model", hub_run / "clip", "--train_dataset", "masks_folder",
                                "--data_path", tmp_path, "--classifier_dir", hub_run / "out", "--classifier_dataset",
                                "imagefolder", "--method", "all", "--save_img", "--num_workers", 0, "--output_dir",
                                tmp_path)
    assert code == 0, err
    assert "mean IoU" in out


def test_what_a_model_without_texts_lacks_is_said(refused, run_script, tmp_path):
    save_image_side("vit", tmp_path / "vit")
    code, out, err = run_script("compute_prs", "--model", tmp_path / "vit", "--check", "--device", "cpu")
    assert code == 0, err
    for script, *more in (("compute_text_projection", "--dataset", "emoji"), ("compute_text_set_projection",)):
        assert "has no text side; this step needs a CLIP" in refused(script, "--model", tmp_path / "vit", *more)
    assert "brings its own weights" in refused("compute_prs", "--model", tmp_path / "vit", "--pretrained", "openai",
                                               "--check")


def test_the_tokenizer_is_read_when_a_text_comes(tmp_path):
    save_clip("siglip", tmp_path)
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    model = loading.load(str(tmp_path), None, CPU)
    assert Decomposer(model).check(torch.randn(1, 3, 32, 32))["error"] < 1e-5
    with pytest.raises(UserError, match="the tokenizer of .* cannot be loaded"):
        model.embed_texts(["a dog"])


def test_patches_of_any_number_are_refused(tmp_path):
    save_clip("siglip", tmp_path)
    (tmp_path / "processor_config.json").unlink()
    hf.Siglip2ImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="any number of patches .NaFlex."):
        loading.load(str(tmp_path), None, CPU)


def test_a_processor_of_another_size_is_refused(tmp_path):
    save_clip("clip", tmp_path)
    hf.CLIPImageProcessor().save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").unlink()
    with pytest.raises(UserError, match="makes images of 224 x 224 pixels, and it takes 32 x 32"):
        loading.load(str(tmp_path), None, CPU)


def test_names_say_their_library(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, files in (("a/hub", {"config.json": '{"model_type": "clip"}'}), ("a/both", {
            "config.json": '{"model_type": "clip"}', "open_clip_config.json": "{}"}), ("a/none", {}), ("a/timm", {
                "config.json": '{"architecture": "vit"}'}), ("a/open", {"open_clip_config.json": "{}"}), ("ViT-B-32", {
                    "config.json": '{"model_type": "clip"}'}), ("alone", {"config.json": '{"model_type": "clip"}'})):
        (tmp_path / folder).mkdir(parents=True)
        for name, content in files.items():
            (tmp_path / folder / name).write_text(content)
    for model, resolved in (("ViT-L-14", "ViT-L-14"), ("ViT-B-32", "ViT-B-32"), ("emojiclip", "emojiclip"),
                            ("ViT-B/32", "ViT-B/32"), ("openai/clip", "hf:openai/clip"),
                            ("hf:ViT-B-32", "hf:ViT-B-32"), ("hf-hub:a/b", "hf-hub:a/b"), ("timm:vit", "timm:vit"),
                            ("a/hub", "hf:a/hub"), ("a/timm", "timm:local-dir:a/timm"), ("a/open", "local-dir:a/open"),
                            (f"{tmp_path}/a/hub", f"hf:{tmp_path}/a/hub"), ("alone", "hf:alone")):
        assert names.resolve(model) == resolved
        assert names.file_name(names.resolve(model)) == names.file_name(model)
    assert names.file_name(f"{tmp_path}/a/hub") == "hub"
    assert names.file_name("openai/clip-vit-large-patch14") == "openai-clip-vit-large-patch14"
    with pytest.raises(UserError, match="several libraries; choose with local-dir:a/both or hf:a/both"):
        names.resolve("a/both")
    with pytest.raises(UserError, match="no model there"):
        names.resolve("a/none")
