"""Scores: how much a component has to do with a feature, which is a set of texts (arXiv 2406.01583, section 4), and how
far to trust that: against rankings of images, and against the truth where it is known.

A file of features is YAML with lines `feature: [text, text, ...]`, such as configs/features.yaml.
"""
from collections.abc import Iterable, Sequence

import numpy as np
from tqdm import tqdm

from utils.analysis import alignment, zeroshot
from utils.inputs import UserError, read_yaml
from utils.models.loading import load_text_side
from utils.models.names import TIMM
from utils.runs.files import Place, blocks
from utils.runs.run import SMALL_BLOCK, Run

CONSTANT = 16 * np.finfo(np.float32).eps  # spread over images, relative to the size, that is rounding noise
TEXTS_AT_ONCE = 256
RANKED = 6400  # images, of which components make rankings, as published


def read(path: str) -> dict[str, list[str]]:
    """The texts of each feature of a file. Raises UserError for anything but lists of different texts."""
    found = read_yaml(path)
    if not found:
        raise UserError(f"{path}: names no feature; write lines such as 'color: [red, green]'")
    for name, texts in found.items():
        if not isinstance(texts, list) or not texts or not all(
                isinstance(text, str) and text.strip() for text in texts):
            raise UserError(f"{path}: {name}: should be a list of texts, such as [red, green]; quote those that are no "
                            "text for YAML, such as 'yes' and '4'")
        if len(set(texts)) < len(texts):
            raise UserError(f"{path}: {name}: repeats {max(texts, key=texts.count)!r}; remove one of them")
    return {str(name): texts for name, texts in found.items()}


def feature_scores(terms: Iterable[np.ndarray], features: Sequence[np.ndarray]) -> np.ndarray:
    """How much each component has to do with each feature: [features, c], from -1 to 1.

    `terms` are blocks [b, c, d] of all components, `features` the embeddings [m, d] of each one's texts. For each
    direction of the orthonormalised texts (QR), the correlation over images between the component's score and the
    whole's; averaged over directions. What does not vary over images counts 0.
    """
    bases = [np.linalg.qr(np.asarray(texts, np.float64).T)[0] for texts in features]
    directions = np.concatenate(bases, axis=1)                                       # [d, r]
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


def embed(manifest: dict | None, features: Sequence[Sequence[str]], width: int, model: str, pretrained: str | None,
          device, seed: int) -> list[np.ndarray]:
    """Embeddings [m, d] of each feature's texts by the model whose texts go with the run of `model`.

    Raises UserError for a run of a model without texts, for other weights than the run's, and for more texts than there
    are directions.
    """
    if manifest and manifest["model"].startswith(TIMM):
        raise UserError(f"--model {manifest['model']} has no text side; map it to a CLIP with compute_alignment.py")
    for texts in features:
        if len(texts) > width:
            raise UserError(f"{len(texts)} texts span more than the {width} directions of the joint space; give fewer")
    clip = load_text_side(manifest, model, pretrained, device, seed)
    found = zeroshot.embed_texts(clip, [text for texts in features for text in texts], TEXTS_AT_ONCE)
    return np.split(found, np.cumsum([len(texts) for texts in features])[:-1])


def target(run: Run) -> Run:
    """The run whose whole representation ranks images: of a mapped run that of the CLIP it was mapped to, where its
    arrays are in the folder, and otherwise the run itself.

    Raises UserError where the arrays of the CLIP are of other images or weights.
    """
    clip, manifest = run.manifest.get("text_option"), run.manifest
    if clip is None or not Place(run.place.folder, run.place.dataset, clip, run.place.split).manifest.is_file():
        return run
    found = Run.open(run.place.folder, run.place.dataset, clip, run.place.split, needs="components")
    alignment.same_images(run, found)
    if found.manifest["weights_sha256"] != manifest["text_weights_sha256"]:
        raise UserError(f"{run.place.folder}: the arrays of {found.place.model_name} have other weights "
                        f"({found.manifest['pretrained']}) than those that {manifest['model']} was mapped to; make "
                        "either again")
    return found


def agreements(run: Run, whole: Run, features: Sequence[np.ndarray]) -> tuple[np.ndarray, int]:
    """How far each component ranks images as a representation does: [features, c], from -1 to 1, and the number of
    images.

    Images are ranked by their inner product with a text, for the component and for the sum of the terms of `whole`; the
    Spearman correlation of the two rankings over images is averaged over the texts of a feature, embeddings [m, d].
    What ranks all images alike counts 0. At most 6,400 images are taken, evenly spaced; of them all inner products are
    in memory, 4 bytes for each image, component and text.
    """
    texts = np.concatenate(features).astype(np.float32)
    images = len(run)
    rows = np.linspace(0, images - 1, min(images, RANKED)).round().astype(int)
    own, wanted = None, np.empty((len(texts), len(rows)), np.float32)
    for block in blocks(len(rows), SMALL_BLOCK, "rankings"):
        products = run.stack(rows[block]) @ texts.T                               # [b, c, m]
        own = np.empty((len(texts), products.shape[1], len(rows)), np.float32) if own is None else own
        own[..., block] = products.transpose(2, 1, 0)
        wanted[:, block] = texts @ whole.stack(rows[block]).sum(axis=1).T
    pairs = tqdm(zip(own, wanted), "texts", len(texts), unit="text", delay=3, leave=False)
    found = np.stack([_rank_correlations(*pair) for pair in pairs])                      # [m, c]
    ends = np.cumsum([len(texts) for texts in features])[:-1]
    return np.stack([part.mean(axis=0) for part in np.split(found, ends)]), len(rows)


def _rank_correlations(many: np.ndarray, one: np.ndarray) -> np.ndarray:
    """Spearman correlations [c] of rows [c, b] with one row [b]; 0 where either is constant."""
    from scipy.stats import rankdata

    ranks, other = (rank - rank.mean(axis=-1, keepdims=True) for rank in (rankdata(many, axis=1), rankdata(one)))
    size = np.linalg.norm(ranks, axis=1) * np.linalg.norm(other)
    return np.divide(ranks @ other, size, out=np.zeros(len(ranks)), where=size > 0)


def rank_correlation(scores: np.ndarray, others: np.ndarray) -> dict:
    """Spearman correlation over components between scores [c] for a feature and other figures [c] of the same
    components.

    Components that do not vary along the feature's texts, whose score is exactly 0, are left out and counted as
    constant. The correlation is None where fewer than two components are left, or either figure is the same for all.
    """
    from scipy.stats import spearmanr

    kept = scores != 0
    known = all(len(np.unique(values[kept])) > 1 for values in (scores, others))
    return {"spearman": float(spearmanr(scores[kept], others[kept]).statistic) if known else None,
            "components": int(kept.sum()), "constant": int((~kept).sum())}
