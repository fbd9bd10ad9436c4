"""A Decomposer takes a model's representations apart; which mechanism serves is its own affair."""
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.cli import UserError
from utils.decompose import tower, walk
from utils.decompose.registers import Registers, with_registers
from utils.decompose.terms import Terms, TokenTerms, grid_of
from utils.models.model import Model
from utils.runs.components import Component

Directions = Tensor | Callable[[Tensor], Tensor]  # [m, b, d], or a function that gives them for representations [b, d]


class Decomposer:
    """Takes the image representations of a model apart into what its components wrote (arXiv 2310.05916, section 3,
    and, for models of any kind, 2406.01583).

    open_clip's own vision transformers go a fast path (utils/decompose/tower.py), all others the walk, operation by
    operation (utils/decompose/walk.py). The fast path alone takes images of other sizes, a `precision` of the model
    below float32 (sums keep their own in any case), and can be `compiled` by torch, and have `registers`
    (utils/decompose/registers.py), which are sources of their own. Raises UserError for a model without a residual
    stream, and for a precision, a compilation or registers that it cannot have.
    """

    def __init__(self, model: Model, precision: str = "float32", compiled: bool = False,
                 registers: Registers | None = None):
        self.model, self._precision = model, precision
        reason = tower.refusal(model.tower)
        self._tower = tower.read_tower(model.tower) if reason is None else None
        if type(model.tower).__name__ == "ModifiedResNet":
            raise UserError(f"this model cannot be decomposed: {reason}")
        if self._tower is None and (compiled or precision != "float32"):
            raise UserError(f"--model {model.name} is taken apart operation by operation, in float32 and as it is; "
                            "leave --precision and --compile out")
        self.registers = registers
        if registers:
            if self._tower is None:
                raise UserError(f"--registers {registers.number}: --model {model.name} has none, since {reason}; leave "
                                "--registers out")
            self._tower = with_registers(self._tower, model.tower, registers)
        self._components = self._tower and self._tower.components
        self._fast = torch.compile(tower.decompose) if compiled else tower.decompose

    @property
    def patch_size(self) -> tuple[int, int] | None:
        """Height and width of a patch, where images may have any size that patches cover; None for the model's own
        alone."""
        return self._tower and self._tower.patch_size

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches: class tokens and registers."""
        return self.model.prefix_tokens + (self.registers.number if self.registers else 0)

    @property
    def components(self) -> list[Component]:
        """The model's components in the order of `Terms`. One that is walked must have seen an image for it, or sees a
        black one."""
        if self._components is None:
            self.terms(torch.zeros(1, 3, *self.model.image_size, device=self.model.device))
        return self._components

    def readout(self) -> Tensor:
        """What makes heads of `outputs` and `scalars` of their Terms: [l, h, k + 3, d]. Raises UserError for a model
        whose heads are not known before their output projection."""
        if self._tower is None:
            raise UserError("--compact and --moments_only keep heads before their output projection, which is known of "
                            "open_clip's own vision transformers alone; leave them out")
        return tower.readout(self._tower)

    def terms(self, images: Tensor) -> Terms:
        """What each component contributes to the representations of images [b, 3, height, width].

        Raises UserError, with the name of the operation, for a model that cannot be decomposed.
        """
        if self._tower is None:
            terms = walk.decompose(self.model.tower, images, self.model.encode_image, self.model.class_token)
            self._components = terms.components
            return terms
        with self._at_precision(images):
            return self._fast(self._tower, images)

    @torch.inference_mode(False)  # the walk asks for gradients
    @torch.no_grad()
    def tokens(self, images: Tensor, directions: Directions, maps: tuple[Tensor, Tensor] | None = None) -> TokenTerms:
        """What each component, and each source token of each head, adds to products of representations with
        `directions` (arXiv 2310.05916, section 3.3).

        `maps`, weight [c, k, d] and bias [d] of utils/analysis/alignment.py, carry a model of width k to the
        directions' space: each component by its own map, the bias split evenly over components, and a head's part over
        its tokens. Raises UserError for maps of other components, and for tokens that cannot be laid out as the image.
        """
        pass_ = partial(tower.decompose_tokens, self._tower) if self._tower else partial(
            walk.decompose_tokens, self.model.tower, function=self.model.encode_image)
        with self._at_precision(images):
            terms, score = pass_(images)
        representation, vectors, share = _project(terms, directions, maps)
        parts = torch.einsum("bcd,mbcd->mbc", terms.values, vectors) + share
        scores, grids, prefix = score(vectors), {}, self.prefix_tokens
        for layer, some in scores.items():
            columns = [i for i, one in enumerate(terms.components) if one.kind == "attn" and one.layer == layer]
            constant = parts[:, :, columns] - some.sum(dim=-1)
            scores[layer] = some + constant[..., None] / some.shape[-1]
            grids[layer] = grid_of(some.shape[-1] - prefix, images.shape[-2:], self.patch_size)
        return TokenTerms(terms.components, parts, scores, grids, prefix, representation, terms.values)

    def check(self, images: Tensor, repeats: int = 3) -> dict[str, float]:
        """Compare the decomposition of images with the model's own output.

        Returns `error`, the largest absolute difference between the sum of an image's terms and its own unit
        representation, and `cost`, the time of `terms` over that of the model alone, the fastest of `repeats` each, in
        turns.
        """
        def timed(function: Callable) -> tuple[float, Tensor | Terms]:
            start = time.perf_counter()
            result = function(images)
            if images.is_cuda:
                torch.cuda.synchronize()
            return time.perf_counter() - start, result

        times = {"plain": [], "ours": []}
        with torch.no_grad():
            for _ in range(repeats):
                with self._at_precision(images):
                    seconds, plain = timed(lambda images: F.normalize(self._encode(images), dim=-1))
                times["plain"].append(seconds)
                seconds, terms = timed(self.terms)
                times["ours"].append(seconds)
            error = (terms.values.sum(dim=1) - plain).abs().max().item()
        return {"error": error, "cost": min(times["ours"]) / min(times["plain"])}

    def _encode(self, images: Tensor) -> Tensor:
        """The model's own representations [b, d]; with registers, those of the tower that has them."""
        return tower.encode(self._tower, images) if self.registers else self.model.encode_image(images)

    def _at_precision(self, images: Tensor) -> torch.autocast:
        return torch.autocast(images.device.type, getattr(torch, self._precision), enabled=self._precision != "float32")


def _project(terms: Terms, directions: Directions, maps: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
    """Unit representations [b, d], what the terms' products with are asked for, [m, b, c, width of the terms], and the
    part [m, b, 1] that each component has of what is constant."""
    def along(representation: Tensor) -> Tensor:
        return directions(representation) if callable(directions) else directions.expand(-1, len(representation), -1)

    if maps is None:
        vectors = along(terms.representation)[:, :, None].expand(-1, -1, len(terms.components), -1)
        return terms.representation, vectors, vectors.new_zeros(1, 1, 1)
    weight, bias = maps
    if weight.shape[:2] != terms.values.shape[1:]:
        raise UserError(f"--maps were trained for {weight.shape[0]} components of width {weight.shape[1]}, and the "
                        f"model has {len(terms.components)} of width {terms.values.shape[-1]}; make them again with "
                        "compute_alignment.py")
    whole = torch.einsum("bck,ckd->bd", terms.values, weight) + bias
    length = whole.norm(dim=-1, keepdim=True)
    asked = along(whole / length) / length
    return whole / length, torch.einsum("mbd,ckd->mbck", asked, weight), (asked @ bias / len(weight))[..., None]
