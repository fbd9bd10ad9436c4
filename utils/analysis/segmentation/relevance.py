"""Relevance propagation through open_clip's own image towers: forward passes with everything in them recorded, and the
rules by which the relevance of a logit is handed back, layer by layer."""
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.decompose.tower import Block, Tower

STABILISER = 1e-9  # keeps relevance finite where what it is divided by vanishes


@dataclass
class Layer:
    """What one block computed, its attention weights written out."""
    block: Block
    before: Tensor     # [b, n, w]: the tokens that entered
    q: Tensor          # [b, h, n, k], normed and divided by the root of k
    k: Tensor          # [b, h, n, k], normed
    v: Tensor          # [b, h, n, k]
    attention: Tensor  # [b, h, n, n]: rows are the tokens that attend, and sum to one
    heads: Tensor      # [b, h, n, k]: attention times v
    attended: Tensor   # [b, n, w]: what the attention adds
    added: Tensor      # [b, n, w]: what the MLP adds
    after: Tensor      # [b, n, w]: the tokens that leave


def merge(heads: Tensor) -> Tensor:
    """[b, h, n, k] -> [b, n, w]."""
    return heads.transpose(1, 2).flatten(2)


def run_layer(block: Block, tokens: Tensor) -> Layer:
    """One block on tokens [b, n, w], with everything between tokens and output in the autograd graph."""
    parts = F.linear(block.norm_1(tokens), block.qkv_weight, block.qkv_bias)
    q, k, v = parts.unflatten(-1, (3, block.heads, -1)).permute(2, 0, 3, 1, 4)  # each [b, h, n, k]
    q, k = block.norm_q(q) * q.shape[-1] ** -0.5, block.norm_k(k)
    attention = (q @ k.transpose(-1, -2)).softmax(dim=-1)
    heads = attention @ v
    attended = F.linear(merge(heads), block.out_weight, block.out_bias)
    middle = tokens + attended
    added = block.mlp(block.norm_2(middle))
    return Layer(block, tokens, q, k, v, attention, heads, attended, added, middle + added)


def run_layers(blocks: list[Block], tokens: Tensor) -> Iterator[Layer]:
    """Blocks one after the other, from the tokens [b, n, w] that enter the first; none is kept here."""
    for block in blocks:
        layer = run_layer(block, tokens)
        tokens = layer.after
        yield layer


def represent(tower: Tower, tokens: Tensor) -> Tensor:
    """Unit representations [b, d] from the tokens [b, n, w] after the last block."""
    return F.normalize(tower.norm(tokens[:, 0]) @ tower.projection, dim=-1)


class Pass:
    """A forward pass of images [b, 3, height, width], recorded.

    `columns` [b, d] are the classifier's, of the class that is explained of each image. All layers' attention is kept,
    and everything of the last ones, from the block `first` on; with `gradients` also what these need.
    """

    def __init__(self, visual: nn.Module, tower: Tower, images: Tensor, columns: Tensor, first: int,
                 gradients: bool = True):
        self.visual, self.tower, self.columns = visual, tower, columns
        with torch.no_grad():
            tokens, self.attentions = tower.embed(images), []  # [b, n, n] each, mean over heads
            for layer in run_layers(tower.blocks[:first], tokens):
                tokens = layer.after
                self.attentions.append(layer.attention.mean(dim=1))
        with torch.set_grad_enabled(gradients):
            self.layers = list(run_layers(tower.blocks[first:], tokens.requires_grad_(gradients)))
        self.attentions += [layer.attention.detach().mean(dim=1) for layer in self.layers]

    @cached_property
    @torch.inference_mode(False)
    def gradients(self) -> tuple[Tensor, ...]:
        """Gradients [b, h, n, n] of each image's logit with respect to its attention weights in each of the layers."""
        with torch.enable_grad():
            logits = (represent(self.tower, self.layers[-1].after) * self.columns).sum(dim=-1)
        return torch.autograd.grad(logits.sum(), [layer.attention for layer in self.layers])

    @cached_property
    def relevances(self) -> list[tuple[Tensor, Tensor]]:
        """Relevance of attention weights [b, h, n, n] and of the tokens that enter [b, n, w], the last layer's
        first."""
        return list(propagate(self))


