"""How the official download of each data set of image files is laid out. To add one, write its reader and its entry in
LAYOUTS, both here; a name of its own for EX2 goes into concept_names.py.

A reader, `reader(root, split)`, gives the image files with their labels, and the class names in the order of the
labels, underscores as spaces. The files of a list come by class, then by name (binary_waterbirds and cub: in the order
of their own list). What is missing, or not as in the download, raises UserError with the file that was looked for and
the archive it comes in.
"""
import csv
import io
import os
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from utils.cli import UserError, describe, note, some
from utils.data import concept_names
from utils.data.tables import lines, listed, mat, need
from utils.inputs import read_text

# torchvision, scipy and open_clip are imported where they are used: names of class folders need none of them.

# Those of torchvision's ImageFolder.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
OTHER_SUFFIXES = (".gif", ".heic", ".heif", ".avif", ".jfif", ".jxl", ".svg")  # of pictures that are not read
SPLITS = ("train", "val", "test")
WATERBIRDS_CLASSES = ("landbird", "waterbird")

OF_FOLDERS = ("imagenet", "imagefolder")  # one a class
HELD = ("CIFAR10", "CIFAR100")  # by torchvision, as images and not as files

Files = list[tuple[str, int]]


@dataclass(frozen=True)
class DataSet:
    """What is known of a data set by its name. One of image files needs a reader alone."""
    read: Callable[[Path, str], tuple[Files, list[str]]] | None = None  # of a folder and a split: images, class names
    reading: str = "published"  # of its pictures: as in utils/data/pictures.py
    split: str = "test"         # that is read where none is asked for; "" is the folder itself
    classes: Callable[[], list[str]] | None = None   # class names, where they do not come with the images
    concepts: Callable[[list[str], Path | None], list[str]] | None = None  # what EX2 calls the classes, of their names
                                                     # and the folder; None: it describes none of them
    places: tuple[str, ...] = ()                     # backgrounds that go with the classes, in their order
    read_places: Callable[[Path, str], list[int]] | None = None  # of each image, an index into `places`
    masks: Callable | None = None                    # reads images with masks, of a path
    scenes: dict[str, tuple[int, int]] | None = None  # of an embedded one: number of scenes and seed of each split
    images: bool = True         # whether there are labelled images, and not masks alone


def imagefolder(root: Path, split: str) -> tuple[Files, list[str]]:
    """Any folder of class folders: root/split where that holds class folders, else root itself.

    The split "" is root itself, where its folders are classes. A root with class folders in train/, val/ or test/ has
    those splits only.
    """
    inside = _folders(root)
    # A folder `train` with images alone is a class (of vehicles), not a split.
    held = [name for name in (*SPLITS, split) if name in inside and _folders(root / name)]
    if split in held:
        return _class_folders(root / split)
    if split:
        check_split(str(root), split, held or SPLITS)
    elif len(held) > 1 or held and held == inside:
        raise UserError(f"{root}: its folders {', '.join(held)} are splits, and not classes; choose one with --split, "
                        f"or give the folder of one, {root / held[0]}")
    return _class_folders(root)


def imagenet(root: Path, split: str) -> tuple[Files, list[str]]:
    """ImageNet: the 1,000 class folders (n01440764, ...) in train/ and val/, or root itself; val also flat, as in its
    archive, beside the development kit, which has the classes."""
    check_split("imagenet", split, ("train", "val"))
    place = root / split if (root / split).is_dir() else root
    if split == "val" and (place / "ILSVRC2012_val_00000001.JPEG").is_file():
        return _flat_imagenet(root, place), imagenet_classes()
    files, folders = _class_folders(place)
    if len(folders) != 1000:
        raise UserError(f"{root}: expected the 1,000 class folders (n01440764, ...) of ImageNet's {split} images "
                        f"(ILSVRC2012_img_{split}.tar), here or in {split}/, and found {len(folders)}")
    return files, imagenet_classes()


def _flat_imagenet(root: Path, images: Path) -> Files:
    """Validation images in one folder: line i of the ground truth is the number of image i's class in meta.mat, whose
    names (n01440764, ...), sorted, are the order of labels."""
    kit = ("ILSVRC2012_devkit_t12/data", "../ILSVRC2012_devkit_t12/data", "data", "")
    table, meta = (need(root, kit, name, "ILSVRC2012_devkit_t12.tar.gz")
                   for name in ("ILSVRC2012_validation_ground_truth.txt", "meta.mat"))
    synsets, = mat(meta, "synsets")
    names = {int(entry["ILSVRC2012_ID"]): str(entry["WNID"]) for entry in synsets if not int(entry["num_children"])}
    labels = {number: label for label, (number, _) in enumerate(sorted(names.items(), key=lambda item: item[1]))}
    rows = lines(table, int)
    if len(names) != 1000 or not {number for number, in rows} <= set(labels):
        raise UserError(f"{table}: has classes that {meta} does not name; unpack ILSVRC2012_devkit_t12.tar.gz again")
    files = [(str(images / f"ILSVRC2012_val_{i:08d}.JPEG"), labels[number]) for i, (number,) in enumerate(rows, 1)]
    gone = next((path for path, _ in files if not os.path.isfile(path)), None)
    if gone:
        raise UserError(f"{gone} does not exist; unpack ILSVRC2012_img_val.tar again")
    return _by_class(files)


