import shutil
from pathlib import Path

import numpy as np
import pytest
from builders import (
    WRITERS,
    annotations,
    cells,
    picture,
    write_aircraft,
    write_caltech,
    write_cars,
    write_cub,
    write_dogs,
    write_flat_imagenet,
    write_flowers,
    write_imagefolder,
    write_pets,
)
from PIL import Image
from scipy.io import savemat

from utils.cli import UserError
from utils.data import datasets, layouts

AIRCRAFT, COONHOUND = "fgvc-aircraft-2013b/data", "n02089078-black-and-tan_coonhound/n02089078"
# Files under the root with their labels, of every split.
TRUTH = {
    "imagefolder": {"": [("A/x.webp", 0), ("b_b/1.jpg", 1), ("b_b/2.PNG", 1), ("b_b/deep/0.png", 1)]},
    "binary_waterbirds": {split: [(f"waterbird_complete95_forest2water2/001.A/{i}.jpg", y) for i, y in rows]
                          for split, rows in {"train": [(0, 0)], "val": [(3, 1)], "test": [(1, 1), (2, 0)]}.items()},
    "cub": {"train": [("CUB_200_2011/images/001.Black_footed_Albatross/a.jpg", 0),
                      ("CUB_200_2011/images/002.Laysan_Albatross/c.jpg", 1)],
            "test": [("CUB_200_2011/images/002.Laysan_Albatross/b.jpg", 1)]},
    "fgvc_aircraft": {split: [(f"{AIRCRAFT}/images/{i}.jpg", y) for i, y in rows] for split, rows in
                      {"train": [("0001000", 0), ("0034309", 0), ("0056978", 1)], "val": [("0000002", 2)],
                       "trainval": [("0001000", 0), ("0034309", 0), ("0056978", 1), ("0000002", 2)],
                       "test": [("0000003", 1)]}.items()},
    "flowers": {"train": [("jpg/image_00002.jpg", 0), ("jpg/image_00004.jpg", 0), ("jpg/image_00001.jpg", 101)],
                "val": [("jpg/image_00003.jpg", 20)], "test": [("jpg/image_00005.jpg", 76)],
                "trainval": [("jpg/image_00002.jpg", 0), ("jpg/image_00004.jpg", 0), ("jpg/image_00003.jpg", 20),
                             ("jpg/image_00001.jpg", 101)]},
    "pets": {**{split: [("images/Abyssinian_100.jpg", 0), ("images/german_shorthaired_10.jpg", 1),
                        ("images/german_shorthaired_9.jpg", 1)] for split in ("train", "trainval")},
             "test": [("images/Abyssinian_2.jpg", 0), ("images/german_shorthaired_1.jpg", 1)]},
    "stanford_cars": {"train": [("cars_train/00003.jpg", 0), ("cars_train/00001.jpg", 1), ("cars_train/00002.jpg", 1)],
                      "test": [("cars_test/00001.jpg", 0)]},
    "stanford_dogs": {"train": [("Images/n02085620-Chihuahua/n02085620_5927.jpg", 0),
                                ("Images/n02085620-Chihuahua/n02085620_7.jpg", 0), (f"Images/{COONHOUND}_9.jpg", 1)],
                      "test": [("Images/n02085620-Chihuahua/n02085620_1.jpg", 0), (f"Images/{COONHOUND}_1.jpg", 1)]},
}
CLASSES = {"imagefolder": ["A", "b b"], "binary_waterbirds": ["landbird", "waterbird"],
           "cub": ["Black footed Albatross", "Laysan Albatross"],
           "fgvc_aircraft": ["747-400", "Challenger 600", "F/A-18"],
           "pets": ["Abyssinian", "german shorthaired"],
           "stanford_cars": ["AM General Hummer SUV 2000", "Ram C/V Van 2012"],
           "stanford_dogs": ["Chihuahua", "black-and-tan coonhound"]}


@pytest.mark.parametrize("name, split", [(name, split) for name, splits in TRUTH.items() for split in splits])
def test_files_labels_and_names_of_every_split(tmp_path, name, split):
    WRITERS[name](tmp_path)
    files, classes = layouts.LAYOUTS[name].read(tmp_path, split)
    assert files == [(str(tmp_path / path), label) for path, label in TRUTH[name][split]]
    if name == "flowers":  # labels as the data set's authors count them, from 1
        assert len(classes) == 102
        assert [classes[i - 1] for i in (1, 21, 51, 77, 102)] == [
            "pink primrose", "fire lily", "petunia", "passion flower", "blackberry lily"]
    else:
        assert classes == CLASSES[name]
    assert all(Image.open(path).size == (4, 4) for path, _ in files)


