"""Pictures of results."""
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def ablation_curve(found: dict, model: str, dataset: str, path: Path) -> None:
    """Accuracy against the number of attention layers ablated, beside the other ablations."""
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    curve = found["attention_ablated"]
    axes.plot(range(len(curve)), curve, marker="o", color="tab:blue", label="attention layers 1 to k ablated")
    for name, label, style in (("baseline", "nothing ablated", "-"), ("mlp_ablated", "all MLPs ablated", "--"),
                               ("cls_ablated", "class token's attention to itself ablated", ":"),
                               ("mlp_and_cls_ablated", "both ablated", "-.")):
        axes.axhline(found[name], color="0.35", linestyle=style, linewidth=1, label=f"{label}: {found[name]:.1f}%")
    axes.set(xlabel="k, attention layers mean-ablated", ylabel="zero-shot accuracy (%)", ylim=(0, None),
             title=f"{model} on {dataset}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize=8, loc="lower left")
    _save(figure, path)


def head_sheet(rows: list[tuple[str, list, list]], path: Path) -> None:
    """One row a head: its title, the images that score highest on its first text, and those that score lowest.

    `rows` hold (title, PIL images, PIL images), all with the same numbers of images.
    """
    columns = len(rows[0][1]) + len(rows[0][2])
    figure, grid = plt.subplots(len(rows), columns + 1, figsize=(0.8 * (columns + 1), 1.1 * len(rows)), squeeze=False,
                                gridspec_kw={"width_ratios": [1] * len(rows[0][1]) + [0.4] + [1] * len(rows[0][2])})
    for (title, highest, lowest), axes in zip(rows, grid):
        for axis, image in zip(axes, [*highest, None, *lowest]):
            axis.axis("off")
            if image is not None:
                axis.imshow(image)
        axes[0].set_title(title, fontsize=8, loc="left")
    grid[0][len(rows[0][1]) + 1].set_title("lowest", fontsize=8, loc="left", color="0.4")
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.96, wspace=0.05, hspace=0.35)
    _save(figure, path)


def _save(figure, path: Path) -> None:
    """Write a PNG; the file has its name only when it is complete."""
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=150)
    plt.close(figure)
    partial.replace(path)


def training_curve(history: list[dict], path: Path) -> None:
    """Loss, and zero-shot accuracies in percent, against the step; `history` holds rows of training_log.csv."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    steps = [row["step"] for row in history]
    left.plot(steps, [row["loss"] for row in history], color="tab:blue")
    left.set(xlabel="step", ylabel="contrastive loss", ylim=(0, None))
    for name, label in (("object_seen", "object, seen styles"), ("object_unseen", "object, unseen style"),
                        ("background_color", "background colour")):
        right.plot(steps, [row[name] for row in history], label=label)
    right.set(xlabel="step", ylabel="zero-shot accuracy (%)", ylim=(0, 100))
    right.legend(fontsize=8)
    _save(figure, path)