def imagenet_classes() -> list[str]:
    """Names of ImageNet's 1,000 classes, as open_clip has them."""
    from utils.light import open_clip
    return list(open_clip.IMAGENET_CLASSNAMES)


def cifar(name: str, root: Path, split: str) -> tuple:
    """CIFAR10 or CIFAR100 by torchvision, which downloads it: images with labels, not files."""
    check_split(name, split, ("train", "test"))
    from torchvision import datasets

    try:
        images = getattr(datasets, name)(str(root), train=split == "train", download=True)
    except Exception as error:  # the network, the archive or the disk
        why = f"{name} is not there and cannot be downloaded ({describe(error)})"
        raise UserError(f"--data_path {root}: {why}") from error
    return images, list(map(_spaced, images.classes))


def caltech101(root: Path, split: str) -> tuple[Files, list[str]]:
    """Caltech-101: 101_ObjectCategories/accordion/image_0001.jpg; 102 classes, the background among them. The download
    has no splits. Here train is 30 images of each class, drawn by a fixed seed, and test all others."""
    check_split("caltech101", split, ("train", "test"))
    place = need(root, ("", "caltech-101", "caltech101"), "101_ObjectCategories", "caltech-101.zip")
    files, classes = _class_folders(place)
    found, rng = [], random.Random(0)
    for label in range(len(classes)):
        own = [path for path, of in files if of == label]
        drawn = set(rng.sample(own, min(30, len(own))))
        found += [(path, label) for path in own if (path in drawn) == (split == "train")]
    return found, ["background" if name == "BACKGROUND Google" else name for name in classes]


def binary_waterbirds(root: Path, split: str) -> tuple[Files, list[str]]:
    """Waterbirds: metadata.csv beside the folders of images."""
    table, rows = _waterbirds_rows(root, split)
    files = [(str(table.parent / listed(row["img_filename"], table)), int(row["y"])) for row in rows]
    return files, list(WATERBIRDS_CLASSES)


def waterbirds_places(root: Path, split: str) -> list[int]:
    """The background of each image of Waterbirds: 0 land, 1 water."""
    return [int(row["place"]) for row in _waterbirds_rows(root, split)[1]]


def _waterbirds_rows(root: Path, split: str) -> tuple[Path, list[dict]]:
    splits = {"train": "0", "val": "1", "test": "2"}
    check_split("binary_waterbirds", split, splits)
    folder = "waterbird_complete95_forest2water2"
    table = need(root, (folder, ""), "metadata.csv", f"{folder}.tar.gz")
    rows = list(csv.DictReader(io.StringIO(read_text(table), newline="")))
    if not rows or not {"img_filename", "y", "split", "place"} <= set(rows[0]):
        raise UserError(f"{table}: expected the columns img_filename, place, split, y")
    for number, row in enumerate(rows, 2):
        if not row["img_filename"] or not {row["y"], row["place"]} <= {"0", "1"} or row["split"] not in splits.values():
            raise UserError(f"{table}, line {number}: not as in the official download; unpack {folder}.tar.gz again")
    return table, [row for row in rows if row["split"] == splits[split]]


def cub(root: Path, split: str) -> tuple[Files, list[str]]:
    """CUB-200-2011: images/ and tables of 'number value' lines."""
    flags = {"train": 1, "test": 0}
    check_split("cub", split, flags)
    paths = [_cub_table(root, name) for name in ("images.txt", "image_class_labels.txt", "train_test_split.txt")]
    images, labels, train = (dict(lines(path, str, kind)) for path, kind in zip(paths, (str, int, int)))
    if not images.keys() == labels.keys() == train.keys():
        raise UserError(f"{paths[0].parent}: {', '.join(path.name for path in paths)} do not list the same images")
    files = [(str(paths[0].parent / "images" / listed(name, paths[0])), labels[i] - 1)
             for i, name in images.items() if train[i] == flags[split]]
    classes = [_spaced(name.split(".", 1)[-1]) for _, name in lines(_cub_table(root, "classes.txt"), str, str)]
    return _checked(files, classes, paths[1])


