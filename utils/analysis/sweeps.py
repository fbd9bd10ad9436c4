"""TextSpan's accuracy for several numbers of texts a head and several pools at once (paper section 4.2)."""
from itertools import pairwise

import numpy as np
import torch

from utils.analysis import textspan
from utils.analysis.textspan import Span
from utils.analysis.zeroshot import correct
from utils.runs.components import Component
from utils.runs.files import blocks
from utils.runs.run import Run

Spans = dict[Component, Span]


def accuracies(run: Run, classifier: np.ndarray, spans: dict[str, Spans],
               numbers: list[int]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Zero-shot accuracies in percent: without texts, and for each pool `textspan.accuracy` of the first `numbers`
    texts.

    Without texts: `whole_model`, and `last_layers`, where only the heads of earlier layers are mean-ablated, which is
    what texts come to when they span all that their heads write. `classifier` is [d, classes]; `spans` are in the order
    of the run's heads, and `numbers` ascend. A reconstruction of more texts is that of fewer and what the further ones
    add, so that each text is applied once.
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
            added = torch.zeros(len(numbers), *rest.shape)  # by the texts from one number to the next, over all heads
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
    spans = textspan.span_pools(run, pools, last_layers, numbers[-1], rank)
    without, found = accuracies(run, classifier, spans, numbers)
    rows = []
    for name, heads in spans.items():
        for number, accuracy in zip(numbers, found[name]):
            fewer = [span.first(number) for span in heads.values()]
            rows.append({"pool": name, "texts_per_head": number, "accuracy": accuracy,
                         "number_of_texts": len({pick for span in fewer for pick in span.picks}),
                         "explained": sum(sum(span.shares) for span in fewer) / len(fewer)})
    return without, rows
