"""Which images go with an image or a text, by the whole representation or by what some components write.

By an image (arXiv 2310.05916, section 4.3, of heads; 2406.01583, of components): the components' terms are summed, the
sum's mean over the data set is subtracted, and the cosine is taken of what is left; of the whole, the plain cosine.
Most of a term is the same for every image and says nothing of any of them. By a text: the sum's inner product with it
is what the components contribute to the cosine similarity.
"""
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from utils.analysis import alignment
from utils.analysis.truth import ATTRIBUTES
from utils.cli import UserError
from utils.data import captions
from utils.data.datasets import Images
from utils.decompose import registers
from utils.decompose.decomposer import Decomposer
from utils.models.model import Model
from utils.plots.sheets import MOST_COLUMNS, MOST_ROWS
from utils.runs.components import Component, check_heads, parse_heads, read_head_list
from utils.runs.files import blocks
from utils.runs.run import Run

WHOLE = "whole"
Way = list[int] | None  # columns of the components that are summed; None: the whole representation
Found = tuple[np.ndarray, np.ndarray]  # of each way and query, best first: indices and similarities, [w, q, k]


def check(run: Run, queries: Sequence, ways: int, number: int, are_images: bool) -> None:
    """Raises UserError for queries that are no images of the run, where there are fewer than `number` images to choose
    from, and for more than a sheet has room for."""
    if len(queries) * ways > MOST_ROWS:
        raise UserError(f"{len(queries)} queries by {ways} ways of comparing make {len(queries) * ways} rows, and a "
                        f"sheet has room for {MOST_ROWS}; make several")
    if number > MOST_COLUMNS:
        raise UserError(f"--neighbors {number}: a sheet has room for {MOST_COLUMNS}")
    for index in queries if are_images else []:
        if not 0 <= index < len(run):
            raise UserError(f"--index {index}: the run has the images 0 to {len(run) - 1}")
    others = len(run) - are_images
    if number > others:
        raise UserError(f"--neighbors {number}: there are {others} images to choose from; take at most as many")


def read_ways(run: Run, properties: Sequence[str], listed: str | None, path: Path,
              named: Mapping[str, list[Component]] | None = None) -> dict[str, Way]:
    """Ways of comparing by heads, by name, in order: properties are `whole` or roles of the list of heads in `path`,
    and else those of the heads that are `named`; `listed` are heads by name, such as 22.11,23.4. Without either, the
    whole.

    Raises UserError for a role that is not in the list, a list that cannot be read, and heads that the run lacks.
    """
    roles, asked = dict(named or {}), set(properties) - {WHOLE}
    if asked and (path.is_file() or asked - set(roles)):
        roles |= read_head_list(path, run.place.model_name, run.manifest)
    for name in properties:
        if name != WHOLE and name not in roles:
            raise UserError(f"--property {name}: {path} has no such role; choose from {', '.join([WHOLE, *roles])}")
    heads = {name: roles.get(name) for name in properties}
    for name, own in heads.items():
        check_heads(own or [], run.heads, f"{path}, {name}")
    if listed is not None:
        given = parse_heads(listed)
        check_heads(given, run.heads)
        heads[",".join(map(str, given))] = given
    return {name: None if own is None else [run.heads.index(head) for head in own]
            for name, own in (heads or {WHOLE: None}).items()}


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


def vectors(run: Run, rows: slice | Sequence[int], ways: Sequence[Way]) -> np.ndarray:
    """What these images of a run are compared by, before their mean is subtracted: [w, b, d], float64. Only what the
    ways need is read."""
    return np.stack([run.whole(rows, slice(None) if way is None else way, np.float64) for way in ways])


def of_pictures(run: Run, model: Model, pictures: Sequence[Image.Image], ways: Sequence[Way]) -> np.ndarray:
    """`vectors` [w, b, d] of pictures, seen as the model's own preprocessing cuts them.

    Raises UserError for a model that has not the heads and width of the run.
    """
    decomposer, found = Decomposer(model, registers=registers.recorded(run.manifest)), []
    for picture in pictures:
        terms = decomposer.terms(model.preprocess(picture)[None].to(model.device))
        heads = [replace(part, head=part.head or 0) for part in terms.components if part.kind == "attn"]
        if heads != run.heads or terms.values.shape[2] != run.width:
            raise UserError(f"--model {model.name}: has other heads or another width than the arrays; give the model "
                            "that made them")
        values = terms.values.cpu().numpy()
        found.append(np.stack([(values if way is None else values[:, way]).sum(axis=1, dtype=np.float64)
                               for way in ways]))
    return np.concatenate(found, axis=1)


def by_texts(run: Run, ways: Sequence[Way], texts: np.ndarray, number: int) -> Found:
    """The images of a run to whose similarity to texts [q, d] each way's components contribute most, and how much.

    A run's images and the texts have unit length; the whole's contribution is the cosine. Of equal images the one with
    the lower index comes first.
    """
    return _first(run, ways, lambda found: texts.astype(np.float64) @ found.swapaxes(1, 2), number)


