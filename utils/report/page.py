"""What the page of make_report.py shows: results are read and checked, images are scored, pictures and page are
written.

The page is page.html.j2; page.css and page.js are put into it, so that it needs nothing but its pictures.
"""
import contextlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import jinja2
import numpy as np
import torch
from markupsafe import Markup
from PIL import Image, ImageOps
from tqdm import tqdm

from utils.analysis.zeroshot import correct
from utils.cli import UserError, pick_device
from utils.data.datasets import Images
from utils.decompose.decomposer import Decomposer
from utils.models.loading import load_same
from utils.models.model import Model
from utils.runs import files
from utils.runs.components import Component
from utils.runs.run import Run

HERE = Path(__file__).resolve().parent
RECORD = "report.json"  # by which a folder is known as a report
QUALITY = 85  # of pictures, WebP
RED, BLUE = (0.80, 0.10, 0.14), (0.08, 0.36, 0.74)
FRAMES = {"shortest": ImageOps.fit, "longest": ImageOps.pad, "squash": Image.Image.resize}  # open_clip's resize_mode


def load_clip(args, manifest: dict | None) -> Model | None:
    """The CLIP that made the arrays, by which heat maps are drawn; None where none are asked for.

    Raises UserError for arrays that it cannot make again, and for other weights.
    """
    if not args.heat_maps:
        return None
    files.own_clip(manifest, args.model, "leave heat maps out with --heat_maps 0")
    return load_same(manifest, args.model, args.pretrained, pick_device(args.device), args.seed)


def hints(run: Run, pool: str, texts_per_head: int, text_dir: str) -> dict[str, str]:
    """How the results that a report reads are made, by script, for those that are missing."""
    place = run.place
    common = [("model", place.model), ("dataset", place.dataset), ("split", place.split), ("input_dir", _folder(place))]
    texts = [("text_descriptions", pool), ("texts_per_head", texts_per_head)]
    where = [("text_dir", None if Path(text_dir) == Path("text_descriptions") else text_dir),
             ("num_of_last_layers", min(4, len(run.layers))), ("output_dir", _folder(place))]
    return {"compute_ablations": _line("compute_ablations", common),
            "compute_complete_text_set": _line("compute_complete_text_set", common + texts + where),
            "compute_head_truth": _line("compute_head_truth", common + texts)}


def commands(run: Run, pool: str, results: dict, own: str) -> list[str]:
    """The commands that made what a report reads, in order, as manifests and results keep them, and the report's `own`.

    Those that write to --output_dir, which is not kept, name the folder of the run.
    """
    place, text_model = run.place, (run.manifest or {}).get("text_model", run.place.model_name)
    paths = [files.manifest_path(place.folder, *parts) for parts in (
        (place.dataset, "classifier", text_model), (pool, text_model))]
    made = [run.manifest or {}, *(files.read_manifest(path) or {} for path in paths), results["texts"]]
    *arrays, texts = (found.get("command") and found["command"] + _options([("output_dir", _folder(place))])
                      for found in made)
    return [line for line in (*arrays, results["ablations"].get("command"), texts,
                              (results["truth"] or {}).get("command"), own) if line]


def _folder(place: files.Place) -> str | None:
    """Where the arrays are, if elsewhere than by default."""
    return None if Path(place.folder) == Path("output_dir") else str(place.folder)


def _line(script: str, options: list[tuple]) -> str:
    return f"python {script}.py" + _options(options)


def _options(options: list[tuple]) -> str:
    """Those of the options that are given; True stands for an option without a value."""
    words = [str(word) for option, value in options if value is not None
             for word in ((f"--{option}",) if value is True else (f"--{option}", value))]
    return "".join(f" {shlex.quote(word)}" for word in words)


