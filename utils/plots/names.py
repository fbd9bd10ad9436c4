"""Pictures of what heads are called."""
from pathlib import Path

import matplotlib
import numpy as np

from utils.plots.charts import save

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MOST = 60  # rows of a picture


def shares(labels: list[str], rows: list[dict], title: str, path: Path) -> None:
    """For each component, a row, the share of its variance that each attribute explains, and its name.

    `rows` are those of compute_head_names.py. Attributes overlap, so that shares may sum to more than 1.
    """
    names = list(rows[0]["shares"])
    most = np.array([[max(row["shares"][name], 0) for name in names] for row in rows])
    shown = [names[i] for i in np.argsort(-most.max(axis=0), kind="stable")[:10]]
    colors = dict(zip(sorted(shown, key=names.index), plt.get_cmap("tab10").colors))
    figure, axes = plt.subplots(figsize=(9, max(2.4, 0.2 * len(rows) + 1.2)), layout="constrained")
    left = np.zeros(len(rows))
    for name in (*colors, *(["others"] if len(names) > len(shown) else [])):
        own = [names.index(name)] if name in names else [i for i, other in enumerate(names) if other not in shown]
        widths = 100 * most[:, own].sum(axis=1)
        axes.barh(range(len(rows)), widths, 0.8, left=left, color=colors.get(name, "0.8"), label=name)
        left += widths
    for y, row in enumerate(rows):
        axes.text(left[y] + 0.8, y, row["role"], va="center", fontsize=7)
    axes.set_yticks(range(len(rows)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel="variance explained by the answers to each attribute (%)", title=title,
             xlim=(0, max(100.0, 1.65 * float(left.max()))))
    axes.margins(y=0.01)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    save(figure, path)


def contributions(labels: list[str], added: np.ndarray, lost: np.ndarray, columns: list[str], title: str,
                  path: Path) -> None:
    """What components add to logits [c, columns], beside the accuracy lost without each [c]: bars for one column, and
    otherwise a map whose columns are classes."""
    rows = range(len(labels))
    figure, (axes, beside) = plt.subplots(1, 2, figsize=(11, max(2.4, 0.22 * len(labels) + 1.2)), layout="constrained",
                                          sharey=True, width_ratios=(3, 1))
    if len(columns) == 1:
        axes.barh(rows, added[:, 0], color=np.where(added[:, 0] < 0, "tab:red", "tab:blue"))
        axes.axvline(0, color="0.4", linewidth=0.8)
        axes.set_xlabel("added to the logit")
    else:
        limit = float(np.nanmax(np.abs(added))) or 1.0
        shown = axes.imshow(added, aspect="auto", cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest")
        axes.set_xlabel("class")
        if len(columns) <= 40:
            axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=7)
        figure.colorbar(shown, ax=axes, label="added to the logit", location="left", pad=0.12)
    axes.set_yticks(rows, labels, fontsize=7)
    beside.barh(rows, lost, color="0.5")
    beside.axvline(0, color="0.4", linewidth=0.8)
    beside.set_xlabel("accuracy lost\nwhen ablated (points)")
    axes.set_ylim(len(labels) - 0.5, -0.5)
    figure.suptitle(title)
    save(figure, path)


def comparison(roles: list[dict], titles: list[str], similarity: np.ndarray | None, path: Path) -> None:
    """How much of the heads' variance each attribute explains in two models, and how similar their heads are [c, c'],
    where that is known; `roles` are those of utils/analysis/names/compare.py."""
    names = list(dict.fromkeys([*roles[0], *roles[1]]))
    figure, axes = plt.subplots(1, 1 if similarity is None else 2, figsize=(6 if similarity is None else 11, 4.6),
                                layout="constrained", squeeze=False)
    for side, (one, title) in enumerate(zip(roles, titles)):
        values = [100 * one[name]["variance"] if name in one else 0 for name in names]
        axes[0][0].barh(np.arange(len(names)) + 0.4 * side - 0.2, values, 0.4, label=title)
    axes[0][0].set_yticks(range(len(names)), names, fontsize=8)
    axes[0][0].invert_yaxis()
    axes[0][0].set_xlabel("of the heads' variance (%)")
    axes[0][0].legend(fontsize=8)
    if similarity is not None:
        shown = axes[0][1].imshow(similarity, cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes[0][1].set(xlabel=f"heads of {titles[1]}", ylabel=f"heads of {titles[0]}")
        figure.colorbar(shown, ax=axes[0][1], label="how alike they write (CKA)")
    save(figure, path)
