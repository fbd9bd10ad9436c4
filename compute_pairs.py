"""Which word of a text speaks to which patch of a picture?

    python compute_pairs.py --model ViT-L-14 --pretrained laion2b_s32b_b82k --image photo.jpg \\
        --text "a dog on a red sofa" --output pairs.png
    python compute_pairs.py --model emojiclip --image photo.png --text "an owl on a red background" \\
        --against "an owl on a blue background" --top_heads 3

The image's unit representation is a sum of terms, and so is the text's; their cosine similarity is the sum over all
pairs of them, exactly and without a reference input. Rows are the patches, the class token as a source, the MLPs and
the embedding; columns are the words, the start and end of the text as sources, the MLPs and the start embedding of the
token that is read. Over all columns, the patches sum to the heat map of compute_heatmaps.py. --against computes the
pairs of a second text, to compare.

Prints each word's share through patches and through the rest. Writes to --output, by default
./output_dir/{picture}_pairs.png: the words, each under its heat map, on one scale; and beside it, as JSON, cosine,
rows, columns, pairs [rows, columns], and heads: pairs of a head of the image tower and one of the text tower.
--top_heads lists for each word the pairs of heads with the largest parts of it, by the names of --names where it is
given.
"""
from utils import cli, processes


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_model_options(parser)
    cli.add_model_settings(parser)
    parser.add_argument("--image", required=True, metavar="FILE", help="a picture")
    parser.add_argument("--text", required=True, metavar="TEXT", help="a text")
    parser.add_argument("--against", metavar="TEXT", help="another text, to compare with (default: none)")
    parser.add_argument("--top_heads", type=cli.NATURAL, default=0, metavar="N",
                        help="pairs of heads to list for each word")
    parser.add_argument("--names", metavar="FILE.json",
                        help="names of the image tower's heads, by compute_head_names.py, for --top_heads (default: "
                             "none)")
    parser.add_argument("--output", metavar="FILE.png",
                        help="where the picture goes (default: ./output_dir/{picture}_pairs.png)")
    return parser


def main(args) -> None:
    from pathlib import Path

    from utils.analysis.names import naming
    from utils.data import pictures

    # The picture and the model; a wrong file is found before a large model is loaded.
    args.output = args.output or f"./output_dir/{Path(args.image).stem}_pairs.png"
    pictures.check_output(args.output, args.image)
    picture = pictures.read_option(args.image)
    named = naming.read_file(Path(args.names))[0] if args.names else {}
    names = {str(head): row["role"] for head, row in named.items()}
    cli.loading(args.model, args.pretrained)

    from utils.analysis import heatmaps, pairs, zeroshot
    from utils.decompose.decomposer import Decomposer
    from utils.decompose.texts import TextDecomposer
    from utils.models.loading import load
    from utils.plots import sides

    device = processes.pick_device(args.device)
    model = load(args.model, args.pretrained, device, args.seed, True, cli.model_settings(args))
    decomposer, texts = Decomposer(model), TextDecomposer(model)
    if args.names:
        naming.read_file(Path(args.names), model.weights_hash)
    said = [text for text in (args.text, args.against) if text is not None]
    zeroshot.check_texts(model, said, "--text and --against", [repr(text) for text in said])

    # Every pair of a patch and a word.
    pixels, shown = heatmaps.prepare(picture, model, decomposer.patch_size)
    found = [pairs.compute(decomposer, texts, pixels, text) for text in said]
    records = []
    for one in found:
        print(f"{one.text}\n{pairs.table(one)}\n")
        records.append({"text": one.text, **pairs.record(one),
                        "top_heads": pairs.top_heads(one, args.top_heads, names)})
        for word in records[-1]["top_heads"][:one.words if args.top_heads else 0]:
            ways = [f"{way['image_head']}{' (' + way['name'] + ')' if way['name'] else ''} x {way['text_head']} "
                    f"{way['value']:+.4f}" for way in word["pairs"]]
            print(f"  {word['word']}: {', '.join(ways)}")
    if args.against:
        print(f"\nthe first less the second: {found[0].cosine - found[1].cosine:+.4f}")

    path = Path(args.output)
    sides.pairs(shown, [(f"{one.text} ({one.cosine:.3f})", pairs.panels(one)) for one in found],
                f"{args.model}: what each patch and each word add together", path)
    cli.save_result(path.with_suffix(".json"), {
        "model": args.model, "pretrained": model.source, "weights_sha256": model.weights_hash,
        "model_settings": model.settings, "image": args.image,
        "pixels": list(pixels.shape[-2:]), "grid": list(found[0].grid), **records[0],
        **({"against": records[1]} if args.against else {})})
    print(f"{found[0].values.shape[0]} rows x {found[0].values.shape[1]} columns -> {path}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
