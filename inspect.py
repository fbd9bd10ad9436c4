"""What do descriptions say? Asks a chat model about each, and sums up which are informative, visual or spurious (EX2).

    python inspect.py --input_filepath output_dir/descriptions.jsonl                    # word lists; asks no model
    python inspect.py --input_filepath output_dir/descriptions.jsonl --model gpt-5.4-mini --dry_run \\
        --price_per_million 0.75 4.5
    OPENAI_API_KEY=... python inspect.py --input_filepath output_dir/descriptions.jsonl --model gpt-5.4-mini
    python inspect.py --input_filepath output_dir/descriptions.jsonl --base_url http://localhost:8000/v1 --model NAME
    python inspect.py --input_filepath output_dir/descriptions.jsonl --model gpt-5.4-mini --batch       # half the price
    python inspect.py --summarize output_dir/A_inspection.jsonl output_dir/B_inspection.jsonl

Reads what inference.py wrote, or a published list of lists with --class_names. Two questions a description, in
configs/inspection.yaml: does it teach something specific about its concept, and which attributes does it use. Each
answer is appended to --output_filepath as it comes; the same command again asks only what is missing. What a server
refuses of the settings of a request is left out from then on.

--batch writes what is missing to X_batch.jsonl, for OpenAI's batch interface (endpoint /v1/chat/completions); put the
files that come back beside it as X_batch_output.jsonl and X_batch_errors.jsonl, and give the same command again. What
was refused is kept for all later files, in X_batch_settings.jsonl.

--summarize compares VLMs. It prints tables, examples and how far the inspector agrees with descriptions labelled by
hand (data/inspection/labels.jsonl), and writes summary.csv, summary.json and summary.png to --output_dir.
"""
if __name__ == "inspect":
    # This folder comes first on the import path, so whoever wants the standard library's `inspect` lands here: hand it
    # over.
    import importlib.util
    import sys
    import sysconfig

    _spec = importlib.util.spec_from_file_location("inspect", f"{sysconfig.get_path('stdlib')}/inspect.py")
    sys.modules["inspect"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["inspect"])


# Imports are inside the functions: while the guard above does its work, nothing of ours may be imported.
def get_args_parser():
    from utils import cli

    parser = cli.make_parser(__doc__)
    parser.add_argument("--input_filepath", metavar="FILE.jsonl",
                        help="descriptions from inference.py; its .json will do where the .jsonl lies beside it, and "
                             "a published .json with --class_names (default: none)")
    parser.add_argument("--class_names", metavar="FILE",
                        help="of a published .json: the names of its concepts, one a line or a JSON list, in its "
                             "order (default: none)")
    parser.add_argument("--output_filepath", metavar="FILE.jsonl",
                        help="answers (default: the input's name with _inspection.jsonl)")
    parser.add_argument("--output_format", default="jsonl", choices=("jsonl", "published"),
                        help="published: beside the .jsonl also a .json, a list (concepts) of lists of responses to "
                             "the first question, as the client dumps them")
    parser.add_argument("--dataset_name", metavar="NAME", help="data set (default: as in inference.py's manifest)")
    parser.add_argument("--vlm_name", metavar="NAME",
                        help="VLM that prefers the descriptions (default: as in the manifest)")
    parser.add_argument("--base_url", metavar="URL",
                        help="OpenAI-compatible server, such as http://localhost:8000/v1 (default: OpenAI's own)")
    parser.add_argument("--model", metavar="NAME",
                        help="the inspector: a chat model, such as OpenAI's gpt-5.4-mini, or words, the word lists of "
                             "--words (default: words where there is neither a key nor --base_url)")
    parser.add_argument("--temperature", type=cli.WEIGHT, default=0.1, help="temperature of the inspector's sampling")
    parser.add_argument("--top_p", type=cli.FRACTION, default=0.1, help="top_p of the inspector's sampling")
    parser.add_argument("--max_tokens", type=cli.SIZE, default=128, help="tokens an answer")
    parser.add_argument("--concurrency", type=cli.CONNECTIONS, default=8, help="requests at a time")
    parser.add_argument("--max_requests", type=cli.POSITIVE, metavar="N",
                        help="budget: stop after N requests, retries included; run again to go on (default: no limit)")
    parser.add_argument("--max_retries", type=cli.NATURAL, default=5,
                        help="further tries of one question, after faults or unreadable answers")
    parser.add_argument("--timeout", type=cli.RATE, default=60.0, help="seconds a request may take")
    parser.add_argument("--dry_run", action="store_true", help="count requests, estimate tokens, send nothing")
    parser.add_argument("--price_per_million", type=cli.WEIGHT, nargs="+", metavar="PRICE",
                        help="with --dry_run: two prices, of a million tokens to read and to write (default: none)")
    parser.add_argument("--batch", action="store_true", help="write and read files of OpenAI's batch interface")
    parser.add_argument("--words", default="configs/inspection_words.yaml", metavar="FILE.yaml",
                        help="the word lists of --model words")
    parser.add_argument("--inspection", default="configs/inspection.yaml", metavar="FILE.yaml",
                        help="the questions and the list of attributes")
    parser.add_argument("--summarize", nargs="+", metavar="FILE.jsonl",
                        help="sum up these answers; ask nothing (default: ask)")
    parser.add_argument("--output_dir", metavar="FOLDER",
                        help="where the summary goes (default: the folder of the first file)")
    return parser


def main(args) -> None:
    if args.summarize:
        summarize(args)
    else:
        ask(args)


