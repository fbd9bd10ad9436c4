"""The commands that make what a step reads, whole: with what the user gave, and with what the manifests in the same
folder say of the same model and data set. What nobody knows stands there in capitals: TAG, DIR."""
import json
import shlex
from pathlib import Path

from utils.cli import DEFAULT_MODEL
from utils.data.datasets import EMBEDDED, REGISTRY, default_split
from utils.models.names import file_name

# Options of compute_prs.py by what they are about; those of the model go to all steps that load it.
OF_MODEL = ("pretrained", "seed", "mean", "std", "interpolation", "quick_gelu")
OF_DATA = ("data_path", "reading", "image_key")


def line(script: str, options: dict) -> str:
    """A command with options by their names: None is left out, True stands for an option without a value."""
    words = ["python", f"{script}.py"]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name}", *([] if value is True else map(str, value if isinstance(value, list) else [value]))]
    return shlex.join(words)


def options_of(command: str) -> dict[str, str | list[str] | bool]:
    """The options of a command by their names, as `line` takes them."""
    found: dict[str, list[str]] = {}
    for word in shlex.split(command)[2:]:
        if word.startswith("--"):
            found[word[2:]] = own = []
        elif found:
            own.append(word)
    return {name: (values if len(values) > 1 else values[0]) if values else True for name, values in found.items()}


def differs(manifest: str, given: dict) -> str:
    """What a manifest that is there says of options that now have another value, by their names; empty where it says
    the same, of what is not given, and where there is no manifest. A path may be spelled in other ways."""
    try:
        made = options_of(json.loads(Path(manifest).read_text(encoding="utf-8"))["command"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    for name, value in given.items():
        before = str(made.get(name, "none"))
        if value and before != value and Path(before).resolve() != Path(value).resolve():
            return f"{manifest} was made with --{name} {before}, and now it is {value}"
    return ""


def remembered(folder: str, model: str, dataset: str | None = None) -> dict:
    """The options of a model, `model` among them, and of a data set, as manifests in a folder keep them."""
    found = {}
    for path in sorted(Path(folder).glob(f"*_{file_name(model)}.json")):
        try:
            options = options_of(json.loads(path.read_text(encoding="utf-8"))["command"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):  # of another kind
            continue
        if file_name(str(options.get("model"))) != file_name(model):
            continue
        names = ("model", *OF_MODEL, *(OF_DATA if dataset and options.get("dataset", "imagenet") == dataset else ()))
        found = {name: options[name] for name in names if name in options} | found
    return found


def _of_model(folder: str, model: str, dataset: str | None, given: dict | None) -> dict:
    """What is known of a model and of a data set, or what stands for it."""
    model = _as_given(folder, model)
    known = {"model": model} | remembered(folder, model, dataset)
    known |= {name: value for name, value in (given or {}).items() if value}
    if known["model"] not in ("emojiclip", DEFAULT_MODEL) and not set(":/") & set(known["model"]):
        known = {"pretrained": "TAG"} | known  # an open_clip name alone does not say which weights
    if dataset and dataset not in EMBEDDED:
        known = {"data_path": "DIR"} | known
    return known


def _as_given(folder: str, model: str) -> str:
    """A model as it was given to compute_prs.py, by that or by its name in file names."""
    model = remembered(folder, model).get("model", model)
    if model == "emojivit":
        return "timm:local-dir:models/emojivit"
    return f"timm:{model.removeprefix('timm-')}" if model.startswith("timm-") else model


def make_run(folder: str, dataset: str, model: str, split: str | None = None, given: dict | None = None) -> str:
    """The command that makes a run; `given` are options that the user has given for this model and data set."""
    source, mapped, clip = model.partition("-as-")
    if mapped:
        source, clip = (_as_given(folder, one) for one in (source, clip))
        return line("compute_alignment", {"dataset": dataset, "model": source, "clip": clip, "input_dir": folder,
                                          "output_dir": folder, "apply": split or None})
    known = _of_model(folder, model, dataset, given)
    ordered = {"dataset": dataset, **{name: known[name] for name in ("model", *OF_MODEL, *OF_DATA) if name in known}}
    return line("compute_prs", {**ordered, "output_dir": folder, "split": split or None})


def make_classifier(folder: str, dataset: str, model: str, split: str | None = None, given: dict | None = None) -> str:
    """The command that makes the classifier that goes with a run."""
    known = _of_model(folder, model, dataset, given)
    path = known.get("data_path") if dataset in REGISTRY and not REGISTRY[dataset].classes else None
    if path and dataset == "imagefolder" and split not in (None, default_split(dataset)):
        path = f"{path}/{split}"
    ordered = {name: known[name] for name in ("model", *OF_MODEL) if name in known}
    return line("compute_text_projection", {"dataset": dataset, **ordered, "data_path": path, "output_dir": folder})


def make_texts(folder: str, pool: str, model: str, text_dir: str = "text_descriptions",
               given: dict | None = None) -> str:
    """The command that embeds a text pool."""
    known = _of_model(folder, model, None, given)
    ordered = {name: known[name] for name in ("model", *OF_MODEL) if name in known}
    return line("compute_text_set_projection", {"data_path": str(Path(text_dir, f"{pool}.txt")), **ordered,
                                                "output_dir": folder})


def make_ablations(folder: str, dataset: str, model: str, split: str | None = None) -> str:
    """The command that makes the ablations of a run."""
    return line("compute_ablations", {"model": model, "dataset": dataset, "split": split or None,
                                      "input_dir": elsewhere(folder)})


def make_texts_of_heads(folder: str, dataset: str, model: str, split: str | None, pool: str, texts_per_head: int,
                        text_dir: str = "text_descriptions", layers: int | None = None) -> str:
    """The command that makes TextSpan's texts of a run's heads, of the last `layers`."""
    return line("compute_complete_text_set", {
        "model": model, "dataset": dataset, "split": split or None, "input_dir": elsewhere(folder),
        "text_descriptions": pool, "texts_per_head": texts_per_head,
        "text_dir": elsewhere(text_dir, "text_descriptions"),
        "num_of_last_layers": layers, "output_dir": elsewhere(folder)})


def elsewhere(folder: str, default: str = "output_dir") -> str | None:
    """A folder, if it is another than the default."""
    return None if Path(folder) == Path(default) else str(folder)
