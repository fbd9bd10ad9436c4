import json
import os
from pathlib import Path

import builders
import numpy as np
import pytest

from utils.cli import UserError
from utils.data.datasets import Images
from utils.runs import files, stored
from utils.runs.stored import Stored


def write_run(folder, images=10, l=2, h=3, d=6, weights="aa", dataset="emoji", model="m", **changes):
    rng = np.random.default_rng(images)
    shapes = {"attn": (images, l, h, d), "mlp": (images, l + 1, d), "cls_attn": (images, l, d)} | changes
    builders.write_run(folder, dataset, model, {what: rng.normal(size=shape) for what, shape in shapes.items()},
                       rng.integers(0, 4, images), weights_sha256=weights, pretrained="tag", classes=list("abcd"))


def open_run(folder, names=("attn", "mlp", "cls_attn")):
    return files.open_run(str(folder), "emoji", "m", names)


def test_names_are_the_published_ones(tmp_path):
    write_run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "emoji_attn_m.npy", "emoji_cls_attn_m.npy", "emoji_labels.npy", "emoji_m.json", "emoji_mlp_m.npy"]
    assert files.text_path("x", "pool", "m").name == "pool_m.npy"
    assert files.term_path("x", "imagenet", "classifier", "ViT-L-14").name == "imagenet_classifier_ViT-L-14.npy"


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64"])
@pytest.mark.parametrize("sizes", [(1,), (4, 4, 1), (7, 3)])
def test_a_streamed_array_is_the_whole_one(tmp_path, dtype, sizes):
    values = (np.random.default_rng(0).normal(size=(sum(sizes), 2, 3)) * 100).astype(dtype)
    path, start = tmp_path / "x.npy", 0
    with files.Writer(tmp_path / "x.json") as writer:
        for size in sizes:
            writer.append(path, values[start:start + size], dtype)
            start += size
        writer.finish({})
    assert np.array_equal(np.load(path), values)
    assert not list(tmp_path.glob("*.partial"))


def test_a_run_reads_back_from_disk_with_its_manifest(tmp_path):
    write_run(tmp_path)
    run, manifest = open_run(tmp_path)
    assert run["attn"].shape == (10, 6, 6) and isinstance(run["mlp"], Stored) and run["attn"].layout == (2, 3, 6)
    assert run["labels"].shape == (10,)
    assert manifest["versions"]["torch"] and manifest["arrays"][0] == {
        "file": "emoji_attn_m.npy", "shape": [10, 2, 3, 6], "dtype": "float32"}


def test_what_is_not_finished_leaves_nothing(tmp_path):
    write_run(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt), files.Writer(files.manifest_path(tmp_path, "emoji", "m")) as writer:
        writer.append(files.term_path(tmp_path, "emoji", "attn", "m"), np.zeros((5, 2, 3, 6)))
        raise KeyboardInterrupt
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full: a full disk was not covered")
def test_a_full_disk_leaves_nothing(tmp_path):
    (tmp_path / "x.npy.partial").symlink_to("/dev/full")
    with pytest.raises(OSError), files.Writer(tmp_path / "x.json") as writer:
        for _ in range(100):
            writer.append(tmp_path / "x.npy", np.zeros((100, 100)))
        writer.finish({})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes, message", [
    ({"mlp": (9, 3, 6)}, "holds 9 images"),
    ({"cls_attn": (10, 2, 5)}, "different widths"),
    ({"mlp": (10, 6)}, "not that of mlp"),
])
def test_arrays_that_do_not_fit_each_other_are_refused(tmp_path, changes, message):
    write_run(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        open_run(tmp_path)


def test_an_array_of_another_run_is_refused(tmp_path):
    write_run(tmp_path)
    np.save(tmp_path / "emoji_attn_m.npy", np.zeros((10, 2, 4, 6), np.float32))
    with pytest.raises(UserError, match="comes from another run"):
        open_run(tmp_path)


def test_labels_of_another_run_are_refused(tmp_path):
    write_run(tmp_path)
    np.save(tmp_path / "emoji_labels.npy", np.zeros(7, int))
    with pytest.raises(UserError, match="holds 7 images"):
        open_run(tmp_path)


def test_a_cut_file_is_refused(tmp_path):
    write_run(tmp_path)
    path = tmp_path / "emoji_attn_m.npy"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="not a complete"):
        open_run(tmp_path)


