"""Images in WebDataset shards and in data sets of Hugging Face's library: real archives and tables, through the
script."""
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from utils.data import datasets


@pytest.fixture
def drawn():
    """Eleven random pictures with their classes."""
    rng = np.random.default_rng(0)
    return [(Image.fromarray(rng.integers(0, 255, (20 + i, 24, 3), dtype=np.uint8)), i % 3) for i in range(11)]


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def add(archive, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def shards(drawn, tmp_path):
    """Two shards in a split of a folder, with class names one folder up."""
    folder = tmp_path / "shards" / "test"
    folder.mkdir(parents=True)
    for number, part in enumerate((drawn[:6], drawn[6:])):
        with tarfile.open(folder / f"{number:04d}.tar", "w") as archive:
            for i, (image, label) in enumerate(part):
                add(archive, f"s{number}{i:03d}.png", png(image))
                add(archive, f"s{number}{i:03d}.cls", str(label).encode())
    (folder.parent / "classnames.txt").write_text("owl\nhermit crab\ncat\n")
    return folder.parent


@pytest.fixture
def table(drawn, tmp_path):
    """The same images as a saved data set of Hugging Face's library, with the splits test and train."""
    import datasets as hub

    columns = hub.Features({"picture": hub.Image(), "label": hub.ClassLabel(names=["owl", "hermit crab", "cat"])})
    images, labels = zip(*drawn)
    rows = hub.Dataset.from_dict({"picture": images, "label": labels}, columns)
    hub.DatasetDict({"test": rows, "train": rows.select([0])}).save_to_disk(tmp_path / "table")
    return tmp_path / "table"


@pytest.fixture
def parquet(drawn, tmp_path):
    """The same as a folder of parquet files, which `load_dataset` takes, also as a stream."""
    import datasets as hub

    columns = hub.Features({"image": hub.Image(), "label": hub.ClassLabel(names=["owl", "hermit crab", "cat"])})
    images, labels = zip(*drawn)
    rows = hub.Dataset.from_dict({"image": images, "label": labels}, columns)
    (tmp_path / "parquet").mkdir()
    rows.to_parquet(tmp_path / "parquet" / "test-00000.parquet")
    return tmp_path / "parquet"


def same(images, drawn):
    assert len(images.samples) == len(drawn)
    assert images.classes == ["owl", "hermit crab", "cat"]
    for i, (image, label) in enumerate(drawn):
        found, number = images.read(i)
        assert number == label
        assert np.array_equal(np.asarray(found), np.asarray(image))


def test_shards_give_images_labels_and_names(shards, drawn):
    images = datasets.load_images("webdataset", str(shards), split="test")
    same(images, drawn)
    assert images.paths[7] == f"{shards}/test/0001.tar/s1001.png"
    assert len(images.files) == 2
    assert datasets.class_names("webdataset", str(shards / "test")) == ["owl", "hermit crab", "cat"]


def test_a_saved_data_set_and_a_stream_give_the_same(table, parquet, drawn):
    same(datasets.load_images("huggingface", str(table)), drawn)
    same(datasets.load_images("huggingface", str(parquet), split="test"), drawn)
    stream = datasets.load_images("huggingface", str(parquet), split="test", streaming=True)
    same(stream, drawn)
    assert stream.samples[9][1] == 0
    assert stream.samples[2][1] == 2  # on, and back


def test_all_sources_make_the_same_arrays(run_script, shards, table, parquet, tmp_path):
    given = ("--model", "emojiclip", "--device", "cpu", "--batch_size", 3, "--split", "test")
    made = {}
    for name, dataset, path, *more in (("shards", "webdataset", shards, "--num_workers", 2),
                                       ("table", "huggingface", table, "--num_workers", 0),
                                       ("stream", "huggingface", parquet, "--num_workers", 2, "--streaming")):
        code, _, err = run_script("compute_prs", *given, "--dataset", dataset, "--data_path", path, *more,
                                  "--output_dir", tmp_path / name)
        assert code == 0, err
        made[name] = {path.name.partition("_")[2].removeprefix("test_"): path.read_bytes()
                      for path in (tmp_path / name).glob("*.npy")}
    assert made["shards"] == made["table"] == made["stream"]
    assert len(made["stream"]) == 4


def test_a_bad_image_in_a_shard_is_named(refused, shards, tmp_path):
    with tarfile.open(shards / "test" / "0002.tar", "w") as archive:
        add(archive, "x.jpg", b"no image")
        add(archive, "x.cls", b"1")
    line = refused("compute_prs", "--model", "emojiclip", "--device", "cpu", "--dataset", "webdataset", "--data_path",
                   shards, "--split", "test", "--num_workers", 0, "--output_dir", tmp_path / "o")
    assert f"cannot read {shards}/test/0002.tar/x.jpg" in line


def test_names_in_an_archive_are_never_written(run_script, shards, tmp_path):
    with tarfile.open(shards / "test" / "0002.tar", "w") as archive:
        add(archive, "../../escaped.png", png(Image.new("RGB", (9, 9))))
        add(archive, "../../escaped.cls", b"1")
        add(archive, "/tmp/escaped.txt", b"no")
        link = tarfile.TarInfo("y.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    before = set(tmp_path.rglob("*"))
    code, _, err = run_script("compute_prs", "--model", "emojiclip", "--device", "cpu", "--dataset", "webdataset",
                              "--data_path", shards, "--split", "test", "--num_workers", 0, "--output_dir",
                              tmp_path / "o")
    assert code == 0, err
    new = set(tmp_path.rglob("*")) - before
    assert all(tmp_path / "o" in (path, *path.parents) for path in new)
    manifest = json.loads((tmp_path / "o" / "webdataset_test_emojiclip.json").read_text())
    assert manifest["images"] == 12  # the link is no image


@pytest.mark.parametrize("arguments, message", [
    (("--dataset", "webdataset", "--data_path", "{shards}"), "no .tar files there; --split may be test"),
    (("--dataset", "webdataset", "--data_path", "{shards}", "--split", "val"),
     "no .tar files there; --split may be test"),
    (("--dataset", "huggingface", "--data_path", "{table}", "--split", "val"),
     "has no split 'val'; choose --split from test, train"),
])
def test_bad_input_is_one_line(refused, shards, table, arguments, message, tmp_path):
    given = [word.format(shards=shards, table=table) for word in arguments]
    assert message in refused("compute_prs", "--model", "emojiclip", *given, "--output_dir", tmp_path / "o")


@pytest.mark.parametrize("change, message", [
    (lambda folder: (folder / "0000.tar").write_bytes((folder / "0000.tar").read_bytes()[:700]),
     "cannot be read as a shard"),
    (lambda folder: (folder / "0000.tar").write_bytes(b"no tar" * 400), "cannot be read as a shard"),
    (lambda folder: (folder.parent / "classnames.txt").write_text("owl\ncat\n"),
     "names 2 classes, and an image is of class 2"),
])
def test_broken_shards_are_one_line(refused, shards, change, message, tmp_path):
    change(shards / "test")
    assert message in refused("compute_prs", "--model", "emojiclip", "--dataset", "webdataset", "--data_path", shards,
                              "--split", "test", "--output_dir", tmp_path / "o")
