"""Data sets by name (REGISTRY): images with labels, class names and prompt templates, or with masks.

Natural images, each laid out as in its official download (utils/data/layouts.py), or in folders of the user's own; in
shards or in a data set of Hugging Face's library (utils/data/shards.py); with masks (utils/data/masks.py). Embedded
scenes with known truth, drawn at the model's image size, need no --data_path.
"""
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from utils.cli import UserError, describe, note, some
from utils.data import concept_names, layouts, masks, pictures, shards
from utils.data.layouts import DataSet

# torch and what needs it are imported where they are used: every script's --help answers at once, and names of classes
# and concepts are read where there is only an engine that generates.

PACK_INDEX = Path(__file__).resolve().parents[2] / "data" / "emoji" / "concepts.json"
SPURIOUS_CLASSES = ("land animal", "sea animal")
# Of the scenes that show concepts, by split: others than those of data sets.
CONCEPT_SEEDS = {"train": 11, "val": 12, "test": 13}
FIXED_SEEDS = {"train": 14, "val": 15}
FIXED_CONCEPTS = 40  # of emoji_fixed
AGREEMENT = {"train": 0.95, "val": 0.5, "test": 0.5}  # how often an animal stands before its own background


def _drawings() -> list[str]:
    # Not through utils.data.scenes, which needs torch.
    return [concept["name"] for concept in json.loads(PACK_INDEX.read_text())["concepts"]]


