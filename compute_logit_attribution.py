"""Which heads and MLPs speak for which class?

    python compute_logit_attribution.py --model ViT-L-14 --dataset imagenet
    python compute_logit_attribution.py --model emojiclip --dataset emoji --classes tiger leopard
    python compute_logit_attribution.py --model emojiclip --dataset emoji --classes tiger leopard --index 17

What a component writes has an inner product with a class's column of the zero-shot classifier; over all components they
sum to the class's logit (a cosine). Without --classes: for each class what each component adds on the images of the
class, minus what it adds on all others. With one class: the same for it. With two, A and B: what it adds to the logit
of A minus that of B on images of A, minus the same on images of B. With --index: for one image, above the average over
all, of the class that it is given, or of --classes. Beside it stands the accuracy lost when the component alone is
mean-ablated, which counts what others do then; and heads have their names where compute_head_names.py gave them some.

Reads what compute_prs.py and compute_text_projection.py wrote to --input_dir. Writes to --output_dir, or else
--input_dir: {dataset}_logits_{model}.json, .csv and .png.
"""
from utils import cli
from utils.cli import UserError
from utils.data.datasets import NAMES

SHOWN = 10  # components that are printed


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_run_options(parser, NAMES)
    parser.add_argument("--classes", nargs="+", default=[], metavar="NAME",
                        help="one class, or two that are compared (default: all, one by one)")
    parser.add_argument("--index", type=cli.NATURAL, metavar="N",
                        help="one image of the run, counted from 0 (default: all)")
    cli.add_output_dir(parser, "JSON, CSV and picture go", beside_input=True)
    return parser


def main(args) -> None:
    if len(args.classes) > 2:
        raise UserError(f"--classes names {len(args.classes)}; give one, or two that are compared")
    import numpy as np

    from utils.analysis import logits
    from utils.analysis.names import naming
    from utils.plots import names as pictures
    from utils.runs.run import Run

    # The run, its classifier, and the classes that are asked for.
    run = Run.open(args.input_dir, args.dataset, args.model, args.split)
    classifier = run.classifier()
    classes = (run.manifest or {}).get("classes") or [str(number) for number in range(classifier.shape[1])]
    if args.index is not None:
        cli.check_range("--index", args.index, len(run) - 1, least=0)
    asked = [logits.find_class(name, classes) for name in args.classes]

    # What each component adds, and what is lost without it.
    if args.index is None and not asked:
        own, others = logits.by_class(run, classifier)
        added, title = own - others, "each class, against all others"
    else:
        of = asked or [int((run.whole(slice(args.index, args.index + 1)) @ classifier).argmax())]
        values = logits.along(run, classifier[:, of[0]] - (classifier[:, of[1]] if len(of) > 1 else 0))  # [b, c]
        title = " against ".join(classes[index] for index in of)
        first = run.labels == of[0]
        second = run.labels == of[1] if len(of) > 1 else ~first
        if args.index is not None:
            found, title = values[args.index] - values.mean(axis=0), f"{title}, image {args.index}"
        elif first.any() and second.any():
            found = values[first].mean(axis=0) - values[second].mean(axis=0)
        else:
            raise UserError(f"the run has no images of {classes[of[0]] if not first.any() else title}; choose others")
        added = found[:, None]
    accuracy, lost = logits.accuracy_lost(run, classifier)

    names = naming.find(run)
    labels = [f"{part} ({names[part]['role']})" if part in names else str(part) for part in run.components]
    columns = classes if added.shape[1] > 1 or (args.index is None and not asked) else [title]
    strength = np.nan_to_num(np.abs(added)).max(axis=1)
    order = np.argsort(-strength, kind="stable")
    print(f"{title}: accuracy {accuracy:.1f}%\n| part | {'most, of a class' if len(columns) > 1 else 'adds'} | "
          "accuracy lost |\n| --- | --- | --- |")
    for c in order[:SHOWN]:
        most = int(np.nan_to_num(np.abs(added[c])).argmax())
        of_class = f" ({columns[most]})" if len(columns) > 1 else ""
        print(f"| {labels[c]} | {added[c, most]:+.4f}{of_class} | {lost[c]:+.1f} |")

    path = run.place.path("logits", ".json", args.output_dir)
    cli.save_result(path, {
        "model": args.model, "dataset": args.dataset, "split": args.split, "images": len(run), "accuracy": accuracy,
        "classes": columns, "index": args.index,
        "parts": [{"part": str(part), "name": names.get(part, {}).get("name"), "accuracy_lost": float(lost[c]),
                   "added": [None if np.isnan(value) else float(value) for value in added[c]]}
                  for c, part in enumerate(run.components)],
        "command": cli.command(__file__, get_args_parser(), args)})
    cli.write_text(path.with_suffix(".csv"), logits.to_csv(list(map(str, run.components)), [
        names.get(part, {}).get("name", "") for part in run.components], columns, added, lost))
    pictures.contributions([labels[c] for c in order[:pictures.MOST]], added[order[:pictures.MOST]],
                           lost[order[:pictures.MOST]], columns, f"{args.model} on {run.place.name}: {title}",
                           path.with_suffix(".png"))
    print(f"-> {path}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
