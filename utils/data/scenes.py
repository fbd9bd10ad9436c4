"""Scenes with known truth: drawings of the pack in data/emoji, composed on textured backgrounds.

A scene shows one to four copies of one drawing. Everything that can be said of it is an attribute
that was chosen: object, style, count, position, size, background colour and texture. Drawing is
done in batches on the CPU, at any image size, and a scene looks the same alone and in a batch.
"""
import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

PACK = Path(__file__).resolve().parents[2] / "data" / "emoji"
UNSEEN_STYLE = "fluent"
COLORS = {"red": (214, 40, 40), "orange": (244, 140, 30), "yellow": (246, 218, 50), "green": (52, 160, 70),
          "blue": (44, 100, 214), "purple": (128, 52, 168), "pink": (250, 152, 190), "brown": (122, 76, 40),
          "grey": (136, 136, 136), "black": (24, 24, 24), "white": (238, 238, 238)}
TEXTURES = ("plain", "striped", "dotted", "checked", "wavy", "speckled")
POSITIONS = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
SIZES = ("small", "medium", "large")
# Side of one drawing as a fraction of the image's, by count and size.
SIDES = {1: (0.36, 0.50, 0.68), 2: (0.30, 0.38, 0.46), 3: (0.26, 0.33, 0.40), 4: (0.26, 0.33, 0.40)}
# Centres of the copies in units of half a drawing's side, and the group's extent in sides.
LAYOUTS = {1: [(0, 0)], 2: [(-1, 0), (1, 0)], 3: [(0, -1), (-1, 1), (1, 1)], 4: [(-1, -1), (1, -1), (-1, 1), (1, 1)]}
EXTENTS = {1: (1, 1), 2: (2, 1), 3: (2, 2), 4: (2, 2)}
MARGIN = 0.03
FIXED, FIXED_SEED = ("style", "count", "color", "size"), 21  # attributes that concepts of `emoji_fixed` share
# Where each kind of animal of `emoji_spurious` is at home: background colours and texture.
HABITATS = {"land": {"colors": ("green", "brown"), "texture": "speckled"},
            "sea": {"colors": ("blue",), "texture": "wavy"}}


@dataclass(frozen=True)
class Scene:
    """One scene: its attributes (the truth), and the nuisances that make scenes differ (the rest)."""
    object: int               # index into concepts()
    style: str
    count: int                # 1 to 4
    position: str             # one of POSITIONS: the cell of a 3 x 3 grid that the group leans to
    size: str                 # one of SIZES
    color: str                # of the background, one of COLORS
    texture: str              # of the background, one of TEXTURES
    shift: tuple[float, float] = (0.0, 0.0)          # of the group, as a fraction of the image's side
    shade: tuple[float, float, float] = (0, 0, 0)    # added to the background's colour, in 1/255
    contrast: float = 0.2     # of the texture's second colour against the first, 0 to 1
    frequency: float = 6.0    # periods of the texture across the image
    angle: float = 0.0        # of the texture, in radians
    phase: float = 0.0        # of the texture, in radians
    tilt: float = 0.0         # of the drawings, in radians
    noise: int = 0            # seed of the speckles

    def attributes(self) -> dict:
        """The known truth of the scene as plain values, the object by its name."""
        names = ("style", "count", "position", "size", "color", "texture")
        return {"object": concepts()[self.object]["name"], **{name: getattr(self, name) for name in names}}

    def record(self) -> dict:
        """Everything that `draw` needs and the truth, for a JSON file."""
        return {**asdict(self), "object_name": concepts()[self.object]["name"]}


@functools.cache
def pack() -> dict:
    """The pack's index: side of a cell, columns of an atlas, styles with their licences, concepts."""
    return json.loads((PACK / "concepts.json").read_text())


def concepts() -> list[dict]:
    """All concepts: hexcode, name, plural, group, habitat ("land", "sea" or ""), label, tags."""
    return pack()["concepts"]


def styles(seen: bool = True) -> list[str]:
    """The six styles of the training scenes, or the one that training never shows."""
    return [style for style in pack()["styles"] if (style != UNSEEN_STYLE) == seen]


