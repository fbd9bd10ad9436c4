"""Models by name. The only file that knows which library a model comes from.

`--model` takes an open_clip name (`ViT-L-14`), `hf-hub:NAME`, `local-dir:FOLDER`, or `emojiclip`, the
small CLIP that ships with the repository; where no text side is needed, also `timm:` and a name of timm
(`timm:vit_base_patch14_dinov2.lvd142m`, `timm:hf-hub:NAME`, `timm:local-dir:FOLDER`). `--vlm_name` takes a hub
name or folder of transformers (CLIP, ALIGN, SigLIP), or `r-open-clip:` and an open_clip name: `MODEL:DATASET`,
`hf-hub:NAME`, `local-dir:PATH`, `emojiclip`.
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

from utils.cli import DEFAULT_MODEL, DEFAULT_PRETRAINED, UserError, describe

EMOJICLIP = Path(__file__).resolve().parents[2] / "models" / "emojiclip"
OPEN_CLIP, TIMM = "r-open-clip:", "timm:"
# Kinds of transformers' models that have an image and a text side, and how each was trained to pad its texts.
PADDING = {"clip": True, "align": "max_length", "siglip": "max_length"}
TEXT_LENGTH = {"clip": 77, "align": 64, "siglip": 64}  # tokens


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


@dataclass
class Vision:
    """The image side of a model in eval mode, float32, with what goes with it."""
    tower: object          # an open_clip image tower, or a timm model without its classifier
    encode: Callable       # images [b, 3, height, width] -> representations [b, d]: what is decomposed
    class_token: bool      # whether the representation is read from a class token, the first one
    preprocess: Callable
    name: str
    source: str
    image_size: tuple[int, int]
    device: object
    model: object          # all of it, by whose weights it is known
    prefix_tokens: int = 0  # before the patches: class tokens and registers


@dataclass
class Vlm:
    """A vision-language model as a judge of closeness: two encoders and the scale of its logits."""
    name: str
    preprocess: Callable    # PIL image -> float tensor [3, height, width]
    encode_image: Callable  # such tensors [b, 3, height, width] -> unit embeddings [b, d], float32
    encode_text: Callable   # list of texts -> unit embeddings [m, d], float32
    logit_scale: float
    image_size: int


def file_name(model: str) -> str:
    """The model's name in file names: `hf-hub:apple/X` -> `hf-hub-apple-X`, `local-dir:a/b` and `timm:local-dir:a/b` -> `b`."""
    if "local-dir:" in model:
        model = Path(model.partition("local-dir:")[2]).resolve().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model)


def load_clip(model: str, pretrained: str | None, device, seed: int = 0) -> Clip:
    """Load a CLIP by name.

    Raises UserError for an unknown name or tag (with the closest ones), for a model without weights,
    for `pretrained` beside a folder or hub name, and for weights that cannot be fetched or read.
    """
    import open_clip
    import torch

    if model.startswith(TIMM):
        raise UserError(f"--model {model} has no text side; this step needs a CLIP")
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


def load_vision(model: str, pretrained: str | None, device, seed: int = 0) -> Vision:
    """Load the image side of a CLIP or a timm model by name. Raises UserError as `load_clip` does."""
    if model.startswith(TIMM):
        return _load_timm(model, pretrained, device, seed)
    return image_side(load_clip(model, pretrained, device, seed))


def image_side(clip: Clip) -> Vision:
    """The image side of a CLIP."""
    trunk = getattr(clip.model.visual, "trunk", clip.model.visual)  # a timm model inside
    first = trunk.pool_type == "tok" if hasattr(trunk, "pool_type") else getattr(trunk, "global_pool", "") == "token"
    return Vision(tower=clip.model.visual, encode=clip.model.encode_image, class_token=first, preprocess=clip.preprocess,
                  name=clip.name, source=clip.source, image_size=clip.image_size, device=clip.device, model=clip.model,
                  prefix_tokens=getattr(trunk, "num_prefix_tokens", int(hasattr(trunk, "class_embedding"))))


