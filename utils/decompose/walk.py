"""The exact decomposition of any network with a residual stream, walked back from its output (arXiv 2406.01583).

Once the statistics of its norms and its attention weights are frozen, what a component (an attention head, an MLP, a
convolution block, the embedding) wrote reaches the representation through linear operations alone. This file knows
torch operations and no model. It does three things:

1. The recorder (utils/decompose/recorder.py) watches one plain forward pass, operation by operation. It keeps the linear ones, each with
   the rule by which it is walked back (utils/decompose/readouts.py), and ends every chain at a non-linearity (a leaf) or an attention
   product.
2. `_walk` goes back from the representation. Summing over tokens commutes with linear maps of channels, so it carries
   only a small array of weights over tokens (`Readout`); every component is summed over its tokens where it was written.
3. `_gather` takes the sums [components, b, channels] forward again, through the maps of channels alone.

An operation that none of this covers ends the walk with its name.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from utils.cli import UserError
from utils.decompose import readouts
from utils.decompose.readouts import Axis, Readout, contract, lay, reading, refuse
from utils.decompose.recorder import FROZEN, Edge, Node, Recorder
from utils.runs.terms import Component as StoredComponent

MOST_PATHS = 4  # times the operations of the pass may the walk have steps; a stream that branches at every block needs more


@dataclass(frozen=True)
class Component(StoredComponent):
    """One part of the model that writes to the residual stream; its head is also None where heads cannot be told apart."""
    where: str  # the module that computes it


@dataclass
class Components:
    """The components of a batch of images, float32, each divided by the norm of its image's representation."""
    names: list[Component]
    terms: Tensor                      # [b, c, d]
    representation: Tensor             # [b, d]: unit length; what the terms sum to
    sources: dict[int | None, Tensor]  # block (None: their sum) -> [b, n, d]: each source token's part of the layer's terms
    products: Tensor | None            # [m, b, c]: of the terms with vectors, where such are asked for
    scores: dict[int, Tensor]          # block -> [m, b, h, n]: each source token's part of the products of the layer's heads


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
    """The leaves, by the model's order: kind and block. A block holds at most one convolution, one attention and one MLP,
    in that order. Refuses a model whose later components hide earlier ones, or end in something other than an activation."""
    leaves = sorted({node.origin or node for node, _, _ in steps if node.leaf}, key=lambda leaf: leaf.order)
    passed, embedding = {node.order for node, _, _ in steps if not node.leaf}, leaves[0]
    if embedding.attentions or len(leaves) == 1:
        raise refuse(embedding.op)
    embedded = min(node.order for node, _, _ in steps if node.leaf and (node.origin or node) is embedding)
    rank, block, last = {"conv": 0, "attn": 1, "mlp": 2}, -1, 3
    names = {embedding: Component("embed", -1, None, embedding.where)}
    for leaf in leaves[1:]:
        if not leaf.attention and not leaf.pointwise:
            raise refuse(leaf.op)
        recent = {kind for kind, order in leaf.made_of if order > embedded and order not in passed}
        kind = "attn" if leaf.attention else next((kind for kind in ("conv", "attn") if kind in recent), "mlp")
        block, last = block + (rank[kind] <= last), rank[kind]
        names[leaf] = Component(kind, block, None, leaf.where)
    return names


@torch.inference_mode(False)  # that mode hides from the recorder what operations are made of
@torch.no_grad()
def decompose(model: nn.Module, images: Tensor, function: Callable[[Tensor], Tensor] | None = None,
              sources: str | None = None, heads: Callable[[int, int], bool] = lambda block, head: True,
              vectors: Callable[[list[Component], Tensor], Tensor] | None = None) -> Components:
    """Decompose the representations of images [b, 3, height, width] into the model's components.

    `function` gives the representation [b, d] of images; by default the model itself does. The model must be in eval
    mode. `sources` adds what the source tokens bring to every attention layer: "all" of them, "summed" over the layers
    (where all have the same tokens), or the "first" (the class token of a model that has one); through those `heads` alone
    for which a function of block and head says so. `vectors`, of the components' names and terms [b, c, d], gives vectors
    [m, b, c, d], and asks for their products and for what each source token adds to those of heads; no terms of single tokens
    are held for it, but a model made in inference mode cannot be asked. Constants on the way (biases, a norm's frozen mean)
    are split evenly over the layers that pass there, and a layer's share over its heads or source tokens.
    Raises UserError with the name of the operation that cannot be passed; for an output that is not one vector an image; and
    for "summed" where the layers differ in their number of tokens.
    """
    recorder = Recorder(images, {module: name for name, module in model.named_modules()},
                        sources is not None or vectors is not None)
    with recorder.watch():
        output = (function or model)(images)
    end = recorder.found.get(output)
    if output.ndim != 2 or len(output) != len(images) or end in (None, FROZEN):
        raise UserError("this model cannot be decomposed: its output is not one vector an image")
    steps = _walk(end, output)
    names = _name(steps)
    length = output.norm(dim=-1, keepdim=True)
    terms, tokens, written = {}, {}, [] if vectors else None
    with torch.set_grad_enabled(vectors is not None):  # of what the attention layers write alone
        gathered = _gather(steps, names, sources, heads, written)
    for (origin, part), some in gathered.items():
        if isinstance(part, int):
            terms[origin, part] = some / length
        else:
            tokens.setdefault(origin and names[origin].block, []).append(some / length)
    order = sorted(terms, key=lambda key: (key[0].order, key[1]))
    named = [replace(names[origin], head=head if origin.attention else None) for origin, head in order]
    terms = torch.stack([terms[key] for key in order], dim=1)
    error = (terms.sum(dim=1) - output / length).norm(dim=-1).max()
    if not error < 1e-2:
        raise UserError(f"this model cannot be decomposed: its components miss its output by {error:.1%}")
    products, scores = None, {}
    if vectors:
        along = vectors(named, terms)
        products = (terms * along).sum(dim=-1)
        with torch.enable_grad():
            reached = torch.stack([gathered[key] for key in order], dim=1)
        scores = _score_tokens(written, reached, along / length[:, None], products, named, names)
    tokens = {block: torch.stack(some, dim=1) for block, some in tokens.items()}
    return Components(named, terms, output / length, tokens, products, scores)


