"""How maps compare with masks of the foreground: heat, figures over a data set, and pictures.

A map, scaled to its image and cut at its own mean, is a segmentation; the figures are those of the published code of
arXiv 2310.05916.
"""
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchmetrics.classification import BinaryAccuracy, MulticlassJaccardIndex
from torchmetrics.functional.classification import binary_average_precision
from torchvision.transforms import Compose, Normalize

from utils import cli, processes
from utils.plots import sheets
from utils.runs import files

SHOWN = 12  # images on the sheet of pictures
FIGURES = ("pixel_accuracy", "mean_iou", "mean_ap")  # fractions of 1, in the order of published ones
FOREGROUND = ("foreground_iou", "foreground_ap")  # of the foreground alone (arXiv 2406.01583)
DEFINITIONS = {
    "map": "per patch; decomposition: its terms, summed over layers and heads, times the classifier's column of the "
           "predicted class (of the true class with --target true) minus the mean of all columns; neurons: mean "
           "activation of the 200 neurons whose second-order direction has the largest product with that column",
    "heat": "the map, bilinear to image_size, negatives set to 0, scaled to [0, 1] for each image; 0 where the map is "
            "constant or not finite (images_without_map)",
    "predicted foreground": "heat above the image's mean heat; of neurons, heat above 0.5",
    "pixel_accuracy": "share of all pixels of all images",
    "mean_iou": "mean of iou_background and iou_foreground, each from intersections and unions summed over all images "
                "(0 where a class is neither in the truth nor predicted)",
    "mean_ap": "mean over images of one average precision over both classes at once: scores (1 - heat, heat) of all "
               "pixels, truth one-hot; an image without foreground counts like any other",
    "foreground_iou": "iou_foreground",
    "foreground_ap": "mean, over the images that have foreground, of the average precision of their pixels' heat for "
                     "the foreground (0 where no image has any)",
    "precision, recall": "of the foreground, over the pixels of all images, one row a method; score >= threshold, the "
                         "score being heat, or thr where heat is less; precision is 1 where nothing is predicted, "
                         "recall is 1 where there is no foreground",
}
THRESHOLDS = np.linspace(0, 1, 1001, dtype=np.float32)  # of the precision and recall curves
CUTS = {"neurons": 0.5}  # of the methods that are not cut at the image's mean, as published
CONSTANT = 1e-6  # a map whose values differ by less than this share of the largest is constant but for rounding


def heat_maps(maps: Tensor, image_size: int) -> Tensor:
    """Maps [b, rows, columns] as heat [b, s, s] in [0, 1]: upsampled, without negatives, each scaled to its own range.

    All 0, which is background, where a map is constant or not finite.
    """
    heat = F.interpolate(maps[:, None].float(), (image_size, image_size), mode="bilinear", align_corners=False)
    heat = heat[:, 0].clamp(min=0)
    low, high = heat.amin(dim=(1, 2), keepdim=True), heat.amax(dim=(1, 2), keepdim=True)
    return torch.where(high - low > CONSTANT * high, (heat - low) / (high - low), 0.0)


def foreground(heat: Tensor, cut: float | None = None) -> Tensor:
    """Predicted foreground of heat [b, s, s]: what is above the cut, or the image's mean."""
    return heat > (heat.mean(dim=(1, 2), keepdim=True) if cut is None else cut)


class Scores:
    """The figures of one method over a data set, fed one batch at a time, by several processes if need be: `gathered`.
    Memory does not grow with the pixels.

    `thr` is the floor of the scores that enter the precision and recall curve; foreground is what is above the `cut`,
    or the image's mean.
    """

    def __init__(self, thr: float, device: torch.device, cut: float | None = None):
        # Of themselves, they would wait for the other processes.
        options = {"validate_args": False, "sync_on_compute": False}
        self.accuracy = BinaryAccuracy(**options).to(device)
        self.iou = MulticlassJaccardIndex(num_classes=2, average="none", **options).to(device)
        self.thr, self.cut, self.without_map, self.without_foreground = thr, cut, 0, 0
        # Of images, by number of the batch, as sums depend on the order.
        self.average_precisions, self.of_foreground = {}, {}
        self.counts = torch.zeros(2, len(THRESHOLDS), dtype=torch.int64, device=device)  # pixels by truth and score
        self.grid = torch.from_numpy(THRESHOLDS).to(device)

    def update(self, number: int, heat: Tensor, masks: Tensor) -> None:
        """Add heat [b, s, s] and masks [b, s, s] of the batch of that number."""
        predicted = foreground(heat, self.cut).long().flatten()
        self.accuracy.update(predicted, masks.long().flatten())
        self.iou.update(predicted, masks.long().flatten())
        self.without_map += int((heat == 0).flatten(1).all(dim=1).sum())
        self.without_foreground += int((~masks).flatten(1).all(dim=1).sum())
        of_all, of_foreground = [], []
        self.average_precisions[number], self.of_foreground[number] = of_all, of_foreground
        for scores, mask in zip(heat, masks):
            both = torch.stack([1 - scores, scores]), torch.stack([~mask, mask]).long()
            of_all.append(binary_average_precision(*both, validate_args=False).item())
            if mask.any():
                of_foreground.append(binary_average_precision(scores, mask.long(), validate_args=False).item())
        # The last threshold that each score reaches.
        steps = torch.bucketize(heat.clamp(min=self.thr), self.grid, right=True) - 1
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
        self.without_foreground += other.without_foreground
        self.average_precisions |= other.average_precisions
        self.of_foreground |= other.of_foreground

    def figures(self) -> dict:
        """What FIGURES and FOREGROUND name, as fractions of 1, with the two IoUs and the number of images without a
        map."""
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
    first, *others = processes.gather({state.process_index: scores.cpu()}).values()
    for other in others:
        first.add(other)
    return first


