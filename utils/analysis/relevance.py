"""Which patches of an image matter for its class: the methods the paper (arXiv 2310.05916) compares its decomposition
with, and MaskCLIP.

Each is implemented from its paper, in the conventions of the comparison by Chefer, Gur and Wolf ("Transformer
Interpretability Beyond Attention Visualization", CVPR 2021), section 4. What is explained is the logit of a class: the
unit representation of the image times the classifier's column.

All take a `Batch` and return the relevance of every patch, [b, rows, columns], float32. A batch records what its forward
passes compute, one in single and one in double precision, when a method first asks; `Towers` make the copy in double
precision once.

`lrp`, `partial_lrp` and `chefer` compute in double precision: their rules divide by sums that cancel, and in single
precision rounding alone moves the maps of the embedded model by a tenth and more.
"""
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.decompose.tower import Block, Tower, read_tower

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


def _merge(heads: Tensor) -> Tensor:
    """[b, h, n, k] -> [b, n, w]."""
    return heads.transpose(1, 2).flatten(2)


def run_layer(block: Block, tokens: Tensor) -> Layer:
    """One block on tokens [b, n, w], with everything between tokens and output in the autograd graph."""
    parts = F.linear(block.norm_1(tokens), block.qkv_weight, block.qkv_bias)
    q, k, v = parts.unflatten(-1, (3, block.heads, -1)).permute(2, 0, 3, 1, 4)  # each [b, h, n, k]
    q, k = block.norm_q(q) * q.shape[-1] ** -0.5, block.norm_k(k)
    attention = (q @ k.transpose(-1, -2)).softmax(dim=-1)
    heads = attention @ v
    attended = F.linear(_merge(heads), block.out_weight, block.out_bias)
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

    `columns` [b, d] are the classifier's, of the class that is explained of each image. All layers' attention is kept, and
    everything of the last ones, from the block `first` on.
    """

    def __init__(self, visual: nn.Module, tower: Tower, images: Tensor, columns: Tensor, first: int):
        self.visual, self.tower, self.columns = visual, tower, columns
        with torch.no_grad():
            tokens, self.attentions = tower.embed(images), []  # [b, n, n] each, mean over heads
            for layer in run_layers(tower.blocks[:first], tokens):
                tokens = layer.after
                self.attentions.append(layer.attention.mean(dim=1))
        with torch.enable_grad():
            self.layers = list(run_layers(tower.blocks[first:], tokens.requires_grad_()))
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
        """Relevance of attention weights [b, h, n, n] and of the tokens that enter [b, n, w], the last layer's first."""
        return list(propagate(self))


class Towers:
    """The image tower of an open_clip model, float32 and in eval mode, and its copy in double precision.

    Parameters and their gradients are left alone. Raises UserError for a model whose inside is not known.
    """

    def __init__(self, visual: nn.Module):
        self.visual, self.single = visual, read_tower(visual)

    @cached_property
    def double(self) -> tuple[nn.Module, Tower]:
        """The copy, and what is read of it."""
        visual = copy.deepcopy(self.visual).double().requires_grad_(False)
        return visual, read_tower(visual)


