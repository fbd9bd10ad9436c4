"""Partial shares: as zero-shot variance shares, but an attribute counts with what it adds to all others, so that one
whose answers follow those of another has no part in what is due to that.
"""
from collections.abc import Mapping

import numpy as np

from utils.analysis.names import attributes, shares
from utils.runs.run import Run


def scores(run: Run, texts: Mapping[str, np.ndarray], columns: range, seed: int = 0,
           again: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
    """The partial share [a, c] of each attribute, whose embeddings are `texts` [m, d], in what components write."""
    sizes = {name: len(own) for name, own in texts.items()}
    return shares.explain(run, attributes.labels(run, texts), sizes, columns, seed).partial
