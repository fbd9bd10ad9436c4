"""Decompose the image representations of a data set, exactly, at the cost of a forward pass.

    python compute_prs.py --dataset imagenet --model ViT-H-14 --pretrained laion2b_s32b_b79k --data_path DIR
    python compute_prs.py --dataset emoji --model emojiclip          # nothing to download
    python compute_prs.py --dataset imagenet --model timm:vit_base_patch14_dinov2.lvd142m --data_path DIR
    python compute_prs.py --model ViT-L-14 --pretrained none --check # is this model decomposed exactly?

Writes to --output_dir, for b images, l layers, h heads and joint width d (paper section 3):

    {dataset}_attn_{model}.npy      [b, l, h, d]  what each attention head contributes
    {dataset}_mlp_{model}.npy       [b, l+1, d]   the embedded class token, then what each MLP contributes
    {dataset}_cls_attn_{model}.npy  [b, l, d]     the part of attn that comes from the class token itself
    {dataset}_labels.npy            [b]
    {dataset}_{model}.json          what made them

Of models of timm (arXiv 2406.01583), attn is [b, c, d] where blocks differ, as in their number of heads, convolution
blocks are in {dataset}_conv_{model}.npy, and {dataset}_components_{model}.json says which term is whose;
cls_attn is there for models with a class token alone.

Of another split than the usual one (--split train), the files are named {dataset}_{split}_... .
attn, mlp and conv of an image sum to its unit-length representation. Nothing incomplete is left under these names.

With --compact, attn is kept as {dataset}_heads_{model}.npy [b, l, h, head width] and {dataset}_scalars_{model}.npy
[b, 3], of which, with {dataset}_readout_{model}.npy, it is made again as it is read; mlp is [b, 2, d], all MLPs in one.

A run that was killed goes on with --resume, and ends with the same bytes. `accelerate launch compute_prs.py ...`, or
torchrun, runs it on several GPUs or machines with a common --output_dir, and leaves the files that one process leaves.
Where the time went is in {dataset}_time_{model}.json.
"""
from utils import cli, processes
from utils.cli import UserError
from utils.data.datasets import NAMES
from utils.data.pictures import READINGS

# Of the sum of an image's terms against the model's own output, by the precision of the model.
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_model_options(parser)
    cli.add_model_settings(parser)
    cli.add_data_options(parser, NAMES)
    cli.add_split_option(parser)
    parser.add_argument("--streaming", action="store_true",
                        help="of --dataset huggingface: fetch images as they are needed, and keep none")
    parser.add_argument("--reading", choices=READINGS,
                        help="how pictures are read: 'seen' turns them upright by their EXIF orientation and lays "
                             "transparent parts on white, 'published' does neither (default: published for the "
                             "published data sets, seen for folders, shards and data sets of your own)")
    parser.add_argument("--image_key", metavar="KEY",
                        help="of --dataset webdataset: which image of a sample, such as rgb.png of 0001.rgb.png "
                             "(default: its only one)")
    parser.add_argument("--batch_size", type=cli.SIZE,
                        help="images a forward pass (default: 4 to 64 on a CPU, 8 to 256 elsewhere, by the model's "
                             "size)")
    parser.add_argument("--num_workers", type=cli.NATURAL,
                        help="processes that read images (default: one a core, at most 10)")
    cli.add_output_dir(parser, "the arrays go")
    parser.add_argument("--precision", default="float32", choices=tuple(TOLERANCE),
                        help="precision of the model; terms are summed up in float32 in any case")
    cli.add_register_options(parser)
    parser.add_argument("--compile", action="store_true", help="let torch compile the model first")
    parser.add_argument("--save_dtype", default="float32", choices=("float32", "float16"),
                        help="type of the arrays on disk; float16 halves them")
    parser.add_argument("--compact", action="store_true",
                        help="keep each head's output before its output projection, and all MLPs as one: a twelfth of "
                             "the disk, and the same results from every step that needs no single MLP")
    parser.add_argument("--moments_only", action="store_true",
                        help="keep means and second moments over images alone: enough for TextSpan, less than a "
                             "hundredth of the disk; in one piece and one process")
    parser.add_argument("--skip_bad_images", action="store_true",
                        help="go on without images that cannot be read, and with class folders that are empty, and "
                             "list them (default: stop at the first)")
    parser.add_argument("--resume", action="store_true",
                        help="go on with a run that was cut off; one that is complete is left as it is (default: "
                             "begin anew)")
    parser.add_argument("--check", action="store_true",
                        help="only decompose a few random images, print the error against the model's own output and "
                             f"the cost over a plain forward pass, and fail above {TOLERANCE['float32']:g}")
    parser.add_argument("--verify", action="store_true",
                        help="only read all arrays in --output_dir that have a manifest, whole, and compare them with "
                             "the checksums there")
    return parser


