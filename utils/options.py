"""The types of options, and the settings files that hold them."""
import argparse
import math
import os
from dataclasses import dataclass
from pathlib import Path

from utils.inputs import UserError, describe, read_text

LARGEST = 2 ** 31 - 1  # whole number that every library takes
COMPOUND = {"seq": "a list", "map": "a mapping", "null": "empty"}  # kinds of YAML's nodes that are no single value
TRUE = ("true", "yes", "on")  # in YAML


# Types of options. Where one refuses a value, it says what the value is, and the caller whose.

@dataclass(frozen=True)
class Number:
    """The type of an option: finite numbers of one `kind` (int or float) from `low` to `high`, or above `low` alone."""
    kind: type
    low: float
    high: float = math.inf
    above: bool = False  # whether `low` itself is too small

    def __call__(self, text: str) -> int | float:
        try:
            value = self.kind(text)
        except ValueError as error:
            wanted = "a whole number" if self.kind is int else "a number"
            raise argparse.ArgumentTypeError(f"is {text!r}; it must be {wanted}") from error
        large_enough = self.low < value if self.above else self.low <= value  # not so of NaN
        if not large_enough or value > self.high or value == math.inf:
            raise argparse.ArgumentTypeError(f"is {text}; it must be {self}")
        if self.kind is int and value > LARGEST and self.high == math.inf:
            raise argparse.ArgumentTypeError(f"is {text}; it must be at most {LARGEST}")
        return value

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"from {self.low} to {self.high}"
        return f"above {self.low}" if self.above else f"at least {self.low}"


def filled(text: str) -> str:
    """The type of options that name no other: a text with something in it."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError("is empty; give it a value")
    return text


def boolean(text: str) -> bool:
    """The value of an option that is given as True or False."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"is {text!r}; it must be True or False")
    return text.lower() == "true"


def check_path(action: argparse.Action, given) -> None:
    """Refuse a folder where an option's metavar says that a file is wanted, and the other way round, and a place for
    results where nothing can be written."""
    if not str(action.metavar).startswith(("FILE", "X.", "FOLDER")) or given is None:
        return
    for value in given if isinstance(given, list) else [given]:
        option, path = f"{action.option_strings[-1]} {value}", Path(value)
        if action.metavar != "FOLDER" and path.is_dir():
            raise UserError(f"{option}: is a folder; give a file")
        folder = path if action.metavar == "FOLDER" else path.parent
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        if not there.is_dir():
            raise UserError(f"{option}: {there} is a file; give a folder")
        if action.dest.startswith("output") and not os.access(there, os.W_OK):
            raise UserError(f"{option}: nothing can be written to {there}; choose another folder")


# Settings files of YAML: each value as its option's own type takes it.

def read_settings(path: str) -> list[tuple]:
    """The lines of a settings file: of each its number, counted from 1, the option, and YAML's node of the value.

    Raises UserError for another file, and for an option that it names twice.
    """
    import yaml

    try:
        root = yaml.compose(read_text(path), Loader=yaml.SafeLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"--config {path}: cannot be read as YAML ({describe(error).splitlines()[0]})") from error
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path}: should hold 'option: value' lines")
    lines, first = [], {}
    for key, node in root.value if root else ():
        line, name = key.start_mark.line + 1, str(key.value)
        if name in first:
            raise UserError(f"{path}, line {line}: repeats {name} of line {first[name]}; remove one of them")
        first[name] = line
        lines.append((line, name, node))
    return lines


def setting(action: argparse.Action, node):
    """The value of an option from YAML's node; None for an empty one. Options that take several take a list, too.

    Raises ValueError or argparse.ArgumentTypeError, which say what the value is, for another kind than the option's.
    """
    if _kind(node) == "null":
        return None
    if action.nargs in (None, 0):
        return _single(action, node)
    values = [_single(action, one) for one in (node.value if _kind(node) == "seq" else [node])]
    if isinstance(action.nargs, int) and len(values) != action.nargs:
        raise ValueError(f"holds {len(values)} of {action.nargs} values")
    return values


def _kind(node) -> str:
    return node.tag.rpartition(":")[2]


def _single(action: argparse.Action, node):
    kind, is_flag = _kind(node), action.nargs == 0 or action.type is boolean
    is_text = not is_flag and not isinstance(action.type, Number)
    if kind in COMPOUND:
        raise ValueError(f"is {COMPOUND[kind]}; give a single value")
    if is_text and kind != "str":  # YAML reads 22.10 as the number 22.1
        raise ValueError(f"is {node.value}, and should be text; put it in quotes")
    if not is_text and node.style:
        raise ValueError(f"is the text {node.value!r}; leave the quotes out")
    if is_flag:
        return node.value.lower() in TRUE if kind == "bool" else boolean(node.value)
    value = (action.type or filled)(node.value)
    if action.choices and value not in action.choices:
        raise ValueError(f"is {value!r}; choose from {', '.join(map(str, action.choices))}")
    return value
