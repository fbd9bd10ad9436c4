"""Where a picture speaks for a text: every patch's contribution to their similarity (arXiv 2310.05916, section 3.3)."""
import itertools
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils.decompose.tower import Tower, decompose, decompose_tokens, patch_map, score_tokens
from utils.models.names import Clip, Vision

FIRST_OTHER = ("MaybeConvertMode", "MaybeToTensor", "ToTensor")  # of a transform's steps, after those that resize and crop


@dataclass
class HeatMap:
    """What a picture's patches contribute to its cosine similarity with a text, and what the rest of the model does."""
    text: str
    similarity: float        # cosine of the image's and the text's embedding
    parts: dict[str, float]  # what the similarity is the sum of, by name
    patches: np.ndarray      # [rows, columns]: through the heads that were asked for; sums to the first part


def to_pixels(picture: Image.Image, clip: Clip, patch_size: tuple[int, int]) -> Tensor:
    """A picture [1, 3, height, width] as the model is used to it, but whole: the shorter side has the model's image
    size, the longer one follows it; each is rounded to whole patches."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as transforms

    settings = clip.model.visual.preprocess_cfg
    shorter = min(clip.image_size)
    scale = shorter / min(picture.size)
    # Models whose size is no multiple of their patches never see the last pixels: the shorter side is rounded down.
    size = [patch * (shorter // patch if side == min(picture.size) else round(side * scale / patch))
            for side, patch in zip((picture.height, picture.width), patch_size)]
    resized = transforms.resize(picture, size, InterpolationMode(settings["interpolation"]))
    return transforms.normalize(transforms.to_tensor(resized), settings["mean"], settings["std"])[None].to(clip.device)


def crop(picture: Image.Image, vision: Vision) -> Image.Image:
    """What a model's own transform makes of a picture before it becomes numbers: resized, and cropped or squeezed."""
    for step in shaping(vision.preprocess):
        picture = step(picture)
    return picture


def shaping(preprocess) -> list:
    """The steps of a transform of open_clip or timm that resize and crop: those before it turns a picture into numbers."""
    return list(itertools.takewhile(lambda step: type(step).__name__ not in FIRST_OTHER, preprocess.transforms))


def selection(layer: int | None, head: int | None) -> str:
    """The name of what --layer and --head choose."""
    if layer is None:
        return "all heads"
    return f"layer {layer}" if head is None else f"layer {layer}, head {head}"


def explain(tower: Tower, pixels: Tensor, texts: list[str], directions: np.ndarray,
            layer: int | None = None, head: int | None = None) -> list[HeatMap]:
    """Heat maps of one image [1, 3, height, width] for texts with unit embeddings `directions` [m, d].

    The patches' map is that of all heads, or of one `layer` or `head`, both counted from 0. The parts, which sum to
    the similarity: patches through the chosen heads, and through all others; the class token's attention to itself;
    MLPs; the embedded class token, which is the same for every image (up to the final norm and the length).
    Raises UserError for a layer or head that the model lacks.
    """
    directions = torch.from_numpy(directions).to(pixels.device)
    tokens, terms = decompose_tokens(tower, pixels, layer, head), decompose(tower, pixels)
    patches = (tokens.attn[0, 1:] @ directions.T).T                             # [m, patches]
    chosen = tokens.attn[0, 1:].sum(dim=0)                                      # [d]
    every = terms.attn[0].sum(dim=(0, 1)) - terms.cls_attn[0].sum(dim=0)
    parts = {f"{selection(layer, head)}, patches": chosen}
    if layer is not None:
        parts[f"other {'layers' if head is None else 'heads'}, patches"] = every - chosen
    parts |= {"class token to itself": terms.cls_attn[0].sum(dim=0), "MLPs": terms.mlp[0, 1:].sum(dim=0),
              "constant (class embedding)": terms.mlp[0, 0]}
    return [HeatMap(text, float(terms.representation[0] @ direction),
                    {name: float(part @ direction) for name, part in parts.items()},
                    values.unflatten(0, tokens.grid).cpu().numpy())
            for text, direction, values in zip(texts, directions, patches)]


def explain_by_walk(vision: Vision, pixels: Tensor, texts: list[str], directions: np.ndarray, layer: int | None = None,
                    head: int | None = None, maps: tuple[Tensor, Tensor] | None = None) -> list[HeatMap]:
    """The same for any model that the walk takes, mapped to the texts' space by `maps` (weight, bias) where it is no CLIP.

    Class and register tokens are no patches: what they give through all heads is one part. There are parts of convolution
    blocks, and of attention that cannot be told apart by tokens, where the model has such.
    """
    directions = torch.from_numpy(directions).to(pixels.device)
    found = score_tokens(vision, pixels, lambda representation: directions[:, None].expand(-1, len(representation), -1), maps)
    patches = patch_map(found, vision.prefix_tokens, layer, head)[:, 0]                      # [m, rows, columns]
    sums = {layer: some[:, 0].sum(dim=1) for layer, some in found.tokens.items()}            # [m, n]
    every = sum(some[:, vision.prefix_tokens:].sum(dim=1) for some in sums.values())
    parts = {f"{selection(layer, head)}, patches": patches.sum(dim=(1, 2))}
    if layer is not None:
        parts[f"other {'layers' if head is None else 'heads'}, patches"] = every - patches.sum(dim=(1, 2))
    if vision.prefix_tokens:
        parts["class and register tokens"] = sum(some[:, :vision.prefix_tokens].sum(dim=1) for some in sums.values())

    def add(label: str, kind: str) -> None:
        chosen = [i for i, name in enumerate(found.names)
                  if name.kind == kind and not (kind == "attn" and name.block in found.tokens)]
        if chosen:
            parts[label] = found.parts[:, 0, chosen].sum(dim=1)

    add("attention as a whole", "attn")
    add("MLPs", "mlp")
    add("convolution blocks", "conv")
    add("constant (class embedding)" if vision.class_token else "embedding", "embed")
    return [HeatMap(text, float(found.parts[i, 0].sum()), {name: float(part[i]) for name, part in parts.items()},
                    patches[i].cpu().numpy()) for i, text in enumerate(texts)]


def table(found: HeatMap) -> str:
    """The parts of a similarity and their sum, one a line."""
    rows = [*found.parts.items(), ("= cosine similarity", found.similarity)]
    return "\n".join(f"{name:<26} {value:+.4f}" for name, value in rows)