def save_pictures(folder: str, names: list[str], prepare: Compose, pixels: Tensor, masks: Tensor,
                  heats: dict[str, Tensor]) -> None:
    """PNGs of images [b, 3, s, s] that `prepare` made, a folder each: input, mask [b, s, s], and for each method heat
    [b, s, s], predicted mask and overlay, the picture in red where its heat is."""
    from matplotlib import colormaps

    def save(what: str, name: str, picture: Image.Image) -> None:
        with cli.complete(Path(folder, what, f"{name}.png")) as partial:
            picture.save(partial, format="png")

    normalize = next(step for step in prepare.transforms if isinstance(step, Normalize))
    mean, std = (torch.as_tensor(values)[:, None, None] for values in (normalize.mean, normalize.std))
    inputs = ((pixels.cpu() * std + mean).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    for i, name in enumerate(names):
        picture = Image.fromarray(inputs[i])
        save("input", name, picture)
        save("mask", name, Image.fromarray(masks[i].cpu().numpy()))
        for method, heat in heats.items():
            values = heat[i].cpu().numpy()
            save(f"{method}_heat", name, Image.fromarray(colormaps["turbo"](values, bytes=True)[..., :3]))
            save(f"{method}_mask", name, Image.fromarray(foreground(heat[i:i + 1], CUTS.get(method))[0].cpu().numpy()))
            share = Image.fromarray((170 * values).round().astype(np.uint8))
            red = Image.new("RGB", picture.size, (215, 25, 28))
            save(f"{method}_overlay", name, Image.composite(red, picture, share))


def save_sheet(folder: str, names: list[str], methods: Sequence[str], title: str) -> Path:
    """A sheet of the pictures that `save_pictures` wrote of some images, evenly spaced: input, mask, and each method's
    overlay and mask. Returns its path."""
    columns = ["input", "mask", *(f"{method}_{what}" for method in methods for what in ("overlay", "mask"))]
    chosen = [names[i * len(names) // min(SHOWN, len(names))] for i in range(min(SHOWN, len(names)))]
    rows = [(name, [Image.open(Path(folder, column, f"{name}.png")).copy() for column in columns]) for name in chosen]
    path = Path(folder, "sheet.png")
    sheets.picture_grid(columns, rows, title, path)
    return path


def save(folder: str, method: str, model: str, scores: dict[str, Scores], published: dict[str, list[float]],
         about: dict) -> tuple[Path, dict[str, dict]]:
    """Write the figures of methods beside the published ones (of some methods, in percent), with what they are `about`,
    and their curves. Returns the path of the figures, and these."""
    figures = {name: score.figures() | {"published_percent": published.get(name)} for name, score in scores.items()}
    path = files.manifest_path(folder, about["dataset"], "segmentation", method, model)
    curves = np.array([score.curve() for score in scores.values()], np.float32)  # [methods, 2, thresholds]
    arrays = {files.term_path(folder, about["dataset"], f"{method}_{what}", model): curves[:, i]
              for i, what in enumerate(("precision", "recall"))}
    files.write_arrays(path, arrays, {**about, "methods": figures, "definitions": DEFINITIONS})
    return path, figures


def table(figures: dict[str, dict]) -> Iterator[str]:
    """The published result lines of one method, or a table of several, with published figures where there are some."""
    published = {method: found["published_percent"] for method, found in figures.items() if found["published_percent"]}
    if len(figures) == 1:
        (method, found), = figures.items()
        yield f"Mean IoU over 2 classes: {found['mean_iou']:.4f}"
        yield f"Pixel-wise Accuracy: {100 * found['pixel_accuracy']:.2f}%"
        yield f"Mean AP over 2 classes: {found['mean_ap']:.4f}"
        yield f"Foreground alone: IoU {found['foreground_iou']:.4f}, AP {found['foreground_ap']:.4f}"
        if published:
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
