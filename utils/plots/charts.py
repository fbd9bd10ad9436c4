"""Charts of figures, and what all pictures have in common: letters, and files that are complete."""
import textwrap
from pathlib import Path
from typing import BinaryIO

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib import font_manager

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