def _load_timm(model: str, pretrained: str | None, device, seed: int) -> Vision:
    """A timm model without its classifier, as released. `pretrained` is a tag, 'none' (random weights) or a checkpoint file."""
    import timm
    import torch

    name = model.removeprefix(TIMM)
    own = name.startswith(("hf-hub:", "local-dir:"))
    if own and pretrained:
        raise UserError(f"--pretrained {pretrained} does not go with --model {model}, which brings its own weights; "
                        "leave --pretrained out")
    if own:
        folder = Path(name.removeprefix("local-dir:"))
        if name.startswith("local-dir:") and not (folder / "config.json").is_file():
            raise UserError(f"{folder}: no config.json there; --model {TIMM}local-dir: takes a folder in timm's format")
    else:
        architecture, _, tag = name.partition(".")
        if architecture not in timm.list_models():
            close = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.3)
            raise UserError(f"unknown model {model!r}; closest are {', '.join(TIMM + other for other in close)}")
        tags = [other.partition(".")[2] for other in timm.list_models(f"{architecture}*", pretrained=True)
                if other.partition(".")[0] == architecture]
        file = pretrained if pretrained and os.path.isfile(pretrained) else None
        tag = tag if pretrained in (None, "none") or file else pretrained
        if (tag and tag not in tags) or not (tags or file or pretrained == "none"):
            raise UserError(f"--model {model} --pretrained {pretrained}: timm has no such weights of {architecture}; give one "
                            f"of {', '.join(tags) or '(none known)'}, a checkpoint file, or 'none' for random weights")
        name = f"{architecture}.{tag}" if tag else architecture
    torch.manual_seed(seed)
    try:
        network = timm.create_model(name, pretrained=own or not (file or pretrained == "none"), num_classes=0)
        if not own and file:
            missing, _ = timm.models.load_checkpoint(network, file, strict=False)  # a classifier there is left out
            if missing:
                raise ValueError(f"it lacks {missing[0]} and {len(missing) - 1} others")
    except Exception as error:  # hubs, files and formats fail in many ways, and all of them end the run
        raise UserError(f"--model {model} --pretrained {pretrained}: the weights cannot be loaded "
                        f"({type(error).__name__}: {describe(error)[:300]}); check the file or the network") from error
    network = network.to(device).eval().requires_grad_(False)
    settings = timm.data.resolve_model_data_config(network)
    head = getattr(network, "head", None)
    pooled = not isinstance(getattr(head, "pre_logits", None), torch.nn.Sequential)  # a layer and a tanh would follow

    def features(images):
        return network.forward_features(images).mean((-2, -1))

    source = f"random weights, seed {seed}" if pretrained == "none" else pretrained if not own and file else name
    return Vision(tower=network, encode=network if pooled else features,
                  class_token=getattr(network, "global_pool", "") == "token", name=file_name(model), source=source,
                  preprocess=timm.data.create_transform(**settings, is_training=False),
                  image_size=tuple(settings["input_size"][1:]), device=device, model=network,
                  prefix_tokens=getattr(network, "num_prefix_tokens", 0))


def load_same(args, run: dict | None) -> Clip:
    """The CLIP of --model, --pretrained and --seed in `args`, which must be the one that made the arrays whose manifest is `run`.

    Raises UserError for other weights.
    """
    from utils.cli import pick_device

    clip = load_clip(args.model, args.pretrained, pick_device(args.device), args.seed)
    if run and run["weights_sha256"] != weights_hash(clip):
        raise UserError(f"--model {args.model}: its weights ({clip.source}) are not those of the arrays ({run['pretrained']}); "
                        "give --pretrained and --seed as to compute_prs.py")
    return clip


def load_text_side(args, run: dict | None) -> Clip:
    """The CLIP whose texts go with the arrays whose manifest is `run`: the one that made them, or the one that they were
    mapped to. --pretrained and --seed in `args` are needed for the former alone.

    Raises UserError for other weights.
    """
    from utils.cli import pick_device

    if not run or "text_model" not in run:
        return load_same(args, run)
    option, source, seed = run["text_option"], run["text_pretrained"], 0
    if source.startswith("random weights"):
        source, seed = "none", int(source.split()[-1])
    clip = load_clip(option, None if source == option else source, pick_device(args.device), seed)
    if run["text_weights_sha256"] != weights_hash(clip):
        raise UserError(f"--model {args.model}: was mapped to {option}, whose weights are others now; make the maps again with "
                        "compute_alignment.py")
    return clip


