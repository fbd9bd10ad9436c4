"""Terms of heads kept at their own width: the same numbers in every analysis, on a fraction of the disk."""
import json

import literal
import numpy as np
import pytest
import torch
from builders import call_script

from utils.decompose.dataset import stored as to_store
from utils.decompose.decomposer import Decomposer
from utils.decompose.tower import decompose, read_tower, readout
from utils.models import loading
from utils.runs.run import Run

FULL, COMPACT, MOMENTS = "out", "compact", "moments"


def test_terms_made_again_are_the_terms(variant):
    _, model = variant
    tower = read_tower(model.visual)
    pixels = torch.randn(5, 3, *model.visual.image_size, generator=torch.Generator().manual_seed(1))
    terms = decompose(tower, pixels)
    compact, full = (to_store(terms, storage) for storage in ("compact", "full"))
    kept = Run({what: values.numpy() for what, values in (compact | {"readout": readout(tower)}).items()})
    plain = Run({what: values.numpy() for what, values in full.items()})
    slow = literal.decompose(model.visual, pixels)["attn"].sum(2)
    full = terms.of("attn").numpy()
    heads, last = kept.columns["attn"], kept.last(1)
    assert kept.heads == plain.heads == kept.components
    assert kept.layout["attn"] == plain.layout["attn"]
    np.testing.assert_allclose(kept.stack(slice(None), heads), full, atol=1e-6)
    np.testing.assert_allclose(kept.stack(slice(None), heads).reshape(slow.shape), slow, atol=1e-5)
    for rows, columns in ((slice(1, 3), last), ([4, 0], heads), (slice(None), [0]), ([2], heads), (slice(0, 0), last)):
        np.testing.assert_allclose(kept.stack(rows, columns), full[rows][:, columns], atol=1e-6)
    np.testing.assert_allclose(kept.whole(slice(None)), terms.representation, atol=1e-6)
    for ours, theirs in zip(kept.moments(last), plain.moments(last)):
        np.testing.assert_allclose(ours, theirs, atol=1e-9, rtol=1e-5)


@pytest.fixture(scope="module")
def stored(emoji_run, tmp_path_factory):
    """The images of `emoji_run` in all three kinds of storage, each with classifier and pool."""
    folder = tmp_path_factory.mktemp("stored")
    for name, more in ((COMPACT, ["--compact"]), (MOMENTS, ["--moments_only"])):
        call_script("compute_prs", "--model", "emojiclip", "--device", "cpu", "--dataset", "imagefolder", "--data_path",
                    emoji_run / "images", "--batch_size", 32, "--num_workers", 0, "--output_dir", folder / name, *more)
        for path in (emoji_run / "out").iterdir():
            if "classifier" in path.name or path.name.startswith("pool"):
                (folder / name / path.name).write_bytes(path.read_bytes())
    (folder / FULL).symlink_to(emoji_run / "out")
    (folder / "texts").symlink_to(emoji_run / "texts")
    (folder / "images").symlink_to(emoji_run / "images")
    return folder


def given(stored, kind, *more):
    return ("--model", "emojiclip", "--dataset", "imagefolder", "--input_dir", stored / kind, *more)


