"""Second-order effects of neurons over a data set (arXiv 2406.04341): their mean and first direction, which images and
texts they are about, and what the model loses without them.

phi_n is what neuron n adds to an image's representation through later heads (utils/decompose/neurons.py). Over images
it is about <phi_n - mean, r_n> r_n + mean: one number an image.
"""
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from utils.decompose.neurons import Directions, Neurons

LARGEST = 100  # images, of the largest norm, by which a neuron's direction and what is significant are known


@dataclass
class Fit:
    """What the images of one split say of a layer's neurons. J later heads, N neurons."""
    coefficients: Tensor  # [J, N + 1]: mean c, of which the last is the bias's
    mean: Tensor          # [N, d]: mean phi
    direction: Tensor     # [N, d]: r, unit length
    threshold: Tensor     # [N]: ||phi - mean|| of the image that has the 100th largest; what is above is significant
    heads: Tensor         # [N, J]: mean squared length of what of phi - mean goes through each later head
    direct_mean: Tensor   # [d]: mean of what the layer adds through the class token itself
    activations: Tensor   # [n, N]: mean activations

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it, by name."""
        return {field.name: getattr(self, field.name).cpu().numpy() for field in fields(self)}


def fit(neurons: Neurons, directions: dict[int, Directions], read: Callable[[], Iterator[Tensor]]) -> dict[int, Fit]:
    """Fit the neurons of every layer to images, which `read` gives in batches, twice: once for the means, and once for
    the images of the largest norm. What is kept an image and head is one number a neuron."""
    count, sums = 0, {}
    for images in read():
        effects = neurons.effects(images)
        for layer, c in effects.coefficients.items():
            parts = (c.sum(dim=0), effects.direct[:, layer].sum(dim=0), effects.activations[layer].sum(dim=0))
            sums[layer] = tuple(a + b.double() for a, b in zip(sums.get(layer, (0, 0, 0)), parts))
        count += len(images)
    means = {layer: [(total / count).float() for total in parts] for layer, parts in sums.items()}
    grams = {layer: some.gram()[:-1] for layer, some in directions.items()}
    kept: dict[int, tuple[Tensor, Tensor]] = {}  # norms [images, N] and c [images, J, N]
    squares = dict.fromkeys(neurons.layers, 0)
    for images in read():
        for layer, c in neurons.effects(images).coefficients.items():
            c = (c - means[layer][0])[..., :-1]
            norms = lengths(c, grams[layer])
            squares[layer] = squares[layer] + c.square().sum(dim=0).double()
            if layer in kept:
                norms, c = torch.cat([kept[layer][0], norms]), torch.cat([kept[layer][1], c])
            norms, order = norms.topk(min(LARGEST, len(norms)), dim=0)
            kept[layer] = norms, c.gather(0, order[:, None].expand(-1, c.shape[1], -1))
    found = {}
    for layer in neurons.layers:
        mean, direct, activations = means[layer]
        norms, c = kept[layer]
        power = grams[layer].diagonal(dim1=1, dim2=2) * (squares[layer] / count).float().T
        found[layer] = Fit(mean, torch.einsum("jn,njd->nd", mean[:, :-1], directions[layer].neurons(slice(None))[:-1]),
                           first_directions(c, directions[layer]), norms[-1], power, direct, activations)
    return found


def lengths(c: Tensor, gram: Tensor) -> Tensor:
    """||phi - mean|| [b, N] of centred coefficients [b, J, N], with the Gram matrices [N, J, J] of their directions."""
    return torch.einsum("bjn,njk,bkn->bn", c, gram, c).clamp(min=0).sqrt()


def first_directions(c: Tensor, directions: Directions, block: int = 128) -> Tensor:
    """The first right singular vector [N, d] of phi - mean over images with coefficients [images, J, N], of unit
    length; its sign is such that the images' products with it have a positive sum."""
    found = []
    for start in range(0, c.shape[2], block):
        part = slice(start, min(start + block, c.shape[2]))
        phi = torch.einsum("ijn,njd->nid", c[..., part], directions.neurons(part))
        first = torch.linalg.eigh((phi @ phi.transpose(1, 2)).double())[1][..., -1].to(phi.dtype)   # [n, images]
        right = torch.nn.functional.normalize(torch.einsum("ni,nid->nd", first, phi), dim=-1)
        sign = torch.einsum("nid,nd->n", phi, right).sign()
        found.append(right * torch.where(sign == 0, 1, sign)[:, None])
    return torch.cat(found)


