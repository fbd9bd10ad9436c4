"""Component scores (arXiv 2406.01583): a head is named after the feature along whose texts it goes with the whole
representation the most."""
from collections.abc import Mapping

import numpy as np

from utils.analysis import component_scores
from utils.runs.run import Run


def scores(run: Run, texts: Mapping[str, np.ndarray], columns: range, seed: int = 0,
           again: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
    """The score [a, c] of each component for each attribute's texts, from -1 to 1."""
    return component_scores.feature_scores(run.stacks("scores"), list(texts.values()))[:, list(columns)]
