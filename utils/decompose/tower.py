"""The fast path: the exact decomposition of open_clip's own image towers (arXiv 2310.05916, section 3).

The representation is the class token after the last block, through the final LayerNorm and the
projection. The residual stream makes it a sum of terms: one for each attention head of each layer,
one for each MLP, one for the embedded class token. `read_tower` takes from open_clip's own model what
is needed, and `refusal` says of any other why not; `decompose` runs one forward pass and returns the terms.
"""
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.cli import UserError
from utils.decompose.terms import Terms
from utils.runs.components import Component


@dataclass
class Block:
    """One pre-norm transformer block, x + attention(norm_1(x)), then x + mlp(norm_2(x))."""
    heads: int
    norm_1: nn.Module
    qkv_weight: Tensor            # [3w, w]
    qkv_bias: Tensor | None       # [3w]
    norm_q: nn.Module             # on queries and keys of each head; the identity in most models
    norm_k: nn.Module
    out_weight: Tensor            # [w, w], each head's scale and LayerScale included
    out_bias: Tensor              # [w], LayerScale included
    norm_2: nn.Module
    mlp: Callable[[Tensor], Tensor]  # LayerScale included


@dataclass
class Tower:
    """What the decomposition needs of an image tower."""
    embed: Callable[[Tensor], Tensor]  # images [b, 3, height, width] -> tokens [b, n, w] that enter the first block
    blocks: list[Block]
    norm: nn.LayerNorm                 # the final LayerNorm
    projection: Tensor                 # [w, d]
    head_maps: Tensor                  # [l, h, k, d]: a head's output -> joint space, the final norm's weight included
    patch_size: tuple[int, int]
    components: list[Component]


def refusal(visual: nn.Module) -> str | None:
    """Why an image tower is not one that `read_tower` reads; None for one that it does.

    It reads open_clip's own vision transformers with class-token pooling: quick-GELU or GELU, with or without `ln_pre`,
    LayerScale, norms on queries and keys.
    """
    kind = type(visual).__name__
    if kind != "VisionTransformer" or not type(visual).__module__.startswith("open_clip."):
        known = {"ModifiedResNet": "it is a ResNet: aten.relu stands on its residual path after every block",
                 "TimmModel": "its image tower comes from timm"}
        return known.get(kind, f"its image tower is of an unknown class, {kind}")
    if visual.attn_pool is not None:
        return "it pools its tokens by attention"
    if visual.pool_type != "tok":
        return f"it pools its tokens by {visual.pool_type!r}, and not by the class token ('tok')"
    if visual.proj is None or not isinstance(visual.ln_post, nn.LayerNorm) or visual.ln_post.weight is None:
        return "its final norm is not a LayerNorm with weights, or it has no projection"
    return next(filter(None, map(refusal_of_block, visual.transformer.resblocks)), None)


def refusal_of_block(block: nn.Module) -> str | None:
    """Why a block of open_clip is not one that `read_block` reads; None for one that it does."""
    children = {name for name, child in block.named_children() if not isinstance(child, nn.Identity)}
    if not {"ln_1", "attn", "ln_2", "mlp"} <= children <= {"ln_1", "attn", "ls_1", "ln_2", "mlp", "ls_2"}:
        return f"its blocks ({type(block).__name__}) hold {', '.join(sorted(children))}"
    if not (isinstance(block.ls_1, nn.Identity) or hasattr(block.ls_1, "gamma")):
        return f"its layer scale is of an unknown class, {type(block.ls_1).__name__}"
    attn = block.attn
    if isinstance(attn, nn.MultiheadAttention):
        plain = attn.in_proj_weight is not None and attn.bias_k is None and not attn.add_zero_attn and attn.batch_first
        return None if plain else "its nn.MultiheadAttention has separate or additional keys and values"
    if not (type(attn).__module__.startswith("open_clip.") and hasattr(attn, "in_proj_weight")):
        return f"its attention is of an unknown class, {type(attn).__module__}.{type(attn).__name__}"
    if not isinstance(attn.ln_inner, nn.Identity):
        return "a norm over all heads (scale_attn_inner) lies between its heads and their output projection"
    return "its attention is a scaled cosine" if attn.scaled_cosine else None


