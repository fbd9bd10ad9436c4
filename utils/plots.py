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
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=150)
    plt.close(figure)
    partial.replace(path)