@pytest.mark.parametrize("name", [name for name in WRITERS if name not in ("imagefolder", "binary_waterbirds")])
def test_scripts_read_the_test_split_unless_asked(tmp_path, name):
    WRITERS[name](tmp_path)
    for split, expected in ((None, "test"), ("train", "train")):
        images = datasets.load_images(name, str(tmp_path), split=split)
        assert images.paths == [str(tmp_path / path) for path, _ in TRUTH[name][expected]]
        assert images.samples[0][1] == TRUTH[name][expected][0][1]
        assert images.samples[0][0].size == (4, 4)
    assert datasets.class_names(name, str(tmp_path)) == images.classes


def test_splits_of_the_other_data_sets():
    train, test = (datasets.load_images("emoji_spurious", split=split) for split in ("train", "test"))
    assert (len(train.samples), len(test.samples)) == (1200, 800)
    assert train.scenes[:800] != test.scenes
    assert datasets.load_images("emoji_spurious").scenes == test.scenes
    with pytest.raises(UserError, match="emoji_seg has no split 'train'; there are test$"):
        datasets.load_images("emoji_seg", split="train")
    with pytest.raises(UserError, match="CIFAR10 has no split 'val'; there are train, test"):
        datasets.load_images("CIFAR10", ".", split="val")


def test_as_torchvision_reads_class_folders(tmp_path):
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import IMG_EXTENSIONS

    write_imagefolder(tmp_path)
    picture(tmp_path / "elsewhere" / "linked.png")
    (tmp_path / "b_b" / "a_link").symlink_to(tmp_path / "elsewhere")
    expected = ImageFolder(str(tmp_path))
    files, classes = layouts.imagefolder(tmp_path, "")
    assert files == expected.samples
    assert classes == [name.replace("_", " ") for name in expected.classes]
    assert any(path.endswith("a_link/linked.png") for path, _ in files)
    assert layouts.SUFFIXES == IMG_EXTENSIONS


def test_splits_of_class_folders(tmp_path):
    write_imagefolder(tmp_path / "train")
    picture(tmp_path / "test" / "A" / "0.png")
    assert [label for _, label in layouts.imagefolder(tmp_path, "train")[0]] == [0, 1, 1, 1]
    assert layouts.imagefolder(tmp_path, "test") == ([(str(tmp_path / "test" / "A" / "0.png"), 0)], ["A"])
    with pytest.raises(UserError, match="no split 'val'; there are train, test$"):
        layouts.imagefolder(tmp_path, "val")
    with pytest.raises(UserError, match=r"no split '\.\.'"):
        layouts.imagefolder(tmp_path / "train", "..")
    for read in (datasets.load_images, datasets.class_names):  # train and test are no classes
        with pytest.raises(UserError, match=f"its folders train, test are splits, and not classes; choose one with "
                                            f"--split, or give the folder of one, {tmp_path}/train$"):
            read("imagefolder", str(tmp_path))
    assert datasets.class_names("imagefolder", str(tmp_path / "test")) == ["A"]
    test = datasets.load_images("imagefolder", str(tmp_path), split="test")
    assert test.paths == [str(tmp_path / "test" / "A" / "0.png")]


def test_class_folders_without_splits(tmp_path):
    picture(tmp_path / "train" / "0.png")  # a class: trains
    picture(tmp_path / "car" / "0.png")
    for split in ("train", "val", "test"):
        assert layouts.imagefolder(tmp_path, split)[1] == ["car", "train"]
    picture(tmp_path / "train" / "steam" / "0.png")
    assert layouts.imagefolder(tmp_path, "")[1] == ["car", "train"]
    shutil.rmtree(tmp_path / "train" / "steam")
    with pytest.raises(UserError, match="no split 'tset'; there are train, val, test"):
        layouts.imagefolder(tmp_path, "tset")
    (tmp_path / "dog").mkdir()
    assert layouts.imagefolder(tmp_path, "train")[1] == ["car", "dog", "train"]  # load_images says that one is empty


def test_imagenet_in_both_splits(tmp_path):
    for split in ("train", "val"):
        picture(tmp_path / split / "n01440764" / "0.jpg")
        with pytest.raises(UserError, match=f"1,000 class folders .*img_{split}.tar.* found 1$"):
            layouts.imagenet(tmp_path, split)


@pytest.mark.parametrize("name", [name for name in layouts.LAYOUTS if name != "imagefolder"])
def test_an_unknown_split_is_refused_with_those_there_are(tmp_path, name):
    others = {"imagenet": ["train", "val"], "CIFAR10": ["train", "test"], "CIFAR100": ["train", "test"],
              "caltech101": ["train", "test"]}
    with pytest.raises(UserError, match="no split 'validation'") as refused:
        layouts.LAYOUTS[name].read(tmp_path, "validation")
    assert set(str(refused.value).split("there are ")[1].split(", ")) == set((others | TRUTH)[name])


