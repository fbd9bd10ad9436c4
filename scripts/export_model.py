"""Write a language model, an adapter merged into it, as a folder of safetensors that any engine can serve.

    python -m scripts.export_model --model_name output_dir/emoji_adapter --output_dir output_dir/emoji_merged
    vllm serve output_dir/emoji_merged --dtype float32 --generation-config vllm

An adapter is merged in float32. By default vLLM casts such weights to 16 bits, which rounds most of a small update
away: hence --dtype float32. In half the memory, the base in 16 bits with the adapter beside it keeps the update, too:

    vllm serve BASE --enable-lora --lora-modules NAME=output_dir/emoji_adapter --generation-config vllm
"""
from utils import cli


def get_args_parser():
    parser = cli.make_parser(__doc__)
    parser.add_argument("--model_name", default="smollm2-135m", metavar="NAME",
                        help="folder of an adapter that train.py wrote, or a language model")
    parser.add_argument("--base_model_name", metavar="NAME",
                        help="language model under the adapter (default: the one it was trained on)")
    parser.add_argument("--output_dir", required=True, metavar="FOLDER", help="where the model goes")
    return parser


def main(args) -> None:
    import torch

    from utils.language import loading

    base, adapter = loading.resolve(args.model_name, args.base_model_name)
    loading.save_merged(base, adapter, torch.bfloat16, args.output_dir)
    print(f"{args.model_name} -> {args.output_dir}"
          + ("; serve it with --dtype float32, in 16 bits most of a small update is rounded away" if adapter else ""))


if __name__ == "__main__":
    cli.run(main, get_args_parser())
