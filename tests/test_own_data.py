"""One's own data as they come: hidden files, empty classes, missing rows, several images a sample, long strips."""
import io
import json
import os
import shutil
import tarfile

import numpy as np
import pytest
import torch
from builders import call_script
from PIL import Image
from torchvision import transforms

from utils.analysis import alignment
from utils.cli import UserError
from utils.data import datasets, masks, pictures
from utils.models import loading
from utils.runs.run import Run


def picture(seed=0, size=(70, 64)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size)


def put(path, seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed).save(path, **options)


def compute(folder, data, *more, dataset="imagefolder"):
    call_script("compute_prs", "--model", "emojiclip", "--dataset", dataset, "--data_path", data,
                "--output_dir", folder, "--num_workers", 0, *more)
    return Run.open(str(folder), dataset, "emojiclip")


# Hidden files and folders

def test_hidden_files_and_folders_are_no_data_and_said_once(tmp_path, capsys):
    for name in ("b/1.png", "Äpfel/grün.JPEG", "b/deep/2.PNG"):
        put(tmp_path / name)
    for name in (".ipynb_checkpoints/1-checkpoint.png", "b/._1.png", "b/.cache/3.png", "b/deep/.h/4.png"):
        put(tmp_path / name)
    (tmp_path / "b" / ".DS_Store").write_bytes(b"x")
    images = datasets.load_images("imagefolder", str(tmp_path))
    assert images.classes == ["b", "Äpfel"]
    assert [os.path.relpath(path, tmp_path) for path in images.paths] == ["b/1.png", "b/deep/2.PNG", "Äpfel/grün.JPEG"]
    assert images.samples.labels == [0, 0, 1]
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "left out, as its name begins with a dot: .ipynb_checkpoints, b/._1.png, b/.cache, b/deep/.h" in said


def test_hidden_splits_masks_shards_and_members_are_no_data(tmp_path, capsys):
    for name in ("images/a.png", "images/._a.png", "masks/a.png", "masks/._a.png"):
        put(tmp_path / name)
    assert masks.MaskFolder(str(tmp_path)).names == ["a"]
    write_shard(tmp_path / "0.tar", {"0.png": picture(), "0.cls": 1, "._0.png": b"x",
                                    "d/.c/1.cls": b"x", "._0.cls": b"x"})
    (tmp_path / "._0.tar").write_bytes(b"x")
    found = datasets.load_images("webdataset", str(tmp_path))
    assert [name.rpartition("/")[2] for name in found.paths] == ["0.png"]
    assert "._0.tar" in capsys.readouterr().err


# The same images

def test_images_are_known_by_names_and_labels_wherever_they_lie(tmp_path):
    for name in ("a/0.png", "a/1.png", "b/0.png"):
        put(tmp_path / "data" / name)
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    images, again = (datasets.load_images("imagefolder", str(tmp_path / name)) for name in ("data", "copy"))
    assert datasets.names_hash(images) == datasets.names_hash(again)
    assert datasets.fingerprint(images) != datasets.fingerprint(again)
    run = compute(tmp_path / "out", tmp_path / "data")
    run.indices(again)
    again.samples.labels = [0, 1, 1]  # of a list of labels that was mended
    assert datasets.names_hash(images) != datasets.names_hash(again)
    (tmp_path / "copy" / "b" / "0.png").rename(tmp_path / "copy" / "b" / "7.png")
    another = datasets.load_images("imagefolder", str(tmp_path / "copy"))
    with pytest.raises(UserError, match="has other images than the arrays, by their names or labels"):
        run.indices(another)
    mapped_to = compute(tmp_path / "other", tmp_path / "copy")
    with pytest.raises(UserError, match=r"differ in their images \(names or labels\)"):
        alignment.same_images(run, mapped_to)
    mapped_to.manifest.pop("images_sha256")  # of an older version
    alignment.same_images(run, mapped_to)


# Class folders

