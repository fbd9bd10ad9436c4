"""The exact decomposition of a CLIP image representation (arXiv 2310.05916, section 3).

The representation is the class token after the last block, through the final LayerNorm and the
projection. The residual stream makes it a sum of terms: one for each attention head of each layer,
one for each MLP, one for the embedded class token. This file is the only one that knows the inside
of a transformer: `read_tower` takes from open_clip's own model what is needed, and refuses what it
does not know; `decompose` runs one forward pass and returns the terms.
"""
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.cli import UserError
from utils.decompose import walk
from utils.models.names import Vision


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
    image_size: tuple[int, int]
    patch_size: tuple[int, int]


@dataclass
class Terms:
    """The terms of a batch of images, float32, each divided by the norm of its image's representation."""
    attn: Tensor            # [b, l, h, d]: one term a head, summed over tokens
    mlp: Tensor             # [b, l + 1, d]: the embedded class token, then MLP 1 to l
    cls_attn: Tensor        # [b, l, d]: the part of attn whose source is the class token, summed over heads
    representation: Tensor  # [b, d]: unit length; what attn and mlp sum to
    outputs: Tensor         # [b, l, h, k]: the heads' outputs before their output projection, over sigma r, and
    scalars: Tensor         # [b, 3]: 1 / (sigma r), mu / (sigma r), 1 / r, from which `readout` makes attn


@dataclass
class TokenTerms:
    """What each token of an image contributes through the attention of some or all heads, float32, divided by the
    norm of the image's representation."""
    attn: Tensor            # [b, n, d]: one term a source token, summed over layers and heads; the class token's first
    rest: Tensor            # [b, d]: the embedded class token and all MLPs, and heads that were not asked for
    representation: Tensor  # [b, d]: unit length; what attn and rest sum to
    grid: tuple[int, int]   # rows and columns of patches, n = rows x columns + 1


def _refuse(what: str) -> UserError:
    return UserError(f"this model cannot be decomposed: {what}")