def main(args) -> None:
    from utils.data import datasets, loader
    from utils.models import names
    from utils.runs import files, writer

    if args.verify:
        print(*files.verify(args.output_dir), sep="\n")
        return

    # What can be wrong is found before a large model is loaded.
    if args.moments_only and (args.compact or args.resume or processes.process_count() > 1):
        raise UserError("--moments_only keeps nothing before its end, and runs in one process; "
                        "leave --compact and --resume out")
    options = {"save_dtype": args.save_dtype, "batch_size": args.batch_size, "seed": args.seed,
               "storage": "compact" if args.compact else "moments" if args.moments_only else "full"}
    about = {"model": args.model, "dataset": args.dataset, "split": args.split, "precision": args.precision,
             "options": options}
    name = files.run_name(args.dataset, args.split)
    if not args.check:
        images = datasets.load_images(args.dataset, args.data_path, split=args.split, streaming=args.streaming,
                                      reading=args.reading, image_key=args.image_key,
                                      empty_classes=args.skip_bad_images)
        about |= {"reading": images.reading, "image_key": args.image_key}
        manifest = files.manifest_path(args.output_dir, name, names.file_name(args.model))
        if begun := writer.read_begun(manifest) if args.resume else None:
            options["batch_size"] = min(args.batch_size or begun["options"].get("batch_size", 1), len(images.samples))
            writer.check_same(manifest, begun, {**about, "split": name})

    cli.loading(args.model, args.pretrained)

    import torch

    from utils.decompose import registers
    from utils.decompose.dataset import write_run
    from utils.decompose.decomposer import Decomposer
    from utils.models.loading import load

    # The model and its decomposition, which is compared with the model's own output.
    state = processes.start_processes(args.device)
    model = load(args.model, args.pretrained, state.device, args.seed, settings=cli.model_settings(args))
    some = registers.read(args.registers, args.artefacts, args.output_dir, model)
    decomposer = Decomposer(model, args.precision, args.compile, some)
    noise = torch.randn(4, 3, *model.image_size, generator=torch.Generator().manual_seed(args.seed)).to(state.device)
    found = decomposer.check(noise, repeats=5 if args.check else 2)
    if args.check:
        print(f"largest error: {found['error']:.2e}\ncost over a plain forward pass: {found['cost']:.2f}")
    if not found["error"] <= TOLERANCE[args.precision]:
        raise UserError(f"the terms of {args.model} miss the model's own output by {found['error']:.2e}; "
                        "this version of its library is not known, and its decomposition would be wrong")
    if args.check:
        return

    # All images.
    images.draw_at(model.image_size[0])
    about |= {"pretrained": model.source, "weights_sha256": model.weights_hash, "model_settings": model.settings,
              "classes": images.classes, "registers": some and some.record(),
              "command": cli.command(__file__, get_args_parser(), args)}
    written = write_run(decomposer, images, args.output_dir, name, about, max(1.0, found["cost"]), state,
                        loader.worker_count(args.num_workers), args.skip_bad_images, args.resume)
    if written is None:
        print(f"{manifest}: is complete; nothing to do")
    elif state.is_main_process:
        for folder in images.empty or ():
            print(f"skipped: the class folder {folder}, which has no images")
        for _, error in written[1]:
            print(f"skipped: {error}")
        heads = any(component.kind == "attn" for component in decomposer.components)
        what = ("attn" if heads else "conv") if options["storage"] == "full" else "readout"
        print(f"{cli.counted(written[0], 'image')} -> "
              f"{files.term_path(args.output_dir, name, what, model.name)}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
