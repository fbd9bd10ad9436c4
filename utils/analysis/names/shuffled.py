"""Zero-shot variance shares of attributes that mean nothing: the texts of all are shuffled, and dealt out again."""
from collections.abc import Mapping

import numpy as np

from utils.analysis.names import zero_shot_shares
from utils.runs.run import Run


def scores(run: Run, texts: Mapping[str, np.ndarray], columns: range, seed: int = 0,
           again: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
    """Shares [a, c] as of zero_shot_shares.py, each attribute with as many texts as before."""
    mixed = np.random.default_rng(seed).permutation(np.concatenate(list(texts.values())))
    parts = np.split(mixed, np.cumsum([len(own) for own in texts.values()])[:-1])
    return zero_shot_shares.scores(run, dict(zip(texts, parts)), columns, seed)
