"""Reliable soft shares: soft shares, divided by the agreement of answers as in reliable_shares.py."""
from collections.abc import Mapping

import numpy as np

from utils.analysis.names import reliable_shares, soft_shares
from utils.runs.run import Run


def scores(run: Run, texts: Mapping[str, np.ndarray], columns: range, seed: int = 0,
           again: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
    """The corrected soft share [a, c] of each attribute; without `again` as of soft_shares.py."""
    return soft_shares.scores(run, texts, columns, seed) / reliable_shares.agreements(run, texts, again)[:, None]
