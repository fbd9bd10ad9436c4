"""TextSpan on a pool whose common mean is taken off and whose texts then have unit length: their lengths and what they
share count no more."""
from collections.abc import Mapping

import numpy as np

from utils.analysis.names import textspan
from utils.runs.run import Run


def scores(run: Run, texts: Mapping[str, np.ndarray], columns: range, seed: int = 0,
           again: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
    """Shares [a, c] as of textspan.py."""
    return textspan.scores(run, centred(texts), columns, seed)


def centred(texts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The texts of each attribute [m, d], minus the mean of all, each of unit length."""
    pool = np.concatenate(list(texts.values())).astype(np.float64)
    pool -= pool.mean(axis=0)
    pool /= np.maximum(np.linalg.norm(pool, axis=1, keepdims=True), 1e-12)
    return dict(zip(texts, np.split(pool, np.cumsum([len(own) for own in texts.values()])[:-1])))
