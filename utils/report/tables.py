"""Tables of papers with ours beside: what a reproduction found, as JSON, and as one page for all tables."""
import importlib.metadata
import json
import os
from pathlib import Path

import jinja2

from utils import cli
from utils.report import experiments

PACKAGES = ("torch", "torchvision", "open-clip-torch", "timm", "transformers", "trl", "peft", "numpy")
WORDS = {True: "yes", False: "NO", None: ""}


def number(value: float | None, digits: int = 2) -> str:
    """A number of a table; empty where there is none."""
    return "" if value is None else f"{value:.{digits}f}"


def listing(loaded: dict[str, dict]) -> str:
    """What tables need, as a table."""
    lines = ["| table | what | models | data | disk, GB | hours on an H100 | hours on 2 CPU cores |",
             "| --- | --- | --- | --- | --- | --- | --- |"]
    for name, experiment in loaded.items():
        data = ", ".join(f"{key} ({', '.join(splits)})" for key, splits in (experiment.get("data") or {}).items())
        cost = experiment.get("cost", {})
        models = "; ".join(experiment["variants"]) or "embedded models alone"
        lines.append(f"| {name} | {experiment['title']} | {models} | {data} | "
                     f"{cost.get('disk_gb', '')} | {cost.get('h100_hours', '')} | {cost.get('cpu_hours', '')} |")
    return "\n".join([*lines, "Disk and hours are estimates, from sizes and from the rates in docs/benchmarks.md."])


def machine() -> str:
    """The GPU, or how many CPU cores there are."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"


def collect(name: str, experiment: dict, embedded: bool, values: dict, done: dict[str, list[dict]]) -> dict:
    """A table as JSON: its figures, the runs they come from, and its steps, which `done` holds for each variant.

    A figure that is neither published nor among what the steps wrote is left out, unless a step failed."""
    chosen = experiments.variants(experiment, embedded, values)
    failed = {variant for variant, listed in done.items() if any("failed" in step for step in listed)}
    rows = [experiments.row(figure) for own in chosen.values() for figure in experiments.figures(experiment, own)]
    steps = list({step["step"]: step for listed in done.values() for step in listed}.values())
    return {"table": name, "title": experiment["title"], "paper": experiment.get("paper"),
            "note": experiment.get("note"), "embedded": embedded, "variants": list(chosen),
            "rows": [row for row in rows
                     if row["variant"] in failed or (row["ours"], row["published"]) != (None, None)],
            "runs": {variant: experiments.about(experiment, own) for variant, own in chosen.items()},
            "steps": steps, "seconds": sum(step.get("seconds", 0) for step in steps), "device": machine(),
            "versions": {package: importlib.metadata.version(package) for package in PACKAGES}}


def read(folder: Path, every: list[str]) -> list[dict]:
    """The tables that were made in a folder, of these names."""
    paths = [folder / f"{name}.json" for name in every]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]


def write(folder: Path, every: list[str]) -> None:
    """Write index.html and index.md, one page of all tables that were made in a folder."""
    found = read(folder, every)
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
                                     trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template("tables.html.j2").render(
        title="Figures of the embedded models" if all(table["embedded"] for table in found) else
        "Published, ours, difference", tables=found, number=number, columns=pivot)
    cli.write_text(folder / "index.html", page)
    cli.write_text(folder / "index.md", "\n".join(line for table in found for line in markdown(table)) + "\n")


def pivot(table: dict) -> list[tuple[str, list[dict | None]]]:
    """Figures by name, each with its row of every variant (None where a variant has no such figure)."""
    rows = {(row["name"], row["variant"]): row for row in table["rows"]}
    return [(name, [rows.get((name, variant)) for variant in table["variants"]])
            for name in dict.fromkeys(row["name"] for row in table["rows"])]


def markdown(table: dict) -> list[str]:
    """A table in markdown, with what it was made of."""
    lines = [f"## {table['title']}", "", *([table["paper"], ""] if table["paper"] else []),
             *([table["note"].strip(), ""] if table["note"] else [])]
    if any(row["published"] is not None for row in table["rows"]):
        lines += ["| figure | model | published | ours | difference | tolerance | within | from |", "| --- " * 8 + "|"]
        for row in table["rows"]:
            kind = "verified" if row["verified"] else "quoted"
            source = "" if row["published"] is None else f"{row['from']} ({kind})"
            within = WORDS[row["within"]] + (f": look at `{row['step']}`" if row["within"] is False else "")
            lines.append(f"| {row['name']} | {row['variant']} | {number(row['published'])} | {number(row['ours'])} | "
                         f"{number(row['difference'])} | {row['tolerance']} | {within} | {source} |")
    else:
        lines += [f"| | {' | '.join(table['variants'])} |", "| --- " * (1 + len(table["variants"])) + "|"]
        for name, rows in pivot(table):
            lines.append(f"| {name} | {' | '.join(number(row and row['ours']) for row in rows)} |")
    return [*lines, "", *origin(table), ""]


def origin(table: dict) -> list[str]:
    """What a table's figures come from: the weights and images of every run, steps that failed, time and machine."""
    lines = []
    for variant, runs in table["runs"].items():
        for run in runs:
            aligned = f"{run['base_model_name']} with an adapter" if run.get("base_model_name") else "weights"
            weights = run.get("pretrained") or run.get("model") or aligned
            if run.get("weights_sha256"):
                weights += f" (sha256 {run['weights_sha256'][:12]})"
            images = f"{run['images']} images of {run.get('dataset')}" if run.get("images") else run.get("dataset")
            options = ", ".join(f"{key} {value}" for key, value in run.get("options", {}).items() if value is not None)
            lines.append(f"- {variant}: {weights}; {images}" + (f" ({run['split']})" if run.get("split") else "")
                         + (f"; {options}" if options else ""))
    lines += [f"- failed: `{step['step']}`: {step['failed']}" for step in table["steps"] if "failed" in step]
    done = sum("seconds" in step for step in table["steps"])
    versions = ", ".join(f"{name} {version}" for name, version in table["versions"].items())
    return [*lines, f"- {cli.counted(done, 'step')}, {table['seconds'] / 60:.0f} min on {table['device']}; {versions}"]


def write_results(folder: Path, every: list[str], docs: Path) -> None:
    """Write results.md and results.json: every figure of the embedded tables in a folder. Tables that were not made
    there are named."""
    found = read(folder, every)
    lines = ["# Every figure of the embedded models", "",
             "Written by `bash scripts/reproduce.sh --embedded`, which computes all of it; results.json has the same.",
             "In percent, unless the name says otherwise.", ""]
    for table in found:
        lines += markdown(table)
    missing = [name for name in every if name not in {table["table"] for table in found}]
    lines += [f"Not run yet: {', '.join(missing)}.", ""] if missing else []
    cli.write_text(docs / "results.md", "\n".join(lines))
    cli.save_result(docs / "results.json", {f"{table['table']}.{row['variant']}.{row['key']}": row["ours"]
                                            for table in found for row in table["rows"] if row["ours"] is not None})
