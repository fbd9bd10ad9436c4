"""From shares to names: what a component is called, in which words, and how that is kept in a file.

{dataset}_names_{model}.json, by compute_head_names.py, is what reports, heat maps and other steps take names from.
"""
import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from utils.analysis.names.shares import Shares
from utils.cli import UserError
from utils.runs.components import Component, check_heads
from utils.runs.files import Place
from utils.runs.run import Run

MIXED = 0.5  # of the first attribute's share, above which the second one makes a head mixed
SURE = 1.96  # standard errors to either side of an interval
MOST = 10    # texts of a head that are kept
ENDS = 3     # texts of either end


def describe(components: list[Component], shares: Shares, texts: Mapping[str, list[str]]) -> list[dict]:
    """For each component its names and figures, as the file of names keeps them; `texts` are those of attributes."""
    rows = []
    for c, part in enumerate(components):
        order = np.argsort(-shares.plain[:, c], kind="stable")
        first = int(order[0])
        attribute, own = shares.attributes[first], texts[shares.attributes[first]]
        share, chance = float(shares.plain[first, c]), float(shares.chance[first, c])
        second = float(shares.plain[order[1], c]) if len(order) > 1 else 0.0
        error = SURE * float(shares.error[first, c])
        values, along = shares.values[first][:, c], shares.positions[c]
        there = np.flatnonzero(values > 0)
        by_value = there[np.argsort(-values[there], kind="stable")]
        by_place = there[np.argsort(along[there], kind="stable")]
        ends = [[own[i] for i in by_place[:ENDS]], [own[i] for i in by_place[::-1][:ENDS]]]
        # The largest of many shares is above its own chance more often than one is; its interval says how sure it is.
        name = "none" if share <= max(chance, error, 0) else "mixed" if second > MIXED * share else attribute
        rows.append({**({"layer": part.layer, "head": part.head} if part.kind == "attn" else part.to_dict()),
                     "attribute": attribute, "name": name, "role": role(name, shares.attributes, order, ends),
                     "shares": by_name(shares.attributes, shares.plain[:, c]),
                     "partial": by_name(shares.attributes, shares.partial[:, c]),
                     "texts": [own[i] for i in by_value[:MOST]], "ends": ends,
                     "interval": [share - error, share + error], "chance": chance,
                     "variance": float(shares.variance[c])})
    return rows


def by_name(names: list[str], values: np.ndarray) -> dict[str, float | None]:
    """Figures by attribute; None for those that are not known."""
    return {name: float(value) if np.isfinite(value) else None for name, value in zip(names, values)}


def role(name: str, attributes: list[str], order: np.ndarray, ends: list[list[str]]) -> str:
    """What a component is called in words: its attribute and the two texts at its ends, or the two that are mixed."""
    if name == "none":
        return "none"
    if name == "mixed":
        return f"mixed: {attributes[order[0]]} and {attributes[order[1]]}"
    return f"{name}: {ends[0][0]} ... {ends[1][0]}" if ends[0] else name


def spelled(name: str) -> str:
    """An attribute of the embedded scenes, or the role of a head that begins with one, as pages and pictures spell it;
    texts stay as they are."""
    attribute, colon, texts = name.partition(": ")
    if attribute == "mixed":  # of attributes
        texts = " and ".join(map(spelled, texts.split(" and ")))
    return ("colour" if attribute == "color" else attribute) + colon + texts


def table(rows: list[dict], components: list[Component]) -> str:
    """The names as a table in Markdown."""
    lines = ["| part | name | share (%) | interval | partial (%) | chance (%) | in words |", "| --- " * 7 + "|"]
    for part, row in zip(components, rows):
        partial, (low, high) = row["partial"][row["attribute"]], row["interval"]
        lines.append(f"| {part} | {row['name']} | {100 * row['shares'][row['attribute']]:.0f} | "
                     f"{100 * low:.0f} to {100 * high:.0f} | {'-' if partial is None else f'{100 * partial:.0f}'} | "
                     f"{100 * max(row['chance'], 0):.1f} | {row['role']} |")
    return "\n".join(lines)


def growth(rows: list[dict], texts: Mapping[str, list[str]]) -> dict:
    """How many texts there are, and the share of its variance that a head's first attribute explains, on average."""
    return {"texts": sum(map(len, texts.values())),
            "share": float(np.mean([row["shares"][row["attribute"]] for row in rows]))}


