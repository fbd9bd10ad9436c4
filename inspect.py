"""What do descriptions say? Asks a chat model about each, and sums up which are informative, visual or spurious (EX2).

    python inspect.py --input_filepath output_dir/descriptions.jsonl --dry_run          # counts, sends nothing
    python inspect.py --input_filepath output_dir/descriptions.jsonl                    # ChatGPT; key in OPENAI_API_KEY
    python inspect.py --input_filepath output_dir/descriptions.jsonl --base_url http://localhost:8000/v1 --model NAME
    python inspect.py --summarize output_dir/A_inspection.jsonl output_dir/B_inspection.jsonl

Reads what inference.py wrote. Two questions a description, in configs/inspection.yaml: does it teach something specific
about its concept, and which attributes does it use. Each answer is appended to --output_filepath as it comes; the same
command again asks only what is missing.

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
                        help="descriptions from inference.py; its .json will do where the .jsonl lies beside it "
                             "(default: none)")
    parser.add_argument("--output_filepath", metavar="FILE.jsonl",
                        help="answers (default: the input's name with _inspection.jsonl)")
    parser.add_argument("--output_format", default="jsonl", choices=("jsonl", "published"),
                        help="published: beside the .jsonl also a .json, a list (concepts) of lists of raw responses "
                             "to the first question")
    parser.add_argument("--dataset_name", metavar="NAME", help="data set (default: as in inference.py's manifest)")
    parser.add_argument("--vlm_name", metavar="NAME",
                        help="VLM that prefers the descriptions (default: as in the manifest)")
    parser.add_argument("--base_url", metavar="URL",
                        help="OpenAI-compatible server, such as http://localhost:8000/v1 (default: OpenAI's own)")
    parser.add_argument("--model", default="gpt-3.5-turbo-1106", metavar="NAME", help="the inspector")
    parser.add_argument("--temperature", type=cli.WEIGHT, default=0.1, help="of the inspector's sampling")
    parser.add_argument("--top_p", type=cli.FRACTION, default=0.1, help="of the inspector's sampling")
    parser.add_argument("--max_tokens", type=cli.SIZE, default=128, help="tokens an answer")
    parser.add_argument("--concurrency", type=cli.CONNECTIONS, default=8, help="requests at a time")
    parser.add_argument("--max_requests", type=cli.POSITIVE, metavar="N",
                        help="budget: stop after N requests, retries included; run again to go on (default: no limit)")
    parser.add_argument("--max_retries", type=cli.NATURAL, default=5,
                        help="of one question, after faults or unreadable answers")
    parser.add_argument("--timeout", type=cli.RATE, default=60.0, help="seconds a request may take")
    parser.add_argument("--dry_run", action="store_true", help="count requests, estimate tokens, send nothing")
    parser.add_argument("--inspection", default="configs/inspection.yaml", metavar="FILE.yaml",
                        help="the questions and the list of attributes")
    parser.add_argument("--summarize", nargs="+", metavar="FILE.jsonl",
                        help="sum up these answers; ask nothing (default: ask)")
    parser.add_argument("--output_dir", metavar="FOLDER",
                        help="for the summary (default: the folder of the first file)")
    return parser


def main(args) -> None:
    if args.summarize:
        summarize(args)
    else:
        ask(args)


def ask(args) -> None:
    import json
    from pathlib import Path

    from utils import cli
    from utils.ex2 import descriptions, inspection
    from utils.language import chat, jsonl

    if not args.input_filepath:
        raise cli.UserError("name descriptions with --input_filepath, or answers with --summarize; see --help")
    sheet = inspection.read_sheet(args.inspection)
    rows, manifest = descriptions.read(args.input_filepath)
    sampling = {"temperature": args.temperature, "top_p": args.top_p, "max_tokens": args.max_tokens}
    header = inspection.make_header(rows, sheet, sampling, args.model, args.vlm_name or manifest.get("vlm_name"),
                                    args.dataset_name or manifest.get("dataset"))
    stem = args.output_filepath or f"{descriptions.lines_path(args.input_filepath).with_suffix('')}_inspection"
    stem = stem.removesuffix(".jsonl").removesuffix(".json")
    path, total = Path(f"{stem}.jsonl"), len(rows) * len(inspection.QUESTIONS)

    if args.dry_run:
        tasks = inspection.missing(rows, inspection.read_answers(path, header)[1] if path.is_file() else {})
        tokens = sum(inspection.estimate_tokens(inspection.messages(sheet, question, rows[i])) for i, question in tasks)
        print(f"{len(tasks)} requests for {len(rows)} descriptions, two each, {total - len(tasks)} answered before; "
              "retries come on top")
        print(f"about {tokens:,} tokens to read, estimated at four characters a token; at most "
              f"{len(tasks) * args.max_tokens:,} to write\nnothing was sent")
        return

    client = chat.ChatClient(args.model, args.base_url, sampling, args.timeout, args.max_retries, args.max_requests)
    with jsonl.Record(path, header) as record:
        answers = inspection.by_question(path, record.lines)
        inspection.ask(client, sheet, rows, answers, record, args.concurrency)
    answered = total - len(inspection.missing(rows, answers))
    print(f"{answered} of {total} questions answered, {len(answers) - answered} asked in vain; {client.sent} requests "
          "sent")
    if client.sent == args.max_requests and answered < total:
        print(f"the budget of {client.sent} requests is spent, {total - answered} questions remain: the same command "
              "again goes on")
    print(path)
    if args.output_format == "published" and len(answers) == total:
        cli.write_text(Path(f"{stem}.json"), json.dumps(inspection.published(rows, answers), indent=1) + "\n")
        print(f"{stem}.json")


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
        from utils.plots import charts

        cli.write_text(folder / "summary.csv", verdicts.as_csv(rows))
        charts.inspection_shares(rows, verdicts.MEASURES, folder / "summary.png")
        print(folder / "summary.csv", folder / "summary.png", sep="\n")


if __name__ == "__main__":
    from utils.cli import run

    run(main, get_args_parser())
