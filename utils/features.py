"""How much a component has to do with a feature, which is a set of texts (arXiv 2406.01583, section 4).

Letters of shapes: b images, c components, d width of the joint space, m texts.
"""
from collections.abc import Iterable, Sequence

import numpy as np

from utils import models, zeroshot
from utils.script import UserError

CONSTANT = 16 * np.finfo(np.float32).eps  # spread over images, relative to the size, that is rounding noise
TEXTS_AT_ONCE = 256


def feature_scores(terms: Iterable[np.ndarray], features: Sequence[np.ndarray]) -> np.ndarray:
    """How much each component has to do with each feature: [features, c], from -1 to 1.

    `terms` are blocks [b, c, d] of components whose sum is the whole representation, `features` the embeddings [m, d] of
    each one's texts. For each direction of the orthonormalised texts (QR), the correlation over images between the
    component's score and the whole's; averaged over directions. What does not vary over images counts 0.
    """
    directions = np.concatenate([np.linalg.qr(np.asarray(texts, np.float64).T)[0] for texts in features], axis=1)  # [d, r]
    images, first, sums = 0, None, None
    for block in terms:
        scores = np.asarray(block, np.float64) @ directions                          # [b, c, r]
        first = scores[0].copy() if first is None else first
        scores -= first  # sums of squares about a typical value lose no digits
        whole = scores.sum(axis=1, keepdims=True)
        here = [part.sum(axis=0) for part in (scores, whole, scores ** 2, whole ** 2, scores * whole)]
        sums = here if sums is None else [total + part for total, part in zip(sums, here)]
        images += len(scores)
    own, whole, own_square, whole_square, product = (total / images for total in sums)

    def deviation(mean: np.ndarray, square: np.ndarray, start: np.ndarray) -> np.ndarray:
        variance = np.maximum(square - mean ** 2, 0)
        return np.where(variance > CONSTANT ** 2 * (variance + (start + mean) ** 2), np.sqrt(variance), np.inf)

    correlations = (product - own * whole) / deviation(own, own_square, first)       # [c, r]
    correlations /= deviation(whole, whole_square, first.sum(axis=0))
    ends = np.cumsum([min(np.shape(texts)) for texts in features])[:-1]
    return np.stack([part.mean(axis=1) for part in np.split(correlations, ends, axis=1)])


def embed(args, manifest: dict | None, features: Sequence[Sequence[str]], width: int) -> list[np.ndarray]:
    """Embeddings [m, d] of each feature's texts by the model whose texts go with the run.

    Raises UserError for other weights than the run's, and for more texts than there are directions.
    """
    for texts in features:
        if len(texts) > width:
            raise UserError(f"{len(texts)} texts span more than the {width} directions of the joint space; give fewer")
    clip = models.load_text_side(args, manifest)
    return [zeroshot.embed_texts(clip, texts, TEXTS_AT_ONCE) for texts in features]
