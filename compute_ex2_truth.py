"""Does EX2 find what is true? On emoji_fixed, whose concepts share one known attribute each (or none).

    python compute_ex2_truth.py --output_dir output_dir/ex2_fixed                       # what the VLM itself prefers
    python compute_ex2_truth.py --output_dir output_dir/ex2_fixed --before output_dir/ex2_fixed/untrained.json \\
        --after output_dir/ex2_fixed/aligned.json --answers output_dir/ex2_fixed/aligned_inspection.jsonl

Without a language model: what the VLM gives the true word of an attribute ("an owl on a red background") more than "an
owl", than the bare name ("owl") and than false words.
With descriptions of before and after the alignment (several files: runs of several seeds): how often they use the true
and the false words, found by the words of the captions; whether the one follows the other (Spearman); what a reader
would take for a finding, true and false. With a judge's answers: its kappa with the word lists for color and size.
Prints one table; writes ex2_truth.json and ex2_truth.png to --output_dir.
"""
from utils import cli, processes
from utils.cli import UserError

FIGURES = {"true_over_article": "true - a NAME", "true_over_bare": "true - NAME", "true_over_false": "true - false",
           "lift_before": "lift before", "lift_after": "lift after", "gain": "gain",
           "gain_over_others": "gain over other concepts"}

REWARDS = {"bare": "the bare name", "article": "a NAME", "best": "the best text with at most one word more",
           "before": "descriptions before", "after": "descriptions after"}


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_vlm_options(parser)
    parser.add_argument("--split", default="val", choices=("train", "val"), help="whose images the VLM is shown")
    parser.add_argument("--before", nargs="+", metavar="X.json",
                        help="descriptions of the untrained model (default: none)")
    parser.add_argument("--after", nargs="+", metavar="X.json",
                        help="descriptions of the aligned model (default: none)")
    parser.add_argument("--answers", nargs="+", default=[], metavar="FILE.jsonl",
                        help="inspect.py's answers about --after (default: none)")
    cli.add_device(parser)
    cli.add_output_dir(parser, "the table and the figure go")
    return parser


def main(args) -> None:
    import sys
    from functools import partial
    from pathlib import Path

    from utils.ex2 import descriptions, inspection

    # What is asked.
    if bool(args.before) != bool(args.after):
        raise UserError("--before and --after go together: name descriptions of both models, or of neither")
    texts = {name: [row for path in paths for row in descriptions.read(path)[0]]
             for name, paths in (("before", args.before or []), ("after", args.after or []))}
    described = {(row["concept"], row["description"]) for row in texts["after"]}
    answers: dict[str, list[dict]] = {}
    for path in args.answers:
        header, lines = inspection.read_answers(Path(path))
        if any((answer["concept"], answer["description"]) not in described for answer in lines.values()):
            raise UserError(f"{path} is not about the descriptions of --after; make it from their .jsonl with "
                            "inspect.py")
        answers[header["inspector"]] = answers.get(header["inspector"], []) + list(lines.values())

    print(f"what {args.vlm_name} prefers on emoji_fixed; loading ...", file=sys.stderr, flush=True)
    import numpy as np

    from utils.data import concepts
    from utils.ex2 import rewards, truth
    from utils.models.loading import load_vlm
    from utils.plots import ex2

    # The concepts that are described, or all.
    found = truth.concepts()
    named = [{row["concept"] for row in rows} for rows in texts.values()]
    if named[0] != named[1]:
        raise UserError(f"only --before or only --after describes {sorted(named[0] ^ named[1])[0]!r}; describe the "
                        "same concepts with inference.py --eval_dataset emoji_fixed, before and after")
    if named[0]:
        found = [concept for concept in found if concept["name"] in named[0]]
    if named[0] and len(found) < len(named[0]):
        raise UserError("--before and --after describe concepts that emoji_fixed does not have; make them with "
                        "inference.py --eval_dataset emoji_fixed")
    if not any(concept["attribute"] for concept in found):
        raise UserError("--before and --after describe only concepts with nothing fixed, of which nothing is true; "
                        "describe more concepts with inference.py --num_concepts")

    # What the VLM prefers, by controlled texts.
    vlm = load_vlm(args.vlm_name, processes.pick_device(args.device), args.vlm_16bit)
    images = concepts.load_concepts("emoji_fixed", None, args.split, None, concepts.FIXED_IMAGES)
    means = rewards.kept_image_means(args.output_dir, "emoji_fixed", vlm, images,
                                     {"split": args.split, "vlm_16bit": args.vlm_16bit})
    names = [concept["name"] for concept in found]
    score = partial(rewards.score, vlm, means[[images.classes.index(name) for name in names]])
    effect = truth.effects(score, found)

    # What descriptions mention.
    result = {"vlm_name": args.vlm_name, "split": args.split, "concepts": found}
    shares = {name: truth.mentions(rows, found) if rows else None for name, rows in texts.items()}
    if texts["before"]:
        result["spearman"] = truth.agreement_of_effects(effect["words"], shares["before"], shares["after"])
        result["discoveries"] = truth.discoveries(found, shares["before"], shares["after"])
    result["attributes"] = truth.table(found, effect, shares["before"], shares["after"])

    # The floor and the ceiling of the reward.
    result["rewards"] = {name: float(np.mean(effect[name])) for name in ("bare", "article", "best")} | {
        name: float(np.mean(score([row["description"] for row in rows], [names.index(row["concept"]) for row in rows])))
        for name, rows in texts.items() if rows}
    result["judges"] = {inspector: truth.judged(lines) for inspector, lines in answers.items()}

    # Write.
    print("\n".join(lines_of(result)))
    folder = Path(args.output_dir)
    cli.save_result(folder / "ex2_truth.json", result)
    ex2.truth(result["attributes"], folder / "ex2_truth.png")
    print(folder / "ex2_truth.json", folder / "ex2_truth.png", sep="\n")


def lines_of(result: dict) -> list[str]:
    """The result as tables in Markdown."""
    shown = {name: label for name, label in FIGURES.items() if name in result["attributes"]["all"]}
    lines = [f"| attribute | concepts | true word best | and above the bare name | {' | '.join(shown.values())} |",
             "| --- " * (4 + len(shown)) + "|"]
    for attribute, row in result["attributes"].items():
        cells = ["{:.2f} [{:.2f}, {:.2f}]".format(*row[name]) if name in row else "-" for name in shown]
        lines.append(f"| {attribute} | {row['number']} | {row['best']:.0%} | {row['best_over_bare']:.0%} | "
                     f"{' | '.join(cells)} |")
    lines += ["", "Mean rewards: " + ", ".join(
        f"{REWARDS[name]} {value:.1f}" for name, value in result["rewards"].items())]
    if "spearman" in result:
        found = result["spearman"]
        lines += [f"Spearman of the VLM's preference and the gain, over {found['pairs']} pairs: "
                  + ("undefined" if found["correlation"] is None else
                     "{correlation:.2f} [{low:.2f}, {high:.2f}]".format(**found)),
                  "Findings: {true} true and {wrong_word} with a wrong word, of {fixed_pairs}; {random_attribute} of "
                  "{random_pairs} random attributes; {nothing_fixed} of {nothing_fixed_pairs} where nothing is "
                  "fixed".format(**result["discoveries"])]
    for judge, figures in result["judges"].items():
        lines.append(f"Kappa of {judge} with the word lists: " + ", ".join(
            f"{name} " + ("undefined" if row["kappa"] is None else f"{row['kappa']:.2f}") + f" ({row['used']})"
            for name, row in figures.items()))
    return lines


if __name__ == "__main__":
    cli.run(main, get_args_parser())
