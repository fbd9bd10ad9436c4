"""Which images of a data set are nearest to an image: by the whole representation, or by what chosen heads write of it?

    python compute_nearest_neighbors.py --model ViT-L-14 --data_path DIR --index 12 --property whole colors counting
    python compute_nearest_neighbors.py --model ViT-L-14 --pretrained laion2b_s32b_b82k --data_path DIR \\
        --image photo.jpg --heads 22.11,23.4
    python compute_nearest_neighbors.py --model emojiclip --dataset emoji --index 17 40 --property whole color object

Property-based retrieval (paper section 4.3). Reads what compute_prs.py wrote to --input_dir, and the images from
--data_path. A query is an image of the run (--index, which is then left out of its own neighbours) or a picture
(--image, for which the model is loaded that made the arrays). It is compared by one or several properties: `whole`, the
cosine of representations, or a role of configs/heads/{dataset}_{model}.yaml (or --heads_file), or else an attribute
that compute_head_names.py named heads after: the cosine of the sum of these heads' terms after the sum's mean over the
data set is subtracted, from the query too, since most of a term is the same for every image.

Writes to --output_dir: {dataset}_neighbors_{model}.png, one row of neighbours for each query and way of comparing, and
.json, with indices, files, class names and similarities.
"""
from utils import cli, processes
from utils.cli import UserError
from utils.data.datasets import NAMES


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_model_options(parser)
    cli.add_data_options(parser, NAMES)
    cli.add_split_option(parser)
    cli.add_input_dir(parser)
    cli.add_output_dir(parser, "picture and JSON go")
    parser.add_argument("--index", type=cli.NATURAL, nargs="+", metavar="N",
                        help="queries: images of the run, counted from 0")
    parser.add_argument("--image", nargs="+", metavar="FILE", help="queries: pictures; needs the model's weights")
    parser.add_argument("--property", nargs="+", default=[], metavar="NAME",
                        help="what to compare by: 'whole', roles of the list of heads, or names of heads (default: "
                             "whole)")
    parser.add_argument("--heads", metavar="LIST", help="compare by the sum of these heads, such as 22.11,23.4")
    parser.add_argument("--heads_file", metavar="FILE.yaml", help="list of heads (default: that of data set and model)")
    parser.add_argument("--neighbors", type=cli.COLUMNS, default=8, metavar="K", help="images for each query")
    return parser


def main(args) -> None:
    from pathlib import Path

    asked = args.index or args.image
    if not asked or (args.index and args.image):
        raise UserError("give the queries either by --index or by --image")
    import numpy as np

    from utils.analysis import retrieval
    from utils.analysis.names import naming
    from utils.data import pictures
    from utils.models.loading import load_same
    from utils.plots import sheets
    from utils.runs import files
    from utils.runs.components import head_list_path
    from utils.runs.run import Run

    whole = retrieval.WHOLE in args.property or not (args.property or args.heads)
    given = {name: getattr(args, name) for name in ("pretrained", "seed", "data_path")}
    files.check_there([files.Place(args.input_dir, args.dataset, args.model, args.split)], given=given)
    run = Run.open(args.input_dir, args.dataset, args.model, args.split, needs="whole" if whole else "heads")
    list_path = Path(args.heads_file or head_list_path(args.dataset, run.place.model_name))
    if args.image and "text_model" in (run.manifest or {}):
        raise UserError(f"--model {args.model}: its components were mapped, and a picture's are not; give the queries "
                        "by --index")
    ways = retrieval.read_ways(run, args.property, args.heads, list_path,
                               {} if args.heads_file else naming.by_attribute(naming.find(run)))
    cli.fit(get_args_parser(), args, "neighbors", len(run) - bool(args.index))
    retrieval.check(run, asked, len(ways), args.neighbors, bool(args.index))
    images = run.images(args.data_path, sheets.SIDE)
    places = run.indices(images)

    def picture(index: int):
        return images.read(places[index])[0]

    columns = list(ways.values())
    if args.index:
        shown, queries = list(map(picture, args.index)), retrieval.vectors(run, np.array(args.index), columns)
    else:
        shown = [pictures.read_option(path) for path in args.image]
        model = load_same(run.manifest, args.model, args.pretrained, processes.pick_device(args.device), args.seed)
        queries = retrieval.of_pictures(run, model, shown, columns)
    about = {name: {"heads": None if way is None else [str(run.heads[column]) for column in way]}
             for name, way in ways.items()}
    found = retrieval.by_images(run, columns, queries, args.neighbors, args.index)
    report = retrieval.report(run, images, asked, "path", about, found)

    path = run.place.path("neighbors", ".json", args.output_dir)
    cli.save_result(path, {"model": args.model, "dataset": args.dataset, "split": args.split, "images": len(run),
                           "queries": report})
    sheets.contact_sheet(report, shown, picture, retrieval.title,
                         f"{args.model}: nearest among {len(run)} images of {run.place.name}", path.with_suffix(".png"))
    print(*retrieval.lines(report, asked), f"-> {path.with_suffix('.png')}", sep="\n")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
