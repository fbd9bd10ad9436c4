"""Where in the image does the model see what it names? Zero-shot segmentation by patch contributions, and by baselines.

    python compute_segmentations.py --model ViT-L-14 --pretrained laion2b_s32b_b82k \\
        --data_path imagenet_seg/gtsegs_ijcv.mat --save_img
    python compute_segmentations.py --model emojiclip --train_dataset emoji_seg --classifier_dataset emoji --method all
    python compute_segmentations.py --model timm:deit_base_patch16_224 --data_path imagenet_seg/gtsegs_ijcv.mat \\
        --maps output_dir/imagenet_train_maps_timm-deit_base_patch16_224_to_ViT-L-14.safetensors

Reads the classifier that compute_text_projection.py wrote to --classifier_dir. Of every image, the patches that speak
for the predicted class (or the true one) are found and compared with the image's mask (paper section 5). Prints the
mean IoU over foreground and background, the pixel accuracy, the mean average precision, and the IoU and average
precision of the foreground alone; with --method all a table of all methods.

Takes any CLIP, and any model of timm with the --maps that compute_alignment.py made for it; the classifier is then that
of the CLIP that it was mapped to. A mapped model, and a CLIP whose image tower comes from timm or pools by attention,
takes images at its own size alone, cropped by its own transform, and has the method decomposition alone.

Data sets (--train_dataset): imagenet_seg (--data_path gtsegs_ijcv.mat), masks_folder (--data_path DIR with DIR/images
and DIR/masks, files of the same names; 0 in a mask is background), and the embedded emoji_seg.

Writes to --output_dir:

    {dataset}_segmentation_{method}_{model}.json  all figures, and how they were computed
    {dataset}_{method}_precision_{model}.npy      [methods, 1001] over all pixels, at thresholds 0, 0.001, ... 1
    {dataset}_{method}_recall_{model}.npy         [methods, 1001]
    {dataset}_{method}_pictures_{model}/          with --save_img: input, mask, and each method's heat, mask and overlay

`accelerate launch compute_segmentations.py ...`, or torchrun, shares the images out over several GPUs or machines with
a common --output_dir, and leaves the files that one process leaves.
"""
from utils import cli
from utils.data.datasets import WITH_MASKS

METHODS = ("decomposition", "raw_attention", "rollout", "gradcam", "lrp", "partial_lrp", "chefer", "maskclip")


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_model_options(parser)
    parser.add_argument("--maps", metavar="FILE",
                        help="maps of compute_alignment.py from --model to a CLIP, whose classifier is then read; "
                             "needed with timm:NAME (default: --model is the CLIP)")
    parser.add_argument("--image_size", type=cli.POSITIVE, metavar="PIXELS",
                        help="side at which images enter the model and figures are taken, a multiple of the model's "
                             "patch (default: the model's own, 224 for the paper's models)")
    parser.add_argument("--thr", type=cli.FRACTION, default=0.0,
                        help="floor of the scores in the precision and recall arrays, 0 to 1: heat below it counts as "
                             "this; it changes no figure, as masks are cut at their heat's mean")
    parser.add_argument("--train_dataset", default="imagenet_seg", choices=WITH_MASKS, metavar="NAME",
                        help=f"images with masks, one of {', '.join(WITH_MASKS)}")
    parser.add_argument("--data_path", metavar="PATH",
                        help="the .mat file or the folder; emoji_seg needs none (default: none)")
    parser.add_argument("--classifier_dir", default="./output_dir/", metavar="FOLDER", help="where the classifier is")
    parser.add_argument("--classifier_dataset", default="imagenet", metavar="NAME",
                        help="whose classes it has, as given to compute_text_projection.py; emoji goes with emoji_seg")
    parser.add_argument("--method", default="decomposition", choices=(*METHODS, "all"), metavar="NAME",
                        help=f"one of {', '.join(METHODS)}, all")
    parser.add_argument("--target", default="predicted", choices=("predicted", "true"),
                        help="whose logit is explained: of the predicted class, or of the true one, which emoji_seg "
                             "knows")
    parser.add_argument("--mask_resize", choices=("published", "aligned"), metavar="HOW",
                        help="published squeezes the whole mask to a square while the image is cropped; aligned crops "
                             "both (default: published; aligned where the model's own transform is taken)")
    parser.add_argument("--save_img", action="store_true", help="write pictures of every image")
    parser.add_argument("--batch_size", type=cli.POSITIVE, default=8, help="images a forward pass; changes no figure")
    parser.add_argument("--num_workers", type=cli.NATURAL,
                        help="processes that read images (default: one a core, at most 10)")
    cli.add_output_dir(parser, "results go")
    return parser


