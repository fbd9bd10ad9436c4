"""Shares of variance by attribute, from the group that each image belongs to: plain, partial, how sure they are, and
which groups a component parts.

Plain: epsilon squared, as in utils/analysis/truth.py. Partial: what the attribute adds to the adjusted R2 of a
regression on the groups of all attributes. A component's sums by group are all that is needed; they are made in one
reading, in each head's own width where the storage keeps it.
"""
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from utils.runs.files import BLOCK
from utils.runs.run import Run

JACKKNIFE = 20        # parts of the images, each left out once
SHUFFLES = 3          # of the images' groups, whose largest share is what chance reaches
MEMORY = 64 * 2**20   # bytes of sums at a time


@dataclass
class Shares:
    """Of each attribute (first axis) and component (last axis)."""
    attributes: list[str]
    plain: np.ndarray            # [a, c]
    partial: np.ndarray          # [a, c]; NaN where there are too few images for so many groups
    error: np.ndarray            # [a, c]: standard error of `plain` over images, by the jackknife
    chance: np.ndarray           # [a, c]: the largest plain share of SHUFFLES shuffles
    variance: np.ndarray         # [c]: over images, summed over the joint space
    values: list[np.ndarray]     # of each attribute [m, c]: what each group has of the variance, n_g ||mean||^2
    positions: list[np.ndarray]  # of each component [m]: groups of its first attribute, where they part most


def explain(run: Run, groups: Mapping[str, np.ndarray], sizes: Mapping[str, int], columns: range,
            seed: int = 0) -> Shares:
    """The shares of components, by their columns, that the attributes explain.

    `groups` holds each image's group [b] by attribute, below its `sizes`; a group may be empty.
    """
    images, ends = len(run), np.cumsum([0, *sizes.values()])
    offsets, rng = ends[:-1], np.random.default_rng(seed)
    codes = np.stack([groups[name] for name in sizes], axis=1) + offsets                    # [b, a]
    shuffled = [rng.permuted(codes, axis=0) + (i + 1) * ends[-1] for i in range(SHUFFLES)]
    codes = np.concatenate([codes, *shuffled], axis=1)
    part = rng.permutation(images) % min(JACKKNIFE, images)
    members = [np.flatnonzero(part == j) for j in range(part.max() + 1)]
    counts = np.stack([np.bincount(codes[rows, :len(sizes)].ravel(), minlength=ends[-1]) for rows in members])
    regression = _regression(codes[:, :len(sizes)], ends)
    found = [_of_some(run, codes, members, counts, offsets, regression, some)
             for some in chunks(run, columns, (2 + SHUFFLES) * ends[-1] + np.count_nonzero(counts))]
    stacked = [np.concatenate(parts, axis=-1) for parts in zip(*(entry[:5] for entry in found))]
    values = [np.concatenate(parts, axis=-1) for parts in zip(*(entry[5] for entry in found))]
    return Shares(list(sizes), *stacked, values, [own for entry in found for own in entry[6]])


