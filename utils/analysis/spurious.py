"""Spurious cues: which attention heads code the place of the background rather than the class."""
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from utils.analysis import ablation, features, groups, zeroshot
from utils.cli import UserError
from utils.data import datasets
from utils.runs import files, heads, stored, terms
from utils.runs.heads import Head
from utils.runs.terms import HeadTerms, Run


def random_sets(pool: Sequence[Head], number: int, trials: int, seed: int) -> list[list[Head]]:
    """As many sets of `number` heads as there are trials, each drawn from the pool without replacement."""
    rng = np.random.default_rng(seed)
    return [[pool[i] for i in sorted(rng.choice(len(pool), number, replace=False))] for _ in range(trials)]


def right(run: Run, means: dict[str, np.ndarray], classifier: np.ndarray, sets: Sequence[Collection[Head]],
          last_layers: int | None = None, mlps: bool = True) -> np.ndarray:
    """Which images are classified right [s, b] with each of several sets of heads mean-ablated, in one reading.

    The rest is as in `ablation.representations`; the heads should be of the layers that are kept.
    """
    used = sorted({head for chosen in sets for head in chosen})
    columns = [run["attn"].heads.index(head) for head in used]
    member = np.array([[key in chosen for key in used] for chosen in sets], np.float32)  # [s, heads used]
    found = np.zeros((len(sets), len(run["labels"])), bool)
    for block, whole in ablation.representations(run, means, (), last_layers, mlps):
        moved = run["attn"][block, columns].astype(np.float32) - means["attn"][columns]              # [b, heads used, d]
        logits = (whole[:, None] - member @ moved) @ classifier                                      # [b, s, classes]
        found[:, block] = (logits.argmax(axis=2) == run["labels"][block, None]).T
    return found


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
    totals = {name: np.zeros((len(counts), *run[name].shape[1:])) for name in terms.WHAT if name in run}
    for block in stored.blocks(len(group)):
        member = (group[block] == np.arange(len(counts))[:, None]).astype(np.float32)  # [groups, b]
        for name, total in totals.items():
            total += np.tensordot(member, run[name][block].astype(np.float32, copy=False), 1)
    centred = classifier.astype(np.float64) - classifier.mean(axis=1, keepdims=True, dtype=np.float64)
    attn, *rest = ((total / counts[:, None, None] @ centred).reshape(classes, places, total.shape[1], -1)
                   for total in totals.values())
    shares = []
    for axis in (0, 1):  # averaged over classes, what is left is the place's; and the other way round
        effect = attn.mean(axis) - attn.mean((0, 1))                                                  # [groups, c, classes]
        whole = effect.sum(1) + sum((part.mean(axis) - part.mean((0, 1))).sum(1) for part in rest)    # [groups, classes]
        squares = np.square(whole).sum()
        shares.append(np.einsum("gck,gk->c", effect, whole) / squares if squares else np.zeros(attn.shape[2]))
    return shares[0], shares[1]


