"""How a representation reads a value on its way, and how linear operations are walked back.

A representation reads each value of a pass linearly: weighted over tokens, summed over them, and then mapped by the
channels of later operations (arXiv 2406.01583). A `Readout` holds the weights, in factors with names (`Axis`); tokens
and channels are never unrolled together. Walking an operation back takes the readout of its output and gives that of
its input: the operation on tokens goes into the weights, the map of channels into `carry`. `reshape`, `permute`,
`linear` and `convolution` give that rule as a function; `place`, `scale`, `unbroadcast` and `attend` apply it. Only
aten operations are known here; which model they come from is not.
"""
import math
import string
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.cli import UserError

LETTERS = string.ascii_letters  # of einsum


class Axis:
    """A factor of a dimension. The same object stands for it in every value that it reaches."""
    __slots__ = ("size",)

    def __init__(self, size: int):
        self.size = size


@dataclass(eq=False)
class Readout:
    """How the representation reads a value: weighted by `weight`, summed over all axes but the batch and `kept` ones,
    and then carried on to the readout it was pulled from. The weight is indexed by `axes`, in that order, and is
    constant along all others."""
    dims: list[list[Axis]]            # the axes of each dimension of the value
    kept: list[Axis]                  # channels, and axes of the weights alone
    weight: Tensor
    axes: list[Axis]
    batch: Axis
    into: "Readout | None" = None
    carry: Callable[[Tensor], Tensor] | None = None  # [c, b, *kept] -> [c, b, *into.kept]; None: as it is
    arrived: list = field(default_factory=list)      # pairs: what labels c sums, and the sums [c, b, *kept]

    def change(self, **changes) -> "Readout":
        """A copy that nothing is pulled from yet."""
        fields = {name: getattr(self, name) for name in ("dims", "kept", "weight", "axes", "batch")}
        return Readout(**(fields | changes))

    def summed(self) -> list[Axis]:
        """The axes of the value that are summed over, in its order."""
        return [axis for group in self.dims for axis in group if axis not in self.kept and axis is not self.batch]


def refuse(op: str, why: str = "it is neither linear nor a component's own non-linearity") -> UserError:
    """The error for an operation, given by its name, that cannot be walked back."""
    return UserError(f"this model cannot be decomposed: {op} stands on its residual path, and {why}")


def _rows(readout: Readout, axis: Axis) -> Tensor:
    """The places of one of the weight's axes that are read at all. They are kept with the weight, which many readouts
    share."""
    place, known = readout.axes.index(axis), readout.weight.__dict__.setdefault("rows", {})
    if place not in known:
        known[place] = readout.weight.movedim(place, 0).reshape(axis.size, -1).any(dim=1).nonzero()[:, 0]
    return known[place]


def contract(operands: list[tuple[Tensor, list[Axis]]], out: list[Axis]) -> Tensor:
    """The product of tensors, each given with its axes, summed over all axes but `out`: [size of each axis of
    `out`]."""
    letters: dict[Axis, str] = {}

    def spell(axes: list[Axis]) -> str:
        return "".join(letters.setdefault(axis, LETTERS[len(letters)]) for axis in axes)

    missing = [axis for axis in out if not any(axis in axes for _, axes in operands)]
    ones = [(operands[0][0].new_ones(1).expand(axis.size), [axis]) for axis in missing]
    operands = [*operands, *ones]
    return torch.einsum(f"{','.join(spell(axes) for _, axes in operands)}->{spell(out)}", *(one for one, _ in operands))


def lay(tensor: Tensor, dims: list[list[Axis]]) -> tuple[Tensor, list[Axis]]:
    """A tensor that broadcasts to a value of these dimensions, by the axes of that value that are longer than 1."""
    axes = []
    for size, group in zip(tensor.shape, dims[len(dims) - tensor.ndim:]):
        axes += [axis for axis in group if axis.size != 1] if size != 1 else []
    return tensor.reshape([axis.size for axis in axes]), axes


