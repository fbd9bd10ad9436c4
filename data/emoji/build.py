"""Rebuild the pack of drawings in data/emoji from the packages of the npm registry.

    python -m data.emoji.build

Downloads the emoji sets (iconify's `@iconify-json/*`) and the labels (`emojibase-data`) with npm
into a temporary folder, draws every concept of data/emoji/concepts.csv in every style, and writes

    data/emoji/{style}.webp   one lossless atlas a style: cell i holds concept i of concepts.json
    data/emoji/concepts.json  name, group, habitat, label and tags of every concept; styles with licences

Each drawing is cropped to what is opaque and scaled to fill its cell, so the size of an object in
a scene is known exactly; its transparency is its mask. Needs npm, which nothing else here needs.
"""
import csv
import io
import json
import subprocess
import tempfile
from pathlib import Path

from utils import cli

COLUMNS = 16
# style: (package, version, package whose chars.json gives the drawings' names)
PACKAGES = {
    "noto": ("noto", "1.2.9", "noto"),
    "noto-v1": ("noto-v1", "1.2.5", "noto"),
    "twemoji": ("twemoji", "1.2.5", "twemoji"),
    "emojione": ("emojione", "1.2.3", "noto"),
    "openmoji": ("openmoji", "1.2.29", "openmoji"),
    "fluent-flat": ("fluent-emoji-flat", "1.2.6", "fluent-emoji-flat"),
    "fluent": ("fluent-emoji", "1.2.7", "fluent-emoji-flat"),
}
LABELS = ("emojibase-data", "17.0.0")


def get_args_parser():
    parser = cli.make_parser(__doc__)
    parser.add_argument("--output_dir", default=str(Path(__file__).parent), metavar="FOLDER",
                        help="folder that holds concepts.csv and receives the pack")
    parser.add_argument("--size", type=cli.THUMBNAIL, default=80, help="side of a drawing, in pixels")
    return parser


def draw(package: dict, name: str, size: int):
    """One icon of an iconify set as a [size, size] RGBA picture, its opaque part filling the frame."""
    import resvg_py
    from PIL import Image

    icon = package["icons"][name]
    width = icon.get("width", package.get("width", 16))
    height = icon.get("height", package.get("height", 16))
    svg = (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
           f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">{icon["body"]}</svg>')
    png = resvg_py.svg_to_bytes(svg_string=svg, width=4 * size, height=4 * size, skip_system_fonts=True)
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    opaque = picture.getchannel("A").point(lambda alpha: 255 if alpha > 8 else 0)
    picture = picture.crop(opaque.getbbox())
    scale = size / max(picture.size)
    fitted = picture.convert("RGBa").resize(  # premultiplied: transparent pixels lend no colour to edges
        [max(1, round(side * scale)) for side in picture.size], Image.Resampling.LANCZOS).convert("RGBA")
    cell = Image.new("RGBA", (size, size))
    cell.paste(fitted, ((size - fitted.width) // 2, (size - fitted.height) // 2))
    return cell


def main(args) -> None:
    from PIL import Image
    from tqdm import tqdm

    output = Path(args.output_dir)
    concepts = list(csv.DictReader((output / "concepts.csv").open()))
    with tempfile.TemporaryDirectory() as folder:
        wanted = [f"@iconify-json/{package}@{version}" for package, version, _ in PACKAGES.values()]
        subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder,
                        *wanted, "@".join(LABELS)], check=True)
        modules = Path(folder, "node_modules")

        def load(package: str, file: str) -> dict:
            return json.loads((modules / "@iconify-json" / package / file).read_text())

        emojibase = {entry["hexcode"].lower().replace("-fe0f", ""): entry
                     for entry in json.loads((modules / LABELS[0] / "en" / "data.json").read_text())}
        for concept in concepts:
            entry = emojibase[concept["hexcode"]]
            concept.update(label=entry["label"], tags=entry.get("tags", []))

        styles = {}
        for style, (package, version, names) in tqdm(PACKAGES.items(), desc="styles"):
            by_code = {code.replace("-fe0f", ""): name for code, name in load(names, "chars.json").items()}
            icons, info = load(package, "icons.json"), load(package, "info.json")
            rows = -(-len(concepts) // COLUMNS)
            atlas = Image.new("RGBA", (COLUMNS * args.size, rows * args.size))
            for index, concept in enumerate(concepts):
                cell = draw(icons, by_code[concept["hexcode"]], args.size)
                atlas.paste(cell, (index % COLUMNS * args.size, index // COLUMNS * args.size))
            atlas.save(output / f"{style}.webp", lossless=True, quality=100, method=6)
            styles[style] = {"package": f"@iconify-json/{package}@{version}", "name": info["name"],
                             "author": info["author"]["name"], "source": info["author"]["url"],
                             "license": info["license"]["spdx"], "license_url": info["license"]["url"]}
    pack = {"size": args.size, "columns": COLUMNS, "styles": styles,
            "labels": {"package": "@".join(LABELS), "license": "MIT"}, "concepts": concepts}
    (output / "concepts.json").write_text(json.dumps(pack, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(concepts)} concepts in {len(styles)} styles -> {output}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
