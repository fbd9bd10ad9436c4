"""Which patches of an image matter for its predicted class: the methods the paper (arXiv 2310.05916) compares its
decomposition with, and MaskCLIP.

Each is implemented from its paper, in the conventions of the comparison by Chefer, Gur and Wolf ("Transformer
Interpretability Beyond Attention Visualization", CVPR 2021), section 4. What is explained is the logit of the
predicted class: the unit representation of the image times the classifier's column.

All take `(model, images [b, 3, height, width], classifier [d, classes], predicted [b])` and return the relevance of
every patch, [b, rows, columns], float32. `model` is an open_clip model in eval mode, float32, on the images' device;
its parameters and their gradients are left alone. Images may have any size that is a multiple of the patches'.
Raises UserError for a model whose inside is not known (`utils.decomposition.read_tower`).

`lrp`, `partial_lrp` and `chefer` compute in double precision, on a copy of the image tower: their rules divide by sums
that cancel, and in single precision rounding alone moves the maps of the embedded model by a tenth and more.
"""
import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

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


def run_layers(tower: Tower, tokens: Tensor) -> Iterator[Layer]:
    """The blocks one after the other, from the tokens [b, n, w] that enter the first; none is kept here."""
    for block in tower.blocks:
        layer = run_layer(block, tokens)
        tokens = layer.after
        yield layer


def _last(items: Iterable):
    """The last item, the others forgotten one by one."""
    return deque(items, maxlen=1).pop()


def represent(tower: Tower, tokens: Tensor) -> Tensor:
    """Unit representations [b, d] from the tokens [b, n, w] after the last block."""
    return F.normalize(tower.norm(tokens[:, 0]) @ tower.projection, dim=-1)


def _double(visual: nn.Module) -> nn.Module:
    return copy.deepcopy(visual).double().requires_grad_(False)