def reading(readout: Readout, factors: tuple[Tensor, ...]) -> Tensor:
    """What the representation reads of a product of tensors, each broadcast to the value's shape: [b, *kept]."""
    operands = [(readout.weight, readout.axes), *(lay(factor, readout.dims) for factor in factors)]
    out = [readout.batch, *readout.kept]
    for axis in readout.axes:
        rows = None if axis in out else _rows(readout, axis)
        if rows is not None and len(rows) < axis.size:  # of most models' tokens, only the class token is read
            operands = [(tensor.index_select(axes.index(axis), rows) if axis in axes else tensor, axes)
                        for tensor, axes in operands]
    present = {axis for _, axes in operands for axis in axes} | set(out)
    times = math.prod(axis.size for group in readout.dims for axis in group if axis not in present)
    return contract(operands, out) * times


def _split(readout: Readout, axis: Axis, parts: list[Axis]) -> Readout:
    weight, axes, kept = readout.weight, readout.axes, readout.kept
    if axis in axes:
        place = axes.index(axis)
        weight, axes = weight.unflatten(place, [part.size for part in parts]), axes[:place] + parts + axes[place + 1:]
    if axis in kept:
        place = kept.index(axis)
        kept = kept[:place] + parts + kept[place + 1:]
    dims = [[new for old in group for new in (parts if old is axis else [old])] for group in readout.dims]
    return readout.change(dims=dims, kept=kept, weight=weight, axes=axes)


def _unmix(readout: Readout, dim: int) -> Readout:
    """Leave no kept axis in a dimension: the weights say which of its places each of them reads."""
    for axis in [axis for axis in readout.dims[dim] if axis in readout.kept]:
        place = Axis(axis.size)
        axes = readout.axes + [place] + [axis] * (axis not in readout.axes)
        eye = torch.eye(axis.size, dtype=readout.weight.dtype, device=readout.weight.device)
        weight = contract([(readout.weight, readout.axes), (eye, [place, axis])], axes)
        dims = [[place if old is axis else old for old in group] for group in readout.dims]
        readout = readout.change(dims=dims, weight=weight, axes=axes)
    return readout


def _merge(readout: Readout, dim: int) -> Readout:
    """Make a dimension one axis (beside the batch), of which the weights are given."""
    readout = _unmix(readout, dim)
    run = [axis for axis in readout.dims[dim] if axis is not readout.batch]
    rest = [axis for axis in readout.axes if axis not in run]
    whole = Axis(math.prod(axis.size for axis in run))
    weight = contract([(readout.weight, readout.axes)], rest + run)
    weight = weight.reshape([axis.size for axis in rest] + [whole.size])
    group = [readout.batch] * (readout.batch in readout.dims[dim]) + [whole]
    dims = readout.dims[:dim] + [group] + readout.dims[dim + 1:]
    return readout.change(dims=dims, weight=weight, axes=rest + [whole])


