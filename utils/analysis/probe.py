"""Linear probes: how much of what a representation holds can a linear classifier read, with parts of the model ablated?

The protocol is that of CLIP (arXiv 2103.00020, appendix A.3): logistic regression with an L2 penalty, fitted by L-BFGS,
its strength chosen on validation images.
"""
import warnings
from collections.abc import Callable

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from utils.analysis import ablation, alignment
from utils.cli import UserError
from utils.runs import files
from utils.runs.files import Place
from utils.runs.run import Run

EXPONENTS = (-6, 6)  # C is searched from 1e-6 to 1e6, as the published strengths 1 / C
FIRST_STEP, LAST_STEP = 2, 1 / 8  # in decades
SWEEP_FITS = 15  # 7 exponents, then two around the best for each of the steps 1, 1/2, 1/4 and 1/8
HELD_OUT = 0.1  # of every class of train, where there are no arrays of a validation split
# The loss is a mean over images: at scikit-learn's own tolerance, 1e-4, weak penalties stop far from the optimum.
TOLERANCE = 1e-6
ITERATIONS = 1000
MORE_ITERATIONS = 10_000  # for the final fit, where that was not enough

Labelled = tuple[np.ndarray, np.ndarray]  # features [b, d], labels [b]


def open_splits(folder: str, dataset: str, model: str, split: str | None) -> dict[str, Run]:
    """Runs by what they are for: train, test (the `split` that is reported), and validation where arrays of val are
    there and val is not what is reported. `model` is as it was given.

    Raises UserError where arrays are missing, of different models or classes, or of the same images.
    """
    name = files.run_name(dataset, split)
    if name == files.run_name(dataset, "train"):
        raise UserError("--split train: the probe is fitted on it; report another, such as --split test")
    splits, held_out = {"test": split, "train": "train"}, Place(folder, dataset, model, "val")
    if held_out.name != name and any(held_out.path(what).is_file() for what in ("attn", "heads", "mlp")):
        splits["validation"] = "val"
    runs = {}
    for part, own in splits.items():
        run = runs[part] = Run.open(folder, dataset, model, own)
        run.check_labelled()
        test, path = runs["test"], run.place.path("attn")
        run.same_weights(test)
        if run.manifest and test.manifest and run.manifest["classes"] != test.manifest["classes"]:
            raise UserError(f"{path}: has other classes than {name}; make both from one data set, each with its "
                            "--split")
        data = [(one.manifest or {}).get("identity", {}).get("data_sha256") for one in (run, test)]
        if dataset == "imagefolder" and part != "test" and data[0] and data[0] == data[1]:
            raise UserError(f"{path}: is of the same images as {name}, as the folder has no splits; put its class "
                            "folders into train/ and test/, and make both again with compute_prs.py")
        if run.layout != test.layout or run.heads != test.heads:
            raise UserError(f"{path}: has other layers, heads or width than {name}; make it again with: "
                            f"{run.place.command()}")
    return runs


def rows(layers: int, kept: int) -> list[dict]:
    """The representations that are probed: their names, and arguments of `features`. Of the attention layers the last
    `kept` stay where early ones are ablated."""
    early = f"first {layers - kept} attention layers"
    return [{"name": "whole representation", "last_layers": None, "mlps": True},
            {"name": "all MLPs ablated", "last_layers": None, "mlps": False},
            {"name": f"{early} ablated", "last_layers": kept, "mlps": True},
            {"name": f"all MLPs and {early} ablated", "last_layers": kept, "mlps": False}]


def features(run: Run, means: np.ndarray, last_layers: int | None, mlps: bool) -> np.ndarray:
    """Representations [b, d], float32, with what `ablation.all_but` names replaced by its `means` [c, d]."""
    ablated = ablation.all_but(run, last_layers, mlps)
    return np.concatenate([values for _, values in ablation.representations(run, means, ablated)])


def hold_out(labels: np.ndarray, seed: int) -> np.ndarray:
    """Which images [b] are held out to choose C: a tenth of every class, drawn from the seed; of a class of few images
    one, of a class of one image none. Raises UserError where none can be."""
    rng, held = np.random.default_rng(seed), np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) > 1:
            held[members[:max(1, round(HELD_OUT * len(members)))]] = True
    if not held.any():
        raise UserError("the train split has one image of each class, and none can be held out to choose C; "
                        "make the arrays of the val split with: python compute_prs.py --split val")
    return held