def main(args) -> None:
    from pathlib import Path

    import torch
    from tqdm import tqdm

    from utils.analysis import segmentation
    from utils.data import datasets
    from utils.models import names
    from utils.runs import files

    data = datasets.load_masks(args.train_dataset, args.data_path)
    state = cli.start_processes(args.device)
    device = state.device
    subject = segmentation.load_subject(args, device)
    vision, weights = subject.decomposer.model, names.weights_hash(subject.decomposer.model)
    prepare, image_size = segmentation.transform(vision, subject.patch_size, args.image_size)
    mask_resize = args.mask_resize or ("published" if subject.patch_size else "aligned")
    classifier, classes = segmentation.load_classifier(args.model, subject.run, subject.width, args.classifier_dir,
                                                       args.classifier_dataset, device)
    truth = segmentation.true_classes(data, classes).to(device) if args.target == "true" else None
    methods = METHODS if args.method == "all" else (args.method,)
    if methods != ("decomposition",):
        segmentation.check_baselines(subject, args.method)
        from utils.analysis import relevance

        towers = relevance.Towers(vision.tower)
    scores = {method: segmentation.Scores(args.thr, device) for method in methods}
    pictures = Path(args.output_dir, f"{args.train_dataset}_{args.method}_pictures_{subject.name}")
    if args.save_img:
        pictures.mkdir(parents=True, exist_ok=True)
    total, size, without_foreground = len(data.names), args.batch_size, {}
    numbers = cli.own_batches(range(-(-total // size)), state)
    data.draw_at(image_size)
    batches = datasets.batches(data, prepare, size, datasets.worker_count(args.num_workers), numbers=numbers,
                               prepare_target=segmentation.mask_transform(prepare, image_size, mask_resize))
    with tqdm(total=sum(min(size, total - number * size) for number in numbers), desc="images", unit="image",
              disable=not state.is_main_process) as progress:
        for number, (pixels, masks, _) in zip(numbers, batches):
            pixels, masks = pixels.to(device), torch.from_numpy(masks).to(device)
            images = slice(number * size, number * size + len(masks))
            maps, target = segmentation.class_maps(subject, pixels, classifier, None if truth is None else truth[images])
            batch = relevance.Batch(towers, pixels, classifier, target) if methods != ("decomposition",) else None
            heats = {}
            for method in methods:
                found = maps if method == "decomposition" else relevance.METHODS[method](batch)
                heats[method] = segmentation.heat_maps(found, image_size)
                scores[method].update(number, heats[method], masks)
            if args.save_img:
                segmentation.save_pictures(pictures, data.names[images], prepare, pixels, masks, heats)
            without_foreground[number] = int((~masks).flatten(1).all(dim=1).sum())
            progress.update(len(masks))

    scores = {method: segmentation.gathered(score, state) for method, score in scores.items()}
    without_foreground = sum(cli.gather(without_foreground).values())
    if not state.is_main_process:
        return
    figures = {method: score.figures() for method, score in scores.items()}
    published = segmentation.PUBLISHED.get((args.model, vision.source), {}) if args.train_dataset == "imagenet_seg" else {}
    path = files.manifest_path(args.output_dir, args.train_dataset, "segmentation", args.method, subject.name)
    with files.Writer(path) as writer:
        for score in scores.values():
            for what, values in zip(("precision", "recall"), score.curve()):
                name = f"{args.method}_{what}"
                writer.append(files.term_path(args.output_dir, args.train_dataset, name, subject.name), values[None])
        writer.finish({"model": args.model, "pretrained": vision.source, "weights_sha256": weights, **subject.about,
                       "dataset": args.train_dataset, "images": total, "images_without_foreground": without_foreground,
                       "classifier": args.classifier_dataset, "classes": classifier.shape[1],
                       "options": {"image_size": image_size, "mask_resize": mask_resize, "thr": args.thr,
                                   "target": args.target, "batch_size": args.batch_size, "seed": args.seed},
                       "methods": {name: found | {"published_percent": published.get(name)} for name, found in figures.items()},
                       "definitions": segmentation.DEFINITIONS})
    for line in segmentation.report(figures, published):
        print(line)
    print(f"{total} images -> {path}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
