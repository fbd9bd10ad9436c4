"""The parts of a model that write to its residual stream, by name."""
import re
from dataclasses import dataclass

from utils.cli import UserError


@dataclass(frozen=True)
class Component:
    """One part of a model that writes to the residual stream; prints as `5.3`, `mlp 5`, `conv 2` or `embedding`."""
    kind: str                # "attn" (an attention head), "mlp", "conv" (a convolution block) or "embed" (the embedding)
    layer: int = -1          # the block it is in, counted from 0; the embedding's is -1
    head: int | None = None  # counted from 0 in its layer; None also for attention whose heads cannot be told apart

    def __str__(self) -> str:
        if self.kind == "embed":
            return "embedding"
        return f"{self.kind} {self.layer}" if self.head is None else f"{self.layer}.{self.head}"

    @classmethod
    def parse(cls, text: str) -> "Component":
        """The component that prints as this text. Raises UserError where there is none."""
        if text == "embedding":
            return cls("embed")
        if found := re.fullmatch(r"(\d+)\.(\d+)", text):
            return cls("attn", int(found[1]), int(found[2]))
        if found := re.fullmatch(r"(attn|mlp|conv) (\d+)", text):
            return cls(found[1], int(found[2]))
        raise UserError(f"{text!r} is no component; write a head as layer.head, counted from 0, such as 22.12, or 'mlp 5', "
                        "'conv 2', 'embedding'")

    def to_dict(self) -> dict:
        """As files name it: kind, block and head."""
        return {"kind": self.kind, "block": self.layer, "head": self.head}

    @classmethod
    def from_dict(cls, entry: dict) -> "Component":
        """From what `to_dict` gives."""
        return cls(entry["kind"], entry["block"], entry["head"])
