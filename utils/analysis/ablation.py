"""Mean-ablation: a component is replaced, for every image, by its mean over a data set (arXiv 2310.05916, section 3.2;
cumulatively: arXiv 2406.01583). Components are meant by their columns in a run.
"""
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from utils.analysis.zeroshot import correct
from utils.cli import UserError
from utils.runs.components import Component
from utils.runs.files import blocks
from utils.runs.run import SMALL_BLOCK, Run

KINDS = ("mlp", "attn", "conv")  # of a block, in the order in which they are ablated


def representations(run: Run, means: np.ndarray, ablated: Collection[int]) -> Iterator[tuple[slice, np.ndarray]]:
    """Representations [b, d], float32, with components replaced by their `means` [c, d]: pairs of a slice of the images
    and theirs."""
    kept = np.ones(len(means), bool)
    kept[list(ablated)] = False
    heads = np.arange(len(means)) < len(run.heads)
    constant = means[~kept & heads].sum(axis=0) + means[~kept & ~heads].sum(axis=0)
    for block in blocks(len(run)):
        yield block, (run.whole(block, np.flatnonzero(kept & heads)) + constant
                      + run.whole(block, np.flatnonzero(kept & ~heads)))


def all_but(run: Run, last_layers: int | None, mlps: bool) -> list[int]:
    """The columns of all attention layers but the last (None: of no layer), and without `mlps` of every MLP and the
    embedding. Convolution blocks are kept."""
    early = range(0 if last_layers is None else run.last(last_layers).start)
    others = run.columns["mlp"]
    return [*early, *range(others.start, others.start if mlps else others.stop)]


def right(run: Run, means: np.ndarray, weight: np.ndarray, bias: np.ndarray | float, sets: Sequence[Collection[int]],
          always: Collection[int] = ()) -> np.ndarray:
    """Which images are classified right [s, b] with each of several sets of components ablated, in one reading.

    `means` [c, d] replace them; the linear head is `weight` [d, classes] and `bias`; `always` are ablated in every set.
    """
    used = sorted({column for chosen in sets for column in chosen})
    member = np.array([[column in chosen for column in used] for chosen in sets], np.float32)  # [s, used]
    found = np.zeros((len(sets), len(run)), bool)
    for block, whole in representations(run, means, always):
        moved = (run.stack(block, used) - means[used]) @ weight                                # [b, used, classes]
        logits = (whole @ weight + bias)[:, None] - np.einsum("su,buk->bsk", member, moved)
        found[:, block] = (logits.argmax(axis=2) == run.labels[block, None]).T
    return found


def accuracies(run: Run, classifier: np.ndarray) -> dict:
    """Zero-shot accuracy in percent under the paper's ablations, with a classifier [d, classes].

    Returns `baseline`, `mlp_ablated`, `cls_ablated`, `mlp_and_cls_ablated` (both None without cls_attn), `conv_ablated`
    (left out without convolution blocks), and `attention_ablated`, a list whose entry k has the first k attention
    layers ablated (entry 0 none).
    """
    if not run.layers:
        raise UserError("this model has no attention heads to ablate; compute_component_ablation.py ablates its blocks")
    layers, means, conv = [run.layer(layer) for layer in run.layers], run.means(), "conv" in run.columns
    mean_attn = np.stack([means[own].sum(axis=0) for own in layers])               # [l, d]
    mean_mlp = means[run.columns["mlp"]].sum(axis=0)
    counts = dict.fromkeys(("baseline", "mlp_ablated", "cls_ablated", "mlp_and_cls_ablated"), 0)
    if conv:
        counts["conv_ablated"], mean_conv = 0, means[run.columns["conv"]].sum(axis=0)
    if run.cls_attn is not None:
        total = sum(run.cls_attn[block].sum(axis=0, dtype=np.float64) for block in blocks(len(run)))
        mean_cls = (total / len(run)).astype(np.float32).sum(axis=0)
    attention = [0] * (len(layers) + 1)
    for block in blocks(len(run)):
        labels, attn = run.labels[block], run.stack(block, run.columns["attn"])
        attn = np.stack([attn[:, own].sum(axis=1) for own in layers], axis=1)      # [b, l, d]
        whole, mlp, ablated = attn.sum(axis=1), run.whole(block, run.columns["mlp"]), {}
        if conv:
            ablated["conv_ablated"] = whole + mean_conv + mlp
            whole = whole + run.whole(block, run.columns["conv"])
        ablated |= {"baseline": whole + mlp, "mlp_ablated": whole + mean_mlp}
        if run.cls_attn is not None:
            whole = whole - run.cls_attn[block].astype(np.float32).sum(axis=1) + mean_cls
            ablated |= {"cls_ablated": whole + mlp, "mlp_and_cls_ablated": whole + mean_mlp}
        for name, representations in ablated.items():
            counts[name] += correct(representations, classifier, labels)
        representations = ablated["baseline"]
        for k in range(len(attention)):
            attention[k] += correct(representations, classifier, labels)
            if k < len(layers):
                representations = representations - attn[:, k] + mean_attn[k]
    percent = 100 / len(run)
    if run.cls_attn is None:
        counts |= {"cls_ablated": None, "mlp_and_cls_ablated": None}
    return {**{name: None if count is None else count * percent for name, count in counts.items()},
            "attention_ablated": [count * percent for count in attention]}


