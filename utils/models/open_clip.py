"""Models of open_clip: CLIPs by their name and weights, from a hub, or from a folder."""
import functools
import json
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from utils.cli import DEFAULT_MODEL, DEFAULT_PRETRAINED, UserError, note
from utils.data import pictures
from utils.light import open_clip, with_transformers
from utils.models import names, weights
from utils.models.model import Model, frozen, readable_errors

LOGIT_SCALE = 100.0  # as published for every model of open_clip


def load(model: str, pretrained: str | None, device: torch.device, seed: int = 0,
         settings: dict | None = None) -> Model:
    """Load a CLIP by its --model and --pretrained; 'none' is random weights from the seed. `settings` (mean, std,
    interpolation, quick_gelu) take the place of those that belong to the weights; of weights in a file, those are in
    open_clip_config.json beside it.

    Raises UserError for an unknown name or tag (with the closest ones), for a model without weights, for `pretrained`
    beside a folder or hub name, and for weights that cannot be fetched or read.
    """
    settings = settings or {}
    full_name = f"local-dir:{names.EMOJICLIP}" if model == "emojiclip" else model
    options, file, remark, changes = {}, None, None, None
    if names.has_own_weights(full_name):
        names.refuse_pretrained(model, pretrained)
        if full_name.startswith("local-dir:"):
            folder = Path(full_name.removeprefix("local-dir:"))
            if _has_a_base(folder):
                full_name, changes = f"local-dir:{names.EMOJICLIP}", folder / "open_clip_model.safetensors"
    else:
        pretrained, quick_gelu = _find_weights(model, pretrained)
        # OpenAI's and some other weights need quick-GELU, which the model's plain name does not say.
        options = {} if quick_gelu is None else {"force_quick_gelu": quick_gelu}
        if pretrained != "none" and quick_gelu is None:
            file = pretrained
            settings, remark = _settings_of_file(model, file, settings)
            found = None if Path(file).suffix in (".npz", ".npy") else weights.read(file)  # those are big_vision's
    options |= {f"image_{name}": settings[name] for name in ("mean", "std", "interpolation", "resize_mode")
                if name in settings}
    if "quick_gelu" in settings:
        options |= {"force_quick_gelu": False, "quick_gelu": settings["quick_gelu"]}
    if _has_text_tower_of_transformers(full_name):
        with_transformers()
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings(), readable_errors(f"--model {model} --pretrained {pretrained}: the weights",
                                                "the file or the network"):
            warnings.simplefilter("ignore")
            logging.disable(logging.ERROR)  # open_clip's remarks on what is checked above
            network, _, preprocess = open_clip.create_model_and_transforms(
                full_name, pretrained=None if file or pretrained == "none" else pretrained, weights_only=True,
                pretrained_text=not file, **options)
            if file and found is None:
                open_clip.load_checkpoint(network, file)
            elif file:
                _fill(network, found, model, file)
            if changes:
                weights.fit(network, network.state_dict() | weights.read(str(changes)), model, str(changes))
    finally:
        logging.disable(logging.NOTSET)
    if remark:
        note(remark)
    source = f"random weights, seed {seed}" if pretrained == "none" else pretrained or model
    return as_model(network, model, source, device, pictures.Shaped(preprocess),
                    functools.cache(lambda: _tokenizer(full_name, model)), _settings_of(network))


def as_model(network: nn.Module, model: str, source: str, device: torch.device, preprocess: Callable | None = None,
             tokenizer: Callable | None = None, settings: dict | None = None) -> Model:
    """A CLIP of open_clip as a Model. `tokenizer` gives its tokenizer; it is called when a text first comes."""
    network, tower = frozen(network, device), network.visual
    # CoCa's would be of unit length already, and that is no sum of terms.
    options = {"normalize": False} if isinstance(network, open_clip.CoCa) else {}
    trunk = getattr(tower, "trunk", tower)  # a timm model inside
    pooled = trunk.pool_type == "tok" if hasattr(trunk, "pool_type") else getattr(trunk, "global_pool", "") == "token"
    size = tower.image_size
    return Model(name=names.file_name(model), device=device, network=network, tower=tower, source=source,
                 encode_image=functools.partial(network.encode_image, **options), preprocess=preprocess,
                 image_size=(size, size) if isinstance(size, int) else tuple(size),
                 class_token=pooled and getattr(trunk, "attn_pool", None) is None,
                 prefix_tokens=getattr(trunk, "num_prefix_tokens", int(hasattr(trunk, "class_embedding"))),
                 tokenizer=lambda texts: tokenizer()(texts), cut=lambda texts: _cut(tokenizer(), texts),
                 own_tokenizer=tokenizer,
                 encode_text=lambda texts: network.encode_text(tokenizer()(texts).to(device)), logit_scale=LOGIT_SCALE,
                 settings=settings or {})


def _tokenizer(full_name: str, model: str):
    """The tokenizer of a model; some models' come from a hub, so it is made when a text first comes."""
    with readable_errors(f"the tokenizer of --model {model}", "the network, or choose a model with open_clip's own"):
        return open_clip.get_tokenizer(full_name)


