"""The images of a data set, batch by batch, through a decomposition into the arrays of a run."""
from collections.abc import Callable

import numpy as np
from torch import Tensor
from tqdm import tqdm

from utils import cli
from utils.cli import UserError
from utils.data import datasets
from utils.data.datasets import Images
from utils.decompose.tower import Parts
from utils.runs.clock import Clock
from utils.runs.writer import Rows

Stored = dict[str, tuple[np.ndarray, str]]  # of each array by its name: rows [b, ...], and the type to store them in


def harvest(images: Images, preprocess: Callable, read: Callable[[Tensor], Parts], keep: Callable[[dict[str, Tensor]], Stored],
            rows: Rows, path: Callable, args, state, clock: Clock) -> None:
    """Decompose the images of the batches that are left, this process's share of them, and write what `keep` makes of the
    terms; `path` gives an array's path by its name, `args` are compute_prs.py's.

    Raises UserError for an image that cannot be read, or that the model makes NaN of, and for a disk that is too small.
    """
    numbers = cli.own_batches(rows.left, state)
    batches = datasets.batches(images, preprocess, args.batch_size, datasets.worker_count(args.num_workers), args.skip_bad_images,
                               numbers)
    with tqdm(total=len(numbers), desc="batches", unit="batch", disable=not state.is_main_process) as progress:
        for number, (pixels, labels, bad) in zip(numbers, clock.over(batches, "decode")):
            stored: Stored = {}
            if len(labels):
                first, left_out = number * args.batch_size, [index for index, _ in bad]
                with clock.counting("model and decomposition"):
                    terms = read(pixels.to(state.device, non_blocking=True)).arrays
                    check_finite(terms, images, [i for i in range(first, first + args.batch_size) if i not in left_out])
                with clock.counting("write"):
                    stored = keep(terms)
            with clock.counting("write"):
                if stored:
                    stored["labels"] = labels, "int64"
                rows.write(number, len(labels), {path(what): values for what, values in stored.items()}, bad)
            if number == numbers[0]:
                rows.check_room()
            progress.update()


def check_finite(terms: dict[str, Tensor], images: Images, indices: list[int]) -> None:
    """Refuse terms [b, ...] of the images with these indices that hold NaN or infinity, by the name of the first."""
    for values in terms.values():
        finite = values.flatten(1).sum(dim=1).isfinite().tolist()
        if not all(finite):
            index = indices[finite.index(False)]
            raise UserError(f"the model gives NaN or infinity for {images.name(index)}; "
                            "look at that image, and at the weights")


def seconds(clock: Clock, cost: float) -> dict[str, float]:
    """Where the time went. The model and its decomposition are told apart by the `cost` of both over the model alone."""
    both = clock.seconds["model and decomposition"]
    return {"decode": clock.seconds["decode"], "model": both / cost, "decomposition": both - both / cost,
            "write": clock.seconds["write"]}
