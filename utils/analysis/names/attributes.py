"""Attributes: sets of texts that exclude each other, and what a CLIP itself answers for each image. Its answer to an
attribute, the pseudo-label, is the text whose score stands highest above its own mean over images.

A file of attributes is YAML with lines `attribute: [text, text, ...]`, such as configs/attributes/emoji.yaml.
"""
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from utils.analysis import component_scores, zeroshot
from utils.cli import UserError
from utils.models.loading import load_text_side
from utils.models.names import TIMM
from utils.runs.files import blocks
from utils.runs.run import Run

PARAPHRASE = "a picture of {}"  # a second wording, by which the answers to an attribute are checked
WEAK_AGREEMENT, WEAK_MARGIN, WEAK_ENTROPY = 0.6, 0.2, 0.3  # below which answers are near to noise


@dataclass
class Answers:
    """A CLIP's own answers to one attribute."""
    labels: np.ndarray   # [b]: of each image, an index into the attribute's texts
    entropy: float       # of the answers, as a share of that of answers that are spread evenly
    margin: float        # of the best text over the second, on average, in standard deviations of the scores


def read(path: str) -> dict[str, list[str]]:
    """The texts of each attribute of a file. Raises UserError for anything but lists of at least two different texts,
    and for a text of two attributes."""
    found = component_scores.read(path)
    owner: dict[str, str] = {}
    for name, texts in found.items():
        if len(texts) < 2:
            raise UserError(f"{path}: {name}: has one text; images can differ only between two or more")
        for text in texts:
            if text in owner:
                raise UserError(f"{path}: {name}: {text!r} is also a text of {owner[text]}; remove it from one of them")
            owner[text] = name
    return found


def embed(run: Run, attributes: Mapping[str, list[str]], pretrained: str | None, device, seed: int,
          templates: tuple[str, ...] = ("{}",)) -> list[dict[str, np.ndarray]]:
    """For each template the embeddings [m, d] of each attribute's texts, by the CLIP whose texts go with the run.

    Raises UserError for a run of a model without texts, and for other weights than the run's.
    """
    model = run.place.model
    if model.startswith(TIMM) and "text_model" not in (run.manifest or {}):
        raise UserError(f"--model {model} has no text side; map it to a CLIP with compute_alignment.py")
    clip = load_text_side(run.manifest, model, pretrained, device, seed)
    return [embed_with(clip, attributes, template) for template in templates]


def embed_with(clip, attributes: Mapping[str, list[str]], template: str = "{}") -> dict[str, np.ndarray]:
    """The embeddings [m, d] of each attribute's texts by a CLIP."""
    lines = [template.format(text) for texts in attributes.values() for text in texts]
    ends = np.cumsum([len(texts) for texts in attributes.values()])[:-1]
    parts = np.split(zeroshot.embed_texts(clip, lines, component_scores.TEXTS_AT_ONCE), ends)
    return dict(zip(attributes, parts))


def representations(run: Run) -> np.ndarray:
    """What the run's representations [b, d] are, each of unit length, minus their mean over images; float32."""
    found = np.empty((len(run), run.width), np.float32)
    for block in blocks(len(run)):
        found[block] = run.whole(block)
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return found - found.mean(axis=0, dtype=np.float64).astype(np.float32)


def answer(whole: np.ndarray, texts: np.ndarray) -> Answers:
    """The answers to one attribute: `whole` [b, d] as `representations` gives them, `texts` [m, d] its embeddings."""
    labels, margin, squares = np.empty(len(whole), np.int64), 0.0, 0.0
    for block in blocks(len(whole)):
        scores = whole[block] @ texts.T
        labels[block] = scores.argmax(axis=1)
        second, best = np.partition(scores, -2, axis=1)[:, -2:].T
        margin, squares = margin + float((best - second).sum()), squares + float(np.square(scores).sum())
    spread = np.sqrt(squares / (len(whole) * len(texts)))
    shares = np.bincount(labels, minlength=len(texts)) / len(labels)
    entropy = -(shares[shares > 0] * np.log(shares[shares > 0])).sum() / np.log(len(texts))
    return Answers(labels, float(entropy), float(margin / len(whole) / spread) if spread else 0.0)


def labels(run: Run, texts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The pseudo-label [b] of each image for each attribute, whose embeddings are `texts` [m, d]."""
    whole = representations(run)
    return {name: answer(whole, own).labels for name, own in texts.items()}


def quality(whole: np.ndarray, texts: Mapping[str, np.ndarray], paraphrased: Mapping[str, np.ndarray]) -> tuple[
        dict[str, np.ndarray], dict[str, dict]]:
    """The pseudo-labels [b] by attribute, and how well the CLIP tells its values apart: `entropy`, `margin`,
    `agreement` (Cohen's kappa of the answers with those to the texts `paraphrased`), and whether that is `weak`."""
    from sklearn.metrics import cohen_kappa_score

    found, said = {}, {}
    for name, own in texts.items():
        first, second = answer(whole, own), answer(whole, paraphrased[name])
        alike = bool((first.labels == second.labels).all())  # of a single answer, kappa is not defined
        agreement = 1.0 if alike else float(cohen_kappa_score(first.labels, second.labels))
        found[name] = first.labels
        said[name] = {"texts": len(own), "entropy": first.entropy, "margin": first.margin, "agreement": agreement,
                      "weak": bool(agreement < WEAK_AGREEMENT or first.margin < WEAK_MARGIN
                                   or first.entropy < WEAK_ENTROPY)}
    return found, said
