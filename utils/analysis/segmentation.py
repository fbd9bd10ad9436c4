"""Zero-shot segmentation: heat maps of the predicted class beside masks (arXiv 2310.05916, section 5).

A map says of every patch how much it speaks for the class that the model predicts. Scaled to an image, and cut at its
own mean, it is a segmentation; the figures over a data set are those of the published code.
"""
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor
from torchmetrics.classification import BinaryAccuracy, MulticlassJaccardIndex
from torchmetrics.functional.classification import binary_average_precision
from torchvision.transforms import Compose, InterpolationMode, Normalize, Resize

from utils import cli
from utils.analysis import alignment
from utils.analysis.heatmaps import shaping
from utils.cli import UserError
from utils.data.datasets import Images
from utils.decompose.decomposer import Decomposer
from utils.models.names import TIMM, Vision, file_name, load_vision, weights_hash
from utils.runs import files

# Published on ImageNet-Segmentation, by model and weights: pixel accuracy, mean IoU and mean AP in percent. Tables of
# arXiv 2310.05916 and of the code that goes with it.
PUBLISHED = {
    ("ViT-L-14", "laion2b_s32b_b82k"): {
        "decomposition": (75.21, 54.50, 81.61), "raw_attention": (65.67, 43.83, 76.05), "rollout": (60.63, 40.64, 74.47),
        "gradcam": (70.27, 44.50, 70.30), "lrp": (52.81, 33.57, 54.37), "partial_lrp": (61.49, 40.71, 72.29),
        "chefer": (69.21, 47.47, 78.29)},
    ("ViT-L-14", "openai"): {"decomposition": (76.19, 55.24, 81.37)},
    ("ViT-B-16", "openai"): {"decomposition": (77.2, 57.7, 82.6), "maskclip": (73.0, 54.8, 83.6)},
}
FIGURES = ("pixel_accuracy", "mean_iou", "mean_ap")  # fractions of 1, in the order of PUBLISHED
FOREGROUND = ("foreground_iou", "foreground_ap")  # of the foreground alone (arXiv 2406.01583)
DEFINITIONS = {
    "map": "per patch; decomposition: its terms, summed over layers and heads, times the classifier's column of the predicted "
           "class (of the true class with --target true) minus the mean of all columns",
    "heat": "the map, bilinear to image_size, negatives set to 0, scaled to [0, 1] for each image; 0 where the map is constant "
            "or not finite (images_without_map)",
    "predicted foreground": "heat above the image's mean heat",
    "pixel_accuracy": "share of all pixels of all images",
    "mean_iou": "mean of iou_background and iou_foreground, each from intersections and unions summed over all images "
                "(0 where a class is neither in the truth nor predicted)",
    "mean_ap": "mean over images of one average precision over both classes at once: scores (1 - heat, heat) of all pixels, "
               "truth one-hot; an image without foreground counts like any other",
    "foreground_iou": "iou_foreground",
    "foreground_ap": "mean, over the images that have foreground, of the average precision of their pixels' heat for the "
                     "foreground (0 where no image has any)",
    "precision, recall": "of the foreground, over the pixels of all images, one row a method; score >= threshold, the score "
                         "being heat, or thr where heat is less; precision is 1 where nothing is predicted, recall is 1 "
                         "where there is no foreground",
}
THRESHOLDS = np.linspace(0, 1, 1001, dtype=np.float32)  # of the precision and recall curves
CONSTANT = 1e-6  # a map whose values differ by less than this share of the largest is constant but for rounding


@dataclass
class Subject:
    """A model whose maps are compared with masks."""
    decomposer: Decomposer
    carry: tuple[Tensor, Tensor] | None   # maps to the space of a CLIP: weight [c, k, d] and bias [d]
    width: int                            # of the space that its classifier is in
    name: str                             # in file names
    run: dict                             # whose texts go with it, as the manifest of a run says
    about: dict                           # what results say of its maps

    @property
    def patch_size(self) -> tuple[int, int] | None:
        """Of a model that takes images of other sizes than its own, and that the other methods know; mapped models are not."""
        return None if self.carry else self.decomposer.patch_size


