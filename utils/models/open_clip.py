"""Models of open_clip: CLIPs by their name and weights, from a hub, or from a folder."""
import logging
import os
import warnings
from pathlib import Path

import open_clip
import torch

from utils.cli import DEFAULT_MODEL, DEFAULT_PRETRAINED, UserError
from utils.models import names
from utils.models.model import Model, frozen, readable_errors

LOGIT_SCALE = 100.0  # as published for every model of open_clip


def load(model: str, pretrained: str | None, device: torch.device, seed: int = 0) -> Model:
    """Load a CLIP by its --model and --pretrained; 'none' is random weights from the seed.

    Raises UserError for an unknown name or tag (with the closest ones), for a model without weights, for `pretrained`
    beside a folder or hub name, and for weights that cannot be fetched or read.
    """
    full_name = f"local-dir:{names.EMOJICLIP}" if model == "emojiclip" else model
    options = {}
    if names.has_own_weights(full_name):
        names.refuse_pretrained(model, pretrained)
        if full_name.startswith("local-dir:"):
            _check_folder(Path(full_name.removeprefix("local-dir:")))
    else:
        pretrained, quick_gelu = _find_weights(model, pretrained)
        # OpenAI's and some other weights need quick-GELU, which the model's plain name does not say.
        options = {} if quick_gelu is None else {"force_quick_gelu": quick_gelu}
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings(), readable_errors(f"--model {model} --pretrained {pretrained}: the weights",
                                                "the file or the network"):
            warnings.simplefilter("ignore")
            logging.disable(logging.ERROR)  # open_clip's remarks on what is checked above
            network, _, preprocess = open_clip.create_model_and_transforms(
                full_name, pretrained=None if pretrained == "none" else pretrained, weights_only=True, **options)
            tokenizer = open_clip.get_tokenizer(full_name)
    finally:
        logging.disable(logging.NOTSET)
    network, tower = frozen(network, device), network.visual
    trunk = getattr(tower, "trunk", tower)  # a timm model inside
    pooled = trunk.pool_type == "tok" if hasattr(trunk, "pool_type") else getattr(trunk, "global_pool", "") == "token"
    size = tower.image_size
    return Model(name=names.file_name(model), device=device, network=network, tower=tower,
                 source=f"random weights, seed {seed}" if pretrained == "none" else pretrained or model,
                 encode_image=network.encode_image, preprocess=preprocess,
                 image_size=(size, size) if isinstance(size, int) else tuple(size), class_token=pooled,
                 prefix_tokens=getattr(trunk, "num_prefix_tokens", int(hasattr(trunk, "class_embedding"))),
                 tokenizer=tokenizer, encode_text=lambda texts: network.encode_text(tokenizer(texts).to(device)),
                 logit_scale=LOGIT_SCALE)


def _check_folder(folder: Path) -> None:
    if not (folder / "open_clip_config.json").is_file():
        raise UserError(f"{folder}: no open_clip_config.json there; --model local-dir: takes a folder in open_clip's "
                        "format")
    if not any(file.suffix in (".safetensors", ".bin", ".pth") for file in folder.iterdir()):
        raise UserError(f"{folder}: no weights there (open_clip_model.safetensors)")


def _find_weights(model: str, pretrained: str | None) -> tuple[str, bool | None]:
    """The weights of a model by name: a tag, a file or 'none'; and of a tag whether they need quick-GELU."""
    if model.replace("/", "-") not in open_clip.list_models():
        known = [*open_clip.list_models(), "emojiclip"]
        raise UserError(f"unknown model {model!r}; closest are {names.closest(model, known)}")
    if pretrained is None and model == DEFAULT_MODEL:
        pretrained = DEFAULT_PRETRAINED
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained is None:
        raise UserError(f"--model {model} needs weights: --pretrained with one of "
                        f"{', '.join(tags) or '(no tags known)'}, a checkpoint file, or 'none' for random weights")
    if pretrained in tags:
        return pretrained, bool(open_clip.get_pretrained_cfg(model, pretrained).get("quick_gelu"))
    if pretrained != "none" and not os.path.isfile(pretrained):
        raise UserError(f"--pretrained {pretrained} is neither a file nor a tag of {model}; closest are "
                        f"{names.closest(pretrained, tags)}")
    return pretrained, None
