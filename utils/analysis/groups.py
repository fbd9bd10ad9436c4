"""Groups of images, class by place of the background, and the accuracy of each."""
from collections.abc import Sequence

import numpy as np

from utils.cli import UserError
from utils.data import datasets
from utils.runs.run import Run

FIGURES = ("overall", "average_of_groups", "worst_group")


def names(dataset: str) -> list[str]:
    """Names of the groups, class by class: `landbird on land`, `landbird on water`, ...; none without places."""
    places = datasets.PLACES.get(dataset, ())
    return [f"{name} on {place}" for name in (datasets.class_names(dataset) if places else ()) for place in places]


def of_images(run: Run, data_path: str | None) -> np.ndarray | None:
    """Group [b] of each image of a run, an index into `names`; None where its data set has no places.

    Raises UserError where the images of `data_path` are not those of the run.
    """
    dataset, labels = run.place.dataset, run.labels
    if dataset not in datasets.PLACES:
        return None
    images = run.images(data_path)
    rows = run.indices(images)
    if not np.array_equal(np.asarray(images.samples.labels)[rows], labels):
        raise UserError(f"the images of {dataset} have other labels than the arrays; give the --data_path and --split "
                        "that they were made from, or make them again with compute_prs.py")
    return np.asarray(labels) * len(datasets.PLACES[dataset]) + np.asarray(images.places)[rows]


def accuracies(right: np.ndarray, group: np.ndarray | None, names: Sequence[str]) -> dict:
    """Accuracies in percent from which images are `right` [b] and their `group` [b].

    Returns `overall`, `average_of_groups`, `worst_group` and `groups`, by name. A group without images is None, and
    left out of average and worst; without groups both are None.
    """
    def percent(answers: np.ndarray) -> float | None:
        return 100 * int(answers.sum()) / len(answers) if len(answers) else None

    found = {name: percent(right[group == index]) for index, name in enumerate(names)}
    filled = [value for value in found.values() if value is not None]
    return {"overall": percent(right), "average_of_groups": float(np.mean(filled)) if filled else None,
            "worst_group": min(filled, default=None), "groups": found}


def sizes(group: np.ndarray | None, names: Sequence[str]) -> dict[str, int]:
    """Number of images of each group, by name."""
    return {name: int((group == index).sum()) for index, name in enumerate(names)}


def table(found: dict[str, dict], sizes: dict[str, int], columns: dict[str, str]) -> str:
    """Figures of `accuracies` as aligned text: a line for each group and each summary; a column for each of `columns`,
    from keys of `found` to headings."""
    lines = [["", "images", *columns.values()]]
    figures = [found[key] for key in columns]
    for name, size in sizes.items():
        lines.append([name, str(size), *(figure["groups"][name] for figure in figures)])
    for name in FIGURES if sizes else FIGURES[:1]:
        lines.append([name.replace("_", " "), "", *(figure[name] for figure in figures)])
    cells = [["-" if cell is None else cell if isinstance(cell, str) else f"{cell:.1f}" for cell in line]
             for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in cells)


def goal(figures: dict) -> float:
    """What a choice of heads is judged by: the worst group's accuracy, or the overall one where there are no groups."""
    return figures["overall"] if figures["worst_group"] is None else figures["worst_group"]


def compare(answers: Sequence[np.ndarray], group: np.ndarray | None, names: Sequence[str],
            columns: Sequence[str]) -> tuple[dict[str, dict], int]:
    """Figures of `accuracies` by column, and which random trial is best.

    `answers` hold which images are right [b]: one for each column but the last two, then one for each random trial; the
    last two columns are the trial with the best `goal`, and the mean of all.
    """
    figures = [accuracies(answer, group, names) for answer in answers]
    fixed, random = figures[:len(columns) - 2], figures[len(columns) - 2:]
    best = max(range(len(random)), key=lambda trial: goal(random[trial]))
    return dict(zip(columns, (*fixed, random[best], average(random)))), best


def average(trials: Sequence[dict]) -> dict:
    """Mean over trials of each figure of `accuracies`."""
    def mean(values: list) -> float | None:
        return None if values[0] is None else float(np.mean(values))

    return {**{name: mean([trial[name] for trial in trials]) for name in FIGURES},
            "groups": {name: mean([trial["groups"][name] for trial in trials]) for name in trials[0]["groups"]}}