def read_block(block: nn.Module) -> Block:
    """All that is read from a block of open_clip stands here."""
    attn = block.attn
    norm_q = norm_k = nn.Identity()
    out_weight, width = attn.out_proj.weight.detach(), attn.out_proj.weight.shape[0]
    out_bias = torch.zeros_like(out_weight[0]) if attn.out_proj.bias is None else attn.out_proj.bias.detach()
    if not isinstance(attn, nn.MultiheadAttention):
        norm_q, norm_k = attn.ln_q, attn.ln_k
        if attn.head_scale is not None:
            out_weight = out_weight * attn.head_scale.detach().flatten().repeat_interleave(width // attn.num_heads)
    if hasattr(block.ls_1, "gamma"):
        out_weight, out_bias = out_weight * block.ls_1.gamma.detach()[:, None], out_bias * block.ls_1.gamma.detach()
    return Block(heads=attn.num_heads, norm_1=block.ln_1, qkv_weight=attn.in_proj_weight.detach(),
                 qkv_bias=None if attn.in_proj_bias is None else attn.in_proj_bias.detach(),
                 norm_q=norm_q, norm_k=norm_k, out_weight=out_weight, out_bias=out_bias,
                 norm_2=block.ln_2, mlp=lambda x: block.ls_2(block.mlp(x)))


def read_tower(visual: nn.Module) -> Tower:
    """Read an image tower of open_clip (`model.visual`, in eval mode). Raises UserError with the `refusal` of any
    other."""
    if reason := refusal(visual):
        raise UserError(f"this model cannot be decomposed: {reason}")

    def embed(images: Tensor) -> Tensor:
        patches = visual.conv1(images)
        positions = _resize(visual.positional_embedding, tuple(visual.grid_size), tuple(patches.shape[-2:]))
        first = visual.class_embedding.expand(len(images), 1, -1)
        return visual.ln_pre(torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1) + positions)

    blocks = [read_block(block) for block in visual.transformer.resblocks]
    projection = visual.proj.detach()
    weighted = visual.ln_post.weight.detach()[:, None] * projection  # [w, d]
    head_maps = torch.stack([(block.out_weight.T @ weighted).unflatten(0, (block.heads, -1)) for block in blocks])
    components = [Component("attn", layer, head) for layer, block in enumerate(blocks) for head in range(block.heads)]
    components += [Component("embed"), *(Component("mlp", layer) for layer in range(len(blocks)))]
    return Tower(embed=embed, blocks=blocks, norm=visual.ln_post, projection=projection, head_maps=head_maps,
                 patch_size=tuple(visual.patch_size), components=components)


def _resize(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Position embeddings [n, w], the class token's first, from one grid of patches to another (bicubic)."""
    if old == new:
        return positions
    patches = positions[1:].T.unflatten(1, old)[None]
    patches = F.interpolate(patches, size=new, mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], patches[0].flatten(1).T])


# Kernels of CUDA that also tell the logarithm of the sum under each query's softmax, by torch's number for them.
_KERNELS = {1: (torch.ops.aten._scaled_dot_product_flash_attention, ()),
            2: (torch.ops.aten._scaled_dot_product_efficient_attention, (None, True)),
            3: (torch.ops.aten._scaled_dot_product_cudnn_attention, (None, True))}


def _attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
    """Attention [b, h, n or 1, k] and, on a GPU, the logarithm of the sum under the class token's softmax [b, h].

    The kernel knows that sum already; to take it from there spares a second pass over all keys in every block.
    """
    if q.is_cuda and not torch.compiler.is_compiling():  # compiled, the second pass is fused away
        q, k = q.to(v.dtype), k.to(v.dtype)
        kernel, options = _KERNELS.get(torch._fused_sdp_choice(q, k, v), (None, ()))
        if kernel is not None and q.shape[-1] % 8 == 0:
            out, sums = kernel(q, k, v, *options)[:2]
            return out, sums.flatten(2)[:, :, 0]
    return F.scaled_dot_product_attention(q, k, v), None


