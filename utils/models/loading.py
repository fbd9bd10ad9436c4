"""Models by name: which library a name belongs to, and whether a model is the one that made some arrays."""
import os
from dataclasses import replace

import torch

from utils.cli import UserError
from utils.models import names
from utils.models.model import Model


def load(model: str, pretrained: str | None, device: torch.device, seed: int = 0, text_side: bool = False,
         settings: dict | None = None) -> Model:
    """Load a model by --model, --pretrained and --seed; one with a `text_side` where that is needed. `settings` (mean,
    std, interpolation, quick_gelu) take the place of those that belong to its weights.

    Raises UserError for an unknown name or tag (with the closest ones), for a model without weights or text side, for
    `pretrained` beside a folder or hub name, and for weights that cannot be fetched or read.
    """
    name = names.resolve(model)
    if name.startswith(names.TIMM):
        check_text_side(model, not text_side)
        from utils.models import timm as library
    elif name.startswith(names.TRANSFORMERS):
        from utils.models import transformers as library
    else:
        from utils.models import open_clip as library
    if settings and settings.get("quick_gelu") is not None and name.startswith((names.TIMM, names.TRANSFORMERS)):
        raise UserError(f"--quick_gelu is of open_clip's models; leave it out with --model {model}")
    loaded = library.load(name, pretrained, device, seed, settings)
    check_text_side(model, loaded.encode_text is not None or not text_side)
    return loaded


def check_text_side(model: str, there: bool) -> None:
    """Raises UserError where the text side is not there that a step needs."""
    if not there:
        raise UserError(f"--model {model} has no text side; this step needs a CLIP, or --maps of "
                        "compute_alignment.py where it takes them")


def given(manifest: dict | None, key: str = "model_settings") -> dict:
    """The settings that a manifest says arrays were made with, as `load` takes them."""
    return {name: value for name, value in ((manifest or {}).get(key) or {}).items()
            if name in ("mean", "std", "interpolation", "quick_gelu")}


def options_of(model: str, source: str) -> tuple[str, str | None, int]:
    """--model, --pretrained and --seed by which a model is loaded again, from --model and what a manifest says of its
    weights."""
    if source.startswith("random weights"):
        return model, "none", int(source.split()[-1])
    name = names.resolve(model)
    if name.startswith(names.TIMM) and not os.path.isfile(source):
        return names.TIMM + source, None, 0
    return model, None if source == name or names.has_own_weights(name) else source, 0


def load_vlm(name: str, device: torch.device, half: bool | None = None) -> Model:
    """Load a model with a text side by --vlm_name, which is its name; `half` runs it in 16 bits (None: on a GPU,
    but for ALIGN, whose published rewards are of float32).

    Raises UserError for an unknown name (with the closest ones) and for weights that cannot be fetched or read.
    """
    of_open_clip = names.split_vlm_name(name)
    if of_open_clip:
        model = load(*of_open_clip, device)
    else:
        model = load(names.TRANSFORMERS + name.removeprefix(names.TRANSFORMERS), None, device, text_side=True)
    if half is None:
        half = device.type == "cuda" and getattr(getattr(model.network, "config", None), "model_type", None) != "align"
    if half:
        model.network.to(torch.float16 if device.type == "cuda" else torch.bfloat16)
    return replace(model, name=name)


def load_same(manifest: dict | None, model: str, pretrained: str | None, device: torch.device, seed: int = 0,
              text_side: bool = False) -> Model:
    """The model of these options, as `load` gives it, which must be the one that made the arrays with this manifest.

    Raises UserError for other weights.
    """
    loaded = load(model, pretrained, device, seed, text_side, given(manifest))
    if manifest and manifest["weights_sha256"] != loaded.weights_hash:
        raise UserError(f"--model {model}: its weights ({loaded.source}) are not those of the arrays "
                        f"({manifest['pretrained']}); give --pretrained and --seed as to compute_prs.py")
    return loaded


def load_text_side(manifest: dict | None, model: str, pretrained: str | None, device: torch.device,
                   seed: int = 0) -> Model:
    """The CLIP whose texts go with the arrays with this manifest: the one that made them, or the one that they were
    mapped to. `pretrained` and `seed` are needed for the former alone.

    Raises UserError for other weights.
    """
    if not manifest or "text_model" not in manifest:
        return load_same(manifest, model, pretrained, device, seed, text_side=True)
    option, pretrained, seed = options_of(manifest["text_option"], manifest["text_pretrained"])
    clip = load(option, pretrained, device, seed, text_side=True, settings=given(manifest, "text_settings"))
    if manifest["text_weights_sha256"] != clip.weights_hash:
        raise UserError(f"--model {model}: was mapped to {option}, whose weights are others now; make the maps again "
                        "with compute_alignment.py")
    return clip
