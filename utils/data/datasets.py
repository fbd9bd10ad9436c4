"""Data sets by name: images with labels, class names and prompt templates.

Natural images, each laid out as in its official download (utils/data/layouts.py): imagenet, imagefolder
(any folder of class folders), CIFAR10, CIFAR100, binary_waterbirds, cub, fgvc_aircraft, flowers, pets,
stanford_cars, stanford_dogs; and any images in shards or in a data set of Hugging Face's library (utils/data/shards.py):
webdataset, huggingface. Embedded scenes with known truth (no --data_path, drawn at the model's
image size): emoji, emoji_unseen_style, emoji_spurious, emoji_seg.
"""
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from utils.cli import UserError, describe
from utils.data import layouts, shards

# torch and what needs it are imported where they are used, so that every script's --help answers at once.

PACK_INDEX = Path(__file__).resolve().parents[2] / "data" / "emoji" / "concepts.json"
EMBEDDED = ("emoji", "emoji_unseen_style", "emoji_spurious", "emoji_seg")
NAMES = ("imagenet", "imagefolder", "CIFAR10", "CIFAR100", "binary_waterbirds", "cub", "fgvc_aircraft", "flowers", "pets",
         "stanford_cars", "stanford_dogs", "webdataset", "huggingface", *EMBEDDED)
# The split that is read where none is asked for: the test split, and here another. "" is the folder itself.
DEFAULT_SPLITS = {"imagenet": "val", "imagefolder": "", "webdataset": ""}
# Embedded sets: number of scenes of each split, and the seed that makes them.
SIZES = {"emoji": {"train": 7800, "val": 2080, "test": 2080}, "emoji_unseen_style": {"test": 1040}, "emoji_seg": {"test": 520},
         "emoji_spurious": {"train": 1200, "val": 400, "test": 800}}
SEEDS = {"emoji": {"train": 7, "val": 8, "test": 1}, "emoji_unseen_style": {"test": 2}, "emoji_seg": {"test": 3},
         "emoji_spurious": {"train": 4, "val": 5, "test": 6}}
SPURIOUS_CLASSES = ("land animal", "sea animal")
PLACES = {"binary_waterbirds": ("land", "water"), "emoji_spurious": ("land", "sea")}  # backgrounds that go with the classes
AGREEMENT = {"train": 0.95, "val": 0.5, "test": 0.5}  # how often an animal stands before its own background
EMOJI_TEMPLATES = ("a drawing of {one}", "an icon of {one}", "{name}", "a picture of {many}", "an emoji of four {many}")


@dataclass
class Images:
    """A data set with what its zero-shot classifier needs."""
    samples: Sequence           # sample i is (PIL image, label)
    classes: list[str]
    paths: list[str] | None     # of the image files, to name a bad one
    scenes: list | None = None  # the scenes of an embedded set
    places: list[int] | None = None  # of an image's background, where the data set tells: an index into PLACES
    files: list[str] | None = None   # that hold the images, where these are no files of their own

    def draw_at(self, image_size: int) -> None:
        """Draw embedded scenes at this side, in pixels; image files keep their own size."""
        if self.scenes:
            self.samples.image_size = image_size

    def read(self, index: int) -> tuple[Image.Image, int]:
        """One image and its label. Raises UserError, which names it, where it cannot be read."""
        try:
            return self.samples[int(index)]
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            name = self.paths[index] if self.paths else f"image {index}"
            raise UserError(f"cannot read {name} ({describe(error)}); mend it, or make the arrays again with compute_prs.py "
                            "--skip_bad_images") from error


class SceneImages:
    """Drawn scenes; batches are drawn in one go."""

    def __init__(self, drawn: list, labels: list[int], image_size: int):
        self.drawn, self.labels, self.image_size = drawn, labels, image_size

    def __len__(self) -> int:
        return len(self.drawn)

    def __getitem__(self, index: int):
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list:
        from utils.data import scenes

        images, _ = scenes.draw([self.drawn[i] for i in indices], self.image_size)
        return [(Image.fromarray(image), self.labels[i])
                for image, i in zip(images.permute(0, 2, 3, 1).numpy(), indices)]


