"""Arrays on disk. The only file that knows how a file is named and laid out.

    {dataset}_{attn|mlp|conv|cls_attn}_{model}.npy, {dataset}_labels.npy, {dataset}_components_{model}.json
                                                                      from compute_prs.py
    {dataset}_{heads|scalars|readout|mean|second}_{model}.npy         from compute_prs.py --compact, --moments_only
    {dataset}_classifier_{model}.npy                                  from compute_text_projection.py
    {text_set}_{model}.npy                                            from compute_text_set_projection.py

Of another split than the one that is read where none is asked for, the arrays are named {dataset}_{split}_... Beside
each group lies a manifest (JSON) that says what made it; readers use it to refuse arrays that do not belong together.
Everything is written under a `.partial` name and renamed when complete; what compute_prs.py writes can be gone on with
(utils/runs/writer.py).
"""
import hashlib
import importlib.metadata
import json
import mmap
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils import inputs
from utils.cli import UserError, complete
from utils.data.datasets import default_split
from utils.models.names import file_name
from utils.runs import commands

PACKAGES = ("torch", "open-clip-torch", "numpy")
# What the JSON of steps holds by these names.
KINDS = {"arrays": list, "baseline": (int, float), "attention_ablated": list, "classes": list, "command": str,
         "heads": list, "image_key": str, "images": int, "maps": str, "model": str, "model_settings": dict,
         "num_of_last_layers": int, "options": dict, "pool": str, "pretrained": str, "reading": str,
         "skipped_indices": list, "source_model": str, "source_pretrained": str, "text_model": str, "text_option": str,
         "text_pretrained": str, "text_weights_sha256": str, "texts_per_head": int,
         "texts_sha256": str, "weights_sha256": str}
OF_RUN = ("arrays", "model", "pretrained", "weights_sha256", "images", "classes")  # what every run's manifest has
CHUNK = 1 << 24  # bytes that have a checksum of their own
BLOCK = 256  # images that are in memory at a time


def run_name(dataset: str, split: str | None) -> str:
    """How a run of compute_prs.py is called in file names: by its data set, and by the split where it was asked for."""
    return dataset if split in (None, default_split(dataset)) else f"{dataset}_{split}"


@dataclass(frozen=True)
class Place:
    """Where a run is: its folder, and the data set, model and split it is of, as they were given to the script that
    made it."""
    folder: str
    dataset: str
    model: str
    split: str | None = None

    @property
    def name(self) -> str:
        """How the run is called in file names, without its model."""
        return run_name(self.dataset, self.split)

    @property
    def model_name(self) -> str:
        """How the model is called in file names."""
        return file_name(self.model)

    @property
    def manifest(self) -> Path:
        """Path of its manifest."""
        return manifest_path(self.folder, self.name, self.model_name)

    def path(self, what: str, suffix: str = ".npy", folder: str | None = None) -> Path:
        """Path of one of its arrays, or of what a script found in it, there or in another folder."""
        about = what if what == "labels" else f"{what}_{self.model_name}"  # labels belong to the data set alone
        return Path(folder or self.folder) / f"{self.name}_{about}{suffix}"

    @property
    def words(self) -> tuple:
        """Folder, data set, model and split."""
        return self.folder, self.dataset, self.model, self.split

    def command(self, given: dict | None = None) -> str:
        """The command that makes it; `given` are options of the model and the data set that the user has given."""
        return commands.make_run(*self.words, given)

    def is_there(self) -> bool:
        """Whether terms of it are there, in whatever storage."""
        return any(self.path(what).is_file() for what in ("attn", "heads", "mean"))


