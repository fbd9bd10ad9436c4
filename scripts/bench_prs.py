"""What the decomposition costs: compute_prs.py's loop beside a plain loop of encode_image, in one run.

    python -m scripts.bench_prs                                   # ViT-B-16, 224 pixels, float32
    python -m scripts.bench_prs --model emojiclip --batch_size 64 --images 1024

Both loops read the same images from the same loader (drawn beforehand and kept as PNG files). The plain
loop only encodes; the other decomposes and streams every array to disk. They take turns over a batch at a
time, so that a machine that slows down slows both; the ratio of the medians is printed.
"""
from utils import cli


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_model_options(parser, "ViT-B-16")
    parser.add_argument("--images", type=cli.POSITIVE, default=96, help="images each loop reads")
    parser.add_argument("--batch_size", type=cli.POSITIVE, default=8, help="images a forward pass")
    return parser


def main(args) -> None:
    import statistics
    import tempfile
    import time
    from functools import partial
    from pathlib import Path

    import torch
    from PIL import Image

    from utils.data import datasets, scenes
    from utils.decompose.tower import by_tower, check, decompose, read_tower
    from utils.models import names
    from utils.runs import files

    device = cli.pick_device(args.device)
    pretrained = args.pretrained or (None if args.model == "emojiclip" else "none")
    clip = names.load_clip(args.model, pretrained, device, args.seed)
    tower = read_tower(clip.model.visual)

    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder, "images", "scene")
        pictures.mkdir(parents=True)
        drawn = scenes.sample_scenes(args.images, seed=args.seed)
        for start in range(0, args.images, 32):
            images, _ = scenes.draw(drawn[start:start + 32], clip.image_size[0])
            for i, image in enumerate(images.permute(0, 2, 3, 1).numpy(), start):
                Image.fromarray(image).save(pictures / f"{i:05d}.png")
        images = datasets.load_images("imagefolder", str(pictures.parent), clip.image_size[0])

        def loader():
            return datasets.batches(images, clip.preprocess, args.batch_size, num_workers=0)

        def plain():
            for pixels, *_ in loader():
                with torch.inference_mode():
                    clip.model.encode_image(pixels.to(device)).cpu()
                yield

        def decomposed():
            with files.Writer(Path(folder, "manifest.json")) as writer:
                for pixels, labels, _ in loader():
                    terms = decompose(tower, pixels.to(device))
                    for what in ("attn", "mlp", "cls_attn"):
                        writer.append(Path(folder, f"{what}.npy"), getattr(terms, what).cpu().numpy())
                    writer.append(Path(folder, "labels.npy"), labels, "int64")
                    yield
                writer.finish({})

        times = {"encode_image": [], "compute_prs": []}
        loops = {"encode_image": plain(), "compute_prs": decomposed()}
        for _ in range(-(-args.images // args.batch_size)):
            for name, loop in loops.items():
                start = time.perf_counter()
                next(loop)
                times[name].append(time.perf_counter() - start)
    # The first batch warms up.
    medians = {name: 1000 * statistics.median(values[1:]) / args.batch_size for name, values in times.items()}
    noise = torch.randn(2, 3, *clip.image_size, device=device)
    print(f"{args.model}, {args.images} images in batches of {args.batch_size}, {device}, {torch.get_num_threads()} threads")
    for name, value in medians.items():
        print(f"  {name:<14}{value:9.2f} ms an image")
    print(f"  {'ratio':<14}{medians['compute_prs'] / medians['encode_image']:9.3f}")
    print(f"  largest error {check(clip.model.encode_image, partial(by_tower, tower), noise, 1)['error']:9.1e}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
