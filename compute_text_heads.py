"""What do the heads of a text tower do: which matter, what do they read, which texts do they part?

    python compute_text_heads.py --text_descriptions emoji_descriptions --model emojiclip --dataset emoji
    python compute_text_heads.py --text_descriptions emoji_descriptions --model emojiclip --dataset emoji \\
        --image photo.jpg --head 3.1

Reads what compute_text_prs.py wrote of the pool, and what compute_prs.py wrote of the data set, from --input_dir.
Mean-ablates each layer and each head of the text tower: what it contributes to the prompts of every class is replaced
by its mean over the pool, and the zero-shot classifier is built again. Says of each head how its attention is divided
over words and other tokens, which words of the pool get most, and which texts lie at the ends of its first principal
component. With --image, which texts each head (or the one of --head) brings nearest to that picture.

Writes {dataset}_text_heads_{pool}_{model}.json to --output_dir, and a picture of the accuracies beside it.
"""
from utils import cli, processes
from utils.cli import UserError
from utils.data.datasets import NAMES


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_model_options(parser)
    cli.add_data_options(parser, NAMES)
    cli.add_split_option(parser)
    parser.add_argument("--text_descriptions", default="image_descriptions_general", metavar="POOL",
                        help="the pool that compute_text_prs.py took apart")
    parser.add_argument("--text_dir", default="./text_descriptions", metavar="FOLDER", help="where POOL.txt is")
    parser.add_argument("--image", metavar="FILE", help="a picture whose texts each head is asked for (default: none)")
    parser.add_argument("--head", metavar="LAYER.HEAD", help="of the text tower: print this one alone (default: all)")
    parser.add_argument("--texts_per_head", type=cli.POSITIVE, default=5, help="texts and words shown of each head")
    parser.add_argument("--batch_size", type=cli.SIZE, default=256, help="texts a forward pass")
    cli.add_input_dir(parser)
    cli.add_output_dir(parser, "the result goes", beside_input=True)
    return parser


def main(args) -> None:
    from pathlib import Path

    import torch

    from utils.analysis import text_heads, zeroshot
    from utils.data import captions, datasets, pictures
    from utils.decompose.texts import TextDecomposer
    from utils.models.loading import load_same
    from utils.plots import sides
    from utils.runs import components, files
    from utils.runs.run import Run

    # The pool's terms, the images, and the model.
    pool, texts = args.text_descriptions, zeroshot.read_texts(Path(args.text_dir) / f"{args.text_descriptions}.txt")
    classes = datasets.class_names(args.dataset, args.data_path)
    picture = pictures.read_option(args.image) if args.image else None
    terms, manifest = files.open_text_terms(args.input_dir, pool, args.model, texts)
    run = Run.open(args.input_dir, args.dataset, args.model, args.split)
    run.check_labelled()
    if run.manifest and run.manifest["classes"] != classes:
        raise UserError(f"--data_path {args.data_path}: has other classes than the arrays; give the folder that they "
                        "were made from")
    files.same_weights(run.place.manifest, run.manifest, manifest, run.place.command())
    device = processes.pick_device(args.device)
    clip = load_same(run.manifest or manifest, args.model, args.pretrained, device, args.seed, text_side=True)
    decomposer = TextDecomposer(clip)
    parts = decomposer.components
    heads = {str(part): column for column, part in enumerate(parts) if part.kind == "attn"}
    if args.head:
        components.check_heads(components.parse_heads(args.head), [part for part in parts if part.kind == "attn"])

    # Mean-ablation: the classifier built again without a layer, an MLP, or a head.
    sets = {"baseline": []} | {f"{kind} {layer}": [column for column, part in enumerate(parts)
                                                   if (part.kind, part.layer) == (kind, layer)]
                               for kind in ("attn", "mlp") for layer in sorted({part.layer for part in parts} - {-1})}
    sets |= {head: [column] for head, column in heads.items()}
    representations = run.whole(slice(None))
    of_classes = text_heads.class_terms(decomposer, classes, captions.templates(args.dataset), args.batch_size)
    found = text_heads.accuracies(of_classes, terms.mean(axis=0), representations, run.labels, sets)

    # What each head reads, and which texts it parts.
    reads = text_heads.read_words(decomposer, texts, args.batch_size, args.texts_per_head)
    query = None if picture is None else clip.embed_images(clip.preprocess(picture)[None].to(torch.float32))[0].cpu()
    for head, column in heads.items():
        high, low, share = text_heads.extremes(terms[:, column], texts, args.texts_per_head)
        reads[head] |= {"accuracy_without": found[head], "high": high, "low": low, "share_of_first_component": share}
        if query is not None:
            reads[head]["texts_of_image"] = text_heads.retrieve(terms[:, column], query.numpy(), texts,
                                                                args.texts_per_head)
        if args.head in (None, head):
            print(f"{head}: accuracy without it {found[head]:.1f}; on words {reads[head]['attention']['words']:.2f}; "
                  f"reads {', '.join(entry['word'] for entry in reads[head]['words'])}\n  high: {'; '.join(high)}\n"
                  f"  low: {'; '.join(low)}")
            if query is not None:
                print("  image: " + "; ".join(entry["text"] for entry in reads[head]["texts_of_image"]))
    layers = {name: value for name, value in found.items() if name not in heads}
    print("\n".join(f"{name:<10} {value:.1f}" for name, value in layers.items()))

    path = run.place.path(f"text_heads_{pool}", ".json", args.output_dir)
    cli.save_result(path, {"model": args.model, "dataset": args.dataset, "text_descriptions": pool, "image": args.image,
                           "layers": layers, "heads": reads, "command": cli.command(__file__, get_args_parser(), args)})
    sides.text_heads(layers, {head: found[head] for head in heads}, f"{args.model}, {args.dataset}: zero-shot accuracy "
                     "with a part of the text tower mean-ablated", path.with_suffix(".png"))


if __name__ == "__main__":
    cli.run(main, get_args_parser())