def numbers(value):
    """All numbers in the content of a JSON file, in order."""
    if isinstance(value, dict):
        return [number for entry in value.values() for number in numbers(entry)]
    if isinstance(value, list):
        return [number for entry in value for number in numbers(entry)]
    return [float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


def texts(value):
    return [entry["text"] for head in value["heads"] for entry in head["texts"]]


@pytest.mark.parametrize("script, options, name", [
    ("compute_ablations", (), "imagefolder_ablations_emojiclip.json"),
    ("compute_use_specific_heads", ("--heads", "5.3,5.4", "--data_path", "{images}"),
     "imagefolder_specific_heads_emojiclip.json"),
    ("compute_nearest_neighbors", ("--index", 3, "--property", "whole", "--heads", "5.3", "--data_path", "{images}",
                                   "--output_dir", "{out}"), "imagefolder_neighbors_emojiclip.json"),
])
def test_analyses_find_the_same_numbers(run_script, stored, script, options, name, tmp_path):
    found = {}
    for kind in (FULL, COMPACT):
        out = tmp_path / kind
        filled = [str(word).format(images=stored / "images", out=out) for word in options]
        where = () if "--output_dir" in options else (("--figures_dir" if script == "compute_ablations"
                                                       else "--output_dir"), out)
        code, _, err = run_script(script, *given(stored, kind, *filled, *where))
        assert code == 0, err
        found[kind] = numbers(json.loads((out / name).read_text()))
    assert len(found[FULL]) > 5
    np.testing.assert_allclose(found[COMPACT], found[FULL], atol=1e-6)


def test_texts_and_shares_are_the_same_from_all_three(run_script, stored, tmp_path):
    found = {}
    for kind in (FULL, COMPACT, MOMENTS):
        code, out, err = run_script("compute_complete_text_set", *given(
            stored, kind, "--num_of_last_layers", 3, "--texts_per_head", 6, "--text_dir", stored / "texts",
            "--text_descriptions", "pool", "--output_dir", tmp_path / kind))
        assert code == 0, err
        path = tmp_path / kind / "imagefolder_completeness_pool_top_6_heads_emojiclip.json"
        found[kind] = json.loads(path.read_text())
        assert ("Current accuracy: None" in out) == (kind == MOMENTS)
    for kind in (COMPACT, MOMENTS):
        assert texts(found[kind]) == texts(found[FULL])
        ours, theirs = ([entry["share"] for head in found[k]["heads"] for entry in head["texts"]] for k in (kind, FULL))
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert found[COMPACT]["accuracy"] == found[FULL]["accuracy"]
    assert found[MOMENTS]["accuracy"] is None
    assert found[MOMENTS]["images"] == 130


def test_what_needs_more_than_is_kept_is_refused(refused, stored):
    assert "made with --compact, which keeps all MLPs as one" in refused(
        "compute_component_ablation", *given(stored, COMPACT))
    assert "made with --moments_only" in refused("compute_ablations", *given(stored, MOMENTS))
    assert "made with --moments_only" in refused("compute_component_ablation", *given(stored, MOMENTS))


def test_the_disk_that_is_needed(stored):
    """The embedded model has 6 layers of 6 heads of 32 in 128."""
    sizes = {kind: {path.name.split("_")[1]: path.stat().st_size
                    for path in (stored / kind).glob("imagefolder_*_emojiclip.npy")}
             for kind in (FULL, COMPACT, MOMENTS)}
    assert sizes[COMPACT]["heads"] - 128 == (sizes[FULL]["attn"] - 128) * 32 // 128
    assert sizes[COMPACT]["mlp"] - 128 == (sizes[FULL]["mlp"] - 128) * 2 // 7
    assert "attn" not in sizes[COMPACT]
    assert set(sizes[MOMENTS]) == {"readout", "mean", "second", "classifier"}


def test_compact_and_half_precision(run_script, folder_of_images, tmp_path):
    common = ("--model", "emojiclip", "--device", "cpu", "--dataset", "imagefolder", "--data_path", folder_of_images,
              "--num_workers", 0)
    assert run_script("compute_prs", *common, "--output_dir", tmp_path / "a")[0] == 0
    assert run_script("compute_prs", *common, "--output_dir", tmp_path / "b", "--compact", "--save_dtype",
                      "float16")[0] == 0
    full, half = (Run.open(str(tmp_path / name), "imagefolder", "emojiclip") for name in "ab")
    every, heads = slice(None), full.columns["attn"]
    np.testing.assert_allclose(half.stack(every, heads), full.stack(every, heads), atol=2e-4)
    np.testing.assert_allclose(half.rest(every), full.rest(every), atol=1e-3)
    np.testing.assert_allclose(half.cls_attn[:, 0].astype(np.float32), full.cls_attn[:].sum(1), atol=1e-3)


def test_all_mlps_as_one_sum_to_what_they_are_apart():
    decomposer = Decomposer(loading.load("emojiclip", None, torch.device("cpu")))
    terms = decomposer.terms(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    compact, full = to_store(terms, "compact"), to_store(terms, "full")
    assert compact["mlp"].shape == (1, 2, 128)
    assert torch.equal(compact["mlp"][:, 0], full["mlp"][:, 0])
    torch.testing.assert_close(compact["mlp"].sum(dim=1), full["mlp"].sum(dim=1), atol=1e-6, rtol=0)
    torch.testing.assert_close(compact["cls_attn"][:, 0], full["cls_attn"].sum(dim=1), atol=1e-6, rtol=0)
