"""Is an interpretation right? What TextSpan says that each head is about, against what it really is about.

    python compute_head_truth.py --model emojiclip --dataset emoji --text_descriptions emoji_descriptions

Needs images of which everything is known: the embedded scenes, each with its object, style, count, position, size,
background colour and texture. Reads what compute_prs.py and compute_complete_text_set.py wrote. For every head that has
texts: the truth, which is the attribute that explains most of the variance of what the head writes; the reading, which
is the attribute that most of its texts are about, each text counted with its share of the head's variance; and whether
they agree. Prints the table and one score for the model; Cohen's kappa is 0 for a reading no better than chance, and 1
for a perfect one. utils/analysis/truth.py says how the shares are computed.

What it does not show: that a head that varies with an attribute is also used for it (ablate it to see); what attributes
do together; what the pool has no words for; and anything of images that these scenes do not resemble. A text counts as
about one attribute, by --text_attributes, whatever the model makes of it.

Writes to --output_dir, or else --input_dir: {dataset}_head_truth_{model}.json and .png.
"""
from utils import cli
from utils.cli import UserError
from utils.data.datasets import EMBEDDED, NAMES


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_run_options(parser, NAMES, model="emojiclip", dataset="emoji")
    cli.add_texts_of_heads_options(parser, "emoji_descriptions")
    parser.add_argument("--text_attributes", default="text_descriptions/emoji_attributes.csv", metavar="FILE.csv",
                        help="what each text is about: columns text,attribute")
    cli.add_output_dir(parser, "JSON and picture go", beside_input=True)
    return parser


def main(args) -> None:
    import sys

    from utils.analysis import truth
    from utils.data import datasets
    from utils.plots import charts
    from utils.runs import commands, files
    from utils.runs.components import Component
    from utils.runs.run import Run

    if args.dataset not in EMBEDDED:
        raise UserError(f"--dataset {args.dataset}: the truth of its images is not known; "
                        f"it is of {', '.join(EMBEDDED)}")
    attributes = truth.read_attributes(args.text_attributes)
    files.check_there([files.Place(args.input_dir, args.dataset, args.model, args.split)],
                      heads=(args.text_descriptions, args.texts_per_head))
    run = Run.open(args.input_dir, args.dataset, args.model, args.split, needs="heads")
    spans = run.place.path(files.texts_of_heads(args.text_descriptions, args.texts_per_head), ".json")
    heads = truth.read_heads(run, spans, commands.make_texts_of_heads(*run.place.words, args.text_descriptions,
                                                                      args.texts_per_head))
    readings = [truth.reading(head["texts"], attributes) for head in heads]
    images = datasets.load_images(args.dataset, split=args.split)
    groups = truth.codes([images.scenes[i] for i in run.indices(images)])
    for line in truth.few(groups):
        print(f"warning: {line}", file=sys.stderr)

    shares = {}  # of each head, by attribute
    for layer in sorted({head["layer"] for head in heads}):
        columns = run.layer(layer)
        found = truth.explained(run, groups, columns)
        shares |= {head: {attribute: float(share[i]) for attribute, share in found.items()}
                   for i, head in enumerate(run.heads[columns])}
    rows = []
    for head, said in zip(heads, readings):
        explained = shares[Component("attn", head["layer"], head["head"])]
        rows.append({"layer": head["layer"], "head": head["head"], "variance": head["variance"], "explained": explained,
                     "truth": max(explained, key=explained.get), "reading_shares": said,
                     "reading": max(said, key=said.get)})
        rows[-1]["agree"] = rows[-1]["truth"] == rows[-1]["reading"]
    found = truth.score(*([row[column] for row in rows] for column in ("truth", "reading", "variance")))

    print("| head | " + " | ".join(truth.ATTRIBUTES) + " | truth | TextSpan | agree |\n" + "| --- " * 11 + "|")
    for row in rows:
        shown = " | ".join(f"{100 * max(row['explained'][attribute], 0):.0f}" for attribute in truth.ATTRIBUTES)
        print(f"| {row['layer']}.{row['head']} | {shown} | {row['truth']} | {row['reading']} | "
              f"{'yes' if row['agree'] else 'no'} |")
    print(f"Agreement: {found['agreement']:.1f}% of {len(rows)} heads, "
          f"{found['agreement_by_variance']:.1f}% of their variance (chance: {found['chance']:.1f}%); "
          f"kappa: {found['kappa']:.2f}")

    path = run.place.path("head_truth", ".json", args.output_dir)
    cli.save_result(path, {
        "model": args.model, "dataset": args.dataset, "images": len(run), "pool": args.text_descriptions,
        "texts_per_head": args.texts_per_head, **found, "heads": rows,
        "command": cli.command(__file__, get_args_parser(), args)})
    charts.head_truth(rows, f"{args.model} on {args.dataset}", path.with_suffix(".png"))
    print(f"-> {path}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