def load_subject(args, device) -> Subject:
    """The model of --model, --pretrained and --seed in `args`, with the maps of --maps where they are given.

    Raises UserError for one that cannot be decomposed, for a model of timm without maps, and for maps of another model.
    """
    if args.model.startswith(TIMM) and not args.maps:
        raise UserError(f"--model {args.model} has no text side; give --maps, which compute_alignment.py makes")
    trained = alignment.load(Path(args.maps), "make them with compute_alignment.py") if args.maps else None
    vision = load_vision(args.model, args.pretrained, device, args.seed)
    if trained:
        alignment.check_model(trained, vision)
        weight, run = trained.weight.to(device), alignment.text_side(trained.about)
        return Subject(Decomposer(vision), (weight, trained.bias.to(device)), weight.shape[2],
                       f"{vision.name}-as-{run['text_model']}", run, {"maps": args.maps, "maps_sha256": trained.sha256, **run})
    run = {"weights_sha256": weights_hash(vision), "pretrained": vision.source}
    with torch.no_grad():
        width = vision.encode(torch.zeros(1, 3, *vision.image_size, device=device)).shape[1]
    return Subject(Decomposer(vision), None, width, vision.name, run, {})


def check_baselines(subject: Subject, method: str) -> None:
    """Refuse a method other than the decomposition for a model that has none."""
    if subject.patch_size is None:
        raise UserError(f"--method {method}: this model has --method decomposition alone; the others need a CLIP with an image "
                        "tower of open_clip's own and class-token pooling, and no --maps")


def check_image_size(image_size: int, patch_size: tuple[int, int]) -> int:
    """The side of images in pixels, if patches cover it. Raises UserError with the nearest sizes that do."""
    step = math.lcm(*patch_size)
    if image_size < step or image_size % step:
        below = max(image_size // step, 1) * step
        raise UserError(f"--image_size {image_size}: the model's patches have {step} pixels, and must cover the image; "
                        f"nearest are {below} and {below + step}")
    return image_size


def load_classifier(model: str, run: dict, width: int, folder: str, dataset: str, device) -> tuple[Tensor, list[str] | None]:
    """The classifier [d, classes] of a data set that compute_text_projection.py wrote, and its classes, None without a manifest.

    `run` says whose texts go with the model, as the manifest of a run does. Raises UserError where the classifier is missing,
    has not the joint space's `width`, or was made with other weights.
    """
    path = files.manifest_path(folder, dataset, "classifier", run.get("text_model") or file_name(model))
    manifest = files.read_manifest(path) if path.is_file() else None  # open_classifier warns where there is none
    own = manifest and run | {"classes": manifest["classes"]}
    columns = files.open_classifier(folder, dataset, model, own or run | {"classes": None}, width)
    return torch.tensor(columns, device=device), manifest and manifest["classes"]


def true_classes(data: Images, classes: list[str] | None) -> Tensor:
    """The true class [images] of every image, among the classifier's. Raises UserError where it is not known."""
    if not data.scenes:
        raise UserError("--target true needs the class of every image, which only --train_dataset emoji_seg knows; leave it out")
    if classes != data.classes:
        raise UserError("--target true: the classifier has other classes than the images; give --classifier_dataset emoji")
    return torch.tensor(data.samples.labels)


def transform(vision: Vision, patch_size: tuple[int, int] | None, image_size: int | None) -> tuple[Compose, int]:
    """The transform of images, and the side s of what it gives: at `image_size`, by default the model's own, where patches of
    `patch_size` may cover any; by the model's own transform where it is None. Raises UserError for a size that cannot be."""
    if patch_size:
        side = check_image_size(vision.image_size[0] if image_size is None else image_size, patch_size)
        return image_transform_v2(PreprocessCfg(**{**vision.tower.preprocess_cfg, "size": side}), is_train=False), side
    height, width = vision.image_size
    if height != width:
        raise UserError(f"the model takes images of {height} x {width} pixels, and figures are taken on squares; choose another")
    if image_size not in (None, height):
        raise UserError(f"--image_size {image_size}: the model takes images at its own size alone; leave it out")
    return vision.preprocess, height


def mask_transform(prepare: Compose, image_size: int, mask_resize: str) -> Compose:
    """What makes of a mask a tensor [s, s], True in the foreground, resized by nearest neighbour: `published` squeezes the whole
    mask to a square although images are cropped by their `transform`, `prepare`; `aligned` crops it like them."""
    if mask_resize == "published":
        steps = [Resize((image_size, image_size), InterpolationMode.NEAREST)]
    else:
        steps = [copy.copy(step) for step in shaping(prepare)]
        for step in steps:
            step.interpolation, step.fill = InterpolationMode.NEAREST, 0
    return Compose([*steps, _to_mask])


def _to_mask(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)) > 0