@dataclass
class Read:
    """What the class token's attention in a block is made from."""
    query: Tensor        # [b, h, 1, k]
    keys: Tensor         # [b, h, n, k]
    values: Tensor       # [b, h, n, k]
    sums: Tensor | None  # [b, h]: the logarithm of the sum under its softmax, where the kernel told it

    def weights(self) -> Tensor:
        """The attention weights of the class token [b, h, n]."""
        scores = (self.query @ self.keys.transpose(-1, -2)).squeeze(2) * self.query.shape[-1] ** -0.5
        return scores.softmax(dim=-1)

    def own(self) -> Tensor | tuple[Tensor, Tensor]:
        """What the class token reads from itself [b, h, k]; or what `_own` makes that from, for all blocks at once."""
        if self.sums is None:
            return self.weights()[..., :1] * self.values[:, :, 0]
        return torch.stack([self.query[:, :, 0], self.keys[:, :, 0], self.values[:, :, 0]]), self.sums


def _own(parts: list[Tensor | tuple[Tensor, Tensor]]) -> Tensor:
    """What the class token reads from itself in each block [b, l, h, k], from `Read.own` of all blocks."""
    told = [part for part in parts if isinstance(part, tuple)]
    if told:
        query, key, value = torch.stack([vectors for vectors, _ in told], 2).float()
        scores = (query * key).sum(dim=-1) * query.shape[-1] ** -0.5
        made = iter(((scores - torch.stack([sums for _, sums in told], 1)).exp()[..., None] * value).unbind(1))
        parts = [next(made) if isinstance(part, tuple) else part.float() for part in parts]
    return torch.stack(parts, 1)


