"""Switch off the attention heads that code a spurious cue: accuracy of each group of images before and after.

    python compute_use_specific_heads.py --model ViT-L-14 --dataset binary_waterbirds --data_path DIR
    python compute_use_specific_heads.py --model emojiclip --dataset emoji_spurious --keep_mlps --select auto
    python compute_use_specific_heads.py --model emojiclip --dataset emoji_spurious --keep_mlps --select texts \\
        --spurious_texts text_descriptions/spurious_backgrounds_emoji.txt \\
        --core_texts text_descriptions/core_animals_emoji.txt
    python compute_use_specific_heads.py --model emojiclip --dataset emoji --keep_mlps --heads 5.3,5.4

Reads what compute_prs.py and compute_text_projection.py wrote to --input_dir; --select also reads the arrays of the
split that heads are chosen on (compute_prs.py --split val), and never those of the split that is reported (--split).
auto ranks the heads by their share of what the place does to the logits, minus their share of what the class does;
texts by how far their scores for the texts of the cue go along with the whole model's, minus the same for the core
texts.

The heads are mean-ablated together with all MLPs and all attention layers but the last four, as published (paper
section 4.3), convolution blocks kept; each mean is over the split at hand. Prints, in percent, the overall accuracy
before (`Baseline`) and after (`Replaced`), and a table: each group (class x place), the average of groups and the
worst, for the whole model, with the rest of the recipe but no heads ablated, with the heads ablated, and with as many
heads drawn at random (the trial with the best worst group, and the mean of all). A data set without places has the
overall accuracy alone.

Writes to --output_dir: {dataset}_specific_heads_{model}.json and .png.
"""
from utils import cli
from utils.data.datasets import NAMES, default_split

COLUMNS = {"baseline": "before", "no_heads": "no heads", "heads_ablated": "heads ablated", "random_best": "best random",
           "random_mean": "mean random"}


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_run_options(parser, NAMES)
    parser.add_argument("--data_path", metavar="FOLDER",
                        help="where the images of binary_waterbirds are, for their places (default: none)")
    parser.add_argument("--heads", metavar="LIST",
                        help="heads to ablate: layer.head, counted from 0, such as 22.12,23.1 (default: those of "
                             "--heads_file)")
    parser.add_argument("--heads_file", metavar="FILE.yaml",
                        help="list of heads to ablate (default: configs/heads/{dataset}_{model}.yaml)")
    parser.add_argument("--roles", nargs="+", metavar="ROLE", help="take these roles of the list (default: all)")
    parser.add_argument("--select", choices=("auto", "texts"),
                        help="choose heads: auto, by their effect on the logits; texts, by two sets of texts (default: "
                             "neither)")
    parser.add_argument("--select_split", metavar="NAME", help="split that --select chooses on (default: val)")
    parser.add_argument("--number_of_heads", type=cli.POSITIVE, metavar="N",
                        help="heads that --select chooses (default: auto, the best worst group on --select_split; "
                             "texts, 10)")
    parser.add_argument("--spurious_texts", metavar="FILE.txt", help="of --select texts: the cue, a text a line")
    parser.add_argument("--core_texts", metavar="FILE.txt", help="of --select texts: what should count, a text a line")
    cli.add_reload_options(parser, "of --select texts: ", "of the random heads, and of random weights")
    parser.add_argument("--keep_last_layers", type=cli.POSITIVE, default=4, metavar="N",
                        help="attention layers that are kept, but for the heads")
    parser.add_argument("--keep_mlps", action="store_true", help="keep the MLPs (default: mean-ablate them)")
    parser.add_argument("--random_trials", type=cli.POSITIVE, default=10, metavar="N",
                        help="times that as many heads are drawn at random from the kept layers")
    cli.add_output_dir(parser, "JSON and picture go", beside_input=True)
    return parser


def main(args) -> None:
    from pathlib import Path

    from utils.analysis import ablation, groups, spurious
    from utils.models import names as models
    from utils.plots import charts
    from utils.runs import files, heads

    spurious.check_options(args)
    model, name = models.file_name(args.model), files.run_name(args.dataset, args.split)
    terms, manifest = files.open_run(args.input_dir, args.dataset, args.model, ("attn", "mlp"), args.split)
    attn = terms["attn"]
    cli.check_range("--keep_last_layers", args.keep_last_layers, len(attn.layers))
    classifier = files.open_classifier(args.input_dir, args.dataset, args.model, manifest, attn.shape[-1])
    group = groups.of_images(args.dataset, args.data_path, args.split, terms["labels"], manifest)
    names = groups.names(args.dataset)
    if args.select:
        chosen, how = spurious.selected(args, model, manifest, classifier)
    else:
        chosen, how = spurious.listed(args, model, attn, manifest)

    recipe = (args.keep_last_layers, args.keep_mlps)
    kept = attn.heads[attn.last(args.keep_last_layers)]
    trials = spurious.random_sets(kept, len(chosen), args.random_trials, args.seed)
    means = ablation.means(terms)
    answers = [*spurious.right(terms, means, classifier, [()]),
               *spurious.right(terms, means, classifier, [(), chosen, *trials], *recipe)]
    baseline, no_heads, ablated, *random = [groups.accuracies(answer, group, names) for answer in answers]
    best = max(range(len(random)), key=lambda trial: groups.goal(random[trial]))
    found = dict(zip(COLUMNS, (baseline, no_heads, ablated, random[best], groups.average(random))))
    sizes = groups.sizes(group, names)

    print(f"Baseline: {baseline['overall']}\nReplaced: {ablated['overall']}")
    print(f"{len(chosen)} heads ablated, by {how['by']}: {' '.join(map(heads.name, chosen))}\n")
    print(groups.table(found, sizes, COLUMNS))
    path = Path(args.output_dir or args.input_dir) / f"{name}_specific_heads_{model}.json"
    options = ("keep_last_layers", "keep_mlps", "number_of_heads", "spurious_texts", "core_texts", "random_trials", "seed")
    cli.save_result(path, {
        "model": args.model, "dataset": args.dataset, "split": args.split or default_split(args.dataset),
        "images": len(attn), "images_of_groups": sizes, "heads": list(map(heads.name, chosen)), "chosen": how,
        "options": {option: getattr(args, option) for option in options}, **found,
        "random_best_heads": list(map(heads.name, trials[best]))})
    charts.group_accuracies(found, COLUMNS, f"{args.model} on {name}, {len(chosen)} heads ablated", path.with_suffix(".png"))
    print(f"-> {path}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
