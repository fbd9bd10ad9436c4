import json

import literal
import numpy as np
import pytest
import torch

from utils.data import datasets, loader
from utils.models import loading


def run_arguments(folder, output, *more):
    return ("--model", "emojiclip", "--dataset", "imagefolder", "--data_path", folder, "--output_dir", output,
            "--num_workers", 0, "--device", "cpu", *more)


def load(output, what):
    return np.load(output / (f"imagefolder_{what}_emojiclip.npy" if what != "labels" else "imagefolder_labels.npy"))


def final_names(folder):
    """Files that are under a final name."""
    return [path for path in folder.iterdir() if not path.name.endswith(".partial")]


def test_arrays_equal_the_definition_and_sum_to_the_models_output(run_script, folder_of_images, tmp_path):
    code, out, err = run_script("compute_prs", *run_arguments(folder_of_images, tmp_path / "o", "--batch_size", 4))
    assert code == 0, err
    assert "15 images -> " in out
    clip = loading.load("emojiclip", None, torch.device("cpu"))
    images = datasets.load_images("imagefolder", str(folder_of_images))
    pixels = torch.cat([pixels for pixels, *_ in loader.batches(images, clip.preprocess, 15, 0)])
    slow = literal.decompose(clip.network.visual, pixels)
    for what, expected in (("attn", slow["attn"].sum(2)), ("mlp", slow["mlp"]),
                           ("cls_attn", slow["attn"][:, :, 0].sum(2))):
        found = load(tmp_path / "o", what)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)
    own = torch.nn.functional.normalize(clip.network.encode_image(pixels), dim=-1)
    np.testing.assert_allclose(load(tmp_path / "o", "attn").sum((1, 2)) + load(tmp_path / "o", "mlp").sum(1), own,
                               atol=1e-5)
    assert load(tmp_path / "o", "labels").tolist() == [0] * 5 + [1] * 5 + [2] * 5

    manifest = json.loads((tmp_path / "o" / "imagefolder_emojiclip.json").read_text())
    assert manifest["images"] == 15
    assert manifest["classes"] == ["big dog", "cat", "owl"]
    assert manifest["weights_sha256"] == clip.weights_hash
    assert manifest["skipped_images"] == []
    assert not list((tmp_path / "o").glob("*.partial"))


def test_same_input_same_bytes(run_script, folder_of_images, tmp_path):
    for name in ("a", "b"):
        assert run_script("compute_prs", *run_arguments(folder_of_images, tmp_path / name, "--batch_size", 4))[0] == 0
    for path in (tmp_path / "a").iterdir():
        if "_time_" in path.name:
            continue
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_half_precision_halves_the_files(run_script, folder_of_images, tmp_path):
    for name, dtype in (("a", "float32"), ("b", "float16")):
        run_script("compute_prs",
                   *run_arguments(folder_of_images, tmp_path / name, "--batch_size", 4, "--save_dtype", dtype))
    one, half = load(tmp_path / "a", "attn"), load(tmp_path / "b", "attn")
    assert half.dtype == np.float16
    assert half.nbytes * 2 == one.nbytes
    np.testing.assert_allclose(half, one, atol=1e-3)


def test_a_model_with_random_weights_at_another_size(run_script, folder_of_images, tmp_path):
    code, _, err = run_script("compute_prs", "--model", "ViT-M-32-alt", "--pretrained", "none", "--dataset",
                              "imagefolder",
                              "--data_path", folder_of_images, "--output_dir", tmp_path, "--num_workers", 0, "--device",
                              "cpu")
    assert code == 0, err
    attn = np.load(tmp_path / "imagefolder_attn_ViT-M-32-alt.npy")
    mlp = np.load(tmp_path / "imagefolder_mlp_ViT-M-32-alt.npy")
    np.testing.assert_allclose(np.linalg.norm(attn.sum((1, 2)) + mlp.sum(1), axis=1), 1, atol=1e-5)


def test_check_prints_error_and_cost(run_script):
    code, out, _ = run_script("compute_prs", "--model", "emojiclip", "--check", "--device", "cpu")
    values = dict(line.split(": ") for line in out.strip().splitlines())
    assert code == 0
    assert float(values["largest error"]) < 1e-5
    assert float(values["cost over a plain forward pass"]) > 0


