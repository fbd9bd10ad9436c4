"""What a report says: the results of other scripts, read and checked, what each head does for which images, and all of
it in lines of text."""
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils.analysis.names import naming
from utils.analysis.truth import read_heads
from utils.analysis.zeroshot import correct
from utils.cli import UserError
from utils.data.datasets import Images
from utils.runs import files
from utils.runs.commands import elsewhere, line, make_ablations, make_texts_of_heads
from utils.runs.components import Component
from utils.runs.run import Run

HEADS, TEXTS, IMAGES = 8, 4, 8  # in the text form: heads with the largest variance, and texts and images of each


@dataclass
class Results:
    """What other scripts found in a run."""
    pool: str             # the name of the texts
    texts_per_head: int
    ablations: dict       # of compute_ablations.py
    texts: dict           # of compute_complete_text_set.py
    truth: dict | None    # of compute_head_truth.py, where it is there
    hints: dict[str, str]  # the commands that make these again, by script
    names: dict[Component, dict] = field(default_factory=dict)  # of compute_head_names.py, where it is there


def hints(run: Run, pool: str, texts_per_head: int, text_dir: str) -> dict[str, str]:
    """The commands that make what a report reads, by script."""
    folder, dataset, model, split = run.place.words
    return {"compute_ablations": make_ablations(*run.place.words),
            "compute_complete_text_set": make_texts_of_heads(*run.place.words, pool, texts_per_head, text_dir,
                                                             min(4, len(run.layers))),
            "compute_head_truth": line("compute_head_truth", {
                "model": model, "dataset": dataset, "split": split, "input_dir": elsewhere(folder),
                "text_descriptions": pool, "texts_per_head": texts_per_head})}


def commands(run: Run, results: Results) -> list[str]:
    """The commands that made what a report reads, in order, as manifests and results keep them.

    Those that write to --output_dir, which is not kept, name the folder of the run.
    """
    place, text_model = run.place, (run.manifest or {}).get("text_model", run.place.model_name)
    paths = [files.manifest_path(place.folder, *parts) for parts in (
        (place.dataset, "classifier", text_model), (results.pool, text_model))]
    made = [run.manifest or {}, *(files.read_manifest(path) or {} for path in paths), results.texts]
    where = f" --output_dir {shlex.quote(place.folder)}" if elsewhere(place.folder) else ""
    *arrays, texts = (found.get("command") and found["command"] + where for found in made)
    made = (*arrays, results.ablations.get("command"), texts, (results.truth or {}).get("command"))
    return [command for command in made if command]


def read(run: Run, pool: str, texts_per_head: int, texts: list[str], text_dir: str) -> Results:
    """What other scripts found in a run, with the pool of that name in `text_dir`, which holds those texts.

    Raises UserError, with the command that helps, for a file that is missing, or about other arrays or texts. A truth
    about other texts is left out, with a warning.
    """
    made_by = hints(run, pool, texts_per_head, text_dir)
    ablations = _read(run.place.path("ablations", ".json"), len(run), made_by["compute_ablations"], "baseline",
                      "attention_ablated", "mlp_ablated")
    found = read_texts(run, pool, texts_per_head, texts, text_dir)
    path, hint = run.place.path("head_truth", ".json"), made_by["compute_head_truth"]
    judged = _read(path, len(run), hint, "pool", "texts_per_head", "heads") if path.is_file() else None
    if judged and ((judged["pool"], judged["texts_per_head"]) != (pool, texts_per_head)
                  or [head["variance"] for head in judged["heads"]] != [head["variance"] for head in found["heads"]]):
        print(f"warning: {path} is about other texts, and left out; make it again with: {hint}", file=sys.stderr)
        judged = None
    return Results(pool, texts_per_head, ablations, found, judged, made_by, naming.find(run))


def read_texts(run: Run, pool: str, texts_per_head: int, texts: list[str], text_dir: str) -> dict:
    """What compute_complete_text_set.py found in a run with these texts. Raises UserError as `read` does."""
    hint = hints(run, pool, texts_per_head, text_dir)["compute_complete_text_set"]
    spans = run.place.path(files.texts_of_heads(pool, texts_per_head), ".json")
    found = _read(spans, len(run), hint, "num_of_last_layers")
    read_heads(run, spans, hint)
    wanted = run.heads[run.last(found["num_of_last_layers"])]
    entries = [entry for head in found["heads"] for entry in head["texts"]]
    if ([Component("attn", head["layer"], head["head"]) for head in found["heads"]] != wanted
            or any(texts[entry["index"]:entry["index"] + 1] != [entry["text"]] for entry in entries)):
        raise UserError(f"{spans}: is about other heads or texts; make it again with: {hint}")
    return found


