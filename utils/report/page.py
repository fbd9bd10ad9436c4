"""The page of make_report.py: its pictures, and a folder that has its name when it is complete.

The page is page.html.j2; page.css and page.js are put into it, so that it needs nothing but its pictures.
"""
import contextlib
import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import jinja2
import numpy as np
import torch
from markupsafe import Markup
from PIL import Image, ImageOps
from tqdm import tqdm

from utils.analysis.alignment import Maps
from utils.analysis.names.naming import spelled
from utils.cli import UserError
from utils.data import pictures
from utils.data.datasets import Images
from utils.decompose.decomposer import Decomposer
from utils.decompose.registers import Registers
from utils.models.model import Model

HERE = Path(__file__).resolve().parent
RECORD = "report.json"  # by which a folder is known as a report
QUALITY = 85  # of pictures, WebP
RED, BLUE = (0.80, 0.10, 0.14), (0.08, 0.36, 0.74)


def read_picture(images: Images, index: int, label: str) -> Image.Image:
    """An image of a data set. Raises UserError where it cannot be read, or its label is another."""
    picture, found = images.read(index)
    if images.class_of(found) != label:
        raise UserError(f"image {index} is labelled {images.class_of(found)}, and was {label}: the data set has "
                        "changed; give the --data_path that the arrays were made from, or make them again with "
                        "compute_prs.py")
    return picture


def save_thumbnails(heads: list[dict], images: Images, size: int, model: Model | None, folder: Path) -> tuple[int, int]:
    """Write each image that a head names once, its longer side `size` pixels, framed as the model sees it; without a
    model, its middle square. Returns width and height."""
    height, width = model.image_size if model else (1, 1)
    scale = size / max(height, width)
    shape = round(width * scale), round(height * scale)
    images.draw_at(size)
    (folder / "images").mkdir()
    shown = {image["index"]: image for head in heads for image in (*head["highest"], *head["lowest"])}
    for index, image in tqdm(sorted(shown.items()), desc="pictures", unit="image", delay=3, leave=False):
        picture = read_picture(images, index, image["label"])
        picture = pictures.shape(picture, model.preprocess, scale) if model else ImageOps.fit(picture, shape)
        picture.resize(shape).save(folder / image["file"], quality=QUALITY)
    return shape


def save_heat_maps(heads: list[dict], number: int, pool: np.ndarray, images: Images, model: Model, maps: Maps | None,
                   some: Registers | None, folder: Path) -> None:
    """Draw the heat maps of the first `number` of the highest and of the lowest images of each head, over their
    thumbnails, and add them to `heads`.

    `pool` [m, d] are the texts' embeddings; `maps` carry the model to their space where it is no CLIP; `some` are the
    registers that the arrays were made with. A heat map is what each patch adds to the similarity with the head's first
    text through this head alone. Raises UserError where patches and the tokens before them do not sum to what the
    arrays hold.
    """
    images.draw_at(model.image_size[0])
    decomposer = Decomposer(model, registers=some)
    (folder / "heat").mkdir()
    for head in tqdm(heads, desc="heat maps", unit="head", delay=3, leave=False):
        ends = {"heat_maps": head["highest"][:number], "heat_maps_lowest": head["lowest"][:number]}
        chosen = sum(ends.values(), [])
        if not chosen:
            continue
        pixels = [model.preprocess(read_picture(images, image["index"], image["label"])) for image in chosen]
        direction = torch.tensor(pool[head["texts"][0]["index"]], device=model.device)[None, None]
        found = decomposer.tokens(torch.stack(pixels).to(model.device), direction, maps and (maps.weight, maps.bias))
        if head["layer"] not in found.scores:  # its attention cannot be told apart by tokens
            continue
        values = found.scores[head["layer"]][0, :, head["head"]].cpu().numpy()  # [b, n]
        patches = found.patches(head["layer"], head["head"])[0].cpu().numpy()   # [b, rows, columns]
        expected = np.array([image["score"] for image in chosen]) + head["average"]
        if not np.allclose(values.sum(axis=1), expected, rtol=0, atol=0.02 * np.abs(expected).max() + 1e-4):
            wrong = chosen[int(np.abs(values.sum(axis=1) - expected).argmax())]["index"]
            raise UserError(f"the patches of image {wrong} do not sum to what the arrays hold of it; give the model "
                            "and the --data_path that they were made from, or make them again with compute_prs.py")
        limit = float(np.abs(patches).max())
        drawn = []
        for image, of_image, tokens in zip(chosen, patches, values):
            file = f"heat/{head['layer']}-{head['head']}-{image['index']}.webp"
            with Image.open(folder / image["file"]) as picture:
                overlay(picture, of_image, limit).save(folder / file, quality=QUALITY)
            drawn.append({"index": image["index"], "file": file, "limit": limit, "patches": float(of_image.sum()),
                          "class_token": float(tokens[:found.prefix_tokens].sum())})
        for name, own in ends.items():
            head[name], drawn = drawn[:len(own)], drawn[len(own):]


