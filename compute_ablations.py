"""What is each part of the model worth? Zero-shot accuracy with parts replaced by their mean.

    python compute_ablations.py --model ViT-H-14
    python compute_ablations.py --model emojiclip --dataset emoji

Reads what compute_prs.py and compute_text_projection.py wrote to --input_dir. Prints the accuracy, in percent, with all
MLPs ablated, with the class token's attention to itself ablated (where the model has a class token, and its terms are
not mapped ones), with both, with all convolution blocks ablated (where there are some), and with the attention layers 1
to k ablated, for every k (paper section 3.2, figure 2).

Writes to --figures_dir (or else --input_dir): {dataset}_ablations_{model}.json and .png.
"""
from utils import cli
from utils.data.datasets import NAMES


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_run_options(parser, NAMES)
    parser.add_argument("--figures_dir", metavar="FOLDER", help="where JSON and picture go (default: --input_dir)")
    return parser


def main(args) -> None:
    from utils.analysis import ablation
    from utils.runs import files
    from utils.runs.run import Run

    files.check_there([files.Place(args.input_dir, args.dataset, args.model, args.split)], classifier=True)
    run = Run.open(args.input_dir, args.dataset, args.model, args.split)
    found = ablation.accuracies(run, run.classifier())
    print(f"Baseline: {found['baseline']}")
    print(f"+ MLPs ablation: {found['mlp_ablated']}")
    if run.cls_attn is not None:
        print(f"+ CLS ablation: {found['cls_ablated']}")
        print(f"+ MLPs + CLS ablation: {found['mlp_and_cls_ablated']}")
    if "conv_ablated" in found:
        print(f"+ Convolution blocks ablation: {found['conv_ablated']}")
    print(f"Attention ablations: {found['attention_ablated']}")

    path = run.place.path("ablations", ".json", args.figures_dir)
    cli.save_result(path, {"model": args.model, "dataset": args.dataset, "images": len(run), **found,
                           "command": cli.command(__file__, get_args_parser(), args)})

    from utils.plots import charts  # late: pyplot takes a second

    charts.ablation_curve(found, args.model, args.dataset, path.with_suffix(".png"))


if __name__ == "__main__":
    cli.run(main, get_args_parser())
