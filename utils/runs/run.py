"""A run: the terms of the images of a data set, whatever the storage."""
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from utils.cli import UserError
from utils.data.datasets import Images, load_images, names_hash
from utils.inputs import read_json
from utils.models.names import file_name
from utils.runs import commands, files
from utils.runs.components import ARRAYS, Component, plain_components
from utils.runs.files import Place, blocks
from utils.runs.storage import CompactHeads, FullTerms, MomentHeads

if TYPE_CHECKING:
    from torch import Tensor

SMALL_BLOCK = 64  # images whose every component is in memory at a time
AXES = {"attn": (3, 4), "heads": (4,), "scalars": (2,), "mlp": (3,), "conv": (3,), "cls_attn": (3,), "labels": (1,)}
MADE_OF = ("weights_sha256", "model_settings", "registers", "images_sha256")  # what tells runs apart
Rows = slice | Sequence[int] | np.ndarray


class Run:
    """What each component of a model wrote for each image of a data set: terms, whose sum is the representation.

    `components` are the heads, layer by layer, then the embedding and the MLPs, then convolution blocks; a column is a
    place among them, and `columns` are those of each array. `heads` are the components that are heads, and `layers` the
    blocks that have some. `labels` [b] are the images' classes, `cls_attn` [b, l, d] is the part of the heads' terms
    that comes from the class token (None where it is not known). `manifest` says what made the run (None for foreign
    arrays), `place` where it is. Only the rows and columns that are asked for are read.
    """

    def __init__(self, arrays: dict[str, np.ndarray], components: Sequence[Component] | None = None,
                 labels: np.ndarray | None = None, manifest: dict | None = None, place: Place | None = None):
        """`arrays` are attn [b, l, h, d] or [b, c, d], or what another storage has in its place, mlp [b, m, d], the
        embedding first, and where there are such conv [b, n, d] and cls_attn. Without `components`, they are a plain
        transformer's.
        """
        self.labels, self.manifest, self.place, self.cls_attn = labels, manifest, place, arrays.get("cls_attn")
        if "attn" in arrays:
            heads = FullTerms(arrays["attn"])
        elif "heads" in arrays:
            heads = CompactHeads(arrays["heads"], arrays["scalars"], arrays["readout"])
        else:
            heads = MomentHeads(arrays["mean"], arrays["second"], arrays["readout"])
        self.has_images = "mean" not in arrays  # or the moments of its heads alone
        self._parts = {"attn": heads} | {what: FullTerms(arrays[what]) for what in ("mlp", "conv") if what in arrays}
        self._images = len(heads.terms) if self.has_images else manifest["images"]
        # Shapes as they are stored, without images.
        self.layout = {what: list(part.layout) for what, part in self._parts.items()}
        self.dtype, self.width = heads.dtype, heads.layout[-1]
        if components is None:
            single = "attn" in arrays and "mlp" in arrays  # other storages keep all MLPs as one
            components = plain_components(*heads.layout[:2], arrays["mlp"].shape[1] - 1 if single else None)
        self.components = list(components)
        ends = np.cumsum([0, *(math.prod(part.layout[:-1]) for part in self._parts.values())]).tolist()
        self.columns = {what: slice(first, last) for what, first, last in zip(self._parts, ends, ends[1:])}
        self.is_plain = len(heads.layout) == 3 and "conv" not in arrays  # shapes say which term is whose
        self.heads = [part for part in self.components if part.kind == "attn"]
        self.layers = sorted({head.layer for head in self.heads})
        self.is_labelled = labels is None or len(labels) == 0 or bool(np.max(labels) >= 0)  # unlabelled are all -1

    def __len__(self) -> int:
        return self._images

    @classmethod
    def open(cls, folder: str, dataset: str, model: str, split: str | None = None, needs: str = "whole") -> "Run":
        """The run of that data set, model (as it was given) and split; its arrays stay on disk, and are read as they
        are needed.

        `needs` is what the caller asks of it: "moments" of its heads, or with images also the whole; its "heads" alone;
        heads and the "whole"; or all "components" and a manifest. Raises UserError where that is not there, and for
        arrays that are incomplete or of different runs.
        """
        place = Place(folder, dataset, model, split)
        manifest = files.read_manifest(place.manifest, files.OF_RUN) if place.manifest.is_file() else None
        storage = ((manifest or {}).get("options") or {}).get("storage", "full")

        def array(what: str) -> files.Stored:
            return files.open_array(place.path(what), None if what == "labels" else manifest, place.command())

        if storage == "moments":
            run = cls({what: array(what) for what in ("mean", "second", "readout")}, manifest=manifest, place=place)
            if needs != "moments":
                run.stack(slice(0, 0))  # which says that there are no single images
            return run
        listed = [entry["file"] for entry in (manifest or {}).get("arrays", [])]
        if place.path("mlp").name in listed and not {place.path(what).name for what in ("attn", "heads")} & set(listed):
            if needs in ("heads", "moments"):
                raise UserError(f"--model {model} has no attention heads, and this step reads them; choose another")
            mlp = array("mlp")
            arrays = {"attn": np.zeros((len(mlp), 0, mlp.shape[-1]), mlp.dtype)}
        else:
            arrays = {what: array(what) for what in (("attn",) if storage == "full" else ("heads", "scalars"))}
        images = len(next(iter(arrays.values())))
        if needs != "heads":
            arrays["mlp"] = array("mlp")
        if manifest is None:
            files.read_manifest(place.manifest)  # which warns that there is none
        if needs != "heads" and (place.path("conv").name in listed if manifest else place.path("conv").is_file()):
            arrays["conv"] = array("conv")
        if place.path("cls_attn").is_file():
            arrays["cls_attn"] = array("cls_attn")
        if dataset == "imagenet" and not place.path("labels").is_file() and images == 50_000:
            labels = np.arange(images) // 50  # the published runs wrote none
        else:
            labels = np.asarray(array("labels"))
        _check(place, arrays | {"labels": labels})
        _check_labels(place, labels, (manifest or {}).get("classes"))
        _check_same_labels(place, manifest)
        named = storage == "full" and (arrays["attn"].ndim == 3 or "conv" in arrays)  # shapes do not say which is whose
        components = _read_components(place, arrays) if named else None
        if storage == "compact":
            arrays["readout"] = array("readout")
        if needs == "components" and storage == "compact":
            raise UserError(f"{folder}: the arrays of {dataset} and {model} were made with --compact, which keeps all "
                            "MLPs as one, and this step needs each; make them without it")
        if needs == "components" and manifest is None:
            raise UserError(f"{place.manifest} does not exist, and without it nobody knows which weights made the "
                            f"arrays; make them again with: {place.command()}")
        return cls(arrays, components, labels, manifest, place)

    @property
    def made_of(self) -> dict:
        """What the run is made of, as results about it hold it."""
        return {name: (self.manifest or {}).get(name) for name in MADE_OF}

    def is_about(self, result: dict) -> bool:
        """Whether a result, as its JSON holds it, is about this run, and not about one that was there before, as far as
        it says."""
        return self.manifest is None or result.get("made_of", self.made_of) == self.made_of

    def images(self, data_path: str | None, image_size: int = 224) -> Images:
        """The images that the run was made from, read as they were then. Raises UserError where they are not there."""
        about = {name: (self.manifest or {}).get(name) for name in ("reading", "image_key")}
        return load_images(self.place.dataset, data_path, image_size, split=self.place.split, **about)

    def last(self, number: int) -> slice:
        """The columns of the heads of the last `number` layers."""
        kept = self.layers[len(self.layers) - number:]
        return slice(sum(head.layer not in kept for head in self.heads), len(self.heads))

    def layer(self, layer: int) -> slice:
        """The columns of a layer's heads, which follow on each other."""
        columns = [column for column, head in enumerate(self.heads) if head.layer == layer]
        return slice(columns[0], columns[-1] + 1)

    def _read(self, rows: Rows, columns: Rows) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """What some columns wrote, array by array: which of the columns these are, and their terms [b, c, d],
        float32."""
        columns = np.arange(max(own.stop for own in self.columns.values()))[columns]
        for what, part in self._parts.items():
            first, last = self.columns[what].start, self.columns[what].stop
            own = np.flatnonzero((columns >= first) & (columns < last))
            if len(own) or what == "attn":  # of no columns at all, terms [b, 0, d]
                yield own, part.read(rows, _as_slice(columns[own] - first))

    def stack(self, rows: Rows, columns: Rows = slice(None)) -> np.ndarray:
        """What components wrote for some images: [b, c, d], float32."""
        places, parts = zip(*self._read(rows, columns))
        found, places = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1), np.concatenate(places)
        return found if np.array_equal(places, np.arange(len(places))) else found[:, places.argsort()]

    def inner(self, rows: Rows, columns: Rows) -> np.ndarray:
        """What components wrote for some images, in coordinates [b, c, k] with the same inner products as those of
        `stack`: of heads alone in their own width, where the storage keeps it."""
        if np.max(np.arange(max(own.stop for own in self.columns.values()))[columns], initial=0) < len(self.heads):
            return self._parts["attn"].inner(rows, columns)
        return self.stack(rows, columns)

    def stacks(self, description: str) -> Iterator[np.ndarray]:
        """The `stack` of all components, of a block of images at a time."""
        return (self.stack(block) for block in blocks(len(self), SMALL_BLOCK, description))

    def whole(self, rows: Rows, columns: Rows = slice(None), dtype: type = np.float32) -> np.ndarray:
        """The sum of what all components wrote for some images, their representations [b, d]; or of some components."""
        return sum(terms.sum(axis=1, dtype=dtype) for _, terms in self._read(rows, columns))

    def rest(self, rows: Rows, dtype: type = np.float32) -> np.ndarray:
        """The sum of what all but the heads wrote: the embedding, MLPs and convolution blocks [b, d]."""
        return self.whole(rows, slice(len(self.heads), None), dtype)

    def means(self, columns: Rows = slice(None)) -> np.ndarray:
        """The mean over all images of what components wrote [c, d], float32, summed in float64."""
        total = 0
        for block in blocks(len(self)):
            total = total + self.stack(block, columns).sum(axis=0, dtype=np.float64)
        return (total / len(self)).astype(np.float32)

    def variances(self, columns: Rows = slice(None)) -> np.ndarray:
        """The variance over all images of what components wrote, summed over the joint space [c], float64."""
        first = self.stack(slice(1), columns)[0].astype(np.float64)  # taken off: squares would drown in the mean's
        sums, squares = np.zeros(first.shape), np.zeros(len(first))
        for block in blocks(len(self), SMALL_BLOCK):
            moved = self.stack(block, columns) - first
            sums, squares = sums + moved.sum(axis=0), squares + np.einsum("bcd,bcd->c", moved, moved)
        return squares / len(self) - np.square(sums / len(self)).sum(axis=1)

    def moments(self, columns: Rows) -> tuple["Tensor", "Tensor"]:
        """Mean [c, d] and uncentred second moment [c, d, d] over all images of what heads wrote, float64."""
        return self._parts["attn"].moments(columns)

    def check_labelled(self) -> None:
        """Raises UserError where no image has a label, so that there is no accuracy."""
        if not self.is_labelled:
            raise UserError(f"{self.place.path('labels')}: no image has a label, and without labels there is "
                            "no accuracy")

    def classifier(self) -> np.ndarray:
        """The zero-shot classifier [d, classes] of the data set, by the model whose texts go with the run. Raises
        UserError where it is missing, or does not belong to it, and where no image has a label to compare with."""
        self.check_labelled()
        return files.open_classifier(self.place.folder, self.place.dataset, self.place.model, self.manifest, self.width)

    def texts(self, pool: str, lines: list[str]) -> np.ndarray:
        """Embeddings [m, d] of the text pool of that name with these lines, float32, likewise."""
        folder, (model, weights) = self.place.folder, files.text_side(self.place.model, self.manifest)
        hint = commands.make_texts(folder, pool, model)
        path = files.text_path(folder, pool, file_name(model))
        if not path.is_file():
            raise UserError(f"{path} does not exist; make it with: {hint}")
        manifest = files.read_manifest(files.manifest_path(folder, pool, file_name(model)),
                                       ("arrays", "pretrained", "weights_sha256", "texts_sha256"))
        array = files.open_array(path, manifest, hint)
        if array.shape != (len(lines), self.width):
            raise UserError(f"{path}: has shape {array.shape}, and {len(lines)} texts and terms of width {self.width} "
                            f"need {(len(lines), self.width)}; make it again with: {hint}")
        if manifest and manifest.get("texts_sha256") != files.texts_hash(lines):
            raise UserError(f"{path}: was made from other texts than {pool}.txt holds now; make it again with: {hint}")
        files.same_weights(path, manifest, weights, hint)
        return np.asarray(array, dtype=np.float32)

    def same_weights(self, other: "Run") -> None:
        """Refuse a run that was made with other weights, or other registers, than the `other`, of the same model."""
        files.same_weights(self.place.path("attn"), self.manifest, other.manifest, self.place.command())
        own, others = ((run.manifest or {}).get("registers") for run in (self, other))
        if own != others:
            raise UserError(f"{self.place.path('attn')}: was made with {_registers(own)}, and the other arrays with "
                            f"{_registers(others)}; make them alike with --registers of compute_prs.py")

    def indices(self, images: Images) -> np.ndarray:
        """For each image its index [b] in the data set, whose `images` are those there now. Raises UserError where they
        do not belong together."""
        number, again = len(images.samples), "that they were made from, or make them again with compute_prs.py"
        indices = np.delete(np.arange(number), (self.manifest or {}).get("skipped_indices", []))
        if len(indices) != len(self):
            raise UserError(f"the data set has {number} images, and the arrays hold {len(self)} of "
                            f"{number - len(indices) + len(self)}; give the --data_path and --split {again}")
        if self.manifest and self.manifest.get("classes") != images.classes:
            raise UserError(f"the data set has other classes than the arrays; give the --data_path {again}")
        made_of = (self.manifest or {}).get("images_sha256")
        if made_of and made_of != names_hash(images):
            raise UserError("the data set has other images than the arrays, by their names or labels; give the "
                            f"--data_path and --split {again}")
        return indices