@torch.no_grad()
def propagate(seen: Pass) -> Iterator[tuple[Tensor, Tensor]]:
    """Relevance of attention weights [b, h, n, n] and of the tokens that enter [b, n, w], from the last layer of a pass
    to the first that it recorded.

    The logit's relevance is 1, whatever its value, and no rule creates or loses any. The rules of Chefer et al. 2021,
    section 3:
    - linear layers: in proportion to the positive ones among the products of input and weight (alpha 1, beta 0);
      biases get none (`relevance_of_linear`);
    - residual sums: in proportion to both summands, then rescaled to bound cancellation (`relevance_of_sum`);
    - matrix products (attention times values, queries times keys): half to each factor, in proportion to the products,
      which is what their rescaling comes to (`relevance_of_product`);
    - norms, activations, softmax, LayerScale, the scaling to unit length: passed on unchanged.
    """
    tower, last = seen.tower, seen.layers[-1].after
    gains = (represent(tower, last) * seen.columns).relu()  # the linear rule, every image with its own weights
    relevance = _divide(gains, gains.sum(dim=-1, keepdim=True))
    tokens = torch.zeros_like(last)
    tokens[:, 0] = relevance_of_linear(tower.norm(last[:, 0]), tower.projection.T, relevance)
    for layer, resblock in zip(reversed(seen.layers), reversed(seen.visual.transformer.resblocks)):
        block, middle = layer.block, layer.before + layer.attended
        kept, mlp = relevance_of_sum(middle, layer.added, tokens)
        tokens = kept + _relevance_of_mlp(resblock.mlp, block.norm_2(middle), mlp)
        kept, attended = relevance_of_sum(layer.before, layer.attended, tokens)
        heads = relevance_of_linear(merge(layer.heads), block.out_weight, attended)
        heads = heads.unflatten(-1, (block.heads, -1)).transpose(1, 2)
        attention, v = relevance_of_product(layer.attention, layer.v, heads)
        q, k = relevance_of_product(layer.q, layer.k.transpose(-1, -2), attention)
        parts = torch.cat([merge(q), merge(k.transpose(-1, -2)), merge(v)], dim=-1)
        tokens = kept + relevance_of_linear(block.norm_1(layer.before), block.qkv_weight, parts)
        yield attention, tokens


def _relevance_of_mlp(modules: nn.Sequential, x: Tensor, relevance: Tensor) -> Tensor:
    inputs = []
    for module in modules:
        inputs.append(x)
        x = module(x)
    for module, x in zip(reversed(modules), reversed(inputs)):
        if isinstance(module, nn.Linear):
            relevance = relevance_of_linear(x, module.weight, relevance)
    return relevance


def _divide(relevance: Tensor, by: Tensor) -> Tensor:
    return relevance / (by + torch.where(by < 0, -STABILISER, STABILISER))


def relevance_of_linear(x: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
    """Relevance [..., out] of x @ weight.T to x [..., in], shared in proportion to the positive x_i weight_ji."""
    positive, negative = x.relu(), -(-x).relu()
    weight_positive, weight_negative = weight.relu(), -(-weight).relu()
    share = _divide(relevance, positive @ weight_positive.T + negative @ weight_negative.T)
    return positive * (share @ weight_positive) + negative * (share @ weight_negative)


def relevance_of_product(left: Tensor, right: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance [..., i, j] of left @ right to both factors, half of it to each, in proportion to the products."""
    share = _divide(relevance, left @ right) / 2
    return left * (share @ right.transpose(-1, -2)), right * (left.transpose(-1, -2) @ share)


def relevance_of_sum(x: Tensor, y: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance [b, n, w] of x + y to x and y.

    In proportion to the summands; as these may cancel, both parts are then rescaled so that over an image they hold
    as much of its relevance as the sizes of their sums say.
    """
    share = _divide(relevance, x + y)
    parts = x * share, y * share
    sums = [part.sum(dim=(1, 2), keepdim=True) for part in parts]
    scale = _divide(relevance.sum(dim=(1, 2), keepdim=True), sums[0].abs() + sums[1].abs())
    return tuple(part * scale * total.sign() for part, total in zip(parts, sums))
