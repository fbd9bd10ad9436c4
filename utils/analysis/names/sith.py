"""SITH, or COMP on the singular vectors of W_V W_O (arXiv 2603.24653): no image is read. Each direction that a head can
write, in the joint space, is made a non-negative sum of few texts; the head is named after the attribute that these are
about, each direction counted with its squared singular value, in both signs."""
from collections.abc import Mapping

import numpy as np

from utils.cli import UserError
from utils.models import loading
from utils.runs.run import Run

VECTORS, TEXTS, COHERENCE = 10, 5, 0.3  # of a head, of a vector, and how far texts should be alike


def scores(run: Run, texts: Mapping[str, np.ndarray], columns: range, seed: int = 0,
           again: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
    """The weight [a, c] of the texts of each attribute. Raises UserError for a mapped run, and for a model whose heads
    are not known before their output projection."""
    import torch

    if not run.manifest or "text_model" in run.manifest:
        raise UserError(f"{run.place.model}: SITH reads a CLIP's own weights, and needs the manifest that names them")
    option, pretrained, first = loading.options_of(run.place.model, run.manifest["pretrained"])
    model = loading.load_same(run.manifest, option, pretrained, torch.device("cpu"), first)
    owner = np.repeat(np.arange(len(texts)), [len(own) for own in texts.values()])
    pool = np.concatenate(list(texts.values())).astype(np.float64)
    pool /= np.linalg.norm(pool, axis=1, keepdims=True)
    found = np.zeros((len(texts), len(columns)))
    for place, (values, vectors) in enumerate(written(model, [run.components[column] for column in columns])):
        for value, vector in zip(values[:VECTORS], vectors[:VECTORS]):
            for sign in (1, -1):
                picks, weights = comp(sign * vector, pool, TEXTS)
                total = weights.sum()
                if total > 0:
                    np.add.at(found[:, place], owner[picks], value ** 2 * weights / total)
    return found / np.maximum(found.sum(axis=0), 1e-30)


def written(model, heads: list):
    """For each head the singular values [k] of what it reads and writes, W_V W_O, and the unit directions [k, d] that
    it writes in the joint space: through the final norm's weight and the projection, without mean or deviation."""
    from utils.decompose.decomposer import Decomposer

    readout = Decomposer(model).readout().double().cpu().numpy()             # [l, h, k + 3, d]
    blocks = model.tower.transformer.resblocks
    for head in heads:
        attn, k = blocks[head.layer].attn, readout.shape[2] - 3
        width = attn.in_proj_weight.shape[1]
        rows = slice(2 * width + head.head * k, 2 * width + (head.head + 1) * k)
        value = attn.in_proj_weight[rows].detach().double().cpu().numpy()                      # [k, width]
        write = attn.out_proj.weight[:, head.head * k:(head.head + 1) * k].detach().double().cpu().numpy()  # [width, k]
        _, values, right = np.linalg.svd(value.T @ write.T, full_matrices=False)               # [width, width]
        # A direction that is written, as a sum of the columns of W_O, and with these carried to the joint space.
        inside = right[:k] @ np.linalg.pinv(write.T)                                           # [k, k]
        vectors = inside @ readout[head.layer, head.head, :k]
        yield values[:k], vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)


def comp(vector: np.ndarray, pool: np.ndarray, number: int) -> tuple[list[int], np.ndarray]:
    """A unit vector [d] as a non-negative sum of at most `number` unit texts [m, d]: the texts, and their weights. The
    next one has the largest product with what is left, and COHERENCE of its mean similarity to those before."""
    from scipy.optimize import nnls

    picks, weights, left = [], np.zeros(0), vector
    for _ in range(number):
        worth = pool @ left
        if worth.max() <= 0:
            break
        if picks:
            worth = worth + COHERENCE * (pool @ pool[picks].T).mean(axis=1)
        worth[picks] = -np.inf
        picks.append(int(worth.argmax()))
        weights = nnls(pool[picks].T, vector)[0]
        left = vector - weights @ pool[picks]
    return picks, weights
