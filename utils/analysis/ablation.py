"""Mean-ablation: a component is replaced, for every image, by its mean over the data set (paper section 3.2)."""
from collections.abc import Collection, Iterator

import numpy as np

from utils.analysis.zeroshot import correct
from utils.runs import terms
from utils.runs.heads import Head
from utils.runs.stored import blocks
from utils.runs.terms import HeadTerms, Run


def mean(array: np.ndarray | HeadTerms, columns: slice = slice(None)) -> np.ndarray:
    """Mean over images of [b, c, d], of these columns alone, summed in float64, returned as float32 [c, d]; the array is read
    in blocks."""
    total = 0
    for block in blocks(len(array)):
        total = total + array[block, columns].sum(axis=0, dtype=np.float64)
    return (total / len(array)).astype(np.float32)


def accuracies(run: Run, classifier: np.ndarray) -> dict:
    """Zero-shot accuracy in percent under the paper's ablations.

    `run` holds attn [b, c, d], mlp [b, m, d], labels [b], of a model with convolution blocks conv [b, n, d] and of one with a
    class token cls_attn [b, l, d]; `classifier` is [d, classes]. Returns `baseline`, `mlp_ablated`, `cls_ablated`,
    `mlp_and_cls_ablated` (both None without cls_attn), `conv_ablated` (left out without conv), and `attention_ablated`, a
    list whose entry k has the first k attention layers ablated (entry 0 none).
    """
    columns = [run["attn"].columns([layer]) for layer in run["attn"].layers]
    mean_mlp, mean_cls = mean(run["mlp"]).sum(0), mean(run["cls_attn"]).sum(0) if "cls_attn" in run else None
    mean_conv = mean(run["conv"]).sum(0) if "conv" in run else None
    mean_attn = mean(run["attn"])
    mean_attn = np.stack([mean_attn[own].sum(axis=0) for own in columns])          # [l, d]
    counts = dict.fromkeys(("baseline", "mlp_ablated", "cls_ablated", "mlp_and_cls_ablated"), 0)
    counts |= {"conv_ablated": 0} if "conv" in run else {}
    attention = [0] * (len(columns) + 1)
    for block in blocks(len(run["labels"])):
        labels = run["labels"][block]
        attn = run["attn"][block].astype(np.float32, copy=False)
        attn = np.stack([attn[:, own].sum(axis=1) for own in columns], axis=1)     # [b, l, d]
        mlp, conv = (terms.rest(run, block, arrays=[what]) for what in ("mlp", "conv"))
        whole = attn.sum(axis=1)
        ablated = {"conv_ablated": whole + mean_conv + mlp} if "conv" in run else {}
        whole = whole + conv
        ablated |= {"baseline": whole + mlp, "mlp_ablated": whole + mean_mlp}
        if "cls_attn" in run:
            whole = whole - run["cls_attn"][block].astype(np.float32).sum(axis=1) + mean_cls
            ablated |= {"cls_ablated": whole + mlp, "mlp_and_cls_ablated": whole + mean_mlp}
        for name, representations in ablated.items():
            counts[name] += correct(representations, classifier, labels)
        representations = ablated["baseline"]
        for k in range(len(attention)):
            attention[k] += correct(representations, classifier, labels)
            if k < len(columns):
                representations = representations - attn[:, k] + mean_attn[k]
    percent = 100 / len(run["labels"])
    if "cls_attn" not in run:
        counts |= {"cls_ablated": None, "mlp_and_cls_ablated": None}
    return {**{name: None if count is None else count * percent for name, count in counts.items()},
            "attention_ablated": [count * percent for count in attention]}


def means(run: Run) -> dict[str, np.ndarray]:
    """Means over images of attn [c, d] and mlp [m, d], float32."""
    return {name: mean(run[name]) for name in ("attn", "mlp")}


def representations(run: Run, means: dict[str, np.ndarray], heads: Collection[Head] = (), last_layers: int | None = None,
                    mlps: bool = True) -> Iterator[tuple[slice, np.ndarray]]:
    """Representations [b, d], float32, with components mean-ablated: pairs of a slice of the images and theirs.

    Ablated are the `heads`, all attention layers but the `last_layers` (None: no others), and without `mlps` every MLP and
    the embedding; convolution blocks are kept. What replaces a component is its entry in `means`.
    """
    attn = run["attn"]
    layers = attn.layers if last_layers is None else attn.layers[len(attn.layers) - last_layers:]
    kept = np.array([layer in layers and (layer, head) not in heads for layer, head in attn.heads])
    first = min(np.flatnonzero(kept), default=len(kept))  # earlier heads need not be read
    constant = means["attn"][~kept].sum(axis=0) + (0 if mlps else means["mlp"].sum(axis=0))
    others = terms.WHAT[1:] if mlps else ("conv",)
    for block in blocks(len(attn)):
        found = np.einsum("bcd,c->bd", attn[block, first:].astype(np.float32, copy=False), kept[first:].astype(np.float32))
        yield block, found + constant + terms.rest(run, block, arrays=others)


def single_heads(run: Run, classifier: np.ndarray, last_layers: int) -> dict[Head, float]:
    """Zero-shot accuracy in percent with one head mean-ablated at a time, for every head of the last layers.

    The logits change by those of the head's term alone, so that the rest of the sum is made once.
    """
    columns = run["attn"].last(last_layers)
    average = mean(run["attn"], columns)
    right = dict.fromkeys(run["attn"].heads[columns], 0)
    for block in blocks(len(run["labels"]), description="single heads"):
        attn = run["attn"][block].astype(np.float32, copy=False)
        logits = (attn.sum(axis=1) + terms.rest(run, block)) @ classifier
        for head, own, constant in zip(right, attn[:, columns].swapaxes(0, 1), average):
            without = logits - (own - constant) @ classifier
            right[head] += int((without.argmax(axis=1) == run["labels"][block]).sum())
    return {head: 100 * count / len(run["labels"]) for head, count in right.items()}
