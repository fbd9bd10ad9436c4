"""Write a language model, an adapter merged into it, as a folder of safetensors that any engine can serve.

    python -m scripts.export_model --model_name smollm2-135m --output_dir output_dir/smollm2-135m
    vllm serve output_dir/smollm2-135m --generation-config vllm
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
    print(f"{args.model_name} -> {args.output_dir}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
