"""Do words point to what they mean? Pairs of patches and words on scenes whose masks are known.

Words for the background's colour and texture should point to the ground, those for object, style, size and count to the
copies. A word's map is that of its column of pairs. Chance is the area of what it should point to.
"""
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.analysis import pairs
from utils.data import captions
from utils.data.scenes import Scene, concepts
from utils.decompose import texts, tower
from utils.decompose.decomposer import Decomposer
from utils.decompose.tower import Tower
from utils.models.model import Model

GROUND = {"color": True, "texture": True, "object": False, "style": False, "size": False, "count": False}


def caption(scene: Scene) -> tuple[str, dict[str, list[str]]]:
    """A caption that says everything of a scene but its position, and the words for each kind of attribute."""
    noun = concepts()[scene.object]["name" if scene.count == 1 else "plural"].lower()
    said = {"count": captions.NUMBERS[scene.count], "size": scene.size, "style": captions.STYLE_WORDS[scene.style],
            "object": noun, "texture": scene.texture, "color": scene.color}
    text = "{count} {size} {style} {object} on a {texture} {color} background".format(**said).lower()
    return text, {kind: words.lower().split() for kind, words in said.items()}


def maps_of_words(names: list[str], maps: np.ndarray, words: dict[str, list[str]]) -> dict[str, np.ndarray]:
    """For each kind the sum of the maps [columns, rows, columns] of its words, those that the tokenizer left whole."""
    found = {}
    for kind, wanted in words.items():
        own = [i for i, name in enumerate(names) if name in wanted]
        if own:
            found[kind] = maps[own].sum(axis=0)
    return found


def measures(heat: np.ndarray, target: np.ndarray) -> tuple[bool, float]:
    """Whether the highest point of a map [rows, columns], laid over a mask [side, side], lies on it, and the average
    precision of its pixels."""
    from sklearn.metrics import average_precision_score

    large = F.interpolate(torch.from_numpy(np.ascontiguousarray(heat))[None, None].double(), size=target.shape,
                          mode="bilinear")[0, 0].numpy()
    hit = target.flat[int(large.argmax())]
    return bool(hit), float(average_precision_score(target.ravel(), large.ravel()))


def summarize(rows: list[dict]) -> dict[str, dict]:
    """Means over scenes, by kind: pointing game, average precision, and chance, in percent."""
    found = {}
    for kind in GROUND:
        own = [row for row in rows if row["kind"] == kind]
        if own:
            found[kind] = {"scenes": len(own), "points_to": "ground" if GROUND[kind] else "copies",
                           **{name: 100 * float(np.mean([row[name] for row in own]))
                              for name in ("hit", "precision", "chance")}}
    return found


def score(maps: Callable[[Tensor, str], tuple[list[str], np.ndarray]], scenes: list[Scene], images: Tensor,
          masks: Tensor) -> list[dict]:
    """Each word of each scene: kind, whether its map points right, average precision, and chance. `maps` gives names of
    words and their maps [words, rows, columns] for an image [1, 3, height, width] and a text."""
    rows = []
    for scene, image, mask in zip(scenes, images, masks.numpy().astype(bool)):
        text, words = caption(scene)
        names, found = maps(image[None], text)
        for kind, heat in maps_of_words(names, found, words).items():
            target = ~mask if GROUND[kind] else mask
            if target.any() and not target.all():
                hit, precision = measures(heat, target)
                rows.append({"kind": kind, "hit": hit, "precision": precision, "chance": float(target.mean())})
    return rows


def decomposed(decomposer: Decomposer, text_decomposer: texts.TextDecomposer, image: Tensor,
               text: str) -> tuple[list[str], np.ndarray]:
    """Words and their maps [words, rows, columns], by the decomposition."""
    found = pairs.compute(decomposer, text_decomposer, image, text)
    return found.columns[:found.words], found.maps()[:found.words]


class IntegratedJacobians:
    """A baseline by gradients (arXiv 2408.14153): both towers' Jacobians along straight lines from a reference, a grey
    image and a text of padding, averaged over `steps`; the share of a patch and a word is the product of theirs.

    The tokens that enter the first blocks are attributed. Only products are formed: for each word its Jacobian times
    its own change (forward mode), then one gradient of the image's representation along it. Towers of open_clip alone.
    """

    def __init__(self, model: Model, steps: int = 10):
        self.model, self.image = model, tower.read_tower(model.tower)
        self.text, self.pieces, _ = texts.read_tower(model)
        self.steps = (torch.arange(steps) + 0.5) / steps

    def __call__(self, image: Tensor, text: str) -> tuple[list[str], np.ndarray]:
        """Names of words and maps [words, rows, columns]."""
        ids = self.model.tokenizer([text]).to(image.device)
        tokens = self.text.embed(ids)
        start = self.text.embed(torch.where(ids == ids.max(), ids, 0))
        end = int(tokens.place[0]) + 1
        change, base = (tokens.x - start.x)[0, :end], start.x[0, :end]
        names, groups = texts.group(self.pieces(ids, end)[0])
        sides = []
        for places in groups:
            tangent = torch.zeros_like(change)
            tangent[places] = change[places]
            sides.append(torch.stack([torch.func.jvp(lambda x: run(self.text, x, -1, causal=True),
                                                     (base + step * change,), (tangent,))[1]
                                      for step in self.steps]).mean(dim=0))
        vectors = torch.stack(sides)                                                         # [words, d]
        first, grey = self.image.embed(image)[0], self.image.embed(torch.zeros_like(image))[0]
        found = []
        for vector in vectors:
            total = torch.zeros_like(first)
            for step in self.steps:
                total += torch.func.grad(lambda x, vector=vector: run(self.image, x, 0) @ vector)(
                    grey + step * (first - grey))
            found.append((total / len(self.steps) * (first - grey)).sum(dim=1)[1:])
        rows, columns = (side // patch for side, patch in zip(image.shape[-2:], self.image.patch_size))
        return names, torch.stack(found).reshape(-1, rows, columns).detach().numpy()


def run(tower: Tower, x: Tensor, place: int, causal: bool = False) -> Tensor:
    """The unit representation [d] of the token at a place, of tokens [n, w] that enter the first block; plain products,
    which forward and backward mode both take."""
    for block in tower.blocks:
        out = F.linear(block.norm_1(x), block.qkv_weight, block.qkv_bias)
        q, k, v = out.unflatten(-1, (3, block.heads, -1)).permute(1, 2, 0, 3).unbind(0)       # [h, n, k]
        scores = block.norm_q(q) @ block.norm_k(k).transpose(-1, -2) * q.shape[-1] ** -0.5
        if causal:
            scores = scores + torch.full_like(scores[0], -torch.inf).triu(1)
        out = (scores.softmax(dim=-1) @ v).transpose(0, 1).flatten(1)
        x = x + F.linear(out, block.out_weight, block.out_bias)
        x = x + block.mlp(block.norm_2(x))
    found = tower.norm(x[place]) @ tower.projection
    return found / found.norm()
