"""Tokens with outlying norms over a data set: how many, how large, how much the class token reads of them, and which
neurons write them (arXiv 2309.16588, 2506.08010)."""
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from utils.cli import UserError
from utils.decompose import registers, tower
from utils.decompose.decomposer import Decomposer
from utils.decompose.registers import Registers
from utils.models.model import Model
from utils.runs import files
from utils.runs.files import Place


def threshold(norms: np.ndarray, deviations: float) -> tuple[float, float, float]:
    """The norm above which a patch token is an outlier: the median of all `norms` plus so many times their median
    absolute deviation. Returns it, the median, and the deviation."""
    middle = float(np.median(norms))
    spread = float(np.median(np.abs(norms - middle)))
    return middle + deviations * spread, middle, spread


def known(model: Model) -> tower.Tower:
    """What is read of a model's image tower. Raises UserError for one that the fast path does not know."""
    if reason := tower.refusal(model.tower):
        raise UserError(f"--model {model.name}: tokens are looked at in open_clip's own vision transformers alone, and "
                        f"this one is none, since {reason}")
    return tower.read_tower(model.tower)


def measure(model: Model, read: Callable[[], Iterator[Tensor]], deviations: float, top_layer: int,
            number: int) -> dict:
    """Norms of all patch tokens by layer, and what the outlying ones are. `read` gives images in batches, twice.

    A token is an outlier if its norm after the last block but one is above the `threshold`. Returns the rule
    (`threshold`, `median`, `deviation`), `layers` (for each block the median norm, the 99.9th percentile, the share of
    tokens above the threshold, and the share of the class token's attention that the outliers get), the share of
    `outliers`, and the `number` neurons up to `top_layer` with the largest mean absolute activation there.
    """
    of_model, visual = known(model), model.tower
    found = [[layer.norms[:, 1:].cpu().numpy() for layer in registers.layers(of_model, visual, images)]
             for images in read()]
    norms = [np.concatenate(parts).ravel() for parts in zip(*found)]                       # of each layer
    rule, median, deviation = threshold(norms[max(len(norms) - 2, 0)], deviations)
    attention, sums, count, tokens = np.zeros(len(norms)), {}, 0, 0
    for images in read():
        passed = list(registers.layers(of_model, visual, images))
        outlying = passed[max(len(passed) - 2, 0)].norms[:, 1:] > rule                     # [b, n - 1]
        count, tokens = count + int(outlying.sum()), tokens + outlying.numel()
        for index, layer in enumerate(passed):
            attention[index] += float((layer.attention[:, 1:] * outlying).sum())
            if index <= top_layer and outlying.any():
                there = layer.activations[:, 1:][outlying].abs().sum(dim=0).double().cpu().numpy()
                sums[index] = sums.get(index, 0) + there
    images = sum(len(parts[0]) for parts in found)
    ranked = sorted(((value / count, layer, neuron) for layer, values in sums.items()
                     for neuron, value in enumerate(values)), reverse=True)[:number]
    return {"threshold": rule, "median": median, "deviation": deviation, "images": images,
            "outliers": count / tokens, "layers": [
                {"layer": index, "median": float(np.median(some)), "highest": float(np.percentile(some, 99.9)),
                 "outliers": float((some > rule).mean()), "attention": float(attention[index] / images)}
                for index, some in enumerate(norms)],
            "register_neurons": [{"neuron": f"{layer}.{neuron}", "activation": float(value)}
                                 for value, layer, neuron in ranked], "norms": norms}


def norm_map(model: Model, images: Tensor, some: Registers | None = None) -> np.ndarray:
    """Norms of the patches of one image [1, 3, height, width] after the last block but one, [rows, columns]; with
    registers where they are given."""
    of_model, extra = known(model), some.number if some else 0
    if some:
        of_model = registers.with_registers(of_model, model.tower, some)
    passed = list(registers.layers(of_model, model.tower, images))
    grid = tuple(side // patch for side, patch in zip(images.shape[-2:], of_model.patch_size))
    return passed[max(len(passed) - 2, 0)].norms[0, 1 + extra:].reshape(grid).cpu().numpy()


def largest(norms: list[np.ndarray], images: int) -> int:
    """Which of so many images has the largest norm after the last block but one."""
    return int(norms[max(len(norms) - 2, 0)].reshape(images, -1).max(axis=1).argmax())


def classifier_of(place: Place, model: Model) -> Tensor | None:
    """The classifier [d, classes] of the data set, where there is one."""
    if not files.term_path(place.folder, place.dataset, "classifier", place.model_name).is_file():
        return None
    about = {"weights_sha256": model.weights_hash, "pretrained": model.source, "model_settings": model.settings}
    columns = files.open_classifier(place.folder, place.dataset, place.model, about, known(model).projection.shape[1])
    return torch.from_numpy(columns).to(model.device)


def of_scores(decomposer: Decomposer, read: Callable[[], Iterator[Tensor]], classifier: Tensor, rule: float) -> dict:
    """What outlying patches add to the scores of predicted classes (less the mean over classes): the share of all
    patches' absolute contributions, that is of the heat maps, that they hold, and their mean sum, beside the mean
    score."""
    model, sums, count = decomposer.model, np.zeros(4), 0

    def direction(representation: Tensor) -> Tensor:
        return (classifier[:, (representation @ classifier).argmax(dim=1)].T - classifier.mean(dim=1))[None]

    for images in read():
        passed = list(registers.layers(known(model), model.tower, images))
        outlying = passed[max(len(passed) - 2, 0)].norms[:, 1:] > rule
        found = decomposer.tokens(images, direction)
        heat = found.patches()[0].flatten(1)
        parts = (heat.abs() * outlying, heat.abs(), heat * outlying, found.parts)
        sums, count = sums + [float(part.sum()) for part in parts], count + len(images)
    return {"share_of_heat": sums[0] / sums[1], "mean_score_of_outliers": sums[2] / count,
            "mean_score": sums[3] / count}
