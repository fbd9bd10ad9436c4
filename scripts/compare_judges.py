"""How far can a judge of descriptions be believed? A table of judges against the descriptions labelled by hand.

    python -m scripts.compare_judges --output_dir output_dir/ex2                              # the word lists alone
    python -m scripts.compare_judges --output_dir output_dir/ex2 --model_name smollm2-135m gemma3-270m
    python -m scripts.compare_judges --output_dir output_dir/ex2 --answers output_dir/ex2/labels_inspection.jsonl

Word lists; language models by the log-probability of "yes" and "no" after a question for each verdict; and chat models
by their answers about data/inspection/labels.jsonl, which inspect.py wrote. Prints Cohen's kappa with its 95% interval,
also for the two passes of labelling; writes judges.json to --output_dir.
"""
from utils import cli, processes

ASKED = {"informative": "Does the text state a specific fact about {concept}?",
         "visual": "Does the text say how {concept} looks: its color, shape, size, pattern, parts, material or pose?",
         "nonvisual": "Does the text say something about {concept} that cannot be seen: its place, origin, behavior, "
                      "use, taste, sound or family?",
         "spurious": "Does the text speak of a photo or picture, or use stock phrases that fit anything?"}
PROMPT = "Text: {description}\nQuestion: {question} Answer yes or no.\nAnswer:"


def get_args_parser():
    parser = cli.make_parser(__doc__)
    parser.add_argument("--model_name", nargs="+", default=[], metavar="NAME",
                        help="language models: hub names, folders, .gguf files, smollm2-135m or gemma3-270m (default: "
                             "none)")
    parser.add_argument("--answers", nargs="+", default=[], metavar="FILE.jsonl",
                        help="inspect.py's answers about the labelled descriptions (default: none)")
    parser.add_argument("--inspection", default="configs/inspection.yaml", metavar="FILE.yaml",
                        help="the list of attributes")
    parser.add_argument("--words", default="configs/inspection_words.yaml", metavar="FILE.yaml", help="the word lists")
    parser.add_argument("--batch_size", type=cli.SIZE, default=16, help="prompts a pass of a language model")
    cli.add_device(parser)
    cli.add_output_dir(parser, "the table goes")
    return parser


def main(args) -> None:
    from pathlib import Path

    from utils.ex2 import inspection, verdicts, words
    from utils.language import loading

    # The labels, as verdicts.
    for name in args.model_name:
        loading.check_name(name)
    sheet = inspection.read_sheet(args.inspection)
    kinds = {kind: list(sheet[kind]) for kind in inspection.KINDS}
    labels = verdicts.read_labels()
    if not labels:
        raise cli.UserError(f"{verdicts.LABELS} does not exist; it comes with the repository")
    truth = {key: verdicts.judge(found, found, kinds) for key, found in labels.items()}

    # Judges, each as verdicts by (concept, description).
    lists = words.read_lists(args.words, sheet)
    judges = {"words": {key: verdicts.judge(*words.judge(key[1], lists, sheet).values(), kinds) for key in truth}}
    if passes := verdicts.read_labels("second_pass"):
        judges["second pass of labelling"] = {key: verdicts.judge(found, found, kinds) for key, found in passes.items()}
    for name in args.model_name:
        from utils.language import judging

        prompts = [PROMPT.format(description=description, question=question.format(concept=concept))
                   for concept, description in truth for question in ASKED.values()]
        margins = judging.yes_over_no(name, prompts, args.batch_size, processes.pick_device(args.device))
        judges[f"{name}, yes over no"] = {key: dict(zip(ASKED, (margin > 0 for margin in margins[4 * i:4 * i + 4])))
                                          for i, key in enumerate(truth)}
    for path in args.answers:
        for file in verdicts.read_files([path]):
            judges[f"{file['header']['inspector']}, its answers"] = {
                (found["concept"], found["description"]): found for found in file["judged"]}

    # Write.
    table = {judge: {name: verdicts.compare([(found[key][name], truth[key][name]) for key in found
                                             if key in truth and found[key].get(name) is not None])
                     for name in verdicts.LABELED} for judge, found in judges.items()}
    print("\n".join(lines_of(table)))
    path = Path(args.output_dir) / "judges.json"
    cli.save_result(path, table)
    print(path)


def lines_of(table: dict) -> list[str]:
    """The table in Markdown: kappa with its interval, and the number of descriptions."""
    from utils.ex2 import verdicts

    lines = [f"| judge | {' | '.join(verdicts.MEASURES[name] for name in verdicts.LABELED)} | descriptions |",
             "| --- " * (len(verdicts.LABELED) + 2) + "|"]
    for judge, found in table.items():
        cells = [verdicts.kappa_text(figures) for figures in found.values()]
        lines.append(f"| {judge} | {' | '.join(cells)} | {max(figures['used'] for figures in found.values())} |")
    return lines


if __name__ == "__main__":
    cli.run(main, get_args_parser())
