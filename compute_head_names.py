"""What is each head about, by attributes rather than by single texts?

    python compute_head_names.py --model ViT-L-14 --dataset imagenet --attributes configs/attributes/general.yaml
    python compute_head_names.py --model emojiclip --dataset emoji --attributes configs/attributes/emoji.yaml
    python compute_head_names.py --model ViT-L-14 --dataset imagenet --compare ViT-B-16

An attribute is a set of texts that exclude each other. Each image's answer to it is the text that the CLIP itself
scores highest above the text's mean; a head's share is how much of the variance of what it writes lies between the
groups of images with the same answer. A head is named after the attribute with the largest share; it is `mixed` where
the second has more than half of that, and `none` where shuffled answers reach as much, or the share's interval reaches
0. Nothing is fitted, and no label is read. With --labels soft an image goes with all values of an attribute at once, by
a softmax of its scores; that names more heads right where the texts cover few of the values. The partial share is what
an attribute adds to all others: small where its answers only follow those of another.

Reads what compute_prs.py wrote to --input_dir for a CLIP, or compute_alignment.py for any model. Prints how well the
CLIP tells the values of each attribute apart: entropy (1: all values as often), margin (of the best text over the
second, in standard deviations), agreement (kappa of the answers with those to the texts as "a picture of ..."); and the
names, each with an interval over images and what chance reaches. A head is called right only as far as the attributes
cover what it does.

Writes to --output_dir, or else --input_dir: {dataset}_names_{model}.json, .csv and .png. With --compare MODEL, whose
names were made beforehand, also which roles both runs have, how much of the variance each role holds, and each head's
most similar head (linear CKA of what they write) with its name: {dataset}_names_{model}_and_{other run}.json and .png.
With --describe, a language model on a chat server says each head's role in at most five words, and `no role` where
there is none; with --refine ROUNDS it gives more texts like those of heads, and the output says how the share explained
grows. Its answers are kept in {dataset}_names_{model}_answers.jsonl; the same command asks only what is missing.
With --compare_dataset the other run is of another data set, and heads are compared by name alone: are names stable?
"""
from utils import cli, processes
from utils.cli import UserError
from utils.data.datasets import NAMES


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_run_options(parser, NAMES)
    parser.add_argument("--attributes", default="configs/attributes/general.yaml", metavar="FILE.yaml",
                        help="the attributes, each with its texts")
    parser.add_argument("--labels", choices=("hard", "soft"), default="hard",
                        help="soft: an image goes with all values of an attribute at once, by a softmax of its "
                             "scores, which helps where texts cover few of the values (default: hard, its best text)")
    parser.add_argument("--compare", metavar="MODEL",
                        help="compare the names with those of another run, made beforehand (default: none)")
    parser.add_argument("--compare_dataset", choices=NAMES, metavar="NAME",
                        help="data set of the run of --compare (default: --dataset)")
    parser.add_argument("--compare_dir", metavar="FOLDER",
                        help="where the arrays and names of --compare are (default: --input_dir)")
    parser.add_argument("--describe", action="store_true",
                        help="ask a language model what each head is about, in words")
    parser.add_argument("--refine", type=cli.POSITIVE, metavar="ROUNDS",
                        help="ask it for more texts like those of heads, and name again (default: do not)")
    cli.add_server_options(parser)
    cli.add_reload_options(parser, "of the text encoder: ", "of random weights, and of what is shuffled")
    cli.add_output_dir(parser, "JSON, CSV and picture go", beside_input=True)
    return parser


