"""Which images go with a text or with an image, by the components that have most to do with a feature (arXiv
2406.01583).

By a text, the chosen components of an image are summed, and the sum's inner product with the text is what they
contribute to the cosine similarity. By an image, they are compared as attention heads are in
utils/analysis/neighbors.py: the sums' mean over the data set is subtracted, and the cosine taken of what is left; of
the whole representation, the plain cosine.
"""
import re
from collections.abc import Iterator, Sequence

import numpy as np

from utils.analysis import alignment
from utils.analysis.truth import ATTRIBUTES
from utils.cli import UserError
from utils.data import captions
from utils.data.datasets import Images
from utils.runs.run import Run

WHOLE = "whole"
Way = list[int] | None  # columns of the components that are summed; None: the whole representation


def open_source(mapped: Run, model: str | None) -> Run:
    """The run of the model, as it was given (None: as the manifest says), whose components were `mapped`. Raises
    UserError where it is missing, or of other images or components."""
    model = model or mapped.manifest.get("source_model")
    if model is None:
        raise UserError(f"{mapped.place.manifest}: does not say which model was mapped; give it by --source_model")
    run = Run.open(mapped.place.folder, mapped.place.dataset, model, mapped.place.split, needs="components")
    alignment.same_images(run, mapped)
    name, weights = mapped.manifest["model"], run.manifest["weights_sha256"]
    if mapped.manifest.get("source_weights_sha256", weights) != weights:
        raise UserError(f"--source_model {model}: has other weights than the model that was mapped to {name}; make its "
                        "arrays again")
    if run.components != mapped.components or not np.array_equal(run.labels, mapped.labels):
        raise UserError(f"--source_model {model}: has other components or labels than {name}; give the model that was "
                        "mapped")
    return run


def most(scores: np.ndarray, feature: int, number: int, against_others: bool) -> list[int]:
    """The `number` components with the highest score for a feature, best first: columns of `scores` [features, c].

    `against_others`: with the highest score minus that for the best other feature.
    """
    worth = scores[feature] - (np.delete(scores, feature, axis=0).max(axis=0) if against_others else 0)
    return np.argsort(-worth, kind="stable")[:number].tolist()


def sums(stack: np.ndarray, ways: Sequence[Way]) -> np.ndarray:
    """The sum of each way's components, [w, b, d], float64, of components [b, c, d]."""
    return np.stack([(stack if way is None else stack[:, way]).sum(axis=1, dtype=np.float64) for way in ways])


def _all_sums(run: Run, ways: Sequence[Way]) -> Iterator[np.ndarray]:
    return (sums(stack, ways) for stack in run.stacks("images"))


def by_texts(run: Run, ways: Sequence[Way], texts: np.ndarray) -> np.ndarray:
    """What each way's components contribute to the similarity of texts [q, d] and images: [w, q, b], float32.

    A run's images and the texts have unit length; the whole's contribution is the cosine.
    """
    return np.concatenate([texts.astype(np.float64) @ found.swapaxes(1, 2) for found in _all_sums(run, ways)],
                          axis=2).astype(np.float32)


def by_images(run: Run, ways: Sequence[Way], queries: Sequence[int]) -> np.ndarray:
    """The similarity of images of the run, by index, to all of its images: [w, q, b], float32.

    Reads the run twice. What is the same in every image is similar to nothing: 0.
    """
    centre = sum(found.sum(axis=1) for found in _all_sums(run, ways)) / len(run)  # [w, d]
    centre[[way is None for way in ways]] = 0
    # Below this length, what is left of a constant sum is the rounding of its stored values.
    rounding = 4 * np.finfo(run.dtype).eps * np.linalg.norm(centre, axis=-1)[:, None, None]

    def unit(found: np.ndarray) -> np.ndarray:
        found = found - centre[:, None]
        length = np.linalg.norm(found, axis=-1, keepdims=True)
        return found / np.where(length > rounding, length, np.inf)

    wanted = unit(sums(run.stack(np.asarray(queries)), ways))
    # Rounded from float64, equal images get equal similarities wherever in a block they stand.
    return np.concatenate([wanted @ unit(found).swapaxes(1, 2) for found in _all_sums(run, ways)],
                          axis=2).astype(np.float32)


