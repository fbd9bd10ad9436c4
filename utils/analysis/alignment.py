"""Linear maps from the components of any decomposed model to a CLIP's joint space (arXiv 2406.01583).

One map a component, W [k, d], and one bias, shared out evenly; the sum of the mapped components should have the
direction of the CLIP's representation of the same image, and every map should be close to orthogonal.
"""
import hashlib
import importlib.metadata
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from utils import cli
from utils.cli import UserError
from utils.models import loading
from utils.models.model import Model
from utils.runs import files
from utils.runs.components import by_array
from utils.runs.files import BLOCK, Place, blocks
from utils.runs.run import Run
from utils.runs.writer import RunWriter

HELD_OUT = 0.1  # of the images, for validation
RIDGE = 1e-3  # penalty of the ridge start, in units of the mean variance of a coordinate
KEY = "maps"  # one entry of metadata: safetensors writes several in no fixed order


@dataclass
class Maps:
    """Maps and what they were trained for."""
    weight: Tensor  # [c, k, d]
    bias: Tensor    # [d]: for the sum of all components
    about: dict     # model, clip, their weights' hashes, components, cosine, options
    sha256: str     # of the file
    path: str = ""  # of the file


def same_images(run: Run, another: Run) -> None:
    """Raises UserError unless two runs, by their manifests, are of the same images, as far as both say."""
    manifest, other = run.manifest, another.manifest
    for key, what in (("images", "number of images"), ("skipped_indices", "skipped images"), ("classes", "classes"),
                      ("images_sha256", "images (names or labels)")):
        if None not in (manifest.get(key), other.get(key)) and manifest[key] != other[key]:
            raise UserError(f"the arrays of {manifest['model']} and {other['model']} differ in their {what}; make both "
                            "with compute_prs.py from the same data set and split")


def stack(run: Run, rows: np.ndarray | slice) -> Tensor:
    """The components [b, c, k] of some images, float32."""
    return torch.from_numpy(run.stack(rows))


def sums(run: Run) -> Tensor:
    """Representations [b, k] of all images: the sums of their terms, float32."""
    return torch.cat([stack(run, block).sum(dim=1) for block in blocks(len(run), description="sums")])


