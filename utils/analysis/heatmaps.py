"""Where a picture speaks for a text: every patch's contribution to their similarity (arXiv 2310.05916, section 3.3)."""
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils.data import pictures
from utils.decompose.decomposer import Decomposer
from utils.models.model import Model


@dataclass
class HeatMap:
    """What a picture's patches contribute to its cosine similarity with a text, and what the rest of the model does."""
    text: str
    similarity: float        # cosine of the image's and the text's embedding
    parts: dict[str, float]  # what the similarity is the sum of, by name
    patches: np.ndarray      # [rows, columns]: through the heads that were asked for; sums to the first part


def prepare(picture: Image.Image, model: Model, patch_size: tuple[int, int] | None) -> tuple[Tensor, Image.Image]:
    """A picture as a model takes it, [1, 3, height, width], and what is seen of it there.

    Of a model whose `patch_size` is given, the picture stays whole: the shorter side has the model's image size, the
    longer one follows it; each is rounded to whole patches. Else the model's own transform resizes it, and crops or
    squeezes it.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as transforms

    if patch_size is None:
        return model.preprocess(picture)[None].to(model.device), pictures.shape(picture, model.preprocess)
    settings, shorter = model.tower.preprocess_cfg, min(model.image_size)
    scale = shorter / min(picture.size)
    # Models whose size is no multiple of their patches never see the last pixels: the shorter side is rounded down.
    size = [patch * (shorter // patch if side == min(picture.size) else round(side * scale / patch))
            for side, patch in zip((picture.height, picture.width), patch_size)]
    resized = transforms.resize(picture, size, InterpolationMode(settings["interpolation"]))
    pixels = transforms.normalize(transforms.to_tensor(resized), settings["mean"], settings["std"])[None]
    return pixels.to(model.device), picture


def selection(layer: int | None, head: int | None) -> str:
    """The name of what --layer and --head choose."""
    if layer is None:
        return "all heads"
    return f"layer {layer}" if head is None else f"layer {layer}, head {head}"


def explain(decomposer: Decomposer, pixels: Tensor, texts: list[str], directions: np.ndarray, layer: int | None = None,
            head: int | None = None, maps: tuple[Tensor, Tensor] | None = None) -> list[HeatMap]:
    """Heat maps of one image [1, 3, height, width] for texts with unit embeddings `directions` [m, d], mapped to the
    texts' space by `maps` (weight, bias) where the model is no CLIP.

    The patches' map is that of all heads, or of one `layer` or `head`, both counted from 0. The parts, which sum to the
    similarity: patches through the chosen heads, and through all others; class and register tokens, through all heads;
    attention that cannot be told apart by tokens; MLPs; convolution blocks; the embedding, which for a model with a
    class token is the same for every image (up to the final norm and the length). Raises UserError for a layer or head
    that the model lacks.
    """
    directions = torch.from_numpy(directions).to(pixels.device)
    found = decomposer.tokens(pixels, directions[:, None], maps)
    patches, prefix = found.patches(layer, head)[:, 0], found.prefix_tokens                  # [m, rows, columns]
    sums = [some[:, 0].sum(dim=1) for some in found.scores.values()]                         # [m, n]
    every = sum(some[:, prefix:].sum(dim=1) for some in sums)
    parts = {f"{selection(layer, head)}, patches": patches.sum(dim=(1, 2))}
    if layer is not None:
        parts[f"other {'layers' if head is None else 'heads'}, patches"] = every - patches.sum(dim=(1, 2))
    if prefix:
        alone = prefix == 1 and decomposer.model.class_token
        parts["class token to itself" if alone else "class and register tokens"] = sum(
            some[:, :prefix].sum(dim=1) for some in sums)

    def add(label: str, kind: str) -> None:
        chosen = [i for i, component in enumerate(found.components)
                  if component.kind == kind and not (kind == "attn" and component.layer in found.scores)]
        if chosen:
            parts[label] = found.parts[:, 0, chosen].sum(dim=1)

    add("attention as a whole", "attn")
    add("MLPs", "mlp")
    add("convolution blocks", "conv")
    add("constant (class embedding)" if decomposer.model.class_token else "embedding", "embed")
    return [HeatMap(text, float(found.representation[0] @ direction),
                    {name: float(part[i]) for name, part in parts.items()}, patches[i].cpu().numpy())
            for i, (text, direction) in enumerate(zip(texts, directions))]


def table(found: HeatMap) -> str:
    """The parts of a similarity and their sum, one a line."""
    rows = [*found.parts.items(), ("= cosine similarity", found.similarity)]
    return "\n".join(f"{name:<26} {value:+.4f}" for name, value in rows)
