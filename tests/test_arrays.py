import os
from pathlib import Path

import builders
import numpy as np
import pytest

from utils.cli import UserError
from utils.data.datasets import Images
from utils.runs import files
from utils.runs.run import Run
from utils.runs.writer import RunWriter


def write_run(folder, images=10, l=2, h=3, d=6, weights="aa", dataset="emoji", model="m", **changes):
    rng = np.random.default_rng(images)
    shapes = {"attn": (images, l, h, d), "mlp": (images, l + 1, d), "cls_attn": (images, l, d)} | changes
    builders.write_run(folder, dataset, model, {what: rng.normal(size=shape) for what, shape in shapes.items()},
                       rng.integers(0, 4, images), weights_sha256=weights, pretrained="tag", classes=list("abcd"))


def open_run(folder):
    return Run.open(str(folder), "emoji", "m")


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
    path, batch = tmp_path / "x.npy", sizes[0]
    with RunWriter(tmp_path / "m.json", {}, len(values), batch) as writer:
        for number in range(len(sizes)):
            rows = values[number * batch:(number + 1) * batch]
            writer.write(number, len(rows), {path: (rows, dtype)}, [])
        writer.finish({}, {})
    assert np.array_equal(np.load(path), values)
    files.write_arrays(tmp_path / "n.json", {tmp_path / "y.npy": values}, {})
    assert path.read_bytes() == (tmp_path / "y.npy").read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def test_a_run_reads_back_from_disk_with_its_manifest(tmp_path):
    write_run(tmp_path)
    run = open_run(tmp_path)
    assert run.layout == {"attn": [2, 3, 6], "mlp": [3, 6]}
    assert run.cls_attn.shape == (10, 2, 6)
    assert run.labels.shape == (10,)
    assert run.manifest["versions"]["torch"]
    assert run.manifest["arrays"][0] == {
        "file": "emoji_attn_m.npy", "shape": [10, 2, 3, 6], "dtype": "float32",
        "sha256": files.checksum(tmp_path / "emoji_attn_m.npy")}