def test_flat_imagenet_has_the_classes_of_its_development_kit(tmp_path):
    write_flat_imagenet(tmp_path, [3, 999, 0, 3])
    files, classes = layouts.imagenet(tmp_path, "val")
    assert [(Path(path).name[-6:-5], label) for path, label in files] == [("3", 0), ("1", 3), ("4", 3), ("2", 999)]
    assert len(classes) == 1000
    assert layouts.imagenet(tmp_path / "val", "val")[0] == files
    assert datasets.load_images("imagenet", str(tmp_path), empty_classes=False).empty is None  # there are no folders
    (tmp_path / "val" / "ILSVRC2012_val_00000004.JPEG").unlink()
    with pytest.raises(UserError, match="00000004.JPEG does not exist; unpack ILSVRC2012_img_val.tar again"):
        layouts.imagenet(tmp_path, "val")
    shutil.rmtree(tmp_path / "ILSVRC2012_devkit_t12")
    with pytest.raises(UserError, match="get ILSVRC2012_devkit_t12.tar.gz"):
        layouts.imagenet(tmp_path, "val")


def test_caltech_has_thirty_images_of_each_class_to_train(tmp_path):
    write_caltech(tmp_path)
    train, classes = layouts.caltech101(tmp_path, "train")
    test, _ = layouts.caltech101(tmp_path, "test")
    assert classes == ["background", "accordion", "water lilly"]
    assert np.bincount([label for _, label in train]).tolist() == [2, 30, 30]
    assert [label for _, label in test] == [1, 1, 1, 2]
    assert not {path for path, _ in train} & {path for path, _ in test}
    assert layouts.caltech101(tmp_path, "train")[0] == train == sorted(train, key=lambda file: (file[1], file[0]))


PIECES = [
    ("binary_waterbirds", "waterbird_complete95_forest2water2/metadata.csv",
     "waterbird_complete95_forest2water2.tar.gz"),
    *(("cub", f"CUB_200_2011/{name}.txt", "CUB_200_2011.tgz")
      for name in ("images", "image_class_labels", "train_test_split", "classes")),
    *(("fgvc_aircraft", f"{AIRCRAFT}/{name}", "fgvc-aircraft-2013b.tar.gz")
      for name in ("variants.txt", "images_variant_train.txt", "images")),
    ("flowers", "imagelabels.mat", "imagelabels.mat"), ("flowers", "setid.mat", "setid.mat"),
    ("flowers", "jpg", "102flowers.tgz"),
    ("pets", "annotations/trainval.txt", "annotations.tar.gz"), ("pets", "images", "images.tar.gz"),
    *(("stanford_cars", f"devkit/{name}.mat", "car_devkit.tgz") for name in ("cars_meta", "cars_train_annos")),
    ("stanford_cars", "cars_train", "cars_train.tgz"),
    ("stanford_dogs", "train_list.mat", "lists.tar"), ("stanford_dogs", "Images", "images.tar")]


@pytest.mark.parametrize("name, piece, archive", PIECES)
def test_each_missing_piece_is_named_with_its_archive(tmp_path, name, piece, archive):
    WRITERS[name](tmp_path)
    path = tmp_path / piece
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError) as refused:
        layouts.LAYOUTS[name].read(tmp_path, "train")
    message = str(refused.value)
    assert message.startswith(f"{path} does not exist; get {archive} from")
    assert "\n" not in message


def test_the_labels_of_the_cars_test_images_are_asked_for(tmp_path):
    write_cars(tmp_path)
    expected = layouts.stanford_cars(tmp_path, "test")
    (tmp_path / "cars_test_annos_withlabels.mat").rename(tmp_path / "devkit" / "cars_test_annos_withlabels.mat")
    assert layouts.stanford_cars(tmp_path, "test") == expected
    savemat(tmp_path / "devkit" / "cars_test_annos_withlabels.mat",
            {"annotations": annotations([("00001.jpg", 0), ("00002.jpg", 0)], with_class=False)})
    with pytest.raises(UserError, match="expected annotations with fname and class"):
        layouts.stanford_cars(tmp_path, "test")


def test_other_places_of_the_same_files(tmp_path):
    write_aircraft(tmp_path)
    expected = layouts.fgvc_aircraft(tmp_path, "train")
    for root in (tmp_path / "fgvc-aircraft-2013b", tmp_path / AIRCRAFT):
        assert layouts.fgvc_aircraft(root, "train") == expected
    write_dogs(tmp_path / "dogs")
    expected = layouts.stanford_dogs(tmp_path / "dogs", "test")
    (tmp_path / "dogs" / "lists").mkdir()
    (tmp_path / "dogs" / "test_list.mat").rename(tmp_path / "dogs" / "lists" / "test_list.mat")
    assert layouts.stanford_dogs(tmp_path / "dogs", "test") == expected


