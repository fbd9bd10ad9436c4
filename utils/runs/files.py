"""Arrays on disk. The only file that knows how a file is named and laid out.

    {dataset}_{attn|mlp|conv|cls_attn}_{model}.npy, {dataset}_labels.npy, {dataset}_components_{model}.json
                                                                      from compute_prs.py
    {dataset}_{heads|scalars|readout|mean|second}_{model}.npy         from compute_prs.py --compact, --moments_only
    {dataset}_classifier_{model}.npy                                  from compute_text_projection.py
    {text_set}_{model}.npy                                            from compute_text_set_projection.py

Of another split than the one that is read where none is asked for, the arrays are named {dataset}_{split}_...
Beside each group lies a manifest (JSON) that says what made it; readers use it to refuse arrays
that do not belong together. Everything is written under a `.partial` name and renamed when complete; what compute_prs.py
writes can be gone on with (utils/runs/writer.py).
"""
import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
import sys
from pathlib import Path

import numpy as np

from utils.cli import UserError, save_result, write_text  # noqa: F401
from utils.data.datasets import Images, default_split
from utils.models.names import TIMM, file_name
from utils.runs.stored import Stored
from utils.runs.terms import WHAT, HeadTerms, Run

write_json = save_result  # until every caller says cli.save_result
PACKAGES = ("torch", "open-clip-torch", "numpy")


def run_name(dataset: str, split: str | None) -> str:
    """How a run of compute_prs.py is called in file names: by its data set, and by the split where it was asked for."""
    return dataset if split in (None, default_split(dataset)) else f"{dataset}_{split}"


def term_path(folder: str, dataset: str, what: str, model: str) -> Path:
    """Path of one array of a run; labels belong to the data set alone."""
    return Path(folder) / (f"{dataset}_labels.npy" if what == "labels" else f"{dataset}_{what}_{model}.npy")


def text_path(folder: str, text_set: str, model: str) -> Path:
    """Path of a text pool's embeddings."""
    return Path(folder) / f"{text_set}_{model}.npy"


def spans_path(folder: str, run: str, text_set: str, texts_per_head: int, model: str) -> Path:
    """Path of TextSpan's texts of a run (`run_name`): the published report; with the suffix .json, all of it."""
    return Path(folder) / f"{run}_completeness_{text_set}_top_{texts_per_head}_heads_{model}.txt"


def manifest_path(folder: str, *parts: str) -> Path:
    """Path of a manifest: of a run (dataset, model), a classifier (dataset, "classifier", model), a pool (pool, model)."""
    return Path(folder) / f"{'_'.join(parts)}.json"


class ArrayWriter:
    """One .npy file that grows along its first axis, one batch after the other."""

    def __init__(self, path: Path, dtype: str):
        self.path, self.dtype = path, np.dtype(dtype)
        self.partial = path.with_name(path.name + ".partial")
        self.file = self.partial.open("wb")
        self.shape: tuple[int, ...] | None = None

    def _header(self) -> None:
        # numpy pads the header so that the first axis can be rewritten in place.
        np.lib.format.write_array_header_1_0(self.file, {
            "descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": self.shape})

    def append(self, values: np.ndarray) -> None:
        """Write a batch [b, ...]."""
        if self.shape is None:
            self.shape = (0, *values.shape[1:])
            self._header()
        self.file.write(np.ascontiguousarray(values, self.dtype).data)
        self.shape = (self.shape[0] + len(values), *self.shape[1:])

    def close(self) -> dict:
        """Complete the file under its partial name. Returns its shape and type for the manifest."""
        self.file.flush()
        self.file.seek(0)
        self._header()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return {"file": self.path.name, "shape": list(self.shape), "dtype": self.dtype.name}