def _fixed_drawings() -> list[str]:
    names = _drawings()
    return [names[k * len(names) // FIXED_CONCEPTS] for k in range(FIXED_CONCEPTS)]


def _scenes_with_masks(data_path: str | None) -> "SceneImages":
    if data_path is not None:
        raise UserError("--train_dataset emoji_seg is drawn, not read; leave --data_path out")
    drawn, labels, _ = embedded_scenes("emoji_seg")
    return SceneImages(drawn, labels, masks=True)


REGISTRY = layouts.LAYOUTS | {
    "webdataset": DataSet(reading="seen", split=""),
    "huggingface": DataSet(reading="seen"),
    "emoji": DataSet(classes=_drawings, concepts=concept_names.as_classes,
                     scenes={"train": (7800, 7), "val": (2080, 8), "test": (2080, 1)}),
    "emoji_fixed": DataSet(classes=_fixed_drawings, concepts=concept_names.as_classes, images=False),
    "emoji_unseen_style": DataSet(classes=_drawings, scenes={"test": (1040, 2)}),
    "emoji_spurious": DataSet(classes=lambda: list(SPURIOUS_CLASSES), places=("land", "sea"),
                              scenes={"train": (1200, 4), "val": (400, 5), "test": (800, 6)}),
    "emoji_seg": DataSet(classes=_drawings, masks=_scenes_with_masks, scenes={"test": (520, 3)}),
    "imagenet_seg": DataSet(masks=masks.MatFile, images=False),
    "masks_folder": DataSet(reading="seen", masks=masks.MaskFolder, images=False),
}
NAMES = tuple(name for name, known in REGISTRY.items() if known.images)
EMBEDDED = tuple(name for name, known in REGISTRY.items() if known.scenes)
PLACES = {name: known.places for name, known in REGISTRY.items() if known.places}
WITH_MASKS = tuple(name for name, known in REGISTRY.items() if known.masks)
DRAWN = {"emoji": CONCEPT_SEEDS, "emoji_fixed": FIXED_SEEDS}  # data sets whose concepts are drawn
WITH_CONCEPTS = tuple(name for name, known in REGISTRY.items() if known.concepts)


@dataclass
class Images:
    """A data set with what its zero-shot classifier needs."""
    samples: Sequence           # sample i is (PIL image, label), or (PIL image, mask)
    classes: list[str]
    paths: list[str] | None = None   # of the image files
    scenes: list | None = None       # the scenes of an embedded set
    places: list[int] | None = None  # of an image's background, where the data set tells: an index into PLACES
    files: list[str] | None = None   # that hold the images, where these are no files of their own
    names: list[str] | None = None   # of images with masks, in names of files
    unit: str = "image"              # what holds an image that is no file
    empty: list[str] | None = None   # classes whose folder has no images
    reading: str | None = None       # how pictures of files are read, as in utils/data/pictures.py

    def draw_at(self, image_size: int) -> None:
        """Draw embedded scenes at this side, in pixels; image files keep their own size."""
        if self.scenes:
            self.samples.image_size = image_size

    def class_of(self, label: int) -> str:
        """The name of a label's class."""
        return self.classes[label] if label >= 0 else "no label"

    def name(self, index: int) -> str:
        """How a message calls an image."""
        if self.paths:
            return os.fsencode(self.paths[index]).decode("utf-8", "backslashreplace")
        return f"{self.unit} {self.names[index] if self.names else index}"

    def read(self, index: int) -> tuple[Image.Image, int]:
        """One image and its label. Raises UserError, which names it, where it cannot be read."""
        try:
            return self.samples[int(index)]
        except pictures.BROKEN as error:
            raise UserError(f"cannot read {self.name(index)} ({describe(error)}); mend it, or make the arrays again "
                            "with compute_prs.py --skip_bad_images") from error


class SceneImages:
    """Drawn scenes with their labels, or with their masks; batches are drawn in one go."""

    def __init__(self, drawn: list, labels: list[int], image_size: int = 224, masks: bool = False):
        self.drawn, self.labels, self.image_size, self.masks = drawn, labels, image_size, masks

    def __len__(self) -> int:
        return len(self.drawn)

    def __getitem__(self, index: int):
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list:
        from utils.data import scenes

        images, covers = scenes.draw([self.drawn[i] for i in indices], self.image_size)
        targets = map(Image.fromarray, covers.numpy()) if self.masks else [self.labels[i] for i in indices]
        return list(zip(map(Image.fromarray, images.permute(0, 2, 3, 1).numpy()), targets))


class ImageFiles:
    """Image files with labels."""

    def __init__(self, samples: list[tuple[str, int]], reading: str):
        self.samples, self.reading, self.labels = samples, reading, [label for _, label in samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int):
        path, label = self.samples[index]
        return pictures.read(path, self.reading), label


def default_split(name: str) -> str:
    """The split that is read where none is asked for."""
    return REGISTRY[name].split if name in REGISTRY else "test"


def embedded_scenes(name: str, split: str = "test") -> tuple[list, list[int], list[int] | None]:
    """Scenes and labels of an embedded data set, and for emoji_spurious the background's place (0 land, 1 sea).

    emoji and emoji_spurious have the splits train, val and test, the others test alone; another raises UserError.
    """
    splits = REGISTRY[name].scenes
    layouts.check_split(name, split, splits)
    from utils.data import scenes

    if name == "emoji_spurious":
        rows = scenes.sample_spurious(*splits[split], AGREEMENT[split])
        return [scene for scene, *_ in rows], [y for _, y, _ in rows], [place for *_, place in rows]
    fixed = {"style": scenes.UNSEEN_STYLE} if name == "emoji_unseen_style" else {}
    drawn = scenes.sample_scenes(*splits[split], **fixed)
    return drawn, [scene.object for scene in drawn], None


def load_images(name: str, data_path: str | None = None, image_size: int = 224, *, split: str | None = None,
                streaming: bool = False, reading: str | None = None, image_key: str | None = None,
                empty_classes: bool = True) -> Images:
    """Load a data set by name.

    `image_size` is the side at which scenes are drawn; `streaming` is of huggingface alone, `image_key` of webdataset.
    `split` is train, val or test where the data set has it; without it the test split, ImageNet's validation images, or
    all of an imagefolder. `reading` is how pictures are read, "seen" or "published" (None: as the data set's are).
    Raises UserError where files are missing, for a split that the data set does not have, and, unless there may be
    `empty_classes`, for a class folder without images.
    """
    known, split = REGISTRY[name], default_split(name) if split is None else split
    for given, option, goes_with in ((streaming, "--streaming", "huggingface"),
                                     (image_key, "--image_key", "webdataset")):
        if given and name != goes_with:
            raise UserError(f"{option} goes with --dataset {goes_with}, and not with {name}; leave it out")
    if reading and (known.scenes or name in layouts.HELD):
        raise UserError(f"--reading is of pictures in files, and those of {name} are none; leave it out")
    if known.scenes:
        drawn, labels, places = embedded_scenes(name, split)
        return Images(SceneImages(drawn, labels, image_size), known.classes(), scenes=drawn, places=places)
    reading = reading or known.reading
    if name == "huggingface":
        if data_path is None:
            raise UserError("--dataset huggingface needs --data_path, a folder or the name of a data set on the hub")
        return Images(*shards.open_hub(data_path, split, reading, streaming), unit="row", reading=reading)
    if data_path is None:
        raise UserError(f"--dataset {name} needs --data_path, the folder of its images")
    root = Path(data_path)
    if not root.is_dir():
        raise UserError(f"--data_path {root}: no such folder")
    if name == "webdataset":
        samples, classes, names, files = shards.open_shards(root, split, reading, image_key)
        return Images(samples, classes, names, files=files, reading=reading)
    found, classes = known.read(root, split)
    if not isinstance(found, list):  # images that torchvision holds
        return Images(found, classes)
    if not found:
        raise UserError(f"--data_path {root}: no images there for --dataset {name}")
    images = Images(ImageFiles(found, reading), classes, [path for path, _ in found], reading=reading,
                    places=known.read_places and known.read_places(root, split))
    if name in layouts.OF_FOLDERS:
        there, folders = set(images.samples.labels), {os.path.dirname(path) for path in images.paths}
        if len(folders) >= len(there):  # else classes share one, as flat images of ImageNet do
            images.empty = [folder for label, folder in enumerate(classes) if label not in there]
    if images.empty and not empty_classes:
        raise UserError(f"--data_path {root}: no images in the class folder{'s' * (len(images.empty) > 1)} "
                        f"{some(images.empty)}; remove or fill them, or go on with --skip_bad_images")
    return images


def load_masks(name: str, data_path: str | None = None) -> Images:
    """Load a data set of WITH_MASKS: its samples are images and masks, in which 0 is background and 1 foreground.

    Embedded scenes are drawn; their labels are `samples.labels`. Raises UserError where files are missing, or no images
    with masks of their size.
    """
    known = REGISTRY[name]
    samples, classes = known.masks(data_path), known.classes() if known.classes else []
    names = getattr(samples, "names", None) or [f"{i:05d}" for i in range(len(samples))]
    return Images(samples, classes, scenes=getattr(samples, "drawn", None), names=names)


def class_names(name: str, data_path: str | None = None) -> list[str]:
    """Class names of a data set, in the order of its labels; `data_path` is needed where they come with the images. Of
    one class, and of two of the same name, a line says what that means."""
    known = REGISTRY[name]
    classes = known.classes() if known.classes else load_images(name, data_path).classes
    if not classes:
        raise UserError(f"--data_path {data_path}: no image has a label, so there are no classes to name")
    if len(classes) == 1:
        note(f"{name} has one class, {classes[0]}: every accuracy is 100%")
    twice = sorted({class_name for class_name in classes if classes.count(class_name) > 1})
    if twice and not known.classes:
        note(f"{data_path}: two classes are called {some(twice)}: texts cannot tell them apart, and all images of the "
             "second count as wrong; rename one of them")
    return classes


def fingerprint(images: Images) -> str:
    """SHA-256 by which a data set is known to be unchanged: its number of images, its classes and labels, and the
    place, size and time of each file; one that is gone, or a link to nothing, is named when it is read."""
    digest = hashlib.sha256(f"{len(images.samples)} {images.classes} {_labels(images)}".encode())
    for path in images.files or images.paths or []:
        try:
            about = os.stat(path)
            what = f"{about.st_size} {about.st_mtime_ns}"
        except OSError:
            what = "gone"
        digest.update(os.fsencode(f"{path} {what}\n"))
    return digest.hexdigest()


def names_hash(images: Images) -> str:
    """SHA-256 by which images are known to be the same ones in the same order, wherever they lie: their number, their
    labels, and their names below the folder that holds all."""
    digest, paths = hashlib.sha256(f"{len(images.samples)} {_labels(images)}".encode()), images.paths or []
    root = len(os.path.commonpath(paths)) if paths else 0
    for path in paths:
        digest.update(os.fsencode(f"{path[root:]}\n"))
    return digest.hexdigest()


def _labels(images: Images) -> list[int]:
    """The labels of images, where they are known before these are read."""
    return list(map(int, getattr(images.samples, "labels", ())))
