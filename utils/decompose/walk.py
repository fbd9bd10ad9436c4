"""The exact decomposition of any network with a residual stream, walked back from its output (arXiv 2406.01583).

Once the statistics of its norms and its attention weights are frozen, what a component (an attention head, an MLP, a
convolution block, the embedding) wrote reaches the representation through linear operations alone. This file knows
torch operations and no model. It does three things:

1. The recorder (utils/decompose/recorder.py) watches one plain forward pass, operation by operation. It keeps the
linear ones, each with
   the rule by which it is walked back (utils/decompose/readouts.py), and ends every chain at a non-linearity (a leaf)
   or an attention product.
2. `_walk` goes back from the representation. Summing over tokens commutes with linear maps of channels, so it carries
   only a small array of weights over tokens (`Readout`); every component is summed over its tokens where it was
   written.
3. `_gather` takes the sums [components, b, channels] forward again, through the maps of channels alone.

An operation that none of this covers ends the walk with its name.
"""
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from utils.cli import UserError
from utils.decompose import readouts
from utils.decompose.nodes import FROZEN, Edge, Node
from utils.decompose.readouts import Axis, Readout, contract, lay, reading, refuse
from utils.decompose.recorder import Recorder
from utils.decompose.terms import Terms
from utils.runs.components import ARRAYS, Component

KINDS = [kind for kinds in ARRAYS.values() for kind in kinds]  # in the order of components
MOST_PATHS = 4  # steps of the walk for each operation of the pass; a stream that branches at every block needs more


CLASS_TOKEN = "class token"  # in place of a head: the part of a layer that comes from it


def _walk(end: Node, output: Tensor) -> list[tuple[Node, Readout, Tensor | None]]:
    """Every step of every path back from the representation: (node, its readout, its value where it is a component)."""
    images, channel = Axis(output.shape[0]), Axis(output.shape[1])
    start = Readout([[images], [channel]], [channel], output.new_ones(()), [], images)
    steps, queue = [], [(Edge(end, None), start)]
    while queue:
        edge, readout = queue.pop()
        steps.append((edge.node, readout, edge.value))
        if len(steps) > MOST_PATHS * end.order:
            raise refuse(edge.node.op, "too many paths lead there")
        if edge.node.leaf:
            if edge.value is None:
                raise refuse(edge.node.op)
            continue
        for before, earlier in zip(edge.node.pull(readout), edge.node.edges):
            before.into = readout
            queue.append((earlier, before))
    return steps


def _name(steps: list) -> dict[Node, Component]:
    """The leaves, by the model's order: kind and block. A block holds at most one convolution, one attention and one
    MLP, in that order. Refuses a model whose later components hide earlier ones, or end in something other than an
    activation."""
    leaves = sorted({node.origin or node for node, _, _ in steps if node.leaf}, key=lambda leaf: leaf.order)
    passed, embedding = {node.order for node, _, _ in steps if not node.leaf}, leaves[0]
    if embedding.attentions or len(leaves) == 1:
        raise refuse(embedding.op)
    embedded = min(node.order for node, _, _ in steps if node.leaf and (node.origin or node) is embedding)
    rank, block, last = {"conv": 0, "attn": 1, "mlp": 2}, -1, 3
    names = {embedding: Component("embed")}
    for leaf in leaves[1:]:
        if not leaf.attention and not leaf.pointwise:
            raise refuse(leaf.op)
        recent = {kind for kind, order in leaf.made_of if order > embedded and order not in passed}
        kind = "attn" if leaf.attention else next((kind for kind in ("conv", "attn") if kind in recent), "mlp")
        block, last = block + (rank[kind] <= last), rank[kind]
        names[leaf] = Component(kind, block)
    return names


def decompose(model: nn.Module, images: Tensor, function: Callable[[Tensor], Tensor] | None = None,
              class_token: bool = False) -> Terms:
    """Decompose the representations of images [b, 3, height, width] into the model's components.

    `function` gives the representation [b, d] of images; by default the model itself does. The model must be in eval
    mode; with `class_token` its first token is one, and `cls_attn` is given. Constants on the way (biases, a norm's
    frozen mean) are split evenly over the layers that pass there, and a layer's share over its heads or source tokens.
    Raises UserError with the name of the operation that cannot be passed; and for an output that is not one vector an
    image.
    """
    return _decompose(model, images, function or model, class_token, None)[0]


