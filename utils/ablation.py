"""Mean-ablation: a component is replaced, for every image, by its mean over the data set (paper section 3.2).

Letters of shapes: b images, l layers, h heads, d width of the joint space.
"""
import numpy as np

from utils.arrays import blocks
from utils.zeroshot import correct


def mean(array: np.ndarray) -> np.ndarray:
    """Mean over images, summed in float64, returned as float32; the array is read in blocks."""
    total = np.zeros(array.shape[1:], np.float64)
    for block in blocks(len(array)):
        total += array[block].sum(axis=0, dtype=np.float64)
    return (total / len(array)).astype(np.float32)


def accuracies(run: dict[str, np.ndarray], classifier: np.ndarray) -> dict:
    """Zero-shot accuracy in percent under the paper's ablations.

    `run` holds attn [b, l, h, d], mlp [b, l + 1, d], cls_attn [b, l, d] and labels [b]; `classifier` is
    [d, classes]. Returns `baseline`, `mlp_ablated`, `cls_ablated`, `mlp_and_cls_ablated`, and
    `attention_ablated`, a list whose entry k has the attention layers 1 to k ablated (entry 0 none).
    """
    layers = run["attn"].shape[1]
    mean_mlp, mean_cls = mean(run["mlp"]).sum(0), mean(run["cls_attn"]).sum(0)
    mean_attn = mean(run["attn"]).sum(1)  # [l, d]
    counts = dict.fromkeys(("baseline", "mlp_ablated", "cls_ablated", "mlp_and_cls_ablated"), 0)
    attention = [0] * (layers + 1)
    for block in blocks(len(run["labels"])):
        labels = run["labels"][block]
        attn = run["attn"][block].astype(np.float32).sum(axis=2)                   # [b, l, d]
        mlp = run["mlp"][block].astype(np.float32).sum(axis=1)                     # [b, d]
        cls = run["cls_attn"][block].astype(np.float32).sum(axis=1)                # [b, d]
        whole = attn.sum(axis=1)
        for name, representations in (("baseline", whole + mlp), ("mlp_ablated", whole + mean_mlp),
                                      ("cls_ablated", whole - cls + mean_cls + mlp),
                                      ("mlp_and_cls_ablated", whole - cls + mean_cls + mean_mlp)):
            counts[name] += correct(representations, classifier, labels)
        representations = whole + mlp
        for k in range(layers + 1):
            attention[k] += correct(representations, classifier, labels)
            if k < layers:
                representations = representations - attn[:, k] + mean_attn[k]
    percent = 100 / len(run["labels"])
    return {**{name: count * percent for name, count in counts.items()},
            "attention_ablated": [count * percent for count in attention]}
