"""What names of heads are worth, by every method, against three truths: the part of scripts/bench.py that is about
names."""
import csv
import importlib
from pathlib import Path

import numpy as np

from utils import cli, processes

ATTRIBUTES = "configs/attributes/emoji.yaml"
COVERAGE = (13, 27, 80, 160)  # object texts, drawn at random
WHOLE = ("attributes", "descriptions")  # pools that all methods see; others see those that are fast
SLOW = ("shuffled", "head_pursuit", "sith", "component_scores", "partial_shares")
COVERED = ("textspan_centred", "zero_shot_shares", "soft_shares", "reliable_soft_shares")
HELD_OUT, CHANGED, SEED = 520, 130, 518_226  # scenes of a seed that nothing else uses, and those that are redrawn
COLUMNS = ["model", "images", "pool", "method", "heads", "right", "kappa", "low", "high", "macro_f1", "cosine",
           "spearman", "interventions", "ablations", "recall"]


def pools(run, texts: dict, device) -> dict[str, list[dict[str, np.ndarray]]]:
    """Embeddings by pool and attribute, each of the texts and of the same in another wording: the attributes' texts;
    the pool of descriptions, whole and balanced; and the most common words that captions use."""
    from utils.analysis import truth, zeroshot
    from utils.analysis.names import attributes, judges

    about = truth.read_attributes("text_descriptions/emoji_attributes.csv")
    common = set(zeroshot.read_texts(Path("text_descriptions/google_3498_english.txt")))
    lines = {"attributes": texts}
    for name, pool in (("descriptions", "emoji_descriptions"), ("balanced", "emoji_descriptions_balanced")):
        own = zeroshot.read_texts(Path(f"text_descriptions/{pool}.txt"))
        lines[name] = {attribute: [text for text in own if about[text] == attribute] for attribute in texts}
    words = {name: [word for word in own if word in common] for name, own in judges.words().items()}
    lines["common words"] = {name: own for name, own in words.items() if len(own) > 1}
    return {name: attributes.embed(run, own, None, device, 0, ("{}", attributes.PARAPHRASE))
            for name, own in lines.items()}


def scene_terms(run, drawn: list, model, maps):
    """The terms [b, c, d] of scenes, as the run holds those of its own."""
    import torch

    from utils.analysis import alignment
    from utils.data import datasets, loader
    from utils.decompose.decomposer import Decomposer

    decomposer, found = Decomposer(model), []
    images = datasets.Images(datasets.SceneImages(drawn, [0] * len(drawn), model.image_size[0]), ["scene"])
    for pixels, *_ in loader.batches(images, model.preprocess, 65, num_workers=0):
        with torch.no_grad():
            terms = decomposer.terms(pixels.to(model.device)).values
            if maps:
                terms = alignment.mapped(maps.weight, maps.bias, terms)
                terms = terms / terms.sum(dim=1, keepdim=True).norm(dim=-1, keepdim=True)
        found.append(terms.cpu().numpy())
    return np.concatenate(found)


def held_out(run, seed: int):
    """A run of scenes that nothing was chosen on, those scenes, and how far heads move when each attribute is changed
    [a, c]; None where the model of the run is not there."""
    from utils.analysis import alignment
    from utils.analysis.names import judges
    from utils.data import scenes
    from utils.models import loading
    from utils.runs.run import Run

    manifest = run.manifest
    if "text_model" in manifest:
        model, maps = alignment.load_source(run, None, processes.pick_device("cpu"), 0)
    else:
        option, pretrained, first = loading.options_of(run.place.model, manifest["pretrained"])
        model, maps = loading.load_same(manifest, option, pretrained, processes.pick_device("cpu"), first), None
    if model is None:
        return None
    drawn = scenes.sample_scenes(HELD_OUT, seed)
    terms = scene_terms(run, drawn, model, maps)
    heads, width = len(run.heads), terms.shape[-1]
    attn = terms[:, :heads].reshape(len(terms), *run.layout["attn"][:-1], width)
    fresh = Run({"attn": attn, "mlp": terms[:, heads:]}, run.components, np.zeros(len(terms), np.int64), manifest,
                run.place)
    moved = {name: scene_terms(run, judges.changed(drawn[:CHANGED], name, seed), model, maps)[:, :heads]
             for name in judges.VALUES}
    return fresh, drawn, judges.effects(terms[:CHANGED, :heads], moved)