def test_an_empty_class_folder_is_named_or_left_out_and_listed(tmp_path, capsys):
    put(tmp_path / "data" / "a" / "0.png")
    (tmp_path / "data" / "of nothing").mkdir()
    with pytest.raises(UserError, match="no images in the class folder of nothing; .* --skip_bad_images"):
        compute(tmp_path / "out", tmp_path / "data")
    assert not (tmp_path / "out").exists()
    run = compute(tmp_path / "out", tmp_path / "data", "--skip_bad_images")
    assert "skipped: the class folder of nothing, which has no images" in capsys.readouterr().out
    assert run.manifest["classes"] == ["a", "of nothing"]
    assert datasets.class_names("imagefolder", str(tmp_path / "data")) == ["a", "of nothing"]


def test_a_link_to_a_folder_that_it_lies_in_is_not_followed(tmp_path):
    put(tmp_path / "a" / "deep" / "0.png")
    put(tmp_path / "b" / "0.png")
    for place, target in (("a/self", "."), ("a/deep/root", "../.."), ("a/other", "../b")):
        (tmp_path / place).symlink_to(target)
    found = datasets.load_images("imagefolder", str(tmp_path))
    assert [path.removeprefix(f"{tmp_path}/") for path in found.paths] == ["a/deep/0.png", "a/other/0.png", "b/0.png"]


def test_a_link_to_nothing_is_named_or_left_out(tmp_path, capsys):
    put(tmp_path / "data" / "a" / "0.png")
    (tmp_path / "data" / "a" / "1.png").symlink_to("gone.png")
    with pytest.raises(UserError, match="cannot read .*a/1.png .*No such file.* --skip_bad_images"):
        compute(tmp_path / "out", tmp_path / "data")
    assert len(compute(tmp_path / "out", tmp_path / "data", "--skip_bad_images")) == 1
    assert "a/1.png" in capsys.readouterr().out


def test_pictures_of_endings_that_are_not_read_are_counted(tmp_path, capsys):
    put(tmp_path / "a" / "0.png")
    for name in ("1.HEIC", "2.heic", "notes.txt", "3.gif"):
        (tmp_path / "a" / name).touch()
    assert len(datasets.load_images("imagefolder", str(tmp_path)).samples) == 1
    err = capsys.readouterr().err
    assert "left out, as no picture of that ending is read: " in err
    assert "2 .heic" in err
    assert "1 .gif" in err
    assert ".txt" not in err


def test_two_classes_of_one_name_are_said(tmp_path, capsys):
    for name in ("big_dog", "big dog", "cat"):
        put(tmp_path / name / "0.png")
    assert datasets.class_names("imagefolder", str(tmp_path)) == ["big dog", "big dog", "cat"]
    assert "two classes are called big dog: texts cannot tell them apart" in capsys.readouterr().err


def test_of_many_empty_class_folders_five_are_named(tmp_path):
    put(tmp_path / "0" / "0.png")
    for name in "abcdefg":
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="no images in the class folders a, b, c, d, e and 2 more; remove"):
        datasets.load_images("imagefolder", str(tmp_path), empty_classes=False)


def test_names_that_are_not_utf8(tmp_path, capsys):
    """A file of such a name is an image like others; a class needs a name that can be read."""
    put(tmp_path / "data" / "a" / "0.png")
    os.rename(tmp_path / "data" / "a" / "0.png", os.fsencode(tmp_path / "data" / "a") + b"/caf\xe9.png")
    (tmp_path / "data" / "a" / "bad.png").write_bytes(b"no picture")
    os.rename(tmp_path / "data" / "a" / "bad.png", os.fsencode(tmp_path / "data" / "a") + b"/na\xefve.png")
    run = compute(tmp_path / "out", tmp_path / "data", "--skip_bad_images")
    assert len(run) == 1
    assert r"na\xefve.png" in run.manifest["skipped_images"][0]
    assert r"na\xefve.png" in capsys.readouterr().out
    os.mkdir(os.fsencode(tmp_path / "data") + b"/\xe9t\xe9")
    with pytest.raises(UserError, match="has a name that is not UTF-8"):
        datasets.load_images("imagefolder", str(tmp_path / "data"))


# How pictures are read

