"""Soft shares: as zero-shot variance shares, but an image belongs to all values of an attribute at once, by a softmax
of its scores; a share is the adjusted R2 of a regression on these memberships. Where an attribute's texts cover few of
the values that images have, images between them still tell heads apart."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from utils.analysis.names import attributes
from utils.analysis.names.shares import JACKKNIFE, SHUFFLES, Shares, chunks
from utils.cli import UserError
from utils.runs.files import blocks
from utils.runs.run import Run

SHARPNESS = 6.0  # of the softmax: by how much a score's standard deviation is multiplied
TINY = 1e-10     # of the largest eigenvalue, below which memberships say nothing of their own


def scores(run: Run, texts: Mapping[str, np.ndarray], columns: range, seed: int = 0,
           again: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
    """The soft share [a, c] of each attribute, whose embeddings are `texts` [m, d], in what components write."""
    return explain(run, texts, columns, seed, parts=1, shuffles=0).plain


def explain(run: Run, texts: Mapping[str, np.ndarray], columns: range, seed: int = 0, parts: int = JACKKNIFE,
            shuffles: int = SHUFFLES) -> Shares:
    """The soft shares of components, by their columns, with what shares.py gives beside them for answers. Errors and
    partial shares are NaN with one of `parts` of the images. Raises UserError where there are too few images for the
    values of an attribute."""
    member, images = np.concatenate(list(memberships_of(run, texts).values()), axis=1), len(run)
    ends, rng = np.cumsum([0, *map(len, texts.values())]), np.random.default_rng(seed)
    owns = [np.arange(start, stop) for start, stop in zip(ends, ends[1:])]
    shuffled = [member[rng.permutation(images)] for _ in range(shuffles)]
    part = rng.permutation(images) % min(parts, images)
    some = [np.flatnonzero(part == j) for j in range(part.max() + 1)]
    grams, totals = (np.stack(own) for own in zip(*((member[rows].T @ member[rows], member[rows].sum(axis=0))
                                                    for rows in some)))
    gram, total = grams.sum(axis=0), totals.sum(axis=0)
    plain = [_regression(gram, total, images, own) for own in owns]
    without, joint = [], []
    if parts > 1:
        without = [[_regression(gram - g, total - t, images - len(rows), own) for own in owns]
                   for g, t, rows in zip(grams, totals, some)]
        joint = [_regression(gram, total, images, np.setdiff1d(np.arange(ends[-1]), own)) for own in ([], *owns)]
    for name, of_all in zip(texts, zip(plain, *without)):
        if not all(one.free for one in of_all):
            raise UserError(f"{name}: {images} images are too few to tell {len(texts[name])} soft values apart; give "
                            "more images or fewer texts, or leave --labels soft out")
    found = [_of_some(run, own, member, shuffled, some, plain, without, joint)
             for own in chunks(run, columns, (len(some) + shuffles + 3) * ends[-1])]
    stacked = [np.concatenate(own, axis=-1) for own in zip(*(entry[:5] for entry in found))]
    values = np.split(np.concatenate([entry[5] for entry in found], axis=-1), ends[1:-1])
    return Shares(list(texts), *stacked, values, [own for entry in found for own in entry[6]])


def memberships_of(run: Run, texts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """How far each image belongs to each value of each attribute [b, m], whose embeddings are `texts` [m, d]."""
    whole = attributes.representations(run)
    covariance = whole.T @ whole / len(run)
    spreads = {name: np.sqrt(np.einsum("md,de,me->m", own, covariance, own).mean()) for name, own in texts.items()}
    return {name: memberships(whole @ own.T, spreads[name]) for name, own in texts.items()}


def memberships(scores: np.ndarray, spread: float) -> np.ndarray:
    """How far images belong to each value [b, m], which sums to 1, from centred scores and their standard deviation."""
    sharp = SHARPNESS * scores.astype(np.float64) / (spread or 1.0)
    sharp = np.exp(sharp - sharp.max(axis=1, keepdims=True))
    return sharp / sharp.sum(axis=1, keepdims=True)


@dataclass
class _Regression:
    """On the memberships of some values, from sums by membership alone."""
    own: np.ndarray         # [m]: which values
    totals: np.ndarray      # [m]: memberships, summed over images
    directions: np.ndarray  # [r, m]: of centred memberships, orthonormal over images
    images: int

    @property
    def free(self) -> int:
        """Degrees of freedom that are left; 0 where there are too few images."""
        return max(self.images - 1 - len(self.directions), 0)

    def share(self, sums: np.ndarray, whole: np.ndarray, squares: np.ndarray) -> np.ndarray:
        """The adjusted R2 [c] for components, from their sums by membership [M, c, k], their sum [c, k] and squares
        [c] over images; 0 for a constant component, and NaN where there are too few images."""
        variation = squares - np.square(whole).sum(axis=-1) / self.images
        varies = variation > 1e-12 * (squares + np.finfo(float).tiny)
        centred = sums[self.own] - self.totals[:, None, None] * whole / self.images
        explained = np.square(np.tensordot(self.directions, centred, 1)).sum(axis=(0, 2))
        share = 1 - (1 - explained / np.where(varies, variation, 1)) * (self.images - 1) / (self.free or np.nan)
        return np.where(varies, share, 0.0)


def _regression(gram: np.ndarray, total: np.ndarray, images: int, own: np.ndarray) -> _Regression:
    """The regression on some memberships, from the Gram matrix [M, M] and totals [M] of all."""
    values, vectors = np.linalg.eigh((gram - np.outer(total, total) / images)[np.ix_(own, own)])
    there = values > TINY * max(values.max(initial=0), 1e-30)
    return _Regression(own, total[own], vectors[:, there].T / np.sqrt(values[there])[:, None], images)


def _of_some(run: Run, columns: list[int], member: np.ndarray, shuffled: Sequence[np.ndarray],
             parts: Sequence[np.ndarray], plain: list[_Regression], without: list[list[_Regression]],
             joint: list[_Regression]) -> tuple:
    """The fields of `Shares` for some columns, values of all attributes together."""
    origin = run.inner(slice(1), columns)[0].astype(np.float64)  # taken off, so that squares keep their digits
    sums = np.zeros((len(parts), member.shape[1], *origin.shape))
    by_chance = np.zeros((len(shuffled), member.shape[1], *origin.shape))
    whole, squares = np.zeros((len(parts), *origin.shape)), np.zeros((len(parts), len(origin)))
    for j, rows in enumerate(parts):
        for block in blocks(len(rows)):
            x = run.inner(rows[block], columns).astype(np.float64) - origin
            whole[j] += x.sum(axis=0)
            squares[j] += np.square(x).sum(axis=(0, 2))
            sums[j] += np.tensordot(member[rows[block]], x, (0, 0))
            for own, other in zip(by_chance, shuffled):
                own += np.tensordot(other[rows[block]], x, (0, 0))
    all_of = sums.sum(axis=0), whole.sum(axis=0), squares.sum(axis=0)
    share = np.stack([one.share(*all_of) for one in plain])
    chance = np.max([[one.share(own, *all_of[1:]) for one in plain] for own in by_chance], axis=0) if len(
        by_chance) else np.zeros_like(share)
    error = partial = np.full_like(share, np.nan)
    if without:
        left = np.array([[one.share(*(total - part[j] for total, part in zip(all_of, (sums, whole, squares))))
                          for one in regressions] for j, regressions in enumerate(without)])
        error = np.sqrt((len(left) - 1) * np.square(left - left.mean(axis=0)).mean(axis=0))
        everything, *others = (one.share(*all_of) for one in joint)
        partial = everything - np.stack(others)
    images, total = plain[0].images, member.sum(axis=0)
    variance = np.maximum(all_of[2] - np.square(all_of[1]).sum(axis=-1) / images, 0) / images
    means = (all_of[0] - total[:, None, None] * all_of[1] / images) / np.sqrt(total)[:, None, None]
    positions = []
    for c, a in enumerate(share.argmax(axis=0)):
        own = plain[a].own
        along = means[own, c] @ np.linalg.svd(means[own, c], full_matrices=False)[2][0] / np.sqrt(total[own])
        positions.append(along * (np.sign(along[np.abs(along).argmax()]) or 1))
    return share, partial, error, chance, variance, np.square(means).sum(axis=-1), positions