def main(args) -> None:
    import sys

    from utils.analysis.names import attributes, describe, naming
    from utils.plots import names as pictures
    from utils.runs.run import Run

    for name in ("compare_dataset", "compare_dir"):
        if getattr(args, name) and not args.compare:
            raise UserError(f"--{name} says what --compare is on; give --compare too")
    client = describe.client(args.language_model, args.base_url) if args.describe or args.refine else None

    # The attributes, the run, what the CLIP answers for each image, and what each component parts.
    texts = attributes.read(args.attributes)
    run = Run.open(args.input_dir, args.dataset, args.model, args.split)
    path = naming.path(run.place, args.output_dir)
    kept = naming.answers_path(run.place, args.output_dir)
    rows, quality, thin = explain(args, run, texts)
    rounds = [naming.growth(rows[:len(run.heads)], texts)]
    for _ in range(args.refine or 0):
        texts = describe.more_texts(client, kept, texts, rows[:len(run.heads)])
        rows, quality, thin = explain(args, run, texts)
        rounds.append(naming.growth(rows[:len(run.heads)], texts))
        print(f"round {len(rounds) - 1}: {rounds[-1]['texts']} texts, and the first attribute explains "
              f"{100 * rounds[-1]['share']:.1f}% of a head's variance (before: {rounds[-2]['texts']} texts, "
              f"{100 * rounds[-2]['share']:.1f}%)")
    if args.describe:
        described = describe.roles(client, kept, dict(zip(map(str, run.heads), rows)), describe.span_texts(run))
        for head, row in zip(run.heads, rows):
            row["described"] = described.get(str(head))
            print(f"{head}: {row['described'] or 'not answered'}  ({row['role']})")

    print(naming.quality_table(quality) + "\n")
    for name in (name for name, own in quality.items() if own["weak"]):
        print(f"warning: {args.model} hardly tells the values of {name} apart on these images; its shares are near to "
              "noise", file=sys.stderr)
    for line in thin:
        print(f"warning: {line}", file=sys.stderr)
    print(naming.table(rows, run.components))
    cli.save_result(path, {
        "model": args.model, "dataset": args.dataset, "split": args.split, "images": len(run),
        "made_of": run.made_of, "attributes": args.attributes, "labels": args.labels, "quality": quality,
        "rounds": rounds,
        "heads": rows[:len(run.heads)], "others": rows[len(run.heads):],
        "command": cli.command(__file__, get_args_parser(), args)})
    cli.write_text(path.with_suffix(".csv"), naming.to_csv(rows, run.components, list(texts)))
    pictures.shares([str(part) for part in run.components], rows, f"{args.model} on {run.place.name}",
                    path.with_suffix(".png"))
    print(f"-> {path}")
    if args.compare:
        hold_against(args, run, dict(zip(run.heads, rows)), path)


def explain(args, run, texts: dict) -> tuple[list[dict], dict, list[str]]:
    """The names of all components of a run by the texts of attributes, how well the CLIP tells these apart, and which
    have too few images."""
    from utils.analysis import truth
    from utils.analysis.names import attributes, naming, shares, soft_shares

    device = processes.pick_device(args.device)
    embeddings, paraphrased = attributes.embed(run, texts, args.pretrained, device, args.seed,
                                               ("{}", attributes.PARAPHRASE))
    answers, quality = attributes.quality(attributes.representations(run), embeddings, paraphrased)
    every = range(len(run.components))
    if args.labels == "soft":
        found = soft_shares.explain(run, embeddings, every, args.seed)
    else:
        found = shares.explain(run, answers, {name: len(own) for name, own in texts.items()}, every, args.seed)
    return naming.describe(run.components, found, texts), quality, truth.few(answers)


def hold_against(args, run, names, path) -> None:
    """Compare the names of a run with those of --compare, and write {names}_and_{other}.json and .png."""
    from utils.analysis import alignment
    from utils.analysis.names import compare, naming
    from utils.plots import names as pictures
    from utils.runs.run import Run

    dataset = args.compare_dataset or args.dataset
    other = Run.open(args.compare_dir or args.input_dir, dataset, args.compare, args.split)
    others, similarity = naming.read(other), None
    if dataset == args.dataset:
        alignment.same_images(run, other)
        similarity = compare.alike(run, other)
    found = compare.report(names, others, similarity)
    titles = [f"{one.place.model_name} on {one.place.name}" for one in (run, other)]
    print("\n" + compare.table(found, titles))
    print(f"{100 * (found['agreement'] or 0):.0f}% of heads go with the same attribute as "
          + ("the most similar head of the other model" if similarity is not None else "on the other data set"))
    path = path.with_name(f"{path.stem}_and_{other.place.name}_{other.place.model_name}.json")
    cli.save_result(path, {"models": titles, **found})
    pictures.comparison(found["roles"], titles, similarity, path.with_suffix(".png"))
    print(f"-> {path}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
