"""How much has each component to do with a feature (color, texture, animal, ...), and can these scores be trusted?

    python compute_component_scores.py --dataset imagenet --model timm-vit_base_patch14_dinov2.lvd142m-as-ViT-L-14
    python compute_component_scores.py --dataset emoji --model emojiclip --features configs/features_emoji.yaml --truth

A feature is a set of texts (arXiv 2406.01583). A component's score for it, from -1 to 1, is the correlation over images
between the component's and the whole representation's score along each direction of the texts, averaged over
directions. Reads what compute_prs.py wrote to --input_dir for a CLIP, or compute_alignment.py for any model.

Prints the best components of each feature (attn 5.3: head 3 of block 5, counted from 0), and two Spearman correlations
over components. rankings: between the score and how well the component ranks images as the CLIP does, for each text of
the feature, on at most 6,400 images; the CLIP's own arrays are read where they are in --input_dir, or else the whole is
the run's own. truth, with --truth and the embedded scenes: between the score and the share of the component's variance
that the attribute of that name explains (as in compute_head_truth.py); where the largest share is next to nothing, that
correlation is noise. Constant components are left out, and counted.

Writes to --output_dir: {dataset}_component_scores_{model}.json, with every score, and .png.
"""
from utils import cli, processes
from utils.cli import UserError
from utils.data.datasets import EMBEDDED, NAMES

BEST = 5  # components that are printed


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_run_options(parser, NAMES)
    parser.add_argument("--features", default="configs/features.yaml", metavar="FILE.yaml",
                        help="the features, each with its texts")
    parser.add_argument("--truth", action="store_true",
                        help="compare with what is known of the embedded scenes (default: do not)")
    cli.add_reload_options(parser, "of the text encoder: ")
    cli.add_output_dir(parser, "JSON and picture go", beside_input=True)
    return parser


def main(args) -> None:
    if args.truth and args.dataset not in EMBEDDED:
        raise UserError(f"--truth: that of the images of {args.dataset} is not known; it is of {', '.join(EMBEDDED)}")

    from utils.analysis import component_scores, truth
    from utils.data import datasets
    from utils.plots import charts
    from utils.runs import files
    from utils.runs.run import Run

    texts = component_scores.read(args.features)
    attributes = [name for name in texts if name in truth.ATTRIBUTES]
    if args.truth and not attributes:
        raise UserError(f"--truth: {args.features} has no feature that is known of scenes; these are "
                        f"{', '.join(truth.ATTRIBUTES)}, as in configs/features_emoji.yaml")
    files.check_there([files.Place(args.input_dir, args.dataset, args.model, args.split)],
                      given={"pretrained": args.pretrained, "seed": args.seed})
    run = Run.open(args.input_dir, args.dataset, args.model, args.split, needs="components")
    target = component_scores.target(run)
    ranked_by = run.manifest["model"] if target is run else target.place.model_name
    groups = {}
    if args.truth:
        images = datasets.load_images(args.dataset, split=args.split)
        known = truth.codes([images.scenes[i] for i in run.indices(images)])
        groups = {attribute: known[attribute] for attribute in attributes}
    embeddings = component_scores.embed(run.manifest, list(texts.values()), run.width,
                                        args.model, args.pretrained, processes.pick_device(args.device), args.seed)

    scores = component_scores.feature_scores(run.stacks("scores"), embeddings)
    agreements, ranked = component_scores.agreements(run, target, embeddings)
    shares = truth.explained(run, groups) if groups else {}

    rows = {}
    header = ["feature", "best components", "rankings", *(["truth", "largest share (%)"] if groups else [])]
    print(f"| {' | '.join(header)} |\n" + "| --- " * len(header) + "|")
    for feature, own, agreement in zip(texts, scores, agreements):
        rows[feature] = {"texts": texts[feature], "rankings": component_scores.rank_correlation(own, agreement)}
        if feature in shares:
            largest = float(shares[feature].max())
            rows[feature]["truth"] = component_scores.rank_correlation(own, shares[feature]) | {
                "largest_share": largest}
        best = ", ".join(f"{run.components[place]} ({own[place]:.2f})" for place in own.argsort()[::-1][:BEST])
        figures = [rows[feature].get(kind, {}).get("spearman") for kind in ("rankings", "truth")[:1 + bool(groups)]]
        cells = ["-" if figure is None else f"{figure:.2f}" for figure in figures]
        cells += [f"{100 * largest:.1f}" if feature in shares else "-"] if groups else []
        print(f"| {feature} | {best} | {' | '.join(cells)} |")
    constant = max(row["rankings"]["constant"] for row in rows.values())
    left_out = f", of which up to {constant} are constant along a feature's texts and left out" if constant else ""
    print(f"{len(run.components)} components{left_out}; rankings of {ranked} images against those of {ranked_by}")

    path = run.place.path("component_scores", ".json", args.output_dir)
    cli.save_result(path, {
        "model": args.model, "dataset": args.dataset, "split": args.split, "images": len(run), "features": rows,
        "rankings": {"images": ranked, "against": ranked_by},
        "components": [{"name": str(component), **component.to_dict(),
                        "scores": dict(zip(texts, scores[:, place].tolist())),
                        "rankings": dict(zip(texts, agreements[:, place].tolist())),
                        **({"truth": {feature: float(share[place]) for feature, share in shares.items()}}
                           if groups else {})}
                       for place, component in enumerate(run.components)]})
    charts.component_scores(run.components, dict(zip(texts, scores)), f"{args.model} on {run.place.name}",
                            path.with_suffix(".png"))
    print(f"-> {path}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
