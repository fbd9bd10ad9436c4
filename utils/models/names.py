"""Names of models: the forms that --model and --vlm_name take, what is closest to one that does not exist, and their
names in file names. Nothing is loaded here.

`--model` takes
- an open_clip name (`ViT-L-14`), `hf-hub:NAME`, `local-dir:FOLDER`, or `emojiclip`, the small CLIP that ships with the
  repository;
- a hub name of transformers (`openai/clip-vit-large-patch14`); `hf:NAME` says so where the name could be another's;
- `timm:` and a name of timm (`timm:vit_base_patch14_dinov2.lvd142m`, `timm:hf-hub:NAME`, `timm:local-dir:FOLDER`);
- a folder, of whichever of the three its files are; `hf:FOLDER`, `local-dir:FOLDER` and `timm:local-dir:FOLDER` choose.

`--vlm_name` takes a hub name or folder of transformers (CLIP, ALIGN, SigLIP), or `r-open-clip:` and an open_clip name:
`MODEL:DATASET`, `hf-hub:NAME`, `local-dir:PATH`, `emojiclip`.
"""
import difflib
import importlib.util
import json
import re
from pathlib import Path

from utils.cli import UserError

EMOJICLIP = Path(__file__).resolve().parents[2] / "models" / "emojiclip"
OPEN_CLIP, TIMM, TRANSFORMERS = "r-open-clip:", "timm:", "hf:"


def file_name(model: str) -> str:
    """The model's name in file names: `hf-hub:apple/X` -> `hf-hub-apple-X`, `hf:openai/X` -> `openai-X`; of a folder,
    `local-dir:a/b`, `timm:local-dir:a/b`, `hf:a/b` or `a/b`, its last name, `b`."""
    model = model.removeprefix(TRANSFORMERS)
    folder = model.partition("local-dir:")[2] or model
    if folder != model or Path(folder).is_dir():
        model = Path(folder).resolve().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model)


def resolve(model: str) -> str:
    """--model with what says which library it is of: `hf:`, `timm:`, or nothing for open_clip; a folder with
    `local-dir:` too, where its library wants that.

    Raises UserError for a folder whose files are of no library, or of several.
    """
    legacy = re.fullmatch(r"ViT-\w+/\d+.*", model)  # ViT-B/32 is a name of open_clip
    if model.startswith((TIMM, TRANSFORMERS)) or has_own_weights(model) or model == "emojiclip" or legacy:
        return model
    folder, found = Path(model), []
    if (folder / "open_clip_config.json").is_file():
        found.append("local-dir:")
    if (folder / "config.json").is_file():
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{folder / 'config.json'}: is no JSON ({error}); fetch the folder again") from error
        found += [TRANSFORMERS] if "model_type" in config else [f"{TIMM}local-dir:"] if "architecture" in config else []
    if found and "/" not in model and model in open_clip_models():
        found = []  # the name goes first
    if len(found) > 1:
        raise UserError(f"--model {model}: holds files of several libraries; choose with "
                        + " or ".join(prefix + model for prefix in found))
    if not found and "/" in model and folder.is_dir():
        raise UserError(f"--model {model}: no model there; a folder of transformers or timm holds config.json, one of "
                        "open_clip open_clip_config.json")
    return (found[0] if found else TRANSFORMERS if "/" in model else "") + model


def has_own_weights(name: str) -> bool:
    """Whether a name of `resolve`, of timm's without its prefix, is a hub name or folder, which brings its own
    weights."""
    return name.startswith(("hf-hub:", "local-dir:", TRANSFORMERS))


def refuse_pretrained(model: str, pretrained: str | None) -> None:
    """Raises UserError for --pretrained beside a --model that brings its own weights."""
    if pretrained:
        raise UserError(f"--pretrained {pretrained} does not go with --model {model}, which brings its own weights; "
                        "leave --pretrained out")


def closest(name: str, known: list[str], prefix: str = "") -> str:
    """The names that are most like one that is not among the known, with a prefix before each; some, where none is like
    it."""
    return ", ".join(prefix + other for other in difflib.get_close_matches(name, known, n=3, cutoff=0.3) or known[:10])


def open_clip_models() -> list[str]:
    """The names of open_clip's models, off its files: importing it takes a while."""
    folder = Path(importlib.util.find_spec("open_clip").origin).parent / "model_configs"
    return sorted(path.stem for path in folder.glob("*.json"))


def split_vlm_name(name: str) -> tuple[str, str | None] | None:
    """What --vlm_name says of an open_clip model, its --model and --pretrained; None for one of transformers.

    Raises UserError for a name that cannot be one, with the closest ones, before anything is loaded.
    """
    if not name.startswith(OPEN_CLIP):
        if name.startswith(TRANSFORMERS) or "/" in name or Path(name).is_dir():
            return None
        known = ["emojiclip", *open_clip_models()]
        raise UserError(f"unknown VLM {name!r}: neither a folder nor a hub name (owner/name); closest are "
                        + closest(name, known, OPEN_CLIP))
    model = name.removeprefix(OPEN_CLIP)
    if model == "emojiclip" or has_own_weights(model):
        return model, None
    model, _, tag = model.partition(":")
    if model not in open_clip_models():
        raise UserError(f"unknown VLM {name!r}: no open_clip model {model!r}; closest are "
                        + closest(model, [*open_clip_models(), "emojiclip"], OPEN_CLIP))
    from utils.light import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag not in tags:
        raise UserError(f"unknown VLM {name!r}: {model} has no weights {tag!r}; closest are "
                        + closest(tag, tags, f"{OPEN_CLIP}{model}:"))
    return model, tag