class Writer:
    """Writes a group of arrays and their manifest. Used with `with`: what is not finished is removed."""

    def __init__(self, manifest: Path):
        self.manifest, self.arrays = manifest, {}
        manifest.parent.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Writer":
        return self

    def append(self, path: Path, values: np.ndarray, dtype: str = "float32") -> None:
        """Append a batch to the array of that path."""
        if path not in self.arrays:
            self.arrays[path] = ArrayWriter(path, dtype)
        self.arrays[path].append(values)

    def finish(self, description: dict) -> None:
        """Give every array its final name, and write the manifest last."""
        layout = [writer.close() for writer in self.arrays.values()]
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        ready = self.manifest.with_name(self.manifest.name + ".new.partial")
        try:
            write_json(ready, {**description, "versions": versions, "arrays": layout})  # a full disk shows before any renaming
            self.manifest.unlink(missing_ok=True)  # from here on it would describe arrays that are being replaced
            for writer in self.arrays.values():
                os.replace(writer.partial, writer.path)
            os.replace(ready, self.manifest)
        finally:
            ready.unlink(missing_ok=True)

    def __exit__(self, *_) -> None:
        for writer in self.arrays.values():
            with contextlib.suppress(OSError):  # closing flushes, which a full disk refuses once more
                writer.file.close()
            writer.partial.unlink(missing_ok=True)


def read_manifest(path: Path) -> dict | None:
    """A manifest; None, with a warning, where there is none."""
    if not path.is_file():
        print(f"warning: no manifest {path.name}; its arrays are read unchecked", file=sys.stderr)
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not a manifest of this project; delete it or make the arrays again") from error


