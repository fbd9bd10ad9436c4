"""TextSpan: the texts that span what an attention head writes (paper section 4, algorithm 1).

Only second moments of a head's terms are needed: the variance of X t over images is t' C t, with C
the covariance of X. All of it happens in the coordinates of the head's leading singular vectors.
"""
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from utils.analysis.zeroshot import correct
from utils.runs.components import Component
from utils.runs.files import blocks
from utils.runs.run import Run

RANDOM_HEADS = 100  # against which a head's texts are compared
EXHAUSTED = 1e-6  # what is left of a text's direction, relative to its length, below which nothing remains to pick


@dataclass
class Span:
    """A head's texts and what they explain."""
    picks: list[int]        # indices into the pool, in the order they were picked
    shares: list[float]     # of the head's variance, explained by each pick beyond those before
    rank: int               # number of singular directions used
    variance: float         # of the head's terms over images, summed over the joint space
    mean: Tensor            # [d]
    directions: Tensor      # [p, d], orthonormal: the picked directions, each without those before
    spectrum: Tensor        # [r], descending: the variances along the head's principal directions


Spans = dict[Component, Span]


def text_span(mean: Tensor, second: Tensor, texts: Tensor, texts_per_head: int, rank: int, eps: float) -> Span:
    """Pick the texts of one head.

    mean [d] and second [d, d] are the head's moments, texts [m, d] the pool's embeddings, float64.
    `rank` caps the singular directions; those whose singular value is at most 16 x `eps` (of the type
    the terms are stored in) of the largest are rounding noise and dropped. Fewer than
    `texts_per_head` texts are returned where their directions leave nothing to explain.
    """
    values, vectors = torch.linalg.eigh(second)  # ascending; singular values are the roots
    singular = values.clamp(min=0).sqrt().flip(0)[:rank]
    kept = int((singular > 16 * eps * singular[0]).sum())
    basis = vectors.flip(1)[:, :kept]                        # [d, r]
    pool = texts @ basis                                     # [m, r]
    centred = second - mean.outer(mean)
    covariance = basis.T @ centred @ basis                   # [r, r]
    total = centred.trace().item()
    spectrum = torch.linalg.eigvalsh(covariance).clamp(min=0).flip(0)
    variances = ((pool @ covariance) * pool).sum(dim=1)      # [m]: t' C t
    picks: list[int] = []
    shares: list[float] = []
    directions = pool.new_zeros(0, kept)
    while len(picks) < min(texts_per_head, kept):
        pick = int(variances.argmax())
        left = pool[pick]
        for _ in range(2):  # twice is enough for orthogonality to rounding
            left = left - directions.T @ (directions @ left)
        if total <= 0 or left.norm() <= EXHAUSTED * pool[pick].norm():
            break
        q = left / left.norm()
        image = covariance @ q
        removed = (q @ image).item()
        along, across = pool @ q, pool @ image               # the only work that grows with the pool: 2 m r
        variances += removed * along ** 2 - 2 * along * across
        covariance = covariance - q.outer(image) - image.outer(q) + removed * q.outer(q)
        directions = torch.cat([directions, q[None]])
        picks.append(pick)
        shares.append(removed / total)
    return Span(picks, shares, kept, total, mean, directions @ basis.T, spectrum)


def span_heads(run: Run, pools: dict[str, np.ndarray], last_layers: int, texts_per_head: int,
               rank: int) -> dict[str, Spans]:
    """TextSpan of every head of the last layers, for each pool of embeddings [m, d] by its name.

    Returns for each pool the spans by head, in order. Terms are read once for all pools; one layer's moments are in
    memory at a time.
    """
    texts = {name: torch.tensor(pool, dtype=torch.float64) for name, pool in pools.items()}
    spans: dict[str, Spans] = {name: {} for name in pools}
    for layer in tqdm(run.layers[len(run.layers) - last_layers:], desc="layers", unit="layer"):
        columns = run.layer(layer)
        means, seconds = run.moments(columns)
        for name in pools:
            for head, mean, second in zip(run.heads[columns], means, seconds):
                spans[name][head] = text_span(mean, second, texts[name], texts_per_head, rank, np.finfo(run.dtype).eps)
    return spans


