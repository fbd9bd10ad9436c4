"""Texts in the joint space: classifiers, text pools, accuracy (paper section 2 and appendix)."""
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.cli import UserError, note, some
from utils.data import datasets
from utils.inputs import read_text

if TYPE_CHECKING:
    from utils.models.model import Model

# torch and open_clip are imported where they are used: what reads arrays alone needs neither.


def classifier(clip: "Model", classes: list[str], templates: list, batch_size: int) -> np.ndarray:
    """Zero-shot classifier [d, classes], one unit column a class: the mean of its prompts' unit embeddings.

    `templates` are functions from a class name to a prompt; `batch_size` counts prompts.
    """
    import torch
    import torch.nn.functional as F
    from tqdm import tqdm

    longest = [max((template(name) for template in templates), key=len) for name in classes]
    check_texts(clip, longest, "the prompts", [f"of class {name!r}" for name in classes])
    columns, step = [], max(1, batch_size // len(templates))
    for start in tqdm(range(0, len(classes), step), desc="classes", unit="batch"):
        prompts = [template(name) for name in classes[start:start + step] for template in templates]
        means = clip.embed_texts(prompts).unflatten(0, (-1, len(templates))).mean(dim=1)
        columns.append(F.normalize(means, dim=-1))
    return torch.cat(columns).T.contiguous().cpu().numpy()


def embed_texts(clip: "Model", texts: list[str], batch_size: int, source: str = "the texts") -> np.ndarray:
    """Unit embeddings [m, d] of texts, which `check_texts` has seen; `source` is where they come from."""
    import torch
    from tqdm import tqdm

    check_texts(clip, texts, source, [repr(text) for text in texts])
    parts = [clip.embed_texts(texts[start:start + batch_size])
             for start in tqdm(range(0, len(texts), batch_size), desc="texts", unit="batch")]
    return torch.cat(parts).cpu().numpy()


def check_texts(clip: "Model", texts: list[str], source: str, names: list[str]) -> None:
    """Say which texts a model reads the beginning of, as they have more tokens than it takes; `source` and `names` are
    what messages call them. Raises UserError where two become one by that."""
    cut = clip.cut(texts)
    if not cut:
        return
    tokens = clip.tokenizer(texts)
    rows = list(map(tuple, getattr(tokens, "input_ids", tokens).tolist()))
    most, first = len(rows[0]), {}
    for index, row in enumerate(rows):
        if (other := first.setdefault(row, index)) != index and {index, other} & set(cut):
            raise UserError(f"{source}: {names[other]} and {names[index]} are the same in their first {most} tokens, "
                            "and the model reads no more; shorten them so that they differ there, or remove one")
    listed = some([names[index] for index in cut], 20)
    note(f"{source}: {len(cut)} of {len(texts)} texts have more than the {most} tokens that the model reads, and are "
         f"cut there: {listed}")


def read_pool(path: Path) -> list[str]:
    """The texts of a pool whose arrays get its name. Raises UserError as `read_texts` does, and for the name of a data
    set."""
    if path.stem in datasets.NAMES:
        raise UserError(f"{path}: is called as a data set, whose files it would replace; give the pool another name")
    return read_texts(path)


def check_lines(clip: "Model", texts: list[str], path: Path) -> None:
    """`check_texts`, of the lines of a pool."""
    check_texts(clip, texts, str(path), [f"line {number}" for number in range(1, len(texts) + 1)])


def read_texts(path: Path) -> list[str]:
    """A text pool: one description a line. Raises UserError for empty or repeated lines."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; a text pool is a file with one description a line")
    texts = read_text(path).removesuffix("\n").split("\n")
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