def read_results(run: Run, pool: str, texts_per_head: int, texts: list[str], hints: dict[str, str]) -> dict:
    """What compute_ablations.py, compute_complete_text_set.py and, where it is there, compute_head_truth.py wrote about
    a run and the pool of that name with those texts: `ablations`, `texts`, and `truth` or None.

    Raises UserError, with the command in `hints`, for a file that is missing, or about other arrays or texts. A truth
    about other texts is left out, with a warning.
    """
    place, images = run.place, len(run)
    spans = place.path(files.texts_of_heads(pool, texts_per_head), ".json")
    ablations = _read(place.path("ablations", ".json"), images, hints["compute_ablations"])
    found = _read(spans, images, hints["compute_complete_text_set"])
    wanted = run.heads[run.last(found["num_of_last_layers"])]
    if [Component("attn", head["layer"], head["head"]) for head in found["heads"]] != wanted or any(
            texts[entry["index"]:entry["index"] + 1] != [entry["text"]] for head in found["heads"] for entry in head["texts"]):
        raise UserError(f"{spans}: is about other heads or texts; make it again with: {hints['compute_complete_text_set']}")
    path = place.path("head_truth", ".json")
    truth = _read(path, images, hints["compute_head_truth"]) if path.is_file() else None
    if truth and ((truth["pool"], truth["texts_per_head"]) != (pool, texts_per_head)
                  or [head["variance"] for head in truth["heads"]] != [head["variance"] for head in found["heads"]]):
        print(f"warning: {path} is about other texts, and left out; make it again with: {hints['compute_head_truth']}",
              file=sys.stderr)
        truth = None
    return {"ablations": ablations, "texts": found, "truth": truth}


