"""Repair of a classifier by scores: the components that go with a spurious cue rather than with the class are mean-ablated
(arXiv 2406.01583, section 5). A classifier is its weights [d, classes] and bias [classes].
"""
from collections.abc import Collection, Sequence

import numpy as np

from utils.cli import UserError
from utils.data import datasets
from utils.models.names import TIMM, file_name
from utils.runs import files, terms
from utils.runs.terms import Component, Run

Classifier = tuple[np.ndarray, np.ndarray]


def check_options(args) -> None:
    """Refuse options of compute_component_repair.py that do not go together."""
    if args.dataset not in datasets.PLACES:
        raise UserError(f"--dataset {args.dataset} has no groups to repair; {' and '.join(datasets.PLACES)} have places")
    if args.model.startswith(TIMM):
        raise UserError(f"--model {args.model} has no text side to score components by; map it to a CLIP with "
                        "compute_alignment.py and give the mapped model, MODEL-as-CLIP")
    reported = args.split or "test"
    if args.select_split == reported:
        raise UserError(f"--select_split {reported} is the split that is reported; choose components on another, such as "
                        f"{'train' if reported == 'val' else 'val'}")
    if args.source_model and not (args.classifier == "probe" and "-as-" in args.model):
        raise UserError("--source_model goes with --classifier probe and a mapped model (MODEL-as-CLIP); leave it out")


def open_selection(args, manifest: dict, components: Sequence[Component]) -> Run:
    """The run of --select_split, of the same model as the run that is reported, of which are `manifest` and `components`.

    Raises UserError where its arrays are missing, or of other weights or components.
    """
    run, own, names = files.open_terms(args.input_dir, args.dataset, args.model, args.select_split)
    name = files.run_name(args.dataset, args.select_split)
    path = files.term_path(args.input_dir, name, "attn", file_name(args.model))
    hint = files.command(args.input_dir, args.dataset, args.model, args.select_split)
    files.same_weights(path, own, manifest, hint)
    if terms.components(run, names) != components:
        raise UserError(f"{path}: has other components than the run that is reported; make it again with: {hint}")
    return run


def ranking(scores: np.ndarray) -> list[int]:
    """All components, the one with the highest score for the spurious texts minus that for the core texts first; `scores`
    [2, c] are those of the two."""
    return np.argsort(scores[1] - scores[0], kind="stable").tolist()


def random_sets(components: int, number: int, trials: int, seed: int) -> list[list[int]]:
    """As many sets of `number` components as there are trials, each drawn without replacement."""
    rng = np.random.default_rng(seed)
    return [sorted(rng.choice(components, number, replace=False).tolist()) for _ in range(trials)]


def mean(run: Run) -> np.ndarray:
    """The mean of every component over the run's images [c, d], float32, summed in float64."""
    total = sum(stack.sum(axis=0, dtype=np.float64) for _, stack in terms.stacks(run, "means"))
    return (total / len(run["attn"])).astype(np.float32)


def right(run: Run, means: np.ndarray, classifier: Classifier, sets: Sequence[Collection[int]]) -> np.ndarray:
    """Which images are classified right [s, b] with each of several sets of components replaced by their `means` [c, d]."""
    used = sorted({column for chosen in sets for column in chosen})
    member = np.array([[column in chosen for column in used] for chosen in sets], np.float32)  # [s, components used]
    weight, bias = classifier
    found = np.zeros((len(sets), len(run["labels"])), bool)
    for block, stack in terms.stacks(run):
        moved = (stack[:, used] - means[used]) @ weight                                         # [b, components used, classes]
        logits = (stack.sum(axis=1) @ weight + bias)[:, None] - np.einsum("su,buk->bsk", member, moved)
        found[:, block] = (logits.argmax(axis=2) == run["labels"][block, None]).T
    return found