def accuracies(run: Run, classifier: np.ndarray, spans: dict[str, Spans],
               numbers: list[int]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Zero-shot accuracies in percent: without texts, and for each pool with the heads of the last layers replaced by
    what their first texts span, for each of the `numbers` of texts (section 4.2).

    All earlier heads are mean-ablated, MLPs and convolution blocks kept. Without texts: `whole_model`, and
    `last_layers`, where earlier heads are ablated and the last ones as they are, which is what texts come to when they
    span all that their heads write. `classifier` is [d, classes]; `spans` are those of `span_heads`, and `numbers`
    ascend.
    """
    first = len(run.heads) - len(next(iter(spans.values())))
    earlier = run.means(slice(first)).sum(axis=0)  # [d]
    without, right = {"whole_model": 0, "last_layers": 0}, {name: [0] * len(numbers) for name in spans}
    for block in blocks(len(run), description="accuracies"):
        labels = run.labels[block]
        rest, attn = run.rest(block), run.stack(block, run.columns["attn"])  # [b, d], [b, c, d]
        without["whole_model"] += correct(rest + attn.sum(axis=1), classifier, labels)
        without["last_layers"] += correct(rest + earlier + attn[:, first:].sum(axis=1), classifier, labels)
        for name, heads in spans.items():
            representations = torch.from_numpy(rest + earlier)
            # What texts add from one number to the next, over all heads: each text is applied once.
            added = torch.zeros(len(numbers), *rest.shape)
            for own, span in zip(torch.from_numpy(attn[:, first:]).unbind(1), heads.values()):
                mean, directions = span.mean.float(), span.directions.float()
                along = (own - mean) @ directions.T  # [b, texts]
                representations += mean
                for part, (start, stop) in zip(added, pairwise([0, *numbers])):
                    part += along[:, start:stop] @ directions[start:stop]
            for i, part in enumerate(added):
                representations += part
                right[name][i] += correct(representations.numpy(), classifier, labels)
    percent = 100 / len(run)
    return ({name: count * percent for name, count in without.items()},
            {name: [count * percent for count in counts] for name, counts in right.items()})


def sweep(run: Run, classifier: np.ndarray, pools: dict[str, np.ndarray], last_layers: int,
          numbers: list[int], rank: int) -> tuple[dict[str, float], list[dict]]:
    """The `accuracies` without texts, and a row for each pool [m, d] and each of the ascending `numbers` of texts.

    A row holds pool, texts_per_head, accuracy (percent), number_of_texts (distinct ones, of all heads) and explained
    (the share of a head's variance that its texts explain, averaged over heads).
    """
    spans = span_heads(run, pools, last_layers, numbers[-1], rank)
    without, found = accuracies(run, classifier, spans, numbers)
    rows = []
    for name, heads in spans.items():
        for number, accuracy in zip(numbers, found[name]):
            picks = [span.picks[:number] for span in heads.values()]  # greedy: fewer texts are a beginning of more
            explained = sum(sum(span.shares[:number]) for span in heads.values()) / len(heads)
            rows.append({"pool": name, "texts_per_head": number, "accuracy": accuracy,
                         "number_of_texts": len(set().union(*picks)), "explained": explained})
    return without, rows


def similarity(embeddings: Tensor) -> float:
    """Mean cosine similarity between different ones of the unit embeddings [p, d]."""
    number = len(embeddings)
    return ((embeddings.sum(dim=0).square().sum() - number) / (number * (number - 1))).item()


def consistency(pool: np.ndarray, spans: Spans, seed: int = 0) -> dict[Component, dict | None]:
    """How much alike the texts of each head are: whether it has one role.

    `pool` [m, d] holds the texts' unit embeddings. Random sets of texts would not do for a comparison, since TextSpan
    picks texts that differ. So it is also run on random heads, which write as much as the model's, but in directions
    drawn at random. Returns for each head `similarity`, the mean cosine between its texts, `random`, the average of
    that over RANDOM_HEADS random heads with as many texts, and `percentile`, the percentage of those whose texts are
    less alike. None for a head with fewer than two texts.
    """
    texts, generator = torch.tensor(pool, dtype=torch.float64), torch.Generator().manual_seed(seed)
    spectra, most = [span.spectrum for span in spans.values()], max(len(span.picks) for span in spans.values())
    drawn = []
    for trial in tqdm(range(RANDOM_HEADS), desc="random heads", unit="head", delay=3):
        values = spectra[trial % len(spectra)]
        basis = torch.linalg.qr(torch.randn(texts.shape[1], len(values), generator=generator, dtype=torch.float64)).Q
        covariance = basis * values @ basis.T
        drawn.append(text_span(basis.new_zeros(len(basis)), covariance, texts, most, len(values), 0).picks)
    found = dict.fromkeys(spans)
    for key, span in spans.items():
        number = len(span.picks)
        if number >= 2:
            own = similarity(texts[span.picks])
            random = [similarity(texts[picks[:number]]) for picks in drawn if len(picks) >= number]
            found[key] = {"similarity": own, "random": float(np.mean(random)),
                          "percentile": 100 * float(np.mean([other < own for other in random]))}
    return found
