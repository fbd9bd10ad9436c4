"""Charts of EX2's truth."""
from pathlib import Path

import matplotlib.pyplot as plt

from utils.plots.charts import save


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