def _read_block(block: nn.Module) -> Block:
    """All that is read from a block of open_clip stands here. Raises UserError for what is not known."""
    kind = type(block).__name__
    children = {name for name, child in block.named_children() if not isinstance(child, nn.Identity)}
    if not {"ln_1", "attn", "ln_2", "mlp"} <= children <= {"ln_1", "attn", "ls_1", "ln_2", "mlp", "ls_2"}:
        raise _refuse(f"its blocks ({kind}) hold {', '.join(sorted(children))}")
    attn = block.attn
    norm_q = norm_k = nn.Identity()
    head_scale = None
    if isinstance(attn, nn.MultiheadAttention):
        plain = attn.in_proj_weight is not None and attn.bias_k is None and not attn.add_zero_attn and attn.batch_first
        if not plain:
            raise _refuse("its nn.MultiheadAttention has separate or additional keys and values")
    elif type(attn).__module__.startswith("open_clip.") and hasattr(attn, "in_proj_weight"):
        if not isinstance(attn.ln_inner, nn.Identity):
            raise _refuse("a norm over all heads (scale_attn_inner) lies between its heads and their output projection")
        if attn.scaled_cosine:
            raise _refuse("its attention is a scaled cosine")
        norm_q, norm_k, head_scale = attn.ln_q, attn.ln_k, attn.head_scale
    else:
        raise _refuse(f"its attention is of an unknown class, {type(attn).__module__}.{type(attn).__name__}")
    out_weight, width = attn.out_proj.weight.detach(), attn.out_proj.weight.shape[0]
    out_bias = torch.zeros_like(out_weight[0]) if attn.out_proj.bias is None else attn.out_proj.bias.detach()
    if head_scale is not None:
        out_weight = out_weight * head_scale.detach().flatten().repeat_interleave(width // attn.num_heads)
    if hasattr(block.ls_1, "gamma"):
        out_weight, out_bias = out_weight * block.ls_1.gamma.detach()[:, None], out_bias * block.ls_1.gamma.detach()
    elif not isinstance(block.ls_1, nn.Identity):
        raise _refuse(f"its layer scale is of an unknown class, {type(block.ls_1).__name__}")
    return Block(heads=attn.num_heads, norm_1=block.ln_1, qkv_weight=attn.in_proj_weight.detach(),
                 qkv_bias=None if attn.in_proj_bias is None else attn.in_proj_bias.detach(),
                 norm_q=norm_q, norm_k=norm_k, out_weight=out_weight, out_bias=out_bias,
                 norm_2=block.ln_2, mlp=lambda x: block.ls_2(block.mlp(x)))


def read_tower(visual: nn.Module) -> Tower:
    """Read an image tower of open_clip (`model.visual`, in eval mode).

    Any of its own vision transformers with class-token pooling: quick-GELU or GELU, with or without
    `ln_pre`, LayerScale, norms on queries and keys. Raises UserError with the reason for the others.
    """
    kind = type(visual).__name__
    if kind != "VisionTransformer" or not type(visual).__module__.startswith("open_clip."):
        raise _refuse({"ModifiedResNet": "it is a ResNet, whose image tower has no residual stream of attention heads",
                       "TimmModel": "its image tower comes from timm, which is not supported yet",
                       }.get(kind, f"its image tower is of an unknown class, {kind}"))
    if visual.attn_pool is not None:
        raise _refuse("it pools its tokens by attention, which is not supported yet")
    if visual.pool_type != "tok":
        raise _refuse(f"it pools its tokens by {visual.pool_type!r}, and only the class token ('tok') is supported yet")
    if visual.proj is None or not isinstance(visual.ln_post, nn.LayerNorm) or visual.ln_post.weight is None:
        raise _refuse("its final norm is not a LayerNorm with weights, or it has no projection")

    def embed(images: Tensor) -> Tensor:
        patches = visual.conv1(images)
        positions = _resize(visual.positional_embedding, tuple(visual.grid_size), tuple(patches.shape[-2:]))
        first = visual.class_embedding.expand(len(images), 1, -1)
        return visual.ln_pre(torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1) + positions)

    blocks = [_read_block(block) for block in visual.transformer.resblocks]
    projection = visual.proj.detach()
    weighted = visual.ln_post.weight.detach()[:, None] * projection  # [w, d]
    head_maps = torch.stack([(block.out_weight.T @ weighted).unflatten(0, (block.heads, -1)) for block in blocks])
    return Tower(embed=embed, blocks=blocks, norm=visual.ln_post, projection=projection,
                 head_maps=head_maps, image_size=tuple(visual.image_size), patch_size=tuple(visual.patch_size))


def _resize(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Position embeddings [n, w], the class token's first, from one grid of patches to another (bicubic)."""
    if old == new:
        return positions
    patches = positions[1:].T.unflatten(1, old)[None]
    patches = F.interpolate(patches, size=new, mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], patches[0].flatten(1).T])


def _attend(block: Block, x: Tensor, only_class_token: bool) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Attention of one block.

    Returns what it adds to the residual stream [b, n or 1, w], the class token's head outputs before
    the output projection [b, h, k], and what these are sums of: the class token's attention weights
    [b, h, n] and the values [b, h, n, k].
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
    out = F.scaled_dot_product_attention(q, k, v)  # [b, h, n or 1, k]
    scores = (q[:, :, :1] @ k.transpose(-1, -2)).squeeze(2) * q.shape[-1] ** -0.5
    added = F.linear(out.transpose(1, 2).flatten(2), block.out_weight, block.out_bias)
    return added, out[:, :, 0], (scores.softmax(dim=-1), v)


@torch.no_grad()
def decompose(tower: Tower, images: Tensor) -> Terms:
    """Decompose the representations of images [b, 3, height, width] at the cost of a forward pass.

    Sums commute with linear maps: a head's output, summed over tokens, is kept at head width and
    projected once. The last block runs for the class token alone.
    Biases, the final LayerNorm's mean and its bias are shared out evenly over the terms
    (paper section 3.2 and appendix A.1; conventions of the published code).
    """
    x = tower.embed(images)
    tokens = x.shape[1]
    mlp, heads, self_attended = [x[:, 0]], [], []
    for index, block in enumerate(tower.blocks):
        last = index == len(tower.blocks) - 1
        added, out, (weights, values) = _attend(block, x, only_class_token=last)
        x = (x[:, :1] if last else x) + added
        heads.append(out)
        self_attended.append(weights[..., :1] * values[:, :, 0])
        added = block.mlp(block.norm_2(x))
        x = x + added
        mlp.append(added[:, 0])
    with torch.autocast(images.device.type, enabled=False):  # half precision is for the model; sums keep their own
        parts = [part.to(tower.projection.dtype) for part in (x[:, 0], torch.stack(mlp, 1), torch.stack(heads, 1),
                                                              torch.stack(self_attended, 1))]
        return _project(tower, *parts, tokens)


