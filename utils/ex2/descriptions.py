"""Files of descriptions: X.json (a list of lists), X.jsonl (a line each), X.manifest.json (what made them)."""
import json
import os
import statistics
from pathlib import Path

from utils import cli
from utils.cli import UserError
from utils.ex2 import collapse

KEPT = ".kept.partial"  # suffix of what a run that is cut off has made
KEYS = ("concept", "question", "description", "seed", "reward")


def _beside(path: str, suffix: str) -> Path:
    return Path(path).with_suffix(suffix)


def read(path: str) -> tuple[list[dict], dict]:
    """Rows and manifest of X.json (or X.jsonl). Raises UserError for a file that inference.py did not write."""
    lines = _beside(path, ".jsonl")
    if not lines.is_file():
        raise UserError(f"{lines} does not exist; descriptions are made with: python inference.py --output_filepath {path}")
    try:
        rows = [json.loads(line) for line in lines.read_text(encoding="utf-8").split("\n") if line]
        rows = [{key: row[key] for key in KEYS} for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{lines}: not a file of inference.py, whose lines hold {', '.join(KEYS)}") from error
    if not rows:
        raise UserError(f"{lines} holds no descriptions; make it again with inference.py")
    manifest = _beside(path, ".manifest.json")
    return rows, json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}


def write(path: str, rows: list[dict], manifest: dict) -> None:
    """Write the three files, and remove what `keep` kept. Concepts stand in the order of their first row.
    The manifest gets the mean reward with its standard error, and the signs of collapse."""
    lists: dict[str, list[str]] = {}
    for row in rows:
        lists.setdefault(row["concept"], []).append(row["description"])
    lines = [json.dumps({key: row[key] for key in KEYS}, ensure_ascii=False) + "\n" for row in rows]
    found = measures(rows)
    cli.save_result(_beside(path, ".manifest.json"), manifest | {"mean_reward": mean_reward(rows), "measures": found})
    cli.write_text(_beside(path, ".jsonl"), "".join(lines))
    cli.save_result(_beside(path, ".json"), list(lists.values()))
    _beside(path, KEPT).unlink(missing_ok=True)


def begun(path: str, manifest: dict) -> list[str]:
    """Descriptions that an earlier run with the same manifest had made when it was cut off, in order.

    Raises UserError where the run that was cut off had other settings.
    """
    partial = _beside(path, KEPT)
    lines = partial.read_bytes().split(b"\n")[:-1] if partial.is_file() else []  # a line without its end was cut off
    if not lines:
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(manifest, ensure_ascii=False) + "\n", encoding="utf-8")
        return []
    try:
        before, *made = map(json.loads, lines)
    except ValueError as error:
        raise UserError(f"{partial} is damaged, or not of inference.py; delete it") from error
    if before != manifest:
        raise UserError(f"{partial} is of a run with other options that was cut off; finish that one, delete the file, "
                        "or name another --output_filepath")
    os.truncate(partial, sum(len(line) + 1 for line in lines))
    return made


def keep(path: str, made: list[str]) -> None:
    """Append descriptions to the partial file, so that a run that is cut off can go on."""
    with _beside(path, KEPT).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(text, ensure_ascii=False) + "\n" for text in made)


def mean_reward(rows: list[dict]) -> tuple[float, float] | None:
    """Mean reward of rows and its standard error; None without at least two rewards."""
    found = [row["reward"] for row in rows if row["reward"] is not None]
    return (statistics.fmean(found), statistics.stdev(found) / len(found) ** 0.5) if len(found) > 1 else None


def measures(rows: list[dict]) -> dict[str, float]:
    """`collapse.measures` of rows."""
    return collapse.measures([row["description"] for row in rows], [row["question"] for row in rows])


def summary(rows: list[dict]) -> list[str]:
    """Lines about rows for the screen: the mean reward, and the signs of collapse."""
    found = measures(rows)
    lines = ["words a description: {mean_words:.1f}; duplicates {duplicates:.1%}, repeated phrases {repeated_phrases:.1%}, "
             "copies of the question {copies:.1%}, commonest phrase in {shared_phrase:.1%}".format(**found)]
    if reward := mean_reward(rows):
        lines.insert(0, f"mean reward: {reward[0]:.2f} +- {reward[1]:.2f} (standard error)")
    if problem := collapse.warning(found):
        lines.append(f"warning: {problem}")
    return lines
