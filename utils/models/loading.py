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
    if model.startswith(names.TIMM):
        if text_side:
            raise UserError(f"--model {model} has no text side; this step needs a CLIP")
        from utils.models import timm
        if settings and "quick_gelu" in settings:
            raise UserError(f"--quick_gelu is of open_clip's models; leave it out with --model {model}")
        return timm.load(model, pretrained, device, seed, settings)
    from utils.models import open_clip
    return open_clip.load(model, pretrained, device, seed, settings)


def given(manifest: dict | None, key: str = "model_settings") -> dict:
    """The settings that a manifest says arrays were made with, as `load` takes them."""
    return {name: value for name, value in ((manifest or {}).get(key) or {}).items()
            if name in ("mean", "std", "interpolation", "quick_gelu")}


def options_of(model: str, source: str) -> tuple[str, str | None, int]:
    """--model, --pretrained and --seed by which a model is loaded again, from --model and what a manifest says of its
    weights."""
    if source.startswith("random weights"):
        return model, "none", int(source.split()[-1])
    if model.startswith(names.TIMM) and not os.path.isfile(source):
        return names.TIMM + source, None, 0
    return model, None if source == model else source, 0


def load_vlm(name: str, device: torch.device, half: bool | None = None) -> Model:
    """Load a model with a text side by --vlm_name, which is its name; `half` runs it in 16 bits (None: on a GPU,
    but for ALIGN, whose published rewards are of float32).

    Raises UserError for an unknown name (with the closest ones) and for weights that cannot be fetched or read.
    """
    of_open_clip = names.split_vlm_name(name)
    if of_open_clip:
        model = load(*of_open_clip, device)
    else:
        from utils.models import transformers
        model = transformers.load(name, device)
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