def _cut(tokenizer, texts: list[str]) -> list[int]:
    """The indices of texts that one more token of context would change, or find room for a token of."""
    read = tokenizer(texts)
    wider = tokenizer(["", *texts], context_length=read.shape[1] + 1)
    changed = (wider[1:, :-1] != read).any(dim=1) | (wider[1:, -1] != wider[0, -1])  # an empty text ends with padding
    return changed.nonzero()[:, 0].tolist()


def _settings_of(network: nn.Module) -> dict:
    """What images are made of for a network, and its activation."""
    settings = {name: network.visual.preprocess_cfg[name] for name in ("mean", "std", "interpolation", "resize_mode")}
    quick = any(type(part).__name__ == "QuickGELU" for part in network.modules())
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()} | {
        "quick_gelu": quick}


def _settings_of_file(model: str, file: str, settings: dict) -> tuple[dict, str | None]:
    """The settings of weights in a file: those given, and those of the companion beside it. Where they are not all,
    also a remark: what open_clip assumes of the model in their place, and which tags of it were trained otherwise."""
    config = open_clip.get_model_config(model.replace("/", "-"))
    companion = weights.read_companion(file, config)
    found = (companion or {}) | settings
    usual = open_clip.transform
    assumed = {"mean": list(usual.OPENAI_DATASET_MEAN), "std": list(usual.OPENAI_DATASET_STD),
               "interpolation": "bicubic", "quick_gelu": bool(config.get("quick_gelu"))}
    lacking = [name for name in assumed if name not in found]
    if not lacking:
        return found, None
    otherwise: dict[str, list[str]] = {}
    for tag in open_clip.list_pretrained_tags_by_model(model):
        known = {"quick_gelu": False} | open_clip.get_pretrained_cfg(model, tag)
        of_tag = {name: list(value) if isinstance(value := known.get(name, assumed[name]), tuple) else value
                  for name in lacking}
        if differ := [_in_words(name, of_tag[name]) for name in lacking if of_tag[name] != assumed[name]]:
            otherwise.setdefault(", ".join(differ), []).append(tag)
    others = "; ".join(f"{', '.join(tags)} with {words}" for words, tags in otherwise.items())
    return found, (f"--pretrained {file}: {weights.COMPANION} " + ("beside it lacks some settings" if companion else
                                                                   "is not beside it")
                   + f"; assumed are {', '.join(_in_words(name, assumed[name]) for name in lacking)}. "
                   + (f"Of {model}'s tags, these were trained otherwise: {others}. " if others else "")
                   + f"If yours was, too, give {' '.join(f'--{name}' for name in lacking)}")


def _in_words(name: str, value) -> str:
    if name == "quick_gelu":
        return "quick-GELU" if value else "plain GELU"
    return value if isinstance(value, str) else f"{name} {' '.join(f'{number:.3g}' for number in value)}"


def _fill(network: nn.Module, found: dict, model: str, file: str) -> None:
    """Load weights of a file, with open_clip's own conversions from the layouts of other projects."""
    found = open_clip.convert.convert_state_dict(network, found)
    if "positional_embedding" in found and not hasattr(network, "positional_embedding"):
        found = open_clip.model.convert_to_custom_text_state_dict(found)
    own = network.state_dict()
    for name in ("logit_scale", "logit_bias"):  # numbers, or vectors of one
        if name in found and name in own and found[name].numel() == 1:
            found[name] = found[name].reshape(own[name].shape)
    # Of the format of others: what is no weight.
    extra = ("text.transformer.embeddings.position_ids", "input_resolution", "context_length", "vocab_size")
    weights.fit(network, {name: value for name, value in found.items() if name in own or name not in extra},
                model, file)


def _has_text_tower_of_transformers(name: str) -> bool:
    """Whether a model may have one; of a hub's, nobody knows before it is fetched."""
    if name.startswith("local-dir:"):
        config = Path(name.removeprefix("local-dir:"), "open_clip_config.json").read_text(encoding="utf-8")
        return "hf_model_name" in config
    config = open_clip.get_model_config(name.replace("/", "-"))
    return config is None or "hf_model_name" in config.get("text_cfg", {})


def _has_a_base(folder: Path) -> bool:
    """Whether a folder in open_clip's format holds only what differs from emojiclip. Raises UserError where it is
    none."""
    if not (folder / "open_clip_config.json").is_file():
        raise UserError(f"{folder}: no open_clip_config.json there; --model local-dir: takes a folder in open_clip's "
                        "format")
    if not any(file.suffix in (".safetensors", ".bin", ".pth") for file in folder.iterdir()):
        raise UserError(f"{folder}: no weights there (open_clip_model.safetensors)")
    try:
        base = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8")).get("base")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{folder / 'open_clip_config.json'}: is no JSON of a model ({error}); fetch the folder "
                        "again") from error
    if base not in (None, "emojiclip"):
        raise UserError(f"{folder}: its base is {base!r}, and only emojiclip can be one; save all weights there, and "
                        "leave the base out")
    return base is not None


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
