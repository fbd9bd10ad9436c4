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

Of models of timm (arXiv 2406.01583), attn is [b, c, d] where the number of heads differs from block to block, convolution
blocks are in {dataset}_conv_{model}.npy, and {dataset}_components_{model}.json says which term is whose; cls_attn is
there for models with a class token alone.

Of another split than the usual one (--split train), the files are named {dataset}_{split}_... .
attn, mlp and conv of an image sum to its unit-length representation. Nothing incomplete is left under these names.
"""
from utils.datasets import add_data_options, add_split_option
from utils.models import add_model_options
from utils.script import UserError, make_parser, run

TOLERANCE = 1e-4  # of the sum of an image's terms against the model's own output


def get_args_parser():
    parser = make_parser(__doc__)
    add_model_options(parser)
    add_data_options(parser)
    add_split_option(parser)
    parser.add_argument("--batch_size", type=int, default=2, help="images a forward pass (default: %(default)s)")
    parser.add_argument("--num_workers", type=int, help="processes that read images (default: one a core, at most 10)")
    parser.add_argument("--output_dir", default="./output_dir", metavar="FOLDER",
                        help="where the arrays go (default: %(default)s)")
    parser.add_argument("--save_dtype", default="float32", choices=("float32", "float16"),
                        help="type of the arrays on disk; float16 halves them (default: %(default)s)")
    parser.add_argument("--skip_bad_images", action="store_true",
                        help="go on without images that cannot be read, and list them (default: stop at the first)")
    parser.add_argument("--check", action="store_true",
                        help="only decompose a few random images, print the error against the model's own output and the "
                             f"cost over a plain forward pass, and fail above {TOLERANCE:g} (default: off)")
    return parser


def main(args) -> None:
    import torch
    from tqdm import tqdm

    from utils import arrays, datasets, models
    from utils.decomposition import check, reader
    from utils.script import pick_device

    if not args.check:  # a wrong path is found before a large model is loaded
        images = datasets.load_images(args.dataset, args.data_path, split=args.split)
    device = pick_device(args.device)
    vision = models.load_vision(args.model, args.pretrained, device, args.seed)
    decompose = reader(vision)
    noise = torch.randn(4, 3, *vision.image_size, generator=torch.Generator().manual_seed(args.seed)).to(device)
    found = check(vision.encode, decompose, noise, repeats=5 if args.check else 1)
    if args.check:
        print(f"largest error: {found['error']:.2e}\ncost over a plain forward pass: {found['cost']:.2f}")
    if not found["error"] <= TOLERANCE:
        raise UserError(f"the terms of {args.model} miss the model's own output by {found['error']:.2e}; "
                        "this version of its library is not known, and its decomposition would be wrong")
    if args.check:
        return

    images.draw_at(vision.image_size[0])
    name = arrays.run_name(args.dataset, args.split)

    def path(what: str):
        return arrays.term_path(args.output_dir, name, what, vision.name)

    count, skipped = 0, []
    with arrays.Writer(arrays.manifest_path(args.output_dir, name, vision.name)) as writer, \
            tqdm(total=len(images.samples), desc="images", unit="image") as progress:
        for pixels, labels, bad in datasets.batches(images, vision.preprocess, args.batch_size,
                                                    datasets.worker_count(args.num_workers), args.skip_bad_images):
            skipped += bad
            progress.update(len(labels) + len(bad))
            if not len(labels):
                continue
            parts = decompose(pixels.to(device))
            for what, terms in parts.arrays.items():
                writer.append(path(what), terms.cpu().numpy(), args.save_dtype)
            writer.append(path("labels"), labels, "int64")
            count += len(labels)
        if not count:
            raise UserError(f"--data_path {args.data_path}: none of its {len(skipped)} images can be read")
        if parts.arrays["attn"].ndim == 3 or "conv" in parts.arrays:  # the shapes do not say which term is whose
            arrays.write_json(path("components").with_suffix(".json"), parts.names)
        writer.finish({"model": args.model, "pretrained": vision.source, "weights_sha256": models.weights_hash(vision),
                       "dataset": args.dataset, "split": args.split, "images": count, "classes": images.classes,
                       "precision": "float32", "skipped_images": [error for _, error in skipped],
                       "skipped_indices": [index for index, _ in skipped],
                       "options": {"save_dtype": args.save_dtype, "batch_size": args.batch_size, "seed": args.seed}})
    for _, error in skipped:
        print(f"skipped: {error}")
    print(f"{count} images -> {path('attn')}")


if __name__ == "__main__":
    run(main, get_args_parser())