def decompose_tokens(model: nn.Module, images: Tensor, function: Callable[[Tensor], Tensor] | None = None,
                     ) -> tuple[Terms, Callable[[Tensor], dict[int, Tensor]]]:
    """`decompose`, and a function of vectors [m, b, c, d]: by layer, what the source tokens of each head add to its
    product with the vectors, without its constants, [m, b, h, n].

    No terms of single tokens are held for it, but a model made in inference mode cannot be asked. Errors as above.
    """
    return _decompose(model, images, function or model, False, [])


@torch.inference_mode(False)  # that mode hides from the recorder what operations are made of
@torch.no_grad()
def _decompose(model: nn.Module, images: Tensor, function: Callable[[Tensor], Tensor], class_token: bool,
               written: list | None) -> tuple[Terms, Callable[[Tensor], dict[int, Tensor]]]:
    modules = {module: name for name, module in model.named_modules()}
    recorder = Recorder(images, modules, class_token or written is not None)
    with recorder.watch():
        output = function(images)
    end = recorder.found.get(output)
    recorder.found.clear()
    if output.ndim != 2 or len(output) != len(images) or end in (None, FROZEN):
        raise UserError("this model cannot be decomposed: its output is not one vector an image")
    steps = _walk(end, output)
    names = _name(steps)
    with torch.set_grad_enabled(written is not None):  # of what the attention layers write alone
        sums = _gather(steps, names, class_token, written)
    order = sorted((key for key in sums if key[1] != CLASS_TOKEN),
                   key=lambda key: (KINDS.index(names[key[0]].kind), key[0].order, key[1]))
    components = [replace(names[origin], head=head if origin.attention else None) for origin, head in order]
    length = output.norm(dim=-1, keepdim=True)
    values = torch.stack([sums[key] / length for key in order], dim=1)
    error = (values.sum(dim=1) - output / length).norm(dim=-1).max()
    if not error < 1e-2:
        raise UserError(f"this model cannot be decomposed: its components miss its output by {error:.1%}")
    first = sorted((key for key in sums if key[1] == CLASS_TOKEN), key=lambda key: key[0].order)
    cls_attn = torch.stack([sums[key] / length for key in first], dim=1) if first else None

    def score(vectors: Tensor) -> dict[int, Tensor]:
        with torch.enable_grad():
            reached = torch.stack([sums[key] for key in order], dim=1)
        return _score_tokens(written, reached, vectors / length[:, None], names)

    return Terms(components, values, output / length, cls_attn), score


def _gather(steps: list, names: dict[Node, Component], class_token: bool, written: list | None) -> dict:
    """The sums that reach the representation: (origin, head) or (origin, CLASS_TOKEN) -> [b, d].

    On the way, each comes with its shares of the layers' constants: a set of (origin, share). What attention layers
    write is added to `written`, where there is one: (node, readout, sums [h, b, *kept], of which gradients can be
    taken).
    """
    for node, readout, value in reversed(steps):
        if node.leaf:
            shares, sums = _write(node, readout, value)
            if written is not None and node.attention:
                sums = sums.detach().requires_grad_()
                written.append((node, readout, sums))
            readout.arrived.append((shares, sums))
            if node.attention and class_token:
                readout.arrived.append(_write_class_token(node, readout))
        if readout.into is not None and readout.carry is None and not node.constants:
            readout.into.arrived += readout.arrived
            readout.arrived = []
            continue
        shares, sums = _join(readout.arrived)
        readout.arrived = []
        if node.constants:
            constant = sum(reading(readout, factors) for factors in node.constants)
            layers = {origin for some in shares.values() for origin, _ in some}
            parts = sums.new_tensor([sum(share for _, share in some) for some in shares.values()]) / len(layers)
            sums = sums + parts.reshape(-1, *[1] * (sums.ndim - 1)) * constant
        if readout.into is not None:
            readout.into.arrived.append((shares, sums if readout.carry is None else readout.carry(sums)))
    return dict(zip(shares, sums))


def _join(arrived: list[tuple[dict, Tensor]]) -> tuple[dict, Tensor]:
    """Sums [c, b, *kept] with what got there by several paths, or from several layers to one place, added up."""
    if len(arrived) == 1:
        return arrived[0]
    shares, rows = {}, []
    for some, _ in arrived:
        for key, parts in some.items():
            shares[key] = shares.get(key, frozenset()) | parts
        rows += some
    sums = torch.cat([sums for _, sums in arrived])
    if len(shares) < len(rows):
        place = {key: row for row, key in enumerate(shares)}
        rows = torch.tensor([place[key] for key in rows], device=sums.device)
        sums = sums.new_zeros(len(shares), *sums.shape[1:]).index_add_(0, rows, sums)
    return shares, sums


def _heads(readout: Readout) -> list[Axis]:
    """The axes of an attention product's dimensions before tokens and channels that become channels."""
    return [axis for group in readout.dims[:-2] for axis in group if axis in readout.kept]


