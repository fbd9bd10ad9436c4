"""Which neurons do later heads listen to, and what are these neurons about?

    python compute_second_order.py --dataset imagenet --data_path DIR --model ViT-B-32 --pretrained openai \\
        --layers 8 9 10 --text_descriptions google_3498_english
    python compute_second_order.py --dataset emoji --model emojiclip --layers 3 4 --text_descriptions emoji_descriptions

The second-order effect of a neuron (arXiv 2406.04341) is what it adds to the representation through later heads, with
attention and norms held fixed. Its mean, its first direction r and the norm above which it is significant come from
--fit_images of --fit_split; scores <phi - mean, r> and norms ||phi - mean|| are those of every image of --split. Needs
the classifier of compute_text_projection.py and the pool of compute_text_set_projection.py in --output_dir.

Prints, for each layer, the zero-shot accuracy with its second-order effects mean-ablated, with the significant ones
alone, with first components alone, and with these as sums of a few texts; beside it the direct and the indirect effect.
Writes to --output_dir, for b images, N neurons and layer L:

    {dataset}_neurons{L}_{scores|norms}_{model}.npy            [b, N]
    {dataset}_neurons{L}_{sum|significant|direct}_{model}.npy  [b, d]  sums of phi - mean; the direct effect
    {dataset}_neurons{L}_{mean|direction}_{model}.npy          [N, d]  with threshold [N], heads [N, later heads], ...
    {dataset}_neurons{L}_c_{model}.npy                         [b, later heads, N + 1]  with --per_head
    {dataset}_neurons_{model}.json                             what made them; a killed run goes on with --resume
    {dataset}_second_order_{model}.json, .png                  results; a sheet of the neurons with the largest effect
"""
from utils import cli, processes
from utils.data.datasets import NAMES


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_model_options(parser)
    cli.add_model_settings(parser)
    cli.add_data_options(parser, NAMES)
    cli.add_split_option(parser)
    parser.add_argument("--layers", type=cli.NATURAL, nargs="+", required=True, metavar="L",
                        help="layers whose neurons are studied, counted from 0; the last layer has no later heads")
    parser.add_argument("--fit_split", default="train", metavar="NAME",
                        help="split of means, directions and thresholds; 'same' for data sets with one split")
    parser.add_argument("--fit_images", type=cli.POSITIVE, default=5000, metavar="N",
                        help="images of --fit_split, drawn at random")
    parser.add_argument("--text_descriptions", default="google_3498_english", metavar="POOL", help="the pool of texts")
    parser.add_argument("--text_dir", default="./text_descriptions", metavar="FOLDER", help="where POOL.txt is")
    parser.add_argument("--texts_per_neuron", type=cli.POSITIVE, nargs="+", default=[4, 16, 64], metavar="N",
                        help="texts that a direction is the sum of; neurons are described by the first number")
    parser.add_argument("--neurons", type=cli.NATURAL, default=50, metavar="N", help="neurons to show on the sheet")
    parser.add_argument("--indirect_images", type=cli.NATURAL, default=500, metavar="N",
                        help="images of the indirect effect, a full pass for each of 20 neurons; 0 leaves it out")
    parser.add_argument("--heads", metavar="LIST",
                        help="later heads, such as 5.4,5.3: ablate the ten neurons that feed them most (default: none)")
    parser.add_argument("--text_attributes", metavar="FILE.csv",
                        help="of embedded scenes: what each text is about, to compare with the truth (default: none)")
    parser.add_argument("--attributes", metavar="FILE.yaml",
                        help="attributes with their texts: name neurons as compute_head_names.py does (default: none)")
    parser.add_argument("--per_head", action="store_true", help="also store c, what each neuron adds to each head")
    parser.add_argument("--batch_size", type=cli.SIZE, default=16, help="images a forward pass")
    parser.add_argument("--num_workers", type=cli.NATURAL, default=0, help="processes that read images")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was cut off (default: begin anew)")
    cli.add_output_dir(parser, "the arrays go, and classifier and pool are")
    return parser