def ask(args) -> None:
    import json
    import os
    from pathlib import Path

    from utils import cli
    from utils.ex2 import batch, descriptions, inspection, words
    from utils.language import jsonl

    # Who is asked, and about what.
    if not args.input_filepath:
        raise cli.UserError("name descriptions with --input_filepath, or answers with --summarize; see --help")
    if not args.model and (args.base_url or args.batch or os.environ.get("OPENAI_API_KEY")):
        raise cli.UserError("name the inspector with --model, such as gpt-5.4-mini of OpenAI, or words for the word "
                            "lists")
    model = args.model or "words"
    check_options(args, model)
    if model == "words":
        print(f"the inspector is words, the word lists of {args.words}" + (
            "" if args.model else ": there is no --model, no --base_url and no OPENAI_API_KEY"))
    sheet = inspection.read_sheet(args.inspection)
    rows, manifest = inspection.read_descriptions(args.input_filepath, args.class_names)
    sampling = {"temperature": args.temperature, "top_p": args.top_p, "max_tokens": args.max_tokens}
    if model == "words":
        lists = words.read_lists(args.words, sheet)
        sampling = {"words_sha256": inspection.hash_of({name: pattern.pattern for name, pattern in lists.items()})}
    header = inspection.make_header(rows, sheet, sampling, model, args.vlm_name or manifest.get("vlm_name"),
                                    args.dataset_name or manifest.get("dataset"))
    stem = args.output_filepath or f"{descriptions.lines_path(args.input_filepath).with_suffix('')}_inspection"
    stem = stem.removesuffix(".jsonl").removesuffix(".json")
    path, total = Path(f"{stem}.jsonl"), len(rows) * len(inspection.QUESTIONS)

    if args.dry_run:
        tasks = inspection.missing(rows, inspection.read_answers(path, header)[1] if path.is_file() else {})
        print(f"{len(tasks)} {'questions' if model == 'words' else 'requests'} for {len(rows)} descriptions, two each, "
              f"{total - len(tasks)} answered before")
        if model != "words":
            print(*inspection.estimate(sheet, rows, tasks, args.max_tokens, args.price_per_million), sep="\n")
        print("nothing was sent")
        return

    # Ask what is missing.
    with jsonl.Record(path, header) as record:
        answers = inspection.by_question(path, record.lines)
        if model == "words":
            words.answer(lists, sheet, rows, answers, record)
        elif args.batch:
            written = batch.go_on(stem, model, sampling, sheet, rows, answers, record)
        else:
            from utils.language import chat

            client = chat.ChatClient(model, args.base_url, sampling, args.timeout, args.max_retries, args.max_requests)
            inspection.ask(client, sheet, rows, answers, record, args.concurrency)

    # Say what came of it, and what comes next.
    answered = total - len(inspection.missing(rows, answers))
    asked = f"; {client.sent} requests sent" if model != "words" and not args.batch else ""
    print(f"{answered} of {total} questions answered, {len(answers) - answered} asked in vain{asked}")
    if asked and client.sent == args.max_requests and answered < total:
        print(f"the budget of {client.sent} requests is spent, {total - answered} questions remain: the same command "
              "again goes on")
    if path.is_file():
        print(path)
    if args.batch and written:
        print(f"{written} requests -> {stem}_batch.jsonl; send it to the batch interface, endpoint "
              f"/v1/chat/completions, save what comes back as {stem}_batch_output.jsonl and {stem}_batch_errors.jsonl, "
              "and give the same command again")
    if args.output_format == "published" and len(answers) == total:
        cli.write_text(Path(f"{stem}.json"), json.dumps(inspection.published(rows, answers), indent=1) + "\n")
        print(f"{stem}.json")


def check_options(args, model: str) -> None:
    """Refuse options that would do nothing, before the work."""
    from utils.cli import UserError

    if args.price_per_million:
        if len(args.price_per_million) != 2:
            raise UserError("--price_per_million takes two prices: of a million tokens to read, and to write")
        if not args.dry_run:
            raise UserError("--price_per_million is for --dry_run, which says what the requests would cost; add "
                            "--dry_run, or leave the prices out")
        if model == "words":
            raise UserError("--price_per_million needs --model, the chat model that the prices are of, such as "
                            "gpt-5.4-mini; word lists are free")
    if args.batch and args.base_url:
        raise UserError("--batch writes and reads files, and asks no server; leave --base_url out")
    if model == "words":
        for option, given in (("--base_url", args.base_url), ("--batch", args.batch),
                              ("--output_format published", args.output_format == "published")):
            if given:
                raise UserError(f"{option} is for a chat model, and word lists ask none; leave it out, or name a chat "
                                "model with --model")


def summarize(args) -> None:
    from pathlib import Path

    from utils import cli
    from utils.ex2 import verdicts

    records = verdicts.read_files(args.summarize)
    rows, trust = verdicts.summarize(records), verdicts.agreement(records)
    print(verdicts.report(rows, trust))
    folder = Path(args.output_dir or Path(args.summarize[0]).parent)
    cli.save_result(folder / "summary.json", {"rows": rows, "agreement": trust})
    print(folder / "summary.json")
    if rows:
        from utils.plots import ex2

        cli.write_text(folder / "summary.csv", verdicts.as_csv(rows))
        ex2.inspection_shares(rows, verdicts.MEASURES, verdicts.doubtful(trust), folder / "summary.png")
        print(folder / "summary.csv", folder / "summary.png", sep="\n")


if __name__ == "__main__":
    from utils.cli import run

    run(main, get_args_parser())
