"""What the recorder keeps of a value: a node, linear in the nodes that its edges lead to, or the end of a chain."""
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from utils.decompose.readouts import Readout

FROZEN = object()  # in place of the node of a statistic


@dataclass(eq=False)
class Edge:
    node: "Node"
    value: Tensor | None  # kept only of what may become a component


@dataclass(eq=False)
class Node:
    """A value that depends on the images: a linear function of its edges, or a leaf."""
    op: str
    order: int
    edges: list[Edge] = field(default_factory=list)
    pull: Callable[[Readout], list[Readout]] | None = None   # one readout an edge
    constants: list[tuple[Tensor, ...]] = field(default_factory=list)  # products, broadcast to the value's shape
    origin: "Node | None" = None       # the leaf of which this value is a linear function, if it is of one alone
    undecided: list["Node"] = field(default_factory=list)  # attention products behind it: components, or pooling?
    made_of: frozenset = frozenset()   # (convolution or attention, order), since the residual stream
    attentions: int = 0                # attention products so far in the pass
    pointwise: bool = True
    attention: bool = False            # an attention product
    product: tuple | None = None       # its weights (a function of rows), its values, the dimension of its queries
    sealed: bool = False               # it is a component
    beside: int = 0                    # ... added to the residual stream as it was at this order

    @property
    def leaf(self) -> bool:
        return self.pull is None or self.sealed


class Found:
    """What is known of tensors, for as long as each of them is there. (torch's dictionary of this kind costs more than
    the rest of the recorder.)"""

    def __init__(self):
        self._kept: dict[int, tuple[Callable, Node]] = {}

    def __setitem__(self, tensor: Tensor, node: Node) -> None:
        key = id(tensor)
        self._kept[key] = weakref.ref(tensor, lambda _: self._kept.pop(key, None)), node

    def get(self, tensor: Tensor) -> Node | None:
        """The tensor's node; None where it has none."""
        reference, node = self._kept.get(id(tensor), (None, None))
        return node if node is not None and reference() is tensor else None

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