def _registers(record: dict | None) -> str:
    return f"{record['number']} registers of neurons {', '.join(record['neurons'])}" if record else "no registers"


def _as_slice(columns: np.ndarray) -> Rows:
    """Columns that follow on each other as a slice, of which less is copied."""
    steps = slice(columns[0], columns[-1] + 1) if len(columns) else slice(0, 0)
    return steps if np.array_equal(columns, np.arange(steps.start, steps.stop)) else columns


def _check(place: Place, arrays: dict[str, np.ndarray]) -> None:
    """Refuse arrays that are not those of one run."""
    (first, *_), hint = arrays, place.command()
    for what, array in arrays.items():
        if array.ndim not in AXES[what]:
            raise UserError(f"{place.path(what)}: has shape {array.shape}, which is not that of {what}")
        if len(array) != len(arrays[first]):
            raise UserError(f"{place.path(what)}: holds {len(array)} images and {place.path(first).name} holds "
                            f"{len(arrays[first])}; they are of different runs, make them again with: {hint}")
    widths = {array.shape[-1] for what, array in arrays.items() if what in ("attn", "mlp", "conv", "cls_attn")}
    if len(widths) > 1:
        raise UserError(f"{place.folder}: the arrays of {place.name} and {place.model} have different widths "
                        f"{sorted(widths)}; make them again with: {hint}")


