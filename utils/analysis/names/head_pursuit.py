"""Head Pursuit (arXiv 2510.21518): simultaneous orthogonal matching pursuit. Of a head's terms, centred over images,
the text with the largest sum of absolute products with what is left is picked, all picked ones are fitted anew by
least squares, and so on; the head is named after the attribute whose texts explain the most."""
from collections.abc import Mapping

import numpy as np

from utils.runs.files import blocks
from utils.runs.run import Run

TEXTS = 10  # of a head


def scores(run: Run, texts: Mapping[str, np.ndarray], columns: range, seed: int = 0,
           again: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
    """The share of variance [a, c] that the texts of each attribute explain, each beyond those before it."""
    owner = np.repeat(np.arange(len(texts)), [len(own) for own in texts.values()])
    pool = np.concatenate(list(texts.values())).astype(np.float32)
    pool /= np.linalg.norm(pool, axis=1, keepdims=True)
    found = np.zeros((len(texts), len(columns)))
    for place, column in enumerate(columns):
        x = np.concatenate([run.stack(block, [column])[:, 0] for block in blocks(len(run))])
        picks, shares = pursue(x - x.mean(axis=0), pool, TEXTS)
        np.add.at(found[:, place], owner[picks], shares)
    return found


def pursue(x: np.ndarray, pool: np.ndarray, number: int) -> tuple[list[int], list[float]]:
    """The texts that are picked for centred terms x [b, d] from unit texts [m, d], and what each adds to the share of
    the variance that is explained. Fewer where nothing is left."""
    left, total, picks, shares = x, np.square(x).sum(), [], []
    while len(picks) < min(number, x.shape[1], len(pool)) and np.square(left).sum() > 1e-12 * total > 0:
        products = np.abs(left @ pool.T).sum(axis=0)
        products[picks] = -1
        picks.append(int(products.argmax()))
        before = np.square(left).sum()
        basis = np.linalg.qr(pool[picks].T)[0]
        left = x - (x @ basis) @ basis.T
        shares.append(float((before - np.square(left).sum()) / total))
    return picks, shares