def judge(run, drawn, texts, attributes, methods, moved, title, pool, rows) -> None:
    """Add a row for each method: its scores against the true shares, and its kappa against the two other truths."""
    from utils.analysis import truth
    from utils.analysis.names import judges

    values = judges.codes(drawn, attributes)
    columns = range(len(run.heads))
    true = truth.explained(run, values, slice(0, len(run.heads)))
    true = np.stack([true[name] for name in attributes])
    causal = judges.falls(run, texts["attributes"][0], values, columns)
    said_causal = judges.names(causal, attributes)
    said_moved = None if moved is None else judges.names(moved, attributes)
    known = [i for i, name in enumerate(said_causal) if name != "none"]
    said_true = judges.names(true, attributes)
    if pool == "attributes":
        print(f"{title}: the truth by variance is that by ablation for "
              f"{sum(said_true[i] == said_causal[i] for i in known)} of {len(known)} heads that ablation tells of"
              + (f", and that by interventions for {sum(a == b for a, b in zip(said_true, said_moved))} of "
                 f"{len(said_true)}" if said_moved else ""))
        checks = judges.sanity(said_true)
        print(f"{title}: a perfect naming of kappa 1 falls by "
              + ", ".join(f"{own['missing']:.2f} and {own['extra']:.2f} ({name})" for name, own in checks.items())
              + " with missing and with extra labels")
    for method in methods:
        module = importlib.import_module(f"utils.analysis.names.{method}")
        try:
            said = module.scores(run, texts[pool][0], columns, 0, texts[pool][1])
        except cli.UserError as error:
            print(f"{title}, {pool}, {method}: not measured ({error})")
            continue
        places = [attributes.index(name) for name in texts[pool][0]]
        whole = np.full((len(attributes), said.shape[1]), min(0.0, float(said.min())))
        whole[places] = said
        named = judges.names(whole, attributes)
        found = judges.score(true, whole, attributes)
        rows.append({"model": run.place.model_name, "images": title.rpartition(", ")[2], "pool": pool, "method": method,
                     **found, "interventions": judges.kappa(said_moved, named) if said_moved else None,
                     "ablations": judges.kappa([said_causal[i] for i in known], [named[i] for i in known])})
        show(rows[-1])


def show(row: dict) -> None:
    """Print a line of the leaderboard."""
    moved, causal = ("-" if row[key] is None else f"{row[key]:.2f}" for key in ("interventions", "ablations"))
    print(f"| {row['model']} | {row['images']} | {row['pool']} | {row['method']} | {row['right']}/{row['heads']} | "
          f"{row['kappa']:.2f} | {row['low']:.2f} to {row['high']:.2f} | {row['macro_f1']:.2f} | {row['cosine']:.2f} | "
          f"{row['spearman']:.2f} | {moved} | {causal} |", flush=True)


def coverage(run, drawn, texts, attributes, methods, draws: int, rows) -> None:
    """Add a row for each method and number of object texts: the mean over draws of kappa."""
    from utils.analysis import truth
    from utils.analysis.names import judges

    true = truth.explained(run, judges.codes(drawn, attributes), slice(0, len(run.heads)))
    true = np.stack([true[name] for name in attributes])
    for number in COVERAGE:
        for method in methods:
            module, found = importlib.import_module(f"utils.analysis.names.{method}"), []
            for draw in range(draws):
                first, again = texts["attributes"]
                some = np.random.default_rng((draw, number)).choice(len(first["object"]), number, replace=False)
                own, other = (part | {"object": part["object"][some]} for part in (first, again))
                said = module.scores(run, own, range(len(run.heads)), draw, other)
                found.append(judges.score(true, said, attributes))
            mean = {key: float(np.mean([one[key] for one in found])) for key in ("kappa", "low", "high", "macro_f1",
                                                                                 "cosine", "spearman", "right")}
            rows.append({"model": run.place.model_name, "images": "all", "pool": f"{number} objects", "method": method,
                         "heads": found[0]["heads"], **mean, "interventions": None, "ablations": None,
                         "recall": None})
            show(rows[-1])


def write(rows: list[dict], path: Path) -> None:
    """The leaderboard as CSV."""
    with cli.complete(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: f"{value:.4f}" if isinstance(value, float) else value for key, value in row.items()}
                         for row in rows)
