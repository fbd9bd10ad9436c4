"""Which images of a data set are nearest to an image: by the whole representation, or by what chosen heads write of it?

    python compute_nearest_neighbors.py --model ViT-L-14 --data_path DIR --index 12 --property whole colors counting
    python compute_nearest_neighbors.py --model ViT-L-14 --pretrained laion2b_s32b_b82k --data_path DIR \\
        --image photo.jpg --heads 22.11,23.4
    python compute_nearest_neighbors.py --model emojiclip --dataset emoji --index 17 40 --property whole color object

Property-based retrieval (paper section 4.3). Reads what compute_prs.py wrote to --input_dir, and the images from
--data_path. A query is an image of the run (--index, which is then left out of its own neighbours) or a picture
(--image, for which the model is loaded: the CLIP that made the arrays). It is compared by one or several properties:
`whole`, the cosine of representations, or a role of configs/heads/{dataset}_{model}.yaml (or --heads_file), the cosine
of the sum of these heads' terms after the sum's mean over the data set is subtracted, from the query too: most of a
term is the same for every image.

Writes to --output_dir: {dataset}_neighbors_{model}.png, one row of neighbours for each query and way of comparing, and
.json, with indices, files, class names and similarities.
"""
from utils import cli
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
                        help="what to compare by: 'whole', or roles of the list of heads (default: whole)")
    parser.add_argument("--heads", metavar="LIST", help="compare by the sum of these heads, such as 22.11,23.4")
    parser.add_argument("--heads_file", metavar="FILE.yaml", help="list of heads (default: that of data set and model)")
    parser.add_argument("--neighbors", type=cli.POSITIVE, default=8, metavar="K", help="of each query")
    return parser


def main(args) -> None:
    from pathlib import Path

    asked = args.index or args.image
    if not asked or (args.index and args.image):
        raise UserError("give the queries either by --index or by --image")
    from utils.analysis import neighbors
    from utils.data import datasets, pictures
    from utils.models.loading import load_same
    from utils.plots import sheets
    from utils.runs import files
    from utils.runs.components import check_heads, head_list_path
    from utils.runs.run import Run

    whole = neighbors.WHOLE in args.property or not (args.property or args.heads)
    run = Run.open(args.input_dir, args.dataset, args.model, args.split, needs="whole" if whole else "heads")
    list_path = Path(args.heads_file or head_list_path(args.dataset, run.place.model_name))
    if args.image:
        files.own_clip(run.manifest, args.model, "give the queries by --index")
    ways = neighbors.read_ways(args.property, args.heads, list_path, run.place.model_name, run.manifest)
    neighbors.check_size(len(asked), len(ways), args.neighbors)
    for word, way in ways.items():
        check_heads(way or [], run.heads, f"{list_path}, {word}" if word in args.property else "--heads")
    neighbors.check_queries(args.index, args.neighbors, len(run))
    images = datasets.load_images(args.dataset, args.data_path, sheets.SIDE, split=args.split)
    places = run.indices(images)

    def picture(index: int):
        return images.read(places[index])[0]

    compared = list(ways.values())
    if args.index:
        shown = [picture(index) for index in args.index]
        queries = neighbors.of_rows(run, args.index, compared)
    else:
        shown = [pictures.read_option(path) for path in args.image]
        clip = load_same(run.manifest, args.model, args.pretrained, cli.pick_device(args.device), args.seed)
        queries = neighbors.of_pictures(clip, shown, compared, tuple(run.layout["attn"]))

    found = neighbors.nearest(run, queries, compared, args.neighbors, args.index)
    report = neighbors.report(images, places, run.labels, asked, ways, *found)
    path = run.place.path("neighbors", ".json", args.output_dir)
    cli.save_result(path, {"model": args.model, "dataset": args.dataset, "split": args.split, "images": len(run),
                             "queries": report})
    sheets.neighbors_sheet(report, shown, picture, f"{args.model}: nearest among {len(run)} images of {run.place.name}",
                                  path.with_suffix(".png"))
    for query, entry in zip(asked, report):
        for way in entry["ways"]:
            listed = ", ".join(f"{near['index']} {near['class']} ({near['similarity']:.2f})" for near in way["neighbors"])
            print(f"{query}, {sheets.title(way['by'], way['heads'])}: {listed}")
    print(f"-> {path.with_suffix('.png')}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
