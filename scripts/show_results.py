"""Print a short summary of what the decomposition scripts wrote.

    python -m scripts.show_results --model emojiclip --dataset emoji --text_descriptions emoji_descriptions

What each part of the model is worth, the texts of the heads that vary most, and where the files are. Draws
{dataset}_heads_{model}.png: for these heads, the images that score highest and lowest on the head's first text.
"""
from utils import cli
from utils.cli import UserError
from utils.data.datasets import NAMES

HEADS = 8  # with the largest variance
TEXTS = 4
IMAGES = 8  # of the highest, and as many of the lowest score


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_run_options(parser, NAMES, model="emojiclip", dataset="emoji")
    cli.add_texts_of_heads_options(parser, "emoji_descriptions")
    parser.add_argument("--data_path", metavar="FOLDER", help="as given to compute_prs.py (default: none)")
    return parser


def draw_heads(args, heads: list[dict], path) -> None:
    """A sheet of the images that score highest and lowest on each head's first text."""
    import numpy as np

    from utils.data import datasets
    from utils.plots import charts
    from utils.runs import files
    from utils.runs.components import Component
    from utils.runs.run import Run

    run = Run.open(args.input_dir, args.dataset, args.model, args.split, needs="heads")
    images = datasets.load_images(args.dataset, args.data_path, 96, split=args.split)
    indices = run.indices(images)
    pool = np.load(files.text_path(args.input_dir, args.text_descriptions, (run.manifest or {}).get("text_model", run.place.model_name)),
                   mmap_mode="r", allow_pickle=False)
    rows = []
    for head in heads:
        if not head["texts"]:
            continue
        column, text = run.heads.index(Component("attn", head["layer"], head["head"])), pool[head["texts"][0]["index"]]
        scores = np.concatenate([run.stack(block, [column])[:, 0] @ text for block in files.blocks(len(run))])
        order = np.argsort(-scores, kind="stable")
        highest, lowest = ([images.read(i)[0] for i in indices[part]] for part in (order[:IMAGES], order[-IMAGES:]))
        title = "; ".join(entry["text"] for entry in head["texts"][:TEXTS])
        rows.append((f"layer {head['layer']}, head {head['head']}:  {title}", highest, lowest))
    charts.head_sheet(rows, path)


def main(args) -> None:
    import json

    from utils.runs import files

    place = files.Place(args.input_dir, args.dataset, args.model, args.split)
    paths = {"ablations": place.path("ablations", ".json"),
             "texts": place.path(files.texts_of_heads(args.text_descriptions, args.texts_per_head), ".json")}
    missing = [str(path) for path in paths.values() if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]} does not exist; run compute_ablations.py and compute_complete_text_set.py first")
    ablations, texts = (json.loads(path.read_text(encoding="utf-8")) for path in paths.values())

    print(f"\n{args.model} on {ablations['images']} images of {args.dataset}: zero-shot accuracy (%)")
    rows = [("whole model", ablations["baseline"]), ("all MLPs mean-ablated", ablations["mlp_ablated"]),
            ("class token's attention to itself ablated", ablations["cls_ablated"]),
            ("both ablated", ablations["mlp_and_cls_ablated"]),
            ("all convolution blocks mean-ablated", ablations.get("conv_ablated"))]
    rows += [(f"attention layers 1 to {k} ablated", value) for k, value in enumerate(ablations["attention_ablated"]) if k]
    rows += [(f"heads of the last {texts['num_of_last_layers']} layers reduced to {texts['number_of_texts']} texts",
              texts["accuracy"])]
    for label, value in ((label, value) for label, value in rows if value is not None):
        print(f"  {label:<50} {value:6.1f}")

    heads = sorted(texts["heads"], key=lambda head: -head["variance"])[:HEADS]
    print(f"\nThe {len(heads)} heads that vary most, each with its first texts (share of the head's variance)")
    for head in heads:
        listed = "; ".join(f"{entry['text']} ({entry['share']:.0%})" for entry in head["texts"][:TEXTS])
        print(f"  layer {head['layer']}, head {head['head']}: {listed}")

    picture = place.path("heads", ".png")
    draw_heads(args, heads, picture)
    print("\nAll of it:")
    for path in (paths["ablations"], paths["ablations"].with_suffix(".png"), paths["texts"].with_suffix(".txt"), paths["texts"],
                 picture):
        print(f"  {path}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