def fgvc_aircraft(root: Path, split: str) -> tuple[Files, list[str]]:
    """FGVC Aircraft, classes by variant: images/ and images_variant_SPLIT.txt of '0034309 747-400' lines."""
    check_split("fgvc_aircraft", split, ("train", "val", "trainval", "test"))
    archive = "fgvc-aircraft-2013b.tar.gz"
    variants = need(root, ("fgvc-aircraft-2013b/data", "data", ""), "variants.txt", archive)
    data = variants.parent
    table, images = (need(data, ("",), name, archive) for name in (f"images_variant_{split}.txt", "images"))
    classes = [name for name, in lines(variants, str)]
    rows = lines(table, str, str)
    unknown = sorted({name for _, name in rows} - set(classes))
    if unknown:
        raise UserError(f"{table}: {unknown[0]!r} is not among the names of {variants}; unpack {archive} again")
    files = [(str(images / f"{listed(i, table)}.jpg"), classes.index(name)) for i, name in rows]
    return _by_class(files), classes


def flowers(root: Path, split: str) -> tuple[Files, list[str]]:
    """Flowers102: jpg/image_00001.jpg, imagelabels.mat and setid.mat; the names are torchvision's."""
    variables = {"train": ("trnid",), "val": ("valid",), "trainval": ("trnid", "valid"), "test": ("tstid",)}
    check_split("flowers", split, variables)
    labels_path, ids_path = (need(root, ("",), name, name) for name in ("imagelabels.mat", "setid.mat"))
    images = need(root, ("",), "jpg", "102flowers.tgz")
    labels, = mat(labels_path, "labels")
    ids = [i for part in mat(ids_path, *variables[split]) for i in part]
    if len(ids) and not 1 <= min(ids) <= max(ids) <= len(labels):
        raise UserError(f"{ids_path}: lists images that {labels_path} has no labels for; download both again")
    from torchvision.datasets import Flowers102
    files = [(str(images / f"image_{i:05d}.jpg"), int(labels[i - 1]) - 1) for i in ids]
    return _checked(_by_class(files), list(Flowers102.classes), labels_path)


def pets(root: Path, split: str) -> tuple[Files, list[str]]:
    """Oxford-IIIT Pet: images/ and annotations/{trainval,test}.txt of 'Abyssinian_100 1 1 1' lines; train is
    trainval."""
    tables = {"train": "trainval.txt", "trainval": "trainval.txt", "test": "test.txt"}
    check_split("pets", split, tables)
    table = need(root, ("annotations",), tables[split], "annotations.tar.gz")
    images = need(root, ("",), "images", "images.tar.gz")
    rows = [(listed(name, table), label) for name, label, *_ in lines(table, str, int, int, int)]
    classes = _classes_by_label([(label, name.rsplit("_", 1)[0]) for name, label in rows], table)
    return _by_class([(str(images / f"{name}.jpg"), label - 1) for name, label in rows]), classes


def stanford_cars(root: Path, split: str) -> tuple[Files, list[str]]:
    """Stanford Cars: cars_train/, cars_test/ and the .mat files of devkit/."""
    tables = {"train": ("cars_train_annos.mat", "car_devkit.tgz"),
              "test": ("cars_test_annos_withlabels.mat", "cars_test_annos_withlabels.mat")}
    check_split("stanford_cars", split, tables)
    meta = need(root, ("devkit",), "cars_meta.mat", "car_devkit.tgz")
    table = need(root, ("devkit", ""), *tables[split])
    images = need(root, ("",), f"cars_{split}", f"cars_{split}.tgz")
    classes, = mat(meta, "class_names")
    rows, = mat(table, "annotations")
    if not {"fname", "class"} <= set(rows.dtype.names or ()):
        raise UserError(f"{table}: expected annotations with fname and class; download it again")
    files = [(str(images / listed(row["fname"], table)), int(row["class"]) - 1) for row in rows]
    return _checked(_by_class(files), [str(name) for name in classes], table)


def stanford_dogs(root: Path, split: str) -> tuple[Files, list[str]]:
    """Stanford Dogs: Images/n02085620-Chihuahua/*.jpg and {train,test}_list.mat."""
    check_split("stanford_dogs", split, ("train", "test"))
    table = need(root, ("", "lists"), f"{split}_list.mat", "lists.tar")
    images = need(root, ("",), "Images", "images.tar")
    rows = [(listed(name, table), int(label)) for name, label in zip(*mat(table, "file_list", "labels"))]
    classes = _classes_by_label([(label, name.split("/")[0].split("-", 1)[-1]) for name, label in rows], table)
    return _by_class([(str(images / name), label - 1) for name, label in rows]), classes


