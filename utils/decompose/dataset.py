"""The images of a data set, batch by batch, through a decomposition into the arrays of a run."""
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from utils import cli
from utils.cli import UserError
from utils.data import datasets
from utils.data.datasets import Images
from utils.decompose.decomposer import Decomposer
from utils.decompose.terms import ARRAYS, Terms
from utils.runs import files
from utils.runs.compact import Moments
from utils.runs.components import Component
from utils.runs.writer import Rows


class Clock:
    """Seconds by what they went into. On a GPU, work is waited for where it is counted."""

    def __init__(self, device):
        self.device, self.seconds = device, defaultdict(float)

    @contextmanager
    def counting(self, what: str) -> Iterator[None]:
        """Count the time of a block."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
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


def write_run(decomposer: Decomposer, images: Images, folder: str, name: str, about: dict, cost: float, state, batch_size: int,
              num_workers: int, skip_bad_images: bool, resume: bool) -> tuple[int, list] | None:
    """Decompose the images of a data set and write the run `name` to `folder`: its arrays, its manifest, which says what it is
    `about`, and where the time went.

    `about["options"]` says how terms are stored: `storage` is "full", "compact" (heads before their output projection, all MLPs
    as one) or "moments" (of the former, over images), `save_dtype` the type of the arrays. `cost` is that of the decomposition
    over the model alone. Several processes, `state`, share the batches. Returns the number of images, and the indices and errors
    of those left out; None for a run that is complete already.
    Raises UserError for an image that cannot be read, or that the model makes NaN of; for data that change meanwhile; for a
    model that has not the storage asked for; and for a disk that is too small.
    """
    storage, save_dtype = (about["options"][key] for key in ("storage", "save_dtype"))
    clock, fingerprint = Clock(state.device), datasets.fingerprint(images)
    whole = {} if storage == "full" else {"readout": decomposer.readout().cpu().numpy()}  # arrays without images
    moments = Moments() if storage == "moments" else None

    def path(what: str) -> Path:
        return files.term_path(folder, name, what, decomposer.model.name)

    manifest = files.manifest_path(folder, name, decomposer.model.name)
    identity = {**about, "split": name, "data_sha256": fingerprint}  # the usual split by its name is the usual split
    with Rows(manifest, identity, len(images.samples), batch_size, state, resume) as rows:
        if rows.complete:
            return None
        numbers = cli.own_batches(rows.left, state)
        batches = datasets.batches(images, decomposer.model.preprocess, batch_size, num_workers, skip_bad_images, numbers)
        for number, (pixels, labels, bad) in zip(tqdm(numbers, "batches", unit="batch", disable=not state.is_main_process),
                                                 clock.over(batches, "decode")):
            terms, arrays = {}, {}
            if len(labels):
                with clock.counting("model and decomposition"):
                    terms = stored(decomposer.terms(pixels.to(state.device, non_blocking=True)), storage)
                    left_out = {index for index, _ in bad}
                    first = number * batch_size
                    check_finite(terms, images, [i for i in range(first, first + batch_size) if i not in left_out])
            with clock.counting("write"):
                if terms and moments:
                    moments.add(terms["heads"], terms["scalars"])
                elif terms:
                    arrays = {path(what): (some.cpu().numpy(), "float32" if what == "scalars" else save_dtype)
                              for what, some in terms.items()} | {path("labels"): (labels, "int64")}
                rows.write(number, len(labels), arrays, bad)
            if number == numbers[0]:
                rows.check_room()
        if datasets.fingerprint(images) != fingerprint:
            raise UserError("--data_path: changed while it was read; begin anew, without --resume")
        if state.is_main_process and (names := names_of(decomposer.components)):
            cli.save_result(path("components").with_suffix(".json"), names)
        whole |= moments.means() if moments else {}
        count, skipped = rows.finish(about, {path(what): values for what, values in whole.items()})
    if state.is_main_process:
        both = clock.seconds["model and decomposition"]
        cli.save_result(path("time").with_suffix(".json"), {
            "images": count, "processes": state.num_processes, "device": str(state.device), "cost_over_a_plain_forward_pass": cost,
            "seconds": {"decode": clock.seconds["decode"], "model": both / cost, "decomposition": both - both / cost,
                        "write": clock.seconds["write"]}})
    return count, skipped


def stored(terms: Terms, storage: str) -> dict[str, Tensor]:
    """The arrays of a batch that are stored: all of `Terms.arrays` ("full"), or, otherwise, "heads" [b, l, h, k] and "scalars"
    [b, 3] in place of attn, all MLPs as one, mlp [b, 2, d], and cls_attn [b, 1, d] summed over layers."""
    if storage == "full":
        return terms.arrays()
    mlp = torch.stack([terms.of("embed")[:, 0], terms.of("mlp").sum(dim=1)], dim=1)
    return {"heads": terms.outputs, "scalars": terms.scalars, "mlp": mlp, "cls_attn": terms.cls_attn.sum(dim=1, keepdim=True)}


def names_of(components: list[Component]) -> dict[str, list[dict]] | None:
    """Whose terms each array holds, as {dataset}_components_{model}.json says it, for models where shapes do not say it; None for
    those of as many heads in each layer, and without convolution blocks."""
    layers = [component.layer for component in components if component.kind == "attn"]
    if len({layers.count(layer) for layer in layers}) == 1 and all(component.kind != "conv" for component in components):
        return None
    return {what: listed for what, kinds in ARRAYS.items()
            if (listed := [component.to_dict() for component in components if component.kind in kinds])}


def check_finite(terms: dict[str, Tensor], images: Images, indices: list[int]) -> None:
    """Refuse terms [b, ...] of the images with these indices that hold NaN or infinity, by the name of the first."""
    for values in terms.values():
        finite = values.flatten(1).sum(dim=1).isfinite().tolist()
        if not all(finite):
            index = indices[finite.index(False)]
            raise UserError(f"the model gives NaN or infinity for {images.name(index)}; "
                            "look at that image, and at the weights")