def to_csv(rows: list[dict], components: list[Component], attributes: list[str]) -> str:
    """The names as CSV, a line a component, with the shares of all attributes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["part", "attribute", "name", "low", "high", "chance", "role", "texts", *attributes,
                     *(f"partial {name}" for name in attributes)])
    for part, row in zip(components, rows):
        writer.writerow([part, row["attribute"], row["name"], *row["interval"], row["chance"], row["role"],
                         "; ".join(row["texts"]), *row["shares"].values(), *row["partial"].values()])
    return text.getvalue()


def quality_table(said: Mapping[str, dict]) -> str:
    """How well a CLIP tells the values of each attribute apart, as a table in Markdown."""
    lines = ["| attribute | texts | entropy | margin | agreement |", "| --- " * 5 + "|"]
    lines += [f"| {name} | {own['texts']} | {own['entropy']:.2f} | {own['margin']:.2f} | {own['agreement']:.2f} |"
              for name, own in said.items()]
    return "\n".join(lines)


def path(place: Place, folder: str | None = None) -> Path:
    """Where the names of a run are."""
    return place.path("names", ".json", folder)


def answers_path(place: Place, folder: str | None = None) -> Path:
    """Where a language model's answers about these names are kept."""
    file = path(place, folder)
    return file.with_name(f"{file.stem}_answers.jsonl")


def command(run: Run) -> str:
    """The command that makes them."""
    place, file = run.place, "emoji" if run.place.dataset.startswith("emoji") else "general"
    return (f"python compute_head_names.py --model {place.model} --dataset {place.dataset}"
            + (f" --split {place.split}" if place.split else "")
            + f" --attributes configs/attributes/{file}.yaml --input_dir {place.folder}")


def read(run: Run) -> dict[Component, dict]:
    """The names of a run's heads, as `describe` made them. Raises UserError where there are none, or they are about
    other arrays."""
    file = path(run.place)
    content = _load(file, command(run))
    found = _by_head(content)
    if content["images"] != len(run) or list(found) != run.heads or not run.is_about(content):
        raise UserError(f"{file}: is about other arrays; make it again with: {command(run)}")
    return found


def read_file(file: Path, weights: str | None = None) -> tuple[dict[Component, dict], int]:
    """The names in a file, by head, and the number of images they were found on. Raises UserError where there are none,
    and where they are about other `weights` than these, by their hash."""
    hint = "python compute_head_names.py"
    content = _load(file, hint)
    about = (content.get("made_of") or {}).get("weights_sha256")
    if weights and about and weights != about:
        raise UserError(f"{file}: names heads of other weights than those of --model; make it again with: {hint}")
    return _by_head(content), content["images"]


def _load(file: Path, hint: str) -> dict:
    """A file of names. Raises UserError, with the command that helps, for another."""
    if not file.is_file():
        raise UserError(f"{file} does not exist; make it with: {hint}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if _by_head(content) and "images" in content:
            return content
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{file}: holds no names; make it again with: {hint}")


def _by_head(content: dict) -> dict[Component, dict]:
    return {Component("attn", row["layer"], row["head"]): row for row in content["heads"]}


def role_of(file: str, layer: int, head: int, weights: str | None = None) -> str:
    """What a file of names calls a head. Raises UserError as `read_file` does, and for a head it does not name."""
    names, _ = read_file(Path(file), weights)
    check_heads([Component("attn", layer, head)], list(names), file)
    return names[Component("attn", layer, head)]["role"]


def roles(names: Mapping[Component, dict], heads: Sequence[Component]) -> dict[str, str]:
    """The role of each of these heads: what a language model said, or else the name."""
    return {str(head): names[head].get("described") or names[head]["role"] for head in heads}


def leading(row: dict) -> list[str]:
    """The attributes that a head goes with: its first, and those with over half as much."""
    most = row["shares"][row["attribute"]]
    return [name for name, share in row["shares"].items() if name == row["attribute"] or share > MIXED * most]


def by_attribute(names: Mapping[Component, dict]) -> dict[str, list[Component]]:
    """The heads of each name but `mixed` and `none`, those with the largest share first."""
    found: dict[str, list[Component]] = {}
    for head, row in sorted(names.items(), key=lambda entry: -entry[1]["shares"][entry[1]["attribute"]]):
        if row["name"] == row["attribute"]:
            found.setdefault(row["name"], []).append(head)
    return found


def find(run: Run) -> dict[Component, dict]:
    """The names of a run's heads where they have been made, and otherwise none."""
    return read(run) if path(run.place).is_file() else {}
