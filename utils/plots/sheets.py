"""Sheets of images: queries, and rows of the images found for them."""
import textwrap
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from utils.plots.charts import plt, save

SIDE = 160  # pixels that a picture has on the sheet
MOST_ROWS, MOST_COLUMNS = 40, 40  # that a sheet has room for


def title(by: str, heads: list[str] | None) -> str:
    """A way of comparing in words: `whole representation`, `color: heads 5.4, 5.3`."""
    if heads is None:
        return "whole representation"
    words = f"head{'s' * (len(heads) > 1)} {', '.join(heads)}"
    return words if by == ",".join(heads) else f"{by}: {words}"


def neighbors_sheet(report: list[dict], queries: list[Image.Image | None], picture: Callable[[int], Image.Image],
                    heading: str, path: Path,
                    row_title: Callable[[dict], str] = lambda way: title(way["by"], way["heads"])) -> None:
    """For each query of a `report` (utils/analysis/neighbors.py, utils/analysis/retrieval.py) a group of rows: the
    query's picture at the left, or its text where that is None, and for each way of comparing a row, under its
    `row_title`, of its neighbours, each a `picture` of its index, with similarity and class below."""
    rows, columns = sum(len(entry["ways"]) for entry in report), len(report[0]["ways"][0]["neighbors"])
    figure, grid = plt.subplots(rows, columns + 2, figsize=(1.15 * (columns + 1.25), 1.72 * rows + 0.4), squeeze=False,
                                gridspec_kw={"width_ratios": [1, 0.25, *[1] * columns]})
    for axes in grid.flat:
        axes.set_axis_off()

    def show(axes, image: Image.Image, *captions: str) -> None:
        image = image.convert("RGB")
        image.thumbnail((2 * SIDE, 2 * SIDE))
        axes.imshow(image)
        lines = [line for text in captions for line in textwrap.wrap(text, 19, max_lines=2, placeholder=" ...")]
        axes.text(0.5, -0.05, "\n".join(lines), transform=axes.transAxes, ha="center", va="top", fontsize=7,
                  parse_math=False)

    lines = iter(grid)
    for entry, image in zip(report, queries):
        for number, way in enumerate(entry["ways"]):
            first, _, *others = next(lines)
            query = entry["query"]
            if not number and image is None:
                words = textwrap.wrap(" ".join(query["text"].split()), 15, max_lines=6, placeholder=" ...")
                first.text(0.5, 0.5, "\n".join(words), transform=first.transAxes, ha="center", va="center", fontsize=9,
                           parse_math=False)
            elif not number:
                show(first, image, query.get("class") or Path(query["path"]).name)
            if not number:
                first.set_title("query" + (f" {query['index']}" if "index" in query else ""), fontsize=9, color="0.4")
            words = textwrap.wrap(row_title(way), 16 * columns, max_lines=2, placeholder=" ...")
            others[0].set_title("\n".join(words), fontsize=9, loc="left", parse_math=False)
            for axes, neighbor in zip(others, way["neighbors"]):
                show(axes, picture(neighbor["index"]), f"{neighbor['similarity']:.2f}", neighbor["class"])
    height = figure.get_figheight()
    figure.suptitle(heading, fontsize=10, y=1 - 0.08 / height, va="top", parse_math=False)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.5 / height, top=1 - 0.6 / height, wspace=0.08, hspace=0.62)
    save(figure, path)
