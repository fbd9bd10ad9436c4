"""One forward pass of any network, recorded operation by operation: which value is a linear function of which others.

Statistics of norms and attention weights are frozen. The rules are methods of `Recorder`, `on_` and the name of the
operation; how each is walked back is in utils/decompose/readouts.py. This file knows torch operations and no model.
"""
import math
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from utils.decompose import readouts
from utils.decompose.nodes import FROZEN, Edge, Found, Node
from utils.decompose.readouts import Axis, Readout

VIEWS = {"view", "_unsafe_view", "reshape", "_reshape_alias", "clone", "alias", "detach", "contiguous", "unsqueeze",
         "squeeze", "_to_copy", "lift_fresh"}
STATISTICS = {"_softmax", "_safe_softmax", "rsqrt", "linalg_vector_norm"}  # frozen, and what is made of them alone
JOINT = {"add", "sub", "rsub", "mul", "div", "cat", "stack", "linear", "addmm", "mm", "bmm", "addcmul",
         "attention"}  # of several


class Recorder(TorchDispatchMode):
    """Keeps, for every value that depends on the images, how it follows linearly from others."""

    def __init__(self, images: Tensor, modules: dict[nn.Module, str], sources: bool):
        super().__init__()
        self.found, self.modules, self.sources = Found(), modules, sources
        self.order = self.attentions = 0
        self.inside = [""]  # names of the modules that are running
        self.found[images] = self.node("the images", [])

    @contextmanager
    def watch(self):
        """Follow which module is running; nn.MultiheadAttention must not hide its operations in one."""
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)

        def leave(*_) -> None:  # what a hook returns takes the place of the module's output
            self.inside.pop()

        def enter(module: nn.Module, _) -> None:
            self.inside.append(self.modules.get(module, self.inside[-1]))

        hooks = [register_module_forward_pre_hook(enter),
                 register_module_forward_hook(leave)]
        try:
            with torch.no_grad(), self:
                yield self
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for hook in hooks:
                hook.remove()

    def here(self, op: str) -> str:
        return f"{op} in {self.inside[-1]}" if self.inside[-1] else op

    def node(self, op: str, inputs: list[Node], **fields) -> Node:
        self.order += 1
        made_of = inputs[0].made_of.union(*(node.made_of for node in inputs[1:])) if inputs else frozenset()
        return Node(op=self.here(op), order=self.order, attentions=self.attentions, made_of=made_of,
                    **fields)

    def edge(self, tensor: Tensor) -> Edge:
        node = self.found.get(tensor)
        return Edge(node, tensor if node.pull is None or node.attention else None)

    def linear(self, op: str, tensors: list[Tensor], pull: Callable, constants=()) -> Node:
        """A linear function of one value, or a sum of several."""
        edges = [self.edge(tensor) for tensor in tensors]
        if len(edges) > 1:
            edges = self.close(tensors, edges)
        node = self.node(op, [edge.node for edge in edges], edges=edges, pull=pull, constants=list(constants))
        if len(edges) == 1:
            node.origin = edges[0].node.origin or (edges[0].node if edges[0].node.pull is None else None)
        else:
            node.made_of = frozenset()
        node.undecided = [attention for edge in edges for attention in self.undecided(edge.node)]
        return node

    @staticmethod
    def undecided(node: Node) -> list[Node]:
        """Attention products behind a node, itself included, of which it is not known whether they pool."""
        return [attention for attention in [*node.undecided, *[node] * node.attention] if not attention.sealed]

    def close(self, tensors: list[Tensor], edges: list[Edge]) -> list[Edge]:
        """The parts of a sum. What comes from one leaf alone is that leaf's component, as it stands. An attention
        product is a component if it is added to what was there before it; if nothing bypasses it, it pools."""
        closed = []
        for tensor, edge in zip(tensors, edges):
            earliest = min(other.node.order for other in edges if other is not edge)
            for attention in self.undecided(edge.node):
                if attention.order > earliest:
                    attention.sealed, attention.beside = True, earliest
                    if not self.sources:
                        attention.edges, attention.product = [], None
            node = edge.node
            if node.origin is not None and not node.leaf:
                node = Node(op=node.origin.op, order=node.order, origin=node.origin,
                            made_of=node.made_of)
                edge = Edge(node, tensor)
            closed.append(edge)
        return closed

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        values = [*args, *kwargs.values()]
        flat = [part for value in values for part in (value if isinstance(value, (list, tuple)) else [value])]
        tensors = [value for value in flat if isinstance(value, Tensor)]
        seen = [node for tensor in tensors if (node := self.found.get(tensor)) is not None]
        if not seen:
            return func(*args, **kwargs)
        name = "view" if name in VIEWS else "attention" if name.startswith("_scaled_dot_product") else name
        rule = getattr(self, f"on_{name.rstrip('_')}", None)
        if rule is not None and name.endswith("_") and (node := self.found.get(args[0])) is not None:
            before = args[0].clone()  # what is kept of a value must outlive its being overwritten
            self.found[before] = node
            out = func(*args, **kwargs)
            args = (before, *args[1:])
        else:
            out = func(*args, **kwargs)
        outputs = out if isinstance(out, (tuple, list)) else [out]
        outputs = [output for output in outputs if isinstance(output, Tensor)]
        nodes = [node for node in seen if node is not FROZEN]
        if not nodes or name in STATISTICS:
            for output in outputs:
                self.found[output] = FROZEN
            return out
        op = f"aten.{func.overloadpacket.__name__}"
        if name == "attention":  # its kernels order their arguments differently
            args, kwargs = (), kwargs | {argument.name: value for argument, value in zip(func._schema.arguments, args)}
        if name.rstrip("_") not in JOINT and not (self.varies(tensors[0]) and not any(map(self.varies, tensors[1:]))):
            rule = None  # the others are linear in their first input alone
        made = rule(op, outputs, *args, **kwargs) if rule is not None else None
        if made is None:
            pointwise = torch.Tag.pointwise in func.tags
            made = [self.node(op, nodes, pointwise=pointwise) for _ in outputs]
        for output, node in zip(outputs, made):
            self.found[output] = node
        return out

    def varies(self, value) -> bool:
        """Whether a value depends on the images other than through frozen statistics."""
        return isinstance(value, Tensor) and self.found.get(value) not in (None, FROZEN)

    def on_view(self, op, outputs, x, *args, **kwargs):
        return [self.linear(op, [x], readouts.reshape(self.here(op), tuple(x.shape)))]

    def on_as_strided(self, op, outputs, x, size, *args):
        return self.on_view(op, outputs, x) if tuple(size) == tuple(x.shape) else None

    def on_permute(self, op, outputs, x, order):
        return [self.linear(op, [x], readouts.permute([dim % x.ndim for dim in order]))]

    def on_transpose(self, op, outputs, x, first, second):
        order = list(range(x.ndim))
        order[first], order[second] = order[second], order[first]
        return self.on_permute(op, outputs, x, order)

    def on_t(self, op, outputs, x):
        return self.on_transpose(op, outputs, x, 0, -1)

    def place(self, op, x, out_dims, in_dims, function):
        sizes, here = [x.shape[dim] for dim in in_dims], self.here(op)
        return self.linear(op, [x], lambda readout: [readouts.place(here, readout, out_dims, in_dims, sizes, function)])

    def on_select(self, op, outputs, x, dim, index):
        return [self.place(op, x, [], [dim % x.ndim], lambda t: t.select(-1, index))]

    def on_unbind(self, op, outputs, x, dim=0):
        return [self.on_select(op, outputs, x, dim, index)[0] for index in range(len(outputs))]

    def on_slice(self, op, outputs, x, dim=0, start=None, end=None, step=1):
        if outputs[0].shape == x.shape:
            return self.on_view(op, outputs, x)
        dim = dim % x.ndim
        return [self.place(op, x, [dim], [dim], lambda t: torch.ops.aten.slice(t, -1, start, end, step))]

    def on_split(self, op, outputs, x, sizes, dim=0):
        sizes = [output.shape[dim] for output in outputs]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return [self.on_slice(op, [output], x, dim, start, start + size)[0]
                for output, start, size in zip(outputs, starts, sizes)]

    on_split_with_sizes = on_split

    def on_roll(self, op, outputs, x, shifts, dims):
        dims = [dim % x.ndim for dim in dims]
        return [self.place(op, x, dims, dims, lambda t: torch.roll(t, shifts, list(range(-len(dims), 0))))]

    def on_flip(self, op, outputs, x, dims):
        dims = [dim % x.ndim for dim in dims]
        return [self.place(op, x, dims, dims, lambda t: t.flip(list(range(-len(dims), 0))))]

    def on_constant_pad_nd(self, op, outputs, x, pad, value=0):
        changed = [i for i in range(len(pad) // 2) if pad[2 * i] or pad[2 * i + 1]]
        if not changed:
            return self.on_view(op, outputs, x)
        if value != 0:
            return None
        dims = [x.ndim - 1 - i for i in reversed(changed)]
        local = [side for i in changed for side in pad[2 * i:2 * i + 2]]
        return [self.place(op, x, dims, dims, lambda t: F.pad(t, local))]

    def on_expand(self, op, outputs, x, *args, **kwargs):
        return [self.linear(op, [x], lambda readout, shape=tuple(x.shape): [readouts.unbroadcast(readout, shape)])]

    def on_mean(self, op, outputs, x, dims=None, keepdim=False, dtype=None, share=True):
        dims = sorted(dim % x.ndim for dim in (range(x.ndim) if dims is None else dims))
        sizes = [x.shape[dim] for dim in dims]

        def pull(readout: Readout) -> list[Readout]:
            groups = [group for dim, group in enumerate(readout.dims) if not (keepdim and dim in dims)]
            for dim, size in zip(dims, sizes):
                groups.insert(dim, [Axis(size)])
            return [readout.change(dims=groups, weight=readout.weight / (math.prod(sizes) if share else 1))]

        return [self.linear(op, [x], pull)]

    def on_sum(self, op, outputs, x, dims=None, keepdim=False, dtype=None):
        return self.on_mean(op, outputs, x, dims, keepdim, share=False)

    def on_avg_pool2d(self, op, outputs, x, *args):
        return self.pool(op, outputs, x, lambda t: torch.ops.aten.avg_pool2d(t, *args))

    def on__adaptive_avg_pool2d(self, op, outputs, x, size):
        return self.pool(op, outputs, x, lambda t: F.adaptive_avg_pool2d(t, size))

    def pool(self, op, outputs, x, function):
        dims, size = [x.ndim - 2, x.ndim - 1], outputs[0].shape[-2:]

        def flat(t: Tensor) -> Tensor:
            return function(t.reshape(1, -1, *t.shape[-2:])).reshape(*t.shape[:-2], *size)

        return [self.place(op, x, dims, dims, flat)]

    def on_add(self, op, outputs, x, y, alpha=1):
        parts = [(part, factor) for part, factor in ((x, 1), (y, alpha)) if self.varies(part)]
        fixed = [(part, factor) for part, factor in ((x, 1), (y, alpha)) if not self.varies(part)]
        like = parts[0][0]

        shapes = [(tuple(part.shape), factor) for part, factor in parts]

        def pull(readout: Readout) -> list[Readout]:
            parts = [(readouts.unbroadcast(readout, shape), factor) for shape, factor in shapes]
            return [part if factor == 1 else part.change(weight=part.weight * factor) for part, factor in parts]

        constants = [(part * factor if isinstance(part, Tensor) else like.new_tensor(part * factor),)
                     for part, factor in fixed]
        return [self.linear(op, [part for part, _ in parts], pull, constants)]

    def on_sub(self, op, outputs, x, y, alpha=1):
        return self.on_add(op, outputs, x, y, alpha=-alpha)

    def on_rsub(self, op, outputs, x, y, alpha=1):
        return self.on_add(op, outputs, y, x, alpha=-alpha) if alpha == 1 else None

    def on_mul(self, op, outputs, x, y):
        if self.varies(x) and self.varies(y):
            return None
        x, factor = (x, y) if self.varies(x) else (y, x)
        factor = factor if isinstance(factor, Tensor) else x.new_tensor(factor)

        def pull(readout: Readout, shape=tuple(x.shape)) -> list[Readout]:
            scaled = readouts.scale(readout, factor)
            return [readouts.then(scaled, readouts.unbroadcast(scaled, shape))]

        return [self.linear(op, [x], pull)]

    def on_div(self, op, outputs, x, y, **kwargs):
        if kwargs or self.varies(y):
            return None
        return self.on_mul(op, outputs, x, 1 / y)

    def on_addcmul(self, op, outputs, shift, x, y, value=1):
        if self.varies(shift) or value != 1 or self.varies(x) == self.varies(y):
            return None
        made = self.on_mul(op, outputs, x, y)
        made[0].constants.append((shift,))
        return made

    def on_neg(self, op, outputs, x):
        return self.on_mul(op, outputs, x, -1)

    def on_cat(self, op, outputs, tensors, dim=0):
        dim = dim % outputs[0].ndim
        spans, constants, start = [], [], 0
        total = outputs[0].shape[dim]
        for tensor in tensors:
            size = tensor.shape[dim]
            sides = [0, 0] * (tensor.ndim - 1 - dim) + [start, total - start - size]
            if self.varies(tensor):
                spans.append((tensor, size, sides[-2:]))
            else:
                constants.append((F.pad(tensor, sides),))
            start += size
        steps, here = [(size, sides) for _, size, sides in spans], self.here(op)

        def pull(readout: Readout) -> list[Readout]:
            return [readouts.place(here, readout, [dim], [dim], [size], partial(F.pad, pad=sides))
                    for size, sides in steps]

        return [self.linear(op, [tensor for tensor, _, _ in spans], pull, constants)]

    def on_stack(self, op, outputs, tensors, dim=0):
        dim = dim % outputs[0].ndim
        if not all(self.varies(tensor) for tensor in tensors):
            return None
        sides = [[place, len(tensors) - 1 - place] for place in range(len(tensors))]
        here = self.here(op)
        return [self.linear(op, list(tensors), lambda readout: [
            readouts.place(here, readout, [dim], [], [], lambda t, pad=pad: F.pad(t[..., None], pad))
            for pad in sides])]

    def on_native_layer_norm(self, op, outputs, x, shape, weight, bias, eps):
        _, mean, rstd = outputs

        def pull(readout: Readout) -> list[Readout]:
            if weight is None:
                return [readouts.scale(readout, rstd)]
            scaled = readouts.scale(readout, weight)
            return [readouts.then(scaled, readouts.scale(scaled, rstd))]

        constants = [(-mean * rstd, *([] if weight is None else [weight])), *([] if bias is None else [(bias,)])]
        return [self.linear(op, [x], pull, constants)] + [FROZEN, FROZEN]

    def on_native_batch_norm(self, op, outputs, x, weight, bias, mean, variance, training, momentum, eps):
        if training:
            return None
        scale = (variance + eps).rsqrt() * (1 if weight is None else weight)
        shift = (0 if bias is None else bias) - mean * scale
        tail = [1] * (x.ndim - 2)
        scale, shift = scale.reshape(-1, *tail), shift.reshape(-1, *tail)
        return [self.linear(op, [x], lambda readout: [readouts.scale(readout, scale)], [(shift,)])]

    def on_linear(self, op, outputs, x, weight, bias=None):
        if self.varies(weight) or self.varies(bias) or not self.varies(x):
            return None
        return [self.linear(op, [x], readouts.linear(weight, -1), [] if bias is None else [(bias,)])]

    def on_addmm(self, op, outputs, bias, x, weight, **kwargs):
        return None if kwargs or self.varies(weight) else self.on_linear(op, outputs, x, weight.t(), bias)

    def on_mm(self, op, outputs, x, weight):
        return None if self.varies(weight) else self.on_linear(op, outputs, x, weight.t())

    def on_convolution(self, op, outputs, x, weight, bias, stride, padding, dilation, transposed, output_padding,
                       groups):
        if transposed or x.ndim != 4:
            return None
        constants = [] if bias is None else [(bias.reshape(-1, 1, 1),)]
        if tuple(weight.shape[2:]) == (1, 1) and tuple(stride) == (1, 1) and not any(padding) and groups == 1:
            return [self.linear(op, [x], readouts.linear(weight.flatten(1), 1), constants)]
        sizes = list(x.shape[2:]), list(outputs[0].shape[2:])
        pull = readouts.convolution(self.here(op), weight, sizes, stride, padding, dilation, groups)
        node = self.linear(op, [x], pull, constants)
        node.made_of |= {("conv", self.order)}
        return [node]

    def on_bmm(self, op, outputs, x, y):
        if self.varies(x) == self.varies(y):
            return None
        values, weights = (x, y.transpose(1, 2)) if self.varies(x) else (y, x)
        if self.varies(x) and self.found.get(y) is None and (y.stride(0) == 0 or len(y) == 1):
            return self.on_linear(op, outputs, x, weights[0])
        return [self.product(op, values, lambda rows: weights[:, rows], -1 if self.varies(x) else -2)]

    def on_attention(self, op, outputs, query, key, value, scale=None, is_causal=False, attn_mask=None, attn_bias=None,
                     **_):
        q, k, mask = query, key, attn_mask if attn_bias is None else attn_bias
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        if not self.varies(value) or is_causal:
            return None

        def weights(rows) -> Tensor:
            scores = (q[..., rows, :] * scale) @ k.transpose(-1, -2)
            asked = None if mask is None else mask.expand(*mask.shape[:-2], q.shape[-2], -1)[..., rows, :]
            return (scores if mask is None else scores + asked).softmax(dim=-1)

        node = self.product(op, value, weights, -2)
        return [node] + [FROZEN] * (len(outputs) - 1)

    def product(self, op, values, weights, queries):
        """An attention product: linear in its values, their dimension of tokens replaced by that of the queries."""
        node = self.linear(op, [values], lambda readout: [readouts.attend(readout, weights, queries)])
        self.attentions += 1
        node.origin, node.attention, node.product = None, True, (weights, values if self.sources else None, queries)
        node.made_of |= {("attn", node.order)}
        return node
