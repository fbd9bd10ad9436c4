"""Second-order effects of the neurons of a model on a data set: how they are computed in blocks, kept, and read."""
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import fields

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils.analysis import groups, neurons, truth
from utils.analysis.names import attributes, naming, shares
from utils.analysis.neurons import Fit, Prepared
from utils.cli import UserError, note
from utils.data import datasets, loader
from utils.data.datasets import Images
from utils.decompose.neurons import Neurons
from utils.models.model import Model
from utils.models.names import file_name
from utils.runs import files
from utils.runs.components import Component
from utils.runs.files import Place
from utils.runs.run import Run
from utils.runs.writer import RunWriter

KEPT = ("scores", "norms", "sum", "significant", "direct", "picked")  # of each layer, an image a row


def read(model: Model, batch_size: int, num_workers: int, images: Images, numbers: Sequence[int] | None = None,
         only: Sequence[int] | None = None) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Images [b, 3, height, width] and labels, as `loader.batches` gives them. Raises UserError for batches that do not
    fit the machine's memory."""
    num_workers = loader.worker_count(num_workers)
    loader.check_memory(min(batch_size, len(images.samples)), model.image_size, num_workers)
    for pixels, labels, _ in loader.batches(images, model.preprocess, batch_size, num_workers, numbers=numbers,
                                            only=only):
        yield pixels.to(model.device), labels


def texts_of_model(place: Place, weights: dict, pool: str, texts: list[str],
                   width: int) -> tuple[np.ndarray, np.ndarray]:
    """The classifier [d, classes] of a data set, and the embedded pool [m, d] with these lines, of the model with these
    weights. Raises UserError where one is missing or of another model."""
    classifier = files.open_classifier(place.folder, place.dataset, place.model, weights, width)
    hint = (f"python compute_text_set_projection.py --data_path text_descriptions/{pool}.txt --model {place.model} "
            f"--output_dir {place.folder}")
    path = files.text_path(place.folder, pool, file_name(place.model))
    if not path.is_file():
        raise UserError(f"{path} does not exist; make it with: {hint}")
    manifest = files.read_manifest(files.manifest_path(place.folder, pool, file_name(place.model)))
    array = files.open_array(path, manifest, hint)
    files.same_weights(path, manifest, weights, hint)
    if array.shape != (len(texts), width) or manifest and manifest["texts_sha256"] != files.texts_hash(texts):
        raise UserError(f"{path}: was made from other texts than {pool}.txt holds now; make it again with: {hint}")
    return classifier, np.asarray(array, np.float32)


def fit(of_model: Neurons, reading, images: Images, about: dict, heads: Sequence[Component], place: Place,
        resume: bool) -> tuple[dict[int, Fit], dict[int, list[int]]]:
    """The fit of every layer to images, kept beside the results, and the ten neurons that feed `heads` most, by layer.
    `reading` is `read` with its first arguments; a fit that is there is taken with `resume`."""
    keys = ("model", "weights_sha256", "model_settings", "dataset", "layers", "fit_split", "fit_images")
    identity = {key: about[key] for key in keys} | {"data_sha256": datasets.fingerprint(images)}
    manifest = place.path("neurons_fit", ".json")
    names = {(layer, field.name): place.path(f"neurons{layer}_{field.name}") for layer in of_model.layers
             for field in fields(Fit)}
    known = files.read_manifest(manifest) if resume and manifest.is_file() else None
    if known and known["identity"] == identity:
        stored = {key: torch.from_numpy(np.asarray(files.open_array(path, known, place.command()))).to(
            of_model.model.device) for key, path in names.items()}
        fits = {layer: Fit(*(stored[layer, field.name] for field in fields(Fit))) for layer in of_model.layers}
    else:
        directions = {layer: of_model.directions(layer) for layer in of_model.layers}
        chosen = loader.some(images, about["fit_images"])
        fits = neurons.fit(of_model, directions, lambda: (pixels for pixels, _ in reading(images, only=chosen)))
        files.write_arrays(manifest, {names[layer, name]: array for layer, fitted in fits.items()
                                      for name, array in fitted.arrays().items()}, {
                                          "pretrained": about["pretrained"], "weights_sha256": about["weights_sha256"],
                                          "identity": identity})
    of_layers = {layer: of_model.heads(layer) for layer in fits}
    return fits, neurons.feeding(fits, of_layers, heads, 10) if heads else {layer: [] for layer in fits}


