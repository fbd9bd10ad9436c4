"""Ablate the components that go with a spurious cue: accuracy of each group of images before and after.

    python compute_component_repair.py --model ViT-B-16 --pretrained laion2b_s34b_b88k --dataset binary_waterbirds \\
        --data_path DIR
    python compute_component_repair.py --model timm-vit_base_patch14_dinov2.lvd142m-as-ViT-L-14 --source_model \\
        timm:vit_base_patch14_dinov2.lvd142m --dataset binary_waterbirds --data_path DIR --classifier probe
    python compute_component_repair.py --model emojiclip --dataset emoji_spurious \\
        --spurious_texts text_descriptions/spurious_backgrounds_emoji.txt \\
        --core_texts text_descriptions/core_animals_emoji.txt

Components are heads, MLPs, convolution blocks or the embedding, of any layer. Those are ablated whose score for the
spurious texts minus that for the core texts is highest (arXiv 2406.01583). They are chosen on --select_split, and
accuracies are of --split. Reads the runs of both in --input_dir, from compute_prs.py, or from compute_alignment.py for
a model mapped to a CLIP's space.

--classifier texts is the zero-shot classifier of compute_text_projection.py, of the CLIP that the model was mapped to.
With --classifier probe it is a linear head, fitted to whole representations of the train split as in
compute_linear_probe.py; of a mapped model, components are then ablated in the space of the model itself
(--source_model), whose runs are read, too.

Ablated components are replaced by their mean over the split that is reported; the classifier stays as it was. Prints,
in percent, the overall accuracy before (`Baseline`) and after (`Replaced`), and a table: each group (class x place),
the average of groups and the worst, for the whole model, with the components ablated, and with as many drawn at random
from all (the trial with the best worst group, and the mean of all).

Writes to --output_dir: {dataset}_component_repair_{classifier}_{model}.json and .png.
"""
from pathlib import Path

from utils import cli, processes
from utils.cli import UserError
from utils.data.datasets import NAMES, PLACES
from utils.models.names import TIMM

COLUMNS = {"baseline": "before", "ablated": "ablated", "random_best": "best random", "random_mean": "mean random"}


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_run_options(parser, NAMES)
    parser.add_argument("--data_path", metavar="FOLDER",
                        help="where the images of binary_waterbirds are, for their places (default: none)")
    parser.add_argument("--classifier", default="texts", choices=("texts", "probe"),
                        help="zero-shot, or a linear head fitted on the train split")
    parser.add_argument("--components", type=cli.POSITIVE, default=10, metavar="K", help="components to ablate")
    parser.add_argument("--select_split", default="val", metavar="NAME", help="split that the components are chosen on")
    parser.add_argument("--spurious_texts", default="text_descriptions/spurious_backgrounds_waterbirds.txt",
                        metavar="FILE.txt", help="texts of the cue, one a line")
    parser.add_argument("--core_texts", default="text_descriptions/core_birds_waterbirds.txt", metavar="FILE.txt",
                        help="texts of what should count, one a line")
    cli.add_source_model(parser, "with --classifier probe")
    parser.add_argument("--random_trials", type=cli.SIZE, default=10, metavar="N",
                        help="times that as many components are drawn at random")
    cli.add_reload_options(parser, "of the text encoder: ", "of random components, held-out images, and random weights")
    cli.add_output_dir(parser, "JSON and picture go", beside_input=True)
    return parser


def check_options(args) -> None:
    """Refuse options that do not go together."""
    if args.dataset not in PLACES:
        raise UserError(f"--dataset {args.dataset} has no groups to repair; {' and '.join(PLACES)} have places")
    if args.model.startswith(TIMM):
        raise UserError(f"--model {args.model} has no text side to score components by; map it to a CLIP with "
                        "compute_alignment.py and give the mapped model, MODEL-as-CLIP")


