"""The images of a data set, batch by batch, through a decomposition into the arrays of a run.

On a GPU, terms are copied to the CPU and written while the next batch is computed, so that neither waits for the other.
"""
import math
import shlex
import sys
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from utils import cli, processes
from utils.cli import UserError
from utils.data import datasets, loader
from utils.data.datasets import Images
from utils.decompose.decomposer import Decomposer
from utils.decompose.terms import Terms
from utils.models.model import Model
from utils.runs import files
from utils.runs.components import Component, are_plain, by_array
from utils.runs.storage import MomentSums
from utils.runs.writer import RunWriter

# Images a batch where no number is asked for, on a CPU and on other devices, by the millions of weights of the tower,
# times the area of its images over 224 x 224 pixels.
BATCH_SIZES = {40: (64, 256), 120: (32, 128), 400: (16, 64), 1000: (8, 32), math.inf: (4, 8)}


def default_batch_size(model: Model) -> int:
    """Images a batch for a model on its device, the same on every machine with such a device."""
    weights = sum(values.numel() for values in model.tower.parameters()) / 1e6
    size = weights * math.prod(model.image_size) / 224 ** 2
    return next(sizes for most, sizes in BATCH_SIZES.items() if size <= most)[model.device.type != "cpu"]


class Clock:
    """Seconds by what they went into. What a GPU does is counted there, while the CPU goes on: counts overlap, and add
    up to more than went by."""

    def __init__(self, device):
        self.device, self.seconds, self.running = device, defaultdict(float), []

    @contextmanager
    def counting(self, what: str, device: bool = False) -> Iterator[None]:
        """Count the time of a block; with `device`, of what it has the device do."""
        if device and self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self.running.append((what, start, end))
            return
        start = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - start

    def over(self, items: Iterable, what: str) -> Iterator:
        """Items one by one; the time until each is there is counted."""
        iterator = iter(items)
        while True:
            with self.counting(what):
                item = next(iterator, None)
            if item is None:
                return
            yield item

    def settle(self) -> None:
        """Wait for the device, and count what it has done."""
        for what, start, end in self.running:
            end.synchronize()
            self.seconds[what] += start.elapsed_time(end) / 1000
        self.running = []


class Moved:
    """Arrays on their way from a device to the CPU, in the types that they are stored in; the device goes on
    meanwhile."""

    def __init__(self, arrays: dict[str, tuple[Tensor, str]]):
        """`arrays`: of each its values [b, ...] and the name of its type on disk."""
        self.types, self.arrays, self.done = {what: dtype for what, (_, dtype) in arrays.items()}, {}, None
        for what, (values, dtype) in arrays.items():
            if values.is_cuda:
                values = values.to(getattr(torch, dtype)).contiguous()
                values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
                self.done = self.done or torch.cuda.Event()
            self.arrays[what] = values
        if self.done:
            self.done.record()

    def arrived(self) -> dict[str, np.ndarray]:
        """The arrays, once they are there."""
        if self.done:
            self.done.synchronize()
        return {what: values.cpu().numpy() for what, values in self.arrays.items()}


def compute(decomposer: Decomposer, batches: Iterable, storage: str, save_dtype: str, moments: MomentSums | None,
            clock: Clock) -> Iterator[tuple]:
    """Decompose batches, pairs of a number and what `loader.batches` gives. Of each comes its number, labels, images
    left out, and its arrays on their way from the device, with "finite" [arrays, b]; None in place of those where no
    image was read. With `moments` they are added there, and "finite" alone comes."""
    for number, (pixels, labels, bad) in batches:
        moved = None
        if len(labels):
            with clock.counting("model and decomposition", device=True):
                terms = stored(decomposer.terms(pixels.to(clock.device, non_blocking=True)), storage)
                finite = torch.stack([values.flatten(1).sum(dim=1).isfinite() for values in terms.values()])
                if moments:
                    moments.add(terms["heads"], terms["scalars"])
                    terms = {}
                moved = Moved({what: (some, "float32" if what == "scalars" else save_dtype)
                               for what, some in terms.items()} | {"finite": (finite, "bool")})
        yield number, labels, bad, moved


def behind(items: Iterable, by: int) -> Iterator:
    """Items, each when `by` more have been made."""
    waiting: deque = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > by:
            yield waiting.popleft()
    yield from waiting