def write(of_model: Neurons, reading, images: Images, about: dict, fits: dict[int, Fit], picked: dict[int, list[int]],
          place: Place, resume: bool) -> None:
    """The effects of all images in blocks, as NeuronRun reads them; a run that was cut off goes on with `resume`."""
    prepared = {layer: Prepared.of(of_model.directions(layer), fitted) for layer, fitted in fits.items()}
    identity = {key: value for key, value in about.items() if key != "command"} | {
        "data_sha256": datasets.fingerprint(images),
        "fit": files.read_manifest(place.path("neurons_fit", ".json"))["identity"]}
    size = about["batch_size"]
    with RunWriter(place.path("neurons", ".json"), identity, len(images.samples), size, resume=resume) as writer:
        if writer.complete:
            return
        for number, (pixels, labels) in zip(writer.left, reading(images, writer.left)):
            effects = of_model.effects(pixels)
            arrays = {place.path("neurons_representation"): effects.representation,
                      place.path("neurons_labels"): torch.from_numpy(np.asarray(labels))}
            for layer, c in effects.coefficients.items():
                found = prepared[layer].arrays(c, effects.direct[:, layer], picked[layer])
                if about["per_head"]:
                    found["c"] = c
                arrays |= {place.path(f"neurons{layer}_{what}"): values for what, values in found.items()}
            writer.write(number, len(labels), {path: (values.cpu().numpy(), str(values.dtype).removeprefix("torch."))
                                               for path, values in arrays.items()}, [])
        writer.finish(about, {})


class NeuronRun:
    """What `write` wrote of a data set: `representation` [b, d], `labels` [b], and `arrays` of each layer."""

    def __init__(self, place: Place):
        self.place, self.manifest = place, files.read_manifest(place.path("neurons", ".json"))
        self.representation, self.labels = self._array("neurons_representation"), self._array("neurons_labels")

    def _array(self, what: str) -> np.ndarray:
        return np.asarray(files.open_array(self.place.path(what), self.manifest, "python compute_second_order.py"))

    def arrays(self, layer: int) -> dict[str, np.ndarray]:
        """scores and norms [b, N]; sum, significant, picked and direct [b, d]."""
        return {what: self._array(f"neurons{layer}_{what}") for what in KEPT}


def _by_layer(run: NeuronRun, entries: list[dict]) -> Iterator[tuple[list[dict], Run]]:
    """Entries of `neurons.describe`, those of a layer at a time, and the run whose components are their scores."""
    for layer in dict.fromkeys(entry["neuron"].split(".")[0] for entry in entries):
        own = [entry for entry in entries if entry["neuron"].split(".")[0] == layer]
        columns = [int(entry["neuron"].split(".")[1]) for entry in own]
        scores = run.arrays(int(layer))["scores"][:, columns]
        yield own, Run({"attn": scores[:, :, None]}, [Component("attn", int(layer), column) for column in columns])


def explain(run: NeuronRun, images: Images, entries: list[dict]) -> None:
    """Add to neurons the share of their scores' variance that each known attribute of the scenes explains
    (`explained`), and the one that explains most (`truth`)."""
    codes = truth.codes(images.scenes)
    for own, scores in _by_layer(run, entries):
        explained = truth.explained(scores, codes)
        for i, entry in enumerate(own):
            entry["explained"] = {name: float(shares[i]) for name, shares in explained.items()}
            entry["truth"] = max(entry["explained"], key=entry["explained"].get)


def name(run: NeuronRun, entries: list[dict], model: Model, texts: dict[str, list[str]], seed: int) -> dict:
    """Name neurons as compute_head_names.py names heads: by the share of their scores' variance that lies between the
    groups of images to which the model itself gives the same answer. `texts` are those of attributes. Adds what
    `naming.describe` says of each neuron (`named`); returns how well the model tells the attributes' values apart."""
    whole = attributes.representations(Run({"attn": run.representation[:, None]}, [Component("attn", 0, 0)]))
    answers, quality = attributes.quality(whole, *(attributes.embed_with(model, texts, template)
                                                   for template in ("{}", attributes.PARAPHRASE)))
    sizes = {attribute: len(own) for attribute, own in texts.items()}
    for own, scores in _by_layer(run, entries):
        found = shares.explain(scores, answers, sizes, range(len(own)), seed)
        for entry, row in zip(own, naming.describe(scores.components, found, texts), strict=True):
            entry["named"] = {key: row[key] for key in ("attribute", "name", "role", "shares", "interval", "chance")}
    return quality


