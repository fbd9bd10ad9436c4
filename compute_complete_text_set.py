"""TextSpan: name every attention head of the last layers by the texts that span what it writes.

    python compute_complete_text_set.py --model ViT-L-14 --texts_per_head 20 --num_of_last_layers 4 \\
        --text_descriptions image_descriptions_general
    python compute_complete_text_set.py --model emojiclip --dataset emoji --num_of_last_layers 4 \\
        --text_descriptions emoji_descriptions

Reads what compute_prs.py, compute_text_projection.py and compute_text_set_projection.py wrote to --input_dir
(paper section 4, table 2). The accuracy is the zero-shot accuracy, in percent, when the heads of the last
layers are replaced by what their texts span, all earlier heads by their means, and all else is kept.

Writes to --output_dir: {dataset}_completeness_{pool}_top_{texts_per_head}_heads_{model}.txt, the published report, and
.json, with each text's share of its head's variance, and each head's consistency: how much alike its texts are, against
those of heads that write in random directions. Of a run made with --moments_only there is no accuracy.
"""
from utils import cli
from utils.data.datasets import NAMES


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_run_options(parser, NAMES)
    cli.add_output_dir(parser, "the report goes")
    parser.add_argument("--text_dir", default="./text_descriptions", metavar="FOLDER", help="where the text pool is")
    parser.add_argument("--text_descriptions", default="image_descriptions_general", metavar="POOL",
                        help="the pool's file name without .txt")
    parser.add_argument("--num_of_last_layers", type=cli.POSITIVE, default=8, help="layers whose heads are named")
    parser.add_argument("--texts_per_head", type=cli.POSITIVE, default=10, help="texts picked for each head")
    parser.add_argument("--w_ov_rank", type=cli.POSITIVE, default=80,
                        help="singular directions of a head at most; rounding noise is dropped")
    parser.add_argument("--device", help="taken for compatibility; runs on the CPU, in double precision")
    return parser


def main(args) -> None:
    from pathlib import Path

    from utils.analysis import textspan, zeroshot
    from utils.runs import files
    from utils.runs.run import Run

    texts = zeroshot.read_texts(Path(args.text_dir) / f"{args.text_descriptions}.txt")
    files.check_there([files.Place(args.input_dir, args.dataset, args.model, args.split)], classifier=True,
                      pools=[args.text_descriptions], text_dir=args.text_dir)
    run = Run.open(args.input_dir, args.dataset, args.model, args.split, needs="moments")
    judged = run.has_images and run.is_labelled
    classifier = run.classifier() if judged else None
    if run.has_images and not judged:
        cli.note(f"{run.place.path('labels')}: no image has a label, so there is no accuracy")
    pool = run.texts(args.text_descriptions, texts)
    for name, most in (("num_of_last_layers", len(run.layers)), ("texts_per_head", len(texts)),
                       ("w_ov_rank", max(run.width, 80))):
        cli.fit(get_args_parser(), args, name, most)

    found = textspan.span_heads(run, {"pool": pool}, args.num_of_last_layers, args.texts_per_head, args.w_ov_rank)
    spans, accuracy = found["pool"], None
    if judged:
        _, accuracies = textspan.accuracies(run, classifier, found, [args.texts_per_head])
        accuracy, = accuracies["pool"]
    consistency = textspan.consistency(pool, spans)
    distinct = len({pick for span in spans.values() for pick in span.picks})

    rule = "-" * 18
    lines = []
    for head, span in spans.items():
        lines += [rule, f"Layer {head.layer}, Head {head.head}", rule, *(texts[pick] for pick in span.picks)]
    lines += [rule, f"Current accuracy: {accuracy}", f"Number of texts: {distinct}"]
    path = run.place.path(files.texts_of_heads(args.text_descriptions, args.texts_per_head), ".txt", args.output_dir)
    cli.write_text(path, "\n".join(lines) + "\n")
    cli.save_result(path.with_suffix(".json"), {
        "model": args.model, "dataset": args.dataset, "images": len(run), "made_of": run.made_of,
        "pool": args.text_descriptions, "texts_per_head": args.texts_per_head,
        "num_of_last_layers": args.num_of_last_layers, "w_ov_rank": args.w_ov_rank,
        "accuracy": accuracy, "number_of_texts": distinct, "command": cli.command(__file__, get_args_parser(), args),
        "heads": [{"layer": head.layer, "head": head.head, "rank_used": span.rank,
                   "variance": span.variance, "explained": sum(span.shares),
                   "consistency": consistency[head],
                   "texts": [{"text": texts[pick], "index": pick, "share": share}
                             for pick, share in zip(span.picks, span.shares)]}
                  for head, span in spans.items()]})
    print(f"Current accuracy: {accuracy}\nNumber of texts: {distinct}\n-> {path}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
