"""Ablate the components that go with a spurious cue: accuracy of each group of images before and after.

    python compute_component_repair.py --model ViT-B-16 --pretrained laion2b_s34b_b88k --dataset binary_waterbirds \\
        --data_path DIR
    python compute_component_repair.py --model vit_base_patch14_dinov2.lvd142m-as-ViT-L-14 --source_model \\
        timm:vit_base_patch14_dinov2.lvd142m --dataset binary_waterbirds --data_path DIR --classifier probe
    python compute_component_repair.py --model emojiclip --dataset emoji_spurious \\
        --spurious_texts text_descriptions/spurious_backgrounds_emoji.txt \\
        --core_texts text_descriptions/core_animals_emoji.txt

Reads what compute_prs.py, or compute_alignment.py for a model mapped to a CLIP's space, wrote to --input_dir of
--split, which is reported, and of --select_split, where the --components are chosen whose score for the spurious texts
minus that for the core texts is highest (arXiv 2406.01583). They are heads, MLPs, convolution blocks or the embedding,
of any layer.

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
from utils import cli
from utils.data.datasets import NAMES

COLUMNS = {"baseline": "before", "ablated": "ablated", "random_best": "best random", "random_mean": "mean random"}


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_run_options(parser, NAMES)
    parser.add_argument("--data_path", metavar="FOLDER",
                        help="where the images of binary_waterbirds are, for their places (default: none)")
    parser.add_argument("--classifier", default="texts", choices=("texts", "probe"),
                        help="zero-shot, or a linear head fitted on the train split")
    parser.add_argument("--components", type=cli.POSITIVE, default=10, metavar="K", help="to ablate")
    parser.add_argument("--select_split", default="val", metavar="NAME", help="split that the components are chosen on")
    parser.add_argument("--spurious_texts", default="text_descriptions/spurious_backgrounds_waterbirds.txt",
                        metavar="FILE.txt", help="of the cue, a text a line")
    parser.add_argument("--core_texts", default="text_descriptions/core_birds_waterbirds.txt", metavar="FILE.txt",
                        help="of what should count, a text a line")
    cli.add_source_model(parser, "with --classifier probe")
    parser.add_argument("--random_trials", type=cli.POSITIVE, default=10, metavar="N",
                        help="times that as many components are drawn at random")
    cli.add_reload_options(parser, "of the text encoder: ", "of random components, held-out images, and random weights")
    cli.add_output_dir(parser, "JSON and picture go", beside_input=True)
    return parser


def main(args) -> None:
    from pathlib import Path

    from utils.analysis import repair

    repair.check_options(args)

    import numpy as np

    from utils.analysis import cumulative, features, groups, probe, retrieval, zeroshot
    from utils.models import names as models
    from utils.plots import charts
    from utils.runs import files, terms

    texts = [zeroshot.read_texts(Path(file)) for file in (args.spurious_texts, args.core_texts)]
    found = files.open_terms(args.input_dir, args.dataset, args.model, args.split)
    ablated, manifest, names = found
    components, width = terms.components(ablated, names), ablated["mlp"].shape[-1]
    cli.check_range("--components", args.components, len(components))
    selection = repair.open_selection(args, manifest, components)
    space = args.model
    if args.classifier == "probe" and "-as-" in args.model:
        space = args.source_model or args.model.partition("-as-")[0]
        ablated, manifest = retrieval.open_source(args.input_dir, args.dataset, args.split, space, found)
    group = groups.of_images(args.dataset, args.data_path, args.split, ablated["labels"], manifest)
    group_names = groups.names(args.dataset)
    if args.classifier == "texts":
        zero_shot = files.open_classifier(args.input_dir, args.dataset, args.model, manifest, width)
        classifier, fitted = (zero_shot, np.zeros(zero_shot.shape[1], np.float32)), None
    else:
        splits = probe.open_splits(args.input_dir, args.dataset, space, args.split)
    embeddings = features.embed(args, found[1], texts, width)
    if args.classifier == "probe":
        *classifier, fitted = cumulative.fit_head(splits, args.seed)

    scores = features.feature_scores((stack for _, stack in terms.stacks(selection, "scores")), embeddings)
    chosen = repair.ranking(scores)[:args.components]
    trials = repair.random_sets(len(components), args.components, args.random_trials, args.seed)
    answers = repair.right(ablated, repair.mean(ablated), classifier, [(), chosen, *trials])
    before, after, *random = [groups.accuracies(answer, group, group_names) for answer in answers]
    best = max(range(len(random)), key=lambda trial: groups.goal(random[trial]))
    figures = dict(zip(COLUMNS, (before, after, random[best], groups.average(random))))
    sizes, labels = groups.sizes(group, group_names), [features.label(component) for component in components]

    print(f"Baseline: {before['overall']}\nReplaced: {after['overall']}")
    print(f"{len(chosen)} components ablated: {', '.join(labels[place] for place in chosen)}\n")
    print(groups.table(figures, sizes, COLUMNS))
    model, name = models.file_name(args.model), files.run_name(args.dataset, args.split)
    path = Path(args.output_dir or args.input_dir) / f"{name}_component_repair_{args.classifier}_{model}.json"
    options = ("classifier", "select_split", "spurious_texts", "core_texts", "random_trials", "seed")
    cli.save_result(path, {
        "model": args.model, "dataset": args.dataset, "split": args.split or "test", "images": len(ablated["labels"]),
        "ablated_in_the_space_of": space, "means": "the split that is reported", "linear_head": fitted,
        "images_of_groups": sizes, "components": [labels[place] for place in chosen],
        "scores": {label: {"spurious": float(spurious), "core": float(core)} for label, spurious, core in zip(labels, *scores)},
        "options": {option: getattr(args, option) for option in options}, **figures,
        "random_best_components": [labels[place] for place in trials[best]]})
    head = "linear head" if fitted else "zero-shot"
    charts.group_accuracies(figures, COLUMNS, f"{args.model} on {name}, {head}, {len(chosen)} components ablated",
                           path.with_suffix(".png"))
    print(f"-> {path}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
