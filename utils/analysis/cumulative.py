"""A linear head of whole representations, for models without texts (arXiv 2406.01583)."""
import numpy as np
from tqdm import tqdm

from utils.analysis import alignment, probe
from utils.cli import UserError
from utils.runs.run import Run


def fit_head(splits: dict[str, Run], seed: int) -> tuple[np.ndarray, np.ndarray, dict]:
    """A linear probe of whole representations: weight [d, classes], bias [classes], and how it was fitted.

    `splits` are those of `probe.open_splits`. As in compute_linear_probe.py the probe is fitted to train, and its
    penalty chosen on validation where that is there, or else on a tenth of every class of train, held out by the seed.
    A class without images in train is never answered. Raises UserError where all of train is of one class.
    """
    data = {part: (alignment.sums(run).numpy(), run.labels) for part, run in splits.items() if part != "test"}
    x, labels = data["train"]
    classes = np.unique(labels)
    if len(classes) < 2:
        raise UserError("all images of the train split are of one class; a probe needs two")
    fitted, judged = data["train"], data.get("validation")
    if judged is None:
        held = probe.hold_out(labels, seed)
        fitted, judged = (x[~held], labels[~held]), (x[held], labels[held])
    with tqdm(total=probe.SWEEP_FITS, desc="fits", unit="fit") as progress:
        def score(c: float) -> float:
            found, *_ = probe.fit(*fitted, c, probe.ITERATIONS)
            progress.update()
            return 100 * found.score(*judged)

        best, scores = probe.search(score)
    head, _, converged = probe.fit(x, labels, 10 ** best, probe.ITERATIONS, probe.MORE_ITERATIONS)
    weight, bias = np.zeros((x.shape[1], 1 + labels.max()), np.float32), np.full(1 + labels.max(), -np.inf)
    own = head.coef_, head.intercept_
    if len(classes) == 2:  # one row, for the second class against the first
        own = [np.concatenate([np.zeros_like(part), part]) for part in own]
    weight[:, classes], bias[classes] = own[0].T, own[1]
    return weight, bias, {"C": 10 ** best, "validation": "val split" if "validation" in data else "held out of train",
                          "validation_accuracy": scores[best], "images": len(labels), "converged": converged}