def _project(tower: Tower, final: Tensor, mlp: Tensor, heads: Tensor, self_attended: Tensor, tokens: int) -> Terms:
    """Carry terms into the joint space, through the final LayerNorm with its statistics frozen.

    final [b, w] is the class token after the last block; mlp [b, l + 1, w]; heads and self_attended
    [b, l, h, k] are before the output projection.
    """
    layers, number = heads.shape[1:3]
    shares = 2 * layers + 1  # terms that share the final norm's mean and bias, before layers split into heads
    variance, mean = torch.var_mean(final, dim=-1, correction=0)
    weighted = tower.norm.weight[:, None] * tower.projection          # [w, d]
    mean_part = mean[:, None, None] * weighted.sum(0)                 # [b, 1, d]
    bias_part = tower.norm.bias @ tower.projection                    # [d]
    out_bias = torch.stack([block.out_bias for block in tower.blocks]) @ weighted  # [l, d]
    std = (variance + tower.norm.eps).sqrt()[:, None, None]

    representation = tower.norm(final) @ tower.projection
    length = representation.norm(dim=-1)[:, None, None]

    def share(terms: Tensor, among: int) -> Tensor:
        """Centre, scale and shift terms [b, _, d], each of which stands for one of `among` parts."""
        return ((terms - mean_part / among) / std + bias_part / among) / length

    attn = torch.einsum("blhk,lhkd->blhd", heads, tower.head_maps) + out_bias[:, None] / number
    cls_attn = torch.einsum("blhk,lhkd->bld", self_attended, tower.head_maps) + out_bias / tokens
    inverse = 1 / (std * length)  # [b, 1, 1]
    scalars = torch.cat([inverse[:, 0], mean[:, None] * inverse[:, 0], 1 / length[:, 0]], dim=1)
    return Terms(attn=share(attn.flatten(1, 2), shares * number).unflatten(1, (layers, number)),
                 mlp=share(mlp @ weighted, shares),
                 cls_attn=share(cls_attn, shares * tokens),
                 representation=representation / length[:, 0], outputs=heads * inverse[..., None], scalars=scalars)


def readout(tower: Tower) -> Tensor:
    """What makes a head's term of its output and an image's scalars, as `Terms` has them: [l, h, k + 3, d]."""
    layers, number, _, width = tower.head_maps.shape
    shares = (2 * layers + 1) * number
    weighted = tower.norm.weight[:, None] * tower.projection
    out_bias = torch.stack([block.out_bias for block in tower.blocks]) @ weighted / number  # [l, d]
    rows = torch.stack([out_bias, (-weighted.sum(0) / shares).expand(layers, -1),
                        (tower.norm.bias @ tower.projection / shares).expand(layers, -1)], dim=1)  # [l, 3, d]
    return torch.cat([tower.head_maps, rows[:, None].expand(-1, number, -1, -1)], dim=2)