def main(args) -> None:
    from utils.analysis import ablation, component_scores, groups, probe, retrieval, selection, zeroshot
    from utils.plots import charts
    from utils.runs import files
    from utils.runs.run import Run

    check_options(args)
    selection.check_split(args.select_split, args.split)
    texts = [zeroshot.read_texts(Path(file)) for file in (args.spurious_texts, args.core_texts)]
    # The probe of a mapped model is fitted in the space of the model itself.
    fitted_here = args.classifier == "probe" and "-as-" not in args.model
    splits = dict.fromkeys((args.split, args.select_split, *(["train"] if fitted_here else [])))
    files.check_there([files.Place(args.input_dir, args.dataset, args.model, split) for split in splits],
                      classifier=args.classifier == "texts",
                      given={name: getattr(args, name) for name in ("pretrained", "seed", "data_path")})
    run = Run.open(args.input_dir, args.dataset, args.model, args.split, needs="components")
    cli.fit(get_args_parser(), args, "components", len(run.components))
    judged = Run.open(args.input_dir, args.dataset, args.model, args.select_split, needs="components")
    judged.same_weights(run)
    if judged.components != run.components:
        raise UserError(f"{judged.place.path('attn')}: has other components than the run that is reported; make it "
                        f"again with: {judged.place.command()}")
    ablated, apart = run, args.classifier == "probe" and "text_model" in run.manifest
    if args.source_model and not apart:
        raise UserError("--source_model goes with --classifier probe and a mapped model (MODEL-as-CLIP); leave it out")
    if apart:  # in the space of the model itself
        ablated = retrieval.open_source(run, args.source_model)
    group, names = groups.of_images(ablated, args.data_path), groups.names(args.dataset)
    if args.classifier == "texts":
        weight, bias, fitted = run.classifier(), 0, None
    else:
        splits = probe.open_splits(args.input_dir, args.dataset, ablated.place.model, args.split)
    embeddings = component_scores.embed(run.manifest, texts, run.width,
                                        args.model, args.pretrained, processes.pick_device(args.device), args.seed)
    if args.classifier == "probe":
        weight, bias, fitted = probe.fit_head(splits, args.seed)

    scores = component_scores.feature_scores(judged.stacks("scores"), embeddings)
    every = range(len(run.components))
    chosen = selection.by_scores(scores, every)[:args.components]
    trials = selection.random_sets(every, args.components, args.random_trials, args.seed)
    answers = ablation.right(ablated, ablated.means(), weight, bias, [(), chosen, *trials])
    found, best = groups.compare(answers, group, names, COLUMNS)
    labels = [str(component) for component in run.components]
    sizes = groups.sizes(group, names)
    chosen, random = ([labels[column] for column in some] for some in (chosen, trials[best]))

    print(f"Baseline: {found['baseline']['overall']}\nReplaced: {found['ablated']['overall']}")
    print(f"{len(chosen)} components ablated: {', '.join(chosen)}\n")
    print(groups.table(found, sizes, COLUMNS))
    path = run.place.path(f"component_repair_{args.classifier}", ".json", args.output_dir)
    options = ("classifier", "select_split", "spurious_texts", "core_texts", "random_trials", "seed")
    cli.save_result(path, {
        "model": args.model, "dataset": args.dataset, "split": args.split or "test", "images": len(run),
        "ablated_in_the_space_of": ablated.place.model, "means": "the split that is reported", "linear_head": fitted,
        "images_of_groups": sizes, "components": chosen,
        "scores": {label: {"spurious": spurious, "core": core}
                   for label, spurious, core in zip(labels, *scores.tolist())},
        "options": {option: getattr(args, option) for option in options}, **found, "random_best_components": random})
    head = "linear head" if fitted else "zero-shot"
    title = f"{args.model} on {run.place.name}, {head}, {len(chosen)} components ablated"
    charts.group_accuracies(found, COLUMNS, title, path.with_suffix(".png"))
    print(f"-> {path}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
