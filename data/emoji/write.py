"""Write an embedded data set to disk, in the layout of the data set it stands for.

    python -m data.emoji.write --dataset emoji --output_dir DIR            # class folders of PNG
    python -m data.emoji.write --dataset emoji_spurious --output_dir DIR   # Waterbirds' folders and metadata.csv
    python -m data.emoji.write --dataset emoji_seg --output_dir DIR        # ImageNet-Segmentation's gtsegs_ijcv.mat

Beside the images, scenes.jsonl holds every scene's attributes, caption and nuisances, one a line, in order.
"""
from utils import cli
from utils.data.datasets import EMBEDDED


def get_args_parser():
    parser = cli.make_parser(__doc__)
    parser.add_argument("--dataset", default="emoji", choices=EMBEDDED, metavar="NAME",
                        help=f"one of {', '.join(EMBEDDED)}")
    parser.add_argument("--output_dir", required=True, metavar="FOLDER", help="where it goes; should be new or empty")
    parser.add_argument("--image_size", type=cli.PIXELS, default=224, help="side of an image, in pixels")
    return parser


def write_folders(drawn: list, image_size: int, names: list) -> None:
    """Draw scenes and write them as PNG under the given paths."""
    from PIL import Image
    from tqdm import tqdm

    from utils.data import scenes

    for start in tqdm(range(0, len(drawn), 64), desc="images", unit="batch"):
        images, _ = scenes.draw(drawn[start:start + 64], image_size)
        for image, path in zip(images.permute(0, 2, 3, 1).numpy(), names[start:start + 64]):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)


def write_waterbirds(root, image_size: int) -> list:
    """All splits of emoji_spurious: one folder a kind of animal, and Waterbirds' metadata.csv."""
    import csv

    from utils.data import datasets, layouts, scenes

    drawn, rows = [], []
    for split, name in enumerate(layouts.SPLITS):
        members, labels, places = datasets.embedded_scenes("emoji_spurious", name)
        for scene, y, place in zip(members, labels, places):
            number = len(rows)
            kind = f"{scene.object:03d}.{scenes.concepts()[scene.object]['name'].replace(' ', '_')}"
            ground = f"/{('land', 'sea')[place]}/{scene.color}_{scene.texture}/{number:05d}.png"
            rows.append([number + 1, f"{kind}/{number:05d}.png", y, split, place, ground])
            drawn.append(scene)
    write_folders(drawn, image_size, [root / row[1] for row in rows])
    with (root / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["img_id", "img_filename", "y", "split", "place", "place_filename"])
        writer.writerows(rows)
    return drawn


def write_segmentation(path, drawn: list, image_size: int) -> None:
    """A MATLAB v7.3 file: /value/img refers to images (3, width, height), /value/gt to references to masks (width,
    height)."""
    import h5py

    from utils.data import scenes

    with h5py.File(path, "w") as file:
        value, data = file.create_group("value"), file.create_group("#refs#")
        shape, kind = (len(drawn), 1), h5py.ref_dtype
        images, masks = value.create_dataset("img", shape, kind), value.create_dataset("gt", shape, kind)
        for start in range(0, len(drawn), 64):
            pixels, covers = scenes.draw(drawn[start:start + 64], image_size)
            for i, (image, cover) in enumerate(zip(pixels.numpy(), covers.numpy()), start):
                images[i, 0] = data.create_dataset(f"img{i}", data=image.transpose(0, 2, 1), compression="gzip").ref
                mask = data.create_dataset(f"mask{i}", data=cover.T, compression="gzip")
                holder = data.create_dataset(f"gt{i}", (1, 1), kind)
                holder[0, 0] = mask.ref
                masks[i, 0] = holder.ref


def main(args) -> None:
    import json
    from pathlib import Path

    import numpy as np

    from utils.data import captions, datasets

    root = Path(args.output_dir)
    root.mkdir(parents=True, exist_ok=True)
    if args.dataset == "emoji_spurious":
        drawn = write_waterbirds(root, args.image_size)
    else:
        drawn, _, _ = datasets.embedded_scenes(args.dataset)
        if args.dataset == "emoji_seg":
            write_segmentation(root / "gtsegs_ijcv.mat", drawn, args.image_size)
        else:
            names = [scene.attributes()["object"].replace(" ", "_") for scene in drawn]
            write_folders(drawn, args.image_size, [root / name / f"{i:05d}.png" for i, name in enumerate(names)])
    with (root / "scenes.jsonl").open("w", encoding="utf-8") as file:
        for i, scene in enumerate(drawn):
            said = captions.caption(scene, np.random.default_rng((0, i)))
            file.write(json.dumps({**scene.record(), "caption": said}) + "\n")
    print(f"{len(drawn)} scenes -> {root}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