def fit(x: np.ndarray, labels: np.ndarray, c: float, *limits: int) -> tuple[LogisticRegression, int, bool]:
    """A probe of features x [b, d], the iterations it took, and whether it converged. Where the first of the `limits`
    is not enough, it goes on up to the next."""
    probe, iterations = LogisticRegression(C=c, tol=TOLERANCE, warm_start=True), 0
    for limit in limits:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            probe.set_params(max_iter=limit - iterations).fit(x, labels)
        iterations += int(probe.n_iter_.max())
        converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
        if converged:
            break
    return probe, iterations, converged


def search(score: Callable[[float], float]) -> tuple[float, dict[float, float]]:
    """The exponent e with the highest score of C = 10^e, of equal ones the lowest, and all scores by exponent.

    As CLIP's: every second exponent of the range, then the two beside the best at half the step, down to LAST_STEP.
    """
    scores: dict[float, float] = {}
    step, candidates = FIRST_STEP, list(np.arange(EXPONENTS[0], EXPONENTS[1] + 1, FIRST_STEP, dtype=float))
    while True:
        for exponent in candidates:
            if EXPONENTS[0] <= exponent <= EXPONENTS[1]:
                scores[exponent] = score(10 ** exponent)
        best = max(scores, key=lambda exponent: (scores[exponent], -exponent))
        step /= 2
        if step < LAST_STEP:
            return best, scores
        candidates = [best - step, best + step]


def fit_best(train: Labelled, validation: Labelled | None, held: np.ndarray | None,
             progress: Callable[[], object] = lambda: None) -> tuple[LogisticRegression, dict]:
    """A probe of all of train, and how it was fitted.

    C is chosen on `validation`, or, where that is None, on the images of train that are `held` out [b]. `progress` is
    called after every fit of the search. Raises UserError where all of train is of one class.
    """
    x, labels = train
    if len(np.unique(labels)) < 2:
        raise UserError("all images of the train split are of one class; a probe needs two")
    fitted = (x, labels) if held is None else (x[~held], labels[~held])
    judged = validation if held is None else (x[held], labels[held])
    unconverged = []

    def score(c: float) -> float:
        model, _, converged = fit(*fitted, c, ITERATIONS)
        if not converged:
            unconverged.append(c)
        progress()
        return 100 * model.score(*judged)

    best, scores = search(score)
    model, iterations, converged = fit(x, labels, 10 ** best, ITERATIONS, MORE_ITERATIONS)
    searched = [{"C": 10 ** exponent, "validation_accuracy": scores[exponent]} for exponent in sorted(scores)]
    return model, {"C": 10 ** best, "validation_accuracy": scores[best], "iterations": iterations,
                   "converged": converged, "search": searched, "unconverged_C": sorted(unconverged)}


def fit_head(splits: dict[str, Run], seed: int) -> tuple[np.ndarray, np.ndarray, dict]:
    """A probe of whole representations as a linear head (arXiv 2406.01583, for models without texts): weight
    [d, classes], bias [classes], and how it was fitted.

    `splits` are those of `open_splits`; without validation, a tenth of every class of train is held out by the seed. A
    class without images in train is never answered.
    """
    data = {part: (alignment.sums(run).numpy(), run.labels) for part, run in splits.items() if part != "test"}
    labels, chosen_on = data["train"][1], "val split" if "validation" in data else "held out of train"
    held = None if "validation" in data else hold_out(labels, seed)
    with tqdm(total=SWEEP_FITS, desc="fits", unit="fit") as progress:
        head, found = fit_best(data["train"], data.get("validation"), held, progress.update)
    own = head.coef_.T, head.intercept_
    if len(head.classes_) == 2:  # one column, for the second class against the first
        own = [np.concatenate([np.zeros_like(part), part], axis=-1) for part in own]
    weight, bias = np.zeros((len(own[0]), 1 + labels.max()), np.float32), np.full(1 + labels.max(), -np.inf)
    weight[:, head.classes_], bias[head.classes_] = own
    return weight, bias, {"C": found["C"], "validation": chosen_on, "validation_accuracy": found["validation_accuracy"],
                          "images": len(labels), "converged": found["converged"]}
