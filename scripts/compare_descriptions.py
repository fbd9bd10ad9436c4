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

    files = {"before": descriptions.read(args.before)[0], "after": descriptions.read(args.after)[0]}
    lines = ["| | mean reward | words | duplicates | repeated phrases | copies | shared phrase |",
             "| --- | --- | --- | --- | --- | --- | --- |"]
    rewards = {}
    for name, rows in files.items():
        rewards[name] = descriptions.mean_reward(rows)
        if rewards[name] is None:
            raise UserError(f"{getattr(args, name)} is not scored; run: python inference.py --score VLM_NAME --descriptions "
                            f"{getattr(args, name)}")
        found = descriptions.measures(rows)
        lines.append(f"| {name} ({len(rows)}) | {rewards[name][0]:.2f} +- {rewards[name][1]:.2f} | {found['mean_words']:.1f} | "
                     f"{found['duplicates']:.1%} | {found['repeated_phrases']:.1%} | {found['copies']:.1%} | "
                     f"{found['shared_phrase']:.1%} |")
    gain = rewards["after"][0] - rewards["before"][0]
    error = (rewards["after"][1] ** 2 + rewards["before"][1] ** 2) ** 0.5
    lines += ["", f"Difference: {gain:.2f}" + (f", {gain / error:.1f} standard errors." if error else "."), "",
              "| question | before | reward | after | reward |", "| --- | --- | --- | --- | --- |"]
    after = {(row["concept"], row["question"]): row for row in files["after"]}
    both = [(row, after[key]) for row in files["before"] if (key := (row["concept"], row["question"])) in after]
    for old, new in both[::max(1, len(both) // max(1, args.num_examples))][:args.num_examples]:
        cells = [old["question"], old["description"], number(old["reward"]), new["description"], number(new["reward"])]
        lines.append("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |")
    cli.write_text(Path(args.after).with_name("comparison.md"), "\n".join(lines) + "\n")
    print("\n".join(lines))


def number(reward: float | None) -> str:
    return "none" if reward is None else f"{reward:.1f}"


if __name__ == "__main__":
    cli.run(main, get_args_parser())