def select_by_effects(run: Run, classifier: np.ndarray, group: np.ndarray, names: Sequence[str], last_layers: int, mlps: bool,
                      number: int | None = None) -> tuple[list[Head], dict]:
    """The heads of the last layers that carry the place's effect rather than the class's, and how they were found.

    They are ranked by the difference of their `effect_shares`; those whose effect of the place is against the model's
    are left out. Without `number` there are as many as make the worst group best when they are ablated; the fewest where
    several are alike. Raises UserError for a group without images, and for a `number` above that of such heads.
    """
    empty = [name for name, size in groups.sizes(group, names).items() if not size]
    if empty:
        raise UserError(f"the split that heads are chosen on has no images of {empty[0]}; choose them on another with "
                        "--select_split, or name heads with --heads")
    attn = run["attn"]
    place, label = (dict(zip(attn.heads, shares))
                    for shares in effect_shares(run, classifier, group, len(names) // classifier.shape[1]))
    kept = attn.heads[attn.last(last_layers)]
    ranked = sorted((head for head in kept if place[head] > 0), key=lambda head: label[head] - place[head])
    if number and number > len(ranked):
        raise UserError(f"--number_of_heads is {number}, and only {len(ranked)} heads of the last {last_layers} layers push the "
                        "model the way the place does; choose fewer, or leave it out")
    details = {"heads": {heads.name(head): {"place_share": float(place[head]), "class_share": float(label[head])}
                         for head in kept}}
    if number is None:
        sets = [ranked[:k] for k in range(len(ranked) + 1)]
        answers = right(run, ablation.means(run), classifier, sets, last_layers, mlps)
        worst = [groups.accuracies(answer, group, names)["worst_group"] for answer in answers]
        number, details["worst_group_by_number_of_heads"] = int(np.argmax(worst)), worst
    return ranked[:number], details


def select_by_texts(run: Run, spurious: np.ndarray, core: np.ndarray, last_layers: int, number: int) -> tuple[list[Head], dict]:
    """The `number` heads of the last layers with the highest score for the `spurious` texts minus that for the `core`
    texts (embeddings [m, d]), and every head's scores."""
    attn = run["attn"]
    scores = features.feature_scores((block for _, block in terms.stacks(run, "components")), (spurious, core))
    found = dict(zip(attn.heads, scores.T))  # the components begin with the heads
    kept = attn.heads[attn.last(last_layers)]
    ranked = sorted(kept, key=lambda head: found[head][1] - found[head][0])
    return ranked[:number], {"heads": {heads.name(head): {"spurious_score": float(found[head][0]),
                                                          "core_score": float(found[head][1])} for head in kept}}


def check_options(args) -> None:
    """Refuse options of compute_use_specific_heads.py that do not go together, and give --select_split its default."""
    ways = [f"--{name}" for name in ("heads", "heads_file", "select") if getattr(args, name) is not None]
    if len(ways) > 1:
        raise UserError(f"{' and '.join(ways)} both choose heads; give one of them")
    if args.roles and ways in (["--heads"], ["--select"]):
        raise UserError(f"--roles goes with a list of heads, and not with {ways[0]}; leave one of the two out")
    for name, way in (("select_split", None), ("number_of_heads", None), ("spurious_texts", "texts"), ("core_texts", "texts")):
        if getattr(args, name) is not None and (args.select is None or way not in (None, args.select)):
            raise UserError(f"--{name} goes with --select {way or 'auto or texts'}; leave it out, or give that too")
    if args.select is None:
        return
    if args.dataset not in datasets.PLACES:
        raise UserError(f"--select needs groups, and --dataset {args.dataset} has none; {' and '.join(datasets.PLACES)} have "
                        "places; name heads with --heads")
    reported, args.select_split = args.split or "test", args.select_split or "val"
    if args.select_split == reported:
        raise UserError(f"--select_split {reported} is the split that is reported; choose heads on another, such as "
                        f"{'train' if reported == 'val' else 'val'}")
    if args.select == "texts" and not (args.spurious_texts and args.core_texts):
        raise UserError("--select texts needs --spurious_texts and --core_texts, files with one text a line")


def listed(args, model: str, attn: HeadTerms, manifest: dict | None) -> tuple[list[Head], dict]:
    """The heads of --heads or of a list, for a run with these `attn`, and where they were named.

    Raises UserError for a head that does not exist, or whose layer is ablated in any case.
    """
    if args.heads is not None:
        source, how, chosen = "--heads", {"by": "--heads"}, heads.parse(args.heads)
    else:
        source = heads.list_path(args.dataset, model) if args.heads_file is None else Path(args.heads_file)
        if args.heads_file is None and not source.is_file():
            raise UserError(f"there is no list of heads {source.name} in configs/heads; name heads with --heads or --heads_file"
                            + (", or choose them with --select auto" if args.dataset in datasets.PLACES else ""))
        roles = heads.read_list(source, model, manifest)
        named = " ".join(args.roles).split() if args.roles else list(roles)  # a settings file may name them in a line
        unknown = [role for role in named if role not in roles]
        if unknown:
            raise UserError(f"--roles {unknown[0]}: {source} has {', '.join(roles)}")
        how, chosen = {"by": source.name, "roles": named}, list(dict.fromkeys(head for role in named for head in roles[role]))
    heads.check(chosen, attn.heads, str(source))
    for head in chosen:
        layers = len(attn.layers) - attn.layers.index(head[0])
        if layers > args.keep_last_layers:
            raise UserError(f"{source}: head {heads.name(head)} is in a layer that is ablated in any case; leave it out, or "
                            f"keep its layer with --keep_last_layers {layers}")
    return chosen, how


def selected(args, model: str, manifest: dict | None, classifier: np.ndarray) -> tuple[list[Head], dict]:
    """The heads that --select chooses on the arrays of --select_split, and how. `manifest` is of the run that is reported.

    Raises UserError where these arrays are missing or of other weights, and for more heads than there are.
    """
    run, other = files.open_run(args.input_dir, args.dataset, args.model, ("attn", "mlp"), args.select_split)
    path = files.term_path(args.input_dir, files.run_name(args.dataset, args.select_split), "attn", model)
    files.same_weights(path, other, manifest, files.command(args.input_dir, args.dataset, args.model, args.select_split))
    number = 10 if args.select == "texts" and args.number_of_heads is None else args.number_of_heads
    most = len(run["attn"].heads[run["attn"].last(args.keep_last_layers)])
    if number is not None and not 1 <= number <= most:
        raise UserError(f"--number_of_heads is {number}; choose from 1 to {most}, the heads of the last {args.keep_last_layers} "
                        "layers")
    if args.select == "auto":
        group = groups.of_images(args.dataset, args.data_path, args.select_split, run["labels"], other)
        chosen, how = select_by_effects(run, classifier, group, groups.names(args.dataset), args.keep_last_layers,
                                        args.keep_mlps, number)
    else:
        texts = [zeroshot.read_texts(Path(file)) for file in (args.spurious_texts, args.core_texts)]
        embeddings = features.embed(args, manifest, texts, len(classifier))
        chosen, how = select_by_texts(run, *embeddings, args.keep_last_layers, number)
    return chosen, {"by": f"--select {args.select}", "split": args.select_split, **how}
