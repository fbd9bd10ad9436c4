"""The parts of a model that write to its residual stream, by name; lists of heads in configs/heads/.

A list is a YAML file that says for which model and on which data the heads were found, and what each of them is about:

    model: ViT-L-14
    pretrained: laion2b_s32b_b82k     # where the model has several weights
    dataset: binary_waterbirds
    heads:
      geolocation: 21.1 22.12 22.13
      setting: 21.3 21.6
"""
import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.inputs import UserError, read_yaml

ARRAYS = {"attn": ("attn",), "mlp": ("embed", "mlp"), "conv": ("conv",)}  # in which components are stored: their kinds
HEAD_LISTS = Path(__file__).resolve().parents[2] / "configs" / "heads"


@dataclass(frozen=True)
class Component:
    """One part of a model that writes to the residual stream; prints as `5.3`, `mlp 5`, `conv 2` or `embedding`."""
    kind: str                # "attn" (an attention head), "mlp", "conv" (a convolution block), "embed" (the embedding)
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
        raise UserError(f"{text!r} is no component; write a head as layer.head, counted from 0, such as 22.12, or 'mlp "
                        "5', 'conv 2', 'embedding'")

    def to_dict(self) -> dict:
        """As files name it: kind, block and head."""
        return {"kind": self.kind, "block": self.layer, "head": self.head}

    @classmethod
    def from_dict(cls, entry: dict) -> "Component":
        """From what `to_dict` gives."""
        return cls(entry["kind"], entry["block"], entry["head"])


def plain_components(layers: int, heads: int, mlps: int | None) -> list[Component]:
    """The components of a plain transformer, as arrays hold them whose shapes alone say which term is whose: heads,
    layer by layer, the embedding and the MLPs (None: neither)."""
    found = [Component("attn", layer, head) for layer in range(layers) for head in range(heads)]
    return found if mlps is None else [*found, Component("embed"), *(Component("mlp", layer) for layer in range(mlps))]


def are_plain(components: Sequence[Component]) -> bool:
    """Whether components are those of a plain transformer: blocks numbered from 0, each with as many heads."""
    heads = [part for part in components if part.kind == "attn"]
    layers, mlps = len({part.layer for part in heads}), sum(part.kind == "mlp" for part in components)
    return layers > 0 and [*components] == plain_components(layers, len(heads) // layers, mlps)


def by_array(components: Iterable[Component]) -> dict[str, list[dict]]:
    """Components as {dataset}_components_{model}.json names them: those of each array, in order."""
    components = list(components)
    named = {what: [part.to_dict() for part in components if part.kind in kinds] for what, kinds in ARRAYS.items()}
    return {what: parts for what, parts in named.items() if parts}


def parse_heads(text: str, source: str = "--heads") -> list[Component]:
    """Heads from `22.12,23.1` or `22.12 23.1`, each once. Raises UserError, which names the source, for anything
    else."""
    words = [word for word in re.split(r"[,\s]+", str(text)) if word]
    for word in words or [""]:
        if not re.fullmatch(r"\d+\.\d+", word):
            wrong = f"{word!r} is no head" if word else "names no head"
            raise UserError(f"{source}: {wrong}; write layer.head, counted from 0, such as 22.12,23.1")
    return list(dict.fromkeys(map(Component.parse, words)))


def check_heads(heads: Collection[Component], known: Sequence[Component], source: str = "--heads") -> None:
    """Raises UserError, which names the source, for a head that is not among those of the model, layer by layer,
    `known`."""
    for head in heads:
        if head not in known:
            raise UserError(f"{source}: there is no head {head}; the model has {describe_heads(known)}")


def describe_heads(known: Sequence[Component]) -> str:
    """The heads of a model, layer by layer, in words: `layers 0 to 5 with heads 0 to 5`."""
    def span(word: str, first: int, last: int) -> str:
        return f"{word} {first}" if first == last else f"{word}s {first} to {last}"

    numbers = Counter(head.layer for head in known)
    # Layers that follow on each other and have as many heads differ from their place by the same number.
    alike = [[layer for _, layer in of_one] for _, of_one in itertools.groupby(
        enumerate(numbers), lambda entry: (numbers[entry[1]], entry[1] - entry[0]))]
    return ", ".join(f"{span('layer', layers[0], layers[-1])} with {span('head', 0, numbers[layers[0]] - 1)}"
                     for layers in alike)


def head_list_path(dataset: str, model: str) -> Path:
    """Where the list of a data set and a model is."""
    return HEAD_LISTS / f"{dataset}_{model}.yaml"


def read_head_list(path: Path, model: str, run: dict | None = None) -> dict[str, list[Component]]:
    """The heads of a list by what they are about. `model` is the name in file names, `run` the manifest of the arrays.

    Raises UserError where there is no such file, it is no list, or it is of another model or other weights.
    """
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise UserError(f"{path}: no such list of heads" + (f"; there are {there}" if there else ""))
    content = read_yaml(str(path))
    groups = content.get("heads")
    if set(content) - {"pretrained"} != {"model", "dataset", "heads"} or not isinstance(groups, dict) or not groups:
        raise UserError(f"{path}: should hold model, dataset and heads, with lines such as 'colors: 22.11 23.4'")
    if content["model"] != model:
        raise UserError(f"{path}: lists heads of {content['model']}, and --model is {model}; take a list of its own")
    if run and content.get("pretrained", run["pretrained"]) != run["pretrained"]:
        raise UserError(f"{path}: lists heads of the weights {content['pretrained']}, and the arrays are of "
                        f"{run['pretrained']}; take a list of their own")
    # YAML reads a single 22.10 as the number 22.1: quoted or several, they are text.
    wrong = [role for role, heads in groups.items() if not isinstance(heads, str)]
    if wrong:
        raise UserError(f"{path}: {wrong[0]}: should be text; put a single head in quotes, such as '22.10'")
    return {str(role): parse_heads(heads, f"{path}, {role}") for role, heads in groups.items()}
