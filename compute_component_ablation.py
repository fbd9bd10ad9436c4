"""How many layers does a model need? Accuracy with the layers replaced by their means, one after the other, from the
last back.

    python compute_component_ablation.py --dataset imagenet \\
        --model ViT-L-14 timm-vit_base_patch14_dinov2.lvd142m-as-ViT-L-14
    python compute_component_ablation.py --dataset emoji --model emojiclip emojivit-as-emojiclip
    python compute_component_ablation.py --dataset emoji --model emojiclip timm:local-dir:models/emojivit --probe

Mean-ablates the embedding first, then from the last block back its MLP, its attention and its convolution (arXiv
2406.01583); what is ablated stays so. Reads what compute_prs.py or compute_alignment.py wrote to --input_dir for each
model, and of the CLIP what compute_text_projection.py wrote. With --probe, for models without texts, a linear probe
takes the place of the zero-shot classifier: it is fitted to the whole representations of the train split (--split
train), as in compute_linear_probe.py.

Prints the accuracy after each step, in percent. Writes to --output_dir: {dataset}_component_ablation_{model}.json for
each model, and {dataset}_component_ablation.png with all of them; with --probe, {dataset}_component_ablation_probe...
"""
from utils import cli
from utils.cli import UserError
from utils.data.datasets import NAMES


def get_args_parser():
    parser = cli.make_parser(__doc__)
    parser.add_argument("--model", nargs="+", default=["ViT-H-14"], metavar="NAME",
                        help="one or several, as given to compute_prs.py (default: ViT-H-14)")
    cli.add_run_options(parser, NAMES, model=None)
    parser.add_argument("--probe", action="store_true", help="classify by linear probes (default: zero-shot)")
    parser.add_argument("--seed", type=cli.SEED, default=0,
                        help="seed of the probe's held-out images, where there is no val split")
    cli.add_output_dir(parser, "JSON and picture go", beside_input=True)
    return parser


def main(args) -> None:
    from pathlib import Path

    import numpy as np

    from utils.analysis import ablation, probe
    from utils.models import names as models
    from utils.plots import charts
    from utils.runs import files
    from utils.runs.run import Run

    given = " ".join(args.model).split()  # a settings file may name them in a line
    for model in given:
        splits = (args.split, "train") if args.probe else (args.split,)
        files.check_there([files.Place(args.input_dir, args.dataset, model, split) for split in splits],
                          classifier=not (args.probe or model.startswith(models.TIMM)))
    name, runs, heads, splits = files.run_name(args.dataset, args.split), {}, {}, {}
    for model in dict.fromkeys(given):
        run = runs[model] = Run.open(args.input_dir, args.dataset, model, args.split, needs="components")
        if args.probe:
            splits[model] = probe.open_splits(args.input_dir, args.dataset, model, args.split)
        elif run.manifest["model"].startswith(models.TIMM):
            raise UserError(f"--model {run.manifest['model']} has no text side; give --probe, or map it to a CLIP with "
                            "compute_alignment.py")
        else:
            classifier = run.classifier()
            heads[model] = classifier, np.zeros(classifier.shape[1]), None
    for model, parts in splits.items():
        heads[model] = probe.fit_head(parts, args.seed)

    folder = Path(args.output_dir or args.input_dir)
    stem, curves = f"{name}_component_ablation" + ("_probe" if args.probe else ""), {}
    for given_as, run in runs.items():
        model, layers = run.place.model_name, ablation.layers_from_the_last(run.components)
        weight, bias, fitted = heads[given_as]
        accuracies = ablation.cumulative(run, list(layers.values()), weight, bias)
        counts = np.cumsum([0, *map(len, layers.values())])
        whole = {"ablated": "nothing", "kind": None, "block": None, "components": 0, "accuracy": accuracies[0]}
        curves[model] = [whole] + [
            {"ablated": str(layer), "kind": layer.kind, "block": layer.layer, "components": int(count),
             "accuracy": accuracy} for layer, count, accuracy in zip(layers, counts[1:], accuracies[1:])]
        print(f"{model}, {'linear probe' if args.probe else 'zero-shot'}, {len(run)} images")
        for entry in curves[model]:
            print(f"  {entry['ablated']:<10}{entry['accuracy']:6.1f}")
        path = folder / f"{stem}_{model}.json"
        cli.save_result(path, {"model": model, "dataset": args.dataset, "split": args.split, "images": len(run),
                                 "probe": fitted, "number_of_components": int(counts[-1]), "steps": curves[model]})
        print(f"-> {path}")
    measured = "accuracy of a linear probe (%)" if args.probe else "zero-shot accuracy (%)"
    charts.cumulative_ablation(curves, measured, name, folder / f"{stem}.png")
    print(f"-> {folder / stem}.png")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
