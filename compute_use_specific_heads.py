"""Switch off the attention heads that code a spurious cue: accuracy of each group of images before and after.

    python compute_use_specific_heads.py --model ViT-L-14 --dataset binary_waterbirds --data_path DIR
    python compute_use_specific_heads.py --model emojiclip --dataset emoji_spurious --keep_mlps --select auto
    python compute_use_specific_heads.py --model emojiclip --dataset emoji_spurious --keep_mlps --select texts \\
        --spurious_texts text_descriptions/spurious_backgrounds_emoji.txt \\
        --core_texts text_descriptions/core_animals_emoji.txt
    python compute_use_specific_heads.py --model emojiclip --dataset emoji --keep_mlps --heads 5.3,5.4

Reads what compute_prs.py and compute_text_projection.py wrote to --input_dir. Heads are named (--heads, or a list in a
file), or chosen by --select, which also reads the arrays of the split that it chooses on (compute_prs.py --split val),
and never those of the split that is reported (--split):

    auto            by their share of what the place does to the logits, minus their share of what the class does
    texts           by how far their scores for --spurious_texts go along with the whole model's, minus the same for
                    --core_texts
    textspan, sith  by how much of what they write goes to --attribute, by this method (SITH reads weights alone)
    names           those that compute_head_names.py, on that split, named after --attribute
    describe        those whose role a language model on a chat server calls spurious for the --task; the role is what
                    compute_head_names.py --describe said, or else their name

The heads are mean-ablated together with all MLPs and all attention layers but the last four, as published (paper
section 4.3); --keep_mlps and --keep_last_layers change that. Convolution blocks are kept. Means are over the split at
hand. Prints, in percent, the overall accuracy before (`Baseline`) and after (`Replaced`), and a table of each group
(class x place), the average of groups and the worst, with the columns

    before                    the whole model
    no head ablated           the rest of the recipe alone
    heads ablated             the recipe with the heads
    best random, mean random  the recipe with as many heads drawn at random: the trial with the best worst group, and
                              the mean of all

A data set without places has the overall accuracy alone.

Writes to --output_dir: {dataset}_specific_heads_{model}.json and .png.
"""
from pathlib import Path

from utils import cli, processes
from utils.cli import UserError
from utils.data.datasets import NAMES, PLACES, default_split

METHODS = ("textspan", "sith")  # of utils/analysis/names, by which heads may be chosen
COLUMNS = {"baseline": "before", "no_heads": "no head ablated", "heads_ablated": "heads ablated",
           "random_best": "best random", "random_mean": "mean random"}


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
    parser.add_argument("--select", choices=("auto", "texts", *METHODS, "names", "describe"),
                        help="choose heads: auto, by their effect on the logits; texts, by two sets of texts; textspan "
                             "and sith, by their share for --attribute in that method; names, those that go with "
                             "--attribute, as they were named; describe, those whose role a language model calls "
                             "spurious for --task (default: none of these)")
    parser.add_argument("--select_split", metavar="NAME", help="split that --select chooses on (default: val)")
    parser.add_argument("--number_of_heads", type=cli.POSITIVE, metavar="N",
                        help="heads that --select chooses (default: auto, the best worst group on --select_split; "
                             "texts, textspan and sith, 10, or all where there are fewer; names and describe, all "
                             "that are so found)")
    parser.add_argument("--attribute", nargs="+", metavar="NAME",
                        help="of --select textspan, sith and names: attributes of the cue, for names those that "
                             "compute_head_names.py named heads of --select_split by")
    parser.add_argument("--attributes", metavar="FILE.yaml",
                        help="of --select textspan and sith: all attributes, each with its texts")
    parser.add_argument("--task", metavar="TEXT",
                        help="of --select describe: the classes, such as 'land animals against sea animals'")
    cli.add_server_options(parser)
    parser.add_argument("--spurious_texts", metavar="FILE.txt", help="of --select texts: the cue, a text a line")
    parser.add_argument("--core_texts", metavar="FILE.txt", help="of --select texts: what should count, a text a line")
    cli.add_reload_options(parser, "of --select texts: ", "of the random heads, and of random weights")
    parser.add_argument("--keep_last_layers", type=cli.POSITIVE, default=4, metavar="N",
                        help="attention layers that are kept, but for the heads")
    parser.add_argument("--keep_mlps", action="store_true", help="keep the MLPs (default: mean-ablate them)")
    parser.add_argument("--random_trials", type=cli.SIZE, default=10, metavar="N",
                        help="times that as many heads are drawn at random from the kept layers")
    cli.add_output_dir(parser, "JSON and picture go", beside_input=True)
    return parser


