"""Tables of papers, as configs/experiments/NAME.yaml says them: their steps, their published figures, and ours beside.

A file holds `title`, `paper`, `data` (data sets with their splits), `cost`, `defaults` (what stands for a {name} in the
rest), `variants` (a model each, with names of its own), `embedded` (the same for the embedded world), `steps` (command
lines without `python`; a variant may have its own), `about` (manifests of the runs), `figures`, and `published` (of a
variant: `from`, `verified`, and figures by key). A figure has `key`, `name`, `file` (a JSON), `value` (the way to it in
there: names, places, or a mapping that picks an entry of a list), and may have `times`, `tolerance`, `step` and `each`
(names with lists of values: a figure for each of them).
"""
import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path

from utils.cli import UserError
from utils.data import downloads
from utils.inputs import read_yaml

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "experiments"
TOLERANCE = 0.5  # points, where a figure names none: ours, not the papers'
KEYS = {"title", "paper", "data", "cost", "defaults", "variants", "embedded", "steps", "about", "figures", "published",
        "note"}
ABOUT = ("model", "pretrained", "base_model_name", "weights_sha256", "dataset", "split", "images", "precision",
         "options", "versions")


@dataclass(frozen=True)
class Figure:
    """One number of a table: where ours stands, and what was published."""
    key: str
    name: str
    variant: str
    file: str
    way: tuple            # to the number in the file
    times: float          # what our number is multiplied by
    tolerance: float
    step: str             # the step to look at where ours is off
    published: float | None
    source: str           # of what was published
    verified: bool        # against the paper; else quoted from elsewhere


def names(folder: Path = FOLDER) -> list[str]:
    """Names of all tables."""
    return sorted(path.stem for path in Path(folder).glob("*.yaml"))


def read(name: str, folder: Path = FOLDER) -> dict:
    """A table's file. Raises UserError for an unknown name or key."""
    if name not in names(folder):
        raise UserError(f"no table {name}; there are {', '.join(names(folder))}")
    found = read_yaml(str(Path(folder) / f"{name}.yaml"))
    unknown = sorted(set(found) - KEYS)
    if unknown:
        raise UserError(f"{name}.yaml: unknown key {', '.join(unknown)}; known are {', '.join(sorted(KEYS))}")
    for variant in found.get("published", {}):
        if variant not in found["variants"]:
            raise UserError(f"{name}.yaml: figures of {variant!r} are published, which is no variant")
    return found


def filled(text, values: dict):
    """A text, or texts in a list or mapping, with what stands for each {name}; names may stand for names."""
    if isinstance(text, dict):
        return {key: filled(value, values) for key, value in text.items()}
    if isinstance(text, (list, tuple)):
        return [filled(value, values) for value in text]
    for _ in range(5):
        if not isinstance(text, str) or "{" not in text:
            return text
        try:
            text = text.format_map(values)
        except (KeyError, ValueError) as error:
            raise UserError(f"{text!r}: nothing stands for {error}") from error
    return text


def variants(experiment: dict, embedded: bool, values: dict) -> dict[str, dict]:
    """The variants of a table, of the papers or of the embedded world, each with what stands for names in it."""
    chosen = experiment.get("embedded" if embedded else "variants") or {}
    return {name: {"variant": name, **experiment.get("defaults", {}), **values, **own} for name, own in chosen.items()}


def steps(experiment: dict, values: dict) -> list[str]:
    """Command lines of a variant, in order, without those that are empty."""
    listed = values.get("steps") or experiment["steps"]
    found = (" ".join(filled(step, values).split()) for step in listed)
    return list(dict.fromkeys(step for step in found if step))


def figures(experiment: dict, values: dict) -> list[Figure]:
    """The figures of a variant."""
    published, found = (experiment.get("published") or {}).get(values["variant"], {}), []
    lines = steps(experiment, values)
    for entry in experiment["figures"]:
        each = entry.get("each") or {}
        for chosen in itertools.product(*(filled(listed, values) for listed in each.values())):
            here = values | dict(zip(each, map(str, chosen)))
            key, step = filled(entry["key"], here), filled(entry.get("step", ""), here)
            found.append(Figure(
                key, filled(entry["name"], here).replace("_", " "), values["variant"], filled(entry["file"], here),
                tuple(filled(entry["value"], here)), entry.get("times", 1), entry.get("tolerance", TOLERANCE),
                next((line for line in reversed(lines) if step in line), lines[-1]),
                at(published, key), published.get("from", ""), bool(published.get("verified"))))
    return found


def at(published: dict, key: str) -> float | None:
    """The figure that was published under a key: its parts, between dots, lead into the mapping."""
    for part in key.split("."):
        published = published.get(part) if isinstance(published, dict) else None
    return published


def ours(figure: Figure) -> float | None:
    """Our number; None where it is not there."""
    path = Path(figure.file)
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    for part in figure.way:
        if isinstance(part, dict):
            found = next((entry for entry in found
                          if all(str(entry.get(name)) == str(value) for name, value in part.items())), None)
        elif isinstance(found, list):
            found = found[int(part)] if -len(found) <= int(part) < len(found) else None
        else:
            found = found.get(part)
        if found is None:
            return None
    return found * figure.times


def row(figure: Figure) -> dict:
    """A figure of a table: published, ours, the difference, and whether it is within the tolerance (None: nothing to
    compare)."""
    found, difference, within = ours(figure), None, None
    if found is not None and figure.published is not None:
        difference = found - figure.published
        within = abs(difference) <= figure.tolerance
    return {"key": figure.key, "name": figure.name, "variant": figure.variant, "published": figure.published,
            "from": figure.source, "verified": figure.verified, "ours": found, "difference": difference,
            "tolerance": figure.tolerance, "within": within, "step": figure.step}


def about(experiment: dict, values: dict) -> list[dict]:
    """What the manifests of a variant's runs say: model, weights and their hash, images, options, versions."""
    found = []
    for path in map(Path, filled(experiment.get("about", []), values)):
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            found.append({name: content[name] for name in ABOUT if content.get(name) is not None})
    return found


def published_segmentation(dataset: str, model: str, pretrained: str) -> dict[str, list[float]]:
    """Published figures by method: pixel accuracy, mean IoU and mean AP in percent, of a model with these weights."""
    experiment = read("segmentation")
    for name, own in experiment["variants"].items():
        if dataset == "imagenet_seg" and (own["model"], own["pretrained"]) == (model, pretrained):
            found = experiment["published"].get(name, {})
            return {method: list(values.values()) for method, values in found.items() if isinstance(values, dict)}
    return {}


def find_data(loaded: dict[str, dict], root: str | None, inspector: str) -> tuple[dict[str, str], list[str]]:
    """The path of every data set that tables need, by name, and a line for each that is missing, and for an inspector
    where one is asked: `inspector` are its options."""
    needed: dict[str, list[str]] = {}
    for experiment in loaded.values():
        for name, splits in (experiment.get("data") or {}).items():
            needed[name] = list(dict.fromkeys([*needed.get(name, []), *splits]))
    paths, missing = downloads.find(root, needed)
    asks = any("inspect.py --input" in str(experiment) for experiment in loaded.values())
    if asks and not os.environ.get("OPENAI_API_KEY") and "--base_url" not in inspector:
        missing.append('inspector: set OPENAI_API_KEY, or INSPECTOR="--base_url URL --model NAME" of another server')
    return paths, missing