def test_pickles_are_refused(tmp_path):
    write_run(tmp_path)
    np.save(tmp_path / "emoji_attn_m.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="not a complete"):
        open_run(tmp_path)


def test_what_is_missing_is_named_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(UserError, match=r"emoji_attn_m.npy does not exist; make it with: python compute_prs.py --dataset emoji"):
        open_run(tmp_path)


def test_foreign_arrays_are_read_with_a_warning(tmp_path, capsys):
    write_run(tmp_path)
    (tmp_path / "emoji_m.json").unlink()
    run, manifest = open_run(tmp_path)
    assert manifest is None and len(run["attn"]) == 10
    assert capsys.readouterr().err.startswith("warning: no manifest")


def test_published_imagenet_runs_without_labels(tmp_path):
    rng = np.lib.format.open_memmap(tmp_path / "imagenet_attn_m.npy", "w+", np.float16, (50_000, 1, 1, 2))
    del rng
    run, _ = files.open_run(str(tmp_path), "imagenet", "m", ("attn",))
    assert run["labels"][0] == 0 and run["labels"][49] == 0 and run["labels"][50] == 1 and run["labels"][-1] == 999
    np.save(tmp_path / "imagenet_attn_m.npy", np.zeros((40, 1, 1, 2), np.float16))
    with pytest.raises(UserError, match="imagenet_labels.npy does not exist"):
        files.open_run(str(tmp_path), "imagenet", "m", ("attn",))


def write_texts(folder, texts, weights="aa", d=6):
    builders.write_pool(folder, "pool", "m", texts, np.ones((len(texts), d)), weights_sha256=weights, pretrained="other")


def test_texts_of_another_model_or_another_file_are_refused(tmp_path):
    write_run(tmp_path)
    _, run = open_run(tmp_path)
    write_texts(tmp_path, ["a", "b"])
    assert files.open_texts(str(tmp_path), "pool", "m", run, 6, ["a", "b"]).shape == (2, 6)
    with pytest.raises(UserError, match="other texts"):
        files.open_texts(str(tmp_path), "pool", "m", run, 6, ["a", "c"])
    with pytest.raises(UserError, match="3 texts"):
        files.open_texts(str(tmp_path), "pool", "m", run, 6, ["a", "b", "c"])
    write_texts(tmp_path, ["a", "b"], weights="bb")
    with pytest.raises(UserError, match="other weights"):
        files.open_texts(str(tmp_path), "pool", "m", run, 6, ["a", "b"])


def test_a_classifier_of_other_classes_or_width_is_refused(tmp_path):
    write_run(tmp_path)
    _, run = open_run(tmp_path)

    def write(classes, d=6):
        builders.write_classifier(tmp_path, "emoji", "m", np.ones((d, len(classes))), classes=classes)

    write(list("abcd"))
    assert files.open_classifier(str(tmp_path), "emoji", "m", run, 6).shape == (6, 4)
    write(list("abce"))
    with pytest.raises(UserError, match="other classes"):
        files.open_classifier(str(tmp_path), "emoji", "m", run, 6)
    write(list("abcd"), d=5)
    with pytest.raises(UserError, match="6 wide"):
        files.open_classifier(str(tmp_path), "emoji", "m", run, 6)


def test_a_manifest_that_is_no_json_is_refused(tmp_path):
    write_run(tmp_path)
    (tmp_path / "emoji_m.json").write_text("{")
    with pytest.raises(UserError, match="not a manifest"):
        open_run(tmp_path)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1} and not list(tmp_path.glob("*.partial"))


def test_blocks_cover_everything_once():
    for images in (0, 1, 255, 256, 257, 1000):
        covered = np.concatenate([np.arange(images)[block] for block in stored.blocks(images)] or [[]])
        assert np.array_equal(covered, np.arange(images))


def test_another_split_is_part_of_a_runs_name():
    assert files.run_name("emoji", None) == files.run_name("emoji", "test") == "emoji"
    assert files.run_name("emoji", "train") == "emoji_train" and files.run_name("imagenet", "val") == "imagenet"
    assert files.run_name("imagefolder", "test") == "imagefolder_test" and files.run_name("imagefolder", None) == "imagefolder"


def held(number):
    return Images([None] * number, ["a"], None)


def test_rows_of_a_run_are_known_in_the_data_set():
    assert files.image_indices(None, 4, held(4)).tolist() == [0, 1, 2, 3]
    assert files.image_indices({"skipped_indices": [1, 3], "classes": ["a"]}, 3, held(5)).tolist() == [0, 2, 4]
    with pytest.raises(UserError, match="has 6 images, and the arrays hold 3 of 5; give the --data_path and --split"):
        files.image_indices({"skipped_indices": [1, 3], "classes": ["a"]}, 3, held(6))
    with pytest.raises(UserError, match="has other classes than the arrays"):
        files.image_indices({"classes": ["b"]}, 6, held(6))


def test_what_was_read_does_not_stay_in_memory(tmp_path):
    """A file of 400 MB, read in blocks, block after block and column by column."""
    import resource

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    path = tmp_path / "x.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (1000, 1000, 100)})
        file.truncate(file.tell() + 400_000_000)
    found = files.open_array(path, None, "")
    before, most = resident(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for block in stored.blocks(len(found)):
        assert not found[block].any()
    # In KiB: one block is 102 MB, mapped and copied, where all of it would be 400 and a copy.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most < 330_000
    column, rows = found[:, 5], np.asarray(found[[3, 1]])
    assert column.shape == (1000, 100)
    assert rows.shape == (2, 1000, 100)
    assert resident() - before < 50_000_000
