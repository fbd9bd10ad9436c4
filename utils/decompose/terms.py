"""What a decomposition gives: the terms of components, and of tokens along directions."""
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.cli import UserError
from utils.runs.components import ARRAYS, Component, are_plain


@dataclass
class Terms:
    """What the components of a model contribute to representations; float32, over the length of its image's
    representation."""
    components: list[Component]     # heads, the embedding, MLPs, convolution blocks
    values: Tensor                  # [b, c, d]: sum to the representation
    representation: Tensor          # [b, d]: unit length
    cls_attn: Tensor | None = None  # [b, l, d]: what heads write of the class token, of models that have one
    outputs: Tensor | None = None   # [b, l, h, k]: the heads' outputs before their output projection, over sigma r, and
    scalars: Tensor | None = None   # [b, 3]: 1 / (sigma r), mu / (sigma r), 1 / r; `Decomposer.readout` goes with both

    def of(self, *kinds: str) -> Tensor:
        """The terms [b, c, d] of the components of these kinds, which follow on each other."""
        chosen = [place for place, component in enumerate(self.components) if component.kind in kinds]
        return self.values[:, chosen[0]:chosen[-1] + 1] if chosen else self.values[:, :0]

    def arrays(self) -> dict[str, Tensor]:
        """The terms by the arrays that keep them, those that the model has: attn [b, l, h, d] of a plain transformer,
        or [b, c, d]; mlp [b, l + 1, d], the embedding first; conv [b, c, d]; and cls_attn [b, l, d]."""
        found = {what: terms for what, kinds in ARRAYS.items() if (terms := self.of(*kinds)).shape[1]}
        if are_plain([part for part in self.components if part.kind != "conv"]):
            layers = {part.layer for part in self.components if part.kind == "attn"}
            found["attn"] = found["attn"].unflatten(1, (len(layers), -1))
        return found if self.cls_attn is None else found | {"cls_attn": self.cls_attn}


@dataclass
class TokenTerms:
    """What components, and the source tokens of each head, add to the product of representations with directions;
    float32."""
    components: list[Component]    # as those of `Terms`
    parts: Tensor                  # [m, b, c]: sum to the product
    scores: dict[int, Tensor]      # layer -> [m, b, h, n]: sum over n to the parts of the layer's heads
    grids: dict[int, tuple[int, int]]  # layer -> rows and columns of its patches, the last of its n tokens
    prefix_tokens: int             # tokens before the patches: class tokens and registers
    representation: Tensor         # [b, d]: unit length, in the space of the directions
    terms: Tensor                  # [b, c, k]: the components' terms, in the model's own space

    def patches(self, layer: int | None = None, head: int | None = None) -> Tensor:
        """What each patch adds through all heads, or those of one `layer`, or one `head` of it: [m, b, rows, columns].

        Layers of a hierarchical model have grids of their own. One layer is shown on its own; all are added on the
        finest of them, where the value of a larger patch is split evenly over its places. Raises UserError for a layer
        or head that the model lacks.
        """
        if layer is not None and layer not in self.scores:
            raise UserError(f"layer {layer}: the model's layers with heads are "
                            + ", ".join(map(str, sorted(self.scores))))
        if head is not None and layer is None:
            raise UserError("a head needs its layer; name both, counted from 0")
        if head is not None and not 0 <= head < self.scores[layer].shape[2]:
            raise UserError(f"head {head}: layer {layer} has {self.scores[layer].shape[2]} of them, counted from 0")
        wanted = sorted(self.scores) if layer is None else [layer]
        rows, columns = (max(self.grids[each][side] for each in wanted) for side in (0, 1))
        total = 0
        for each in wanted:
            patches = self.scores[each][..., self.prefix_tokens:]
            patches = patches.sum(dim=2) if head is None else patches[:, :, head]
            total = total + _spread(patches.unflatten(-1, self.grids[each]), (rows, columns))
        return total


def grid_of(patches: int, image_size: tuple[int, int], patch_size: tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns of so many patches of that size, or where it is not known, of about the same height and breadth.
    Raises UserError where there are none."""
    if patch_size:
        return image_size[0] // patch_size[0], image_size[1] // patch_size[1]

    def stretch(rows: int) -> float:
        return abs(math.log(rows ** 2 * image_size[1] / (patches * image_size[0])))

    rows = min((rows for rows in range(1, patches + 1) if patches % rows == 0), key=stretch, default=None)
    if rows is None or stretch(rows) > math.log(2):
        raise UserError(f"this model's {patches} tokens cannot be laid out on its images of {image_size[0]} x "
                        f"{image_size[1]} pixels; no heat map of it can be drawn")
    return rows, patches // rows


def _spread(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Values [..., rows, columns] on a finer grid, each split evenly over the places that are nearest to it."""
    for dim, size in ((-2, grid[0]), (-1, grid[1])):
        nearest = torch.arange(size, device=patches.device) * patches.shape[dim] // size
        split = patches.transpose(dim, -1) / torch.bincount(nearest, minlength=patches.shape[dim])
        patches = split[..., nearest].transpose(dim, -1)
    return patches