def _write(node: Node, readout: Readout, value: Tensor) -> tuple[dict, Tensor]:
    """What a leaf writes, summed over tokens: (origin, head) -> {(origin, share of the layer's constants)}, and the
    sums [c, b, *kept] in the same order."""
    sums = reading(readout, (value,))
    heads = _heads(readout) if node.attention else []
    if not heads:
        origin = node.origin or node
        return {(origin, 0): frozenset([(origin, 1.0)])}, sums[None]
    number, kept = Axis(math.prod(axis.size for axis in heads)), [readout.batch, *readout.kept]
    eye = torch.eye(number.size, dtype=sums.dtype, device=sums.device).reshape(-1, *[axis.size for axis in heads])
    shares = {(node, head): frozenset([(node, 1 / number.size)]) for head in range(number.size)}
    return shares, contract([(sums, kept), (eye, [number, *heads])], [number, *kept])


def _write_class_token(node: Node, readout: Readout) -> tuple[dict, Tensor]:
    """What an attention layer writes of its first source token, as `_write` gives it."""
    weights, values, queries = node.product
    read = readouts.attend(readout, weights, queries)
    source = read.summed()[-1]
    first = (torch.arange(source.size, device=values.device) == 0).to(values.dtype)
    read = read.change(weight=contract([(read.weight, read.axes), (first, [source])], read.axes))
    return {(node, CLASS_TOKEN): frozenset([(node, 1 / source.size)])}, reading(read, (values,))[None]


def _score_tokens(written: list, reached: Tensor, vectors: Tensor, names: dict[Node, Component]) -> dict[int, Tensor]:
    """What `decompose_tokens` gives of vectors [m, b, c, d], for what of the components reached the representation [b,
    c, d].

    The way from what a head writes to the product of its term with a vector is linear but for constants. Its gradient
    is the same for every token, and multiplies what the token writes.
    """
    sums = [some for *_, some in written]
    gradients = [torch.autograd.grad(reached, sums, some, retain_graph=True) for some in vectors]
    scores: dict[int, Tensor] = {}
    for step, (node, readout, _) in enumerate(written):
        gradient = torch.stack([of_all[step] for of_all in gradients])  # [m, h, b, *kept]
        tokens = _read_tokens(node, readout, gradient)
        layer = names[node].layer
        scores[layer] = scores[layer] + tokens if layer in scores else tokens
    return scores


def _read_tokens(node: Node, readout: Readout, gradient: Tensor) -> Tensor:
    """What each source token of an attention layer writes through each head, times that head's gradient [m, h, b,
    *kept]: [m, b, h, n]."""
    weights, values, queries = node.product
    heads, vector, head = _heads(readout), Axis(len(gradient)), Axis(gradient.shape[1])
    eye = torch.eye(head.size, dtype=gradient.dtype, device=gradient.device).reshape(-1, *[axis.size for axis in heads])
    own = [vector, readout.batch, *readout.kept]
    gradient = contract([(gradient, [vector, head, *own[1:]]), (eye, [head, *heads])], own)
    read = readouts.attend(readout, weights, queries)
    at = read.summed()
    operands = [(read.weight, read.axes), lay(values, read.dims), (gradient, own)]
    sums = contract(operands, [*at, vector, readout.batch, *heads]).flatten(0, len(at) - 1)
    sums = _on_stream(node, read, at, sums)
    return sums.reshape(*sums.shape[:3], -1).permute(1, 2, 3, 0)


def _on_stream(node: Node, read: Readout, at: list[Axis], sums: Tensor) -> Tensor:
    """Sums of source tokens [n, ...] in the order of the residual stream's tokens, which windows and shifts change.
    Tokens that pad a window are shared out over the others."""
    count = math.prod(axis.size for axis in at)
    kept = [axis for axis in read.kept if any(axis in group for group in read.dims)]
    index = torch.arange(count, dtype=torch.float64, device=sums.device).reshape([axis.size for axis in at])
    pulled = []
    for weight in (index, torch.ones_like(index)):
        edge, asked = node.edges[0], read.change(weight=weight, axes=at, kept=kept)
        while edge.node.order > node.beside and len(edge.node.edges) == 1 and not edge.node.leaf:
            (asked,) = edge.node.pull(asked)
            (edge,) = edge.node.edges
        pulled.append(contract([(asked.weight, asked.axes)], asked.summed()).flatten())
    order = (pulled[0] / pulled[1]).round().long()
    padding = (sums.sum(dim=0) - sums[order].sum(dim=0)) / len(order)
    return sums[order] + padding
