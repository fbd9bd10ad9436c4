"""What did training change? Two scored files of descriptions side by side.

    python -m scripts.compare_descriptions --before output_dir/ex2/untrained.json --after output_dir/ex2/aligned.json

Prints mean rewards with standard errors, the signs of collapse, and examples; writes the same as comparison.md
beside --after.
"""
from utils import cli
from utils.cli import UserError


def get_args_parser():
    parser = cli.make_parser(__doc__)
    parser.add_argument("--before", required=True, metavar="X.json", help="descriptions of the untrained model")
    parser.add_argument("--after", required=True, metavar="X.json", help="descriptions of the aligned model")
    parser.add_argument("--num_examples", type=cli.NATURAL, default=6, help="queries to show both answers of")
    return parser


def main(args) -> None:
    from pathlib import Path

    from utils.ex2 import descriptions

    before, after = descriptions.read(args.before)[0], descriptions.read(args.after)[0]
    lines = ["| | mean reward | words | duplicates | repeated phrases | copies | shared phrase |",
             "| --- | --- | --- | --- | --- | --- | --- |"]
    rewards = []
    for name, path, rows in (("before", args.before, before), ("after", args.after, after)):
        sums = descriptions.sums(rows)
        if sums["mean_reward"] is None:
            raise UserError(f"{path} is not scored; run: python inference.py --score VLM_NAME --descriptions {path}")
        rewards.append(sums["mean_reward"])
        lines.append("| {} ({}) | {:.2f} +- {:.2f} | {mean_words:.1f} | {duplicates:.1%} | {repeated_phrases:.1%} | "
                     "{copies:.1%} | {shared_phrase:.1%} |".format(name, len(rows), *rewards[-1], **sums["measures"]))
    (old_mean, old_error), (new_mean, new_error) = rewards
    gain, error = new_mean - old_mean, (new_error ** 2 + old_error ** 2) ** 0.5
    lines += ["", f"Difference: {gain:.2f}" + (f", {gain / error:.1f} standard errors." if error else "."), "",
              "| question | before | reward | after | reward |", "| --- | --- | --- | --- | --- |"]
    answer = {(row["concept"], row["question"]): row for row in after}
    both = [(row, answer[key]) for row in before if (key := (row["concept"], row["question"])) in answer]
    for old, new in both[::max(1, len(both) // max(1, args.num_examples))][:args.num_examples]:
        cells = [old["question"], old["description"], number(old["reward"]), new["description"], number(new["reward"])]
        lines.append("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |")
    cli.write_text(Path(args.after).with_name("comparison.md"), "\n".join(lines) + "\n")
    print("\n".join(lines))


def number(reward: float | None) -> str:
    return "none" if reward is None else f"{reward:.1f}"


if __name__ == "__main__":
    cli.run(main, get_args_parser())