def attend(block: Block, x: Tensor, only_class_token: bool) -> tuple[Tensor, Tensor, Read]:
    """Attention of one block.

    Returns what it adds to the residual stream [b, n or 1, w], the class token's head outputs before
    the output projection [b, h, k], and what these are made from.
    """
    width = x.shape[-1]
    y = block.norm_1(x)

    def part(tokens: Tensor, first: int, last: int) -> tuple[Tensor, ...]:
        rows = slice(first * width, last * width)
        out = F.linear(tokens, block.qkv_weight[rows], None if block.qkv_bias is None else block.qkv_bias[rows])
        return out.unflatten(-1, (last - first, block.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    if only_class_token:
        (q,), (k, v) = part(y[:, :1], 0, 1), part(y, 1, 3)
    else:
        q, k, v = part(y, 0, 3)
    q, k = block.norm_q(q), block.norm_k(k)
    out, sums = _attention(q, k, v)  # [b, h, n or 1, k]
    added = F.linear(out.transpose(1, 2).flatten(2), block.out_weight, block.out_bias)
    return added, out[:, :, 0], Read(q[:, :, :1], k, v, sums)


@torch.no_grad()
def encode(tower: Tower, images: Tensor) -> Tensor:
    """The representations [b, d] of images, by a plain pass."""
    x = tower.embed(images)
    for block in tower.blocks:
        x = x + attend(block, x, only_class_token=False)[0]
        x = x + block.mlp(block.norm_2(x))
    return tower.norm(x[:, 0]) @ tower.projection


@torch.no_grad()
def decompose(tower: Tower, images: Tensor, by_source: list[Tensor] | None = None) -> Terms:
    """Decompose the representations of images [b, 3, height, width] at the cost of a forward pass.

    Sums commute with linear maps: a head's output, summed over tokens, is kept at head width and
    projected once. The last block runs for the class token alone.
    Biases, the final LayerNorm's mean and its bias are shared out evenly over the terms
    (paper section 3.2 and appendix A.1; conventions of the published code).
    To `by_source`, where it is given, each layer's outputs of heads are added by their source tokens, [b, h, n, k].
    """
    x = tower.embed(images)
    tokens = x.shape[1]
    mlp, heads, self_attended = [x[:, 0].clone()], [], []  # clones: a slice would hold all tokens of every block
    for index, block in enumerate(tower.blocks):
        last = index == len(tower.blocks) - 1
        added, out, read = attend(block, x, only_class_token=last)
        x = (x[:, :1] if last else x) + added
        heads.append(out.clone())
        self_attended.append(read.own())
        if by_source is not None:
            by_source.append(read.weights()[..., None] * read.values)
        added = block.mlp(block.norm_2(x))
        x = x + added
        mlp.append(added[:, 0].clone())
    with torch.autocast(images.device.type, enabled=False):  # half precision is for the model; sums keep their own
        parts = [part.to(tower.projection.dtype) for part in (x[:, 0], torch.stack(mlp, 1), torch.stack(heads, 1),
                                                              _own(self_attended))]
        return project(tower, *parts, tokens)


def decompose_tokens(tower: Tower, images: Tensor) -> tuple[Terms, Callable[[Tensor], dict[int, Tensor]]]:
    """`decompose`, and a function of vectors [m, b, c, d]: by layer, what the source tokens of each head add to its
    product with the vectors, without its constants, [m, b, h, n] (paper section 3.3)."""
    by_source: list[Tensor] = []
    terms = decompose(tower, images, by_source)

    def score(vectors: Tensor) -> dict[int, Tensor]:
        layers, heads = tower.head_maps.shape[:2]
        vectors = vectors[:, :, :layers * heads].unflatten(2, (layers, heads))
        reads = torch.einsum("mblhd,lhkd->lmbhk", vectors, tower.head_maps) * terms.scalars[:, 0, None, None]
        return {layer: torch.einsum("bhnk,mbhk->mbhn", some.to(read), read)
                for layer, (some, read) in enumerate(zip(by_source, reads))}

    return terms, score


def project(tower: Tower, final: Tensor, mlp: Tensor, heads: Tensor, self_attended: Tensor, tokens: int | Tensor,
            bias: Tensor | None = None) -> Terms:
    """Carry terms into the joint space, through the final LayerNorm with its statistics frozen.

    final [b, w] is the token that is read, after the last block; mlp [b, l + 1, w]; heads and self_attended
    [b, l, h, k] are before the output projection; `tokens` is the number of sources, or that of each text [m, 1, 1].
    The projection's `bias` [d], where it has one, goes to the embedding's term.
    """
    layers, number = heads.shape[1:3]
    shares = 2 * layers + 1  # terms that share the final norm's mean and bias, before layers split into heads
    variance, mean = torch.var_mean(final, dim=-1, correction=0)
    weighted = tower.norm.weight[:, None] * tower.projection          # [w, d]
    mean_part = mean[:, None, None] * weighted.sum(0)                 # [b, 1, d]
    bias_part = tower.norm.bias @ tower.projection                    # [d]
    out_bias = torch.stack([block.out_bias for block in tower.blocks]) @ weighted  # [l, d]
    std = (variance + tower.norm.eps).sqrt()[:, None, None]

    representation = tower.norm(final) @ tower.projection + (0 if bias is None else bias)
    length = representation.norm(dim=-1)[:, None, None]

    def share(terms: Tensor, among: int) -> Tensor:
        """Centre, scale and shift terms [b, _, d] in place, each of which stands for one of `among` parts."""
        return terms.sub_(mean_part / among).div_(std).add_(bias_part / among).div_(length)

    attn = torch.einsum("blhk,lhkd->blhd", heads, tower.head_maps).add_(out_bias[:, None] / number)
    cls_attn = torch.einsum("blhk,lhkd->bld", self_attended, tower.head_maps).add_(out_bias / tokens)
    inverse = 1 / (std * length)  # [b, 1, 1]
    scalars = torch.cat([inverse[:, 0], mean[:, None] * inverse[:, 0], 1 / length[:, 0]], dim=1)
    values = torch.cat([share(attn.flatten(1, 2), shares * number), share(mlp @ weighted, shares)], dim=1)
    if bias is not None:
        values[:, layers * number] += bias / length[:, 0]
    return Terms(tower.components, values, representation / length[:, 0], share(cls_attn, shares * tokens),
                 outputs=heads * inverse[..., None], scalars=scalars)


def readout(tower: Tower) -> Tensor:
    """What makes a head's term of its output and an image's scalars, as `Terms` has them: [l, h, k + 3, d]."""
    layers, number, _, width = tower.head_maps.shape
    shares = (2 * layers + 1) * number
    weighted = tower.norm.weight[:, None] * tower.projection
    out_bias = torch.stack([block.out_bias for block in tower.blocks]) @ weighted / number  # [l, d]
    rows = torch.stack([out_bias, (-weighted.sum(0) / shares).expand(layers, -1),
                        (tower.norm.bias @ tower.projection / shares).expand(layers, -1)], dim=1)  # [l, 3, d]
    return torch.cat([tower.head_maps, rows[:, None].expand(-1, number, -1, -1)], dim=2)


