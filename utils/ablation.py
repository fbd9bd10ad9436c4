"""Mean-ablation: a component is replaced, for every image, by its mean over the data set (paper section 3.2).

Letters of shapes: b images, l layers, h heads, d width of the joint space.
"""
from collections.abc import Collection, Iterator

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

    `run` holds attn [b, l, h, d], mlp [b, l + 1, d], labels [b] and, of a model with a class token, cls_attn [b, l, d];
    `classifier` is [d, classes]. Returns `baseline`, `mlp_ablated`, `cls_ablated`, `mlp_and_cls_ablated` (both None
    without cls_attn), and `attention_ablated`, a list whose entry k has the attention layers 1 to k ablated (entry 0 none).
    """
    layers = run["attn"].shape[1]
    mean_mlp, mean_cls = mean(run["mlp"]).sum(0), mean(run["cls_attn"]).sum(0) if "cls_attn" in run else None
    mean_attn = mean(run["attn"]).sum(1)  # [l, d]
    counts = dict.fromkeys(("baseline", "mlp_ablated", "cls_ablated", "mlp_and_cls_ablated"), 0)
    attention = [0] * (layers + 1)
    for block in blocks(len(run["labels"])):
        labels = run["labels"][block]
        attn = run["attn"][block].astype(np.float32).sum(axis=2)                   # [b, l, d]
        mlp = run["mlp"][block].astype(np.float32).sum(axis=1)                     # [b, d]
        whole = attn.sum(axis=1)
        ablated = {"baseline": whole + mlp, "mlp_ablated": whole + mean_mlp}
        if "cls_attn" in run:
            whole = whole - run["cls_attn"][block].astype(np.float32).sum(axis=1) + mean_cls
            ablated |= {"cls_ablated": whole + mlp, "mlp_and_cls_ablated": whole + mean_mlp}
        for name, representations in ablated.items():
            counts[name] += correct(representations, classifier, labels)
        representations = ablated["baseline"]
        for k in range(layers + 1):
            attention[k] += correct(representations, classifier, labels)
            if k < layers:
                representations = representations - attn[:, k] + mean_attn[k]
    percent = 100 / len(run["labels"])
    if "cls_attn" not in run:
        counts |= {"cls_ablated": None, "mlp_and_cls_ablated": None}
    return {**{name: None if count is None else count * percent for name, count in counts.items()},
            "attention_ablated": [count * percent for count in attention]}


def means(run: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Means over images of attn [l, h, d] and mlp [l + 1, d], float32."""
    return {name: mean(run[name]) for name in ("attn", "mlp")}


def representations(run: dict[str, np.ndarray], means: dict[str, np.ndarray], heads: Collection[tuple[int, int]] = (),
                    last_layers: int | None = None, mlps: bool = True) -> Iterator[tuple[slice, np.ndarray]]:
    """Representations [b, d], float32, with components mean-ablated: pairs of a slice of the images and theirs.

    Ablated are the `heads` (layer, head), counted from 0, all attention layers but the `last_layers` (None: no others),
    and without `mlps` every MLP and the embedded class token. What replaces a component is its entry in `means`.
    """
    layers = run["attn"].shape[1]
    kept = np.ones(run["attn"].shape[1:3], bool)
    kept[:layers - (layers if last_layers is None else last_layers)] = False
    for layer, head in heads:
        kept[layer, head] = False
    first = min(np.flatnonzero(kept.any(axis=1)), default=layers)  # earlier layers need not be read
    constant = means["attn"][~kept].sum(axis=0) + (0 if mlps else means["mlp"].sum(axis=0))
    for block in blocks(len(run["attn"])):
        attn = run["attn"][block, first:].astype(np.float32, copy=False)
        found = np.einsum("blhd,lh->bd", attn, kept[first:].astype(np.float32)) + constant
        yield block, found + run["mlp"][block].astype(np.float32).sum(axis=1) if mlps else found


def single_heads(run: dict[str, np.ndarray], classifier: np.ndarray, last_layers: int) -> dict[tuple[int, int], float]:
    """Zero-shot accuracy in percent with one head mean-ablated at a time, for every head (layer, head) of the last layers.

    The logits change by those of the head's term alone, so that the rest of the sum is made once.
    """
    layers, heads = run["attn"].shape[1:3]
    average = mean(run["attn"][:, layers - last_layers:])
    right = dict.fromkeys(((layer, head) for layer in range(layers - last_layers, layers) for head in range(heads)), 0)
    for block in blocks(len(run["labels"]), description="single heads"):
        attn = run["attn"][block].astype(np.float32, copy=False)
        logits = (attn.sum(axis=(1, 2)) + run["mlp"][block].astype(np.float32).sum(axis=1)) @ classifier
        for layer, head in right:
            without = logits - (attn[:, layer, head] - average[layer - layers + last_layers, head]) @ classifier
            right[layer, head] += int((without.argmax(axis=1) == run["labels"][block]).sum())
    return {key: 100 * count / len(run["labels"]) for key, count in right.items()}
