"""Second-order effects of neurons: what a neuron of an MLP adds to the representation through later heads.

Neuron n of layer l has activation p_i at token i, and its row w of the output matrix writes to the residual stream. A
head j of a later layer reads token i with the class token's attention a_i; so the neuron adds (arXiv 2406.04341)

    phi_n = sum over j of c_nj D_nj,   c_nj = sum over i of a_i p_i / std_i, over the final std and the length,

where std_i is that of token i as it enters the head's block, and D_nj is w, centred, through the block's norm, the
head's values and output, centred, and the final norm's weight and projection. Attention, norms and later MLPs are held
fixed. c is one number for each image, head and neuron; D is fixed, and of the head's rank. Known are the towers of the
fast path (utils/decompose/tower.py).
"""
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.cli import UserError
from utils.decompose import tower
from utils.decompose.tower import Block
from utils.models.model import Model
from utils.runs.components import Component


@dataclass
class Directions:
    """The fixed part of the second-order effects of a layer's neurons, of which the last one is the MLP's bias."""
    inner: Tensor  # [J, N + 1, k]: what a later head's values make of each neuron
    maps: Tensor   # [J, k, d]: what its output makes of that in the joint space

    def neurons(self, places: slice | list[int]) -> Tensor:
        """D of some neurons: [neurons, J, d]."""
        return torch.einsum("jnk,jkd->njd", self.inner[:, places], self.maps)

    def gram(self) -> Tensor:
        """Products of each neuron's directions [N + 1, J, J]: the squared length of what coefficients c [J] add up to
        is c' G c."""
        parts = [self.neurons(slice(start, start + 256)) for start in range(0, self.inner.shape[1], 256)]
        return torch.cat([part @ part.transpose(1, 2) for part in parts])

    def total(self, coefficients: Tensor) -> Tensor:
        """The sum over neurons of what coefficients [b, J, N + 1] add up to: [b, d]."""
        return torch.einsum("bjk,jkd->bd", torch.einsum("bjn,jnk->bjk", coefficients, self.inner), self.maps)


@dataclass
class Effects:
    """Second-order effects of a batch of images."""
    coefficients: dict[int, Tensor]  # layer -> c [b, J, N + 1], of which the last neuron is the MLP's bias
    representation: Tensor           # [b, d]: unit length
    direct: Tensor                   # [b, l, d]: what each MLP adds through the class token itself
    activations: dict[int, Tensor]   # layer -> [b, n, N]


