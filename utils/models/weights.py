"""Weights in a file: read without running anything that is in it, whatever layout a training script gave it."""
import argparse
import json
import pathlib
import pickle
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from utils.cli import UserError, describe

# Plain values that training scripts put beside weights; a file can do nothing through them.
PLAIN = [argparse.Namespace, pathlib.PosixPath, np.dtype, np._core.multiarray.scalar,
         *{type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "b1")}]
PREFIXES = ("module.", "_orig_mod.", "model.")  # of data parallelism, of torch.compile, of a trainer
COMPANION = "open_clip_config.json"
SAME = {"vision_cfg": ("image_size", "layers", "width", "patch_size", "timm_model_name"),
        "text_cfg": ("context_length", "vocab_size", "width", "layers")}  # what tells models apart


def read(path: str, prefer: Sequence[str] = ("state_dict", "model")) -> dict[str, Tensor]:
    """The weights of a file by name: a .safetensors, or what torch saved, alone or in a dictionary; of several sets the
    first that is in `prefer`.

    Raises UserError, with the reason, for what is none, holds objects that would have to be run, or several sets.
    """
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file
            content = load_file(path)
        else:
            with torch.serialization.safe_globals(PLAIN):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage shows itself in many ways
        raise UserError(f"--pretrained {path}: {_reason(path, error)}") from error
    sets = {"": content} if _is_set(content) else {
        key: value for key, value in content.items() if _is_set(value)} if isinstance(content, dict) else {}
    chosen = next((key for key in ("", *prefer) if key in sets), next(iter(sets), None) if len(sets) == 1 else None)
    if chosen is None:
        what = f"holds several sets of weights ({', '.join(sets)})" if sets else "holds no dictionary of weights" + (
            f", but {', '.join(map(str, list(content)[:8]))}" if isinstance(content, dict) else "")
        raise UserError(f"--pretrained {path}: {what}; save the state_dict of the model alone")
    found = sets[chosen]
    while prefix := next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in found)), ""):
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


def _is_set(content) -> bool:
    return isinstance(content, dict) and bool(content) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())


def _reason(path: str, error: Exception) -> str:
    """Why a file cannot be read, and what to do."""
    text = describe(error)
    if "TorchScript" in text:
        return (f"is a TorchScript archive, which is a program; save its weights alone, with torch.save(torch.jit.load("
                f"{path!r}).state_dict(), NEW)")
    objects = re.search(r"(?:GLOBAL|Unsupported (?:class|global):?) ([\w.]+\.[\w.]+)", text)
    if isinstance(error, pickle.UnpicklingError) and objects:
        return (f"holds objects beside weights ({objects[1]}), which are not loaded, as a file can run code through "
                "them; save the state_dict of the model alone")
    return f"cannot be loaded, as it is damaged or no checkpoint ({type(error).__name__}: {text[:200]}); fetch it again"


def fit(network: nn.Module, found: dict[str, Tensor], model: str, path: str, spare: bool = False) -> None:
    """Load weights into a network, which must have each of them, or with `spare` not all.

    Raises UserError that says which are missing, left over, or of another shape.
    """
    own = network.state_dict()
    missing, others = [name for name in own if name not in found], [name for name in found if name not in own]
    wrong = [name for name in own if name in found and own[name].shape != found[name].shape]
    if missing or wrong or (others and not spare):
        parts = [f"lacks {len(missing)} of the model's {len(own)} weights, such as {name}" for name in missing[:1]]
        parts += [f"has {len(others)} that it does not know, such as {name}" for name in others[:1] if not spare]
        parts += [f"has {name} of shape {list(found[name].shape)} in place of {list(own[name].shape)}"
                  for name in wrong[:1]]
        raise UserError(f"--pretrained {path}: is not of --model {model}: it {', and '.join(parts)}; give the model "
                        "that the weights are of")
    network.load_state_dict({name: found[name] for name in own})


def read_companion(path: str, config: dict) -> dict | None:
    """What open_clip_config.json beside a file of weights says of how they were trained: mean, std, interpolation,
    resize_mode and quick_gelu, as far as it does; None where there is none. `config` is open_clip's of the model.

    Raises UserError where it is not one, or of another model.
    """
    companion = Path(path).resolve().parent / COMPANION
    if not companion.is_file():
        return None
    try:
        content = json.loads(companion.read_text(encoding="utf-8"))
        described, preprocess = content.get("model_cfg", {}), content.get("preprocess_cfg", {})
        found = {name: preprocess[name] for name in ("mean", "std", "interpolation", "resize_mode")
                 if preprocess.get(name) is not None}
        for name in ("mean", "std"):
            if name in found:
                found[name] = list(map(float, found[name] if isinstance(found[name], list) else [found[name]] * 3))
        differ = [f"{part}.{name}" for part, keys in SAME.items() for name in keys
                  if described.get(part, {}).get(name, there := config.get(part, {}).get(name)) != there]
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{companion}: is not as open_clip writes it ({describe(error)}); mend or remove it") from error
    if differ:
        raise UserError(f"{companion}: describes another model ({differ[0]} differs); give --model local-dir:"
                        f"{companion.parent}, or keep the weights elsewhere")
    return found | ({"quick_gelu": bool(described.get("quick_gelu"))} if described else {})