class ImageFiles:
    """Image files with labels."""

    def __init__(self, samples: list[tuple[str, int]]):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int):
        path, label = self.samples[index]
        with Image.open(path) as image:
            return image.convert("RGB"), label


def embedded_scenes(name: str, split: str = "test") -> tuple[list, list[int], list[int] | None]:
    """Scenes and labels of an embedded data set, and for emoji_spurious the background's place (0 land, 1 sea).

    emoji and emoji_spurious have the splits train, val and test, the others test alone; another raises UserError.
    """
    layouts.check_split(name, split, SIZES[name])
    from utils.data import scenes

    if name == "emoji_spurious":
        rows = scenes.sample_spurious(SIZES[name][split], SEEDS[name][split], AGREEMENT[split])
        return [scene for scene, *_ in rows], [y for _, y, _ in rows], [place for *_, place in rows]
    fixed = {"style": scenes.UNSEEN_STYLE} if name == "emoji_unseen_style" else {}
    drawn = scenes.sample_scenes(SIZES[name][split], SEEDS[name][split], **fixed)
    return drawn, [scene.object for scene in drawn], None


def load_images(name: str, data_path: str | None = None, image_size: int = 224, *, split: str | None = None,
                streaming: bool = False) -> Images:
    """Load a data set by name.

    `image_size` is the side at which scenes are drawn; `streaming` is of huggingface alone. `split` is train, val or test
    where the data set has it; without it the test split, ImageNet's validation images, or all of an imagefolder.
    Raises UserError where files are missing, and for a split that the data set does not have.
    """
    split = DEFAULT_SPLITS.get(name, "test") if split is None else split
    if streaming and name != "huggingface":
        raise UserError(f"--streaming goes with --dataset huggingface, and not with {name}; leave it out")
    if name in EMBEDDED:
        drawn, labels, places = embedded_scenes(name, split)
        return Images(SceneImages(drawn, labels, image_size), class_names(name), None, drawn, places)
    if name == "huggingface":
        if data_path is None:
            raise UserError("--dataset huggingface needs --data_path, a folder or the name of a data set on the hub")
        samples, classes = shards.open_hub(data_path, split, streaming)
        return Images(samples, classes, None)
    root = _root(name, data_path)
    if name == "webdataset":
        samples, classes, names, files = shards.open_shards(root, split)
        return Images(samples, classes, names, files=files)
    if name in ("CIFAR10", "CIFAR100"):
        return _cifar(name, root, split)
    files, classes = layouts.READERS[name](root, split)
    if not files:
        raise UserError(f"--data_path {root}: no images there for --dataset {name}")
    places = layouts.waterbirds_places(root, split) if name == "binary_waterbirds" else None
    return Images(ImageFiles(files), classes, [path for path, _ in files], places=places)


def class_names(name: str, data_path: str | None = None) -> list[str]:
    """Class names of a data set, in the order of its labels.

    `data_path` is needed where the names come with the images: all but imagenet, binary_waterbirds and the emoji sets.
    """
    if name == "imagenet":
        from open_clip import IMAGENET_CLASSNAMES
        return list(IMAGENET_CLASSNAMES)
    if name == "binary_waterbirds":
        return list(layouts.WATERBIRDS_CLASSES)
    if name == "emoji_spurious":
        return list(SPURIOUS_CLASSES)
    if name in EMBEDDED:
        # Not through utils.scenes, which needs torch: names are also read where there is none.
        return [concept["name"] for concept in json.loads(PACK_INDEX.read_text())["concepts"]]
    if name == "cub":
        return layouts.cub_classes(_root(name, data_path))
    return load_images(name, data_path).classes


def _root(name: str, data_path: str | None) -> Path:
    if data_path is None:
        raise UserError(f"--dataset {name} needs --data_path, the folder of its images")
    if not Path(data_path).is_dir():
        raise UserError(f"--data_path {data_path}: no such folder")
    return Path(data_path)


def _cifar(name: str, root: Path, split: str) -> Images:
    layouts.check_split(name, split, ("train", "test"))
    from torchvision import datasets as vision

    try:
        samples = getattr(vision, name)(str(root), train=split == "train", download=True)
    except Exception as error:  # the network, the archive or the disk
        raise UserError(f"--data_path {root}: {name} is not there and cannot be downloaded ({describe(error)})") from error
    return Images(samples, [label.replace("_", " ") for label in samples.classes], None)