def hold_out(images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, and a tenth held out, each in order. Raises UserError where there are too few."""
    if images < 2:
        raise UserError(f"the arrays hold {images} image; training needs at least two, one of them held out")
    held = np.zeros(images, bool)
    held[np.random.default_rng(seed).permutation(images)[:max(1, round(HELD_OUT * images))]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def ridge(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Ridge regression of y [b, d] on x [b, k] with an intercept: weight [k, d] and bias [d], from moments in float64.

    The penalty is RIDGE x b x the mean variance of a coordinate of x.
    """
    mean_x, mean_y = x.mean(dim=0, dtype=torch.float64), y.mean(dim=0, dtype=torch.float64)
    gram, cross = torch.zeros(x.shape[1], x.shape[1]).double(), torch.zeros(x.shape[1], y.shape[1]).double()
    for block in blocks(len(x), size=4096):
        centred = x[block] - mean_x
        gram += centred.T @ centred
        cross += centred.T @ (y[block] - mean_y)
    penalty = RIDGE * gram.diagonal().mean() * torch.eye(len(gram)).double()
    weight = torch.linalg.solve(gram + penalty, cross)
    return weight.float(), (mean_y - mean_x @ weight).float()


def start(kind: str, number: int, x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Weights [c, k, d] and bias [d] to begin with, for `number` components and representations x [b, k] and y [b, d].

    "ridge": the ridge solution for the whole representation, the same for all components, at the scale where the
    penalty is least; the cosine does not depend on it. "random": normal numbers, W'W the identity in expectation.
    """
    if kind == "random":
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(number, x.shape[1], y.shape[1], generator=generator) * x.shape[1] ** -0.5
        return weight, torch.zeros(y.shape[1])
    weight, bias = ridge(x, y)
    gram = weight.T @ weight
    scale = (gram.trace() / gram.square().sum()).sqrt()
    return (weight * scale).expand(number, -1, -1).clone(memory_format=torch.contiguous_format), bias * scale


def mapped(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """Mapped components [b, c, d] of x [b, c, k], the bias shared out evenly."""
    return torch.einsum("bck,ckd->bcd", x, weight) + bias / len(weight)


def cosines(weight: Tensor, bias: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Cosine [b] of the sum of mapped components x [b, c, k] and the representations y [b, d]."""
    return F.cosine_similarity(x.flatten(1) @ weight.flatten(0, 1) + bias, y, dim=-1)


def penalty(weight: Tensor) -> Tensor:
    """How far maps [c, k, d] are from orthogonal: d x mean((W'W - I)^2), averaged over components, so that its weight
    means the same for models with few and with many of them."""
    d = weight.shape[-1]
    identity = torch.eye(d, dtype=weight.dtype, device=weight.device)
    return d * (weight.transpose(1, 2) @ weight - identity).square().mean()


def mean_cosine(weight: Tensor, bias: Tensor, run: Run, targets: Tensor, rows: np.ndarray) -> float:
    """Mean cosine over some images, read in blocks."""
    total = 0.0
    with torch.no_grad():
        for block in blocks(len(rows), description="cosines"):
            chosen = rows[block]
            x, y = stack(run, chosen).to(weight.device), targets[chosen].to(weight.device)
            total += cosines(weight, bias, x, y).double().sum().item()
    return total / len(rows)


def train(run: Run, targets: Tensor, kind: str, epochs: int, lr: float, batch_size: int, penalty_weight: float,
          seed: int, device) -> tuple[Tensor, Tensor, list[dict]]:
    """Train maps of components `run` to representations `targets` [b, d] with Adam, from a `start` of that kind.

    Images come in a new random order every epoch, read row by row from disk. Returns weights [c, k, d], bias [d] of the
    epoch with the highest cosine on the images held out, and for the start (epoch 0) and every epoch its cosine on
    images trained on (as many as are held out) and held out, and its penalty. Raises UserError where training diverges.
    """
    rows, held = hold_out(len(targets), seed)
    rng = np.random.default_rng(seed)
    shown = np.sort(rng.permutation(rows)[:len(held)])
    weight, bias = start(kind, len(run.components), sums(run)[rows], targets[rows], seed)
    weight, bias = weight.to(device).requires_grad_(), bias.to(device).requires_grad_()
    optimizer, history, best = torch.optim.Adam([weight, bias], lr=lr), [], None
    with tqdm(total=epochs * len(rows), desc="training", unit="image", delay=3) as progress:
        for epoch in range(epochs + 1):
            order = rng.permutation(rows) if epoch else rows[:0]
            for first in range(0, len(order), batch_size):
                chosen = order[first:first + batch_size]
                distance = 1 - cosines(weight, bias, stack(run, chosen).to(device), targets[chosen].to(device)).mean()
                optimizer.zero_grad()
                (distance + penalty_weight * penalty(weight)).backward()
                optimizer.step()
                progress.update(len(chosen))
            with torch.no_grad():
                history.append({"epoch": epoch, "train_cosine": mean_cosine(weight, bias, run, targets, shown),
                                "validation_cosine": mean_cosine(weight, bias, run, targets, held),
                                "penalty": penalty(weight).item()})
            if not all(map(math.isfinite, history[-1].values())):
                raise UserError(f"the training diverged in epoch {epoch}; give a smaller --lr than {lr:g}")
            if epoch and history[-1] is max(history[1:], key=lambda entry: entry["validation_cosine"]):
                best = [weight.detach().cpu().clone(), bias.detach().cpu().clone()]
    return *best, history


def describe_pair(run: Run, target: Run) -> dict:
    """What maps of a run to that of a CLIP hold about both, by which `check` knows where they belong."""
    manifest, other = run.manifest, target.manifest
    return {"model": run.place.model_name, "pretrained": manifest["pretrained"],
            "weights_sha256": manifest["weights_sha256"], "model_settings": manifest.get("model_settings"),
            "clip": target.place.model_name, "clip_option": other["model"], "clip_pretrained": other["pretrained"],
            "clip_weights_sha256": other["weights_sha256"], "clip_settings": other.get("model_settings"),
            "components": run.layout,
            "versions": {name: importlib.metadata.version(name) for name in (*files.PACKAGES, "safetensors")}}


def save(path: Path, weight: Tensor, bias: Tensor, about: dict) -> None:
    """Write maps; the file has its name only when it is complete."""
    with cli.complete(path) as partial:
        partial.write_bytes(safetensors.torch.save({"weight": weight, "bias": bias}, metadata={KEY: json.dumps(about)}))


def load(path: Path, instead: str = "leave --maps out to train them") -> Maps:
    """Maps from their file. Raises UserError for what is not one, which says what to do `instead`."""
    if not path.is_file():
        raise UserError(f"--maps {path} does not exist; {instead}")
    try:
        with safe_open(path, "pt") as file:
            about, weight, bias = json.loads(file.metadata()[KEY]), file.get_tensor("weight"), file.get_tensor("bias")
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"--maps {path}: not maps of compute_alignment.py, or cut off; {instead}") from error
    with path.open("rb") as file:
        return Maps(weight, bias, about, hashlib.file_digest(file, "sha256").hexdigest(), str(path))


def check(maps: Maps, run: Run, clip: str, target: Run | None) -> None:
    """Refuse maps that were trained for another model, layout of components, weights, or `clip` (its name in file
    names). `target` is the CLIP's run, where there is one."""
    model, about = run.place.model_name, maps.about
    again = "give the --maps that belong together, or leave --maps out to train them"
    for option, trained, given in (("model", about["model"], model), ("clip", about["clip"], clip)):
        if trained != given:
            raise UserError(f"--maps were trained with --{option} {trained}, and --{option} is {given}; {again}")
    if about["components"] != run.layout:
        shapes = [", ".join(f"{what} {shape}" for what, shape in layout.items())
                  for layout in (about["components"], run.layout)]
        raise UserError(f"--maps were trained for components {shapes[0]}, and the arrays hold {shapes[1]}; {again}")
    for name, trained, key, made in ((model, about["weights_sha256"], "model_settings", run),
                                     (clip, about["clip_weights_sha256"], "clip_settings", target)):
        if made:
            files.same_settings(f"--maps {maps.path}, of {name}", about.get(key), made.manifest.get("model_settings"),
                                "compute_alignment.py without --maps")
        if made and trained != made.manifest["weights_sha256"]:
            raise UserError(f"--maps were trained with other weights of {name} than those of the arrays "
                            f"({made.manifest['pretrained']}); {again}")


def load_model(name: str, pretrained: str | None, maps: str | None, device, seed: int,
               settings: dict | None = None) -> tuple[Model, Maps | None]:
    """The model of that name, and the maps of the file `maps` that carry it to a CLIP, where there is one; `settings`
    as of `loading.load`.

    Raises UserError for a model without texts or maps, and for maps of another model or other weights.
    """
    if maps is None:
        return loading.load(name, pretrained, device, seed, text_side=True, settings=settings), None
    trained = load(Path(maps), "make them with compute_alignment.py")
    about = trained.about
    model = loading.load(name, pretrained, device, seed, settings=loading.given(about) | (settings or {}))
    again = "give the --maps that belong to it, or make them with compute_alignment.py"
    if about["model"] != model.name:
        raise UserError(f"--maps were trained with --model {about['model']}, and --model is {model.name}; {again}")
    if about["weights_sha256"] != model.weights_hash:
        raise UserError(f"--maps were trained with other weights of {model.name} ({about['pretrained']}) than those "
                        f"of --model ({model.source}); {again}")
    files.same_settings(f"--maps {maps}", about.get("model_settings"), model.settings, again)
    trained.weight, trained.bias = trained.weight.to(device), trained.bias.to(device)
    return model, trained


def load_source(run: Run, pretrained: str | None, device, seed: int) -> tuple[Model | None, Maps | None]:
    """The model that made a run, of these options, or for a mapped run the model that was mapped, and the maps,
    whose place from the run's folder its manifest names: None where its manifest does not name them, or they are gone.

    Raises UserError for other weights, and for other maps.
    """
    manifest = run.manifest
    if not manifest or "text_model" not in manifest:
        return loading.load_same(manifest, run.place.model, pretrained, device, seed), None
    path = Path(run.place.folder, manifest.get("maps", ""))
    if not path.is_file():
        return None, None
    source, pretrained, seed = loading.options_of(manifest["source_model"], manifest["source_pretrained"])
    model, maps = load_model(source, pretrained, str(path), device, seed)  # with the settings that the maps say
    if maps.sha256 != manifest["weights_sha256"]:
        raise UserError(f"{path}: holds other maps than those of the arrays; make the arrays again with "
                        "compute_alignment.py")
    return model, maps


def text_side(about: dict) -> dict:
    """What the manifest of a mapped run says of the CLIP whose texts go with it, by what maps are about."""
    return {"text_model": about["clip"], "text_option": about["clip_option"],
            "text_pretrained": about["clip_pretrained"], "text_weights_sha256": about["clip_weights_sha256"],
            "text_settings": about.get("clip_settings"), "source_weights_sha256": about["weights_sha256"]}


def describe(maps: Maps | None) -> dict:
    """What a result says of the maps that it used; nothing where it used none."""
    return {"maps": maps.path, "maps_sha256": maps.sha256, **text_side(maps.about)} if maps else {}


def apply(maps: Maps, run: Run, folder: str, target: Run | None, device, command: str) -> tuple[Place, float | None]:
    """Write the mapped components of a run as the run of a model of its own, `{model}-as-{clip}`; of an image, they sum
    to unit length. `cls_attn` cannot be mapped: it is summed over heads, and every head has its own map.

    `target` is the CLIP's run of the same images, `command` what the manifest says made it. Returns where the mapped
    run is, and the mean cosine with the target.
    """
    about, total = maps.about, 0.0
    place = Place(folder, run.place.dataset, f"{about['model']}-as-{about['clip']}", run.place.split)
    weight, bias = maps.weight.to(device), maps.bias.to(device)
    with RunWriter(place.manifest, run.manifest.get("identity", {}), len(run), BLOCK) as writer, torch.no_grad():
        for number, block in enumerate(blocks(len(run), description="mapped images")):
            found = mapped(weight, bias, stack(run, block).to(device))
            found = (found / found.sum(dim=1, keepdim=True).norm(dim=-1, keepdim=True)).cpu()
            if target:
                wanted = stack(target, block).sum(dim=1)
                total += F.cosine_similarity(found.sum(dim=1), wanted, dim=-1).double().sum().item()
            terms = {place.path(what): (found[:, own].unflatten(1, run.layout[what][:-1]).numpy(), run.dtype.name)
                     for what, own in run.columns.items()}
            writer.write(number, len(found), {**terms, place.path("labels"): (run.labels[block], "int64")}, [])
        cosine = total / len(run) if target else None
        if not run.is_plain:
            cli.save_result(place.path("components", ".json"), by_array(run.components))
        writer.finish({**run.manifest, "model": place.model, "weights_sha256": maps.sha256, "cosine": cosine,
                       "source_model": run.manifest["model"], "source_pretrained": run.manifest["pretrained"],
                       "maps": os.path.relpath(maps.path, folder), "command": command,
                       "pretrained": f"{about['pretrained']}, mapped to {about['clip']} {about['clip_pretrained']}",
                       **text_side(about)}, {})
    return place, cosine