@torch.inference_mode()
def decompose_tokens(tower: Tower, images: Tensor, layer: int | None = None, head: int | None = None) -> TokenTerms:
    """What each source token contributes (paper section 3.3): its terms summed over layers and heads, or over those
    of one `layer` or one `head` of it, both counted from 0.

    Images [b, 3, height, width] may have any size that is a multiple of the patches'. Terms are summed at the
    tower's width, and projected once. Raises UserError for a layer or head that the model lacks.
    """
    layers, number = len(tower.blocks), tower.blocks[0].heads
    if head is not None and layer is None:
        raise UserError("a head needs its layer; name both, counted from 0")
    for name, value, there in (("layer", layer, layers), ("head", head, number)):
        if value is not None and not 0 <= value < there:
            raise UserError(f"{name} {value}: the model has {there} of them, counted from 0")
    x = tower.embed(images)
    tokens, terms = x.shape[1], torch.zeros_like(x)
    wanted = range(layers) if layer is None else [layer]
    for index, block in enumerate(tower.blocks):
        last = index == layers - 1
        added, _, (weights, values) = _attend(block, x, only_class_token=last)
        if index in wanted:
            by_source = (weights[..., None] * values).transpose(1, 2)  # [b, n, h, k]
            if head is not None:
                kept = torch.zeros_like(by_source)
                kept[:, :, head] = by_source[:, :, head]
                by_source = kept
            bias = block.out_bias / tokens * (1 if head is None else 1 / number)
            terms = terms + F.linear(by_source.flatten(2), block.out_weight, bias)
        x = (x[:, :1] if last else x) + added
        x = x + block.mlp(block.norm_2(x))
    final = x[:, 0]
    variance, mean = torch.var_mean(final, dim=-1, correction=0)
    weighted = tower.norm.weight[:, None] * tower.projection
    parts = tokens * (2 * layers + 1) / len(wanted) * (1 if head is None else number)  # that share the norm's mean and bias
    terms = (terms @ weighted - mean[:, None, None] * weighted.sum(0) / parts) / (variance + tower.norm.eps).sqrt()[:, None, None]
    terms = terms + tower.norm.bias @ tower.projection / parts
    representation = tower.norm(final) @ tower.projection
    length = representation.norm(dim=-1, keepdim=True)
    terms, representation = terms / length[:, None], representation / length
    grid = tuple(size // patch for size, patch in zip(images.shape[-2:], tower.patch_size))
    return TokenTerms(attn=terms, rest=representation - terms.sum(dim=1), representation=representation, grid=grid)


@dataclass
class Parts:
    """The terms of a batch of images as they are stored, float32, each divided by the norm of its image's representation."""
    arrays: dict[str, Tensor]      # "attn", "mlp" and, where there are any, "conv": they sum to the representation; "cls_attn"
    names: dict[str, list[dict]]   # of the terms of these arrays, in order: kind, block, head; of conv, mlp and attn
    representation: Tensor         # [b, d]: unit length


def reader(vision: Vision, compiled: bool = False) -> Callable[[Tensor], Parts]:
    """How images [b, 3, height, width] of a model are decomposed: `decompose` for the towers that it knows, and for all
    others the walk (utils/decompose/walk.py), which takes any network with a residual stream.

    `attn` is [b, l, h, d] where every layer has as many heads, and else [b, c, d]; `mlp` [b, m, d] begins with the
    embedding; `conv` is [b, k, d]; `cls_attn` [b, l, d] is there for models with a class token. With `compiled`, torch
    compiles `decompose`. Raises UserError, with the name of the operation, for a model that cannot be decomposed.
    """
    tower = find_tower(vision)
    if tower is None:
        return partial(by_walk, vision)
    return partial(by_tower, tower, run=torch.compile(decompose) if compiled else decompose)


def compact_reader(vision: Vision, compiled: bool = False) -> tuple[Callable[[Tensor], Parts], Tensor]:
    """Like `reader`, with the terms of heads kept at the heads' width: "heads" [b, l, h, k] and "scalars" [b, 3] in place of
    attn, all MLPs as one, mlp [b, 2, d], and cls_attn [b, 1, d] summed over layers; and the `readout` that goes with them.

    Raises UserError for a model whose heads are not known before their output projection.
    """
    try:
        tower = read_tower(vision.tower)
    except UserError as error:
        raise UserError("--compact and --moments_only keep heads before their output projection, which is known of open_clip's "
                        "own vision transformers alone; leave them out") from error

    run = torch.compile(decompose) if compiled else decompose

    def read(images: Tensor) -> Parts:
        terms = run(tower, images)
        mlp = torch.stack([terms.mlp[:, 0], terms.mlp[:, 1:].sum(dim=1)], dim=1)
        arrays = {"heads": terms.outputs, "scalars": terms.scalars, "mlp": mlp, "cls_attn": terms.cls_attn.sum(1, keepdim=True)}
        return Parts(arrays, {}, terms.representation)

    return read, readout(tower)


def find_tower(vision: Vision) -> Tower | None:
    """What `read_tower` reads of a model; None for one that the walk alone takes. Raises UserError for one that neither takes."""
    try:
        return read_tower(vision.tower)
    except UserError as refusal:
        try:
            by_walk(vision, torch.zeros(1, 3, *vision.image_size, device=vision.device))
        except UserError as error:
            own = vision.tower.__class__.__module__.startswith("open_clip.") and not hasattr(vision.tower, "trunk")
            raise (refusal if own else error) from error
    return None


def by_tower(tower: Tower, images: Tensor, run: Callable[[Tower, Tensor], Terms] = decompose) -> Parts:
    """The terms of `decompose`, or what it was compiled to, as they are stored."""
    terms = run(tower, images)
    layers, heads = terms.attn.shape[1:3]
    names = {"attn": [{"kind": "attn", "block": block, "head": head} for block in range(layers) for head in range(heads)],
             "mlp": [{"kind": "embed", "block": -1, "head": None},
                     *({"kind": "mlp", "block": block, "head": None} for block in range(layers))]}
    return Parts({"attn": terms.attn, "mlp": terms.mlp, "cls_attn": terms.cls_attn}, names, terms.representation)


def _stored(names: list[walk.Component]) -> dict[str, list[int]]:
    """The array in which each component is stored, and their order there: array -> places in `names`."""
    chosen = {what: [i for i, name in enumerate(names) if name.kind in kinds]
              for what, kinds in (("attn", ("attn",)), ("mlp", ("embed", "mlp")), ("conv", ("conv",)))}
    return {what: places for what, places in chosen.items() if places}


def by_walk(vision: Vision, images: Tensor) -> Parts:
    """The terms of any network as they are stored."""
    found = walk.decompose(vision.tower, images, vision.encode, sources="first" if vision.class_token else None)
    arrays, names = {}, {}
    for what, chosen in _stored(found.names).items():
        arrays[what] = found.terms[:, chosen]
        names[what] = [{"kind": found.names[i].kind, "block": found.names[i].block, "head": found.names[i].head}
                       for i in chosen]
    heads = Counter(name["block"] for name in names.get("attn", []))
    if len(set(heads.values())) == 1:
        arrays["attn"] = arrays["attn"].unflatten(1, (len(heads), -1))
    if vision.class_token:
        arrays["cls_attn"] = torch.cat([found.sources[block] for block in heads], dim=1)
    return Parts(arrays, names, found.representation)


@dataclass
class TokenScores:
    """What the parts of a model, and each source token of each head, add to the cosine similarity of images with directions,
    float32."""
    names: list[walk.Component]
    parts: Tensor                # [m, b, c]: sum to the similarity
    tokens: dict[int, Tensor]    # layer -> [m, b, h, n]: sum over n to the parts of the layer's heads
    grids: dict[int, tuple[int, int]]  # layer -> rows and columns of its patches, the last of its n tokens
    representation: Tensor       # [b, d]: unit length


def score_tokens(vision: Vision, images: Tensor, directions: Callable[[Tensor], Tensor],
                 maps: tuple[Tensor, Tensor] | None = None) -> TokenScores:
    """Score every component and source token of any network by the walk (utils/decompose/walk.py).

    `directions` gives unit vectors [m, b, d] for the representations [b, d]. `maps`, weight [c, k, d] and bias [d] of
    utils/analysis/alignment.py, carry a model of width k to a CLIP's space: each component by its own map, the bias split evenly over
    components, and a head's part over its tokens. Raises UserError for maps of other components, and for tokens that cannot be
    laid out as the image.
    """
    known = {}

    def vectors(names: list[walk.Component], terms: Tensor) -> Tensor:
        if maps is None:
            known["whole"], known["share"] = terms.sum(dim=1), terms.new_zeros(())
            return directions(known["whole"])[:, :, None].expand(-1, -1, len(names), -1)
        weight, bias = maps
        if weight.shape[:2] != (len(names), terms.shape[-1]):
            raise UserError(f"--maps were trained for {weight.shape[0]} components of width {weight.shape[1]}, and the model has "
                            f"{len(names)} of width {terms.shape[-1]}; make them again with compute_alignment.py")
        order = torch.tensor([place for places in _stored(names).values() for place in places], device=weight.device)
        weight = weight[order.argsort()]  # as the walk names components
        whole = torch.einsum("bck,ckd->bd", terms, weight) + bias
        length = whole.norm(dim=-1, keepdim=True)
        along = directions(whole / length) / length
        known["whole"], known["share"] = whole / length, (along @ bias / len(names))[..., None]
        return torch.einsum("mbd,ckd->mbck", along, weight)

    walked = walk.decompose(vision.tower, images, vision.encode, vectors=vectors)
    share = known["share"]  # of a component in the bias: [m, b, 1]
    tokens = {layer: some + share[..., None] / some.shape[-1] for layer, some in walked.scores.items()}
    grids = {layer: _grid(some.shape[-1] - vision.prefix_tokens, images.shape[-2:]) for layer, some in tokens.items()}
    return TokenScores(walked.names, walked.products + share, tokens, grids, known["whole"])


def _grid(patches: int, image_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of so many patches of about the same height and breadth. Raises UserError where there are none."""
    def stretch(rows: int) -> float:
        return abs(math.log(rows ** 2 * image_size[1] / (patches * image_size[0])))

    rows = min((rows for rows in range(1, patches + 1) if patches % rows == 0), key=stretch, default=None)
    if rows is None or stretch(rows) > math.log(2):
        raise UserError(f"this model's {patches} tokens cannot be laid out on its images of {image_size[0]} x {image_size[1]} "
                        "pixels; no heat map of it can be drawn")
    return rows, patches // rows


def patch_map(found: TokenScores, prefix_tokens: int, layer: int | None = None, head: int | None = None) -> Tensor:
    """What each patch adds through all heads, or those of one `layer`, or one `head` of it: [m, b, rows, columns].

    Layers of a hierarchical model have grids of their own. One layer is shown on its own; all are added on the finest of them,
    where the value of a larger patch is split evenly over its places. Raises UserError for a layer or head that the model lacks.
    """
    if layer is not None and layer not in found.tokens:
        raise UserError(f"layer {layer}: the model's layers with heads are {', '.join(map(str, sorted(found.tokens)))}")
    if head is not None and layer is None:
        raise UserError("a head needs its layer; name both, counted from 0")
    if head is not None and not 0 <= head < found.tokens[layer].shape[2]:
        raise UserError(f"head {head}: layer {layer} has {found.tokens[layer].shape[2]} of them, counted from 0")
    wanted = sorted(found.tokens) if layer is None else [layer]
    rows, columns = (max(found.grids[each][side] for each in wanted) for side in (0, 1))
    total = 0
    for each in wanted:
        patches = found.tokens[each][..., prefix_tokens:]
        patches = patches.sum(dim=2) if head is None else patches[:, :, head]
        total = total + _spread(patches.unflatten(-1, found.grids[each]), (rows, columns))
    return total


def _spread(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Values [..., rows, columns] on a finer grid, each split evenly over the places that are nearest to it."""
    for dim, size in ((-2, grid[0]), (-1, grid[1])):
        nearest = torch.arange(size, device=patches.device) * patches.shape[dim] // size
        split = patches.transpose(dim, -1) / torch.bincount(nearest, minlength=patches.shape[dim])
        patches = split[..., nearest].transpose(dim, -1)
    return patches


def check(encode: Callable[[Tensor], Tensor], read: Callable[[Tensor], Parts], images: Tensor,
          repeats: int = 3) -> dict[str, float]:
    """Compare the decomposition with the model's own output.

    `encode` gives representations [b, d], `read` is a `reader`. Returns `error`, the largest absolute difference between
    the sum of an image's terms and its own unit representation, and `cost`, the time of `read` over that of `encode`, the
    fastest of `repeats` each, in turns.
    """
    def timed(function: Callable) -> tuple[float, Tensor | Parts]:
        start = time.perf_counter()
        result = function()
        if images.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start, result

    times = {"plain": [], "ours": []}
    with torch.no_grad():
        for _ in range(repeats):
            seconds, plain = timed(lambda: F.normalize(encode(images), dim=-1))
            times["plain"].append(seconds)
            seconds, parts = timed(lambda: read(images))
            times["ours"].append(seconds)
        total = sum(terms.flatten(1, -2).sum(dim=1) for what, terms in parts.arrays.items() if what != "cls_attn")
        return {"error": (total - plain).abs().max().item(), "cost": min(times["ours"]) / min(times["plain"])}