@functools.cache
def drawings(style: str) -> list[torch.Tensor]:
    """All drawings of a style as premultiplied RGBA in [0, 1], at full, half and quarter side:
    three float tensors [concepts, 4, side, side]."""
    side, columns = pack()["size"], pack()["columns"]
    atlas = torch.from_numpy(np.array(Image.open(PACK / f"{style}.webp").convert("RGBA")))
    cells = atlas.unflatten(0, (-1, side)).unflatten(2, (columns, side)).permute(0, 2, 4, 1, 3).flatten(0, 1)
    full = cells[:len(concepts())].float() / 255
    full[:, :3] *= full[:, 3:]
    return [full, F.avg_pool2d(full, 2), F.avg_pool2d(full, 4)]


def sample_scene(rng: np.random.Generator, **fixed) -> Scene:
    """A scene of the full difficulty: every attribute and nuisance drawn at random, but those given."""
    drawn = {"object": int(rng.integers(len(concepts()))), "style": str(rng.choice(styles())),
             "count": int(rng.integers(1, 5)), "position": str(rng.choice(POSITIONS)),
             "size": str(rng.choice(SIZES)), "color": str(rng.choice(list(COLORS))),
             "texture": str(rng.choice(TEXTURES)), "shift": tuple(rng.uniform(-0.02, 0.02, 2).tolist()),
             "shade": tuple(rng.uniform(-14, 14, 3).tolist()), "contrast": float(rng.uniform(0.12, 0.3)),
             "frequency": float(rng.uniform(3, 8)), "angle": float(rng.uniform(0, np.pi)),
             "phase": float(rng.uniform(0, 2 * np.pi)), "tilt": float(rng.uniform(-0.06, 0.06)),
             "noise": int(rng.integers(2 ** 31))}
    return Scene(**{**drawn, **fixed})


