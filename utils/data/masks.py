"""Images with masks of their foreground, by the name of their data set (READERS): what segmentations are compared with."""
from pathlib import Path

import h5py
import numpy as np
from PIL import ExifTags, Image, ImageOps

from utils.cli import UserError, describe
from utils.data import datasets, scenes
from utils.data.layouts import SUFFIXES


class MatFile:
    """ImageNet-Segmentation, gtsegs_ijcv.mat: a MATLAB v7.3 (HDF5) file.

    `/value/img` [N, 1] refers to uint8 images (channels, width, height), `/value/gt` [N, 1] to a [1, 1] reference to a
    mask (width, height). Raises UserError for a file that is not so, and for a mask of another size than its image.
    """

    def __init__(self, data_path: str | None):
        if data_path is None:
            raise UserError("--train_dataset imagenet_seg needs --data_path, the file gtsegs_ijcv.mat")
        if not Path(data_path).is_file():
            raise UserError(f"--data_path {data_path}: no such file; imagenet_seg is the file gtsegs_ijcv.mat")
        if not h5py.is_hdf5(data_path):
            raise UserError(f"--data_path {data_path}: not an HDF5 file; give gtsegs_ijcv.mat as it was downloaded (MATLAB v7.3)")
        self.path, self.file = data_path, None
        try:
            with h5py.File(data_path) as file:
                images, masks = len(file["value/img"]), len(file["value/gt"])
                found = [[(array.shape, array.dtype) for array in self._arrays(file, i)] for i in range(min(images, masks))]
        except (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise UserError(f"--data_path {data_path}: does not hold /value/img and /value/gt, columns of references to images "
                            f"and masks ({describe(error)}); give gtsegs_ijcv.mat, complete, as it was downloaded") from error
        if images != masks or not images:
            raise UserError(f"--data_path {data_path}: holds {images} images and {masks} masks; download it again")
        for i, ((image, kind), (mask, _)) in enumerate(found):
            if len(image) != 3 or image[0] != 3 or kind != np.uint8:
                raise UserError(f"{data_path}, image {i}: is {kind} of shape {image} instead of uint8 (3, width, height); "
                                "download the file again")
            if mask != image[1:]:
                raise UserError(_other_size(f"{data_path}, image {i}", image[1:], mask))
        self.names = [f"{i:05d}" for i in range(images)]

    @staticmethod
    def _arrays(file: h5py.File, index: int) -> tuple[h5py.Dataset, h5py.Dataset]:
        return file[file["value/img"][index, 0]], file[file[file["value/gt"][index, 0]][0, 0]]

    def read(self, index: int, image_size: int) -> tuple[Image.Image, Image.Image]:
        """An image and its mask (0 is background), of their own size."""
        self.file = self.file or h5py.File(self.path)  # opened here, as worker processes must not share one
        image, mask = (array[()] for array in self._arrays(self.file, index))
        return Image.fromarray(image.transpose(2, 1, 0)), Image.fromarray((mask.T > 0).astype(np.uint8))


class EmojiScenes:
    """The embedded scenes of emoji_seg, drawn with their masks at the size that is asked for."""

    def __init__(self, data_path: str | None):
        if data_path is not None:
            raise UserError("--train_dataset emoji_seg is drawn, not read; leave --data_path out")
        self.drawn, self.labels, _ = datasets.embedded_scenes("emoji_seg")
        self.classes = datasets.load_images("emoji_seg").classes
        self.names = [f"{i:05d}" for i in range(len(self.drawn))]

    def read(self, index: int, image_size: int) -> tuple[Image.Image, Image.Image]:
        """An image and its mask (0 is background)."""
        images, masks = scenes.draw([self.drawn[index]], image_size)
        return Image.fromarray(images[0].permute(1, 2, 0).numpy()), Image.fromarray(masks[0].numpy())


class MaskFolder:
    """A folder with `images` and `masks`: files of the same name but for the ending. In a mask, 0 (black) is background.

    Raises UserError where a folder or a mask is missing, a file is no image, or a mask has another size than its image.
    """

    def __init__(self, data_path: str | None):
        if data_path is None:
            raise UserError("--train_dataset masks_folder needs --data_path, a folder with the folders images and masks")
        images, masks = (self._files(Path(data_path, part)) for part in ("images", "masks"))
        missing = [name for name in images if name not in masks]
        if missing:
            raise UserError(f"{Path(data_path, 'masks')}: no mask for {len(missing)} of {len(images)} images, such as "
                            f"{images[missing[0]].name}; add {missing[0]}.png")
        self.names, self.files = list(images), [(images[name], masks[name]) for name in images]
        for image, mask in self.files:
            if _upright_size(image) != _upright_size(mask):
                raise UserError(_other_size(str(image), _upright_size(image), _upright_size(mask)))

    @staticmethod
    def _files(folder: Path) -> dict[str, Path]:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; masks_folder reads the folders images and masks in --data_path")
        found: dict[str, Path] = {}
        for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES):
            if path.stem in found:
                raise UserError(f"{path}: beside {found[path.stem].name}; keep one file of a name, whatever its ending")
            found[path.stem] = path
        if not found:
            raise UserError(f"{folder}: no images there ({', '.join(SUFFIXES)})")
        return found

    def read(self, index: int, image_size: int) -> tuple[Image.Image, Image.Image]:
        """An image and its mask (0 is background), upright, of their own size."""
        (image, mask) = (ImageOps.exif_transpose(Image.open(path)) for path in self.files[index])
        values = np.asarray(mask if len(mask.getbands()) == 1 else mask.convert("RGB"))  # a palette's numbers, not its colours
        return image.convert("RGB"), Image.fromarray((values.reshape(*values.shape[:2], -1) > 0).any(axis=2).astype(np.uint8))


def _upright_size(path: Path) -> tuple[int, int]:
    """Width and height as shown; only the head of the file is read."""
    try:
        with Image.open(path) as image:
            # Asking a PNG without it would decode all of the image, as it may stand at the end.
            turned = "exif" in image.info and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return image.size[::-1] if turned else image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be read as an image ({type(error).__name__}); mend or remove it") from error


def _other_size(name: str, image: tuple[int, ...], mask: tuple[int, ...]) -> str:
    sizes = [" x ".join(map(str, size)) for size in (mask, image)]
    return f"{name}: its mask is {sizes[0]} pixels and the image {sizes[1]}; make the mask anew, at the image's size"


Masks = MatFile | EmojiScenes | MaskFolder
READERS = {"imagenet_seg": MatFile, "emoji_seg": EmojiScenes, "masks_folder": MaskFolder}