def _gather(steps: list, names: dict[Node, Component], sources: str | None, heads: Callable, written: list | None) -> dict:
    """The sums that reach the representation: (origin, head) or (origin, ("token", place)) -> [b, d].

    On the way, each comes with its shares of the layers' constants: a set of (origin, share). What attention layers write is
    added to `written`, where there is one: (node, readout, sums [h, b, *kept], of which gradients can be taken).
    """
    numbers = set()
    for node, readout, value in reversed(steps):
        if node.leaf:
            shares, sums = _write(node, readout, value)
            if written is not None and node.attention:
                sums = sums.detach().requires_grad_()
                written.append((node, readout, sums))
            readout.arrived.append((shares, sums))
            if node.attention and sources:
                readout.arrived.append(_write_sources(node, readout, sources, partial(heads, names[node].block)))
                numbers.add(len(readout.arrived[-1][0]))
                if sources == "summed" and len(numbers) > 1:
                    raise UserError(f"this model's layers have {' or '.join(map(str, sorted(numbers)))} tokens, which cannot "
                                    "be summed over layers; take one layer")
        if readout.into is not None and readout.carry is None and not node.constants:
            readout.into.arrived += [_join(readout.arrived)] if sources == "summed" else readout.arrived
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
    """What a leaf writes, summed over tokens: (origin, head) -> {(origin, share of the layer's constants)}, and the sums
    [c, b, *kept] in the same order."""
    sums = reading(readout, (value,))
    heads = _heads(readout) if node.attention else []
    if not heads:
        origin = node.origin or node
        return {(origin, 0): frozenset([(origin, 1.0)])}, sums[None]
    number, kept = Axis(math.prod(axis.size for axis in heads)), [readout.batch, *readout.kept]
    eye = torch.eye(number.size, dtype=sums.dtype, device=sums.device).reshape(-1, *[axis.size for axis in heads])
    shares = {(node, head): frozenset([(node, 1 / number.size)]) for head in range(number.size)}
    return shares, contract([(sums, kept), (eye, [number, *heads])], [number, *kept])


def _write_sources(node: Node, readout: Readout, sources: str, wanted: Callable[[int], bool]) -> tuple[dict, Tensor]:
    """What each source token writes through the wanted heads of an attention layer, as `_write` gives it."""
    weights, values, queries = node.product
    heads = _heads(readout)
    read = readouts.attend(readout, weights, queries)
    number = math.prod(axis.size for axis in heads)
    mask = torch.tensor([float(wanted(head)) for head in range(number)], device=values.device)
    mask = mask.reshape([axis.size for axis in heads])
    read = read.change(weight=contract([(read.weight, read.axes), (mask, heads)], read.axes))
    at, share = read.summed(), mask.sum().item() / number
    if sources == "first":
        keep = (torch.arange(at[-1].size, device=values.device) == 0).to(values.dtype)
        read = read.change(weight=contract([(read.weight, read.axes), (keep, [at[-1]])], read.axes))
        return {(node, ("token", 0)): frozenset([(node, share / at[-1].size)])}, reading(read, (values,))[None]
    operands = [(read.weight, read.axes), lay(values, read.dims)]
    sums = contract(operands, [*at, readout.batch, *readout.kept]).flatten(0, len(at) - 1)
    sums = _on_stream(node, read, at, sums)
    parts, origin = frozenset([(node, share / len(sums))]), None if sources == "summed" else node
    return {(origin, ("token", place)): parts for place in range(len(sums))}, sums


def _score_tokens(written: list, reached: Tensor, vectors: Tensor, products: Tensor, named: list[Component],
                  names: dict[Node, Component]) -> dict[int, Tensor]:
    """`Components.scores`, for what of the components `named` reached the representation [b, c, d], vectors [m, b, c, d] and
    their products [m, b, c].

    The way from what a head writes to the product of its term with a vector is linear but for constants. Its gradient is the
    same for every token, and multiplies what the token writes; constants are split evenly over tokens.
    """
    sums = [some for *_, some in written]
    gradients = [torch.autograd.grad(reached, sums, some, retain_graph=True) for some in vectors]
    found = {}
    for step, (node, readout, some) in enumerate(written):
        gradient = torch.stack([of_all[step] for of_all in gradients])               # [m, h, b, *kept]
        linear = (gradient * some.detach()).flatten(3).sum(dim=-1).transpose(1, 2)   # [m, b, h]
        tokens = _read_tokens(node, readout, gradient)
        before = found.get(node, (0, 0))
        found[node] = before[0] + linear, before[1] + tokens
    scores = {}
    for node, (linear, tokens) in found.items():
        block = names[node].block
        columns = [column for column, name in enumerate(named) if name.kind == "attn" and name.block == block]
        scores[block] = tokens + ((products[:, :, columns] - linear) / tokens.shape[-1])[..., None]
    return scores


def _read_tokens(node: Node, readout: Readout, gradient: Tensor) -> Tensor:
    """What each source token of an attention layer writes through each head, times that head's gradient [m, h, b, *kept]:
    [m, b, h, n]."""
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
    """Sums of source tokens [n, ...] in the order of the residual stream's tokens, which windows and shifts change. Tokens that
    pad a window are shared out over the others."""
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
