"""Texts in the joint space: classifiers, text pools, accuracy (paper section 2 and appendix)."""
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from utils.cli import UserError
from utils.models.model import Model


@torch.inference_mode()
def classifier(clip: Model, classes: list[str], templates: list, batch_size: int) -> np.ndarray:
    """Zero-shot classifier [d, classes], one unit column a class: the mean of its prompts' unit embeddings.

    `templates` are functions from a class name to a prompt; `batch_size` counts prompts.
    """
    from tqdm import tqdm

    columns, step = [], max(1, batch_size // len(templates))
    for start in tqdm(range(0, len(classes), step), desc="classes", unit="batch"):
        prompts = [template(name) for name in classes[start:start + step] for template in templates]
        means = clip.embed_texts(prompts).unflatten(0, (-1, len(templates))).mean(dim=1)
        columns.append(F.normalize(means, dim=-1))
    return torch.cat(columns).T.contiguous().cpu().numpy()


def embed_texts(clip: Model, texts: list[str], batch_size: int) -> np.ndarray:
    """Unit embeddings [m, d] of texts."""
    from tqdm import tqdm

    parts = [clip.embed_texts(texts[start:start + batch_size])
             for start in tqdm(range(0, len(texts), batch_size), desc="texts", unit="batch")]
    return torch.cat(parts).cpu().numpy()


def read_texts(path: Path) -> list[str]:
    """A text pool: one description a line. Raises UserError for empty or repeated lines."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; a text pool is a file with one description a line")
    texts = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    first: dict[str, int] = {}
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            raise UserError(f"{path}, line {number}: is empty; remove it")
        if text in first:
            raise UserError(f"{path}, line {number}: repeats line {first[text]} ({text!r}); remove one of them")
        first[text] = number
    return texts


def correct(representations: np.ndarray, classifier_columns: np.ndarray, labels: np.ndarray) -> int:
    """Number of images [b, d] whose highest logit is their label's."""
    return int(((representations @ classifier_columns).argmax(axis=1) == labels).sum())
