"""Pictures of the text side, and of an image and a text together."""
import textwrap
from pathlib import Path
from typing import BinaryIO

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import FuncNorm
from PIL import ImageOps

from utils.plots.charts import save


def text_heads(layers: dict[str, float], heads: dict[str, float], title: str, path: Path) -> None:
    """Accuracies (%) with each layer of a text tower ablated, the baseline first, and with each head ("layer.head")."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    base = layers["baseline"]
    names = [name for name in layers if name != "baseline"]
    colors = ["tab:blue" if name.startswith("attn") else "tab:orange" for name in names]
    changes = [layers[name] - base for name in names]
    bars = left.barh(names, changes, color=colors)
    left.bar_label(bars, fmt=" %+.1f ", fontsize=8)
    left.axvline(0, color="0.3", linewidth=1)
    left.invert_yaxis()
    left.margins(x=0.18)
    left.set(xlabel=f"change of accuracy without it (points); with all {base:.1f}%")
    rows, columns = (max(int(head.split(".")[part]) for head in heads) + 1 for part in (0, 1))
    values = np.full((rows, columns), np.nan)
    for head, value in heads.items():
        layer, number = map(int, head.split("."))
        values[layer, number] = value - base
    limit = max(np.nanmax(np.abs(values)), 0.1)
    image = right.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    if rows * columns <= 150:
        for (layer, number), value in np.ndenumerate(values):
            right.text(number, layer, f"{value:+.1f}".replace("-0.0", "0.0"), ha="center", va="center", fontsize=7,
                       color="white" if abs(value) > 0.7 * limit else "black")
    right.set(xlabel="head", ylabel="layer", xticks=range(columns), yticks=range(rows))
    figure.colorbar(image, ax=right, label="change of accuracy without it (points)")
    figure.suptitle("\n".join(textwrap.wrap(title, 110)), fontsize=10)
    save(figure, path)


def pairs(picture, rows: list[tuple[str, list[tuple[str, float, np.ndarray | None]]]], title: str,
          path: Path | BinaryIO) -> None:
    """A picture (PIL, RGB), and for each of a few texts a row of its words under their heat maps, on a pale copy.

    `rows` hold a text's title and its words: name, contribution to the cosine, and that of patches [rows, columns]. All
    maps share one scale, on which small values are stretched.
    """
    most = max(len(words) for _, words in rows) + 1
    columns = min(most, 11)
    lines = [(label, words[start:start + columns - 1]) for label, words in rows
             for start in range(0, len(words), columns - 1)]
    side, stretch = 1.3, picture.height / picture.width
    height = (side * stretch + 0.6) * len(lines) + 1.1
    figure, grid = plt.subplots(len(lines), columns, figsize=(side * columns, height), squeeze=False)
    limit = max(float(np.abs(values).max()) for _, words in rows for *_, values in words) or 1.0
    # A few pairs are far larger than all others: roots of values are coloured.
    scale = FuncNorm((lambda x: np.sign(x) * np.abs(x) ** 0.5, lambda x: np.sign(x) * x ** 2), -limit, limit)
    colors = plt.cm.ScalarMappable(scale, "RdBu_r")
    extent, grey = (0, picture.width, picture.height, 0), ImageOps.autocontrast(picture.convert("L"))
    for axes in grid.flat:
        axes.set_axis_off()
    shown = None
    for (label, words), (first, *others) in zip(lines, grid):
        if label != shown:
            first.imshow(picture, extent=extent)
            first.set_title("\n".join(textwrap.wrap(label, 22, max_lines=3, placeholder=" ...")), fontsize=8,
                            parse_math=False)
        shown = label
        for axes, (name, value, values) in zip(others, words):
            times = -(-320 // max(values.shape))  # pixels of a patch
            pale = 0.75 + 0.25 * np.asarray(grey.resize((values.shape[1] * times, values.shape[0] * times))) / 255
            heat = colors.to_rgba(values)[..., :3].repeat(times, axis=0).repeat(times, axis=1)
            axes.imshow(heat * pale[..., None], extent=extent)
            axes.text(0.5, -0.06, f"{name}\n{value:+.3f}", transform=axes.transAxes, ha="center", va="top", fontsize=9,
                      parse_math=False)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=1.0 / height, top=1 - 0.75 / height, wspace=0.06, hspace=0.45)
    bar = figure.colorbar(colors, cax=figure.add_axes((0.25, 0.42 / height, 0.5, 0.1 / height)),
                          orientation="horizontal")
    bar.set_label("contribution of a patch and a word to the cosine similarity", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    figure.suptitle(title, fontsize=10, y=1 - 0.06 / height, va="top", parse_math=False)
    save(figure, path)