def lead_out(root, name, outside):
    """Let a list of the data set name a file outside its folder."""
    if name == "binary_waterbirds":
        path = root / "waterbird_complete95_forest2water2" / "metadata.csv"
        path.write_text(path.read_text().replace("001.A/0.jpg", outside))
    elif name == "cub":
        (root / "CUB_200_2011" / "images.txt").write_text(f"1 {outside}\n2 b.jpg\n3 c.jpg\n")
    elif name == "fgvc_aircraft":
        (root / AIRCRAFT / "images_variant_train.txt").write_text(f"{outside} 747-400\n")
    elif name == "pets":
        (root / "annotations" / "trainval.txt").write_text(f"{outside} 1 1 1\n")
    elif name == "stanford_cars":
        rows = annotations([(outside, 1), ("00001.jpg", 1)])
        savemat(root / "devkit" / "cars_train_annos.mat", {"annotations": rows})
    else:
        savemat(root / "train_list.mat", {"file_list": cells(outside, "a/b.jpg"), "labels": np.array([[1], [2]])})


@pytest.mark.parametrize("name", [
    "binary_waterbirds", "cub", "fgvc_aircraft", "pets", "stanford_cars", "stanford_dogs"])
@pytest.mark.parametrize("outside", ["../../secret", "/etc/secret", "a/../../secret", ".."])
def test_a_list_that_leads_out_of_the_folder_is_refused(tmp_path, name, outside, monkeypatch):
    WRITERS[name](tmp_path)
    lead_out(tmp_path, name, outside)
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path, Path(".")):  # also where the root is given as a relative path
        with pytest.raises(UserError, match="leads out of the data set's folder"):
            layouts.LAYOUTS[name].read(place, "train")


def test_lists_that_are_not_those_of_the_download(tmp_path):
    write_pets(tmp_path / "pets")
    table = tmp_path / "pets" / "annotations" / "trainval.txt"
    for text, message in (("Abyssinian_1 1 1 1\n\nAbyssinian_2 one 1 1\n", "trainval.txt, line 3: not as"),
                          ("Abyssinian_1 1\n", "trainval.txt, line 1: not as"),
                          ("Abyssinian_1 1 1 1\nBengal_1 1 1 1\n", "each with one name"),
                          ("Abyssinian_1 1 1 1\nBengal_1 3 1 1\n", "each with one name"), ("", "each with one name")):
        table.write_text(text)
        with pytest.raises(UserError, match=message):
            layouts.pets(tmp_path / "pets", "train")
    write_aircraft(tmp_path)
    (tmp_path / AIRCRAFT / "variants.txt").write_text("747-400\n")
    with pytest.raises(UserError, match="'Challenger 600' is not among the names of .*variants.txt"):
        layouts.fgvc_aircraft(tmp_path, "train")
    write_cub(tmp_path)
    (tmp_path / "CUB_200_2011" / "image_class_labels.txt").write_text("1 1\n2 2\n3 7\n")
    with pytest.raises(UserError, match="c.jpg is of class 7 of 2"):
        layouts.cub(tmp_path, "train")
    (tmp_path / "CUB_200_2011" / "image_class_labels.txt").write_text("1 1\n2 2\n")
    with pytest.raises(UserError, match="do not list the same images"):
        layouts.cub(tmp_path, "train")


def test_damaged_matlab_files(tmp_path):
    write_flowers(tmp_path)
    savemat(tmp_path / "setid.mat", {"trnid": np.array([[1, 6]]), "tstid": np.array([[0]])})
    for split in ("train", "test"):
        with pytest.raises(UserError, match="lists images that .*imagelabels.mat has no labels for"):
            layouts.flowers(tmp_path, split)
    with pytest.raises(UserError, match="setid.mat: expected a MATLAB file with valid"):
        layouts.flowers(tmp_path, "val")
    path = tmp_path / "imagelabels.mat"
    for content in (path.read_bytes()[:150], b"", b"<html>not found</html>" * 20):
        path.write_bytes(content)
        with pytest.raises(UserError, match="imagelabels.mat: expected a MATLAB file with labels") as refused:
            layouts.flowers(tmp_path, "train")
        assert "\n" not in str(refused.value)


def test_one_image_is_a_list_too(tmp_path):
    write_cars(tmp_path)
    write_dogs(tmp_path)
    savemat(tmp_path / "train_list.mat", {"file_list": cells("n1-Pug/a.jpg"), "labels": np.array([[1]])})
    assert layouts.stanford_dogs(tmp_path, "train") == ([(str(tmp_path / "Images/n1-Pug/a.jpg"), 0)], ["Pug"])
    assert layouts.stanford_cars(tmp_path, "test")[0] == [(str(tmp_path / "cars_test/00001.jpg"), 0)]