def by_images(run: Run, ways: Sequence[Way], queries: np.ndarray, number: int,
              left_out: Sequence[int] | None = None) -> Found:
    """The nearest images of a run to queries, whose `vectors` [w, q, d] these are, and their similarities.

    The run is read in blocks, at most twice for all ways together; `left_out` [q], where given, holds the index of each
    query itself. Of equally near images the one with the lower index comes first. A vector that is its mean has
    similarity 0 to all.
    """
    centre, parts = np.zeros((len(ways), run.width)), [way for way in ways if way is not None]
    if parts:
        total = sum(vectors(run, block, parts).sum(axis=1) for block in blocks(len(run)))
        centre[[way is not None for way in ways]] = total / len(run)
    # Below this length, what is left of a constant sum is the rounding of its stored values.
    rounding = 4 * np.finfo(run.dtype).eps * np.linalg.norm(centre, axis=-1)[:, None, None]

    def unit(found: np.ndarray) -> np.ndarray:
        found = found - centre[:, None]
        length = np.linalg.norm(found, axis=-1, keepdims=True)
        return found / np.where(length > rounding, length, np.inf)

    wanted = unit(queries)
    return _first(run, ways, lambda found: wanted @ unit(found).swapaxes(1, 2), number, left_out)


def _first(run: Run, ways: Sequence[Way], compare: Callable[[np.ndarray], np.ndarray], number: int,
           left_out: Sequence[int] | None = None) -> Found:
    """The images with the highest similarities, which `compare` gives of `vectors`: [w, q, b] of [w, b, d]."""
    indices = similarities = None
    for block in blocks(len(run)):
        # Rounded from float64, equal images get equal similarities wherever in a block they stand.
        here = compare(vectors(run, block, ways)).astype(np.float32)
        for query, index in enumerate(left_out if left_out is not None else []):
            if block.start <= index < block.stop:
                here[:, query, index - block.start] = -np.inf
        places = np.broadcast_to(np.arange(block.start, block.stop), here.shape)
        if indices is not None:
            here, places = np.concatenate([similarities, here], axis=2), np.concatenate([indices, places], axis=2)
        order = np.argsort(-here, axis=2, kind="stable")[..., :number]
        similarities, indices = (np.take_along_axis(values, order, axis=2) for values in (here, places))
    return indices, similarities


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


def report(run: Run, images: Images, queries: Sequence[int | str], kind: str, ways: dict[str, dict], found: Found,
           with_agreement: bool = False) -> list[dict]:
    """What was found, for a JSON file: an entry a query, in it one a way of comparing, in it one an image.

    A query is an index of the run, or a string of this `kind`: "path" of a picture, or "text". `ways` hold what is said
    of each way, by name; `images` are those of the data set. With agreement, each way has on embedded scenes the
    `agreement` in those attributes that are ways.
    """
    places = run.indices(images)
    truth = [images.scenes[place].attributes() for place in places] if with_agreement and images.scenes else None

    def entry(index: int) -> dict:
        path = {"path": images.paths[places[index]]} if images.paths else {}
        return {"index": int(index), "class": images.class_of(run.labels[index]), **path}

    def shares(query: int | str, indices: np.ndarray) -> dict:
        known = {name: agreement(truth, query, name, indices) for name in ways if name in ATTRIBUTES} if truth else {}
        return {"agreement": known} if with_agreement else {}

    return [{"query": {kind: query} if isinstance(query, str) else entry(query),
             "ways": [{"by": name, **about, **shares(query, found[0][w, q]),
                       "neighbors": [{**entry(index), "similarity": float(similarity)}
                                     for index, similarity in zip(found[0][w, q], found[1][w, q])]}
                      for w, (name, about) in enumerate(ways.items())]}
            for q, query in enumerate(queries)]


def title(way: dict) -> str:
    """A way of a `report` in words: what is compared, such as `color: heads 5.4, 5.3`, and how far images agree."""
    by, parts = way["by"], way.get("heads") or [part["name"] for part in way.get("components") or []]
    if not parts:
        words = "whole representation"
    elif "heads" in way:
        heads = f"head{'s' * (len(parts) > 1)} {', '.join(parts)}"
        words = heads if by == ",".join(parts) else f"{by}: {heads}"
    else:
        words = f"{by}, by {', '.join(parts[:4])}" + (f" and {len(parts) - 4} more" if len(parts) > 4 else "")
    agreed = ", ".join(f"{name} {found['value']} {found['share']:.1f}% (any image {found['chance']:.1f}%)"
                       for name, found in way.get("agreement", {}).items() if found and by in (name, WHOLE))
    return "; ".join(filter(None, (words, agreed)))


def lines(report: list[dict], queries: Sequence[int | str]) -> Iterator[str]:
    """A `report` as text: a line for each query and way."""
    for query, entry in zip(queries, report):
        for way in entry["ways"]:
            near = ", ".join(f"{one['index']} {one['class']} ({one['similarity']:.2f})" for one in way["neighbors"])
            yield f"{query}, {title(way)}: {near}"
