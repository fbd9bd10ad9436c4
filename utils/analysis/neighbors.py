"""Nearest images by the whole representation, or by what some heads write (arXiv 2310.05916, section 4.3).

By the whole: cosine of representations. By heads: their terms are summed, the sum's mean over the data set is
subtracted, and the cosine is taken of what is left. Most of a term is the same for every image and says nothing of any
of them.
"""
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from utils.cli import UserError
from utils.data.datasets import Images
from utils.decompose.decomposer import Decomposer
from utils.models.model import Model
from utils.plots import sheets
from utils.runs.components import Component, parse_heads, read_head_list
from utils.runs.files import blocks
from utils.runs.run import Run

WHOLE = "whole"
Way = list[Component] | None  # heads whose terms are summed; None: the whole representation


def check_size(queries: int, ways: int, neighbors: int) -> None:
    """Raises UserError for more than a sheet has room for."""
    if queries * ways > sheets.MOST_ROWS:
        raise UserError(f"{queries} queries by {ways} ways of comparing make {queries * ways} rows, and a sheet has room "
                        f"for {sheets.MOST_ROWS}; make several")
    if neighbors > sheets.MOST_COLUMNS:
        raise UserError(f"--neighbors {neighbors}: a sheet has room for {sheets.MOST_COLUMNS}")


def check_queries(indices: Sequence[int] | None, number: int, images: int) -> None:
    """Raises UserError for a query (None: they are pictures) that is no index of the run's `images`, and where there
    are fewer than `number` neighbours."""
    for index in indices or []:
        if not isinstance(index, int) or not 0 <= index < images:
            raise UserError(f"--index {index}: the run has the images 0 to {images - 1}")
    others = images - bool(indices)
    if number > others:
        raise UserError(f"--neighbors {number}: there are {others} images to choose from; take at most as many")


def read_ways(properties: Sequence[str], listed: str | None, path: Path, model: str,
              run: dict | None = None) -> dict[str, Way]:
    """Ways of comparing by name, in order: properties are `whole` or roles of the list of heads in `path`; `listed` are
    heads by name, such as 22.11,23.4. Without either, the whole. `model` is the name in file names, `run` the manifest
    of the arrays.

    Raises UserError for a role that is not in the list, and for a list that cannot be read.
    """
    roles = read_head_list(path, model, run) if set(properties) - {WHOLE} else {}
    ways: dict[str, Way] = {}
    for name in properties:
        if name != WHOLE and name not in roles:
            raise UserError(f"--property {name}: {path} has no such role; choose from {', '.join([WHOLE, *roles])}")
        ways[name] = None if name == WHOLE else roles[name]
    if listed is not None:
        if not isinstance(listed, str):  # YAML reads 22.10 as the number 22.1
            raise UserError(f"heads: {listed}: put a single head of a settings file in quotes, such as '22.10'")
        found = parse_heads(listed)
        ways[",".join(map(str, found))] = found
    return ways or {WHOLE: None}


def vectors(run: Run, rows: slice | np.ndarray, ways: Sequence[Way]) -> np.ndarray:
    """What these images of a run are compared by, before their mean is subtracted: [w, b, d], float64. Only what the
    ways need is read."""
    return np.stack([run.whole(rows, slice(None) if way is None else [run.heads.index(head) for head in way], np.float64)
                     for way in ways])


def of_rows(run: Run, rows: Sequence[int], ways: Sequence[Way]) -> np.ndarray:
    """`vectors` [w, b, d] of any number of images, by their indices; they are read in blocks."""
    return np.concatenate([vectors(run, np.asarray(rows[block]), ways) for block in blocks(len(rows))], axis=1)


