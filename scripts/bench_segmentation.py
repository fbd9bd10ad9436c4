"""What a heat map costs: decomposition by patches and the map of the predicted class, beside a plain encode_image.

    python -m scripts.bench_segmentation                                   # ViT-B-16, 224 pixels, float32
    python -m scripts.bench_segmentation --model emojiclip --batch_size 64

Both take the same batch of random images and a random classifier of 1,000 classes, in turns, so that a machine that slows
down slows both. Of each the fastest repeat counts, as other work on the machine only ever adds time; the ratio is printed.
"""
from utils import cli


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_model_options(parser, "ViT-B-16")
    parser.add_argument("--batch_size", type=cli.POSITIVE, default=8, help="images a forward pass")
    parser.add_argument("--repeats", type=cli.POSITIVE, default=10, help="batches each of the two takes")
    return parser


def main(args) -> None:
    import time

    import torch

    from utils.analysis import segmentation
    from utils.decompose.tower import decompose_tokens, read_tower
    from utils.models import names

    device = cli.pick_device(args.device)
    pretrained = args.pretrained or (None if args.model == "emojiclip" else "none")
    clip = names.load_clip(args.model, pretrained, device, args.seed)
    tower = read_tower(clip.model.visual)
    generator = torch.Generator().manual_seed(args.seed)
    images = torch.randn(args.batch_size, 3, *clip.image_size, generator=generator).to(device)
    columns = torch.randn(tower.projection.shape[1], 1000, generator=generator).to(device)
    classifier = torch.nn.functional.normalize(columns, dim=0)

    def plain() -> torch.Tensor:
        return clip.model.encode_image(images).cpu()

    def heat() -> torch.Tensor:
        terms = decompose_tokens(tower, images)
        predicted = (terms.representation @ classifier).argmax(dim=1)
        maps = segmentation.decomposition_maps(terms, classifier, predicted)
        return segmentation.heat_maps(maps, clip.image_size[0]).cpu()

    loops = {"encode_image": plain, "heat maps": heat}
    fastest = dict.fromkeys(loops, float("inf"))
    with torch.inference_mode():
        for repeat in range(args.repeats + 1):
            for name, loop in loops.items():
                start = time.perf_counter()
                loop()  # ends on the CPU, so that a GPU has finished
                if repeat:  # the first warms up
                    fastest[name] = min(fastest[name], time.perf_counter() - start)
    print(f"{args.model}, batches of {args.batch_size}, {device}, {torch.get_num_threads()} threads")
    for name, seconds in fastest.items():
        print(f"  {name:<14}{1000 * seconds / args.batch_size:9.2f} ms an image")
    print(f"  {'ratio':<14}{fastest['heat maps'] / fastest['encode_image']:9.3f}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
