"""What attention heads are really about, where the truth of every image is known.

A head's truth: the share of its terms' variance over images, summed over the joint space, that lies between the groups
of images that agree in an attribute (eta squared of a one-way analysis of variance), corrected for the number of groups
(epsilon squared), since many small groups explain something of pure noise, too.

A head's reading: the attribute that its TextSpan texts are about, each text counted with its share of the head's
variance.
"""
import csv
import io
from pathlib import Path

import numpy as np

from utils.cli import UserError
from utils.inputs import read_text
from utils.runs import files
from utils.runs.files import blocks
from utils.runs.run import Run

ATTRIBUTES = ("object", "style", "count", "position", "size", "color", "texture")
FEW = 4  # images of a value, on average, below which shares of an attribute are hardly more than noise


def codes(scenes: list) -> dict[str, np.ndarray]:
    """For each attribute, the group [b] that each scene belongs to, numbered from 0."""
    truth = [scene.attributes() for scene in scenes]
    return {name: np.unique([row[name] for row in truth], return_inverse=True)[1] for name in ATTRIBUTES}


def explained(run: Run, groups: dict[str, np.ndarray], columns: slice = slice(None)) -> dict[str, np.ndarray]:
    """The share [c] of the variance of what components write that each attribute explains, epsilon squared, in float64.

    `groups` holds each image's group [b] by attribute. Shares of attributes that do not depend on each other sum to at
    most 1; what is missing is due to attributes together, and to what no attribute describes. A share may be below 0 by
    chance alone; that of a constant component is 0, and so is that of an attribute whose every value has one image,
    of which nothing can be said. `few` says where shares are not to be trusted.
    """
    images = len(run)
    # Taken off, so that the squares do not drown in those of the mean.
    first = run.stack(slice(1), columns)[0].astype(np.float64)
    shape = first.shape
    numbers = {name: np.bincount(group) for name, group in groups.items()}
    sums = {name: np.zeros((len(number), *shape)) for name, number in numbers.items()}
    squares = np.zeros(shape)
    for block in blocks(images):
        x = run.stack(block, columns).astype(np.float64) - first
        squares += (x ** 2).sum(axis=0)
        for name, group in groups.items():
            np.add.at(sums[name], group[block], x)
    found = {}
    for name, number in numbers.items():
        mean = sums[name].sum(axis=0) / images
        total = (squares - images * mean ** 2).sum(axis=-1)
        of_groups = sums[name] ** 2 / np.maximum(number, 1)[:, None, None]
        between = (of_groups.sum(axis=0) - images * mean ** 2).sum(axis=-1)
        there, spread = int((number > 0).sum()), np.where(total > 0, total, 1)
        share = 1 - (1 - between / spread) * (images - 1) / max(images - there, 1)
        found[name] = np.where((total > 0) & (images > there), share, 0.0)
    return found


def few(groups: dict[str, np.ndarray]) -> list[str]:
    """A line of warning for each attribute whose values have fewer than FEW images on average; `groups` holds each
    image's group [b] by attribute."""
    images = {name: len(group) / len(np.unique(group)) for name, group in groups.items()}
    return [f"{name}: {number:.1f} images a value on average, and its shares are hardly more than noise with fewer "
            f"than {FEW}; give more images, or fewer values" for name, number in images.items() if number < FEW]


def read_heads(run: Run, path: Path, hint: str) -> list[dict]:
    """The heads of a run and their texts that compute_complete_text_set.py wrote. Raises UserError for another file,
    with the command that makes it again."""
    content = files.read_json(path, ("heads",), f"make it again with: {hint}")
    heads, again = content["heads"], False
    try:
        for head in heads:
            again = not {"layer", "head", "variance", "texts"} <= set(head)
            again |= not all({"text", "index", "share"} <= set(entry) for entry in head["texts"])
    except (KeyError, TypeError):
        again = True
    if again:
        raise UserError(f"{path}: does not hold heads with their texts; make it again with: {hint}")
    if not run.is_about(content):
        raise UserError(f"{path}: is about other arrays, of other weights, settings or images; make it again "
                        f"with: {hint}")
    return heads


def read_attributes(path: str) -> dict[str, str]:
    """What each text of a pool is about: a CSV with the columns text and attribute. Raises UserError for anything
    else."""
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist; it is a CSV with the columns text,attribute, one line for each text "
                        "of the pool")
    rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    if not rows or set(rows[0]) != {"text", "attribute"}:
        raise UserError(f"{path}: should have the columns text,attribute")
    wrong = next((row for row in rows if row["attribute"] not in ATTRIBUTES), None)
    if wrong:
        raise UserError(f"{path}: {wrong['text']!r} is about {wrong['attribute']!r}; choose from "
                        f"{', '.join(ATTRIBUTES)}")
    return {row["text"]: row["attribute"] for row in rows}


def reading(texts: list[dict], attributes: dict[str, str]) -> dict[str, float]:
    """The share of a head's variance that its texts about each attribute explain. `texts` hold text and share.

    Raises UserError for a text of which it is not known what it is about.
    """
    found = dict.fromkeys(ATTRIBUTES, 0.0)
    for entry in texts:
        if entry["text"] not in attributes:
            raise UserError(f"{entry['text']!r} is not among the texts whose attribute is known; add it to "
                            "--text_attributes")
        found[attributes[entry["text"]]] += entry["share"]
    return found


def score(truth: list[str], said: list[str], variances: list[float]) -> dict[str, float]:
    """How often the reading of a head is its truth: in percent of heads, and of their variance; what chance would reach
    with as many heads of each attribute, in percent; and Cohen's kappa, 0 for chance and 1 for a perfect reading."""
    from sklearn.metrics import cohen_kappa_score

    right = np.array([a == b for a, b in zip(truth, said, strict=True)])
    chance = sum(truth.count(name) * said.count(name) for name in ATTRIBUTES) / len(truth) ** 2
    kappa = 1.0 if chance == 1 else float(cohen_kappa_score(truth, said))
    by_variance = 100 * float(right @ variances / np.sum(variances))
    return {"agreement": 100 * right.mean(), "agreement_by_variance": by_variance, "chance": 100 * chance,
            "kappa": kappa}
