"""Soft shares: as zero-shot variance shares, but an image belongs to all values of an attribute at once, by a softmax
of its scores; a share is the adjusted R2 of a regression on these memberships. Where an attribute's texts cover few of
the values that images have, images between them still tell heads apart."""
from collections.abc import Mapping

import numpy as np

from utils.analysis.names import attributes
from utils.runs.files import blocks
from utils.runs.run import Run

SHARPNESS = 6.0  # of the softmax: by how much a score's standard deviation is multiplied
TINY = 1e-10     # of the largest eigenvalue, below which memberships say nothing of their own


def scores(run: Run, texts: Mapping[str, np.ndarray], columns: range, seed: int = 0,
           again: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
    """The soft share [a, c] of each attribute, whose embeddings are `texts` [m, d], in what components write."""
    whole, means = attributes.representations(run), run.means(list(columns)).astype(np.float64)
    spreads = {name: np.sqrt(np.einsum("md,de,me->m", own, whole.T @ whole / len(run), own).mean())
               for name, own in texts.items()}
    grams = {name: np.zeros((len(own), len(own))) for name, own in texts.items()}
    sums = {name: np.zeros((len(own), *means.shape)) for name, own in texts.items()}
    totals = {name: np.zeros(len(own)) for name, own in texts.items()}
    squares = np.zeros(len(columns))
    for block in blocks(len(run)):
        x = run.stack(block, list(columns)) - means
        squares += np.square(x).sum(axis=(0, 2))
        for name, own in texts.items():
            member = memberships(whole[block] @ own.T, spreads[name])                         # [b, m]
            grams[name] += member.T @ member
            totals[name] += member.sum(axis=0)
            sums[name] += np.tensordot(member, x, (0, 0))                                     # [m, c, d]
    found = []
    for name in texts:
        gram = grams[name] - np.outer(totals[name], totals[name]) / len(run)
        values, vectors = np.linalg.eigh(gram)
        there = values > TINY * max(values[-1], 1e-30)
        along = np.tensordot(vectors[:, there].T / np.sqrt(values[there])[:, None], sums[name], 1)
        share = np.square(along).sum(axis=(0, 2)) / np.where(squares > 0, squares, np.inf)
        free = len(run) - 1 - int(there.sum())
        found.append(np.where(squares > 0, 1 - (1 - share) * (len(run) - 1) / max(free, 1), 0.0))
    return np.stack(found)


def memberships(scores: np.ndarray, spread: float) -> np.ndarray:
    """How far images belong to each value [b, m], which sums to 1, from centred scores and their standard deviation."""
    sharp = SHARPNESS * scores.astype(np.float64) / (spread or 1.0)
    sharp = np.exp(sharp - sharp.max(axis=1, keepdims=True))
    return sharp / sharp.sum(axis=1, keepdims=True)
