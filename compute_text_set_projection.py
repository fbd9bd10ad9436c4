"""Embed a text pool: a file with one description a line.

    python compute_text_set_projection.py --data_path text_descriptions/image_descriptions_general.txt \\
        --model ViT-H-14 --pretrained laion2b_s32b_b79k
    python compute_text_set_projection.py --data_path text_descriptions/emoji_descriptions.txt --model emojiclip

Writes {pool}_{model}.npy [m, d] to --output_dir: the unit embedding of every line.
"""
from utils import cli, processes


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_model_options(parser)
    cli.add_model_settings(parser)
    parser.add_argument("--data_path", default="text_descriptions/image_descriptions_general.txt", metavar="FILE.txt",
                        help="the text pool")
    parser.add_argument("--batch_size", type=cli.SIZE, default=2048, help="texts a forward pass")
    cli.add_output_dir(parser, "the embeddings go")
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

    from utils.models.loading import load

    state = processes.start_processes(args.device)
    clip = load(args.model, args.pretrained, state.device, args.seed, True, cli.model_settings(args))
    zeroshot.check_lines(clip, texts, pool)
    batches = [texts[start:start + args.batch_size] for start in range(0, len(texts), args.batch_size)]
    found = {number: clip.embed_texts(batches[number]).cpu().numpy()
             for number in tqdm(processes.own_batches(range(len(batches)), state), "texts", unit="batch")}
    embeddings = np.concatenate(list(processes.gather(found).values()))
    if not state.is_main_process:
        return
    path = files.text_path(args.output_dir, pool.stem, clip.name)
    files.write_arrays(files.manifest_path(args.output_dir, pool.stem, clip.name), {path: embeddings}, {
        "model": args.model, "pretrained": clip.source, "weights_sha256": clip.weights_hash,
        "model_settings": {"quick_gelu": clip.settings.get("quick_gelu")},
        "texts": len(texts), "texts_sha256": files.texts_hash(texts), "options": {"seed": args.seed},
        "command": cli.command(__file__, get_args_parser(), args)})
    print(f"{cli.counted(len(texts), 'text')} -> {path}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
