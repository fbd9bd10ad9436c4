"""Which word speaks to which patch: the cosine of an image and a text as a sum over pairs of their terms.

An image's unit representation is the sum of terms c_k, a text's that of terms e_q; so their cosine is the sum over all
pairs of <c_k, e_q>. Patches and words are the source tokens of heads: what a head reads there. A token deep in a model
is not its patch or word alone, since earlier layers have mixed them.
"""
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from utils.decompose.decomposer import Decomposer
from utils.decompose.texts import TextDecomposer


@dataclass
class Pairs:
    """A cosine similarity, pair by pair."""
    text: str
    cosine: float
    rows: list[str]           # patches ("patch 0,3": row, column), then what else the image is the sum of
    columns: list[str]        # words, then what else the text is the sum of
    values: np.ndarray        # [rows, columns]: sum to the cosine
    grid: tuple[int, int]     # rows and columns of the patches, the first of `rows`
    image_heads: list[str]    # "layer.head"
    text_heads: list[str]
    heads: np.ndarray         # [image heads, text heads]: the part of the cosine that goes through both
    by_word: np.ndarray       # [columns that are words, image heads, text heads]: the part of `heads` of each

    def maps(self) -> np.ndarray:
        """The patches' values for each column [columns, grid rows, grid columns]."""
        patches = self.grid[0] * self.grid[1]
        return self.values[:patches].T.reshape(-1, *self.grid)

    @property
    def words(self) -> int:
        """How many of the columns are source tokens, the first ones."""
        return len(self.by_word)


Columns = tuple[list[str], Tensor, Tensor, Tensor]


def text_columns(texts: TextDecomposer, text: str) -> Columns:
    """What a text is the sum of: names and vectors [columns, d], the source tokens first; the terms of its heads
    [heads, d], and these by source token [words, heads, d]."""
    terms, (words,) = texts.words([text])
    constant = texts.constant(terms)
    start = terms.of("embed")[:, 0] - (0 if constant is None else constant)
    names, rest = ["MLPs", "start embedding"], [terms.of("mlp").sum(dim=1), start]
    if constant is not None:
        names.append("projection's bias")
        rest.append(constant)
    vectors = torch.cat([words.values, *rest])
    return [*words.names, *names], vectors, terms.of("attn")[0], words.by_head


def compute(decomposer: Decomposer, texts: TextDecomposer, pixels: Tensor, text: str) -> Pairs:
    """All pairs of an image [1, 3, height, width] and a text."""
    return of_columns(decomposer, texts, pixels, text, text_columns(texts, text))


def of_columns(decomposer: Decomposer, texts: TextDecomposer, pixels: Tensor, text: str, columns: Columns) -> Pairs:
    """`compute`, for what `text_columns` gave of the text, or a linear map of it."""
    names, vectors, heads, by_head = columns
    found = decomposer.tokens(pixels, vectors[:, None])
    patches, prefix = found.patches()[:, 0], found.prefix_tokens                      # [columns, rows, columns]
    rows = [f"patch {row},{column}" for row, column in np.ndindex(*patches.shape[1:])]
    values = [patches.flatten(1).T]

    def add(label: str, row: Tensor) -> None:
        rows.append(label)
        values.append(row[None])

    if prefix:
        alone = prefix == 1 and decomposer.model.class_token
        add("class token" if alone else "class and register tokens",
            sum(some[:, 0, :, :prefix].sum(dim=(1, 2)) for some in found.scores.values()))
    for label, kind in (("attention as a whole", "attn"), ("MLPs", "mlp"), ("convolution blocks", "conv"),
                        ("start embedding", "embed")):
        chosen = [i for i, part in enumerate(found.components)
                  if part.kind == kind and not (kind == "attn" and part.layer in found.scores)]
        if chosen:
            add(label, found.parts[:, 0, chosen].sum(dim=1))
    of_heads = [i for i, part in enumerate(found.components) if part.kind == "attn"]
    own = found.terms[0, of_heads]                                                    # [image heads, d]
    return Pairs(text, float(found.representation[0] @ vectors.sum(dim=0)), rows, names,
                 torch.cat(values).cpu().numpy(), tuple(patches.shape[1:]),
                 [str(found.components[i]) for i in of_heads],
                 [str(part) for part in texts.components if part.kind == "attn"], (own @ heads.T).cpu().numpy(),
                 torch.einsum("id,wtd->wit", own, by_head).cpu().numpy())


def top_heads(pairs: Pairs, number: int, names: dict[str, str] | None = None) -> list[dict]:
    """For each word the pairs of heads with the largest parts of it: image head, its name (None where it is not among
    the `names`), text head, and their value."""
    found = []
    for word, values in zip(pairs.columns, pairs.by_word):
        best = np.argsort(-np.abs(values), axis=None)[:number]
        found.append({"word": word, "pairs": [
            {"image_head": pairs.image_heads[i], "name": (names or {}).get(pairs.image_heads[i]),
             "text_head": pairs.text_heads[j], "value": float(values[i, j])}
            for i, j in zip(*np.unravel_index(best, values.shape))]})
    return found


def record(pairs: Pairs) -> dict:
    """All pairs as a result holds them."""
    return {"cosine": pairs.cosine, "rows": pairs.rows, "columns": pairs.columns, "pairs": pairs.values.tolist(),
            "heads": {"rows": pairs.image_heads, "columns": pairs.text_heads, "pairs": pairs.heads.tolist()}}


def panels(pairs: Pairs) -> list[tuple[str, float, np.ndarray]]:
    """Of each word, and of the start and end of the text, its name, what it adds to the cosine, and its heat map."""
    maps = pairs.maps()
    return [(pairs.columns[i], float(pairs.values[:, i].sum()), maps[i]) for i in range(pairs.words)]


def table(pairs: Pairs) -> str:
    """The cosine by what the text is the sum of, a line each: through patches, through the rest, and both."""
    patches = pairs.grid[0] * pairs.grid[1]
    lines = [f"{'':<20} {'patches':>9} {'the rest':>9} {'sum':>9}"]
    for name, column in zip(pairs.columns, pairs.values.T):
        lines.append(f"{name:<20} {column[:patches].sum():+9.4f} {column[patches:].sum():+9.4f} {column.sum():+9.4f}")
    return "\n".join([*lines, f"{'= cosine similarity':<40} {pairs.cosine:+9.4f}"])