def _read(path: Path, images: int, hint: str, *needed: str) -> dict:
    """Results of a script about that many images, with all that is `needed` of them."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; make it with: {hint}")
    content = files.read_json(path, needed, f"make it again with: {hint}")
    if content.get("images") != images:
        raise UserError(f"{path}: is about {content.get('images')} images, and the arrays hold {images}; "
                        f"make it again with: {hint}")
    return content


def score_images(run: Run, classifier: np.ndarray, pool: np.ndarray, results: Results) -> tuple[np.ndarray, np.ndarray]:
    """What each head with texts adds to each image's cosine similarity with the head's first text.

    `pool` [m, d] are the texts' embeddings. Returns each head's average over images [k], and the scores [k, b] above it
    or below; 0 for a head without texts. On the way, the heads' variance and the accuracy are compared with those in
    `results`: raises UserError where they differ, since then the arrays have been made anew.
    """
    heads = results.texts["heads"]
    images, first = len(run), len(run.heads) - len(heads)
    directions = np.stack([pool[head["texts"][0]["index"]] if head["texts"] else np.zeros_like(pool[0])
                           for head in heads])
    scores = np.empty((len(heads), images), np.float32)
    shown = slice(first, len(run.heads))
    origin = run.stack(slice(1), shown)[0].astype(np.float64)  # taken off: squares would drown in the mean's
    sums, squares, right = np.zeros(directions.shape), np.zeros(len(heads)), 0
    for block in files.blocks(images, description="scores"):
        terms = run.stack(block, shown)                                                               # [b, k, d]
        scores[:, block] = np.einsum("bkd,kd->kb", terms, directions)
        moved = terms - origin
        sums, squares = sums + moved.sum(axis=0), squares + np.einsum("bkd,bkd->k", moved, moved)
        right += correct(run.whole(block), classifier, run.labels[block])
    variances = squares / images - np.square(sums / images).sum(axis=1)
    said = np.array([head["variance"] for head in heads])
    if not np.allclose(variances, said, rtol=1e-3, atol=1e-3 * said.max()):
        raise UserError("the texts of heads are about other arrays; make them again with: "
                        + results.hints["compute_complete_text_set"])
    if abs(right - results.ablations["baseline"] * images / 100) > 2:  # a tie may be broken either way
        raise UserError("the ablations are about other arrays; make them again with: "
                        + results.hints["compute_ablations"])
    average = scores.mean(axis=1, dtype=np.float64).astype(np.float32)
    return average, scores - average[:, None]


def extremes(scores: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Images with the highest scores [b], highest first, and with the lowest, lowest first; at most `number` of each,
    and none that is in both."""
    order = np.argsort(-scores, kind="stable")
    highest = order[:min(number, -(-len(order) // 2))]
    return highest, order[len(highest):][::-1][:number]


def describe_heads(results: Results, scored: tuple[np.ndarray, np.ndarray], alone: dict[Component, dict], number: int,
                   indices: np.ndarray, labels: np.ndarray, images: Images, root: str | None) -> list[dict]:
    """What the page shows of each head, the newest layer's first.

    `scored` is what `score_images` returns, `alone` what `ablation.single_heads` gives, `number` how many images of the
    highest and of the lowest scores are named; `indices` [b] are the images' in the data set, and `root` its folder.
    """
    def image(row: int, score: float) -> dict:
        index, label = int(indices[row]), images.class_of(labels[row])
        return {"index": index, "score": float(score), "label": label, "file": f"images/{index}.webp",
                "path": os.path.relpath(images.paths[index], root) if images.paths and root else None}

    heads, variances = [], sorted((head["variance"] for head in results.texts["heads"]), reverse=True)
    largest = variances[0] or 1.0
    truths = results.truth["heads"] if results.truth else [None] * len(scored[0])
    for head, truth, average, scores in zip(results.texts["heads"], truths, *scored):
        key = Component("attn", head["layer"], head["head"])
        highest, lowest = extremes(scores, number) if head["texts"] else ([], [])
        heads.append({
            **head, "name": str(key), "id": f"head-{key.layer}-{key.head}", "consistency": head.get("consistency"),
            "relative_variance": head["variance"] / largest, "rank": 1 + variances.index(head["variance"]),
            **alone[key], "average": float(average),
            "highest": [image(row, scores[row]) for row in highest],
            "lowest": [image(row, scores[row]) for row in lowest],
            "heat_maps": [], "heat_maps_lowest": [], "truth": truth, "named": results.names.get(key)})
    return sorted(heads, key=lambda head: (-head["layer"], head["head"]))


def describe(run: Run, data_path: str | None, results: Results, heads: list[dict], own: str, **figures) -> dict:
    """All that the page shows: what it was made from, figures of the whole model, and the heads.

    `data_path` is where the run's images are, `own` the command that makes the page.
    """
    place, manifest, texts, truth = run.place, run.manifest or {}, results.texts, results.truth
    layers = len(results.ablations["attention_ablated"]) - 1
    together = line("compute_use_specific_heads", {
        "model": place.model, "dataset": place.dataset, "split": place.split, "data_path": data_path,
        "input_dir": elsewhere(place.folder), "keep_last_layers": layers, "keep_mlps": True}) + " --heads {heads}"
    return {
        "model": place.model, "dataset": place.dataset, "split": place.split, "pool": results.pool,
        "pretrained": manifest.get("pretrained"), "weights_sha256": manifest.get("weights_sha256"),
        "versions": manifest.get("versions", {}), "images": texts["images"], "layers": layers, **figures,
        "texts_per_head": results.texts_per_head, "num_of_last_layers": texts["num_of_last_layers"],
        "number_of_texts": texts["number_of_texts"], "texts_accuracy": texts["accuracy"],
        "ablations": {key: value for key, value in results.ablations.items() if key != "command"},
        "truth": {key: value for key, value in truth.items() if key not in ("heads", "command")} if truth else None,
        "commands": [*commands(run, results), own], "command_for_several": together, "heads": heads}


def _most_varying(results: Results) -> list[dict]:
    return sorted(results.texts["heads"], key=lambda head: -head["variance"])[:HEADS]


def lines(run: Run, results: Results) -> Iterator[str]:
    """The report in text: what each part of the model is worth, and the texts of the heads that vary most."""
    ablations, texts = results.ablations, results.texts
    yield f"\n{run.place.model} on {ablations['images']} images of {run.place.dataset}: zero-shot accuracy (%)"
    rows = [("whole model", ablations["baseline"]), ("all MLPs mean-ablated", ablations["mlp_ablated"]),
            ("class token's attention to itself ablated", ablations["cls_ablated"]),
            ("both ablated", ablations["mlp_and_cls_ablated"]),
            ("all convolution blocks mean-ablated", ablations.get("conv_ablated"))]
    rows += [(f"attention layers 1 to {k} ablated", value)
             for k, value in enumerate(ablations["attention_ablated"][1:], start=1)]
    rows += [(f"heads of the last {texts['num_of_last_layers']} layers reduced to {texts['number_of_texts']} texts",
              texts["accuracy"])]
    for label, value in rows:
        if value is not None:
            yield f"  {label:<50} {value:6.1f}"
    heads = _most_varying(results)
    yield f"\nThe {len(heads)} heads that vary most, each with its first texts (share of the head's variance)"
    for head in heads:
        listed = "; ".join(f"{entry['text']} ({entry['share']:.0%})" for entry in head["texts"][:TEXTS])
        own = results.names.get(Component("attn", head["layer"], head["head"]))
        named = f", {naming.spelled(own['role'])}" if own else ""
        yield f"  layer {head['layer']}, head {head['head']}{named}: {listed}"


def paths(run: Run, results: Results) -> list[Path]:
    """Where all of it is: ablations and their chart, texts in two forms, and the `sheet`."""
    texts = files.texts_of_heads(results.pool, results.texts_per_head)
    return [run.place.path(what, suffix) for what, suffix in (
        ("ablations", ".json"), ("ablations", ".png"), (texts, ".txt"), (texts, ".json"), ("heads", ".png"))]


def sheet(results: Results, scores: np.ndarray, indices: np.ndarray, images: Images) -> list[tuple[str, list, list]]:
    """The heads that vary most and have texts, as `sheets.head_sheet` takes them: a title, and the images with the
    highest and the lowest scores [k, b]."""
    rows = []
    for head in _most_varying(results):
        if head["texts"]:
            title = "; ".join(entry["text"] for entry in head["texts"][:TEXTS])
            highest, lowest = extremes(scores[results.texts["heads"].index(head)], IMAGES)
            own = results.names.get(Component("attn", head["layer"], head["head"]))
            title = f"{naming.spelled(own['role'])};  {title}" if own else title
            rows.append((f"layer {head['layer']}, head {head['head']}:  {title}",
                         *([images.read(i)[0] for i in indices[part]] for part in (highest, lowest[::-1]))))
    return rows