@dataclass
class Prepared:
    """What is made once of a layer's fit, for all batches."""
    directions: Directions
    fit: Fit
    gram: Tensor     # [N, J, J]
    along: Tensor    # [J, N]: products of directions with r

    @classmethod
    def of(cls, directions: Directions, fitted: Fit) -> "Prepared":
        """From a layer's directions and its fit."""
        starts = range(0, len(fitted.direction), 256)
        parts = [list(range(start, min(start + 256, len(fitted.direction)))) for start in starts]
        along = [torch.einsum("njd,nd->jn", directions.neurons(part), fitted.direction[part]) for part in parts]
        return cls(directions, fitted, directions.gram()[:-1], torch.cat(along, dim=1))

    def arrays(self, c: Tensor, direct: Tensor, picked: Sequence[int] = ()) -> dict[str, Tensor]:
        """Of a batch with coefficients [b, J, N + 1], what is stored: scores <phi - mean, r> and norms ||phi - mean||
        [b, N]; sum, significant and picked [b, d], the sums of phi - mean over all neurons, over those whose norm is at
        least their threshold, and over some; and direct [b, d], less its mean."""
        own = (c - self.fit.coefficients)[..., :-1]
        norms = lengths(own, self.gram)
        chosen = torch.zeros_like(norms[0])
        chosen[list(picked)] = 1

        def total(mask: Tensor | float) -> Tensor:
            return self.directions.total(torch.cat([own * mask, torch.zeros_like(c[..., :1])], dim=-1))

        return {"scores": (own * self.along).sum(dim=1), "norms": norms, "sum": total(1.0),
                "significant": total((norms >= self.fit.threshold)[:, None].to(c.dtype)), "picked": total(chosen),
                "direct": direct - self.fit.direct_mean}


def sparse_texts(directions: np.ndarray, pool: np.ndarray, number: int) -> np.ndarray:
    """Directions [N, d] as signed sums of `number` texts each, by orthogonal matching pursuit: coefficients [N, m] of
    the texts of the pool [m, d], centred and of unit length."""
    from sklearn.linear_model import orthogonal_mp

    found = orthogonal_mp(atoms(pool).T, directions.T.astype(np.float64), n_nonzero_coefs=min(number, *pool.shape),
                          precompute=True)
    return found.reshape(len(pool), -1).T


def atoms(pool: np.ndarray) -> np.ndarray:
    """Texts [m, d], centred over the pool, each then of unit length."""
    centred = pool.astype(np.float64) - pool.mean(axis=0, dtype=np.float64)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


def accuracies(arrays: dict[str, np.ndarray], representation: np.ndarray, direction: np.ndarray, labels: np.ndarray,
               classifier: np.ndarray, pool: np.ndarray, numbers: Sequence[int]) -> dict:
    """Zero-shot accuracy in percent with a layer's second-order effects as they are, mean-ablated, with the significant
    ones alone, with their first components alone, and with these as sums of so many texts; and with the layer's direct
    effect mean-ablated."""
    def percent(change: np.ndarray | float) -> float:
        return 100 * float((((representation + change) @ classifier).argmax(axis=1) == labels).mean())

    scores, whole = arrays["scores"], arrays["sum"]
    return {"baseline": percent(0), "ablated": percent(-whole), "significant": percent(arrays["significant"] - whole),
            "first_component": percent(scores @ direction - whole),
            "texts": {number: percent(scores @ (sparse_texts(direction, pool, number) @ atoms(pool)) - whole)
                      for number in numbers}, "direct_ablated": percent(-arrays["direct"])}


