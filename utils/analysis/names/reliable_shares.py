"""Reliable shares: zero-shot variance shares, each divided by how far the CLIP's answers to the attribute agree with
those to the same texts in another wording (Cohen's kappa), since answers that are half noise show half of what there
is."""
from collections.abc import Mapping

import numpy as np

from utils.analysis.names import attributes, zero_shot_shares
from utils.runs.run import Run

LEAST = 0.2  # agreement that shares are divided by, so that pure noise is not made large


def scores(run: Run, texts: Mapping[str, np.ndarray], columns: range, seed: int = 0,
           again: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
    """The corrected share [a, c] of each attribute; without `again` as of zero_shot_shares.py."""
    return zero_shot_shares.scores(run, texts, columns, seed) / agreements(run, texts, again)[:, None]


def agreements(run: Run, texts: Mapping[str, np.ndarray], again: Mapping[str, np.ndarray] | None) -> np.ndarray:
    """How far answers agree with those in another wording [a], from LEAST to 1."""
    if again is None:
        return np.ones(len(texts))
    said = attributes.quality(attributes.representations(run), texts, again)[1]
    return np.clip([own["agreement"] for own in said.values()], LEAST, 1)