def check_options(args) -> None:
    """Refuse options that do not go together, and give --select_split its default."""
    ways = [f"--{name}" for name in ("heads", "heads_file", "select") if getattr(args, name) is not None]
    if len(ways) > 1:
        raise UserError(f"{' and '.join(ways)} both choose heads; give one of them")
    if args.roles and ways in (["--heads"], ["--select"]):
        raise UserError(f"--roles goes with a list of heads, and not with {ways[0]}; leave one of the two out")
    every = ("auto", "texts", *METHODS, "names", "describe")
    needed = {"select_split": every, "number_of_heads": every, "spurious_texts": ("texts",), "core_texts": ("texts",),
              "attribute": (*METHODS, "names"), "attributes": METHODS, "task": ("describe",), "base_url": ("describe",)}
    for name, ways in needed.items():
        if getattr(args, name) is not None and args.select not in ways:
            raise UserError(f"--{name} goes with --select {', '.join(ways[:-1])}{' or ' * (len(ways) > 1)}{ways[-1]}; "
                            "leave it out, or give that too")
    if args.select is None:
        return
    if args.dataset not in PLACES:
        raise UserError(f"--select needs groups, and --dataset {args.dataset} has none; {' and '.join(PLACES)} have "
                        "places; name heads with --heads")
    if args.select == "texts" and not (args.spurious_texts and args.core_texts):
        raise UserError("--select texts needs --spurious_texts and --core_texts, files with one text a line")
    if args.select == "describe" and not args.task:
        raise UserError("--select describe needs --task, such as --task 'land animals against sea animals'")
    if args.select in (*METHODS, "names") and not args.attribute:
        raise UserError(f"--select {args.select} needs --attribute, such as --attribute color texture")
    if args.select in METHODS and not args.attributes:
        raise UserError(f"--select {args.select} needs --attributes, such as --attributes "
                        "configs/attributes/general.yaml")
    args.select_split = args.select_split or "val"


def select(args, reported, classifier) -> tuple[list[int], dict]:
    """The heads that --select chooses on the arrays of --select_split, by their columns, and how."""
    import importlib

    from utils.analysis import component_scores, groups, selection, zeroshot
    from utils.analysis.names import attributes, describe, naming
    from utils.runs.run import Run

    run = Run.open(args.input_dir, args.dataset, args.model, args.select_split)
    run.same_weights(reported)
    kept = range(len(run.heads))[run.last(args.keep_last_layers)]
    ten = args.select in ("texts", *METHODS) and args.number_of_heads is None
    number = min(10, len(kept)) if ten else args.number_of_heads
    if number is not None and not 1 <= number <= len(kept):
        raise UserError(f"--number_of_heads is {number}; choose from 1 to {len(kept)}, the heads of the last "
                        f"{args.keep_last_layers} layers")
    if args.select == "auto":
        group = groups.of_images(run, args.data_path)
        chosen, how = selection.by_effects(run, classifier, group, groups.names(args.dataset), args.keep_last_layers,
                                           args.keep_mlps, number)
    elif args.select in METHODS:
        texts = attributes.read(args.attributes)
        embeddings, = attributes.embed(run, texts, args.pretrained, processes.pick_device(args.device), args.seed)
        shares = importlib.import_module(f"utils.analysis.names.{args.select}").scores(run, embeddings, kept, args.seed)
        chosen, how = selection.by_shares(run, shares, list(texts), args.attribute, kept, number)
    elif args.select == "names":
        chosen, how = selection.by_names(run, naming.read(run), args.attribute, args.keep_last_layers, number)
    elif args.select == "describe":
        said = naming.roles(naming.read(run), [run.heads[head] for head in kept])
        spurious = describe.spurious(describe.client(args.language_model, args.base_url),
                                     naming.answers_path(run.place, args.output_dir), args.task, said)
        chosen, how = selection.by_roles(run, spurious, number), {"task": args.task, "heads": said}
    else:
        texts = [zeroshot.read_texts(Path(file)) for file in (args.spurious_texts, args.core_texts)]
        embeddings = component_scores.embed(reported.manifest, texts, run.width,
                                            args.model, args.pretrained, processes.pick_device(args.device), args.seed)
        scores = component_scores.feature_scores(run.stacks("components"), embeddings)
        chosen, how = selection.by_texts(run, scores, kept, number)
    return chosen, {"by": f"--select {args.select}", "split": args.select_split, **how}