class Neurons:
    """The neurons of some layers of a model. Raises UserError for a layer that there is not, or that no head follows,
    and for a model whose image tower the fast path does not know."""

    def __init__(self, model: Model, layers: list[int]):
        if reason := tower.refusal(model.tower):
            raise UserError(f"--model {model.name}: effects of neurons are known of open_clip's own vision "
                            f"transformers alone, and of this one not, since {reason}")
        self.model, self.layers = model, sorted(set(layers))
        self.tower, self.blocks = tower.read_tower(model.tower), list(model.tower.transformer.resblocks)
        for layer in self.layers:
            if not 0 <= layer < len(self.blocks) - 1:
                raise UserError(f"--layers {layer}: choose from 0 to {len(self.blocks) - 2}; neurons of the last layer "
                                "have no head after them")

    def count(self, layer: int) -> int:
        """How many neurons a layer has."""
        return self.blocks[layer].mlp[-1].in_features

    @property
    def width(self) -> int:
        """The width of the joint space, d."""
        return self.tower.projection.shape[1]

    def heads(self, layer: int) -> list[Component]:
        """The heads after a layer's neurons."""
        return [part for part in self.tower.components if part.kind == "attn" and part.layer > layer]

    def written(self, layer: int) -> Tensor:
        """What each neuron of a layer writes to the residual stream [N + 1, w], the MLP's bias last."""
        out, scale = self.blocks[layer].mlp[-1], getattr(self.blocks[layer].ls_2, "gamma", None)
        bias = torch.zeros_like(out.weight[:, 0]) if out.bias is None else out.bias
        rows = torch.cat([out.weight.detach().T, bias.detach()[None]])
        return rows if scale is None else rows * scale.detach()

    def directions(self, layer: int) -> Directions:
        """The fixed part of the effects of a layer's neurons."""
        rows, inner, maps = self.written(layer), [], []
        rows, weighted = rows - rows.mean(dim=1, keepdim=True), self.tower.norm.weight[:, None] * self.tower.projection
        for later, block in enumerate(self.tower.blocks):
            if later > layer:
                values = block.qkv_weight[-rows.shape[1]:].unflatten(0, (block.heads, -1))       # [h, k, w]
                inner.append(torch.einsum("nw,hkw->hnk", rows * block.norm_1.weight, values))
                out = block.out_weight.T.unflatten(0, (block.heads, -1))                          # [h, k, w]
                maps.append((out - out.mean(dim=-1, keepdim=True)) @ weighted)
        return Directions(torch.cat(inner), torch.cat(maps))

    @torch.no_grad()
    def effects(self, images: Tensor) -> Effects:
        """The effects of all neurons of the chosen layers on images [b, 3, height, width]."""
        x, kept, mlp = self.tower.embed(images), {}, []
        found: dict[int, list[Tensor]] = {layer: [] for layer in self.layers}
        last = len(self.blocks) - 1
        for index, block in enumerate(self.tower.blocks):
            added, _, read = tower.attend(block, x, only_class_token=index == last)
            if kept:
                reading = read.weights() / _std(block, x)[:, None]                               # [b, h, n]
                for layer, activations in kept.items():
                    found[layer].append(torch.cat([reading @ activations, reading.sum(-1, keepdim=True)], dim=-1))
            x = (x[:, :1] if index == last else x) + added
            if index in self.layers:
                kept[index] = self.blocks[index].mlp[:-1](block.norm_2(x))                       # [b, n, N]
                added = self._add(index, kept[index])
            else:
                added = block.mlp(block.norm_2(x))
            x = x + added
            mlp.append(added[:, 0])
        final = x[:, 0]
        representation = self.tower.norm(final) @ self.tower.projection
        length = representation.norm(dim=-1)
        scale = 1 / ((final.var(dim=-1, correction=0) + self.tower.norm.eps).sqrt() * length)   # [b]
        direct = torch.stack(mlp, dim=1)
        direct = (direct - direct.mean(-1, keepdim=True)) @ (self.tower.norm.weight[:, None] * self.tower.projection)
        return Effects({layer: torch.cat(parts, dim=1) * scale[:, None, None] for layer, parts in found.items()},
                       representation / length[:, None], direct * scale[:, None, None], kept)

    @torch.no_grad()
    def without(self, images: Tensor, sets: list[tuple[int, list[int], Tensor]]) -> Tensor:
        """Unit representations [s, b, d] with the activations of neurons replaced by their means, a full pass on from
        their layer for each of several sets: layer, neurons, and mean activations of the layer [n, N]."""
        x, results = self.tower.embed(images), [None] * len(sets)
        for index, block in enumerate(self.tower.blocks):
            x = x + tower.attend(block, x, only_class_token=False)[0]
            hidden = self.blocks[index].mlp[:-1](block.norm_2(x))
            for place, (layer, neurons, means) in enumerate(sets):
                if layer == index:
                    changed = hidden.clone()
                    changed[..., neurons] = means[:, neurons]
                    results[place] = self._finish(x, changed, index)
            x = x + self._add(index, hidden)
        return torch.stack(results)

    @torch.no_grad()
    def switched_off(self, images: Tensor, sets: list[tuple[int, list[int], Tensor]]) -> Tensor:
        """Unit representations [b, d] with the activations of all sets of neurons at their means together, in one full
        pass; sets are those of `without`."""
        x = self.tower.embed(images)
        for index, block in enumerate(self.tower.blocks):
            x = x + tower.attend(block, x, only_class_token=False)[0]
            hidden = self.blocks[index].mlp[:-1](block.norm_2(x))
            for layer, neurons, means in sets:
                if layer == index:
                    hidden[..., neurons] = means[:, neurons]
            x = x + self._add(index, hidden)
        return torch.nn.functional.normalize(self.tower.norm(x[:, 0]) @ self.tower.projection, dim=-1)

    def _add(self, index: int, hidden: Tensor) -> Tensor:
        """What a layer's MLP writes, from the activations of its neurons."""
        return self.blocks[index].ls_2(self.blocks[index].mlp[-1](hidden))

    def _finish(self, x: Tensor, hidden: Tensor, index: int) -> Tensor:
        """Unit representations [b, d] from a layer's activations on."""
        x = x + self._add(index, hidden)
        for block in self.tower.blocks[index + 1:]:
            x = x + tower.attend(block, x, only_class_token=False)[0]
            x = x + block.mlp(block.norm_2(x))
        return torch.nn.functional.normalize(self.tower.norm(x[:, 0]) @ self.tower.projection, dim=-1)


def _std(block: Block, x: Tensor) -> Tensor:
    """The standard deviation by which a block's first norm divides each token [b, n]."""
    return (x.var(dim=-1, correction=0) + block.norm_1.eps).sqrt()
