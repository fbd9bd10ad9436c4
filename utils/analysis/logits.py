"""Which components speak for which class: what each adds directly to a logit, and what the model loses without it.

Logits are cosine similarities: the terms of an image sum to its representation, so that their inner products with a
class's column sum to its logit.
"""
import csv
import difflib
import io
from collections.abc import Sequence

import numpy as np

from utils.analysis import ablation
from utils.cli import UserError
from utils.runs.files import blocks
from utils.runs.run import SMALL_BLOCK, Run


def find_class(name: str, classes: Sequence[str]) -> int:
    """The index of a class. Raises UserError, with the closest ones, where there is none of that name."""
    if name not in classes:
        close = difflib.get_close_matches(name, classes, 3)
        raise UserError(f"there is no class {name!r}" + (f"; close are {', '.join(close)}" if close else ""))
    return list(classes).index(name)


def by_class(run: Run, classifier: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What each component adds to each class's logit [c, classes], `classifier` [d, classes]: on average over the
    images of the class, and over all others. NaN where there are no such images."""
    parts, classes = len(run.components), classifier.shape[1]
    counts = np.bincount(run.labels, minlength=classes)
    own, total = np.zeros((parts, classes)), np.zeros((parts, classes))
    for block in blocks(len(run), SMALL_BLOCK, "logits"):
        added = run.stack(block, range(parts)) @ classifier                                     # [b, c, classes]
        total += added.sum(axis=0, dtype=np.float64)
        labels = run.labels[block]
        np.add.at(own.T, labels, added[np.arange(len(labels)), :, labels])
    with np.errstate(invalid="ignore", divide="ignore"):
        return own / counts, (total - own) / (len(run) - counts)


def along(run: Run, direction: np.ndarray) -> np.ndarray:
    """What each component of each image adds along a direction [d] of the joint space: [b, c], float32."""
    parts = range(len(run.components))
    return np.concatenate([run.stack(block, parts) @ direction for block in blocks(len(run), SMALL_BLOCK, "logits")])


def accuracy_lost(run: Run, classifier: np.ndarray) -> tuple[float, np.ndarray]:
    """Accuracy in percent, and what is lost of it [c] with each component alone mean-ablated."""
    sets = [(), *((column,) for column in range(len(run.components)))]
    right = 100 * ablation.right(run, run.means(), classifier, 0, sets).mean(axis=1)
    return float(right[0]), right[0] - right[1:]


def to_csv(parts: Sequence[str], names: Sequence[str], columns: Sequence[str], added: np.ndarray,
           lost: np.ndarray) -> str:
    """A line for each component: its name, the accuracy lost without it [c], and what it adds [c, columns]."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["part", "name", "accuracy_lost", *columns])
    writer.writerows([part, name, loss, *row] for part, name, loss, row in zip(parts, names, lost, added.tolist()))
    return text.getvalue()