def sample_scenes(number: int, seed: int, **fixed) -> list[Scene]:
    """`number` scenes from a seed. Objects, and styles among them, take turns: classes are balanced.
    Scene i depends on the seed and i alone."""
    seen, total = styles(), len(concepts())
    return [sample_scene(np.random.default_rng((seed, index)),
                         **{"object": index % total, "style": seen[(index + index // total) % len(seen)], **fixed})
            for index in range(number)]


def sample_spurious(number: int, seed: int, agreement: float) -> list[tuple[Scene, int, int]]:
    """Land animals (0) and sea animals (1), in equal numbers, each before its own kind's background
    with probability `agreement`. Returns (scene, y, place) triples; place 0 is land, 1 is sea."""
    animals = {kind: [i for i, concept in enumerate(concepts()) if concept["habitat"] == kind] for kind in HABITATS}
    kinds, rows = list(HABITATS), []
    for index in range(number):
        rng = np.random.default_rng((seed, index))
        y = index % 2
        place = y if rng.random() < agreement else 1 - y
        home = HABITATS[kinds[place]]
        rows.append((sample_scene(rng, object=int(rng.choice(animals[kinds[y]])),
                                  color=str(rng.choice(home["colors"])), texture=home["texture"]), y, place))
    return rows


def fixed_concepts() -> list[tuple[int, str | None, object]]:
    """The concepts of `emoji_fixed`: (object, the attribute that all its images share, its value), evenly spaced over
    all objects. Eight each have one of FIXED, eight have none (None, None)."""
    rng = np.random.default_rng(FIXED_SEED)
    values = {"style": styles(), "count": list(range(1, 5)), "color": list(COLORS), "size": list(SIZES)}
    kinds = rng.permutation([*FIXED, None] * 8)
    return [(index * len(concepts()) // len(kinds), kind, kind and values[kind][rng.integers(len(values[kind]))])
            for index, kind in enumerate(kinds)]


def _backgrounds(scenes: list[Scene], side: int) -> torch.Tensor:
    """[b, 3, side, side]: each scene's colour, its texture in a lighter or darker shade of it."""
    def column(name: str) -> torch.Tensor:
        return torch.tensor([getattr(scene, name) for scene in scenes], dtype=torch.float32)[:, None, None]

    steps = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    angle, phase, frequency = column("angle"), column("phase"), 2 * torch.pi * column("frequency")
    u = x * angle.cos() + y * angle.sin()
    v = y * angle.cos() - x * angle.sin()
    waves = {"plain": torch.full_like(u, -1.0), "striped": (frequency * u + phase).sin(),
             "dotted": (frequency * u + phase).sin() + (frequency * v + phase).sin() - 1.0,
             "checked": (frequency * u + phase).sin() * (frequency * v + phase).sin() * 2,
             "wavy": (frequency * (y + 0.06 * (3 * torch.pi * x + phase).sin()) + phase).sin(),
             "speckled": torch.full_like(u, -1.0)}
    height = torch.stack([waves[scene.texture][i] for i, scene in enumerate(scenes)])
    for i, scene in enumerate(scenes):
        if scene.texture == "speckled":
            grid = torch.from_numpy(np.random.default_rng(scene.noise).uniform(-1.6, 1.0, (24, 24))).float()
            height[i] = F.interpolate(grid[None, None], size=(side, side), mode="bilinear")[0, 0]
    amount = (height * 4 + 0.5).clamp(0, 1)[:, None] * column("contrast")[:, None]
    base = torch.tensor([COLORS[scene.color] for scene in scenes]) + column("shade")[:, 0, 0]
    base = (base / 255).clamp(0, 1)[:, :, None, None]
    dark = base.mean(dim=1, keepdim=True) < 0.45
    return torch.where(dark, base + amount * (1 - base), base * (1 - amount))


def _place(scene: Scene) -> tuple[float, list[tuple[float, float]]]:
    """Side of a drawing and the centres (x, y) of its copies, as fractions of the image's side."""
    side = SIDES[scene.count][SIZES.index(scene.size)]
    cell = POSITIONS.index(scene.position)
    middle = [0.5 + (place - 1) * max(0.0, (1 - extent * side) / 2 - MARGIN) + shift
              for place, extent, shift in zip((cell % 3, cell // 3), EXTENTS[scene.count], scene.shift)]
    return side, [(middle[0] + dx * side / 2, middle[1] + dy * side / 2) for dx, dy in LAYOUTS[scene.count]]


def draw(scenes: list[Scene], image_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw scenes.

    Returns images [b, 3, image_size, image_size] and masks [b, image_size, image_size] (1 where an
    object covers more than half of the pixel), both uint8 on the CPU.
    """
    canvas = _backgrounds(scenes, image_size)
    cover = torch.zeros(len(scenes), image_size, image_size)
    layers: dict[tuple[int, int], list] = {}  # (copy, level of detail): what is drawn in one go
    for index, scene in enumerate(scenes):
        side, centres = _place(scene)
        detail = [pack()["size"] // 2 ** level for level in range(3)]
        level = max((i for i, pixels in enumerate(detail) if pixels >= side * image_size), default=0)
        for copy, centre in enumerate(centres):
            layers.setdefault((copy, level), []).append((index, scene, side, centre))
    for (_, level), members in sorted(layers.items()):
        indices = torch.tensor([index for index, *_ in members])
        source = torch.stack([drawings(scene.style)[level][scene.object] for _, scene, *_ in members])
        theta = torch.empty(len(members), 2, 3)
        for i, (_, scene, side, (x, y)) in enumerate(members):
            cos, sin = np.cos(scene.tilt) / side, np.sin(scene.tilt) / side
            dx, dy = 1 - 2 * x, 1 - 2 * y  # from the drawing's centre to the image's, in grid units
            theta[i] = torch.tensor([[cos, sin, cos * dx + sin * dy], [-sin, cos, cos * dy - sin * dx]])
        grid = F.affine_grid(theta, [len(members), 4, image_size, image_size], align_corners=False)
        layer = F.grid_sample(source, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        alpha = layer[:, 3]
        canvas[indices] = layer[:, :3] + canvas[indices] * (1 - alpha[:, None])
        cover[indices] = alpha + cover[indices] * (1 - alpha)
    images = (canvas.clamp(0, 1) * 255).round().to(torch.uint8)
    return images, (cover > 0.5).to(torch.uint8)
