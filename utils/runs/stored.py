"""Arrays on disk, read block by block; no more of them is in memory than what is being read."""
import mmap
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

BLOCK = 256  # images that are in memory at a time


class Stored:
    """An array in a .npy file: `stored[key]` is a copy of that part. What numpy maps from a file stays in memory until others
    need it; here its pages are given back at once, so that a long file takes no more than a short one."""

    def __init__(self, array: np.memmap):
        self.array, self.map = array, array._mmap
        self.shape, self.dtype, self.ndim, self.size = array.shape, array.dtype, array.ndim, array.size

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, key) -> np.ndarray:
        found = np.array(self.array[key])
        self.map.madvise(mmap.MADV_DONTNEED)
        return found

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[...], dtype)

    def reshape(self, *shape: int) -> "Stored":
        """The same file in another shape."""
        return Stored(self.array.reshape(*shape))


def blocks(images: int, size: int = BLOCK, description: str = "images") -> Iterator[slice]:
    """Slices that cover all images in order, with a progress bar where it takes long."""
    with tqdm(total=images, desc=description, unit="image", delay=3, leave=False) as progress:
        for start in range(0, images, size):
            yield slice(start, min(start + size, images))
            progress.update(min(size, images - start))