class _Prepared:
    """Samples through the model's preprocessing. One that cannot be read comes as its index and its error."""

    def __init__(self, images: Images, preprocess: Callable):
        self.images, self.preprocess = images, preprocess

    def __len__(self) -> int:
        return len(self.images.samples)

    def _prepare(self, index: int, read: Callable):
        try:
            image, label = read()
            return self.preprocess(image), label
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            name = self.images.paths[index] if self.images.paths else f"image {index}"
            return index, f"{name} ({describe(error) if not isinstance(error, OSError) else error})"

    def __getitem__(self, index: int):
        return self._prepare(index, lambda: self.images.samples[index])

    def __getitems__(self, indices: list[int]) -> list:
        if not hasattr(self.images.samples, "__getitems__"):
            return [self[index] for index in indices]
        samples = self.images.samples.__getitems__(indices)
        return [self._prepare(index, lambda sample=sample: sample) for index, sample in zip(indices, samples)]


def _collate(samples: list) -> tuple:
    import torch

    good = [sample for sample in samples if not isinstance(sample[1], str)]
    images = torch.stack([image for image, _ in good]) if good else torch.empty(0)
    return images, torch.tensor([label for _, label in good]), [sample for sample in samples if isinstance(sample[1], str)]


def worker_count(wanted: int | None) -> int:
    """As many workers as there are cores, at most ten, where none are asked for."""
    return min(10, os.cpu_count() or 1) if wanted is None else wanted


def batches(images: Images, preprocess: Callable, batch_size: int, num_workers: int, skip_bad_images: bool | None = None,
            numbers: Sequence[int] | None = None) -> Iterator[tuple]:
    """All images in order, in batches, or those batches whose `numbers` are given, counted from 0: images
    [b, 3, height, width], labels [b], and the index and error of those left out.

    Raises UserError that names the first image that cannot be read, unless `skip_bad_images` (None: there is no such option).
    """
    import torch
    from torch.utils.data import DataLoader

    total = len(images.samples)
    chosen = [list(range(number * batch_size, min((number + 1) * batch_size, total)))
              for number in (range(-(-total // batch_size)) if numbers is None else numbers)]
    if isinstance(images.samples, shards.StreamedImages):
        num_workers = 0  # the library would share a stream out over them
    loader = DataLoader(_Prepared(images, preprocess), batch_sampler=chosen, num_workers=num_workers, collate_fn=_collate,
                        pin_memory=torch.cuda.is_available())
    for pixels, labels, bad in loader:
        if bad and not skip_bad_images:
            raise UserError(f"cannot read {bad[0][1]}; mend or remove it"
                            + (", or leave such images out with --skip_bad_images" if skip_bad_images is False else ""))
        yield pixels, labels.numpy(), bad


def fingerprint(images: Images) -> str:
    """SHA-256 by which a data set is known to be the same: its number of images, its classes, and the size and time of each
    file. Raises UserError for a file that is gone."""
    digest = hashlib.sha256(f"{len(images.samples)} {images.classes}".encode())
    for path in images.files or images.paths or []:
        try:
            about = os.stat(path)
        except OSError as error:
            raise UserError(f"{path} is gone; the data set changes while it is read") from error
        digest.update(f"{path} {about.st_size} {about.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def templates(name: str) -> list[Callable[[str], str]]:
    """Prompt templates for class names of a data set: functions from a name to a text."""
    if name not in EMBEDDED:
        from open_clip import OPENAI_IMAGENET_TEMPLATES
        return list(OPENAI_IMAGENET_TEMPLATES)
    from utils.data import captions, scenes

    plurals = {concept["name"]: concept["plural"] for concept in scenes.concepts()}

    def fill(template: str, class_name: str) -> str:
        plural = plurals.get(class_name, f"{class_name}s")
        one = class_name if class_name == plural else captions.with_article(class_name)
        return template.format(name=class_name, one=one, many=plural)

    return [lambda class_name, template=template: fill(template, class_name) for template in EMOJI_TEMPLATES]