def _check_same_labels(place: Place, manifest: dict | None) -> None:
    """Refuse labels that another run has replaced, since all models of a data set share their file."""
    path = place.path("labels")
    if not path.is_file():
        return
    made = [entry["sha256"] for entry in (manifest or {}).get("arrays", [])
            if entry["file"] == path.name and "sha256" in entry]
    if made and made != [files.checksum(path)]:
        raise UserError(f"{path}: holds other labels than those of {place.model}: a run of another model, of other "
                        "images, has replaced them; give each set of images an --output_dir of its own, and make this "
                        f"run again with: {place.command()}")


def _check_labels(place: Place, labels: np.ndarray, classes: list[str] | None) -> None:
    """Refuse labels that are no classes'; -1 is that of an image without one, and then all are."""
    path = place.path("labels")
    if labels.dtype.kind not in "iu":
        raise UserError(f"{path}: holds {labels.dtype.name}, and labels are whole numbers; make it again with: "
                        f"{place.command()}")
    wrong = (labels < 0) if len(labels) and labels.max() >= 0 else (labels < -1)
    if classes is not None:
        wrong |= labels >= len(classes)
    if wrong.any():
        row = int(wrong.argmax())
        raise UserError(f"{path}, row {row}: is label {labels[row]}, and there are "
                        f"{'no' if not classes else len(classes)} classes; make it again with: {place.command()}")


def _read_components(place: Place, arrays: dict[str, np.ndarray]) -> list[Component]:
    """The components of a run from the file that names them. Raises UserError where there are not as many as the arrays
    hold."""
    path, hint = place.path("components", ".json"), place.command()
    if not path.is_file():
        raise UserError(f"{path} does not exist, which names the components of the arrays; make it with: {hint}")
    content = read_json(path, dict, f"it should name the components of the arrays; make it again with: {hint}")
    try:
        named = {what: [Component.from_dict(entry) for entry in content[what]] for what in ARRAYS
                 if what in arrays and arrays[what].shape[1]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: does not name the components of the arrays; make it again with: {hint}") from error
    for what, components in named.items():
        if len(components) != math.prod(arrays[what].shape[1:-1]):
            raise UserError(f"{path}: names {len(components)} components of {what}, which has shape "
                            f"{arrays[what].shape}; make both again with: {hint}")
    # Attention whose heads cannot be told apart counts as one head.
    return [replace(part, head=part.head or 0) if part.kind == "attn" else part for part in sum(named.values(), [])]
