"""Cumulative mean-ablation (arXiv 2406.01583): accuracy with more and more layers replaced by their mean over the images.

The embedding goes first, then layer by layer from the last block back: its MLP, its attention, its convolution (MaxViT).
Accuracy is that of a linear head: a zero-shot classifier, or a probe fitted to the train split.
"""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from utils.analysis import alignment, probe
from utils.cli import UserError
from utils.runs import terms
from utils.runs.terms import Component, Run

KINDS = ("mlp", "attn", "conv")  # of a block, in the order in which they are ablated


@dataclass(frozen=True)
class Step:
    """What is ablated at once."""
    kind: str          # embed, mlp, conv or attn
    block: int         # counted from 0; the embedding's is -1
    places: list[int]  # of its components

    @property
    def name(self) -> str:
        return "embed" if self.kind == "embed" else f"{self.kind} {self.block}"


def steps(components: Sequence[Component]) -> list[Step]:
    """The layers of a model in the order in which they are ablated; the heads of a block are one layer."""
    order = [("embed", -1), *((kind, block) for block in sorted({part.block for part in components if part.block >= 0})[::-1]
                              for kind in KINDS)]
    found = [Step(*key, [place for place, part in enumerate(components) if (part.kind, part.block) == key]) for key in order]
    return [step for step in found if step.places]


def _sums(run: Run, order: Sequence[Step], description: str) -> Iterator[tuple[slice, np.ndarray]]:
    """What each layer wrote, [b, s, d] in float64, in blocks of images."""
    for rows, block in terms.stacks(run, description):
        yield rows, np.stack([block[:, step.places].sum(axis=1, dtype=np.float64) for step in order], axis=1)


def curve(run: Run, order: Sequence[Step], weight: np.ndarray, bias: np.ndarray) -> list[float]:
    """Accuracy in percent with nothing ablated, and after each of the steps, those before it included.

    `weight` [d, classes] and `bias` [classes] are the linear head's. What replaces a layer is its mean over the run.
    """
    images, total = len(run["labels"]), 0
    for _, block in _sums(run, order, "means"):
        total = total + block.sum(axis=0)
    means, right = total / images, np.zeros(len(order) + 1, int)
    for rows, block in _sums(run, order, "ablations"):
        left = block.sum(axis=1)
        for step in range(len(order) + 1):
            answers = (left.astype(np.float32) @ weight + bias).argmax(axis=1)
            right[step] += int((answers == run["labels"][rows]).sum())
            if step < len(order):
                left += means[step] - block[:, step]
    return (100 * right / images).tolist()


def fit_head(splits: dict[str, Run], seed: int) -> tuple[np.ndarray, np.ndarray, dict]:
    """A linear probe of whole representations: weight [d, classes], bias [classes], and how it was fitted.

    `splits` are those of `probe.open_splits`. As in compute_linear_probe.py the probe is fitted to train, and its penalty
    chosen on validation where that is there, or else on a tenth of every class of train, held out by the seed. A class
    without images in train is never answered. Raises UserError where all of train is of one class.
    """
    data = {part: (alignment.sums(run).numpy(), np.asarray(run["labels"])) for part, run in splits.items() if part != "test"}
    x, labels = data["train"]
    classes = np.unique(labels)
    if len(classes) < 2:
        raise UserError("all images of the train split are of one class; a probe needs two")
    fitted, judged = data["train"], data.get("validation")
    if judged is None:
        held = probe.hold_out(labels, seed)
        fitted, judged = (x[~held], labels[~held]), (x[held], labels[held])
    with tqdm(total=probe.SWEEP_FITS, desc="fits", unit="fit") as progress:
        def score(c: float) -> float:
            found, *_ = probe.fit(*fitted, c, probe.ITERATIONS)
            progress.update()
            return 100 * found.score(*judged)

        best, scores = probe.search(score)
    head, _, converged = probe.fit(x, labels, 10 ** best, probe.ITERATIONS, probe.MORE_ITERATIONS)
    weight, bias = np.zeros((x.shape[1], 1 + labels.max()), np.float32), np.full(1 + labels.max(), -np.inf)
    own = head.coef_, head.intercept_
    if len(classes) == 2:  # one row, for the second class against the first
        own = [np.concatenate([np.zeros_like(part), part]) for part in own]
    weight[:, classes], bias[classes] = own[0].T, own[1]
    return weight, bias, {"C": 10 ** best, "validation": "val split" if "validation" in data else "held out of train",
                          "validation_accuracy": scores[best], "images": len(labels), "converged": converged}