def of_pictures(model: Model, pictures: Sequence[Image.Image], ways: Sequence[Way], shape: tuple[int, ...]) -> np.ndarray:
    """`vectors` [w, b, d] of pictures, seen as the model's own preprocessing cuts them.

    Raises UserError for a model that has not the layers, heads and width of the run, its `shape`.
    """
    decomposer, found = Decomposer(model), []
    for picture in pictures:
        arrays = decomposer.terms(model.preprocess(picture)[None].to(model.device)).arrays()
        own = tuple(arrays["attn"].shape[1:])
        if own != shape:
            raise UserError(f"--model {model.name}: has {own} layers, heads and dimensions, and the arrays have {shape}")
        run = Run({what: values.cpu().numpy() for what, values in arrays.items()})
        found.append(vectors(run, slice(None), ways))
    return np.concatenate(found, axis=1)


def centres(run: Run, ways: Sequence[Way]) -> np.ndarray:
    """What is subtracted before images are compared [w, d], float64: the mean over all images; for the whole,
    nothing."""
    by_heads = [way for way in ways if way is not None]
    found = np.zeros((len(ways), run.width))
    if by_heads:
        total = sum(vectors(run, block, by_heads).sum(axis=1) for block in blocks(len(run)))
        found[[way is not None for way in ways]] = total / len(run)
    return found


def nearest(run: Run, queries: np.ndarray, ways: Sequence[Way], number: int,
            left_out: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Of each query the nearest images, nearest first: their indices [w, q, k] and similarities [w, q, k], float32.

    The run is read in blocks, at most twice for all ways together; `queries` [w, q, d] are `vectors` of the queries,
    and `left_out` [q], where given, the index of each query itself. Of equally near images the one with the lower index
    comes first. A vector that is its mean has similarity 0 to all.
    """
    centre = centres(run, ways)
    # Below this length, what is left of a constant term is the rounding of its stored values.
    rounding = 4 * np.finfo(run.dtype).eps * np.linalg.norm(centre, axis=-1)[:, None, None]

    def unit(found: np.ndarray) -> np.ndarray:
        found = found - centre[:, None]
        length = np.linalg.norm(found, axis=-1, keepdims=True)
        return found / np.where(length > rounding, length, np.inf)

    wanted = unit(queries)
    indices = np.zeros((*wanted.shape[:2], 0), np.int64)
    similarities = np.zeros(indices.shape, np.float32)
    for block in blocks(len(run)):
        # Rounded from float64, equal images get equal similarities wherever in a block they stand.
        here = (wanted @ unit(vectors(run, block, ways)).swapaxes(1, 2)).astype(np.float32)
        for query, index in enumerate(left_out if left_out is not None else []):
            if block.start <= index < block.stop:
                here[:, query, index - block.start] = -np.inf
        similarities = np.concatenate([similarities, here], axis=2)
        indices = np.concatenate([indices, np.broadcast_to(np.arange(block.start, block.stop), here.shape)], axis=2)
        order = np.argsort(-similarities, axis=2, kind="stable")[..., :number]
        similarities, indices = (np.take_along_axis(values, order, axis=2) for values in (similarities, indices))
    return indices, similarities


def report(images: Images, places: np.ndarray, labels: np.ndarray, queries: Sequence[int | str], ways: dict[str, Way],
           indices: np.ndarray, similarities: np.ndarray) -> list[dict]:
    """What `nearest` found, for a JSON file: an entry a query (an index of the run or a file), in it one a way of
    comparing, in it one a neighbour. `places` [b] are those of the run's images in the data set."""
    def entry(index: int) -> dict:
        path = {"path": images.paths[places[index]]} if images.paths else {}
        return {"index": int(index), "class": images.classes[labels[index]], **path}

    return [{"query": {"path": query} if isinstance(query, str) else entry(query),
             "ways": [{"by": name, "heads": None if way is None else [str(head) for head in way],
                       "neighbors": [{**entry(index), "similarity": float(value)}
                                     for index, value in zip(indices[w, q], similarities[w, q])]}
                      for w, (name, way) in enumerate(ways.items())]}
            for q, query in enumerate(queries)]