def overlay(picture: Image.Image, patches: np.ndarray, limit: float) -> Image.Image:
    """Patches [rows, columns] in blue (-limit) to red (limit) over a pale grey copy of a picture, the stronger the less
    of the picture is left; half the colour stands at a third of the limit, so that weak patches are seen, too."""
    shares = np.clip(np.abs(patches) / (limit or 1.0), 0, 1)[..., None] ** 0.63
    colors = np.where(patches[..., None] < 0, BLUE, RED)
    layer = Image.fromarray((255 * np.concatenate([colors, 0.9 * shares], axis=-1)).round().astype(np.uint8), "RGBA")
    grey, white = ImageOps.autocontrast(picture.convert("L")), Image.new("L", picture.size, 255)
    pale = Image.blend(grey, white, 0.62).convert("RGBA")
    return Image.alpha_composite(pale, layer.resize(picture.size, Image.Resampling.NEAREST)).convert("RGB")


def check_folder(folder: Path) -> None:
    """Raises UserError for a folder that holds anything but an earlier report."""
    if not folder.exists() or folder.is_dir() and not any(folder.iterdir()):
        return
    try:
        ours = {RECORD, *json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--output_dir {folder}: is there already, and no report of this script; choose "
                        "another") from error
    foreign = sorted(_files(folder) - ours)
    if foreign:
        raise UserError(f"--output_dir {folder}: beside the report, it holds {foreign[0]}, which would be lost; move "
                        "it away")


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


@contextlib.contextmanager
def complete_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, under a partial name beside the final one; when it is complete, it takes the place of a report
    there. What is not completed is removed."""
    folder = folder.resolve()
    partial, old = (folder.with_name(f"{folder.name}{ending}.partial") for ending in ("", ".old"))
    for path in (partial, old):
        shutil.rmtree(path, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    finally:
        for path in (partial, old):
            shutil.rmtree(path, ignore_errors=True)


def save_page(content: dict, folder: Path) -> int:
    """Write index.html and report.json into a folder that holds the pictures. Returns the folder's size in bytes."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), undefined=jinja2.StrictUndefined,
                                     autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": _percent, "change": _change, "score": _score, "spelled": spelled}
    own = {name: Markup((HERE / f"page.{name}").read_text(encoding="utf-8")) for name in ("css", "js")}
    page = environment.get_template("page.html.j2").render(**content, **own)
    (folder / "index.html").write_text(page, encoding="utf-8")
    with (folder / "heads.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(_table(content["heads"]))
    content = {"made_by": "make_report.py", **content, "files": sorted(_files(folder))}
    (folder / RECORD).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _table(heads: list[dict]) -> Iterator[list]:
    """Rows of the figures of all heads, a line of names first."""
    figures = ("layer", "head", "variance", "explained", "accuracy", "change", "lost", "gained")
    yield [*figures, "change_from", "change_to", "truth", "name", "texts"]
    for head in heads:
        yield [*(head[name] for name in figures), *head["interval"], head["truth"]["truth"] if head["truth"] else "",
               head["named"]["role"] if head["named"] else "",
               "; ".join(entry["text"] for entry in head["texts"])]


def _percent(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}f}%"


def _change(points: float) -> str:
    """A difference of percentages; one that rounds to 0 has no sign."""
    text = f"{points:+.1f}"
    return "±0.0" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def _score(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")