def test_reading_is_chosen_recorded_and_kept_by_who_reads_again(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    put(tmp_path / "lying" / "a" / "0.png", exif=exif)
    put(tmp_path / "untagged" / "a" / "0.png")
    turned = picture().transpose(Image.Transpose.ROTATE_270)
    (tmp_path / "upright" / "a").mkdir(parents=True)
    turned.save(tmp_path / "upright" / "a" / "0.png")
    seen, published = (compute(tmp_path / name, tmp_path / "lying", *more) for name, more in (
        ("seen", ()), ("published", ("--reading", "published"))))
    for run, same in ((seen, "upright"), (published, "untagged")):
        other = compute(tmp_path / f"{same}_out", tmp_path / same)
        assert run.whole(slice(None)) @ other.whole(slice(None)).T > 0.9999
        assert run.manifest["reading"] == ("seen" if same == "upright" else "published")
        image = run.images(str(tmp_path / "lying")).samples[0][0]
        assert np.array_equal(image, turned if same == "upright" else picture())
    assert (seen.whole(slice(None)) @ published.whole(slice(None)).T).item() < 0.99
    with pytest.raises(UserError, match="--reading is of pictures in files"):
        datasets.load_images("emoji", reading="seen")


@pytest.mark.parametrize("size, side", [((1, 2000), 64), ((3000, 3), 64), ((41, 1000), 32)])
@pytest.mark.parametrize("interpolation", [transforms.InterpolationMode.BICUBIC, transforms.InterpolationMode.BILINEAR])
def test_a_long_strip_is_resized_as_if_all_of_it_were(size, side, interpolation):
    rng = np.random.default_rng(1)
    strip = Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    plain = transforms.Compose([transforms.Resize(side, interpolation), transforms.CenterCrop(side),
                                transforms.ToTensor()])
    shaped = pictures.Shaped(plain)
    largest = []
    plain.transforms[0].register_forward_hook(lambda step, given, found: largest.append(max(found.size)))
    torch.testing.assert_close(shaped(strip), plain(strip), atol=4 / 255, rtol=0)
    assert largest[0] <= (pictures.STRIP + 1) * side < largest[1]
    assert np.array_equal(pictures.shape(strip, shaped), transforms.ToPILImage()(shaped(strip)))


@pytest.mark.parametrize("preprocess", [
    [transforms.Resize((64, 64)), transforms.ToTensor()], [transforms.ToTensor()]])
def test_what_is_squeezed_or_left_alone_is_not_cropped(preprocess):
    strip = picture(size=(2000, 2))
    plain = transforms.Compose(preprocess)
    assert torch.equal(pictures.Shaped(plain)(strip), plain(strip))


def test_models_have_the_bound():
    for name, pretrained in (("emojiclip", None), ("timm:vit_tiny_patch16_224", "none")):
        model = loading.load(name, pretrained, torch.device("cpu"))
        assert isinstance(model.preprocess, pictures.Shaped)
        assert model.preprocess(picture(size=(1, 20000))).shape == (3, *model.image_size)


# Shards

def write_shard(path, members: dict):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            if isinstance(content, Image.Image):
                buffer = io.BytesIO()
                content.save(buffer, "PNG")
                content = buffer.getvalue()
            data = content if isinstance(content, bytes) else str(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def test_one_image_of_a_sample_is_chosen_by_its_key(tmp_path):
    members = {}
    for i in range(3):
        members |= {f"d/{i}.rgb.png": picture(i), f"d/{i}.seg.png": picture(9), f"d/{i}.cls": i}
    write_shard(tmp_path / "0.tar", members)
    with pytest.raises(UserError, match=r"sample d/0 has several images \(rgb.png, seg.png\); choose with --image_key"):
        datasets.load_images("webdataset", str(tmp_path))
    images = datasets.load_images("webdataset", str(tmp_path), image_key="rgb.png")
    assert [label for _, label in (images.samples[i] for i in range(3))] == [0, 1, 2]
    assert np.array_equal(images.samples[2][0], picture(2))
    with pytest.raises(UserError, match="no images in its shards are called KEY.x.png"):
        datasets.load_images("webdataset", str(tmp_path), image_key="x.png")
    with pytest.raises(UserError, match="--image_key goes with --dataset webdataset"):
        datasets.load_images("emoji", image_key="x.png")
    run = compute(tmp_path / "out", tmp_path, "--image_key", "rgb.png", dataset="webdataset")
    assert run.manifest["image_key"] == "rgb.png"
    assert len(run.images(str(tmp_path)).paths) == 3


def test_samples_with_one_image_need_no_key_and_dots_may_be_in_keys(tmp_path):
    write_shard(tmp_path / "0.tar", {"a.rgb.png": picture(), "a.cls": 0, "b.v1.png": picture(1), "b.v1.cls": 1,
                                     "b.v2.png": picture(2), "b.v2.cls": 0})
    found = datasets.load_images("webdataset", str(tmp_path)).samples
    assert [label for _, label in (found[i] for i in range(len(found)))] == [0, 1, 0]


@pytest.mark.parametrize("labels, message", [
    ((0, -1), "is of class -1"), ((0, 10 ** 9), "one of them is 1000000000; number the classes from 0")])
def test_classes_that_are_none_are_refused(tmp_path, labels, message):
    write_shard(tmp_path / "0.tar", {f"{i}.{kind}": value for i, label in enumerate(labels)
                                     for kind, value in (("png", picture()), ("cls", label))})
    with pytest.raises(UserError, match=message):
        datasets.load_images("webdataset", str(tmp_path))


# Data sets of Hugging Face's library

def save_rows(folder, labels, images=None, names=None):
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as Picture

    given = [label for label in labels if label is not None]
    kind = ClassLabel(names=names) if names else Value("string" if isinstance(given[0], str) else "int64")
    rows = {"image": images or [picture(i) for i in range(len(labels))], "label": labels}
    Dataset.from_dict(rows, features=Features({"image": Picture(), "label": kind})).save_to_disk(folder)
    return str(folder)


def test_rows_without_an_image_or_a_label_are_named_or_left_out(tmp_path, capsys):
    data = save_rows(tmp_path / "data", [0, 1, None, -1, 1], [picture(0), None, *map(picture, (2, 3, 4))])
    with pytest.raises(UserError, match=r"row 1 \(the row has no image in its column image\)"):
        compute(tmp_path / "out", data, dataset="huggingface")
    run = compute(tmp_path / "out", data, "--skip_bad_images", dataset="huggingface")
    assert run.labels.tolist() == [0, 1]
    assert run.manifest["skipped_indices"] == [1, 2, 3]
    assert "row 2 (the row has no label in its column label)" in capsys.readouterr().out


def test_labels_that_are_texts_are_classes_by_sorted_name(tmp_path):
    images = datasets.load_images("huggingface", save_rows(tmp_path, ["dog", "cat", "dog", "ape"]))
    assert images.classes == ["ape", "cat", "dog"]
    assert [images.samples[i][1] for i in range(4)] == [2, 1, 2, 0]


@pytest.mark.parametrize("labels, names, message", [
    ([0, 2], ["a", "b"], "row 1 has label 2, and there are 2 classes"), ([0, -7], None, "row 1 has label -7"),
    ([0, 2 ** 40], None, "number the classes from 0")])
def test_labels_outside_the_classes_are_refused(tmp_path, labels, names, message):
    data = save_rows(tmp_path, [0, 1], names=names)
    from unittest import mock

    from datasets import Dataset
    whole = Dataset.__getitem__
    with mock.patch.object(Dataset, "__getitem__", lambda self, key: labels if key == "label" else whole(self, key)), \
            pytest.raises(UserError, match=message):
        datasets.load_images("huggingface", data)


def test_images_without_labels_are_decomposed(tmp_path):
    for name, labels, classes in (("none", [None, None], ["a", "b"]), ("minus", [-1, -1], None)):
        data = save_rows(tmp_path / name, labels, names=classes)
        run = compute(tmp_path / f"{name}_out", data, dataset="huggingface")
        assert run.labels.tolist() == [-1, -1]
        assert run.manifest["classes"] == (classes or [])
        assert run.images(data).class_of(-1) == "no label"
    with pytest.raises(UserError, match="no image has a label, so there are no classes"):
        datasets.class_names("huggingface", str(tmp_path / "minus"))


def test_a_result_of_names_that_are_not_utf8_is_written_and_read(tmp_path):
    from utils import cli

    cli.save_result(tmp_path / "x.json", {"path": "caf\udce9", "more": "ä"})
    assert json.loads((tmp_path / "x.json").read_text()) == {"path": "caf\udce9", "more": "ä"}
