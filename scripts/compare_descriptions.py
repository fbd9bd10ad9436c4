"""What did training change? Scored files of descriptions side by side, of one seed or of several.

    python -m scripts.compare_descriptions --before output_dir/ex2/untrained.json --after output_dir/ex2/aligned.json

Prints mean rewards with standard errors, the difference paired by concept, the signs of collapse, and examples; writes
the same as comparison.md beside the first --after. Both sides are of the same language model (the base of adapters),
data set and VLM, as far as their manifests tell.
"""
from utils import cli
from utils.cli import UserError


def get_args_parser():
    parser = cli.make_parser(__doc__)
    parser.add_argument("--before", required=True, nargs="+", metavar="X.json",
                        help="descriptions of the untrained model, a file a seed")
    parser.add_argument("--after", required=True, nargs="+", metavar="X.json",
                        help="descriptions of the aligned model, a file a seed")
    parser.add_argument("--num_examples", type=cli.NATURAL, default=6, help="queries to show both answers of")
    return parser


def main(args) -> None:
    from pathlib import Path

    from utils.ex2 import descriptions

    files = [[descriptions.read(path) for path in paths] for paths in (args.before, args.after)]
    before, after = ([row for rows, _ in read for row in rows] for read in files)
    for name in ("base_model_name", "dataset", "vlm_name"):
        values = [sorted({about[name] for _, about in read if about.get(name)}) for read in files]
        if all(values) and values[0] != values[1]:
            raise UserError(f"--before is of {name} {', '.join(values[0])}, and --after of {', '.join(values[1])}, so "
                            "that more than the training differs; make one of them again with the other's")
    lines = ["| | mean reward | words | duplicates | repeated phrases | copies | shared phrase |",
             "| --- | --- | --- | --- | --- | --- | --- |"]
    for name, paths, rows in (("before", args.before, before), ("after", args.after, after)):
        sums = descriptions.sums(rows)
        if sums["mean_reward"] is None:
            raise UserError(f"{paths[0]} is not scored; run: python inference.py --score VLM_NAME --descriptions "
                            f"{paths[0]}")
        lines.append("| {} ({}) | {:.2f} +- {:.2f} | {mean_words:.1f} | {duplicates:.1%} | {repeated_phrases:.1%} | "
                     "{copies:.1%} | {shared_phrase:.1%} |".format(name, len(rows), *sums["mean_reward"],
                                                                   **sums["measures"]))
    paired = descriptions.difference(before, after)
    error, number = paired["error"], paired["concepts"]
    lines += ["", f"Difference, paired by concept: {paired['mean']:.2f}"
              + (f" +- {error:.2f} (standard error over {number} concepts; p {paired['p']:.2g} by Wilcoxon's "
                 "signed-rank test)." if error else "."), "",
              "| question | before | reward | after | reward |", "| --- | --- | --- | --- | --- |"]
    answer = {(row["concept"], row["question"]): row for row in after}
    both = [(row, answer[key]) for row in before if (key := (row["concept"], row["question"])) in answer]
    for old, new in both[::max(1, len(both) // max(1, args.num_examples))][:args.num_examples]:
        cells = [old["question"], old["description"], shown(old["reward"]), new["description"], shown(new["reward"])]
        lines.append("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |")
    cli.write_text(Path(args.after[0]).with_name("comparison.md"), "\n".join(lines) + "\n")
    print("\n".join(lines))


def shown(reward: float | None) -> str:
    return "none" if reward is None else f"{reward:.1f}"


if __name__ == "__main__":
    cli.run(main, get_args_parser())