def single_heads(run: Run, classifier: np.ndarray, last_layers: int) -> dict[Component, dict]:
    """Zero-shot accuracy with one head mean-ablated at a time, for every head of the last layers: `accuracy` in
    percent, `lost` and `gained`, the numbers of images that are right only with or only without it, and `change` and
    `interval` of `paired_change`.

    The logits change by those of the head's term alone, so that the rest of the sum is made once.
    """
    columns = run.last(last_layers)
    average, right = run.means(columns), np.zeros((columns.stop - columns.start, 3), int)
    for block in blocks(len(run), description="single heads"):
        logits, labels = run.whole(block) @ classifier, run.labels[block]
        before = logits.argmax(axis=1) == labels
        for place, (own, constant) in enumerate(zip(run.stack(block, columns).swapaxes(0, 1), average)):
            after = (logits - (own - constant) @ classifier).argmax(axis=1) == labels
            right[place] += after.sum(), (before & ~after).sum(), (after & ~before).sum()
    return {head: {"accuracy": 100 * count / len(run), "lost": lost, "gained": gained,
                   **paired_change(lost, gained, len(run))}
            for head, (count, lost, gained) in zip(run.heads[columns], right.tolist())}


def paired_change(lost: int, gained: int, images: int) -> dict:
    """The change of accuracy, in points, where so many images are right only before or only after, and its 95%
    interval for matched pairs: Wald's, with half an image added to each of the four cells (Agresti and Min 2005)."""
    centre = (gained - lost) / (images + 2)
    spread = 1.96 * ((gained + lost + 1) / (images + 2) - centre ** 2) ** 0.5 / (images + 2) ** 0.5
    return {"change": 100 * (gained - lost) / images, "interval": [100 * (centre - spread), 100 * (centre + spread)]}


def right_without(run: Run, whole: np.ndarray, means: np.ndarray, classifier: np.ndarray,
                  columns: Sequence[int]) -> np.ndarray:
    """Which images are classified right [b] with some components replaced by their `means` [c, d], where all
    representations `whole` [b, d] are in memory: only what these components wrote is read."""
    columns, found = sorted(columns), np.zeros(len(run), bool)
    for block in blocks(len(run)):
        moved = (run.stack(block, columns) - means[columns]).sum(axis=1)
        found[block] = ((whole[block] - moved) @ classifier).argmax(axis=1) == run.labels[block]
    return found


def layers_from_the_last(components: Sequence[Component]) -> dict[Component, list[int]]:
    """The layers of a model in the order in which they are ablated cumulatively, and their columns: the embedding, then
    from the last block back its MLP, its attention, whose heads are one layer, and its convolution (MaxViT)."""
    blocks = sorted({part.layer for part in components if part.kind != "embed"}, reverse=True)
    order = [Component("embed"), *(Component(kind, block) for block in blocks for kind in KINDS)]
    columns = {layer: [column for column, part in enumerate(components)
                       if (part.kind, part.layer) == (layer.kind, layer.layer)] for layer in order}
    return {layer: own for layer, own in columns.items() if own}


def cumulative(run: Run, layers: Sequence[Sequence[int]], weight: np.ndarray, bias: np.ndarray) -> list[float]:
    """Accuracy in percent with nothing ablated, and after each of the layers, given by their columns, those before it
    included.

    `weight` [d, classes] and `bias` [classes] are the linear head's. What replaces a layer is its mean over the run.
    """
    def sums(description: str) -> Iterator[tuple[slice, np.ndarray]]:
        """What each layer wrote, [b, layers, d] in float64, in blocks of images."""
        for block in blocks(len(run), SMALL_BLOCK, description):
            terms = run.stack(block)
            yield block, np.stack([terms[:, own].sum(axis=1, dtype=np.float64) for own in layers], axis=1)

    means, right = sum(terms.sum(axis=0) for _, terms in sums("means")) / len(run), np.zeros(len(layers) + 1, int)
    for block, terms in sums("ablations"):
        left = terms.sum(axis=1)
        for step in range(len(layers) + 1):
            answers = (left.astype(np.float32) @ weight + bias).argmax(axis=1)
            right[step] += int((answers == run.labels[block]).sum())
            if step < len(layers):
                left += means[step] - terms[:, step]
    return (100 * right / len(run)).tolist()
