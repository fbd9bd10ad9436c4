"""Which images go with a text, or with an image, by the components that have most to do with colour, texture, ...?

    python compute_retrieval.py --model ViT-L-14 --pretrained laion2b_s32b_b82k --data_path DIR --text "a red thing" \\
        --feature color
    python compute_retrieval.py --model timm-vit_base_patch14_dinov2.lvd142m-as-ViT-L-14 --source_model \\
        timm:vit_base_patch14_dinov2.lvd142m --data_path DIR --index 12 40 --feature color texture
    python compute_retrieval.py --model emojiclip --dataset emoji --text "a red background" --feature color

Reads what compute_prs.py, or compute_alignment.py for a model mapped to a CLIP's space, wrote to --input_dir, the lists
of texts of --features, and the images from --data_path. A component's score for a feature is how far what it writes
goes along with the whole representation, over the run's images, in the directions of the feature's texts (arXiv
2406.01583).

--text: the --components with the highest score are summed, and the images shown whose sum has the highest inner product
with the text.
--index: images of the run, each left out of its own neighbours. The components are summed whose score is highest above
that for the best other feature; their mean over the run is subtracted, and images are compared by the cosine. For a
mapped model that happens in its own space (--source_model, whose run is read, too).
The last row of each query is by the cosine of whole representations. On the embedded scenes, where a feature is an
attribute (color, position, ...), each row also says how many of the images found have the query's value of it, and how
many of all do.

Prints these, and writes to --output_dir: {dataset}_retrieval_{model}.png, a contact sheet, and .json, with indices,
classes, similarities, and the components of each feature with their scores.
"""
from utils import cli, processes
from utils.cli import UserError
from utils.data.datasets import NAMES


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_run_options(parser, NAMES)
    parser.add_argument("--data_path", metavar="FOLDER",
                        help="where the images are; the emoji sets need none (default: none)")
    cli.add_output_dir(parser, "picture and JSON go")
    parser.add_argument("--text", nargs="+", metavar="TEXT", help="queries: texts")
    parser.add_argument("--index", type=cli.NATURAL, nargs="+", metavar="N",
                        help="queries: images of the run, counted from 0")
    parser.add_argument("--feature", nargs="+", required=True, metavar="NAME",
                        help="what to compare by: features of --features")
    parser.add_argument("--features", default="configs/features.yaml", metavar="FILE.yaml",
                        help="lists of texts by feature")
    parser.add_argument("--components", type=cli.POSITIVE, default=10, metavar="K",
                        help="components that are summed for a feature")
    cli.add_source_model(parser, "with --index")
    parser.add_argument("--neighbors", type=cli.COLUMNS, default=8, metavar="K", help="images for each query")
    cli.add_reload_options(parser, "of the text encoder: ")
    return parser


def main(args) -> None:
    if not (args.text or args.index) or (args.text and args.index):
        raise UserError("give the queries either by --text or by --index")
    import numpy as np

    from utils.analysis import component_scores, retrieval
    from utils.plots import sheets
    from utils.runs import files
    from utils.runs.run import Run

    listed = component_scores.read(args.features)
    for feature in args.feature:
        if feature not in listed:
            raise UserError(f"--feature {feature}: {args.features} has no such feature; "
                            f"choose from {', '.join(listed)}")
    if args.index and len(listed) < 2:
        raise UserError(f"{args.features}: --index compares a feature with others, and there is one; add another")
    asked = args.text or args.index
    given = {name: getattr(args, name) for name in ("pretrained", "seed", "data_path")}
    files.check_there([files.Place(args.input_dir, args.dataset, args.model, args.split)], given=given)
    run = Run.open(args.input_dir, args.dataset, args.model, args.split, needs="components")
    cli.fit(get_args_parser(), args, "components", len(run.components))
    cli.fit(get_args_parser(), args, "neighbors", len(run) - bool(args.index))
    retrieval.check(run, asked, len(args.feature) + 1, args.neighbors, bool(args.index))
    compared, apart = run, bool(args.index) and "text_model" in run.manifest
    if args.source_model and not apart:
        raise UserError("--source_model goes with --index and a mapped model (MODEL-as-CLIP); leave it out")
    if apart:  # in the space of the model itself
        compared = retrieval.open_source(run, args.source_model)
    images = run.images(args.data_path, sheets.SIDE)
    places = run.indices(images)

    # The components that have most to do with each feature
    *texts, queries = component_scores.embed(run.manifest, [*listed.values(), args.text or ["a text"]], run.width,
                                             args.model, args.pretrained, processes.pick_device(args.device), args.seed)
    scores, ways, about = component_scores.feature_scores(run.stacks("scores"), texts), [], {}
    for feature in args.feature:
        row = list(listed).index(feature)
        columns = retrieval.most(scores, row, args.components, bool(args.index))
        about[feature] = {"components": [{"name": str(run.components[column]), "score": float(scores[row, column])}
                                         for column in columns]}
        ways.append(columns)
    ways, about[retrieval.WHOLE] = [*ways, None], {"components": None}

    # The images that they find
    if args.text:
        found = retrieval.by_texts(compared, ways, queries, args.neighbors)
    else:
        queries = retrieval.vectors(compared, np.array(args.index), ways)
        found = retrieval.by_images(compared, ways, queries, args.neighbors, args.index)
    report = retrieval.report(run, images, asked, "text", about, found, with_agreement=True)

    def picture(index: int):
        return images.read(places[index])[0]

    path = run.place.path("retrieval", ".json", args.output_dir)
    cli.save_result(path, {"model": args.model, "dataset": args.dataset, "split": args.split, "images": len(run),
                           "features": args.features, "components": args.components, "queries": report})
    sheets.contact_sheet(report, [None if args.text else picture(index) for index in asked], picture, retrieval.title,
                         f"{args.model}: {len(run)} images of {run.place.name}", path.with_suffix(".png"))
    print(*retrieval.lines(report, asked), f"-> {path.with_suffix('.png')}", sep="\n")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
