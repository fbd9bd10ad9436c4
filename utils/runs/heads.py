"""Attention heads by name: `22.12` is head 12 of layer 22, both counted from 0; lists of them in configs/heads/.

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
from collections.abc import Collection, Sequence
from pathlib import Path

from utils.cli import UserError, read_yaml

Head = tuple[int, int]  # layer, head
FOLDER = Path(__file__).resolve().parents[2] / "configs" / "heads"


def name(head: Head) -> str:
    """(22, 12) -> 22.12."""
    return f"{head[0]}.{head[1]}"


def parse(text: str, source: str = "--heads") -> list[Head]:
    """Heads from `22.12,23.1` or `22.12 23.1`, each once. Raises UserError, which names the source, for anything else."""
    found = []
    for word in filter(None, re.split(r"[,\s]+", str(text))):
        if not re.fullmatch(r"\d+\.\d+", word):
            raise UserError(f"{source}: {word!r} is no head; write layer.head, counted from 0, such as 22.12,23.1")
        layer, head = word.split(".")
        found.append((int(layer), int(head)))
    if not found:
        raise UserError(f"{source}: names no head; write layer.head, counted from 0, such as 22.12,23.1")
    return list(dict.fromkeys(found))


def check(heads: Collection[Head], known: Sequence[Head], source: str = "--heads") -> None:
    """Raises UserError, which names the source, for a head that is not among those of the model, layer by layer, `known`."""
    for head in heads:
        if head not in known:
            raise UserError(f"{source}: there is no head {name(head)}; the model has {describe(known)}")


def describe(known: Sequence[Head]) -> str:
    """The heads of a model, layer by layer, in words: `layers 0 to 5 with heads 0 to 5`."""
    def span(word: str, first: int, last: int) -> str:
        return f"{word} {first}" if first == last else f"{word}s {first} to {last}"

    numbers = Counter(layer for layer, _ in known)
    # Layers that follow on each other and have as many heads differ from their place by the same number.
    alike = [[layer for _, layer in of_one] for _, of_one in itertools.groupby(
        enumerate(numbers), lambda entry: (numbers[entry[1]], entry[1] - entry[0]))]
    return ", ".join(f"{span('layer', layers[0], layers[-1])} with {span('head', 0, numbers[layers[0]] - 1)}"
                     for layers in alike)


def list_path(dataset: str, model: str) -> Path:
    """Where the list of a data set and a model is."""
    return FOLDER / f"{dataset}_{model}.yaml"


def read_list(path: Path, model: str, run: dict | None = None) -> dict[str, list[Head]]:
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
        raise UserError(f"{path}: lists heads of the weights {content['pretrained']}, and the arrays are of {run['pretrained']}; "
                        "take a list of their own")
    # YAML reads a single 22.10 as the number 22.1: quoted or several, they are text.
    wrong = [role for role, heads in groups.items() if not isinstance(heads, str)]
    if wrong:
        raise UserError(f"{path}: {wrong[0]}: should be text; put a single head in quotes, such as '22.10'")
    return {str(role): parse(heads, f"{path}, {role}") for role, heads in groups.items()}
