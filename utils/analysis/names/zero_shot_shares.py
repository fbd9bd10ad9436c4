"""Zero-shot variance shares: a head is named after the attribute whose values, as the CLIP itself answers them for each
image, part most of the variance of what the head writes. Nothing is fitted, and no label is read.
"""
from collections.abc import Mapping

import numpy as np

from utils.analysis import truth
from utils.analysis.names import attributes
from utils.runs.run import Run


def scores(run: Run, texts: Mapping[str, np.ndarray], columns: range, seed: int = 0,
           again: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
    """The plain share [a, c] of each attribute, whose embeddings are `texts` [m, d], in what components write."""
    return np.stack(list(truth.explained(run, attributes.labels(run, texts), list(columns)).values()))
