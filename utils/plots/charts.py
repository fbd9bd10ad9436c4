"""Pictures of results."""
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import matplotlib
import numpy as np
from PIL import Image, ImageOps

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib import font_manager

SIDE = 160  # pixels that a picture has on a contact sheet
MOST_ROWS, MOST_COLUMNS = 40, 40  # that a contact sheet has room for
# Letters that matplotlib's own font lacks come from the first of these that is installed.
WIDE_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "Source Han Sans", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei",
              "Droid Sans Fallback", "Hiragino Sans", "PingFang SC", "Yu Gothic", "Microsoft YaHei", "Unifont")
plt.rcParams["font.family"] = [*plt.rcParams["font.family"], *(
    name for name in WIDE_FONTS if name in font_manager.get_font_names())]


def ablation_curve(found: dict, model: str, dataset: str, path: Path) -> None:
    """Accuracy against the number of attention layers ablated, beside the other ablations."""
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    curve = found["attention_ablated"]
    axes.plot(range(len(curve)), curve, marker="o", color="tab:blue", label="attention layers 1 to k ablated")
    for name, label, style in (("baseline", "nothing ablated", "-"), ("mlp_ablated", "all MLPs ablated", "--"),
                               ("cls_ablated", "class token's attention to itself ablated", ":"),
                               ("mlp_and_cls_ablated", "both ablated", "-."),
                               ("conv_ablated", "all convolution blocks ablated", (0, (5, 5)))):
        if found.get(name) is not None:
            axes.axhline(found[name], color="0.35", linestyle=style, linewidth=1, label=f"{label}: {found[name]:.1f}%")
    axes.set(xlabel="k, attention layers mean-ablated", ylabel="zero-shot accuracy (%)", ylim=(0, None),
             title=f"{model} on {dataset}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize=8, loc="lower left")
    save(figure, path)


def cumulative_ablation(curves: dict[str, list[dict]], ylabel: str, title: str, path: Path) -> None:
    """Accuracy against the share of a model's layers that are ablated, a line for each model.

    `curves` are those of compute_component_ablation.py: what each step ablated, and the accuracy in percent.
    """
    figure, axes = plt.subplots(figsize=(7.4, 4.4), layout="constrained")
    shapes = {"embed": ("D", "embedding"), "mlp": ("o", "MLP"), "conv": ("^", "convolution"),
              "attn": ("s", "attention")}
    colors = plt.get_cmap("tab10" if len(curves) <= 10 else "tab20")
    for i, (model, steps) in enumerate(curves.items()):
        x, y = np.linspace(0, 100, len(steps)), [step["accuracy"] for step in steps]
        axes.plot(x, y, color=colors(i % colors.N), linewidth=1.2, label=model)
        for kind, (shape, _) in shapes.items():
            places = [place for place, step in enumerate(steps) if step["kind"] == kind]
            axes.plot(x[places], [y[place] for place in places], shape, color=colors(i % colors.N), markersize=4)
    there = {step["kind"] for steps in curves.values() for step in steps}
    marks = [plt.Line2D([], [], color="0.35", marker=shape, linestyle="", markersize=4, label=name)
             for kind, (shape, name) in shapes.items() if kind in there]
    axes.set(xlabel="layers mean-ablated, from the last back (%)", ylabel=ylabel, ylim=(0, None), title=title)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    lines, _ = axes.get_legend_handles_labels()
    figure.legend(handles=lines, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.legend(handles=marks, loc="outside right center", fontsize=8, frameon=False)
    save(figure, path)


def component_scores(components: list, scores: dict[str, np.ndarray], title: str, path: Path) -> None:
    """For each feature, the scores [c] of all components: a panel with a row for each block, and columns for its heads,
    convolution and MLP; the embedding is below. `components` are those of a run."""
    blocks = sorted({part.layer for part in components})[::-1]
    heads = 1 + max(part.head or 0 for part in components if part.kind == "attn")
    others = [kind for kind in ("conv", "mlp") if any(part.kind == kind for part in components)]
    place = {kind: heads + i for i, kind in enumerate(others)}
    place["embed"] = place.get("mlp", heads)
    columns = min(len(scores), 4 if heads <= 16 else 3)
    rows = -(-len(scores) // columns)
    width, height = max(2.2, 0.17 * (heads + len(others))), max(1.6, 0.17 * len(blocks))
    figure, grid = plt.subplots(rows, columns, figsize=(width * columns + 1.2, (height + 0.75) * rows + 0.5),
                                squeeze=False, layout="constrained")
    ticks = [(head, str(head)) for head in range(0, heads, 1 if heads <= 8 else 4)]
    lines = [(i, "embed" if block < 0 else str(block)) for i, block in enumerate(blocks)
             if block < 0 or len(blocks) <= 13 or block % 4 == 0]
    # All of the colours: where hardly a score is below 0, those of one sign alone.
    every = np.concatenate(list(scores.values()))
    largest = float(np.abs(every).max()) or 1.0
    lowest, colors = (0, "Reds") if every.min() > -0.1 * largest else (-largest, "RdBu_r")
    for axes, (feature, values) in zip(grid.flat, scores.items()):
        table = np.full((len(blocks), heads + len(others)), np.nan)
        for part, value in zip(components, values):
            table[blocks.index(part.layer), place.get(part.kind, part.head or 0)] = value
        drawn = axes.imshow(table, cmap=colors, vmin=lowest, vmax=largest, aspect="auto", interpolation="nearest")
        axes.set_title(feature, fontsize=9)
        axes.set_xticks(*zip(*ticks, *((place[kind], kind) for kind in others)), fontsize=7)
        axes.set_yticks(*zip(*lines), fontsize=7)
        axes.set_facecolor("0.9")  # where a block has fewer heads than others
        for label in axes.get_xticklabels()[len(ticks):]:
            label.set_rotation(90)
    for axes in grid.flat[len(scores):]:
        axes.set_axis_off()
    columns_are = "head of the block, convolution, MLP" if "conv" in others else "head of the block, MLP"
    figure.supxlabel(columns_are, fontsize=8)
    figure.supylabel("block", fontsize=8)
    bar = figure.colorbar(drawn, ax=grid, aspect=30, shrink=0.8)
    bar.set_label("score", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.suptitle("\n".join(textwrap.wrap(title, int(13 * width * columns))), fontsize=10)
    save(figure, path)


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


def head_truth(rows: list[dict], title: str, path: Path) -> None:
    """For each head, the share of its variance that each known attribute explains, and above the bar what its texts
    say.

    `rows` are those of compute_head_truth.py.
    """
    names = list(rows[0]["explained"])
    colors = dict(zip(names, plt.get_cmap("tab10").colors))
    figure, axes = plt.subplots(figsize=(max(6.0, 0.36 * len(rows) + 2.4), 4), layout="constrained")
    below = np.zeros(len(rows))
    for name in names:
        shares = np.array([100 * max(row["explained"][name], 0) for row in rows])
        axes.bar(range(len(rows)), shares, 0.8, bottom=below, color=colors[name], label=name)
        below += shares
    for x, row in enumerate(rows):
        axes.text(x, below[x] + 1.5, row["reading"] + ("" if row["agree"] else " (wrong)"), rotation=90, ha="center",
                  va="bottom", fontsize=7, color=colors[row["reading"]])
    axes.set_xticks(range(len(rows)), [f"{row['layer']}.{row['head']}" for row in rows], fontsize=7, rotation=90)
    axes.set(xlabel="layer.head; above each bar, what its texts are about", ylabel="variance explained (%)",
             ylim=(0, 118), title=title)
    axes.margins(x=0.01)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    save(figure, path)


def textspan_sweep(rows: list[dict], without: dict[str, float], title: str, path: Path) -> None:
    """TextSpan's accuracy against the number of texts a head, a line for each pool, beside the accuracies without
    texts; both are those of utils/analysis/textspan.py's `sweep`."""
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for name, label, style in (("whole_model", "whole model", "--"),
                               ("last_layers", "earlier heads mean-ablated, last layers whole", ":")):
        axes.axhline(without[name], color="0.35", linestyle=style, linewidth=1, label=f"{label}: {without[name]:.1f}%")
    for name in dict.fromkeys(row["pool"] for row in rows):
        own = [row for row in rows if row["pool"] == name]
        axes.plot([row["texts_per_head"] for row in own], [row["accuracy"] for row in own], marker="o", label=name)
    axes.set_xticks(sorted({row["texts_per_head"] for row in rows}))
    axes.set(xlabel="texts a head", ylabel="zero-shot accuracy (%)", title=title)
    axes.legend(fontsize=8)
    save(figure, path)


def save(figure, path: Path | BinaryIO) -> None:
    """Write a PNG, to an open file or to a path; a file has its name only when it is complete."""
    if not isinstance(path, Path):
        figure.savefig(path, format="png", dpi=150)
        plt.close(figure)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=150)
    plt.close(figure)
    partial.replace(path)


def training_curve(history: list[dict], loss: str, accuracy: str, names: dict[str, str], path: Path) -> None:
    """Loss, and accuracies in percent, against the step; `history` holds rows of training_log.csv, `loss` and
    `accuracy` say what they are, and `names` maps the columns of the accuracies to their labels, the first one's line
    bold."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    steps = [row["step"] for row in history]
    left.plot(steps, [row["loss"] for row in history], color="tab:blue")
    left.set(xlabel="step", ylabel=loss, ylim=(0, None))
    for number, (name, label) in enumerate(names.items()):
        right.plot(steps, [row[name] for row in history], label=label, linewidth=1.2 if number else 2.5)
    right.set(xlabel="step", ylabel=accuracy, ylim=(0, 102))
    right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    save(figure, path)


def inspection_shares(rows: list[dict], names: dict[str, str], doubtful: set[tuple[str, str]], path: Path) -> None:
    """Shares of descriptions with a verdict, with their intervals: a panel for each data set, a bar for each VLM. A bar
    is pale where the inspector's verdict is `doubtful`: (inspector, measure).

    `rows` are those of utils/ex2/verdicts.py's `summarize`; `names` maps the measures to show to their labels.
    """
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    inspectors = list(dict.fromkeys(row["inspector"] for row in rows))

    def label(row: dict) -> str:
        return row["vlm_name"] if len(inspectors) == 1 else f"{row['vlm_name']}, by {row['inspector']}"

    labels = list(dict.fromkeys(map(label, rows)))
    colors = plt.get_cmap("tab10" if len(labels) <= 10 else "tab20")
    figure, panels = plt.subplots(len(datasets), 1, figsize=(9, 1.2 + 2.6 * len(datasets)), squeeze=False,
                                  layout="constrained")
    for dataset, axes in zip(datasets, panels[:, 0]):
        shown = [row for row in rows if row["dataset"] == dataset and row["measures"]]
        width = 0.8 / max(1, len(shown))
        for i, row in enumerate(shown):
            found = [row["measures"][name] for name in names]
            shares = [100 * figure["share"] for figure in found]
            errors = [[100 * (figure["share"] - figure["low"]) for figure in found],
                      [100 * (figure["high"] - figure["share"]) for figure in found]]
            places = [x + (i - (len(shown) - 1) / 2) * width for x in range(len(names))]
            bars = axes.bar(places, shares, 0.9 * width, yerr=errors, color=colors(labels.index(label(row)) % colors.N),
                            error_kw={"elinewidth": 1, "capsize": min(3, 20 * width), "ecolor": "0.25"})
            for name, bar in zip(names, bars):
                if (row["inspector"], name) in doubtful:
                    bar.set(alpha=0.3, hatch="//")
        axes.set(ylabel="descriptions (%)", ylim=(0, 100), title=dataset)
        ticks = [textwrap.fill(name, 13, break_on_hyphens=False) for name in names.values()]
        axes.set_xticks(range(len(names)), ticks, fontsize=9)
        axes.grid(axis="y", color="0.9")
        axes.set_axisbelow(True)
    figure.suptitle(f"Verdicts of {', '.join(inspectors)}, with 95% intervals\n"
                    "(pale: hardly better than chance by the labels, or not known)", fontsize=11)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colors(i % colors.N)) for i in range(len(labels))]
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    save(figure, path)


def reward_curve(history: list[dict], title: str, path: Path) -> None:
    """Mean reward of each step's fresh descriptions with its standard deviation, KL, and the signs of collapse;
    `history` holds rows of train.py's log.csv."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    steps = [row["step"] for row in history]
    mean, spread = ([row[name] for row in history] for name in ("reward", "reward_std"))
    left.fill_between(steps, [m - s for m, s in zip(mean, spread)], [m + s for m, s in zip(mean, spread)],
                      color="tab:blue", alpha=0.15, linewidth=0)
    left.plot(steps, mean, color="tab:blue")
    left.set(xlabel="step", ylabel="reward (100 x cosine), +- 1 sd")
    middle.plot(steps, [row["kl"] for row in history], color="tab:orange")
    middle.set(xlabel="step", ylabel="KL from the untrained model\n(nats a token)")
    for name in ("duplicates", "repeated_phrases", "copies", "shared_phrase"):
        right.plot(steps, [100 * row[name] for row in history], label=name.replace("_", " "))
    right.set(xlabel="step", ylabel="signs of collapse (%)", ylim=(0, 100))
    right.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
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


def group_accuracies(found: dict[str, dict], columns: dict[str, str], title: str, path: Path) -> None:
    """Accuracy of each group and of all, a bar for each of `columns`, which map keys of `found` to labels.

    `found` holds figures of utils/analysis/groups.py's `accuracies`; a group without images has no bars.
    """
    rows = [{**found[key]["groups"], "average of groups": found[key]["average_of_groups"],
             "overall": found[key]["overall"]} for key in columns]
    names = [name for name in rows[0] if rows[0][name] is not None]
    figure, axes = plt.subplots(figsize=(max(6.4, 2 + 1.6 * len(names)), 4.4), layout="constrained")
    width = 0.84 / len(columns)
    colors = ["0.45", *("0.75", "tab:blue", "tab:orange", "#ffd0a0")[1 - len(columns):]]
    for i, (row, label, color) in enumerate(zip(rows, columns.values(), colors)):
        places = [x + (i - (len(columns) - 1) / 2) * width for x in range(len(names))]
        bars = axes.bar(places, [row[name] for name in names], 0.92 * width, color=color, label=label)
        axes.bar_label(bars, fmt="%.0f", fontsize=7)
    ticks = [name.replace(" on ", "\non ").replace(" of ", "\nof ") for name in names]
    axes.set_xticks(range(len(names)), ticks, fontsize=9)
    axes.set(ylabel="accuracy (%)", ylim=(0, 105))
    axes.set_title("\n".join(textwrap.wrap(title, 80)), fontsize=10)
    figure.legend(loc="outside lower center", ncols=len(columns), fontsize=8, frameon=False)
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