def chunks(run: Run, columns: range, rows: int) -> Iterator[list[int]]:
    """Columns, some at a time: heads apart from other components, and no more than the sums have room for."""
    for own in ([c for c in columns if c < len(run.heads)], [c for c in columns if c >= len(run.heads)]):
        if own:
            width = run.inner(slice(1), own[:1]).shape[-1]
            step = max(1, MEMORY // (8 * rows * width))
            yield from (own[start:start + step] for start in range(0, len(own), step))


@dataclass
class _Regression:
    """On the groups of all attributes, each attribute's first one left out, since the others say it all."""
    kept: np.ndarray       # [g]: the groups that stand in it
    inverse: np.ndarray    # [g, g]: of their centred Gram matrix
    places: list[slice]    # of each attribute, among them
    degrees: list[int]     # the rank of all, then without each attribute

    def partial(self, centred: np.ndarray, total: np.ndarray, images: int) -> np.ndarray:
        """What each attribute adds to the adjusted R2 [a, c], from sums by group about the mean [m, c, k], and total
        squares [c]."""
        b = centred[self.kept]
        beta = np.tensordot(self.inverse, b, 1)                                              # [g, c, k]
        explained = [np.einsum("gck,gck->c", b, beta)]
        for own in self.places:
            solved = np.linalg.solve(self.inverse[own, own], beta[own].reshape(own.stop - own.start, b[0].size))
            explained.append(explained[0] - np.einsum("gck,gck->c", beta[own], solved.reshape(beta[own].shape)))
        adjusted = [1 - (1 - part / total) * (images - 1) / (images - 1 - degree) if images - 1 > degree
                    else np.full(len(total), np.nan) for part, degree in zip(explained, self.degrees)]
        return adjusted[0] - np.stack(adjusted[1:])


def _regression(codes: np.ndarray, ends: np.ndarray) -> _Regression:
    """The regression on groups [b, a], numbered through, whose attributes end at `ends`."""
    import scipy.sparse

    images = len(codes)
    design = scipy.sparse.csr_matrix((np.ones(codes.size), codes.ravel(), np.arange(0, codes.size + 1, codes.shape[1])),
                                     shape=(images, ends[-1]))
    counts = np.bincount(codes.ravel(), minlength=ends[-1])
    there = counts > 0
    there[[start + int(there[start:stop].argmax()) for start, stop in zip(ends, ends[1:])]] = False
    kept = np.flatnonzero(there)
    stops = np.searchsorted(kept, ends)
    places = [slice(int(start), int(stop)) for start, stop in zip(stops, stops[1:])]
    gram = (design.T @ design).toarray()[np.ix_(kept, kept)] - np.outer(counts[kept], counts[kept]) / images
    tiny = 1e-9 * images  # groups that follow from others count next to nothing
    inverse = np.linalg.inv(gram + tiny * np.eye(len(kept)))
    degrees = [len(kept), *(len(kept) - (own.stop - own.start) for own in places)]
    if inverse.diagonal().max(initial=0) > 0.01 / tiny:
        without = [np.delete(np.arange(len(kept)), own) for own in places]
        degrees = [np.linalg.matrix_rank(gram[np.ix_(own, own)], tol=10 * tiny, hermitian=True) if len(own) else 0
                   for own in (np.arange(len(kept)), *without)]
    return _Regression(kept, inverse, places, degrees)


def _second(offsets: np.ndarray) -> int | None:
    """Where the second attribute's groups begin: those of the first hold every image once."""
    return offsets[1] if len(offsets) > 1 else None


def _plain(of_sums: np.ndarray, whole: np.ndarray, squares: np.ndarray, counts: np.ndarray,
           offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Epsilon squared [a, c] and variances [c], from the squared lengths `of_sums` [m, c] of sums by group, the sum
    `whole` [c, k] and the `squares` [c] of all images, and the `counts` [m] of groups."""
    images = counts[:_second(offsets)].sum()
    ground = np.square(whole).sum(axis=-1) / images
    total = np.maximum(squares - ground, 0)
    of_groups = of_sums / np.maximum(counts, 1)[:, None]
    between = np.add.reduceat(of_groups, offsets, axis=0) - ground
    there = np.add.reduceat(counts > 0, offsets, dtype=int)[:, None]
    varies = total > 1e-12 * (squares + np.finfo(float).tiny)  # what is left of a constant one is rounding
    share = 1 - (1 - between / np.where(varies, total, 1)) * (images - 1) / np.maximum(images - there, 1)
    return np.where(varies & (images > there), share, 0.0), np.where(varies, total / images, 0.0)


def _of_some(run: Run, codes: np.ndarray, members: list[np.ndarray], counts: np.ndarray, offsets: np.ndarray,
             regression: _Regression, columns: list[int]) -> tuple:
    """The fields of `Shares` for some columns."""
    import scipy.sparse

    images, groups = len(run), counts.shape[1]
    origin = run.inner(slice(1), columns).astype(np.float64)  # taken off, so that squares keep their digits
    shape = origin.shape[1:]
    first = slice(_second(offsets))
    sums, squares = np.zeros(((1 + SHUFFLES) * groups, *shape)), np.zeros((len(members), shape[0]))
    parts = []  # of each part of the images: the groups that it touches, and its sums by them
    for j, rows in enumerate(members):
        of_part = np.zeros((groups, *shape))
        for start in range(0, len(rows), BLOCK):
            some = rows[start:start + BLOCK]
            x = run.inner(some, columns).astype(np.float64) - origin
            squares[j] += np.square(x).sum(axis=(0, 2))
            own = codes[some]
            design = scipy.sparse.csr_matrix((np.ones(own.size), own.ravel(), np.arange(0, own.size + 1, own.shape[1])),
                                             shape=(len(some), len(sums)))
            touched = np.unique(own)
            added = (design[:, touched].T @ x.reshape(len(some), -1)).reshape(-1, *shape)
            sums[touched] += added
            true = touched < groups
            of_part[touched[true]] += added[true]
        touched = np.flatnonzero(counts[j])
        parts.append((touched, of_part[touched], of_part[first].sum(axis=0)))
    number_of, all_squares = counts.sum(axis=0), squares.sum(axis=0)
    whole, *shuffled = np.split(sums, 1 + SHUFFLES)
    of_sums, of_all = np.square(whole).sum(axis=-1), whole[first].sum(axis=0)
    plain, variance = _plain(of_sums, of_all, all_squares, number_of, offsets)
    without = [plain]
    if len(members) > 1:
        without = []
        for j, (touched, of_part, sum_of_part) in enumerate(parts):
            left = of_sums.copy()
            left[touched] = np.square(whole[touched] - of_part).sum(axis=-1)
            without.append(_plain(left, of_all - sum_of_part, all_squares - squares[j], number_of - counts[j],
                                  offsets)[0])
    without = np.stack(without)
    error = np.sqrt((len(without) - 1) * np.square(without - without.mean(axis=0)).mean(axis=0))
    chance = np.max([_plain(np.square(part).sum(axis=-1), of_all, all_squares, number_of, offsets)[0]
                     for part in shuffled], axis=0)

    centred = whole - number_of[:, None, None] * of_all / images
    varies = variance > 0
    partial = np.where(varies, regression.partial(centred, np.where(varies, images * variance, 1), images), 0.0)
    means = centred / np.sqrt(np.maximum(number_of, 1))[:, None, None]            # root n_g times the group's mean
    values = np.split(np.square(means).sum(axis=-1), offsets[1:])
    positions = []
    for c, a in enumerate(plain.argmax(axis=0)):
        own = slice(offsets[a], [*offsets, groups][a + 1])
        axis = np.linalg.svd(means[own, c], full_matrices=False)[2][0]
        along = means[own, c] @ axis / np.sqrt(np.maximum(number_of[own], 1))
        positions.append(along * (np.sign(along[np.abs(along).argmax()]) or 1))
    return plain, partial, error, chance, variance, values, positions
