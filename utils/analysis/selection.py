"""Which components go with a spurious cue, such as the place of the background, rather than with the class: by what
they do to the logits, by their scores for texts of both, or by a list. Components are meant by their columns in a run.
"""
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from utils.analysis import ablation, groups
from utils.cli import UserError
from utils.data import datasets
from utils.runs.components import Component, check_heads, head_list_path, parse_heads, read_head_list
from utils.runs.files import blocks
from utils.runs.run import Run


def check_split(select_split: str, split: str | None) -> None:
    """Refuse to choose components on the split that is reported."""
    reported = split or "test"
    if select_split == reported:
        raise UserError(f"--select_split {reported} is the split that is reported; choose components on another, such "
                        f"as {'train' if reported == 'val' else 'val'}")


def random_sets(pool: Sequence[int], number: int, trials: int, seed: int) -> list[list[int]]:
    """As many sets of `number` components as there are trials, each drawn from the pool without replacement."""
    rng = np.random.default_rng(seed)
    return [[pool[i] for i in sorted(rng.choice(len(pool), number, replace=False))] for _ in range(trials)]


def effect_shares(run: Run, classifier: np.ndarray, group: np.ndarray, places: int) -> tuple[np.ndarray, np.ndarray]:
    """Each head's share of the model's place effect [c], and of its class effect [c].

    Logits are centred over classes and averaged within each group; groups count alike, whatever their size. The effect
    of a place is the mean of its groups minus that of all, a vector of logits, likewise that of a class. A component's
    share is the inner product of its effects with those of the whole model, over their sum of squares: all components
    together have 1, and what works against the model's effect has less than 0. Without an effect, shares are 0.
    Each group must have images.
    """
    classes = classifier.shape[1]
    counts = np.bincount(group, minlength=classes * places)
    total = 0
    for block in blocks(len(group)):
        member = (group[block] == np.arange(len(counts))[:, None]).astype(np.float32)         # [groups, b]
        total = total + np.tensordot(member, run.stack(block), 1).astype(np.float64)          # [groups, c, d]
    centred = classifier.astype(np.float64) - classifier.mean(axis=1, keepdims=True, dtype=np.float64)
    logits = (total / counts[:, None, None] @ centred).reshape(classes, places, total.shape[1], -1)
    shares = []
    for axis in (0, 1):  # averaged over classes, what is left is the place's; and the other way round
        effect = logits.mean(axis) - logits.mean((0, 1))                                      # [groups, c, classes]
        whole = sum(effect[:, own].sum(1) for own in run.columns.values())                    # [groups, classes]
        squares = np.square(whole).sum()
        heads = effect[:, run.columns["attn"]]
        shares.append(np.einsum("gck,gk->c", heads, whole) / squares if squares else np.zeros(heads.shape[1]))
    return shares[0], shares[1]


