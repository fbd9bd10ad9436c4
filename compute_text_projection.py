"""Make the zero-shot classifier of a data set.

    python compute_text_projection.py --dataset imagenet --model ViT-H-14 --pretrained laion2b_s32b_b79k
    python compute_text_projection.py --dataset emoji --model emojiclip

Writes {dataset}_classifier_{model}.npy [d, classes] to --output_dir: for each class the embeddings of
its prompts, normalised, averaged and normalised again. Class names of imagefolder, CIFAR10, CIFAR100 and cub
come with their images (--data_path). Prompts are open_clip's 80 ImageNet templates, and short ones for the emoji sets.
"""
from utils import cli, processes
from utils.data.datasets import NAMES


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_model_options(parser)
    cli.add_model_settings(parser)
    cli.add_data_options(parser, NAMES)
    parser.add_argument("--batch_size", type=cli.SIZE, default=800, help="prompts a forward pass")
    cli.add_output_dir(parser, "the classifier goes")
    return parser


def main(args) -> None:
    from utils.analysis import zeroshot
    from utils.data import captions, datasets
    from utils.runs import files

    cli.loading(args.model, args.pretrained)
    classes = datasets.class_names(args.dataset, args.data_path)
    from utils.models.loading import load

    device = processes.pick_device(args.device)
    clip = load(args.model, args.pretrained, device, args.seed, True, cli.model_settings(args))
    columns = zeroshot.classifier(clip, classes, captions.templates(args.dataset), args.batch_size)
    path = files.term_path(args.output_dir, args.dataset, "classifier", clip.name)
    files.write_arrays(files.manifest_path(args.output_dir, args.dataset, "classifier", clip.name), {path: columns}, {
        "model": args.model, "pretrained": clip.source, "weights_sha256": clip.weights_hash,
        "model_settings": {"quick_gelu": clip.settings.get("quick_gelu")},
        "dataset": args.dataset, "classes": classes, "options": {"seed": args.seed},
        "command": cli.command(__file__, get_args_parser(), args)})
    print(f"{cli.counted(len(classes), 'class', 'classes')} -> {path}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
