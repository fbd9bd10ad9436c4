"""The terms of a run: of every image, what each head, MLP and convolution block wrote. They sum to the representation.

A run holds "attn" (`HeadTerms`, [b, c, d]), "mlp" [b, m, d], the embedding first, "labels" [b] and, where the model has
them, "conv" [b, n, d] and "cls_attn" [b, l, d], a part of attn. The components of a run are those of attn, then of mlp, then
of conv. Nothing here reads more than the rows that it is asked for.
"""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from utils.runs.heads import Head
from utils.runs.stored import blocks

WHAT = ("attn", "mlp", "conv")  # the arrays whose rows are components, in their order
SMALL_BLOCK = 64  # images whose every component is in memory at a time


@dataclass(frozen=True)
class Component:
    """One part of the model that writes to the residual stream."""
    kind: str         # embed, attn, mlp or conv
    block: int        # counted from 0; the embedding's is -1
    head: int | None  # of an attention layer


class HeadTerms:
    """What the heads of a run wrote, [b, c, d]: read as `terms[rows]` or `terms[rows, columns]`, where columns are heads.

    A layer is a block of the model that has heads; layers may differ in their number of heads. Of lists of rows and columns,
    every row is read at every column.
    """

    def __init__(self, array: np.ndarray, heads: list[Head] | None = None):
        """`array` [b, l, h, d], or [b, c, d] with the name of each of its c `heads`, layer by layer."""
        self.layout = array.shape[1:]  # without images, as it is stored
        self.heads = heads or [(layer, head) for layer in range(array.shape[1]) for head in range(array.shape[2])]
        self.array = array.reshape(len(array), len(self.heads), array.shape[-1])
        self.shape, self.dtype = self.array.shape, self.array.dtype

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, key) -> np.ndarray:
        rows, columns = key if isinstance(key, tuple) else (key, slice(None))
        if np.ndim(rows) and np.ndim(columns):  # numpy would pair them
            rows, columns = np.ix_(rows, columns)
        return self.array[rows, columns]

    @property
    def layers(self) -> list[int]:
        """The blocks that have heads, in order."""
        return sorted({layer for layer, _ in self.heads})

    def columns(self, layers: list[int]) -> slice:
        """The heads of these layers, which follow on each other."""
        places = [place for place, (layer, _) in enumerate(self.heads) if layer in layers]
        return slice(places[0], places[-1] + 1) if places else slice(0, 0)

    def last(self, number: int) -> slice:
        """The heads of the last `number` layers."""
        return self.columns(self.layers[-number:] if number else [])


Run = dict[str, np.ndarray | HeadTerms]


def components(run: Run, names: dict[str, list[dict]] | None) -> list[Component]:
    """The components of a run, in order. `names` is what {dataset}_components_{model}.json holds, where there is one."""
    names = names or {"mlp": [{"kind": "embed", "block": -1, "head": None},
                              *({"kind": "mlp", "block": block, "head": None} for block in range(run["mlp"].shape[1] - 1))]}
    heads = [Component("attn", layer, head) for layer, head in run["attn"].heads]
    return heads + [Component(**name) for what in WHAT[1:] if what in run for name in names[what]]


def layout(run: Run) -> dict[str, list[int]]:
    """How the components of a run are stored: for each array its shape without the images, such as attn [l, h, d]."""
    return {what: list(run[what].layout if what == "attn" else run[what].shape[1:]) for what in WHAT if what in run}


def stack(run: Run, rows: np.ndarray | slice) -> np.ndarray:
    """The components [b, c, d] of some images, float32."""
    return np.concatenate([run[what][rows].astype(np.float32) for what in WHAT if what in run], axis=1)


def stacks(run: Run, description: str = "images") -> Iterator[tuple[slice, np.ndarray]]:
    """The components of all images, in blocks: pairs of a slice of the images and their `stack`."""
    for block in blocks(len(run["attn"]), SMALL_BLOCK, description):
        yield block, stack(run, block)


def rest(run: Run, rows: np.ndarray | slice, dtype: type = np.float32, arrays: Sequence[str] = WHAT[1:]) -> np.ndarray | int:
    """What all but the heads wrote into some images [b, d]: the embedding, MLPs and convolution blocks, summed in `dtype`.

    Of some `arrays` alone, theirs; 0 where the run has none of them.
    """
    return sum(run[what][rows].astype(dtype, copy=False).sum(axis=1) for what in arrays if what in run)