def open_array(path: Path, manifest: dict | None, hint: str) -> Stored:
    """An array that is read from disk as it is needed, checked against its manifest."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; make it with: {hint}")
    try:
        array = Stored(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise UserError(f"{path}: not a complete .npy file; make it again with: {hint}") from error
    entry = next((entry for entry in (manifest or {}).get("arrays", []) if entry["file"] == path.name), None)
    if manifest and (entry is None or entry["shape"] != list(array.shape) or entry["dtype"] != array.dtype.name):
        raise UserError(f"{path}: differs from what its manifest says; it comes from another run, make it again with: {hint}")
    return array


def command(folder: str, dataset: str, model: str, split: str | None) -> str:
    """The command that makes a run. `model` is as it was given, or of a mapped run its name."""
    maker, given, option = "compute_prs.py", model, "split"
    if "-as-" in model:
        source, _, clip = model.partition("-as-")
        maker, given, option = "compute_alignment.py", f"{source} --clip {clip} --input_dir {folder}", "apply"
    part = f" --{option} {split}" if split else ""
    return f"python {maker} --dataset {dataset} --model {given} --output_dir {folder}{part}"


def _storage(manifest: dict | None) -> str:
    """How the terms of heads are kept: full, compact or moments."""
    return (manifest or {}).get("options", {}).get("storage", "full")


def has_images(folder: str, dataset: str, model: str, split: str | None) -> bool:
    """Whether a run, if it is there, has terms of single images, and not their moments alone."""
    made = manifest_path(folder, run_name(dataset, split), file_name(model))
    return not made.is_file() or _storage(read_manifest(made)) != "moments"


def open_run(folder: str, dataset: str, model: str, names: tuple[str, ...],
             split: str | None = None) -> tuple[Run, dict | None]:
    """Terms of one run, read from disk as they are needed, and its manifest (None for foreign arrays). `model` is as it was
    given.

    `names` are of "attn" (`HeadTerms`), "mlp" [b, m, d], which brings "conv" [b, n, d] where the model has convolution blocks,
    and "cls_attn" [b, l, d]; "labels" [b] come always. Raises UserError where one is missing, incomplete, or of another
    run, model or number of images.
    """
    run, manifest, _ = _open(folder, dataset, model, names, split)
    return run, manifest


def open_terms(folder: str, dataset: str, model: str, split: str | None) -> tuple[Run, dict, dict | None]:
    """All terms of a run, read from disk as they are needed, its manifest, and what names its components where a file does.

    Raises UserError as `open_run` does, and for arrays without a manifest.
    """
    run, manifest, names = _open(folder, dataset, model, ("mlp", "attn"), split)
    if _storage(manifest) == "compact":
        raise UserError(f"{folder}: the arrays of {dataset} and {model} were made with --compact, which keeps all MLPs as one, "
                        "and this step needs each; make them without it")
    if manifest is None:
        path = manifest_path(folder, run_name(dataset, split), file_name(model))
        raise UserError(f"{path} does not exist, and without it nobody knows which weights made the arrays; make them again "
                        f"with: {command(folder, dataset, model, split)}")
    return run, manifest, names


def _open(folder: str, dataset: str, model: str, names: tuple[str, ...],
          split: str | None) -> tuple[Run, dict | None, dict[str, list[dict]] | None]:
    """Terms of a run, its manifest, and what names its components, where shapes do not say which term is whose."""
    hint, dataset, model = command(folder, dataset, model, split), run_name(dataset, split), file_name(model)

    def path(what: str) -> Path:
        return term_path(folder, dataset, what, model)

    made = manifest_path(folder, dataset, model)
    manifest = read_manifest(made) if made.is_file() else None
    kept = _storage(manifest)
    if kept != "full":
        from utils.runs.compact import (  # not above: they need torch, which readers of other files have not
            CompactTerms,
            MomentTerms,
        )
    if kept == "moments":
        parts = [open_array(path(what), manifest, hint) for what in ("mean", "second", "readout")]
        run = {"attn": MomentTerms(manifest["images"], *parts)}
        if names != ("attn",):
            run["attn"][:]  # which says that there are no single images
        return run, manifest, None
    if kept == "compact" and "attn" in names:
        names = ("heads", "scalars", *(name for name in names if name != "attn"))
    first = path(names[0])
    if not first.is_file():
        raise UserError(f"{first} does not exist; make it with: {hint}")
    manifest = manifest or read_manifest(made)  # which warns that there is none
    listed = path("conv").is_file() if manifest is None else path("conv").name in [
        entry["file"] for entry in manifest["arrays"]]
    if listed and "mlp" in names:
        names = (*names, "conv")
    run = {name: open_array(path(name), manifest, hint) for name in names}
    images = len(run[names[0]])
    ranks = {"attn": (3, 4), "heads": (4,), "scalars": (2,), "mlp": (3,), "conv": (3,), "cls_attn": (3,)}
    if dataset == "imagenet" and not path("labels").is_file() and images == 50_000:
        run["labels"] = np.arange(images) // 50  # the published runs wrote none
    else:
        run["labels"] = np.asarray(open_array(path("labels"), None, hint))
    for name, array in run.items():
        if array.ndim not in ranks.get(name, (1,)):
            raise UserError(f"{path(name)}: has shape {array.shape}, which is not that of {name}")
        if len(array) != images:
            raise UserError(f"{path(name)}: holds {len(array)} images and {first.name} holds {images}; they are of different "
                            f"runs, make them again with: {hint}")
    if "heads" in run:
        run["attn"] = CompactTerms(run.pop("heads"), run.pop("scalars"), open_array(path("readout"), manifest, hint))
    widths = {array.shape[-1] for name, array in run.items() if name != "labels"}
    if len(widths) > 1:
        raise UserError(f"{folder}: the arrays of {dataset} and {model} have different widths {sorted(widths)}; "
                        f"make them again with: {hint}")
    described = None
    if listed or kept == "full" and "attn" in run and run["attn"].ndim == 3:
        described = _read_components(path("components").with_suffix(".json"), run, hint)
    if "attn" in run and kept == "full":
        heads = [(entry["block"], entry["head"] or 0) for entry in described["attn"]] if described else None
        run["attn"] = HeadTerms(run["attn"], heads)
    return run, manifest, described


def _read_components(path: Path, run: dict[str, np.ndarray], hint: str) -> dict[str, list[dict]]:
    """The names of a run's components. Raises UserError where there are not as many as the arrays hold."""
    if not path.is_file():
        raise UserError(f"{path} does not exist, which names the components of the arrays; make it with: {hint}")
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
        wrong = [what for what in WHAT if what in run and len(names[what]) != math.prod(run[what].shape[1:-1])]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: does not name the components of the arrays; make it again with: {hint}") from error
    if wrong:
        raise UserError(f"{path}: names {len(names[wrong[0]])} components of {wrong[0]}, which has shape {run[wrong[0]].shape}; "
                        f"make both again with: {hint}")
    return names


