"""How right names are, where everything is known of the images: three truths to hold them against, and scores.

The truths, of each attribute and component [a, c]: the share of variance that the attribute's true values explain
(utils/analysis/truth.py); how far the component moves when the attribute alone is changed in a scene (interventions,
a Sobol total effect); and the accuracy that zero-shot answers to the attribute lose when the component is ablated.
"""
import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from utils.analysis import ablation
from utils.data import captions, scenes
from utils.data.scenes import Scene
from utils.runs.run import Run

VALUES = {  # of each attribute of scenes, in the order of the texts in configs/attributes/emoji.yaml
    "object": lambda: range(len(scenes.concepts())), "color": lambda: list(scenes.COLORS),
    "count": lambda: list(captions.NUMBERS), "position": lambda: list(scenes.POSITIONS),
    "size": lambda: list(scenes.SIZES), "style": lambda: scenes.styles(), "texture": lambda: list(scenes.TEXTURES)}
BOOTSTRAP = 1000


def codes(drawn: Sequence[Scene], attributes: Sequence[str]) -> dict[str, np.ndarray]:
    """For each attribute the index [b] of each scene's value among VALUES."""
    found = {}
    for name in attributes:
        place = {value: i for i, value in enumerate(VALUES[name]())}
        found[name] = np.array([place[getattr(scene, name)] for scene in drawn])
    return found


def words() -> dict[str, list[str]]:
    """The single words by which captions name the values of attributes."""
    names = [concept["name"] for concept in scenes.concepts()]
    return {"object": [name for name in names if name.isalpha()], "color": list(scenes.COLORS),
            "count": list(captions.NUMBERS.values()),
            "position": ["top", "bottom", "left", "right", "centre", "middle"], "size": list(scenes.SIZES),
            "style": [captions.STYLE_WORDS[style] for style in scenes.styles()],
            "texture": list(scenes.TEXTURES)}


def changed(drawn: Sequence[Scene], attribute: str, seed: int) -> list[Scene]:
    """The same scenes with another value of one attribute, drawn at random."""
    rng, values = np.random.default_rng((seed, list(VALUES).index(attribute))), list(VALUES[attribute]())
    found = []
    for scene in drawn:
        others = [value for value in values if value != getattr(scene, attribute)]
        found.append(replace(scene, **{attribute: others[rng.integers(len(others))]}))
    return found


def effects(terms: np.ndarray, moved: Mapping[str, np.ndarray]) -> np.ndarray:
    """Total effects [a, c] from the terms of scenes [b, c, d] and those of the same scenes changed in each attribute:
    half the mean squared change, as a share of the variance."""
    variance = terms.var(axis=0, dtype=np.float64).sum(axis=-1)
    return np.stack([np.square(other - terms, dtype=np.float64).sum(axis=-1).mean(axis=0) / 2
                     / np.where(variance > 0, variance, np.inf) for other in moved.values()])


def falls(run: Run, texts: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray],
          columns: Sequence[int]) -> np.ndarray:
    """Percentage points [a, c] of the accuracy of answers to each attribute, by centred scores of its texts [m, d],
    that are lost with a component mean-ablated; 0 where that is within 1.96 standard errors of none. `values` are the
    true indices [b]."""
    means, found = run.means(), []
    whole = means.sum(axis=0)
    for name, own in texts.items():
        judged = copy.copy(run)
        judged.labels = values[name]
        right = ablation.right(judged, means, own.T.astype(np.float32), -(own @ whole), [(), *((c,) for c in columns)])
        lost, won = right[0] & ~right[1:], ~right[0] & right[1:]
        fall = (lost.sum(axis=1) - won.sum(axis=1)) / len(run)
        error = np.sqrt(lost.sum(axis=1) + won.sum(axis=1)) / len(run)
        found.append(np.where(fall > 1.96 * error, 100 * fall, 0.0))
    return np.stack(found)


def names(found: np.ndarray, attributes: Sequence[str]) -> list[str]:
    """The first attribute of each component of scores [a, c]; none where no score is above 0."""
    return [attributes[own.argmax()] if own.max() > 0 else "none" for own in found.T]


def kappa(truth: Sequence[str], said: Sequence[str]) -> float:
    """Cohen's kappa; 1 where both say the same one thing of all."""
    from sklearn.metrics import cohen_kappa_score

    return 1.0 if list(truth) == list(said) else float(np.nan_to_num(cohen_kappa_score(truth, said)))


def score(truth: np.ndarray, said: np.ndarray, attributes: Sequence[str], seed: int = 0) -> dict:
    """What scores [a, c] of a method are worth against true ones: kappa with a 95% interval (bootstrap over
    components), macro-F1 over attributes that are true of any, recall by attribute, and the mean cosine and Spearman
    correlation of a component's scores with the true ones."""
    from scipy.stats import spearmanr
    from sklearn.metrics import f1_score, recall_score

    true, named = names(truth, attributes), names(said, attributes)
    present = sorted(set(true))
    rng = np.random.default_rng(seed)
    draws = [kappa([true[i] for i in rows], [named[i] for i in rows])
             for rows in rng.integers(len(true), size=(BOOTSTRAP, len(true)))]
    lengths = np.linalg.norm(truth, axis=0) * np.linalg.norm(said, axis=0)
    cosines = (truth * said).sum(axis=0) / np.where(lengths > 0, lengths, np.inf)
    ranks = [spearmanr(a, b).statistic if np.ptp(b) and np.ptp(a) else 0.0 for a, b in zip(truth.T, said.T)]
    recalls = recall_score(true, named, labels=present, average=None, zero_division=0)
    return {"heads": len(true), "right": sum(a == b for a, b in zip(true, named)), "kappa": kappa(true, named),
            "low": float(np.quantile(draws, 0.025)), "high": float(np.quantile(draws, 0.975)),
            "macro_f1": float(f1_score(true, named, labels=present, average="macro", zero_division=0)),
            "recall": dict(zip(present, map(float, recalls))), "cosine": float(cosines.mean()),
            "spearman": float(np.mean(ranks))}


def sanity(true: Sequence[str], seed: int = 0) -> dict[str, dict[str, float]]:
    """Two checks of kappa itself (arXiv 2506.05774), for each attribute of two or more components: how far a perfect
    naming falls when half of the attribute's components lose their name, and when as many others get it by mistake."""
    rng, found = np.random.default_rng(seed), {}
    for name in sorted(set(true)):
        own = [i for i, other in enumerate(true) if other == name]
        others = [i for i, other in enumerate(true) if other != name]
        if len(own) < 2 or not others:
            continue
        missing, extra = list(true), list(true)
        for i in rng.choice(own, len(own) // 2, replace=False):
            missing[i] = "none"
        for i in rng.choice(others, min(len(own), len(others)), replace=False):
            extra[i] = name
        found[name] = {"missing": 1 - kappa(true, missing), "extra": 1 - kappa(true, extra)}
    return found