def shares(scores: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """The share [N] of each neuron's variance that its first component holds."""
    whole = np.square(norms, dtype=np.float64).sum(axis=0)
    return np.square(scores, dtype=np.float64).sum(axis=0) / np.where(whole > 0, whole, 1)


def rank_correlations(scores: np.ndarray, norms: np.ndarray, threshold: np.ndarray, representation: np.ndarray,
                      texts: np.ndarray, least: int = 20) -> np.ndarray:
    """For each neuron Spearman's correlation [N], over the images on which it is significant, of its scores with what
    its texts [N, d] say of their representations; NaN where there are fewer than `least` such images."""
    from scipy.stats import spearmanr

    found = np.full(scores.shape[1], np.nan)
    for neuron in range(len(found)):
        own = norms[:, neuron] >= threshold[neuron]
        if own.sum() >= least:
            found[neuron] = spearmanr(scores[own, neuron], representation[own] @ texts[neuron]).statistic
    return found


def describe(layer: int, fitted: dict[str, np.ndarray], arrays: dict[str, np.ndarray], representation: np.ndarray,
             heads: Sequence, texts: list[str], pool: np.ndarray, number: int, shown: int) -> list[dict]:
    """The `shown` neurons of a layer with the largest mean second-order effect, by name (layer.neuron): mean norm,
    share of the first component, `number` texts with signs, how well these predict the scores (`rank_correlations`;
    None where it is not known), the heads that most of it goes through, and the images of the highest and of the lowest
    scores, by their place."""
    norms = arrays["norms"].mean(axis=0)
    order = np.argsort(-norms)[:shown]
    coefficients, first = sparse_texts(fitted["direction"][order], pool, number), shares(arrays["scores"],
                                                                                         arrays["norms"])
    predicted = rank_correlations(arrays["scores"][:, order], arrays["norms"][:, order], fitted["threshold"][order],
                                  representation, coefficients @ atoms(pool))
    found = []
    for neuron, row, correlation in zip(order, coefficients, predicted):
        ranked, power = np.argsort(arrays["scores"][:, neuron]), fitted["heads"][neuron]
        found.append({
            "neuron": f"{layer}.{neuron}", "mean_norm": float(norms[neuron]), "first_component": float(first[neuron]),
            "texts": [{"text": texts[i], "weight": float(row[i])} for i in np.argsort(-np.abs(row)) if row[i] != 0],
            "rank_correlation": None if np.isnan(correlation) else float(correlation),
            "heads": [{"head": str(heads[j]), "share": float(power[j] / power.sum())}
                      for j in np.argsort(-power)[:3]],
            "highest": ranked[::-1][:10].tolist(), "lowest": ranked[:10].tolist()})
    return found


def feeding(fits: dict[int, Fit], heads: dict[int, list], wanted: Sequence, number: int) -> dict[int, list[int]]:
    """The `number` neurons that feed some heads most, by layer: those of which most goes through these, by the mean
    squared length."""
    ranked = []
    for layer, fitted in fits.items():
        columns = [j for j, head in enumerate(heads[layer]) if head in wanted]
        power = fitted.heads[:, columns].sum(dim=1).cpu().numpy()
        ranked += [(float(value), layer, neuron) for neuron, value in enumerate(power)]
    found: dict[int, list[int]] = {layer: [] for layer in fits}
    for _, layer, neuron in sorted(ranked, reverse=True)[:number]:
        found[layer].append(neuron)
    return found


def indirect(neurons: Neurons, fits: dict[int, Fit], read: Callable[[], Iterator[tuple[Tensor, np.ndarray]]],
             classifier: np.ndarray, singles: Sequence[tuple[int, int]]) -> dict:
    """The indirect effect: activations replaced by their means, and a full pass on from there. Zero-shot accuracy in
    percent without anything and without each layer; for single neurons also the mean length of what changes."""
    sets = [(layer, list(range(neurons.count(layer))), fitted.activations) for layer, fitted in fits.items()]
    sets += [(layer, [neuron], fits[layer].activations) for layer, neuron in singles]
    right, moved, count = np.zeros(len(sets) + 1), np.zeros(len(sets)), 0
    for images, labels in read():
        own, changed = neurons.model.embed_images(images).clone(), neurons.without(images, sets)
        answers = torch.cat([own[None], changed]).cpu().numpy() @ classifier
        right += (answers.argmax(axis=2) == labels).sum(axis=1)
        moved += (changed - own).norm(dim=-1).sum(dim=1).cpu().numpy()
        count += len(labels)
    right = 100 * right / count
    layers = len(fits)
    return {"images": count, "baseline": right[0],
            "layers": {str(layer): value for layer, value in zip(fits, right[1:layers + 1])},
            "neurons": [{"neuron": f"{layer}.{neuron}", "accuracy": accuracy, "mean_change": change}
                        for (layer, neuron), accuracy, change in zip(singles, right[layers + 1:],
                                                                     moved[layers:] / count)]}