def _fit(readout: Readout, shape: tuple[int, ...]) -> Readout | None:
    """Deal the axes out to the dimensions of another shape, splitting where they must be; None where they don't fit."""
    queue, dims, splits = [axis for group in readout.dims for axis in group], [], []
    for left in shape:
        group = []
        while queue and (left > 1 or queue[0].size == 1):
            axis = queue.pop(0)
            if left % axis.size:
                if axis.size % left or axis is readout.batch:
                    return None
                parts = [Axis(left), Axis(axis.size // left)]
                splits.append((axis, parts))
                axis = parts[0]
                queue.insert(0, parts[1])
            group.append(axis)
            left //= axis.size
        if left != 1:
            return None
        dims.append(group)
    for axis, parts in splits:
        readout = _split(readout, axis, parts)
    return readout.change(dims=dims)


def reshape(op: str, shape: tuple[int, ...]) -> Callable[[Readout], list[Readout]]:
    """Any view or copy of a value of that shape. The rule raises UserError where axes would have to be cut."""
    def pull(readout: Readout) -> list[Readout]:
        fitted = _fit(readout, shape)
        if fitted is None:
            merged = readout
            for dim, group in enumerate(readout.dims):
                if len(group) > 1 and not all(axis in readout.kept for axis in group):
                    merged = _merge(merged, dim)
            fitted = _fit(merged, shape)
        if fitted is None:
            raise refuse(op, f"its shapes, {shape} before, do not follow the model's axes")
        sizes = [axis.size for axis in readout.kept]
        fitted.carry = lambda sums: sums.reshape(*sums.shape[:2], *sizes)
        return [fitted]

    return pull


def permute(order: list[int]) -> Callable[[Readout], list[Readout]]:
    """Dimensions in another order, as in `Tensor.permute`."""
    def pull(readout: Readout) -> list[Readout]:
        dims = [None] * len(order)
        for place, dim in zip(order, readout.dims):
            dims[place] = dim
        return [readout.change(dims=dims)]

    return pull


def place(op: str, readout: Readout, out_dims: list[int], in_dims: list[int], sizes: list[int], function) -> Readout:
    """The readout before an operation on places alone, from dimensions `in_dims` of these sizes to `out_dims`:
    `function` is the operation, linear, on tensors [..., *sizes]. Raises UserError where it acts on the batch."""
    for dim in out_dims:
        if readout.batch in readout.dims[dim]:
            raise refuse(op, "it moves images within the batch")
        readout = _merge(readout, dim)
    ends = [readout.dims[dim][0] for dim in out_dims]
    rest = [axis for axis in readout.axes if axis not in ends]
    weight = contract([(readout.weight, readout.axes)], rest + ends)
    with torch.enable_grad():
        before = weight.new_zeros([axis.size for axis in rest] + sizes).requires_grad_()
        (weight,) = torch.autograd.grad(function(before), before, weight)
    axes = [Axis(size) for size in sizes]
    dims = [group for dim, group in enumerate(readout.dims) if dim not in out_dims]
    for dim, axis in sorted(zip(in_dims, axes), key=lambda pair: pair[0]):
        dims.insert(dim, [axis])
    return readout.change(dims=dims, weight=weight, axes=rest + axes)


def scale(readout: Readout, factor: Tensor) -> Readout:
    """The readout of x, where x times the factor was read."""
    factor, axes = lay(factor, readout.dims)
    if not axes:
        return readout.change(weight=readout.weight * factor)
    if all(axis in readout.kept for axis in axes):
        order = sorted(range(len(axes)), key=lambda i: readout.kept.index(axes[i]))
        factor = factor.permute(order).reshape([axis.size if axis in axes else 1 for axis in readout.kept])
        scaled = readout.change()
        scaled.carry = lambda sums: sums * factor
        return scaled
    both = readout.axes + [axis for axis in axes if axis not in readout.axes]
    return readout.change(weight=contract([(readout.weight, readout.axes), (factor, axes)], both), axes=both)


def then(first: Readout, second: Readout) -> Readout:
    """Two steps of the walk as one: `second` was pulled from `first`."""
    near, far = first.carry, second.carry
    second.carry = near if far is None else far if near is None else lambda sums: near(far(sums))
    return second


def unbroadcast(readout: Readout, shape: tuple[int, ...]) -> Readout:
    """The readout of a value of that shape, which was broadcast."""
    extra = len(readout.dims) - len(shape)
    for dim in range(len(readout.dims)):
        size = 1 if dim < extra else shape[dim - extra]
        if size == 1 and math.prod(axis.size for axis in readout.dims[dim]) > 1:
            readout = _merge(readout, dim)
            (axis,) = readout.dims[dim]
            weight = readout.weight.sum(dim=readout.axes.index(axis))
            dims = readout.dims[:dim] + [[]] + readout.dims[dim + 1:]
            readout = readout.change(dims=dims, weight=weight, axes=[old for old in readout.axes if old is not axis])
    return readout.change(dims=readout.dims[extra:])


def _map(readout: Readout, before: Readout, outputs: list[Axis], matrix: Tensor, inputs: list[Axis]) -> Readout:
    """`before`, with the axes `inputs` kept in place of `outputs`; matrix [*outputs, *inputs] carries their sums on."""
    kept = [axis for axis in before.kept if axis not in outputs or axis in before.axes]
    kept += [axis for axis in outputs if axis in before.axes and axis not in kept] + inputs
    before, count = before.change(kept=kept), Axis(0)
    before.carry = lambda sums: contract([(sums, [count, readout.batch, *kept]), (matrix, [*outputs, *inputs])],
                                         [count, readout.batch, *readout.kept])
    return before


def linear(weight: Tensor, dim: int) -> Callable[[Readout], list[Readout]]:
    """A map of channels: weight [out, in], applied to one dimension."""
    def pull(readout: Readout) -> list[Readout]:
        at = dim % len(readout.dims)
        outputs, channel = readout.dims[at], Axis(weight.shape[1])
        for other in range(len(readout.dims)):
            readout = readout if other == at else _unmix(readout, other)
        matrix = weight.reshape([axis.size for axis in outputs] + [channel.size])
        for axis in [axis for axis in outputs if axis in readout.axes and axis not in readout.kept]:
            place = readout.axes.index(axis)  # of queries, keys and values that one map gives, values alone are read
            rows = _rows(readout, axis)
            if len(rows) == 1:
                matrix = matrix.select(outputs.index(axis), int(rows))
                readout = readout.change(weight=readout.weight.select(place, int(rows)),
                                         axes=[other for other in readout.axes if other is not axis])
                outputs = [other for other in outputs if other is not axis]
        before = readout.change(dims=readout.dims[:at] + [[channel]] + readout.dims[at + 1:])
        return [_map(readout, before, outputs, matrix, [channel])]

    return pull


def convolution(op: str, weight: Tensor, sizes: tuple, stride, padding, dilation,
                groups: int) -> Callable[[Readout], list[Readout]]:
    """A convolution, weight [out, in, height, width], from images of sizes[0] to sizes[1]: for each place of its
    kernel, one strided slice of the padded image and one map of channels. The rule raises UserError for groups."""
    def pull(readout: Readout) -> list[Readout]:
        if groups != 1:
            raise refuse(op, "its convolution is grouped")
        kernel = list(weight.shape[2:])
        outputs, channel, offset = readout.dims[1], Axis(weight.shape[1]), Axis(math.prod(kernel))
        frames = []
        for place_in_kernel in range(offset.size):
            corner = [at * step for at, step in zip(divmod(place_in_kernel, kernel[1]), dilation)]

            def shift(image: Tensor, corner=corner) -> Tensor:
                image = F.pad(image, (padding[1], padding[1], padding[0], padding[0]))
                spans = [slice(at, at + step * (number - 1) + 1, step)
                         for at, step, number in zip(corner, stride, sizes[1])]
                return image[(..., *spans)]

            frames.append(place(op, readout, [2, 3], [2, 3], sizes[0], shift))
        first = frames[0]
        before = first.change(dims=[first.dims[0], [channel], *first.dims[2:]], axes=[offset, *first.axes],
                              weight=torch.stack([frame.weight for frame in frames]))
        matrix = weight.flatten(2).transpose(1, 2)
        matrix = matrix.reshape([axis.size for axis in outputs] + [offset.size, channel.size])
        return [_map(readout, before, outputs, matrix, [offset, channel])]

    return pull


def attend(readout: Readout, weights: Callable, queries: int) -> Readout:
    """The readout of the values of an attention product. `queries` is the dimension of its output that counts them;
    `weights` gives the attention [..., queries, sources] of the rows asked for."""
    asked, rows = readout.dims[queries], slice(None)
    if len(asked) == 1 and asked[0] in readout.axes and asked[0] not in readout.kept:  # most models ask for few rows
        place = readout.axes.index(asked[0])
        rows = _rows(readout, asked[0])
        asked = [Axis(len(rows))]
        axes = readout.axes[:place] + asked + readout.axes[place + 1:]
        readout = readout.change(weight=readout.weight.index_select(place, rows), axes=axes)
    probabilities = weights(rows)
    source = Axis(probabilities.shape[-1])
    laid = [*(axis for group in readout.dims[:-2] for axis in group), *asked, source]
    probabilities = probabilities.reshape([axis.size for axis in laid])
    axes = [axis for axis in readout.axes if axis not in asked or axis in readout.kept]
    axes += [axis for axis in laid if axis not in axes and (axis not in asked or axis in readout.kept)]
    weight = contract([(readout.weight, readout.axes), (probabilities, laid)], axes)
    dims = list(readout.dims)
    dims[queries] = [source]
    return readout.change(dims=dims, weight=weight, axes=axes)
