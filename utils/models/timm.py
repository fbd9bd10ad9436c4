"""Models of timm without their classifier: image sides alone."""
import os
from pathlib import Path

import timm
import torch

from utils.cli import UserError
from utils.data import pictures
from utils.models import names, weights
from utils.models.model import Model, frozen, readable_errors


def load(model: str, pretrained: str | None, device: torch.device, seed: int = 0,
         settings: dict | None = None) -> Model:
    """Load a model of timm, as released, by its --model and --pretrained: a tag, 'none' (random weights) or a file.
    `settings` (mean, std, interpolation) take the place of those that belong to the weights.

    Raises UserError as `utils.models.open_clip.load` does.
    """
    name, file = model.removeprefix(names.TIMM), None
    own = names.has_own_weights(name)
    if own:
        names.refuse_pretrained(model, pretrained)
        folder = Path(name.removeprefix("local-dir:"))
        if name.startswith("local-dir:") and not (folder / "config.json").is_file():
            raise UserError(f"{folder}: no config.json there; --model {names.TIMM}local-dir: takes a folder in timm's "
                            "format")
    else:
        file = pretrained if pretrained and os.path.isfile(pretrained) else None
        name = _find_weights(model, pretrained, file)
    torch.manual_seed(seed)
    with readable_errors(f"--model {model} --pretrained {pretrained}: the weights", "the file or the network"):
        network = timm.create_model(name, pretrained=own or not (file or pretrained == "none"), num_classes=0)
        if file:
            found = weights.read(file, ("state_dict_ema", "model_ema", "state_dict", "model"))  # timm's own order
            weights.fit(network, found, model, file, spare=True)  # a classifier there is left out
    source = f"random weights, seed {seed}" if pretrained == "none" else file or name
    return as_model(network, model, source, device, settings)


def as_model(network: torch.nn.Module, model: str, source: str, device: torch.device,
             settings: dict | None = None) -> Model:
    """A model of timm, without its classifier, as a Model."""
    network = frozen(network, device)
    settings = timm.data.resolve_model_data_config(network) | {name: value for name, value in (settings or {}).items()
                                                               if name in ("mean", "std", "interpolation")}
    # A layer and a tanh would follow the pooling of some.
    ends_there = not isinstance(getattr(getattr(network, "head", None), "pre_logits", None), torch.nn.Sequential)
    return Model(name=names.file_name(model), device=device, network=network, tower=network, source=source,
                 encode_image=network if ends_there else lambda images: network.forward_features(images).mean((-2, -1)),
                 preprocess=pictures.Shaped(timm.data.create_transform(**settings, is_training=False)),
                 image_size=tuple(settings["input_size"][1:]),
                 class_token=getattr(network, "global_pool", "") == "token",
                 prefix_tokens=getattr(network, "num_prefix_tokens", 0),
                 settings={name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()
                           if name in ("mean", "std", "interpolation", "crop_pct", "crop_mode")})


def _find_weights(model: str, pretrained: str | None, file: str | None) -> str:
    """timm's own name of a model, with the tag of its weights. Raises UserError for an unknown name or tag."""
    architecture, _, tag = model.removeprefix(names.TIMM).partition(".")
    if architecture not in timm.list_models():
        raise UserError(f"unknown model {model!r}; closest are "
                        f"{names.closest(architecture, timm.list_models(), names.TIMM)}")
    tags = [known.partition(".")[2] for known in timm.list_models(f"{architecture}*", pretrained=True)
            if known.partition(".")[0] == architecture]
    tag = tag if pretrained in (None, "none") or file else pretrained
    if (tag and tag not in tags) or not (tags or file or pretrained == "none"):
        raise UserError(f"--model {model} --pretrained {pretrained}: timm has no such weights of {architecture}; give "
                        f"one of {', '.join(tags) or '(none known)'}, a checkpoint file, or 'none' for random weights")
    return f"{architecture}.{tag}" if tag else architecture
