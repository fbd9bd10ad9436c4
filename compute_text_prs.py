"""Decompose the text representations of a pool, exactly, at less than the cost of a forward pass.

    python compute_text_prs.py --data_path text_descriptions/image_descriptions_general.txt --model ViT-L-14 \\
        --pretrained laion2b_s32b_b82k
    python compute_text_prs.py --data_path text_descriptions/emoji_descriptions.txt --model emojiclip

Writes to --output_dir, for m texts, l layers and h heads of the text tower, and joint width d:

    {pool}_text_attn_{model}.npy  [m, l, h, d]  what each attention head contributes
    {pool}_text_mlp_{model}.npy   [m, l+1, d]   the start embedding of the token that is read, then what each MLP does
    {pool}_text_{model}.json      what made them

Both sum to each text's unit representation. Of a model whose text projection has a bias (SigLIP), the first entry of
mlp holds it, and {pool}_text_bias_{model}.npy [m, d] says which part of that entry it is. compute_text_heads.py reads
these files: which heads matter, what they read, and which texts they tell apart.
"""
from utils import cli, processes
from utils.cli import UserError


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_model_options(parser)
    cli.add_model_settings(parser)
    parser.add_argument("--data_path", default="text_descriptions/image_descriptions_general.txt", metavar="FILE.txt",
                        help="the text pool, one description a line")
    parser.add_argument("--batch_size", type=cli.SIZE, default=256, help="texts a forward pass")
    cli.add_output_dir(parser, "the arrays go")
    return parser


def main(args) -> None:
    from pathlib import Path

    import numpy as np
    from tqdm import tqdm

    from utils.analysis import zeroshot
    from utils.runs import files

    pool = Path(args.data_path)
    texts = zeroshot.read_pool(pool)
    cli.loading(args.model, args.pretrained)

    # The model, whose terms are compared with its own output.
    from utils.decompose.texts import TextDecomposer
    from utils.models.loading import load

    device = processes.pick_device(args.device)
    clip = load(args.model, args.pretrained, device, args.seed, True, cli.model_settings(args))
    zeroshot.check_lines(clip, texts, pool)
    decomposer = TextDecomposer(clip)
    error = decomposer.check(texts[:args.batch_size])
    if not error <= 1e-4:
        raise UserError(f"the terms of the texts of {args.model} miss the model's own output by {error:.2e}; this "
                        "version of its library is not known, and its decomposition would be wrong")

    # All texts.
    found = {what: [] for what in ("text_attn", "text_mlp", "text_bias")}
    for start in tqdm(range(0, len(texts), args.batch_size), "texts", unit="batch", delay=3):
        for what, values in decomposer.arrays(texts[start:start + args.batch_size]).items():
            found[f"text_{what}"].append(values)

    paths = {what: files.term_path(args.output_dir, pool.stem, what, clip.name) for what in found}
    manifest = files.manifest_path(args.output_dir, pool.stem, "text", clip.name)
    files.write_arrays(manifest, {paths[what]: np.concatenate(values) for what, values in found.items() if values}, {
        "model": args.model, "pretrained": clip.source, "weights_sha256": clip.weights_hash,
        "model_settings": {"quick_gelu": clip.settings.get("quick_gelu")}, "texts": len(texts),
        "texts_sha256": files.texts_hash(texts), "largest_error": error, "options": {"seed": args.seed},
        "command": cli.command(__file__, get_args_parser(), args)})
    print(f"largest error: {error:.2e}\n{len(texts)} texts -> {paths['text_attn']}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
