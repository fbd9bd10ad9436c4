"""TextSpan, as published (arXiv 2310.05916): a head is named after the attribute that its texts are about, each counted
with its share of the head's variance."""
from collections.abc import Mapping

import numpy as np

from utils.analysis import textspan
from utils.runs.run import Run

TEXTS, RANK = 10, 80  # of a head


def scores(run: Run, texts: Mapping[str, np.ndarray], columns: range, seed: int = 0,
           again: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
    """The share of variance [a, c] that the texts of each attribute explain, of the first that TextSpan picks."""
    import torch

    owner = np.repeat(np.arange(len(texts)), [len(own) for own in texts.values()])
    pool = torch.from_numpy(np.concatenate(list(texts.values()))).double()
    found = np.zeros((len(texts), len(columns)))
    for place, column in enumerate(columns):
        mean, second = run.moments([column])
        span = textspan.text_span(mean[0], second[0], pool, TEXTS, RANK, np.finfo(run.dtype).eps)
        np.add.at(found[:, place], owner[span.picks], span.shares)
    return found