def _direction(classifier: Tensor, classes: Tensor) -> Tensor:
    """What the logit of an image's class [b], less the mean over all classes, is a product with: [b, d]."""
    # A mean of products is the product with the mean: no [b, n, classes] is needed.
    return classifier[:, classes].T - classifier.mean(dim=1)


def class_maps(subject: Subject, pixels: Tensor, classifier: Tensor, truth: Tensor | None) -> tuple[Tensor, Tensor]:
    """Maps [b, rows, columns]: what each patch of images contributes to the logit of the image's class, less the mean over all
    classes of `classifier` [d, classes]; and the classes [b]: the predicted ones, or the `truth` [b]."""
    def classes(representation: Tensor) -> Tensor:
        return (representation @ classifier).argmax(dim=1) if truth is None else truth

    found = subject.decomposer.tokens(
        pixels, lambda representation: _direction(classifier, classes(representation))[None], subject.carry)
    return found.patches()[0], classes(found.representation)


def heat_maps(maps: Tensor, image_size: int) -> Tensor:
    """Maps [b, rows, columns] as heat [b, s, s] in [0, 1]: upsampled, without negatives, each scaled to its own range.

    All 0, which is background, where a map is constant or not finite.
    """
    heat = F.interpolate(maps[:, None].float(), (image_size, image_size), mode="bilinear", align_corners=False)[:, 0].clamp(min=0)
    low, high = heat.amin(dim=(1, 2), keepdim=True), heat.amax(dim=(1, 2), keepdim=True)
    return torch.where(high - low > CONSTANT * high, (heat - low) / (high - low), 0.0)


def foreground(heat: Tensor) -> Tensor:
    """Predicted foreground of heat [b, s, s]: what is above the image's mean."""
    return heat > heat.mean(dim=(1, 2), keepdim=True)