def check_there(places: Sequence[Place], classifier: bool = False, pools: Sequence[str] = (),
                text_dir: str = "text_descriptions", heads: tuple[str, int] | None = None, ablations: bool = False,
                given: dict | None = None) -> None:
    """Refuse, before anything is read, inputs that are missing: all in one line, with all commands that make them, in
    the order in which they need each other.

    Inputs are the runs at `places`, of the first of them the zero-shot `classifier`, the embeddings of text `pools` of
    a folder, TextSpan's texts of its `heads` by the name of their pool and their number, and its `ablations`. `given`
    are options of the model and the data set that the user has given. Raises UserError.
    """
    missing: dict[Path, str] = {}

    def need(path: Path, command: str) -> None:
        if not path.is_file():
            missing[path] = command

    def need_run(place: Place) -> None:
        if place.is_there():
            return
        source, mapped, clip = place.model.partition("-as-")
        if mapped:
            train = [replace(place, model=model, split="train") for model in (source, clip)]
            for before in (*train, replace(place, model=source)):
                need_run(before)
        missing[place.path("attn")] = place.command(given)

    for place in places:
        need_run(place)
    place = places[0]
    folder, manifest = place.folder, read_manifest(place.manifest) if place.manifest.is_file() else None
    model = text_side(place.model.partition("-as-")[2] or place.model, manifest)[0]
    about = given if model == place.model else None
    spans = place.path(texts_of_heads(*heads), ".json") if heads else None
    if heads and not spans.is_file():  # which are made from these
        classifier, pools = True, [*pools, heads[0]]
    if classifier and not place.path("mean").is_file():  # moments have no accuracy
        need(term_path(folder, place.dataset, "classifier", file_name(model)),
             commands.make_classifier(folder, place.dataset, model, place.split, about))
    for pool in dict.fromkeys(pools):
        need(text_path(folder, pool, file_name(model)), commands.make_texts(folder, pool, model, text_dir, about))
    if ablations:
        need(place.path("ablations", ".json"), commands.make_ablations(*place.words))
    if heads:
        need(spans, commands.make_texts_of_heads(*place.words, *heads, text_dir))
    if missing:
        do, them = ("does", "it") if len(missing) == 1 else ("do", "them")
        raise UserError(f"{', '.join(map(str, missing))} {do} not exist; make {them} with: "
                        + " && ".join(dict.fromkeys(missing.values())))


def term_path(folder: str, dataset: str, what: str, model: str) -> Path:
    """Path of an array of a data set and a model, such as a classifier."""
    return Place(folder, dataset, model).path(what)


def texts_of_heads(text_set: str, texts_per_head: int) -> str:
    """How TextSpan's texts of a run's heads are called in file names: with .txt the published report, with .json all of
    it."""
    return f"completeness_{text_set}_top_{texts_per_head}_heads"


def text_path(folder: str, text_set: str, model: str) -> Path:
    """Path of a text pool's embeddings."""
    return Path(folder) / f"{text_set}_{model}.npy"


def manifest_path(folder: str, *parts: str) -> Path:
    """Path of a manifest: of a run (dataset, model), a classifier (dataset, "classifier", model), a pool (pool,
    model)."""
    return Path(folder) / f"{'_'.join(parts)}.json"


def write_arrays(manifest: Path, arrays: dict[Path, np.ndarray], description: dict) -> None:
    """Write small arrays and their manifest; none has its name before all are complete. Larger ones: `RunWriter`."""
    manifest.parent.mkdir(parents=True, exist_ok=True)
    partials = {path: path.with_name(path.name + ".partial") for path in arrays}
    try:
        for path, values in arrays.items():
            with partials[path].open("wb") as file:
                np.save(file, values)
        publish(manifest, description, [describe(path, values) for path, values in arrays.items()], partials)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


def describe(path: Path, values: np.ndarray) -> dict:
    """An array as a manifest lists it."""
    return {"file": path.name, "shape": list(values.shape), "dtype": values.dtype.name}


