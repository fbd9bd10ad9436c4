"""Sheets of images: what heads and searches find, heat maps over pictures, masks."""
import textwrap
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageOps

from utils.plots.charts import save

SIDE = 160  # pixels that a picture has on a contact sheet
MOST_ROWS, MOST_COLUMNS = 40, 40  # that a contact sheet has room for


def head_sheet(rows: list[tuple[str, list, list]], path: Path, title: str) -> None:
    """One row a head: its title, the images that score highest on its first text, and those that score lowest, the
    lowest of all at the right.

    `rows` hold (title, PIL images, PIL images), all with the same numbers of images; `title` says why these heads.
    """
    columns = len(rows[0][1]) + len(rows[0][2])
    widths = [1] * len(rows[0][1]) + [0.4] + [1] * len(rows[0][2])
    figure, grid = plt.subplots(len(rows), columns + 1, figsize=(0.8 * (columns + 1), 1.1 * len(rows) + 0.5),
                                squeeze=False,
                                gridspec_kw={"width_ratios": widths})
    for (name, highest, lowest), axes in zip(rows, grid):
        for axis, image in zip(axes, [*highest, None, *lowest]):
            axis.axis("off")
            if image is not None:
                axis.imshow(image)
        axes[0].set_title(name, fontsize=8, loc="left", parse_math=False)
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.06 / height, top=1 - 0.72 / height, wspace=0.05, hspace=0.35)
    for column, end in ((0, "highest"), (len(rows[0][1]) + 1, "lowest")):
        if rows[0][1 + (column > 0)]:
            figure.text(grid[0][column].get_position().x0, 1 - 0.4 / height, end, fontsize=8, color="0.4")
    figure.suptitle(title, fontsize=9, x=0.01, y=1 - 0.08 / height, ha="left", va="top", parse_math=False)
    save(figure, path)


def heat_maps(picture, panels: list[tuple[str, np.ndarray, str]], title: str, path: Path) -> None:
    """A picture (PIL, RGB), and for each text what its patches contribute, on a pale copy: `panels` hold (text,
    contributions [rows, columns], a table to stand below). All share one scale, in units of the cosine similarity."""
    stretch = (picture.width / picture.height) ** 0.5  # panels have about the same area, and room for a table
    width = max(2.7, 2.8 * stretch)  # inches
    titles = [textwrap.wrap(" ".join(text.split()), int(13 * width), max_lines=3, placeholder=" ...")
              for text, *_ in panels]
    height = 2.8 / stretch + 0.12 * len(panels[0][2].splitlines()) + 0.16 * max(map(len, titles)) + 0.2
    columns = max(2, min(len(panels) + 1, int(13 / width)))
    rows = -(-(len(panels) + 1) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(width * columns, height * rows + 0.9), squeeze=False,
                                layout="constrained")
    for axes in grid.flat:
        axes.set_axis_off()
    limit = max(float(np.abs(values).max()) for _, values, _ in panels) or 1.0  # all 0: white, not a division by 0
    colors = plt.cm.ScalarMappable(plt.Normalize(-limit, limit), "RdBu_r")
    extent = (0, picture.width, picture.height, 0)
    grid.flat[0].imshow(picture, extent=extent)
    grid.flat[0].set_title("input", fontsize=9)
    grey = ImageOps.autocontrast(picture.convert("L"))
    for axes, lines, (_, values, table) in zip(grid.flat[1:], titles, panels):
        side = -(-640 // max(values.shape))  # of a patch, in pixels of the panel
        pale = 0.75 + 0.25 * np.asarray(grey.resize((values.shape[1] * side, values.shape[0] * side))) / 255
        heat = colors.to_rgba(values)[..., :3].repeat(side, axis=0).repeat(side, axis=1)
        axes.imshow(heat * pale[..., None], extent=extent)
        axes.set_title("\n".join(lines), fontsize=9, parse_math=False)
        axes.text(0.5, -0.08 / (2.8 / stretch), table, transform=axes.transAxes, ha="center", va="top", fontsize=7,
                  family="monospace")
    bar = figure.colorbar(colors, ax=grid, orientation="horizontal", aspect=40, shrink=min(1, 5.4 / (width * columns)),
                          pad=0.02)
    bar.set_label("contribution to the cosine similarity", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    figure.suptitle("\n".join(textwrap.wrap(title, int(11 * width * columns))), fontsize=10)
    save(figure, path)


def picture_grid(columns: list[str], rows: list[tuple[str, list]], title: str, path: Path) -> None:
    """Pictures (PIL) in rows with names, under headings of their `columns`."""
    figure, grid = plt.subplots(len(rows), len(columns), squeeze=False,
                                figsize=(1.3 * len(columns) + 0.2, 1.45 * len(rows) + 0.7), layout="constrained")
    for axes, heading in zip(grid[0], columns):
        axes.set_title(textwrap.fill(heading.replace("_", " "), 16), fontsize=8)
    for (name, pictures), line in zip(rows, grid):
        for axes, picture in zip(line, pictures):
            axes.set_axis_off()
            axes.imshow(picture, cmap="gray")
        line[0].text(0, -0.03, name, transform=line[0].transAxes, va="top", fontsize=6, parse_math=False)
    figure.suptitle(title, fontsize=9, parse_math=False)
    save(figure, path)


def contact_sheet(report: list[dict], queries: list[Image.Image | None], picture: Callable[[int], Image.Image],
                  row_title: Callable[[dict], str], title: str, path: Path) -> None:
    """For each query of a `report` of utils/analysis/retrieval.py a group of rows: the query's picture at the left, or
    its text where that is None, and for each way of comparing a row, under its `row_title`, of the images found, each a
    `picture` of its index, with similarity and class below."""
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
    figure.suptitle(title, fontsize=10, y=1 - 0.08 / height, va="top", parse_math=False)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.5 / height, top=1 - 0.6 / height, wspace=0.08, hspace=0.62)
    save(figure, path)