class Scores:
    """The figures of one method over a data set, fed one batch at a time, by several processes if need be: `gathered`. Memory
    does not grow with the pixels.

    `thr` is the floor of the scores that enter the precision and recall curve.
    """

    def __init__(self, thr: float, device: torch.device):
        # Of themselves, they would wait for the other processes.
        self.accuracy = BinaryAccuracy(validate_args=False, sync_on_compute=False).to(device)
        self.iou = MulticlassJaccardIndex(num_classes=2, average="none", validate_args=False, sync_on_compute=False).to(device)
        self.thr, self.without_map = thr, 0
        self.average_precisions, self.of_foreground = {}, {}  # of images, by number of the batch, as sums depend on the order
        self.counts = torch.zeros(2, len(THRESHOLDS), dtype=torch.int64, device=device)  # pixels by truth and score
        self.grid = torch.from_numpy(THRESHOLDS).to(device)

    def update(self, number: int, heat: Tensor, masks: Tensor) -> None:
        """Add heat [b, s, s] and masks [b, s, s] of the batch of that number."""
        predicted = foreground(heat).long().flatten()
        self.accuracy.update(predicted, masks.long().flatten())
        self.iou.update(predicted, masks.long().flatten())
        self.without_map += int((heat == 0).flatten(1).all(dim=1).sum())
        self.average_precisions[number], self.of_foreground[number] = [], []
        for scores, mask in zip(heat, masks):
            both_scores, both_truths = torch.stack([1 - scores, scores]), torch.stack([~mask, mask]).long()
            self.average_precisions[number].append(binary_average_precision(both_scores, both_truths, validate_args=False).item())
            if mask.any():
                self.of_foreground[number].append(binary_average_precision(scores, mask.long(), validate_args=False).item())
        steps = torch.bucketize(heat.clamp(min=self.thr), self.grid, right=True) - 1  # the last threshold that the score reaches
        for truth in (0, 1):
            self.counts[truth] += torch.bincount(steps[masks == truth], minlength=len(self.grid))

    def cpu(self) -> "Scores":
        """These scores, moved to the CPU."""
        self.accuracy, self.iou, self.counts, self.grid = (
            part.cpu() for part in (self.accuracy, self.iou, self.counts, self.grid))
        return self

    def add(self, other: "Scores") -> None:
        """Add what other scores were fed, which is other batches."""
        self.accuracy.merge_state(other.accuracy)
        self.iou.merge_state(other.iou)
        self.counts += other.counts
        self.without_map += other.without_map
        self.average_precisions |= other.average_precisions
        self.of_foreground |= other.of_foreground

    def figures(self) -> dict:
        """What FIGURES and FOREGROUND name, as fractions of 1, with the two IoUs and the number of images without a map."""
        iou = self.iou.compute().tolist()
        of_all, of_foreground = ([value for _, values in sorted(found.items()) for value in values]
                                 for found in (self.average_precisions, self.of_foreground))
        return {"pixel_accuracy": self.accuracy.compute().item(), "mean_iou": sum(iou) / 2, "iou_background": iou[0],
                "iou_foreground": iou[1], "mean_ap": float(np.mean(of_all)),
                "foreground_iou": iou[1], "foreground_ap": float(np.mean(of_foreground or [0])),
                "images_without_map": self.without_map}

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Precision and recall at each of THRESHOLDS."""
        false, true = self.counts.flip(1).cumsum(dim=1).flip(1).cpu().numpy()
        precision = np.divide(true, false + true, out=np.ones(len(true)), where=false + true > 0)
        return precision, true / true[0] if true[0] else np.ones(len(true))


def gathered(scores: Scores, state) -> Scores:
    """The scores that all processes were fed together, on the CPU; every process has them."""
    first, *others = cli.gather({state.process_index: scores.cpu()}).values()
    for other in others:
        first.add(other)
    return first


def save_pictures(folder: Path, names: list[str], prepare: Compose, pixels: Tensor, masks: Tensor,
                  heats: dict[str, Tensor]) -> None:
    """PNGs of images [b, 3, s, s] that `prepare` made: input, mask [b, s, s], and for each method heat [b, s, s], predicted mask
    and overlay."""
    from matplotlib import colormaps

    def save(name: str, picture: Image.Image) -> None:
        partial = folder / f"{name}.png.partial"
        picture.save(partial, format="png")
        partial.replace(folder / f"{name}.png")

    normalize = next(step for step in prepare.transforms if isinstance(step, Normalize))
    mean, std = (torch.as_tensor(values)[:, None, None] for values in (normalize.mean, normalize.std))
    inputs = ((pixels.cpu() * std + mean).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    for i, name in enumerate(names):
        picture = Image.fromarray(inputs[i])
        save(f"{name}_input", picture)
        save(f"{name}_mask", Image.fromarray(masks[i].cpu().numpy()))
        for method, heat in heats.items():
            colours = Image.fromarray(colormaps["turbo"](heat[i].cpu().numpy(), bytes=True)[..., :3])
            save(f"{name}_{method}_heat", colours)
            save(f"{name}_{method}_mask", Image.fromarray(foreground(heat[i:i + 1])[0].cpu().numpy()))
            save(f"{name}_{method}_overlay", Image.blend(picture, colours, 0.5))


def report(figures: dict[str, dict], published: dict[str, tuple]) -> Iterator[str]:
    """The published result lines of one method, or a table of several, with published figures where there are some."""
    if len(figures) == 1:
        (method, found), = figures.items()
        yield f"Mean IoU over 2 classes: {found['mean_iou']:.4f}"
        yield f"Pixel-wise Accuracy: {100 * found['pixel_accuracy']:.2f}%"
        yield f"Mean AP over 2 classes: {found['mean_ap']:.4f}"
        yield f"Foreground alone: IoU {found['foreground_iou']:.4f}, AP {found['foreground_ap']:.4f}"
        if method in published:
            yield "published: accuracy {:.2f}, mIoU {:.2f}, mAP {:.2f}".format(*published[method])
        return
    blank = " " * 8 if published else ""
    yield (f"{'percent':<14}" + "".join(f"{name:>16}{blank}" for name in ("pixel accuracy", "mean IoU", "mean AP"))
           + "".join(f"{name:>16}" for name in ("foreground IoU", "foreground AP")))
    for method, found in figures.items():
        beside = [f" ({value:.2f})" for value in published[method]] if method in published else [blank] * 3
        yield (f"{method:<14}" + "".join(f"{100 * found[name]:>16.2f}{value}" for name, value in zip(FIGURES, beside))
               + "".join(f"{100 * found[name]:>16.2f}" for name in FOREGROUND))
    if published:
        yield "in brackets: published"