class Batch:
    """Images [b, 3, height, width] of which the logits of `classes` [b] are explained, columns of the classifier [d, classes].

    Images may have any size that is a multiple of the patches'.
    """

    def __init__(self, towers: Towers, images: Tensor, classifier: Tensor, classes: Tensor):
        self.towers, self.images, self.classifier, self.classes = towers, images, classifier, classes

    @cached_property
    @torch.inference_mode(False)  # gradients even where the caller switched them off
    def single(self) -> Pass:
        """The pass in single precision, with everything of its last layer."""
        tower = self.towers.single
        return Pass(self.towers.visual, tower, self.images, self.classifier.T[self.classes], len(tower.blocks) - 1)

    @cached_property
    @torch.inference_mode(False)
    def double(self) -> Pass:
        """The pass in double precision, with everything of all layers."""
        return Pass(*self.towers.double, self.images.double(), self.classifier.T[self.classes].double(), 0)

    def maps(self, patches: Tensor) -> Tensor:
        """[b, n - 1], a value for each patch -> [b, rows, columns]."""
        rows, columns = (size // patch for size, patch in zip(self.images.shape[-2:], self.towers.single.patch_size))
        return patches.detach().float().unflatten(1, (rows, columns))


def raw_attention(batch: Batch) -> Tensor:
    """The last layer's attention weights from the class token to every patch, mean over heads.

    The same for every class.
    """
    return batch.maps(batch.single.layers[-1].attention[:, :, 0, 1:].mean(dim=1))


def rollout(batch: Batch) -> Tensor:
    """Attention rollout: the class token's row of the product, over layers, of (A + I) / 2, with A the mean over heads.

    Abnar and Zuidema, "Quantifying Attention Flow in Transformers" (ACL 2020), section 3. The same for every class.
    """
    return batch.maps(_roll(batch.single.attentions, half=True))


def _roll(matrices: list[Tensor], half: bool) -> Tensor:
    """The class token's row of the product of I + M, last layer first, at the patches: [b, n - 1].

    Each M is [b, n, n], the first layer's first; `half` divides each I + M by two. One row is carried along, as the
    others are not asked for.
    """
    row = torch.zeros_like(matrices[0][:, :1])
    row[:, :, 0] = 1
    for matrix in reversed(matrices):
        row = (row + row @ matrix) / (2 if half else 1)
    return row[:, 0, 1:]


def gradcam(batch: Batch) -> Tensor:
    """GradCAM with the last layer's attention in the place of a convolution's channels.

    A head's map is its attention from the class token to the patches; its weight is the logit's gradient with respect
    to these attention weights (after the softmax), mean over patches. The weighted maps' mean over heads, negatives
    set to 0: all zero for an image whose heads all speak against the class. Selvaraju et al., "Grad-CAM" (ICCV 2017),
    as applied to transformers in Chefer et al. 2021, section 4.
    """
    (gradient,), last = batch.single.gradients, batch.single.layers[-1]
    weights = gradient[:, :, 0, 1:].mean(dim=-1, keepdim=True)  # [b, h, 1]
    return batch.maps((weights * last.attention[:, :, 0, 1:]).mean(dim=1).relu())


def maskclip(batch: Batch) -> Tensor:
    """MaskCLIP: every patch takes the class token's way to the joint space, as if it attended to itself alone.

    The last layer's value of each patch, through the output projection, the final norm and the projection, at unit
    length, times the class's column: a cosine, not compared with other classes. No residual stream and no
    MLP of the last layer, as Zhou, Loy and Dai, "Extract Free Dense Labels from CLIP" (ECCV 2022), section 3, define
    it on the attention pooling of CLIP's ResNet; key smoothing and prompt denoising are left out.
    """
    tower, last = batch.towers.single, batch.single.layers[-1]
    values = F.linear(_merge(last.v), last.block.out_weight, last.block.out_bias)[:, 1:]
    patches = F.normalize(tower.norm(values) @ tower.projection, dim=-1)
    return batch.maps(torch.einsum("bnd,bd->bn", patches, batch.single.columns))


def lrp(batch: Batch) -> Tensor:
    """Layer-wise relevance propagation from the logit to the tokens that enter the first block.

    The sum over the width of each patch's token; its position embedding and `ln_pre` are part of it. Rules as in
    `propagate`. Binder et al., "Layer-wise Relevance Propagation for Neural Networks with Local Renormalization
    Layers" (ICANN 2016), as applied to transformers in Chefer et al. 2021, section 4.
    """
    _, tokens = batch.double.relevances[-1]
    return batch.maps(tokens[:, 1:].sum(dim=-1))


def partial_lrp(batch: Batch) -> Tensor:
    """The relevance of the last layer's attention weights from the class token to every patch: negatives of each head
    set to 0, mean over heads.

    Voita et al., "Analyzing Multi-Head Self-Attention" (ACL 2019), section 4, as applied in Chefer et al. 2021,
    section 4. Rules as in `propagate`.
    """
    attention, _ = next(propagate(batch.double))
    return batch.maps(attention[:, :, 0, 1:].relu().mean(dim=1))


def chefer(batch: Batch) -> Tensor:
    """Transformer attribution: rollout of relevance times gradient.

    In every layer, the logit's gradient with respect to the attention weights times their relevance (rules as in
    `propagate`), negatives set to 0, mean over heads: M. Then the class token's row of the product of I + M over
    layers, not normalised. Chefer et al. 2021, section 3. The logit is the cosine, without CLIP's
    temperature, which would weigh paths through several layers more.
    """
    relevances = [attention for attention, _ in reversed(batch.double.relevances)]
    matrices = [(gradient * relevance).relu().mean(dim=1) for gradient, relevance in zip(batch.double.gradients, relevances)]
    return batch.maps(_roll(matrices, half=False))


@torch.no_grad()
def propagate(seen: Pass) -> Iterator[tuple[Tensor, Tensor]]:
    """Relevance of attention weights [b, h, n, n] and of the tokens that enter [b, n, w], from the last layer of a pass to
    the first that it recorded.

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
        heads = relevance_of_linear(_merge(layer.heads), block.out_weight, attended)
        heads = heads.unflatten(-1, (block.heads, -1)).transpose(1, 2)
        attention, v = relevance_of_product(layer.attention, layer.v, heads)
        q, k = relevance_of_product(layer.q, layer.k.transpose(-1, -2), attention)
        parts = torch.cat([_merge(q), _merge(k.transpose(-1, -2)), _merge(v)], dim=-1)
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


METHODS: dict[str, Callable[[Batch], Tensor]] = {
    "raw_attention": raw_attention, "rollout": rollout, "gradcam": gradcam, "lrp": lrp, "partial_lrp": partial_lrp,
    "chefer": chefer, "maskclip": maskclip}