def test_check_fails_where_the_library_computes_something_else(refused, monkeypatch):
    from open_clip.transformer import ResidualAttentionBlock

    real = ResidualAttentionBlock.forward
    monkeypatch.setattr(ResidualAttentionBlock, "forward", lambda self, x, **rest: real(self, x * 1.01, **rest))
    assert "its decomposition would be wrong" in refused("compute_prs", "--model", "emojiclip", "--check")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device: its absence was not covered")
def test_the_published_command_without_cuda_is_one_line(refused, folder_of_images):
    line = refused("compute_prs", "--dataset", "imagefolder", "--device", "cuda:0", "--model", "ViT-H-14",
                   "--pretrained", "laion2b_s32b_b79k", "--data_path", folder_of_images)
    assert "--device cuda:0 cannot be used here" in line
    assert "leave --device out" in line


def test_a_truncated_image_stops_the_run_or_is_skipped(refused, run_script, folder_of_images, tmp_path):
    path = folder_of_images / "cat" / "2.png"
    path.write_bytes(path.read_bytes()[:200])
    given = run_arguments(folder_of_images, tmp_path / "o", "--batch_size", 2)
    assert str(path) in refused("compute_prs", *given)
    assert final_names(tmp_path / "o") == []
    code, out, err = run_script("compute_prs", *given, "--skip_bad_images", "--resume")
    assert code == 0
    assert f"skipped: {path}" in out
    assert "resuming at image 6 of 15" in err
    assert not list((tmp_path / "o").glob("*.partial"))
    manifest = json.loads((tmp_path / "o" / "imagefolder_emojiclip.json").read_text())
    assert manifest["images"] == len(load(tmp_path / "o", "attn")) == len(load(tmp_path / "o", "labels")) == 14
    assert manifest["skipped_images"][0].startswith(str(path))


def test_only_bad_images_is_an_error(refused, folder_of_images, tmp_path):
    for path in folder_of_images.glob("*/*.png"):
        path.write_bytes(b"")
    line = refused("compute_prs", *run_arguments(folder_of_images, tmp_path / "o", "--skip_bad_images"))
    assert "none of the 15 images can be read" in line


@pytest.mark.parametrize("precision, error", [("bfloat16", 5e-3), ("float16", 1e-3)])
def test_half_precision_of_the_model_keeps_the_sums_in_full(run_script, folder_of_images, tmp_path, precision, error):
    for name in ("float32", precision):
        code, _, err = run_script("compute_prs", *run_arguments(folder_of_images, tmp_path / name, "--precision", name))
        assert code == 0, err
    one, half = (load(tmp_path / name, "attn").sum((1, 2)) + load(tmp_path / name, "mlp").sum(1)
                 for name in ("float32", precision))
    np.testing.assert_allclose(half, one, atol=error)
    assert not np.array_equal(half, one)
    # what attention adds is rounded, sums are not
    np.testing.assert_allclose(np.linalg.norm(half, axis=1), 1, atol=error)
    assert json.loads((tmp_path / precision / "imagefolder_emojiclip.json").read_text())["precision"] == precision


@pytest.mark.long
def test_a_compiled_model_gives_the_same_terms(run_script, folder_of_images, tmp_path):
    for name, more in (("plain", ()), ("compiled", ("--compile",))):
        code, _, err = run_script("compute_prs",
                                  *run_arguments(folder_of_images, tmp_path / name, "--batch_size", 5, *more))
        assert code == 0, err
    for what in ("attn", "mlp", "cls_attn"):
        np.testing.assert_allclose(load(tmp_path / "compiled", what), load(tmp_path / "plain", what), atol=1e-6)


def test_a_model_that_is_walked_back_is_neither_compiled_nor_halved(refused, folder_of_images, tmp_path):
    for more in (("--precision", "float16"), ("--compile",)):
        line = refused("compute_prs", "--model", "timm:vit_tiny_patch16_224", "--pretrained", "none", "--dataset",
                       "imagefolder",
                       "--data_path", folder_of_images, "--output_dir", tmp_path, "--device", "cpu", *more)
        assert "operation by operation" in line