def by_effects(run: Run, classifier: np.ndarray, group: np.ndarray, names: Sequence[str], last_layers: int, mlps: bool,
               number: int | None = None) -> tuple[list[int], dict]:
    """The heads of the last layers that carry the place's effect rather than the class's, and how they were found.

    They are ranked by the difference of their `effect_shares`; those whose effect of the place is against the model's
    are left out. Without `number` there are as many as make the worst group best when they are ablated with all that
    `ablation.all_but` names; the fewest where several are alike. Raises UserError for a group without images, and for a
    `number` above that of such heads.
    """
    empty = [name for name, size in groups.sizes(group, names).items() if not size]
    if empty:
        raise UserError(f"the split that heads are chosen on has no images of {empty[0]}; choose them on another with "
                        "--select_split, or name heads with --heads")
    place, label = effect_shares(run, classifier, group, len(names) // classifier.shape[1])
    kept = range(len(run.heads))[run.last(last_layers)]
    ranked = sorted((head for head in kept if place[head] > 0), key=lambda head: label[head] - place[head])
    if number and number > len(ranked):
        raise UserError(f"--number_of_heads is {number}, and only {len(ranked)} heads of the last {last_layers} layers "
                        "push the model the way the place does; choose fewer, or leave it out")
    details = {"heads": {str(run.heads[head]): {"place_share": float(place[head]), "class_share": float(label[head])}
                         for head in kept}}
    if number is None:
        sets, always = [ranked[:k] for k in range(len(ranked) + 1)], ablation.all_but(run, last_layers, mlps)
        answers = ablation.right(run, run.means(), classifier, 0, sets, always)
        worst = [groups.accuracies(answer, group, names)["worst_group"] for answer in answers]
        number, details["worst_group_by_number_of_heads"] = int(np.argmax(worst)), worst
    return ranked[:number], details


def by_scores(scores: np.ndarray, pool: Sequence[int]) -> list[int]:
    """The components of a pool, the one with the highest score for the spurious texts minus that for the core texts
    first; `scores` [2, c] are those of the two."""
    return sorted(pool, key=lambda column: scores[1][column] - scores[0][column])


def by_texts(run: Run, scores: np.ndarray, pool: Sequence[int], number: int) -> tuple[list[int], dict]:
    """The first `number` of `by_scores`, of heads, and how they were found."""
    spurious, core = scores.tolist()
    details = {str(run.heads[head]): {"spurious_score": spurious[head], "core_score": core[head]} for head in pool}
    return by_scores(scores, pool)[:number], {"heads": details}


def by_roles(run: Run, spurious: Sequence[str], number: int | None = None) -> list[int]:
    """The first `number` (None: all) of the heads, such as 5.4, whose roles are spurious for a task. Raises UserError
    where there are none."""
    if not spurious:
        raise UserError("the language model calls no role spurious for --task; name heads with --heads")
    return [run.heads.index(Component.parse(head)) for head in spurious][:number]


def by_names(run: Run, names: Mapping[Component, dict], attributes: Sequence[str], last_layers: int,
             number: int | None = None) -> tuple[list[int], dict]:
    """The heads of the last layers that go with some attributes before all others, those with the largest share first,
    and how they were found; `names` are those of utils/analysis/names/naming.py.

    Raises UserError for an attribute that was not asked after, and where there are no or too few such heads.
    """
    known = list(next(iter(names.values()))["shares"])
    for name in attributes:
        if name not in known:
            raise UserError(f"--attribute {name}: heads were named after {', '.join(known)}")
    kept = run.heads[run.last(last_layers)]
    shares = {head: names[head]["shares"][names[head]["attribute"]] for head in kept
              if names[head]["name"] != "none" and names[head]["attribute"] in attributes}
    if len(shares) < (number or 1):
        raise UserError(f"{len(shares)} heads of the last {last_layers} layers go with {' or '.join(attributes)}; "
                        "choose other attributes, or fewer heads by --number_of_heads")
    ranked = sorted(shares, key=lambda head: -shares[head])[:number]
    details = {str(head): {"name": names[head]["name"], "share": names[head]["shares"][names[head]["attribute"]]}
               for head in kept}
    return [run.heads.index(head) for head in ranked], {"attributes": list(attributes), "heads": details}


def by_shares(run: Run, shares: np.ndarray, names: Sequence[str], attributes: Sequence[str], pool: Sequence[int],
              number: int) -> tuple[list[int], dict]:
    """The `number` heads of a pool whose share for some attributes is the largest, and how they were found; `shares`
    [a, c] are those of all attributes, by `names`, for the pool's heads. Raises UserError for another attribute."""
    for name in attributes:
        if name not in names:
            raise UserError(f"--attribute {name}: --attributes has {', '.join(names)}")
    own = shares[[names.index(name) for name in attributes]].sum(axis=0) / np.maximum(shares.sum(axis=0), 1e-30)
    details = {str(run.heads[column]): {"share": float(share)} for column, share in zip(pool, own)}
    return ([pool[i] for i in np.argsort(-own, kind="stable")[:number]],
            {"attributes": list(attributes), "heads": details})


def listed(run: Run, heads: str | None, file: str | None, roles: Sequence[str] | None,
           last_layers: int) -> tuple[list[int], dict]:
    """The heads of a text such as `22.12,23.1`, or else of some roles (None: all) of a list in a file (None: that of
    data set and model), and where they were named.

    Raises UserError for a head that does not exist, or whose layer is not among the `last_layers`.
    """
    if heads is not None:
        source, how, chosen = "--heads", {"by": "--heads"}, parse_heads(heads)
    else:
        dataset, model = run.place.dataset, run.place.model_name
        source = head_list_path(dataset, model) if file is None else Path(file)
        if file is None and not source.is_file():
            raise UserError(f"there is no list of heads {source.name} in configs/heads; name heads with --heads or "
                            "--heads_file"
                            + (", or choose them with --select auto" if dataset in datasets.PLACES else ""))
        known = read_head_list(source, model, run.manifest)
        roles = list(known) if roles is None else roles
        unknown = [role for role in roles if role not in known]
        if unknown:
            raise UserError(f"--roles {unknown[0]}: {source} has {', '.join(known)}")
        chosen = list(dict.fromkeys(head for role in roles for head in known[role]))
        how = {"by": source.name, "roles": roles}
    check_heads(chosen, run.heads, str(source))
    for head in chosen:
        layers = len(run.layers) - run.layers.index(head.layer)
        if layers > last_layers:
            raise UserError(f"{source}: head {head} is in a layer that is ablated in any case; leave it out, or keep "
                            f"its layer with --keep_last_layers {layers}")
    return [run.heads.index(head) for head in chosen], how
