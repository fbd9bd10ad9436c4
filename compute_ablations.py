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
    from pathlib import Path

    from utils.analysis import ablation
    from utils.models import names
    from utils.plots import charts
    from utils.runs import files

    model = names.file_name(args.model)
    name = files.run_name(args.dataset, args.split)
    class_token = files.term_path(args.input_dir, name, "cls_attn", model).is_file()
    parts = ("attn", "mlp", *(["cls_attn"] if class_token else []))
    terms, manifest = files.open_run(args.input_dir, args.dataset, args.model, parts, args.split)
    classifier = files.open_classifier(args.input_dir, args.dataset, args.model, manifest, terms["attn"].shape[-1])
    found = ablation.accuracies(terms, classifier)
    print(f"Baseline: {found['baseline']}")
    print(f"+ MLPs ablation: {found['mlp_ablated']}")
    if class_token:
        print(f"+ CLS ablation: {found['cls_ablated']}")
        print(f"+ MLPs + CLS ablation: {found['mlp_and_cls_ablated']}")
    if "conv" in terms:
        print(f"+ Convolution blocks ablation: {found['conv_ablated']}")
    print(f"Attention ablations: {found['attention_ablated']}")

    path = Path(args.figures_dir or args.input_dir) / f"{name}_ablations_{model}.json"
    cli.save_result(path, {"model": args.model, "dataset": args.dataset, "images": len(terms["labels"]), **found})
    charts.ablation_curve(found, args.model, args.dataset, path.with_suffix(".png"))


if __name__ == "__main__":
    cli.run(main, get_args_parser())
