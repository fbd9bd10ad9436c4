"""Pictures of the tokens inside a model."""
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from utils.plots.charts import save


def norms(picture, maps: dict[str, np.ndarray], every: np.ndarray, threshold: float, title: str, path: Path) -> None:
    """A picture (PIL, RGB), maps of norms [rows, columns] by their titles, on one scale, and how often each norm occurs
    among `every` [tokens], with the threshold above which one is an outlier."""
    figure, axes = plt.subplots(1, len(maps) + 2, figsize=(2.6 * (len(maps) + 1) + 4, 3.2), layout="constrained",
                                gridspec_kw={"width_ratios": [1] * (len(maps) + 1) + [1.5]})
    axes[0].imshow(picture)
    axes[0].set_title("input", fontsize=9)
    limits = min(map(np.min, maps.values())), max(map(np.max, maps.values()))
    for axis, (name, values) in zip(axes[1:], maps.items()):
        image = axis.imshow(values, vmin=limits[0], vmax=limits[1], cmap="viridis",
                            extent=(0, picture.width, picture.height, 0))
        axis.set_title(name, fontsize=9)
    for axis in axes[:-1]:
        axis.set_axis_off()
    figure.colorbar(image, ax=axes[-2], shrink=0.8)
    axes[-1].hist(every, bins=80, color="tab:blue", log=True)
    axes[-1].axvline(threshold, color="tab:red", linestyle="--", label=f"outliers above {threshold:.1f}")
    axes[-1].set(xlabel="norm of a patch token", ylabel="tokens")
    axes[-1].legend(fontsize=8)
    figure.suptitle("\n".join(textwrap.wrap(title, 100)), fontsize=10)
    save(figure, path)