def test_what_is_not_finished_leaves_nothing(tmp_path):
    write_run(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    place = files.Place(tmp_path, "emoji", "m")
    with pytest.raises(KeyboardInterrupt), RunWriter(place.manifest, {}, 10, 5) as writer:
        writer.write(0, 5, {place.path("attn"): (np.zeros((5, 2, 3, 6)), "float32")}, [])
        raise KeyboardInterrupt
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(TypeError):
        files.write_arrays(place.manifest, {place.path("attn"): np.zeros(3)}, {"a": object()})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full: a full disk was not covered")
def test_a_full_disk_leaves_nothing(tmp_path):
    (tmp_path / "x.npy.partial").symlink_to("/dev/full")
    with pytest.raises(OSError):
        files.write_arrays(tmp_path / "x.json", {tmp_path / "x.npy": np.zeros((100, 100))}, {})
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


def test_labels_that_another_model_on_other_images_replaced_are_refused(tmp_path):
    write_run(tmp_path)
    before = open_run(tmp_path).labels
    write_run(tmp_path, model="other")  # the same images
    assert np.array_equal(open_run(tmp_path).labels, before)
    parts = {what: np.zeros(shape) for what, shape in (("attn", (10, 1, 1, 4)), ("mlp", (10, 2, 4)))}
    builders.write_run(tmp_path, "emoji", "third", parts, (before + 1) % 4, classes=list("abcd"))
    assert np.array_equal(Run.open(str(tmp_path), "emoji", "third").labels, (before + 1) % 4)
    with pytest.raises(UserError, match="holds other labels than those of m: a run of another model, of other images"):
        open_run(tmp_path)


def test_a_result_about_other_weights_settings_or_images_is_not_about_the_run(tmp_path):
    write_run(tmp_path)
    run = open_run(tmp_path)
    about = {"made_of": run.made_of}
    assert run.is_about(about)
    assert run.is_about({})  # of an older version
    for change in ({"weights_sha256": "bb"}, {"registers": {"number": 1}}, {"images_sha256": "cc"},
                   {"model_settings": {"quick_gelu": True}}):
        run.manifest |= change
        assert not run.is_about(about)
        run = open_run(tmp_path)


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
    with pytest.raises(UserError,
                       match=r"emoji_attn_m.npy does not exist; make it with: python compute_prs.py --dataset emoji"):
        open_run(tmp_path)


def test_foreign_arrays_are_read_with_a_warning(tmp_path, capsys):
    write_run(tmp_path)
    (tmp_path / "emoji_m.json").unlink()
    run = open_run(tmp_path)
    assert run.manifest is None
    assert len(run) == 10
    assert capsys.readouterr().err.startswith("warning: no manifest")


def test_published_imagenet_runs_without_labels(tmp_path):
    np.save(tmp_path / "imagenet_attn_m.npy", np.zeros((50_000, 1, 1, 2), np.float16))
    np.save(tmp_path / "imagenet_mlp_m.npy", np.zeros((50_000, 2, 2), np.float16))
    labels = Run.open(str(tmp_path), "imagenet", "m").labels
    assert labels[0] == 0
    assert labels[49] == 0
    assert labels[50] == 1
    assert labels[-1] == 999
    np.save(tmp_path / "imagenet_attn_m.npy", np.zeros((40, 1, 1, 2), np.float16))
    np.save(tmp_path / "imagenet_mlp_m.npy", np.zeros((40, 2, 2), np.float16))
    with pytest.raises(UserError, match="imagenet_labels.npy does not exist"):
        Run.open(str(tmp_path), "imagenet", "m")


def write_texts(folder, texts, weights="aa", d=6):
    builders.write_pool(folder, "pool", "m", texts, np.ones((len(texts), d)), weights_sha256=weights,
                        pretrained="other")


def test_texts_of_another_model_or_another_file_are_refused(tmp_path):
    write_run(tmp_path)
    run = open_run(tmp_path)
    write_texts(tmp_path, ["a", "b"])
    assert run.texts("pool", ["a", "b"]).shape == (2, 6)
    with pytest.raises(UserError, match="other texts"):
        run.texts("pool", ["a", "c"])
    with pytest.raises(UserError, match="3 texts"):
        run.texts("pool", ["a", "b", "c"])
    write_texts(tmp_path, ["a", "b"], weights="bb")
    with pytest.raises(UserError, match="other weights"):
        run.texts("pool", ["a", "b"])


def test_a_classifier_of_other_classes_or_width_is_refused(tmp_path):
    write_run(tmp_path)
    run = open_run(tmp_path)

    def write(classes, d=6):
        builders.write_classifier(tmp_path, "emoji", "m", np.ones((d, len(classes))), classes=classes)

    write(list("abcd"))
    assert run.classifier().shape == (6, 4)
    write(list("abce"))
    with pytest.raises(UserError, match="other classes"):
        run.classifier()
    write(list("abcd"), d=5)
    with pytest.raises(UserError, match="6 wide"):
        run.classifier()


def test_a_manifest_that_is_no_json_is_refused(tmp_path):
    write_run(tmp_path)
    (tmp_path / "emoji_m.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        open_run(tmp_path)


def test_blocks_cover_everything_once():
    for images in (0, 1, 255, 256, 257, 1000):
        covered = np.concatenate([np.arange(images)[block] for block in files.blocks(images)] or [[]])
        assert np.array_equal(covered, np.arange(images))


def test_another_split_is_part_of_a_runs_name():
    assert files.run_name("emoji", None) == files.run_name("emoji", "test") == "emoji"
    assert files.run_name("emoji", "train") == "emoji_train"
    assert files.run_name("imagenet", "val") == "imagenet"
    assert files.run_name("imagefolder", "test") == "imagefolder_test"
    assert files.run_name("imagefolder", None) == "imagefolder"


def test_rows_of_a_run_are_known_in_the_data_set():
    def indices(manifest, rows, images):
        run = Run({"attn": np.zeros((rows, 1, 1, 2)), "mlp": np.zeros((rows, 2, 2))}, manifest=manifest)
        return run.indices(Images([None] * images, ["a"], None)).tolist()

    assert indices(None, 4, 4) == [0, 1, 2, 3]
    assert indices({"skipped_indices": [1, 3], "classes": ["a"]}, 3, 5) == [0, 2, 4]
    with pytest.raises(UserError, match="has 6 images, and the arrays hold 3 of 5; give the --data_path and --split"):
        indices({"skipped_indices": [1, 3], "classes": ["a"]}, 3, 6)
    with pytest.raises(UserError, match="has other classes than the arrays"):
        indices({"classes": ["b"]}, 6, 6)


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
    for block in files.blocks(len(found)):
        assert not found[block].any()
    # In KiB: one block is 102 MB, mapped and copied, where all of it would be 400 and a copy.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most < 330_000
    column, rows = found[:, 5], np.asarray(found[[3, 1]])
    assert column.shape == (1000, 100)
    assert rows.shape == (2, 1000, 100)
    assert resident() - before < 50_000_000