def main(args) -> None:
    from utils.analysis import ablation, groups, selection
    from utils.plots import charts
    from utils.runs import files
    from utils.runs.run import Run

    check_options(args)
    if args.select:
        selection.check_split(args.select_split, args.split)
    splits = dict.fromkeys((args.split, args.select_split if args.select else args.split))
    files.check_there([files.Place(args.input_dir, args.dataset, args.model, split) for split in splits],
                      classifier=True,
                      given={name: getattr(args, name) for name in ("pretrained", "seed", "data_path")})
    run = Run.open(args.input_dir, args.dataset, args.model, args.split)
    cli.fit(get_args_parser(), args, "keep_last_layers", len(run.layers))
    classifier, group, names = run.classifier(), groups.of_images(run, args.data_path), groups.names(args.dataset)
    if args.select:
        chosen, how = select(args, run, classifier)
    else:
        roles = " ".join(args.roles).split() if args.roles else None  # a settings file may name them in a line
        chosen, how = selection.listed(run, args.heads, args.heads_file, roles, args.keep_last_layers)

    # The whole model, then the recipe without heads, with the chosen ones, and with random ones.
    kept = range(len(run.heads))[run.last(args.keep_last_layers)]
    trials = selection.random_sets(kept, len(chosen), args.random_trials, args.seed)
    means, recipe = run.means(), ablation.all_but(run, args.keep_last_layers, args.keep_mlps)
    answers = [*ablation.right(run, means, classifier, 0, [()]),
               *ablation.right(run, means, classifier, 0, [(), chosen, *trials], recipe)]
    found, best = groups.compare(answers, group, names, COLUMNS)
    sizes = groups.sizes(group, names)
    chosen, random = ([str(run.heads[head]) for head in some] for some in (chosen, trials[best]))

    print(f"Baseline: {found['baseline']['overall']}\nReplaced: {found['heads_ablated']['overall']}")
    print(f"{len(chosen)} heads ablated, by {how['by']}: {' '.join(chosen)}\n")
    print(groups.table(found, sizes, COLUMNS))
    path = run.place.path("specific_heads", ".json", args.output_dir)
    options = ("keep_last_layers", "keep_mlps", "number_of_heads", "spurious_texts", "core_texts", "attribute",
               "attributes", "task", "random_trials", "seed")
    cli.save_result(path, {
        "model": args.model, "dataset": args.dataset, "split": args.split or default_split(args.dataset),
        "images": len(run), "images_of_groups": sizes, "heads": chosen, "chosen": how,
        "options": {option: getattr(args, option) for option in options}, **found, "random_best_heads": random})
    charts.group_accuracies(found, COLUMNS, f"{args.model} on {run.place.name}, {len(chosen)} heads ablated",
                            path.with_suffix(".png"))
    print(f"-> {path}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
