"""How many texts does a head need? TextSpan's accuracy against the number of texts a head, for several pools.

    python -m scripts.sweep_textspan --model ViT-L-14 --pools image_descriptions_general google_3498_english \\
        --texts_per_head 10 20 30 40 50 60
    python -m scripts.sweep_textspan --model emojiclip --dataset emoji --pools emoji_descriptions

Reads what compute_prs.py, compute_text_projection.py and compute_text_set_projection.py (once a pool) wrote to
--input_dir; `bash scripts/sweep_textspan.sh` runs them first. An accuracy is the one that compute_complete_text_set.py
prints for that pool and number (paper section 4.2); all of them take about the time of one.

Writes to --output_dir: {dataset}_textspan_sweep_{model}.csv, with the columns pool, texts_per_head, accuracy (percent),
number_of_texts (distinct ones, of all heads) and explained (share of a head's variance, averaged over heads), .png, and
.json with two more accuracies: the whole model's, and that with the earlier heads ablated and the last ones as they
are, which many texts come to.
"""
from utils import cli
from utils.cli import UserError
from utils.data.datasets import NAMES

RANK = 80  # singular directions of a head at most, as compute_complete_text_set.py has it by default


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_run_options(parser, NAMES)
    cli.add_output_dir(parser, "CSV, JSON and picture go")
    parser.add_argument("--text_dir", default="./text_descriptions", metavar="FOLDER", help="where the text pools are")
    parser.add_argument("--pools", nargs="+", default=["image_descriptions_general"], metavar="POOL",
                        help="the pools' file names without .txt (default: image_descriptions_general)")
    parser.add_argument("--texts_per_head", nargs="+", type=cli.POSITIVE, default=[10, 20, 30, 40, 50, 60], metavar="N",
                        help="numbers of texts picked for each head (default: 10 20 30 40 50 60)")
    parser.add_argument("--num_of_last_layers", type=cli.POSITIVE, default=4, help="layers whose heads are named")
    return parser


def main(args) -> None:
    import csv
    import io
    from pathlib import Path

    from utils.analysis import textspan, zeroshot
    from utils.plots import charts
    from utils.runs import files
    from utils.runs.run import Run

    numbers = sorted(set(args.texts_per_head))
    texts = {name: zeroshot.read_texts(Path(args.text_dir) / f"{name}.txt") for name in args.pools}
    for name, lines in texts.items():
        if args.texts_per_head == get_args_parser().get_default("texts_per_head"):  # fewer, where there are no more
            numbers = sorted({min(number, len(lines)) for number in numbers})
        if numbers[-1] > len(lines):
            raise UserError(f"--texts_per_head {numbers[-1]}: {name} has {len(lines)} texts; "
                            f"choose from 1 to {len(lines)}")
    files.check_there([files.Place(args.input_dir, args.dataset, args.model, args.split)], classifier=True,
                      pools=args.pools, text_dir=args.text_dir)
    run = Run.open(args.input_dir, args.dataset, args.model, args.split)
    cli.fit(get_args_parser(), args, "num_of_last_layers", len(run.layers))
    classifier, pools = run.classifier(), {name: run.texts(name, lines) for name, lines in texts.items()}

    without, rows = textspan.sweep(run, classifier, pools, args.num_of_last_layers, numbers, RANK)
    print("Whole model: {whole_model:.2f}\nEarlier heads mean-ablated, no texts: {last_layers:.2f}".format(**without))
    print(f"{'pool':<30} texts a head  accuracy  distinct texts  explained")
    for row in rows:
        print("{pool:<30} {texts_per_head:>12}  {accuracy:>8.2f}  {number_of_texts:>14}  {explained:>9.3f}"
              .format(**row))

    path = run.place.path("textspan_sweep", ".csv", args.output_dir)
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    cli.write_text(path, table.getvalue())
    cli.save_result(path.with_suffix(".json"), {
        "model": args.model, "dataset": args.dataset, "images": len(run), "w_ov_rank": RANK,
        "num_of_last_layers": args.num_of_last_layers, **without, "rows": rows})
    title = f"{args.model} on {args.dataset}: heads of the last {args.num_of_last_layers} layers as texts"
    charts.textspan_sweep(rows, without, title, path.with_suffix(".png"))
    print(f"-> {path}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