def write_run(decomposer: Decomposer, images: Images, folder: str, name: str, about: dict, cost: float, state,
              num_workers: int, skip_bad_images: bool, resume: bool) -> tuple[int, list] | None:
    """Decompose the images of a data set and write the run `name` to `folder`: its arrays, its manifest, which says
    what it is `about`, and where the time went.

    `about["options"]` says how terms are stored: `storage` is "full", "compact" (heads before their output projection,
    all MLPs as one) or "moments" (of the former, over images), `save_dtype` the type of the arrays. Its `batch_size`
    (None: `default_batch_size`) is cut to the number of images. `cost` is that of the decomposition over the model
    alone. Several processes, `state`, share the batches. Returns the number of images, and the indices and errors of
    those left out; None for a run that is complete already. Raises UserError for an image that cannot be read, or that
    the model makes NaN of; for data that change meanwhile; for a model that has not the storage asked for; and for a
    memory or disk that is too small.
    """
    options, model = about["options"], decomposer.model
    storage, save_dtype = options["storage"], options["save_dtype"]
    batch_size = min(options["batch_size"] or default_batch_size(model), len(images.samples) or 1)
    loader.check_memory(batch_size, model.image_size, num_workers)
    about = {**about, "options": {**options, "batch_size": batch_size}, "images_sha256": datasets.names_hash(images)}
    clock, fingerprint = Clock(state.device), datasets.fingerprint(images)
    whole = {} if storage == "full" else {"readout": decomposer.readout().cpu().numpy()}  # arrays without images
    moments = MomentSums() if storage == "moments" else None

    def path(what: str) -> Path:
        return files.term_path(folder, name, what, model.name)

    manifest = files.manifest_path(folder, name, model.name)
    identity = {**about, "split": name, "data_sha256": fingerprint}  # the usual split by its name is the usual split
    identity.pop("command", None)  # which may say the same in other words
    with RunWriter(manifest, identity, len(images.samples), batch_size, state, resume) as writer:
        if writer.complete:
            return None
        numbers, begun = processes.own_batches(writer.left, state), time.perf_counter()
        batches = loader.batches(images, model.preprocess, batch_size, num_workers, skip_bad_images, numbers)
        computed = compute(decomposer, zip(numbers, clock.over(batches, "decode")), storage, save_dtype, moments, clock)
        for number, labels, bad, moved in tqdm(behind(computed, by=int(state.device.type == "cuda")), "batches",
                                               len(numbers), unit="batch", disable=not state.is_main_process):
            arrays = {}
            if moved:
                values = moved.arrived()
                left_out, first = {index for index, _ in bad}, number * batch_size
                check_finite(values.pop("finite"), images,
                             [i for i in range(first, first + batch_size) if i not in left_out])
                arrays = {path(what): (some, moved.types[what]) for what, some in values.items()}
                if arrays:
                    arrays[path("labels")] = labels, "int64"
            with clock.counting("write"):
                writer.write(number, len(labels), arrays, bad)
            if number == numbers[0]:
                writer.check_room()
        clock.settle()
        loop = time.perf_counter() - begun
        if datasets.fingerprint(images) != fingerprint:
            raise UserError("--data_path: changed while it was read; begin anew, without --resume")
        if state.is_main_process and (names := names_of(decomposer.components)):
            cli.save_result(path("components").with_suffix(".json"), names)
        whole |= moments.arrays() if moments else {}
        count, skipped = writer.finish(about, {path(what): values for what, values in whole.items()})
    if state.is_main_process:
        both = clock.seconds["model and decomposition"]
        cli.save_result(path("time").with_suffix(".json"), {
            "command": shlex.join(sys.orig_argv), "images": count, "processes": state.num_processes,
            "device": str(state.device), "cost_over_a_plain_forward_pass": cost,
            "seconds": {"decode": clock.seconds["decode"], "model": both / cost, "decomposition": both - both / cost,
                        "write": clock.seconds["write"]}, "loop_seconds": loop})
    return count, skipped


def stored(terms: Terms, storage: str) -> dict[str, Tensor]:
    """The arrays of a batch that are stored: all of `Terms.arrays` ("full"), or, otherwise, "heads" [b, l, h, k] and
    "scalars" [b, 3] in place of attn, all MLPs as one, mlp [b, 2, d], and cls_attn [b, 1, d] summed over layers."""
    if storage == "full":
        return terms.arrays()
    mlp = torch.stack([terms.of("embed")[:, 0], terms.of("mlp").sum(dim=1)], dim=1)
    return {"heads": terms.outputs, "scalars": terms.scalars, "mlp": mlp,
            "cls_attn": terms.cls_attn.sum(dim=1, keepdim=True)}


def names_of(components: list[Component]) -> dict[str, list[dict]] | None:
    """Whose terms each array holds, as {dataset}_components_{model}.json says it, for models where shapes do not say
    it; None for a plain transformer."""
    return None if are_plain(components) else by_array(components)


def check_finite(finite: np.ndarray, images: Images, indices: list[int]) -> None:
    """Refuse images with these indices whose arrays hold NaN or infinity, by the name of the first: `finite` [arrays,
    b]."""
    for of_array in finite:
        if not of_array.all():
            index = indices[int(of_array.argmin())]
            raise UserError(f"the model gives NaN or infinity for {images.name(index)}; "
                            "look at that image, and at the weights")
