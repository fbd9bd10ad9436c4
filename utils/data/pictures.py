"""Pictures as RGB: the one reader of them, whatever holds them."""
import copy
import itertools
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from utils.cli import UserError, describe

READINGS = ("seen", "published")
STRIP = 16  # sides of a picture, from which on what a crop would take away is taken away before resizing
LONGEST = 4  # sides of a picture: positions are interpolated, and a model has seen none of a longer strip
FIRST_OTHER = ("MaybeConvertMode", "MaybeToTensor", "ToTensor")  # of a transform's steps after those that shape
BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises for what it cannot read


def to_rgb(picture: Image.Image, reading: str) -> Image.Image:
    """A picture of any mode as RGB in 8 bits, of several frames the first.

    `reading` is how it is looked at: "seen" turns it upright by its EXIF orientation and lays its transparent parts on
    white; "published" does neither, as the published figures of the published data sets were made so. Either scales 16
    bits to 8, and 32-bit integers and floats, which have no fixed white, from their least to their largest value.
    """
    sixteen = picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PPM")
    if reading == "seen":
        picture = ImageOps.exif_transpose(picture)
    if sixteen:  # Pillow would cut these off at 255
        values, clear = np.asarray(picture, np.float32), picture.info.get("transparency")
        picture = Image.fromarray((values / 257).round().astype(np.uint8))
        if clear is not None:
            picture.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    elif picture.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(picture, np.float64))
        values = (values - values.min()) / (np.ptp(values) or 1)
        picture = Image.fromarray((255 * values).round().astype(np.uint8))
    if reading == "seen" and picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def read(file, reading: str) -> Image.Image:
    """The picture of a file, by its path or open, by `to_rgb`. Raises one of BROKEN where it cannot be read."""
    with Image.open(file) as picture:
        return to_rgb(picture, reading)


def read_option(path: str) -> Image.Image:
    """The picture of --image, by `read_given`."""
    if not Path(path).is_file():
        raise UserError(f"--image {path}: no such file")
    return read_given(path, f"--image {path}")


def check_output(output: str, image: str) -> None:
    """Raises UserError for an --output that is no PNG, or that would replace the --image."""
    if Path(output).suffix.lower() != ".png":
        raise UserError(f"--output {output}: a PNG is written; let the name end in .png")
    if Path(output).resolve() == Path(image).resolve():
        raise UserError(f"--output {output}: would replace --image; choose another name")


def read_given(file, name: str) -> Image.Image:
    """The picture of a file that a user gives, by its path or open, as seen. Raises UserError, which starts with the
    `name`, for what is no picture, or longer than LONGEST times its breadth."""
    try:
        picture = read(file, "seen")
    except Exception as error:  # damaged files fail in as many ways as there are formats
        why = "in no format of Pillow's" if isinstance(error, Image.UnidentifiedImageError) else describe(error)
        raise UserError(f"{name}: cannot be read ({why}); convert it to PNG or JPEG, or give another") from error
    if max(picture.size) > LONGEST * min(picture.size):
        raise UserError(f"{name}: has {picture.width} x {picture.height} pixels; "
                        f"crop it until it is at most {LONGEST} times as long as broad")
    return picture


def upright_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture as seen; only the head of the file is read. Raises UserError where it is none."""
    try:
        with Image.open(path) as image:
            # Asking a PNG without it would decode all of the image, as it may stand at the end.
            turned = "exif" in image.info and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return image.size[::-1] if turned else image.size
    except BROKEN as error:
        raise UserError(f"{path}: cannot be read as an image ({type(error).__name__}); mend or remove it") from error


def middle(picture: Image.Image, steps: list) -> Image.Image:
    """The part of a long strip that is left when its shorter side is resized and the middle is cropped out; other
    pictures, and other steps of a transform, as they are. Resizing all of 1 x 2,000 pixels would make 448,000."""
    short, long = sorted(picture.size)
    resize = steps[0] if steps else None
    by_shorter_side = isinstance(getattr(resize, "size", None), int) or getattr(resize, "longest", None) == 0
    if long <= STRIP * short or not by_shorter_side:
        return picture
    before = (long - STRIP * short) // 2  # the middle stays in the middle
    kept = (before, 0, long - before, short)
    return picture.crop(kept if picture.width == long else (kept[1], kept[0], kept[3], kept[2]))


class Shaped:
    """A transform of pictures, for strips of any length."""

    def __init__(self, preprocess):
        self.preprocess, self.transforms = preprocess, preprocess.transforms

    def __call__(self, picture: Image.Image):
        return self.preprocess(middle(picture, self.transforms))


def shape(picture: Image.Image, preprocess, scale: float = 1) -> Image.Image:
    """What a transform makes of a picture before it becomes numbers: resized, and cropped or squeezed; `scale` times as
    large as the model sees it."""
    steps = shaping(preprocess)
    picture = middle(picture, steps)
    for step in steps:
        step = copy.copy(step)
        if isinstance(step.size, int):
            step.size = round(scale * step.size)
        else:
            step.size = tuple(round(scale * side) for side in step.size)
        picture = step(picture)
    return picture


def shaping(preprocess) -> list:
    """The steps of a transform of open_clip or timm that resize and crop, before it turns a picture into numbers."""
    return list(itertools.takewhile(lambda step: type(step).__name__ not in FIRST_OTHER, preprocess.transforms))
