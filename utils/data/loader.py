"""Images in batches, through a model's preprocessing, by processes that read them beforehand."""
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence

from utils.cli import UserError, describe
from utils.data import pictures, shards
from utils.data.datasets import Images

# torch is imported where it is used: options are checked before it is.


class _Prepared:
    """Samples through the model's preprocessing. One that cannot be read comes as its index and its error."""

    def __init__(self, images: Images, preprocess: Callable, prepare_target: Callable | None):
        self.images, self.preprocess, self.prepare_target = images, preprocess, prepare_target

    def __len__(self) -> int:
        return len(self.images.samples)

    def _prepare(self, index: int, read: Callable):
        try:
            image, target = read()
            return self.preprocess(image), self.prepare_target(target) if self.prepare_target else target
        except pictures.BROKEN as error:
            return index, f"{self.images.name(index)} ({describe(error) if not isinstance(error, OSError) else error})"

    def __getitem__(self, index: int):
        return self._prepare(index, lambda: self.images.samples[index])

    def __getitems__(self, indices: list[int]) -> list:
        if not hasattr(self.images.samples, "__getitems__"):
            return [self[index] for index in indices]
        samples = self.images.samples.__getitems__(indices)
        return [self._prepare(index, lambda sample=sample: sample) for index, sample in zip(indices, samples)]


def _collate(samples: list) -> tuple:
    import torch
    from torch.utils.data import default_collate

    good = [sample for sample in samples if not isinstance(sample[1], str)]
    images, targets = default_collate(good) if good else (torch.empty(0), torch.empty(0, dtype=torch.int64))
    return images, targets, [sample for sample in samples if isinstance(sample[1], str)]


def worker_count(wanted: int | None) -> int:
    """As many workers as are wanted, and at most as many as there are cores, with a line that says so; where none are
    asked for, one a core, and at most ten."""
    cores = os.cpu_count() or 1
    if wanted is not None and wanted > cores:
        print(f"--num_workers {wanted}: this machine has {cores} cores, so that {cores} processes read images",
              file=sys.stderr)
    return min(cores, 10 if wanted is None else wanted)


def some(images: Images, number: int) -> list[int]:
    """Indices of `number` images of a data set, or of all where it has fewer: the same draw every time, in their order,
    whatever the order of the classes."""
    import numpy as np

    return sorted(np.random.default_rng(0).permutation(len(images.samples))[:number].tolist())


def check_memory(batch_size: int, image_size: tuple[int, int], num_workers: int) -> None:
    """Refuse batches of images that do not fit this machine's memory: each worker prepares two beforehand."""
    needed = batch_size * 3 * math.prod(image_size) * 4 * (2 * num_workers + 2)
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there / 2:
        raise UserError(f"--batch_size {batch_size}: batches of images of {image_size[0]} x {image_size[1]} pixels in "
                        f"{num_workers} workers take {needed / 1e9:.0f} GB, and this machine has {there / 1e9:.0f}; "
                        "give a smaller one")


def batches(images: Images, preprocess: Callable, batch_size: int, num_workers: int | None,
            skip_bad_images: bool | None = None, numbers: Sequence[int] | None = None,
            prepare_target: Callable | None = None, only: Sequence[int] | None = None) -> Iterator[tuple]:
    """All images in order, or `only` those of these indices, in batches, or those batches whose `numbers` are given,
    counted from 0: images [b, 3, height, width], labels [b] (or masks [b, ...], through `prepare_target`), and the
    index and error of those left out. Workers are as many as `worker_count` allows.

    Raises UserError that names the first image that cannot be read, unless `skip_bad_images` (None: there is no such
    option).
    """
    import torch
    from torch.utils.data import DataLoader

    indices = range(len(images.samples)) if only is None else only
    chosen = [list(indices[number * batch_size:(number + 1) * batch_size])
              for number in (range(-(-len(indices) // batch_size)) if numbers is None else numbers)]
    if isinstance(images.samples, shards.StreamedImages):
        num_workers = 0  # the library would share a stream out over them
    num_workers = worker_count(num_workers)
    loader = DataLoader(_Prepared(images, preprocess, prepare_target), batch_sampler=chosen, num_workers=num_workers,
                        collate_fn=_collate, pin_memory=torch.cuda.is_available())
    for pixels, targets, bad in loader:
        if bad and not skip_bad_images:
            raise UserError(f"cannot read {bad[0][1]}; mend or remove it"
                            + (", or leave such images out with --skip_bad_images" if skip_bad_images is False else ""))
        yield pixels, targets.numpy(), bad
