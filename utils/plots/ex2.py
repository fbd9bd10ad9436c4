"""Charts of EX2: rewards, what an inspector says, the truth."""
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt

from utils.plots.charts import save


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


def truth(attributes: dict[str, dict], path: Path) -> None:
    """By attribute, with 95% intervals: what the VLM gives the true word more than the mean false one, and, where there
    are descriptions, how much more often they use it before and after the alignment; `attributes` is the table of
    utils/ex2/truth.py."""
    described = "lift_before" in next(iter(attributes.values()))
    figure, panels = plt.subplots(1, 1 + described, figsize=(4.5 * (1 + described), 3.4), squeeze=False,
                                  layout="constrained")
    names = list(attributes)
    for axes, series, label in zip(panels[0], (["true_over_false"], ["lift_before", "lift_after"]),
                                   ("reward: true minus false word", "mentions: true minus false word (%)")):
        for i, name in enumerate(series):
            scale = 1 if name == "true_over_false" else 100
            values = [[scale * value for value in attributes[attribute][name]] for attribute in names]
            places = [x + (i - (len(series) - 1) / 2) * 0.35 for x in range(len(names))]
            axes.bar(places, [mean for mean, *_ in values], 0.33, color="tab:blue" if i or len(series) == 1 else "0.7",
                     yerr=[[mean - low for mean, low, _ in values], [high - mean for mean, _, high in values]],
                     error_kw={"elinewidth": 1, "capsize": 3, "ecolor": "0.25"},
                     label=name.removeprefix("lift_") if len(series) > 1 else None)
        axes.axhline(0, color="0.25", linewidth=0.8)
        axes.set_xticks(range(len(names)), names)
        axes.set(ylabel=label)
    if described:
        panels[0][1].legend(frameon=False, title="alignment")
    save(figure, path)
