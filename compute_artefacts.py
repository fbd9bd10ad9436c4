"""Do some patches hold outlying tokens, which neurons write them, and what do they do to a heat map?

    python compute_artefacts.py --model ViT-B-16 --pretrained laion2b_s34b_b88k --dataset imagenet --data_path DIR
    python compute_artefacts.py --model emojiclip --dataset emoji --image photo.png

A patch token is an outlier if its norm after the last block but one is above the median of all such norms plus
--deviations times their median absolute deviation; the rule is printed. Says of each layer the median norm, the 99.9th
percentile, how many tokens are outliers, and how much of the class token's attention they get; what they add to the
score of the predicted class and to its heat map, where compute_text_projection.py's classifier is in --output_dir; and
which neurons up to --top_layer have the largest mean absolute activation there: the register neurons of `--registers N`
(arXiv 2506.08010) in compute_prs.py, compute_heatmaps.py and compute_segmentations.py, which give these tokens a place
of their own.

Writes {dataset}_artefacts_{model}.json to --output_dir; and a picture: norms beside an image (--image, or the one of
the data set with the largest norm), with registers and without, and how often each norm occurs.
"""
from utils import cli, processes
from utils.data.datasets import NAMES


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_model_options(parser)
    cli.add_model_settings(parser)
    cli.add_data_options(parser, NAMES)
    cli.add_split_option(parser)
    parser.add_argument("--num_images", type=cli.POSITIVE, default=500, metavar="N",
                        help="images of the data set that are looked at, drawn at random")
    parser.add_argument("--deviations", type=cli.RATE, default=15.0, metavar="K",
                        help="median absolute deviations above the median from which on a norm is an outlier")
    parser.add_argument("--top_layer", type=cli.NATURAL, metavar="L",
                        help="last layer of register neurons, counted from 0 (default: the middle one)")
    parser.add_argument("--register_neurons", type=cli.POSITIVE, default=10, metavar="N",
                        help="register neurons to name")
    parser.add_argument("--image", metavar="FILE", help="a picture to show (default: one of the data set)")
    parser.add_argument("--batch_size", type=cli.SIZE, default=16, help="images a forward pass")
    cli.add_output_dir(parser, "results go, and the classifier may be")
    return parser


def main(args) -> None:
    from functools import partial

    from utils.data import datasets, loader, pictures
    from utils.runs import files

    # The images and the model.
    picture = pictures.read_option(args.image) if args.image else None
    images = datasets.load_images(args.dataset, args.data_path, split=args.split)
    cli.loading(args.model, args.pretrained)

    from utils.analysis import artefacts, heatmaps, neuron_runs
    from utils.decompose import registers
    from utils.decompose.decomposer import Decomposer
    from utils.models.loading import load
    from utils.plots import tokens

    model = load(args.model, args.pretrained, processes.pick_device(args.device), args.seed,
                 settings=cli.model_settings(args))
    layers = len(artefacts.known(model).blocks)
    top_layer = (layers - 1) // 2 if args.top_layer is None else args.top_layer
    cli.check_range("--top_layer", top_layer, max(layers - 2, 0), 0)
    images.draw_at(model.image_size[0])
    place = files.Place(args.output_dir, args.dataset, args.model, args.split)
    chosen = loader.some(images, args.num_images)
    read = partial(neuron_runs.read, model, args.batch_size, 0, images, only=chosen)

    # Norms, outliers and the neurons that write them.
    found = artefacts.measure(model, lambda: (pixels for pixels, _ in read()), args.deviations, top_layer,
                              args.register_neurons)
    norms = found.pop("norms")
    print(f"outliers: patch tokens of a norm above {found['threshold']:.2f} = {found['median']:.2f} + "
          f"{args.deviations:g} x {found['deviation']:.2f}, after layer {max(layers - 2, 0)}: "
          f"{100 * found['outliers']:.2f}% of the tokens of {found['images']} images")
    print("layer  median norm  99.9%   outliers (%)  class token's attention on outliers (%)")
    for row in found["layers"]:
        print(f"{row['layer']:>5} {row['median']:>12.2f} {row['highest']:>6.2f} {100 * row['outliers']:>14.2f} "
              f"{100 * row['attention']:>41.2f}")
    if found["register_neurons"]:
        print("register neurons: " + ", ".join(f"{entry['neuron']} ({entry['activation']:.2f})"
                                               for entry in found["register_neurons"]))
    classifier = artefacts.classifier_of(place, model)
    if classifier is not None:
        found["of_score"] = artefacts.of_scores(Decomposer(model), lambda: (pixels for pixels, _ in read()), classifier,
                                                found["threshold"])
        print("of the heat maps of predicted classes, outliers hold "
              f"{100 * found['of_score']['share_of_heat']:.2f}%; they add "
              f"{found['of_score']['mean_score_of_outliers']:+.4f} to the score, of "
              f"{found['of_score']['mean_score']:.4f}")

    path = place.path("artefacts", ".json")
    about = {"model": args.model, "pretrained": model.source, "weights_sha256": model.weights_hash,
             "model_settings": model.settings, "dataset": args.dataset, "split": args.split, "top_layer": top_layer,
             "deviations": args.deviations}
    cli.save_result(path, {**about, **found, "command": cli.command(__file__, get_args_parser(), args)})

    # A picture's norms, as they are and with a register.
    if picture is None:
        picture = images.read(chosen[artefacts.largest(norms, found["images"])])[0]
    pixels, shown = heatmaps.prepare(picture, model, Decomposer(model).patch_size)
    maps = {"norms of the patches": artefacts.norm_map(model, pixels)}
    if found["register_neurons"]:
        with_one = registers.Registers(1, tuple(tuple(map(int, entry["neuron"].split(".")))
                                                for entry in found["register_neurons"]))
        maps["with one register"] = artefacts.norm_map(model, pixels, with_one)
    tokens.norms(shown, maps, norms[max(layers - 2, 0)], found["threshold"],
                 f"{args.model}, {args.dataset}: norms of patch tokens after layer {max(layers - 2, 0)}",
                 path.with_suffix(".png"))
    print(f"{found['images']} images -> {path}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