def main(args) -> None:
    from functools import partial
    from pathlib import Path

    import numpy as np

    from utils.analysis import truth, zeroshot
    from utils.analysis.names import attributes, naming
    from utils.data import datasets, loader
    from utils.runs import components, files

    # The data, the model, its classifier and pool.
    images = datasets.load_images(args.dataset, args.data_path, split=args.split)
    fit_split = args.split if args.fit_split == "same" else args.fit_split
    fit_images = datasets.load_images(args.dataset, args.data_path, split=fit_split)
    about_texts = truth.read_attributes(args.text_attributes) if args.text_attributes else None
    named = attributes.read(args.attributes) if args.attributes else None
    texts = zeroshot.read_texts(Path(args.text_dir) / f"{args.text_descriptions}.txt")
    cli.loading(args.model, args.pretrained)

    from utils.analysis import neuron_runs, neurons
    from utils.decompose.neurons import Neurons
    from utils.models.loading import load
    from utils.plots import sheets

    model = load(args.model, args.pretrained, processes.pick_device(args.device), args.seed, text_side=bool(named),
                 settings=cli.model_settings(args))
    of_model = Neurons(model, args.layers)
    heads = components.parse_heads(args.heads) if args.heads else []
    components.check_heads(heads, [head for layer in of_model.layers for head in of_model.heads(layer)])
    for some in (images, fit_images):
        some.draw_at(model.image_size[0])
    place = files.Place(args.output_dir, args.dataset, args.model, args.split)
    weights = {"weights_sha256": model.weights_hash, "pretrained": model.source, "model_settings": model.settings}
    classifier, pool = neuron_runs.texts_of_model(place, weights, args.text_descriptions, texts, of_model.width)

    # Means, directions and thresholds of one split; scores and norms of the other.
    about = {"model": args.model, "pretrained": model.source, "weights_sha256": model.weights_hash,
             "model_settings": model.settings, "dataset": args.dataset, "split": args.split, "layers": of_model.layers,
             "fit_split": fit_split,
             "fit_images": min(args.fit_images, len(fit_images.samples)), "per_head": args.per_head,
             "feeding_heads": args.heads, "batch_size": args.batch_size}
    read = partial(neuron_runs.read, model, args.batch_size, args.num_workers)
    fits, picked = neuron_runs.fit(of_model, read, fit_images, about, heads, place, args.resume)
    neuron_runs.write(of_model, read, images, about | {"command": cli.command(__file__, get_args_parser(), args)}, fits,
                      picked, place, args.resume)
    run = neuron_runs.NeuronRun(place)

    # What the model loses, by layer, and what single neurons are about.
    found = {"layers": {}, "neurons": []}
    for layer in of_model.layers:
        arrays, fitted = run.arrays(layer), fits[layer].arrays()
        row = neurons.accuracies(arrays, run.representation, fitted["direction"], run.labels, classifier, pool,
                                 args.texts_per_neuron)
        shares = neurons.shares(arrays["scores"], arrays["norms"])
        row["first_component_share"] = 100 * float(shares.mean())
        found["layers"][layer] = row
        found["neurons"] += neurons.describe(layer, fitted, arrays, run.representation,
                                             of_model.heads(layer), texts, pool, args.texts_per_neuron[0],
                                             args.neurons)
        print(f"layer {layer}: " + ", ".join(f"{name} {value:.1f}" for name, value in row.items() if name != "texts")
              + "".join(f", {number} texts {value:.1f}" for number, value in row["texts"].items()))
    found["neurons"] = sorted(found["neurons"], key=lambda entry: -entry["mean_norm"])[:args.neurons]
    known = [entry["rank_correlation"] for entry in found["neurons"] if entry["rank_correlation"] is not None]
    if known:
        print(f"texts and scores of {len(known)} neurons, on the images where they are significant: mean rank "
              f"correlation {sum(known) / len(known):.2f}")
    if args.indirect_images:
        largest = [tuple(map(int, entry["neuron"].split("."))) for entry in found["neurons"][:20]]
        chosen = loader.some(images, args.indirect_images)
        found["indirect"] = neurons.indirect(of_model, fits, lambda: read(images, only=chosen), classifier, largest)
        print(f"indirect, {found['indirect']['images']} images: baseline {found['indirect']['baseline']:.1f}, "
              + ", ".join(f"layer {name} {value:.1f}" for name, value in found["indirect"]["layers"].items()))

    # Names, the truth of scenes, and the neurons that feed some heads.
    neuron_runs.name_heads(found["neurons"], place, model.weights_hash, len(run.labels))
    if named:
        found["quality"] = neuron_runs.name(run, found["neurons"], model, named, args.seed)
        print(naming.quality_table(found["quality"]))
    if images.scenes and found["neurons"]:
        neuron_runs.explain(run, images, found["neurons"])
        found |= (against := neuron_runs.against_truth(found["neurons"], about_texts))
        for kind, scored in against.items():
            print(f"{kind.replace('_', ' ')} of {scored['neurons']} neurons: agreement {scored['agreement']:.0f}%, "
                  f"chance {scored['chance']:.0f}%, kappa {scored['kappa']:.2f}")
    if heads:
        off = [(layer, own, fits[layer].activations) for layer, own in picked.items() if own]
        changed = np.concatenate([of_model.switched_off(pixels, off).cpu().numpy() for pixels, _ in read(images)])
        accuracies, table = neuron_runs.without_picked(run, images, picked, classifier, changed)
        feeding = [f"{layer}.{neuron}" for layer, own in picked.items() for neuron in own]
        found["feeding"] = {"neurons": feeding, **accuracies}
        print(f"the neurons that feed {args.heads} most: {', '.join(feeding)}; accuracy (%)\n{table}")

    path = place.path("second_order", ".json")
    cli.save_result(path, {**about, **found, "command": cli.command(__file__, get_args_parser(), args)})
    if found["neurons"]:
        sheets.head_sheet([(neuron_runs.title(entry), *neuron_runs.pictures(images, entry, 5))
                           for entry in found["neurons"]], path.with_suffix(".png"),
                          f"{args.model}, {args.dataset}: neurons with the largest second-order effect")
    print(f"{len(run.labels)} images -> {path}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