def publish(manifest: Path, description: dict, arrays: list[dict], partials: dict[Path, Path]) -> None:
    """Give complete arrays, whose names are still partial, their own, and write the manifest last: a description of
    them, and the entries of `arrays`."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    with complete(manifest) as ready:
        sums = [checksum(partials.get(path := manifest.with_name(entry["file"]), path)) for entry in arrays]
        content = {**description, "versions": versions,
                   "arrays": [entry | {"sha256": found} for entry, found in zip(arrays, sums)]}
        ready.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8",
                         errors="backslashreplace")  # a name of a file may be any bytes
        manifest.unlink(missing_ok=True)  # from here on it would describe arrays that are being replaced
        for path, partial in partials.items():
            os.replace(partial, path)


def checksum(path: Path) -> str:
    """SHA-256 of the SHA-256 of each CHUNK of a file, one after the other; several are read at a time, as all cores
    together are faster than most disks, and one is not."""
    def part(start: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return hashlib.sha256(file.read(CHUNK)).digest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return hashlib.sha256(b"".join(pool.map(part, range(0, path.stat().st_size, CHUNK)))).hexdigest()


def verify(folder: str) -> list[str]:
    """Read every array that a manifest of a folder lists, whole, and say a line of each: whether it is there, as it was
    written (by its checksum), and without NaN and infinity. Raises UserError, with all that is wrong, for one that is
    not, and where there is no manifest."""
    good, bad = [], []
    for path in sorted(Path(folder).glob("[!.]*.json")):
        try:
            manifest = read_manifest(path, ("arrays",))
        except UserError:
            continue  # another kind of result
        for entry in manifest["arrays"]:
            file = path.with_name(entry["file"])
            try:
                array = open_array(file, manifest, f"the command in {path.name}")
                if entry.get("sha256", found := checksum(file)) != found:
                    raise UserError(f"{file}: differs from what was written (its checksum is another); copy it again, "
                                    f"or make it again with the command in {path.name}")
                for block in blocks(len(array), description=file.name):
                    array[block]
                good.append(f"{file}: as it was written" if "sha256" in entry
                            else f"{file}: complete; no checksum known")
            except UserError as error:
                bad.append(str(error))
    if bad or not good:
        raise UserError("; ".join(bad) or f"{folder}: holds no arrays with a manifest; give the folder they are in")
    return good


def read_manifest(path: Path, needed: Sequence[str] = ("arrays", "pretrained", "weights_sha256")) -> dict | None:
    """A manifest with all that is `needed`; None, with a warning, where there is none. Raises UserError for another
    file."""
    if not path.is_file():
        print(f"warning: no manifest {path.name}; its arrays are read unchecked", file=sys.stderr)
        return None
    content = read_json(path, needed, "delete it or make the arrays again")
    arrays = content.get("arrays", [])
    if not all(isinstance(entry, dict) and {"file", "shape", "dtype"} <= set(entry) and isinstance(entry["file"], str)
               for entry in arrays):
        raise UserError(f"{path}: lists arrays in another way than this project; delete it or make the arrays again")
    return content


def read_json(path: Path, needed: Sequence[str], instead: str) -> dict:
    """What a step wrote as JSON: a mapping that has all that is `needed`, and what it has in the KINDS of this project.

    Raises UserError for anything else, which says what to do `instead`.
    """
    content = inputs.read_json(path, dict, instead)
    for name in {*needed, *KINDS} & {*needed, *content}:
        kind, value = KINDS.get(name, object), content.get(name)
        if (name in needed and value is None) or not (value is None or isinstance(value, kind)):
            raise UserError(f"{path}: {name} is {'missing' if value is None else 'of another kind'}, so that it is no "
                            f"file of this project; {instead}")
    return content


def is_finite(values: np.ndarray) -> bool:
    """Whether an array in memory holds neither NaN nor infinity."""
    if values.dtype == np.float16:  # by the bits of the exponent, which is many times faster
        return (values.view(np.uint16) & 0x7C00).max(initial=0) < 0x7C00
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())


class Stored:
    """An array in a .npy file: `stored[key]` is a copy of that part, which may hold neither NaN nor infinity; `hint`
    makes the file again. What numpy maps from a file stays in memory until others need it; here its pages are given
    back at once, so that a long file takes no more than a short one."""

    def __init__(self, array: np.memmap, hint: str):
        self.array, self.map, self.hint = array, array._mmap, hint
        self.shape, self.dtype, self.ndim, self.size = array.shape, array.dtype, array.ndim, array.size

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, key) -> np.ndarray:
        found = np.array(self.array[key])
        self.map.madvise(mmap.MADV_DONTNEED)
        if not is_finite(found):
            rows = np.atleast_1d(np.arange(len(self.array))[key[0] if isinstance(key, tuple) else key]).ravel()
            row = rows[[not is_finite(np.ascontiguousarray(part)) for part in np.atleast_1d(found)].index(True)]
            raise UserError(f"{self.array.filename}, row {row}: holds NaN or infinity, and every figure made of it "
                            f"would be wrong; make it again with: {self.hint}")
        return found

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[...], dtype)

    def reshape(self, *shape: int) -> "Stored":
        """The same file in another shape."""
        return Stored(self.array.reshape(*shape), self.hint)


def blocks(images: int, size: int = BLOCK, description: str = "images") -> Iterator[slice]:
    """Slices that cover all images in order, with a progress bar where it takes long."""
    with tqdm(total=images, desc=description, unit="image", delay=3, leave=False) as progress:
        for start in range(0, images, size):
            yield slice(start, min(start + size, images))
            progress.update(min(size, images - start))


def open_array(path: Path, manifest: dict | None, hint: str) -> Stored:
    """An array that is read from disk as it is needed, checked against its manifest."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; make it with: {hint}")
    try:
        array = Stored(np.load(path, mmap_mode="r", allow_pickle=False), hint)
    except (ValueError, EOFError) as error:
        raise UserError(f"{path}: not a complete .npy file; make it again with: {hint}") from error
    entry = next((entry for entry in (manifest or {}).get("arrays", []) if entry["file"] == path.name), None)
    if manifest and (entry is None or entry["shape"] != list(array.shape) or entry["dtype"] != array.dtype.name):
        raise UserError(f"{path}: differs from what its manifest says; it comes from another run, make it again with: "
                        f"{hint}")
    return array


