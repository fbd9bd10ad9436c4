"""Models by name. The only file that knows which library a model comes from.

`--model` takes an open_clip name (`ViT-L-14`), `hf-hub:NAME`, `local-dir:FOLDER`, or `emojiclip`, the
small CLIP that ships with the repository.
"""
import difflib
import hashlib
import logging
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from utils.script import UserError, describe

EMOJICLIP = Path(__file__).resolve().parent.parent / "models" / "emojiclip"
DEFAULT_MODEL, DEFAULT_PRETRAINED = "ViT-H-14", "laion2b_s32b_b79k"


@dataclass
class Clip:
    """A CLIP in eval mode, float32, with what goes with it."""
    model: object          # an open_clip model: encode_image, encode_text, visual, logit_scale
    preprocess: Callable   # PIL image -> float tensor [3, height, width]
    tokenizer: Callable    # list of texts -> token ids [m, context length]
    name: str              # as it stands in file names
    source: str            # where the weights come from
    image_size: tuple[int, int]
    device: object


def add_model_options(parser) -> None:
    """The options that choose a model."""
    parser.add_argument("--model", default=DEFAULT_MODEL, metavar="NAME",
                        help="open_clip name, hf-hub:NAME, local-dir:FOLDER, or emojiclip (default: %(default)s)")
    parser.add_argument("--pretrained", metavar="TAG",
                        help="weights: a tag of open_clip, a checkpoint file, or 'none' for random weights from --seed; "
                             f"not with a folder or hub name (default: {DEFAULT_PRETRAINED} for {DEFAULT_MODEL})")
    parser.add_argument("--device", help="torch device, such as cuda:0 or cpu (default: the best there is)")
    parser.add_argument("--seed", type=int, default=0, help="of random weights (default: %(default)s)")


def file_name(model: str) -> str:
    """The model's name in file names: `hf-hub:apple/X` -> `hf-hub-apple-X`, `local-dir:a/b` -> `b`."""
    if model.startswith("local-dir:"):
        model = Path(model.removeprefix("local-dir:")).resolve().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model)


def load_clip(model: str, pretrained: str | None, device, seed: int = 0) -> Clip:
    """Load a CLIP by name.

    Raises UserError for an unknown name or tag (with the closest ones), for a model without weights,
    for `pretrained` beside a folder or hub name, and for weights that cannot be fetched or read.
    """
    import open_clip
    import torch

    full_name = f"local-dir:{EMOJICLIP}" if model == "emojiclip" else model
    schema = full_name.split(":")[0] if full_name.startswith(("hf-hub:", "local-dir:")) else None
    if schema and pretrained:
        raise UserError(f"--pretrained {pretrained} does not go with --model {model}, which brings its own weights; "
                        "leave --pretrained out")
    options = {}
    if schema == "local-dir":
        folder = Path(full_name.removeprefix("local-dir:"))
        if not (folder / "open_clip_config.json").is_file():
            raise UserError(f"{folder}: no open_clip_config.json there; --model local-dir: takes a folder in open_clip's format")
        if not any(file.suffix in (".safetensors", ".bin", ".pth") for file in folder.iterdir()):
            raise UserError(f"{folder}: no weights there (open_clip_model.safetensors)")
    elif schema is None:
        known = open_clip.list_models()
        if model.replace("/", "-") not in known:
            close = difflib.get_close_matches(model, [*known, "emojiclip"], n=3, cutoff=0.3)
            raise UserError(f"unknown model {model!r}; closest are {', '.join(close)}")
        if pretrained is None and model == DEFAULT_MODEL:
            pretrained = DEFAULT_PRETRAINED
        tags = open_clip.list_pretrained_tags_by_model(model)
        if pretrained is None:
            raise UserError(f"--model {model} needs weights: --pretrained with one of {', '.join(tags) or '(no tags known)'}, "
                            "a checkpoint file, or 'none' for random weights")
        if pretrained not in ("none", *tags) and not os.path.isfile(pretrained):
            close = difflib.get_close_matches(pretrained, tags, n=3, cutoff=0.3) or tags
            raise UserError(f"--pretrained {pretrained} is neither a file nor a tag of {model}; closest are {', '.join(close)}")
        if pretrained in tags:
            # OpenAI's and some other weights need quick-GELU, which the model's plain name does not say.
            options["force_quick_gelu"] = bool(open_clip.get_pretrained_cfg(model, pretrained).get("quick_gelu"))
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.disable(logging.ERROR)  # open_clip's remarks on what is checked above
            network, _, preprocess = open_clip.create_model_and_transforms(
                full_name, pretrained=None if pretrained == "none" else pretrained, weights_only=True, **options)
            tokenizer = open_clip.get_tokenizer(full_name)
    except Exception as error:  # hubs, files and formats fail in many ways, and all of them end the run
        raise UserError(f"--model {model} --pretrained {pretrained}: the weights cannot be loaded "
                        f"({type(error).__name__}: {describe(error)[:300]}); check the file or the network") from error
    finally:
        logging.disable(logging.NOTSET)
    network = network.to(device).eval().requires_grad_(False)
    size = network.visual.image_size
    source = f"random weights, seed {seed}" if pretrained == "none" else pretrained or model
    return Clip(model=network, preprocess=preprocess, tokenizer=tokenizer, name=file_name(model), source=source,
                image_size=(size, size) if isinstance(size, int) else tuple(size), device=device)


def weights_hash(clip: Clip) -> str:
    """SHA-256 of all weights, by which arrays of different models are told apart."""
    digest = hashlib.sha256()
    for name, value in sorted(clip.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