def first(similarities: np.ndarray, number: int, left_out: Sequence[int] | None = None) -> np.ndarray:
    """Indices [w, q, k] of the images with the highest similarities [w, q, b], highest first; of equal ones the lower
    index.

    `left_out` [q], where given, holds the index of each query itself.
    """
    if left_out is not None:
        similarities = similarities.copy()
        similarities[:, np.arange(len(left_out)), list(left_out)] = -np.inf
    return np.argsort(-similarities, axis=2, kind="stable")[..., :number]


def named_value(attribute: str, text: str, values: set) -> object | None:
    """The value of an attribute of the embedded scenes that a text names in words; of several the longest, None for
    none."""
    words = {"style": captions.STYLE_WORDS, "count": captions.NUMBERS}.get(attribute, {})
    named = [value for value in values if re.search(rf"\b{re.escape(str(words.get(value, value)))}\b", text)]
    return max(named, key=lambda value: len(str(value)), default=None)


def agreement(truth: list[dict], query: int | str, attribute: str, found: np.ndarray) -> dict | None:
    """How many of the images `found` [k] have the query's value of an attribute, in percent, and how many of all images
    do.

    `truth` holds the attributes of every image of the run; a query is an index, which all others are counted against,
    or a text. None where the text names no value.
    """
    values = np.array([row[attribute] for row in truth])
    value = named_value(attribute, query, set(values.tolist())) if isinstance(query, str) else values[query]
    if value is None:
        return None
    same, itself = values == value, not isinstance(query, str)
    return {"value": str(value), "share": 100 * float(same[found].mean()),
            "chance": 100 * float((same.sum() - itself) / (len(same) - itself))}


def report(images: Images, places: np.ndarray, labels: np.ndarray, queries: Sequence[int | str],
           ways: dict[str, list[dict] | None], indices: np.ndarray, similarities: np.ndarray) -> list[dict]:
    """What was found, for a JSON file: an entry a query (an index of the run or a text), in it one a way of comparing,
    in it one an image. `ways` hold each way's components as they shall be listed; `places` [b] are the places of the
    run's images in the data set. On embedded scenes, each way has the `agreement` in the attributes that are
    features."""
    truth = [images.scenes[place].attributes() for place in places] if images.scenes else None

    def entry(index: int) -> dict:
        path = {"path": images.paths[places[index]]} if images.paths else {}
        return {"index": int(index), "class": images.classes[labels[index]], **path}

    def shares(query: int | str, found: np.ndarray) -> dict:
        return {name: agreement(truth, query, name, found) for name in ways if name in ATTRIBUTES} if truth else {}

    return [{"query": {"text": query} if isinstance(query, str) else entry(query),
             "ways": [{"by": name, "components": components, "agreement": shares(query, indices[w, q]),
                       "neighbors": [{**entry(index), "similarity": float(similarities[w, q, index])}
                                     for index in indices[w, q]]}
                      for w, (name, components) in enumerate(ways.items())]}
            for q, query in enumerate(queries)]


def title(way: dict) -> str:
    """A way of a `report` in words: what is compared, and how far the images agree in the feature."""
    agreed = ", ".join(f"{name} {found['value']} {found['share']:.1f}% (any image {found['chance']:.1f}%)"
                       for name, found in way["agreement"].items() if found and way["by"] in (name, WHOLE))
    if way["components"] is None:
        words = "whole representation"
    else:
        listed = ", ".join(component["name"] for component in way["components"][:4])
        more = len(way["components"]) - 4
        words = f"{way['by']}, by {listed}" + (f" and {more} more" if more > 0 else "")
    return "; ".join(filter(None, (words, agreed)))