def text_side(model: str, run: dict | None) -> tuple[str, dict | None]:
    """The model whose texts go with a run, as it was given, and its weights: the run's own, or the CLIP's that it was
    mapped to."""
    if run and "text_model" in run:
        return run["text_option"], {"weights_sha256": run["text_weights_sha256"], "pretrained": run["text_pretrained"],
                                    "model_settings": run.get("text_settings")}
    return model, run


def open_classifier(folder: str, dataset: str, model: str, run: dict | None, width: int) -> np.ndarray:
    """The classifier [d, classes] of a data set. `model` is as it was given; `run`, the manifest, and `width` are those
    of the terms it goes with."""
    model, weights = text_side(model, run)
    hint, model = commands.make_classifier(folder, dataset, model), file_name(model)
    path = term_path(folder, dataset, "classifier", model)
    if not path.is_file():
        raise UserError(f"{path} does not exist; make it with: {hint}")
    manifest = read_manifest(manifest_path(folder, dataset, "classifier", model),
                             ("arrays", "pretrained", "weights_sha256", "classes"))
    array = open_array(path, manifest, hint)
    if array.ndim != 2 or len(array) != width:
        raise UserError(f"{path}: has shape {array.shape}, and the terms are {width} wide; make it again with: {hint}")
    same_weights(path, manifest, weights, hint)
    if run and manifest and run.get("classes", manifest.get("classes")) != manifest.get("classes"):
        raise UserError(f"{path}: has other classes than the run; make it again with: {hint}")
    return np.asarray(array, dtype=np.float32)


def texts_hash(texts: list[str]) -> str:
    """SHA-256 of a text pool, by which its embeddings are known to be its own."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def same_weights(path: Path, manifest: dict | None, run: dict | None, hint: str) -> None:
    """Refuse arrays of two different models under one name."""
    if manifest and run and manifest["weights_sha256"] != run["weights_sha256"]:
        weights = "" if "text_model" in run else f" --pretrained {run['pretrained']}"  # compute_alignment.py needs none
        raise UserError(f"{path}: was made with other weights ({manifest['pretrained']}) than the terms "
                        f"({run['pretrained']}); make it again with: {hint}{weights}")
    if manifest and run:
        same_settings(str(path), manifest.get("model_settings"), run.get("model_settings"), hint)


def same_settings(what: str, settings: dict | None, others: dict | None, hint: str) -> None:
    """Refuse what was made with other settings of the model than the arrays that it goes with, as far as both say."""
    for name, value in (settings or {}).items():
        if others and others.get(name, value) != value:
            raise UserError(f"{what}: was made with {name} {value}, and the terms with {others[name]}; make it again "
                            f"with the same --{name}: {hint}")


def open_text_terms(folder: str, pool: str, model: str, texts: list[str]) -> tuple[np.ndarray, dict]:
    """The terms [m, c, d] of a pool with these lines, heads layer by layer, then the start embedding and the MLPs, as
    compute_text_prs.py wrote them, and their manifest. Raises UserError where they are missing, or of other texts."""
    hint = f"python compute_text_prs.py --data_path text_descriptions/{pool}.txt --model {model} --output_dir {folder}"
    path = manifest_path(folder, pool, "text", file_name(model))
    if not path.is_file():
        raise UserError(f"{path} does not exist; make it with: {hint}")
    manifest = read_manifest(path)
    if manifest["texts_sha256"] != texts_hash(texts):
        raise UserError(f"{path}: was made from other texts than {pool}.txt holds now; make it again with: {hint}")
    attn, mlp = (np.asarray(open_array(term_path(folder, pool, f"text_{what}", file_name(model)), manifest, hint))
                 for what in ("attn", "mlp"))
    return np.concatenate([attn.reshape(len(attn), -1, attn.shape[-1]), mlp], axis=1), manifest