def image_indices(manifest: dict | None, rows: int, images: Images) -> np.ndarray:
    """For each of the `rows` images of a run, its index [rows] in the data set, whose `images` are those there now.

    Raises UserError where they do not belong together.
    """
    number, again = len(images.samples), "that they were made from, or make them again with compute_prs.py"
    indices = np.delete(np.arange(number), (manifest or {}).get("skipped_indices", []))
    if len(indices) != rows:
        raise UserError(f"the data set has {number} images, and the arrays hold {rows} of {number - len(indices) + rows}; "
                        f"give the --data_path and --split {again}")
    if manifest and manifest["classes"] != images.classes:
        raise UserError(f"the data set has other classes than the arrays; give the --data_path {again}")
    return indices


def _text_side(model: str, run: dict | None) -> tuple[str, dict | None]:
    """The model whose texts go with a run, as it was given, and its weights: the run's own, or the CLIP's that it was mapped
    to."""
    if run and "text_model" in run:
        return run["text_option"], {"weights_sha256": run["text_weights_sha256"], "pretrained": run["text_pretrained"]}
    return model, run


def open_classifier(folder: str, dataset: str, model: str, run: dict | None, width: int) -> np.ndarray:
    """The classifier [d, classes] of a data set. `model` is as it was given; `run`, the manifest, and `width` are those of the
    terms it goes with."""
    model, weights = _text_side(model, run)
    hint = f"python compute_text_projection.py --dataset {dataset} --model {model} --output_dir {folder}"
    model = file_name(model)
    path = term_path(folder, dataset, "classifier", model)
    if not path.is_file():
        raise UserError(f"{path} does not exist; make it with: {hint}")
    manifest = read_manifest(manifest_path(folder, dataset, "classifier", model))
    array = open_array(path, manifest, hint)
    if array.ndim != 2 or len(array) != width:
        raise UserError(f"{path}: has shape {array.shape}, and the terms are {width} wide; make it again with: {hint}")
    same_weights(path, manifest, weights, hint)
    if run and manifest and run.get("classes", manifest["classes"]) != manifest["classes"]:
        raise UserError(f"{path}: has other classes than the run; make it again with: {hint}")
    return np.asarray(array, dtype=np.float32)


def texts_hash(texts: list[str]) -> str:
    """SHA-256 of a text pool, by which its embeddings are known to be its own."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def open_texts(folder: str, text_set: str, model: str, run: dict | None, width: int, texts: list[str]) -> np.ndarray:
    """Embeddings [m, d] of the text pool with these lines, float32. `model`, `run` and `width` are as for a classifier."""
    model, weights = _text_side(model, run)
    hint = (f"python compute_text_set_projection.py --data_path text_descriptions/{text_set}.txt --model {model} "
            f"--output_dir {folder}")
    model = file_name(model)
    path = text_path(folder, text_set, model)
    if not path.is_file():
        raise UserError(f"{path} does not exist; make it with: {hint}")
    manifest = read_manifest(manifest_path(folder, text_set, model))
    array = open_array(path, manifest, hint)
    if array.shape != (len(texts), width):
        raise UserError(f"{path}: has shape {array.shape}, and {len(texts)} texts and terms of width {width} need "
                        f"{(len(texts), width)}; make it again with: {hint}")
    if manifest and manifest["texts_sha256"] != texts_hash(texts):
        raise UserError(f"{path}: was made from other texts than {text_set}.txt holds now; make it again with: {hint}")
    same_weights(path, manifest, weights, hint)
    return np.asarray(array, dtype=np.float32)


def same_weights(path: Path, manifest: dict | None, run: dict | None, hint: str) -> None:
    """Refuse arrays of two different models under one name."""
    if manifest and run and manifest["weights_sha256"] != run["weights_sha256"]:
        weights = "" if "text_model" in run else f" --pretrained {run['pretrained']}"  # compute_alignment.py needs none
        raise UserError(f"{path}: was made with other weights ({manifest['pretrained']}) than the terms "
                        f"({run['pretrained']}); make it again with: {hint}{weights}")


def own_clip(run: dict | None, model: str, instead: str) -> None:
    """Refuse arrays, whose manifest is `run`, that cannot be made again of a picture: mapped ones, and those of a model of
    timm. `instead` says what to do."""
    if run and "text_model" in run or (run or {}).get("model", model).startswith(TIMM):
        raise UserError(f"--model {model}: its arrays are not those of a CLIP, and pictures cannot be decomposed like them; "
                        f"{instead}")