def _maps(tower: Tower, images: Tensor, patches: Tensor) -> Tensor:
    """[b, n - 1], a value for each patch -> [b, rows, columns]."""
    rows, columns = (size // patch for size, patch in zip(images.shape[-2:], tower.patch_size))
    return patches.detach().float().unflatten(1, (rows, columns))


@torch.no_grad()
def raw_attention(model: nn.Module, images: Tensor, classifier: Tensor, predicted: Tensor) -> Tensor:
    """The last layer's attention weights from the class token to every patch, mean over heads.

    The same for every class. Shapes and errors as above.
    """
    tower = read_tower(model.visual)
    last = _last(run_layers(tower, tower.embed(images)))
    return _maps(tower, images, last.attention[:, :, 0, 1:].mean(dim=1))


@torch.no_grad()
def rollout(model: nn.Module, images: Tensor, classifier: Tensor, predicted: Tensor) -> Tensor:
    """Attention rollout: the class token's row of the product, over layers, of (A + I) / 2, with A the mean over heads.

    Abnar and Zuidema, "Quantifying Attention Flow in Transformers" (ACL 2020), section 3. The same for every class.
    Shapes and errors as above.
    """
    tower = read_tower(model.visual)
    attentions = [layer.attention.mean(dim=1) for layer in run_layers(tower, tower.embed(images))]
    return _maps(tower, images, _roll(attentions, half=True))


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


def gradcam(model: nn.Module, images: Tensor, classifier: Tensor, predicted: Tensor) -> Tensor:
    """GradCAM with the last layer's attention in the place of a convolution's channels.

    A head's map is its attention from the class token to the patches; its weight is the logit's gradient with respect
    to these attention weights (after the softmax), mean over patches. The weighted maps' mean over heads, negatives
    set to 0: all zero for an image whose heads all speak against the class. Selvaraju et al., "Grad-CAM" (ICCV 2017),
    as applied to transformers in Chefer et al. 2021, section 4.
    Shapes and errors as above.
    """
    tower = read_tower(model.visual)
    with torch.inference_mode(False):  # gradients even where the caller switched them off
        with torch.no_grad():
            tokens = _last(run_layers(tower, tower.embed(images))).before
        with torch.enable_grad():
            last = run_layer(tower.blocks[-1], tokens.requires_grad_())
            (gradient,) = _gradients(tower, [last], classifier, predicted)
    weights = gradient[:, :, 0, 1:].mean(dim=-1, keepdim=True)  # [b, h, 1]
    return _maps(tower, images, (weights * last.attention[:, :, 0, 1:]).mean(dim=1).relu())


def _gradients(tower: Tower, layers: list[Layer], classifier: Tensor, predicted: Tensor) -> tuple[Tensor, ...]:
    """Gradients [b, h, n, n] of each image's logit with respect to its attention weights in each of the layers."""
    logits = (represent(tower, layers[-1].after) * classifier.T[predicted]).sum(dim=-1)
    return torch.autograd.grad(logits.sum(), [layer.attention for layer in layers])


@torch.no_grad()
def maskclip(model: nn.Module, images: Tensor, classifier: Tensor, predicted: Tensor) -> Tensor:
    """MaskCLIP: every patch takes the class token's way to the joint space, as if it attended to itself alone.

    The last layer's value of each patch, through the output projection, the final norm and the projection, at unit
    length, times the predicted class's column: a cosine, not compared with other classes. No residual stream and no
    MLP of the last layer, as Zhou, Loy and Dai, "Extract Free Dense Labels from CLIP" (ECCV 2022), section 3, define
    it on the attention pooling of CLIP's ResNet; key smoothing and prompt denoising are left out.
    Shapes and errors as above.
    """
    tower = read_tower(model.visual)
    last = _last(run_layers(tower, tower.embed(images)))
    values = F.linear(_merge(last.v), last.block.out_weight, last.block.out_bias)[:, 1:]
    patches = F.normalize(tower.norm(values) @ tower.projection, dim=-1)
    return _maps(tower, images, torch.einsum("bnd,db->bn", patches, classifier[:, predicted]))


@torch.no_grad()
def lrp(model: nn.Module, images: Tensor, classifier: Tensor, predicted: Tensor) -> Tensor:
    """Layer-wise relevance propagation from the logit to the tokens that enter the first block.

    The sum over the width of each patch's token; its position embedding and `ln_pre` are part of it. Rules as in
    `propagate`. Binder et al., "Layer-wise Relevance Propagation for Neural Networks with Local Renormalization
    Layers" (ICANN 2016), as applied to transformers in Chefer et al. 2021, section 4. Shapes and errors as above.
    """
    visual = _double(model.visual)
    tower = read_tower(visual)
    layers = list(run_layers(tower, tower.embed(images.double())))
    _, tokens = _last(propagate(visual, tower, layers, classifier.double(), predicted))
    return _maps(tower, images, tokens[:, 1:].sum(dim=-1))


@torch.no_grad()
def partial_lrp(model: nn.Module, images: Tensor, classifier: Tensor, predicted: Tensor) -> Tensor:
    """The relevance of the last layer's attention weights from the class token to every patch: negatives of each head
    set to 0, mean over heads.

    Voita et al., "Analyzing Multi-Head Self-Attention" (ACL 2019), section 4, as applied in Chefer et al. 2021,
    section 4. Rules as in `propagate`. Shapes and errors as above.
    """
    visual = _double(model.visual)
    tower = read_tower(visual)
    last = _last(run_layers(tower, tower.embed(images.double())))
    attention, _ = next(propagate(visual, tower, [last], classifier.double(), predicted))
    return _maps(tower, images, attention[:, :, 0, 1:].relu().mean(dim=1))


def chefer(model: nn.Module, images: Tensor, classifier: Tensor, predicted: Tensor) -> Tensor:
    """Transformer attribution: rollout of relevance times gradient.

    In every layer, the logit's gradient with respect to the attention weights times their relevance (rules as in
    `propagate`), negatives set to 0, mean over heads: M. Then the class token's row of the product of I + M over
    layers, not normalised. Chefer et al. 2021, section 3. The logit is the cosine, without CLIP's
    temperature, which would weigh paths through several layers more.
    Shapes and errors as above.
    """
    with torch.inference_mode(False):  # gradients even where the caller switched them off
        visual = _double(model.visual)
        tower, classifier = read_tower(visual), classifier.double()
        with torch.no_grad():
            tokens = tower.embed(images.double())
        with torch.enable_grad():
            layers = list(run_layers(tower, tokens.requires_grad_()))
            gradients = _gradients(tower, layers, classifier, predicted)
        with torch.no_grad():
            relevances = [attention for attention, _ in propagate(visual, tower, layers, classifier, predicted)]
            matrices = [(gradient * relevance).relu().mean(dim=1) for gradient, relevance in zip(gradients, relevances[::-1])]
    return _maps(tower, images, _roll(matrices, half=False))


def propagate(visual: nn.Module, tower: Tower, layers: list[Layer], classifier: Tensor,
              predicted: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Relevance of attention weights [b, h, n, n] and of the tokens that enter [b, n, w], from the last of `layers` to
    the first. `layers` are what `run_layers` gave for all, or for the last few, of the blocks of `tower`, read from `visual`.

    The logit's relevance is 1, whatever its value, and no rule creates or loses any. The rules of Chefer et al. 2021,
    section 3:
    - linear layers: in proportion to the positive ones among the products of input and weight (alpha 1, beta 0);
      biases get none (`relevance_of_linear`);
    - residual sums: in proportion to both summands, then rescaled to bound cancellation (`relevance_of_sum`);
    - matrix products (attention times values, queries times keys): half to each factor, in proportion to the products,
      which is what their rescaling comes to (`relevance_of_product`);
    - norms, activations, softmax, LayerScale, the scaling to unit length: passed on unchanged.
    """
    last = layers[-1].after
    gains = (represent(tower, last) * classifier.T[predicted]).relu()  # the linear rule, every image with its own weights
    relevance = _divide(gains, gains.sum(dim=-1, keepdim=True))
    tokens = torch.zeros_like(last)
    tokens[:, 0] = relevance_of_linear(tower.norm(last[:, 0]), tower.projection.T, relevance)
    resblocks = visual.transformer.resblocks[-len(layers):]
    for layer, resblock in zip(reversed(layers), reversed(resblocks)):
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


METHODS: dict[str, Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]] = {
    "raw_attention": raw_attention, "rollout": rollout, "gradcam": gradcam, "lrp": lrp, "partial_lrp": partial_lrp,
    "chefer": chefer, "maskclip": maskclip}
