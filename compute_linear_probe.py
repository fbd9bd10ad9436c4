"""What can a linear classifier read from a representation, and from the last attention layers alone?

    python compute_prs.py --dataset CIFAR100 --model ViT-L-14 --pretrained laion2b_s32b_b82k --data_path DIR
    python compute_prs.py --dataset CIFAR100 --model ViT-L-14 --pretrained laion2b_s32b_b82k --data_path DIR \\
        --split train
    python compute_linear_probe.py --dataset CIFAR100 --model ViT-L-14
    python compute_linear_probe.py --dataset emoji --model emojiclip      # after the same two steps

Logistic regression on the whole representation; with all MLPs mean-ablated; with all attention layers but the last
--keep_last_layers mean-ablated; and with both. (Published, CIFAR-100, ViT-L-14: 84.3% whole, 84.2% with both.)
Reads what compute_prs.py wrote to --input_dir of the train split and of --split, which is reported. The means are those
of the train split everywhere, so that an ablated part is the same constant in fitting and in testing.

The penalty's weight, 1 / C, is chosen as CLIP's is, on the val split where its arrays are there and it is not what is
reported, or else on a tenth of every class of train, held out by --seed; then the probe is fitted to all of train.

Prints a table, and writes to --output_dir: {dataset}_linear_probe_{model}.json.
"""
from utils import cli
from utils.data.datasets import NAMES


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_run_options(parser, NAMES)
    cli.add_output_dir(parser, "the JSON goes")
    parser.add_argument("--keep_last_layers", type=cli.POSITIVE, default=4, metavar="N",
                        help="attention layers that stay where early ones are ablated")
    parser.add_argument("--seed", type=cli.SEED, default=0, help="seed of the held-out images")
    return parser


def main(args) -> None:
    from utils.data import datasets, layouts

    if args.dataset in datasets.EMBEDDED:
        layouts.check_split(args.dataset, "train", datasets.REGISTRY[args.dataset].scenes)

    import numpy as np
    from tqdm import tqdm

    from utils.runs import files

    files.check_there([files.Place(args.input_dir, args.dataset, args.model, split) for split in (args.split, "train")])

    from utils.analysis import probe

    runs = probe.open_splits(args.input_dir, args.dataset, args.model, args.split)
    layers, place = len(runs["train"].layers), runs["test"].place
    cli.fit(get_args_parser(), args, "keep_last_layers", layers)
    labels = {part: run.labels for part, run in runs.items()}
    held = None if "validation" in runs else probe.hold_out(labels["train"], args.seed)
    images = {part: len(found) for part, found in labels.items()}
    chosen_on = f"{images['validation']} images of the val split" if held is None else \
        f"{held.sum()} images of train, held out by seed {args.seed}"

    means, found = runs["train"].means(), []
    with tqdm(total=4 * probe.SWEEP_FITS, desc="fits", unit="fit") as progress:
        for row in probe.rows(layers, args.keep_last_layers):
            parts = {part: (probe.features(run, means, row["last_layers"], row["mlps"]), labels[part])
                     for part, run in runs.items()}
            model, fitted = probe.fit_best(parts["train"], parts.get("validation"), held, progress.update)
            found.append(row | {"accuracy": 100 * model.score(*parts["test"])} | fitted)

    print(f"{args.model}: linear probes fitted to {images['train']} images of train; C chosen on {chosen_on}; "
          f"accuracy (%) of {images['test']} images of {place.name}")
    for row in found:
        print(f"  {row['name']:<50} {row['accuracy']:6.1f}   C {row['C']:.3g}, "
              f"{row['validation_accuracy']:.1f} in validation"
              + ("" if row["converged"] else f"; not converged in {row['iterations']} iterations"))
    path = place.path("linear_probe", ".json", args.output_dir)
    cli.save_result(path, {
        "model": args.model, "dataset": args.dataset, "split": args.split, "keep_last_layers": args.keep_last_layers,
        "images": images | ({} if held is None else {"validation": int(held.sum())}),
        "validation": "val split" if held is None else "held out of train", "seed": args.seed,
        "classes_not_in_train": len(np.setdiff1d(labels["test"], labels["train"])), "means": "train split",
        "max_iterations": [probe.ITERATIONS, probe.MORE_ITERATIONS], "rows": found})
    print(f"-> {path}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