def weights_hash(clip: Clip | Vision) -> str:
    """SHA-256 of all weights, by which arrays of different models are told apart."""
    digest = hashlib.sha256()
    for name, value in sorted(clip.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def check_vlm_name(name: str) -> None:
    """Refuse a VLM's name that cannot be one, with the closest ones, before anything is loaded."""
    import open_clip

    if not name.startswith(OPEN_CLIP):
        if "/" not in name and not Path(name).is_dir():
            known = [f"{OPEN_CLIP}emojiclip", *(f"{OPEN_CLIP}{model}:{tag}" for model, tag in open_clip.list_pretrained())]
            close = difflib.get_close_matches(OPEN_CLIP + name, known, n=3, cutoff=0.3)
            raise UserError(f"unknown VLM {name!r}: neither a folder nor a hub name (owner/name); closest are {', '.join(close)}")
        return
    rest = name.removeprefix(OPEN_CLIP)
    if rest == "emojiclip" or rest.startswith(("hf-hub:", "local-dir:")):
        return
    model, _, tag = rest.partition(":")
    known = open_clip.list_models()
    if model not in known:
        close = difflib.get_close_matches(model, [*known, "emojiclip"], n=3, cutoff=0.3)
        raise UserError(f"unknown VLM {name!r}: no open_clip model {model!r}; closest are "
                        + ", ".join(OPEN_CLIP + other for other in close))
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag not in tags:
        close = difflib.get_close_matches(tag, tags, n=3, cutoff=0.3) or tags
        raise UserError(f"unknown VLM {name!r}: {model} has no weights {tag!r}; closest are "
                        + ", ".join(f"{OPEN_CLIP}{model}:{other}" for other in close))


def load_vlm(name: str, device, half: bool | None = None) -> Vlm:
    """Load a VLM by name; `half` runs it in 16 bits (None: on a GPU). Embeddings are normalised in float32.

    Raises UserError for an unknown name (with the closest ones) and for weights that cannot be fetched or read.
    """
    import torch

    check_vlm_name(name)
    half = device.type == "cuda" if half is None else half
    dtype = (torch.float16 if device.type == "cuda" else torch.bfloat16) if half else torch.float32
    if name.startswith(OPEN_CLIP):
        rest = name.removeprefix(OPEN_CLIP)
        own = rest == "emojiclip" or rest.startswith(("hf-hub:", "local-dir:"))
        model, tag = (rest, None) if own else rest.split(":", 1)
        clip = load_clip(model, tag, device)
        network, size, preprocess = clip.model.to(dtype), clip.image_size[0], clip.preprocess
        logit_scale = 100.0  # as published for every model of open_clip
        image, text = network.encode_image, lambda texts: network.encode_text(clip.tokenizer(texts).to(device))
    else:
        network, processor = _load_transformers(name, device, dtype)
        kind = network.config.model_type
        size = getattr(network.config.vision_config, "image_size", 224)
        logit_scale = 1 / network.temperature.item() if kind == "align" else network.logit_scale.exp().item()

        def preprocess(picture):
            return processor.image_processor(images=picture, return_tensors="pt")["pixel_values"][0]

        def image(pixels):
            return network.get_image_features(pixel_values=pixels).pooler_output

        def text(texts: list[str]):
            tokens = processor.tokenizer(texts, padding=PADDING[kind], truncation=True, max_length=TEXT_LENGTH[kind],
                                         return_tensors="pt")
            return network.get_text_features(**tokens.to(device)).pooler_output

    @torch.inference_mode()
    def encode_image(pixels):
        return torch.nn.functional.normalize(image(pixels.to(device, dtype)).float(), dim=-1)

    @torch.inference_mode()
    def encode_text(texts: list[str]):
        return torch.nn.functional.normalize(text(texts).float(), dim=-1)

    return Vlm(name, preprocess, encode_image, encode_text, logit_scale, size)


def _load_transformers(name: str, device, dtype):
    """A model with an image and a text side and its processor, from transformers."""
    from transformers import AutoModel, AutoProcessor

    try:
        network = AutoModel.from_pretrained(name, dtype=dtype, trust_remote_code=False)
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # hubs, files and formats fail in many ways, and all of them end the run
        raise UserError(f"VLM {name} cannot be loaded ({type(error).__name__}: {describe(error)[:300]}); "
                        "check the name, the folder or the network") from error
    if network.config.model_type not in PADDING:
        raise UserError(f"VLM {name} is a {network.config.model_type} model; known are {', '.join(PADDING)}, "
                        f"and every model of open_clip as {OPEN_CLIP}MODEL:DATASET")
    return network.to(device).eval().requires_grad_(False), processor