LAYOUTS = {
    "imagenet": DataSet(imagenet, split="val", classes=imagenet_classes),
    "imagefolder": DataSet(imagefolder, "seen", split="", concepts=concept_names.as_classes),
    "CIFAR10": DataSet(partial(cifar, "CIFAR10")),
    "CIFAR100": DataSet(partial(cifar, "CIFAR100")),
    "caltech101": DataSet(caltech101),
    "binary_waterbirds": DataSet(binary_waterbirds, classes=lambda: list(WATERBIRDS_CLASSES), places=("land", "water"),
                                 read_places=waterbirds_places),
    "cub": DataSet(cub, concepts=concept_names.with_hyphens),
    "fgvc_aircraft": DataSet(fgvc_aircraft, concepts=concept_names.with_maker),
    "flowers": DataSet(flowers, concepts=concept_names.without_question_marks),
    "pets": DataSet(pets, concepts=concept_names.as_classes),
    "stanford_cars": DataSet(stanford_cars, concepts=concept_names.year_first),
    "stanford_dogs": DataSet(stanford_dogs, concepts=concept_names.called_dogs),
}


def check_split(name: str, split: str, splits: Collection[str]) -> None:
    """Raises UserError, which names the splits there are, for another one."""
    if split not in splits:
        raise UserError(f"{name} has no split {split!r}; there are {', '.join(splits)}")


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _by_class(files: Files) -> Files:
    return sorted(files, key=lambda file: (file[1], file[0]))


def _checked(files: Files, classes: list[str], source: Path) -> tuple[Files, list[str]]:
    """Files and classes, once every label has its class."""
    for path, label in files:
        if not 0 <= label < len(classes):
            raise UserError(f"{source}: {Path(path).name} is of class {label + 1} of {len(classes)}; download it again")
    return files, classes


def _classes_by_label(pairs: list[tuple[int, str]], source: Path) -> list[str]:
    """Class names from the (label, name) of every image; labels count from 1."""
    known = sorted(set(pairs))
    if not known or [label for label, _ in known] != list(range(1, len(known) + 1)):
        raise UserError(f"{source}: expected class numbers 1, 2, 3, ..., each with one name; download it again")
    return [_spaced(name) for _, name in known]


def _cub_table(root: Path, name: str) -> Path:
    return need(root, ("CUB_200_2011", ""), name, "CUB_200_2011.tgz")


def say_hidden(place, hidden: list[str]) -> None:
    """Say once which names in a folder or archive are left out because they begin with a dot: programs leave such files
    and folders beside data (.ipynb_checkpoints, ._0.png)."""
    if hidden:
        note(f"{place}: left out, as its name begins with a dot: {some(sorted(hidden))}")


def _folders(root: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(".")) \
        if root.is_dir() else []


def _class_folders(root: Path) -> tuple[Files, list[str]]:
    """As torchvision's ImageFolder: sorted folders, each with its image files at any depth; none that is hidden, and no
    link to a folder that it lies in."""
    others: Counter[str] = Counter()
    hidden = [entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name.startswith(".")] \
        if root.is_dir() else []

    def walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
        for place, inside, names in os.walk(folder, followlinks=True):
            hidden.extend(os.path.relpath(os.path.join(place, name), root) for name in (*inside, *names)
                          if name.startswith(".") and (name in inside or name.lower().endswith(SUFFIXES)))
            inside[:] = [name for name in inside if not name.startswith(".") and not _leads_back(place, name)]
            others.update(suffix for name in names if (suffix := Path(name).suffix.lower()) in OTHER_SUFFIXES)
            yield place, [name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith(".")]

    folders = _folders(root)
    if not folders:
        raise UserError(f"{root}: expected folders, one a class, with images in each")
    for folder in folders:
        if not folder.isprintable():
            raise UserError(f"{root}: the class folder {folder!r} has a name that is not UTF-8, or cannot be printed; "
                            "rename it")
    files = [(os.path.join(place, name), label) for label, folder in enumerate(folders)
             for place, names in sorted(walk(root / folder)) for name in sorted(names)]
    say_hidden(root, hidden)
    if others:
        note(f"{root}: left out, as no picture of that ending is read: "
             f"{', '.join(f'{number} {suffix}' for suffix, number in others.items())}; convert them to PNG or JPEG")
    return files, [_spaced(name) for name in folders]


def _leads_back(place: str, name: str) -> bool:
    """Whether a folder is a link to one that it lies in: following it would read the same images again and again."""
    path = os.path.join(place, name)
    return os.path.islink(path) and Path(os.path.realpath(place)).is_relative_to(os.path.realpath(path))