def against_truth(entries: list[dict], about: dict[str, str] | None) -> dict[str, dict]:
    """How often the attribute of a neuron's name, and that of its first text, is the one that explains most of its
    scores' variance: `truth.score`, for those of both that are there. `about` says what each text is about."""
    said = {"names_against_truth": {entry["neuron"]: entry["named"]["attribute"] for entry in entries
                                    if "named" in entry}}
    if about:
        for entry in entries:
            entry["reading"] = about[entry["texts"][0]["text"]] if entry["texts"] else None
        said["texts_against_truth"] = {entry["neuron"]: entry["reading"] for entry in entries if entry["reading"]}
    found = {}
    for kind, of_neurons in said.items():
        own = [entry for entry in entries if entry["neuron"] in of_neurons]
        if own:
            scored = truth.score([entry["truth"] for entry in own], list(of_neurons.values()),
                                 [entry["mean_norm"] ** 2 for entry in own])
            found[kind] = {"neurons": len(own), **{key: float(value) for key, value in scored.items()}}
    return found


def name_heads(entries: list[dict], place: Place, weights: str, images: int) -> None:
    """Add to the heads of neurons the attribute that compute_head_names.py named them after, where its file is there
    and about these weights, by their hash, and so many images."""
    path = naming.path(place)
    try:
        names, of = naming.read_file(path, weights) if path.is_file() else ({}, images)
    except UserError as error:
        note(str(error))
        names, of = {}, images
    for head in (head for entry in entries for head in entry["heads"]):
        own = names.get(Component.parse(head["head"])) if of == images else None
        head["name"] = own and own["name"]


def without_picked(run: NeuronRun, images: Images, picked: dict[int, list[int]], classifier: np.ndarray,
                   switched_off: np.ndarray) -> tuple[dict[str, dict], str]:
    """Accuracies, by group where the data set has places, as they are; without the second-order effects of the picked
    neurons, by layer; and with these neurons off, of which `switched_off` [b, d] are the representations. Returns them,
    and as a table."""
    change = sum(run.arrays(layer)["picked"] for layer in picked)
    group = None if images.places is None else (run.labels * len(datasets.PLACES[run.place.dataset])
                                                + np.asarray(images.places))
    representations = {"original": run.representation, "without_ten_neurons": run.representation - change,
                       "ten_neurons_off": switched_off}
    names = groups.names(run.place.dataset)
    found = {kind: groups.accuracies((some @ classifier).argmax(axis=1) == run.labels, group, names)
             for kind, some in representations.items()}
    sizes = {} if group is None else groups.sizes(group, names)
    return found, groups.table(found, sizes, {
        "original": "as it is", "without_ten_neurons": "without their effects", "ten_neurons_off": "switched off"})


def title(entry: dict) -> str:
    """A neuron in a short line: its name, the heads that it goes through with theirs, and its texts with signs."""
    texts = ", ".join(f"{'+' if text['weight'] > 0 else '-'} {text['text']}" for text in entry["texts"][:4])
    heads = ", ".join(f"{head['head']} {naming.spelled(head.get('name') or '')}".strip() for head in entry["heads"])
    named = f" ({naming.spelled(entry['named']['name'])})" if "named" in entry else ""
    return textwrap.shorten(f"{entry['neuron']}{named} through {heads}: {texts}", 130, placeholder=" ...")


def pictures(images: Images, entry: dict, number: int) -> tuple[list[Image.Image], list[Image.Image]]:
    """The images of a neuron's highest scores, and of its lowest, the lowest of all last."""
    return tuple([images.read(index)[0] for index in chosen]
                 for chosen in (entry["highest"][:number], entry["lowest"][:number][::-1]))
