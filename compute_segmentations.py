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
and DIR/masks, files of the same names; 0 in a mask is background), and the embedded emoji_seg. Writes to --output_dir:

    {dataset}_segmentation_{method}_{model}.json       all figures, and how they were computed
    {dataset}_{method}_{precision|recall}_{model}.npy  [methods, 1001] over all pixels, at thresholds 0, 0.001, ... 1
    {dataset}_{method}_pictures_{model}/               with --save_img: sheet.png of some images; all in the folders
                                                       input, mask, and each method's heat, mask, overlay

`accelerate launch compute_segmentations.py ...`, or torchrun, shares the images out over several GPUs or machines with
a common --output_dir, and leaves the files that one process leaves.
"""
from utils import cli, processes
from utils.analysis.segmentation import METHODS, NEURONS
from utils.data.datasets import WITH_MASKS


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_model_options(parser)
    cli.add_model_settings(parser)
    parser.add_argument("--maps", metavar="FILE",
                        help="maps of compute_alignment.py from --model to a CLIP, whose classifier is then read; "
                             "needed with a model without texts (default: --model is the CLIP)")
    parser.add_argument("--image_size", type=cli.PIXELS, metavar="PIXELS",
                        help="side at which images enter the model and figures are taken, a multiple of the model's "
                             "patch (default: the model's own, 224 for the paper's models)")
    parser.add_argument("--thr", type=cli.FRACTION, default=0.0,
                        help="floor of the scores in the precision and recall arrays, 0 to 1: heat below it counts as "
                             "this; it changes no figure, as masks are cut at their heat's mean")
    parser.add_argument("--train_dataset", default="imagenet_seg", choices=WITH_MASKS, metavar="NAME",
                        help=f"images with masks, one of {', '.join(WITH_MASKS)}")
    parser.add_argument("--data_path", metavar="PATH", help="the .mat file or the folder of masks (default: none)")
    parser.add_argument("--classifier_dir", default="./output_dir/", metavar="FOLDER", help="where the classifier is")
    parser.add_argument("--classifier_dataset", default="imagenet", metavar="NAME",
                        help="whose classes it has, as given to compute_text_projection.py; emoji goes with emoji_seg")
    parser.add_argument("--method", default="decomposition", choices=(*METHODS, NEURONS, "all"), metavar="NAME",
                        help=f"one of {', '.join(METHODS)}, all of these as all; or {NEURONS}, of which "
                             "compute_second_order.py wrote the fit to --classifier_dir")
    parser.add_argument("--target", default="predicted", choices=("predicted", "true"),
                        help="whose logit is explained: of the predicted class, or of the true one of emoji_seg")
    parser.add_argument("--mask_resize", choices=("published", "aligned"), metavar="HOW",
                        help="published squeezes the whole mask to a square while the image is cropped; aligned crops "
                             "both (default: published; aligned where the model's own transform is taken)")
    cli.add_register_options(parser)
    parser.add_argument("--save_img", action="store_true", help="write pictures of every image")
    parser.add_argument("--batch_size", type=cli.SIZE, default=8, help="images a forward pass; changes no figure")
    parser.add_argument("--num_workers", type=cli.NATURAL,
                        help="processes that read images (default: one a core, at most 10)")
    cli.add_output_dir(parser, "results go")
    return parser


def main(args) -> None:
    from utils.data import datasets, loader, masks

    # Images with masks, the model, and the classifier whose logits are explained.
    data = datasets.load_masks(args.train_dataset, args.data_path)
    cli.loading(args.model, args.pretrained)

    import torch
    from tqdm import tqdm

    from utils.analysis import alignment
    from utils.analysis.segmentation import figures, methods
    from utils.decompose import registers
    from utils.report import experiments

    state = processes.start_processes(args.device)
    model, maps = alignment.load_model(args.model, args.pretrained, args.maps, state.device, args.seed,
                                       cli.model_settings(args))
    classifier, classes = methods.load_classifier(args.classifier_dir, args.classifier_dataset, args.model, model, maps)
    truth = torch.tensor(masks.true_classes(data, classes)).to(state.device) if args.target == "true" else None
    chosen = METHODS if args.method == "all" else (args.method,)
    some = registers.read(args.registers, args.artefacts, args.output_dir, model)
    explainer = methods.Explainer(model, classifier, chosen, maps, some)
    if NEURONS in chosen:
        explainer.take_neurons(args.classifier_dir, args.classifier_dataset, args.model)
    prepare, image_size = methods.transform(model, explainer.patch_size, args.image_size)
    mask_resize = args.mask_resize or ("published" if explainer.patch_size else "aligned")

    # Heat of every image beside its mask.
    data.draw_at(image_size)
    name = f"{model.name}-as-{maps.about['clip']}" if maps else model.name
    pictures = f"{args.output_dir}/{args.train_dataset}_{args.method}_pictures_{name}"
    scores = {method: figures.Scores(args.thr, state.device, figures.CUTS.get(method)) for method in chosen}
    size = min(args.batch_size, len(data.names))
    numbers = processes.own_batches(range(-(-len(data.names) // size)), state)
    workers = loader.worker_count(args.num_workers)
    loader.check_memory(size, (image_size, image_size), workers)
    batches = loader.batches(data, prepare, size, workers, numbers=numbers,
                               prepare_target=masks.mask_transform(prepare, image_size, mask_resize))
    for number, (pixels, covers, _) in zip(tqdm(numbers, "batches", disable=not state.is_main_process), batches):
        images = slice(number * size, number * size + len(covers))
        pixels, covers = pixels.to(state.device), torch.from_numpy(covers).to(state.device)
        patches = explainer.explain(pixels, None if truth is None else truth[images])
        heats = {method: figures.heat_maps(patches[method], image_size) for method in chosen}
        for method, heat in heats.items():
            scores[method].update(number, heat, covers)
        if args.save_img:
            figures.save_pictures(pictures, data.names[images], prepare, pixels, covers, heats)

    # Figures of all processes together.
    scores = {method: figures.gathered(score, state) for method, score in scores.items()}
    if not state.is_main_process:
        return
    published = experiments.published_segmentation(args.train_dataset, args.model, model.source)
    path, found = figures.save(args.output_dir, args.method, name, scores, published, {
        "model": args.model, "pretrained": model.source, "weights_sha256": model.weights_hash,
        "model_settings": model.settings,
        **alignment.describe(maps), "dataset": args.train_dataset, "images": len(data.names),
        "images_without_foreground": scores[chosen[0]].without_foreground,
        "classifier": args.classifier_dataset, "classes": classifier.shape[1],
        "options": {"image_size": image_size, "mask_resize": mask_resize, "thr": args.thr, "target": args.target,
                    "batch_size": size, "seed": args.seed, "registers": some and some.record()},
        "command": cli.command(__file__, get_args_parser(), args)})
    print("\n".join(figures.table(found)))
    if args.save_img:
        sheet = figures.save_sheet(pictures, data.names, chosen, f"{name} on {args.train_dataset}")
        print(f"pictures, some of them on one sheet -> {sheet}")
    print(f"{cli.counted(len(data.names), 'image')} -> {path}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
