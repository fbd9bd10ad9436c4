"""Map the components of any decomposed model to a CLIP's joint space, where texts can name them.

    python compute_prs.py --dataset imagenet --split train --model timm:vit_base_patch14_dinov2.lvd142m --data_path DIR
    python compute_prs.py --dataset imagenet --split train --model ViT-L-14 --pretrained laion2b_s32b_b82k \\
        --data_path DIR
    python compute_alignment.py --dataset imagenet --model timm:vit_base_patch14_dinov2.lvd142m --clip ViT-L-14
    python compute_alignment.py --dataset emoji --model timm:local-dir:models/emojivit --apply test # after these

Trains one linear map a component and one bias (arXiv 2406.01583): the sum of the mapped components should have the
direction of the CLIP's representation of the same image (1 - cosine), and every map W should be close to orthogonal
(--penalty_weight times d x mean((W'W - I)^2), averaged over components). Reads what compute_prs.py wrote to --input_dir
for both models, of the same data set and --split. A tenth of the images is held out, and the epoch kept that has the
highest cosine there.

Prints the cosine at the start and after each epoch, and writes to --output_dir, {dataset} with its split as everywhere:

    {dataset}_maps_{model}_to_{clip}.safetensors      weight [components, k, d] (x W; attn, mlp, then conv), bias [d]
    {dataset}_maps_{model}_to_{clip}.json             the training
    {dataset}_{attn|mlp|conv}_{model}-as-{clip}.npy   the mapped components of the --apply splits: a run like any other

Scripts that read arrays alone take the mapped run as --model {model}-as-{clip}; texts and classifiers are the CLIP's.
Heat maps and segmentation load the model itself, and take --maps; queries by picture do not take it. Its terms sum to
unit length; it has no cls_attn, which sums heads whose maps differ. Here, --maps FILE applies maps that are there
already, also to another --dataset.
"""
from utils import cli, processes
from utils.data.datasets import NAMES


def get_args_parser():
    parser = cli.make_parser(__doc__)
    parser.add_argument("--model", default="timm:vit_base_patch14_dinov2.lvd142m", metavar="NAME",
                        help="whose components are mapped, as given to compute_prs.py")
    parser.add_argument("--clip", default="emojiclip", metavar="NAME",
                        help="CLIP to whose space they are mapped, as its --model was given to compute_prs.py")
    parser.add_argument("--dataset", default="imagenet", choices=NAMES, metavar="NAME",
                        help="as given to compute_prs.py")
    parser.add_argument("--split", type=str, default="train", metavar="NAME",
                        help="split that the maps are trained on; '' for all of an imagefolder")
    parser.add_argument("--apply", type=str, nargs="+", metavar="SPLIT",
                        help="splits whose components are mapped (default: test, val of imagenet, all of an "
                             "imagefolder, where its arrays are there)")
    parser.add_argument("--maps", metavar="FILE", help="apply these maps, and train none (default: train)")
    cli.add_input_dir(parser)
    cli.add_output_dir(parser, "maps and mapped arrays go")
    parser.add_argument("--start", default="ridge", choices=("ridge", "random"),
                        help="maps to begin with: the ridge solution of the whole representation for every component, "
                             "which reaches a higher cosine, or random ones, which end closer to orthogonal")
    parser.add_argument("--epochs", type=cli.POSITIVE, default=2, help="passes over the images")
    parser.add_argument("--lr", type=cli.RATE, default=3e-4, help="Adam's learning rate")
    parser.add_argument("--batch_size", type=cli.SIZE, default=32, help="images a step")
    parser.add_argument("--penalty_weight", type=cli.WEIGHT, default=1.0,
                        help="weight of the penalty on maps that are not orthogonal")
    parser.add_argument("--seed", type=cli.SEED, default=0,
                        help="seed of the held-out images, their order, and a random start")
    cli.add_device(parser)
    return parser


def main(args) -> None:
    from pathlib import Path

    from utils.analysis import alignment
    from utils.models import names as models
    from utils.runs import files
    from utils.runs.run import Run

    def there(model: str, split: str | None) -> bool:
        return files.Place(args.input_dir, args.dataset, model, split).manifest.is_file()

    needed = [] if args.maps else [(args.model, args.split), (args.clip, args.split)]
    needed += [(args.model, split) for split in args.apply or ([None] if args.maps else [])]
    files.check_there([files.Place(args.input_dir, args.dataset, *own) for own in needed])
    device, clip = processes.pick_device(args.device), models.file_name(args.clip)

    def opened(model: str, split: str | None) -> Run:
        return Run.open(args.input_dir, args.dataset, model, split, needs="components")

    splits = args.apply or ([None] if args.maps or there(args.model, None) else [])
    sources = {split: opened(args.model, split) for split in splits}
    targets = {split: opened(args.clip, split) if there(args.clip, split) else None for split in splits}
    for split in splits:
        if targets[split]:
            alignment.same_images(sources[split], targets[split])
    if args.maps:
        path = Path(args.maps)
    else:
        source, target = opened(args.model, args.split), opened(args.clip, args.split)
        alignment.same_images(source, target)
        weight, bias, history = alignment.train(source, alignment.sums(target), args.start, args.epochs, args.lr,
                                                args.batch_size, args.penalty_weight, args.seed, device)
        best = max(history[1:], key=lambda entry: entry["validation_cosine"])
        for entry in history:
            print(f"epoch {entry['epoch']}: cosine {entry['train_cosine']:.4f}, "
                  f"{entry['validation_cosine']:.4f} held out; penalty {entry['penalty']:.4f}"
                  + ("" if entry["epoch"] else f" ({args.start} start)"))
        chosen = {name: getattr(args, name)
                  for name in ("start", "epochs", "lr", "batch_size", "penalty_weight", "seed")}
        about = {**alignment.describe_pair(source, target), "dataset": args.dataset,
                 "split": args.split, "images": len(source), "best": best, "options": chosen}
        path = source.place.path("maps", f"_to_{clip}.safetensors", args.output_dir)
        alignment.save(path, weight, bias, about)
        cli.save_result(path.with_suffix(".json"), {**about, "history": history})
        print(f"-> {path}")

    trained, command = alignment.load(path), cli.command(__file__, get_args_parser(), args)
    for split, source in sources.items():
        alignment.check(trained, source, clip, targets[split])
    for split, source in sources.items():
        place, cosine = alignment.apply(trained, source, args.output_dir, targets[split], device, command)
        print(f"{place.name}: {len(source)} images" + ("" if cosine is None else f", cosine {cosine:.4f}")
              + f" -> {place.path('attn')}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
