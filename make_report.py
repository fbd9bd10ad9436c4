"""One page that shows what every attention head does: a folder with index.html and its pictures, read without a
network.

    python make_report.py --model emojiclip --dataset emoji --text_descriptions emoji_descriptions
    python make_report.py --model ViT-L-14 --pretrained openai --dataset imagenet --data_path DIR --device cuda:0
    python make_report.py --model emojiclip --dataset emoji --text_descriptions emoji_descriptions --text

For every head that compute_complete_text_set.py named: its texts and what they explain, the images that score highest
and lowest on the first text, the patches that the first of these scores come from, and the accuracy with the head
switched off. Heads can be found by their texts, classes and numbers, sorted, folded, and switched off on the page. The
whole page is readable without JavaScript.

Reads what compute_prs.py, compute_text_projection.py, compute_text_set_projection.py, compute_ablations.py and
compute_complete_text_set.py wrote to --input_dir; where they are there, also what compute_head_truth.py wrote, and
compute_head_names.py, whose names are the heads' headings; and the images. Heat maps need the model that made the
arrays, and for mapped arrays (compute_alignment.py) the maps beside them; where these are missing, heat maps are left
out, and a line says so. With --heat_maps 0 no model is loaded.

Writes to --output_dir: index.html, images/, heat/, heads.csv, and report.json, which holds everything that the page
shows. The folder has its name only when it is complete. An earlier report is replaced; any other folder that is not
empty is refused. Prints where the page is, and the folder's size.

With --text, there is no page: prints what each part of the model is worth and the texts of the heads that vary most,
and draws {dataset}_heads_{model}.png beside the arrays: for these heads, the images that score highest and lowest.
"""
from utils import cli, processes
from utils.data.datasets import NAMES

LARGE = 30e6  # bytes, above which a report is a burden to send


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_run_options(parser, NAMES)
    parser.add_argument("--data_path", metavar="FOLDER", help="as given to compute_prs.py (default: none)")
    parser.add_argument("--text_dir", default="./text_descriptions", metavar="FOLDER", help="where the text pool is")
    cli.add_texts_of_heads_options(parser)
    parser.add_argument("--images_per_head", type=cli.POSITIVE, default=8, metavar="N",
                        help="images of the highest scores, and as many of the lowest")
    parser.add_argument("--heat_maps", type=cli.NATURAL, default=3, metavar="N",
                        help="heat maps a head, of the highest images, and as many of the lowest; 0 needs no model")
    parser.add_argument("--thumbnail_size", type=cli.THUMBNAIL, default=96, metavar="PIXELS",
                        help="side of an image on the page; it is stored twice as large")
    parser.add_argument("--text", action="store_true", help="print a summary instead of making a page")
    cli.add_reload_options(parser, "of heat maps: ", "of random weights, as given there")
    parser.add_argument("--output_dir", metavar="FOLDER",
                        help="where the page goes (default: {input_dir}/{run}_report_{model})")
    return parser


def main(args) -> None:
    import shlex
    import sys
    from pathlib import Path

    from utils.analysis import ablation, alignment, zeroshot
    from utils.decompose import registers
    from utils.plots import sheets
    from utils.report import page, results
    from utils.runs.files import Place, check_there
    from utils.runs.run import Run

    cli.fit(get_args_parser(), args, "heat_maps", args.images_per_head, least=0)  # of images that the page shows
    place = Place(args.input_dir, args.dataset, args.model, args.split)
    folder = Path(args.output_dir or place.path("report", ""))
    if not args.text:
        page.check_folder(folder)

    # The run, what other scripts found in it, its images, and the model that made it.
    texts = zeroshot.read_texts(Path(args.text_dir) / f"{args.text_descriptions}.txt")
    check_there([place], classifier=True, pools=[args.text_descriptions], text_dir=args.text_dir,
                heads=(args.text_descriptions, args.texts_per_head), ablations=True,
                given={name: getattr(args, name) for name in ("pretrained", "seed", "data_path")})
    run = Run.open(args.input_dir, args.dataset, args.model, args.split)
    classifier, pool = run.classifier(), run.texts(args.text_descriptions, texts)
    found = results.read(run, args.text_descriptions, args.texts_per_head, texts, args.text_dir)
    images = run.images(args.data_path)
    indices = run.indices(images)
    model = maps = None
    if args.heat_maps and not args.text:
        model, maps = alignment.load_source(run, args.pretrained, processes.pick_device(args.device), args.seed)
        if model is None:
            print(f"heat maps are left out: the maps that made the arrays are not in {args.input_dir}")

    # What each head does for which images.
    average, scores = results.score_images(run, classifier, pool, found)
    if args.text:
        print(*results.lines(run, found), sep="\n")
        images.draw_at(96)
        paths = results.paths(run, found)
        rows = results.sheet(found, scores, indices, images)
        sheets.head_sheet(rows, paths[-1], f"{args.model} on {place.name}: the {len(rows)} heads whose output varies "
                          "most, and images by what each adds to the cosine with its first text")
        print("\nAll of it:", *(f"  {path}" for path in paths), sep="\n")
        return
    alone = ablation.single_heads(run, classifier, found.texts["num_of_last_layers"])
    heads = results.describe_heads(found, (average, scores), alone, args.images_per_head, indices, run.labels, images,
                                   args.data_path)

    # The page.
    own = cli.command(__file__, get_args_parser(), args)
    own += f" --output_dir {shlex.quote(args.output_dir)}" if args.output_dir else ""
    with page.complete_folder(folder) as partial:
        shape = page.save_thumbnails(heads, images, 2 * args.thumbnail_size, model, partial)
        if model:
            page.save_heat_maps(heads, args.heat_maps, pool, images, model, maps, registers.recorded(run.manifest),
                                partial)
        content = results.describe(run, args.data_path, found, heads, own, thumbnail=shape, texts=len(texts),
                                   classes=classifier.shape[1])
        size = page.save_page(content, partial)
    print(f"{cli.counted(len(heads), 'head')}, {size / 1e6:.1f} MB -> {folder / 'index.html'}")
    if size > LARGE:
        print(f"warning: {size / 1e6:.0f} MB is much to send; smaller with fewer --images_per_head or a smaller "
              "--thumbnail_size", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main, get_args_parser())