def _read(path: Path, images: int, hint: str) -> dict:
    """Results of a script about that many images."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; make it with: {hint}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is no JSON; make it again with: {hint}") from error
    if content.get("images") != images:
        raise UserError(f"{path}: is about {content.get('images')} images, and the arrays hold {images}; "
                        f"make it again with: {hint}")
    return content


def score_images(run: Run, classifier: np.ndarray, pool: np.ndarray, results: dict,
                 hints: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """What each head that the page shows adds to each image's cosine similarity with the head's first text.

    `pool` [m, d] are the texts' embeddings. Returns each head's average over images [k], and the scores [k, b] above it
    or below; 0 for a head without texts. On the way, the heads' variance and the accuracy are compared with those in
    `results`: raises UserError where they differ, since then the arrays have been made anew.
    """
    heads = results["texts"]["heads"]
    images, first = len(run), len(run.heads) - len(heads)
    directions = np.stack([pool[head["texts"][0]["index"]] if head["texts"] else np.zeros_like(pool[0]) for head in heads])
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
                        + hints["compute_complete_text_set"])
    if abs(right - results["ablations"]["baseline"] * images / 100) > 2:  # a tie may be broken either way
        raise UserError(f"the ablations are about other arrays; make them again with: {hints['compute_ablations']}")
    average = scores.mean(axis=1, dtype=np.float64).astype(np.float32)
    return average, scores - average[:, None]


def extremes(scores: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Images with the highest scores [b], highest first, and with the lowest, lowest first; at most `number` of each,
    and none that is in both."""
    order = np.argsort(-scores, kind="stable")
    highest = order[:min(number, -(-len(order) // 2))]
    return highest, order[len(highest):][::-1][:number]


def describe_heads(results: dict, scored: tuple[np.ndarray, np.ndarray], alone: dict[Component, float], number: int,
                   indices: np.ndarray, labels: np.ndarray, images: Images, root: str | None) -> list[dict]:
    """What the page shows of each head, the newest layer's first.

    `scored` is what `score_images` returns, `alone` the accuracy without each head, `number` how many images of the
    highest and of the lowest scores are named; `indices` [b] are the images' in the data set, and `root` its folder.
    """
    def image(row: int, score: float) -> dict:
        index, label = int(indices[row]), images.classes[labels[row]]
        return {"index": index, "score": float(score), "label": label, "file": f"images/{index}.webp",
                "path": os.path.relpath(images.paths[index], root) if images.paths and root else None}

    heads, largest = [], max(head["variance"] for head in results["texts"]["heads"]) or 1.0
    truths = results["truth"]["heads"] if results["truth"] else [None] * len(scored[0])
    for head, truth, average, scores in zip(results["texts"]["heads"], truths, *scored):
        key = Component("attn", head["layer"], head["head"])
        highest, lowest = extremes(scores, number) if head["texts"] else ([], [])
        heads.append({
            **head, "name": str(key), "id": f"head-{key.layer}-{key.head}", "consistency": head.get("consistency"),
            "relative_variance": head["variance"] / largest, "accuracy": alone[key],
            "change": alone[key] - results["ablations"]["baseline"], "average": float(average),
            "highest": [image(row, scores[row]) for row in highest], "lowest": [image(row, scores[row]) for row in lowest],
            "heat_maps": [], "truth": truth})
    return sorted(heads, key=lambda head: (-head["layer"], head["head"]))


def read_picture(images: Images, index: int, label: str) -> Image.Image:
    """An image of a data set. Raises UserError where it cannot be read, or its label is another."""
    picture, found = images.read(index)
    if images.classes[found] != label:
        raise UserError(f"image {index} is labelled {images.classes[found]}, and was {label}: the data set has changed; "
                        "give the --data_path that the arrays were made from, or make them again with compute_prs.py")
    return picture


def save_thumbnails(heads: list[dict], images: Images, size: int, clip: Model | None,
                    folder: Path) -> tuple[int, int]:
    """Write each image that a head names once, its longer side `size` pixels, framed as the model sees it; without a
    model, its middle square. Returns width and height."""
    mode, (height, width) = ("shortest", (1, 1)) if clip is None else (
        clip.tower.preprocess_cfg["resize_mode"], clip.image_size)
    shape = round(size * width / max(height, width)), round(size * height / max(height, width))
    images.draw_at(size)
    (folder / "images").mkdir()
    shown = {image["index"]: image for head in heads for image in (*head["highest"], *head["lowest"])}
    for index, image in tqdm(sorted(shown.items()), desc="pictures", unit="image", delay=3, leave=False):
        picture = FRAMES[mode](read_picture(images, index, image["label"]), shape, Image.Resampling.LANCZOS)
        picture.save(folder / image["file"], quality=QUALITY)
    return shape


def save_heat_maps(heads: list[dict], number: int, pool: np.ndarray, images: Images, clip: Model, folder: Path) -> None:
    """Draw the heat maps of the first `number` images of each head, over their thumbnails, and add them to `heads`.

    `pool` [m, d] are the texts' embeddings. A map is what each patch adds to the similarity with the head's first text
    through this head alone. Raises UserError where patches and class token do not sum to what the arrays hold.
    """
    images.draw_at(clip.image_size[0])
    decomposer = Decomposer(clip)
    (folder / "heat").mkdir()
    for head in tqdm(heads, desc="heat maps", unit="head", delay=3, leave=False):
        chosen = head["highest"][:number]
        if not chosen:
            continue
        pixels = torch.stack([clip.preprocess(read_picture(images, image["index"], image["label"])) for image in chosen])
        direction = torch.tensor(pool[head["texts"][0]["index"]], device=clip.device)
        found = decomposer.tokens(pixels.to(clip.device), direction[None, None])
        values = found.scores[head["layer"]][0, :, head["head"]].cpu().numpy()                              # [b, n]
        patches = found.patches(head["layer"], head["head"])[0].cpu().numpy()
        expected = np.array([image["score"] for image in chosen]) + head["average"]
        if not np.allclose(values.sum(axis=1), expected, rtol=0, atol=0.02 * np.abs(expected).max() + 1e-4):
            wrong = chosen[int(np.abs(values.sum(axis=1) - expected).argmax())]["index"]
            raise UserError(f"the patches of image {wrong} do not sum to what the arrays hold of it; give the model and the "
                            "--data_path that they were made from, or make them again with compute_prs.py")
        limit = float(np.abs(patches).max())
        for image, of_image, tokens in zip(chosen, patches, values):
            file = f"heat/{head['layer']}-{head['head']}-{image['index']}.webp"
            with Image.open(folder / image["file"]) as picture:
                overlay(picture, of_image, limit).save(folder / file, quality=QUALITY)
            head["heat_maps"].append({"index": image["index"], "file": file, "limit": limit,
                                      "patches": float(of_image.sum()),
                                      "class_token": float(tokens[:found.prefix_tokens].sum())})


def overlay(picture: Image.Image, patches: np.ndarray, limit: float) -> Image.Image:
    """Patches [rows, columns] in blue (-limit) to red (limit) over a pale grey copy of a picture, the stronger the less
    of the picture is left."""
    shares = np.clip(np.abs(patches) / (limit or 1.0), 0, 1)[..., None]
    colors = np.where(patches[..., None] < 0, BLUE, RED)
    layer = Image.fromarray((255 * np.concatenate([colors, 0.9 * shares], axis=-1)).round().astype(np.uint8), "RGBA")
    pale = Image.blend(ImageOps.autocontrast(picture.convert("L")), Image.new("L", picture.size, 255), 0.5).convert("RGBA")
    return Image.alpha_composite(pale, layer.resize(picture.size, Image.Resampling.NEAREST)).convert("RGB")


def describe_run(args, run: Run, results: dict, heads: list[dict], lines: list[str], **figures) -> dict:
    """All that the page shows: what it was made from, figures of the whole model, and the heads."""
    manifest, texts, truth = run.manifest or {}, results["texts"], results["truth"]
    layers = len(results["ablations"]["attention_ablated"]) - 1
    together = _line("compute_use_specific_heads", [
        ("model", args.model), ("dataset", args.dataset), ("split", args.split), ("data_path", args.data_path),
        ("input_dir", _folder(run.place)), ("keep_last_layers", layers), ("keep_mlps", True)]) + " --heads {heads}"
    return {
        "model": args.model, "dataset": args.dataset, "split": args.split, "pool": args.text_descriptions,
        "pretrained": manifest.get("pretrained"), "weights_sha256": manifest.get("weights_sha256"),
        "versions": manifest.get("versions", {}), "images": texts["images"], "layers": layers, **figures,
        "texts_per_head": args.texts_per_head, "num_of_last_layers": texts["num_of_last_layers"],
        "number_of_texts": texts["number_of_texts"], "texts_accuracy": texts["accuracy"], 
        "ablations": {key: value for key, value in results["ablations"].items() if key != "command"},
        "truth": {key: value for key, value in truth.items() if key not in ("heads", "command")} if truth else None,
        "commands": lines, "command_for_several": together, "heads": heads}


def check_folder(folder: Path) -> None:
    """Raises UserError for a folder that holds anything but an earlier report."""
    if not folder.exists() or folder.is_dir() and not any(folder.iterdir()):
        return
    try:
        ours = {RECORD, *json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--output_dir {folder}: is there already, and no report of this script; choose another") from error
    foreign = sorted(_files(folder) - ours)
    if foreign:
        raise UserError(f"--output_dir {folder}: beside the report, it holds {foreign[0]}, which would be lost; move it away")


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


@contextlib.contextmanager
def complete_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, under a partial name beside the final one; when it is complete, it takes the place of a report
    there. What is not completed is removed."""
    folder = folder.resolve()
    partial, old = (folder.with_name(f"{folder.name}{ending}.partial") for ending in ("", ".old"))
    for path in (partial, old):
        shutil.rmtree(path, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    finally:
        for path in (partial, old):
            shutil.rmtree(path, ignore_errors=True)


def save_page(content: dict, folder: Path) -> int:
    """Write index.html and report.json into a folder that holds the pictures. Returns the folder's size in bytes."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), undefined=jinja2.StrictUndefined, autoescape=True,
                                     trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": _percent, "change": _change, "score": _score}
    own = {name: Markup((HERE / f"page.{name}").read_text(encoding="utf-8")) for name in ("css", "js")}
    page = environment.get_template("page.html.j2").render(**content, **own)
    (folder / "index.html").write_text(page, encoding="utf-8")
    content = {"made_by": "make_report.py", **content, "files": sorted(_files(folder))}
    (folder / RECORD).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _percent(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}f}%"


def _change(points: float) -> str:
    """A difference of percentages; one that rounds to 0 has no sign."""
    text = f"{points:+.1f}"
    return "±0.0" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def _score(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")
