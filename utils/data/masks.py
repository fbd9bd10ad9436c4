"""Images with masks of their foreground, in files: what segmentations are compared with. Samples are (image, mask), PIL
images of one size; in a mask, 0 is background and 1 foreground."""
import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from utils.cli import UserError, describe
from utils.data import pictures
from utils.data.layouts import SUFFIXES, say_hidden

# h5py, torch and torchvision are imported where they are used: they take a moment.


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
        import h5py

        if not h5py.is_hdf5(data_path):
            raise UserError(f"--data_path {data_path}: not an HDF5 file; give gtsegs_ijcv.mat as it was downloaded "
                            "(MATLAB v7.3)")
        self.path, self.file = data_path, None
        try:
            with h5py.File(data_path) as file:
                images, masks = len(file["value/img"]), len(file["value/gt"])
                found = [[(array.shape, array.dtype) for array in self._arrays(file, i)]
                         for i in range(min(images, masks))]
        except (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise UserError(f"--data_path {data_path}: does not hold /value/img and /value/gt, columns of references "
                            f"to images and masks ({describe(error)}); give gtsegs_ijcv.mat, complete, as it was "
                            "downloaded") from error
        if images != masks or not images:
            raise UserError(f"--data_path {data_path}: holds {images} images and {masks} masks; download it again")
        for i, ((image, kind), (mask, _)) in enumerate(found):
            if len(image) != 3 or image[0] != 3 or kind != np.uint8:
                raise UserError(f"{data_path}, image {i}: is {kind} of shape {image} instead of uint8 (3, width, "
                                "height); download the file again")
            if mask != image[1:]:
                raise UserError(_other_size(f"{data_path}, image {i}", image[1:], mask))
        self.number = images

    def __len__(self) -> int:
        return self.number

    @staticmethod
    def _arrays(file, index: int) -> tuple:
        return file[file["value/img"][index, 0]], file[file[file["value/gt"][index, 0]][0, 0]]

    def __getitem__(self, index: int) -> tuple[Image.Image, Image.Image]:
        import h5py

        self.file = self.file or h5py.File(self.path)  # opened here, as worker processes must not share one
        image, mask = (array[()] for array in self._arrays(self.file, index))
        return Image.fromarray(image.transpose(2, 1, 0)), Image.fromarray((mask.T > 0).astype(np.uint8))


class MaskFolder:
    """A folder with `images` and `masks`: files of the same name but for the ending. In a mask, 0 (black) is
    background.

    Raises UserError where a folder or a mask is missing, a file is no image, or a mask has another size than its image.
    """

    def __init__(self, data_path: str | None):
        if data_path is None:
            raise UserError("--train_dataset masks_folder needs --data_path, a folder with the folders images and "
                            "masks")
        images, masks = (self._files(Path(data_path, part)) for part in ("images", "masks"))
        missing = [name for name in images if name not in masks]
        if missing:
            raise UserError(f"{Path(data_path, 'masks')}: no mask for {len(missing)} of {len(images)} images, such as "
                            f"{images[missing[0]].name}; add {missing[0]}.png")
        self.names, self.files = list(images), [(images[name], masks[name]) for name in images]
        for image, mask in self.files:
            sizes = pictures.upright_size(image), pictures.upright_size(mask)
            if sizes[0] != sizes[1]:
                raise UserError(_other_size(str(image), *sizes))

    def __len__(self) -> int:
        return len(self.files)

    @staticmethod
    def _files(folder: Path) -> dict[str, Path]:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; masks_folder reads the folders images and masks in --data_path")
        found: dict[str, Path] = {}
        there = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES]
        say_hidden(folder, [path.name for path in there if path.name.startswith(".")])
        for path in sorted(path for path in there if not path.name.startswith(".")):
            if path.stem in found:
                raise UserError(f"{path}: beside {found[path.stem].name}; keep one file of a name, whatever its ending")
            found[path.stem] = path
        if not found:
            raise UserError(f"{folder}: no images there ({', '.join(SUFFIXES)})")
        return found

    def __getitem__(self, index: int) -> tuple[Image.Image, Image.Image]:
        image, path = self.files[index]
        with Image.open(path) as mask:
            mask = ImageOps.exif_transpose(mask)
            # A palette's numbers, not its colours.
            values = np.asarray(mask if len(mask.getbands()) == 1 else mask.convert("RGB"))
        found = (values.reshape(*values.shape[:2], -1) > 0).any(axis=2)
        return pictures.read(image, "seen"), Image.fromarray(found.astype(np.uint8))


def _other_size(name: str, image: tuple[int, ...], mask: tuple[int, ...]) -> str:
    sizes = [" x ".join(map(str, size)) for size in (mask, image)]
    return f"{name}: its mask is {sizes[0]} pixels and the image {sizes[1]}; make the mask anew, at the image's size"


def true_classes(images, classes: list[str] | None) -> list[int]:
    """The true class of every one of the `Images` among the `classes` of a classifier. Raises UserError where it is not
    known."""
    if not images.scenes:
        raise UserError("--target true needs the class of every image, which only --train_dataset emoji_seg knows; "
                        "leave it out")
    if classes != images.classes:
        raise UserError("--target true: the classifier has other classes than the images; give --classifier_dataset "
                        "emoji")
    return images.samples.labels


def mask_transform(prepare: Callable, image_size: int, mask_resize: str) -> Callable:
    """What makes of a mask a tensor [s, s], True in the foreground, resized by nearest neighbour: `published` squeezes
    the whole mask to a square although images are cropped by their transform, `prepare`; `aligned` crops it like
    them."""
    from torchvision.transforms import Compose, InterpolationMode, Resize

    if mask_resize == "published":
        steps = [Resize((image_size, image_size), InterpolationMode.NEAREST)]
    else:
        steps = [copy.copy(step) for step in pictures.shaping(prepare)]
        for step in steps:
            step.interpolation, step.fill = InterpolationMode.NEAREST, 0
    return pictures.Shaped(Compose([*steps, _to_mask]))


def _to_mask(picture: Image.Image):
    import torch

    return torch.from_numpy(np.array(picture)) > 0
