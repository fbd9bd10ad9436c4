"""Which patches of an image speak for its class: the decomposition, the methods that the paper (arXiv 2310.05916)
compares it with, and MaskCLIP.

What is explained is the logit of a class: the unit representation of the image times the classifier's column. Each
method is a function here: it takes a `Batch` and returns the relevance of every patch, [b, rows, columns], float32. A
batch keeps what its forward passes compute, when a method first asks: the decomposition, and for the other methods one
pass in single and one in double precision.

The others are implemented from their papers, in the conventions of the comparison by Chefer, Gur and Wolf ("Transformer
Interpretability Beyond Attention Visualization", CVPR 2021), section 4. `lrp`, `partial_lrp` and `chefer` compute in
double precision: their rules divide by sums that cancel, and in single precision rounding alone moves the maps of the
embedded model by a tenth and more.
"""
import copy
import math
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.analysis import alignment
from utils.analysis.alignment import Maps
from utils.analysis.segmentation import METHODS, NEURONS
from utils.analysis.segmentation.relevance import Pass, merge, propagate
from utils.cli import UserError
from utils.data import pictures
from utils.decompose.decomposer import Decomposer
from utils.decompose.neurons import Neurons
from utils.decompose.registers import Registers
from utils.decompose.terms import TokenTerms
from utils.decompose.tower import Tower, read_tower
from utils.light import open_clip
from utils.models.model import Model
from utils.models.names import file_name
from utils.runs import files

MOST_NEURONS = 200  # that explain a class


def load_classifier(folder: str, dataset: str, option: str, model: Model,
                    maps: Maps | None) -> tuple[Tensor, list[str] | None]:
    """The classifier [d, classes] of a data set that compute_text_projection.py wrote for the model, given as the
    `option`, or for the CLIP that `maps` carry it to; and its classes, None without a manifest.

    Raises UserError where it is missing, has another width, or was made with other weights.
    """
    if maps:
        about, width = alignment.text_side(maps.about), maps.weight.shape[2]
    else:
        about = {"weights_sha256": model.weights_hash, "pretrained": model.source, "model_settings": model.settings}
        with torch.no_grad():
            width = model.encode_image(torch.zeros(1, 3, *model.image_size, device=model.device)).shape[1]
    columns = files.open_classifier(folder, dataset, option, about, width)
    path = files.manifest_path(folder, dataset, "classifier", about.get("text_model") or file_name(option))
    return torch.tensor(columns, device=model.device), files.read_manifest(path)["classes"] if path.is_file() else None


def transform(model: Model, patch_size: tuple[int, int] | None, image_size: int | None) -> tuple[Callable, int]:
    """The transform of images, and the side s of what it gives: at `image_size`, by default the model's own, where
    patches of `patch_size` may cover any; by the model's own transform where it is None. Raises UserError for a size
    that cannot be."""
    if patch_size:
        side, step = model.image_size[0] if image_size is None else image_size, math.lcm(*patch_size)
        if side < step or side % step:
            below = max(side // step, 1) * step
            raise UserError(f"--image_size {side}: the model's patches have {step} pixels, and must cover the image; "
                            f"nearest are {below} and {below + step}")
        if (side, side) == tuple(model.image_size):
            return model.preprocess, side
        settings = open_clip.transform.PreprocessCfg(**{**model.tower.preprocess_cfg, "size": side})
        return pictures.Shaped(open_clip.transform.image_transform_v2(settings, is_train=False)), side
    height, width = model.image_size
    if height != width:
        raise UserError(f"the model takes images of {height} x {width} pixels, and figures are taken on squares; "
                        "choose another")
    if image_size not in (None, height):
        raise UserError(f"--image_size {image_size}: the model takes images at its own size alone; leave it out")
    return model.preprocess, height


class Explainer:
    """A model whose logits are explained, classes of the `classifier` [d, classes].

    `maps` carry the model to the classifier's space where it is no CLIP; `registers` are for the decomposition alone.
    Parameters and their gradients are left alone.
    Raises UserError for a model that cannot be decomposed, and where `methods` need the inside of open_clip's own
    towers, which the model has not.
    """

    def __init__(self, model: Model, classifier: Tensor, methods: Sequence[str] = ("decomposition",),
                 maps: Maps | None = None, registers: Registers | None = None):
        if registers and set(methods) - {"decomposition"}:
            raise UserError(f"--registers {registers.number}: goes with --method decomposition alone; leave one out")
        self.decomposer, self.classifier, self.methods = Decomposer(model, registers=registers), classifier, methods
        self.maps = maps and (maps.weight, maps.bias)
        # Of a model that takes images of other sizes than its own.
        self.patch_size = None if maps else self.decomposer.patch_size
        if set(methods) - {"decomposition"} and self.patch_size is None:
            raise UserError("this model has --method decomposition alone; the others need a CLIP with an image tower "
                            "of open_clip's own and class-token pooling, and no --maps")

    def take_neurons(self, folder: str, dataset: str, option: str) -> None:
        """Read the directions of the neurons of the model, given as the `option`, that compute_second_order.py fitted
        to a data set, for the method neurons. Raises UserError where there are none, or those of other weights."""
        place = files.Place(folder, dataset, option)
        path = place.path("neurons_fit", ".json")
        hint = (f"python compute_second_order.py --dataset {dataset} --model {option} --output_dir {folder} "
                "--layers L ...")
        if not path.is_file():
            raise UserError(f"{path} does not exist, which --method neurons reads; make it with: {hint}")
        manifest = files.read_manifest(path)
        model, identity = self.decomposer.model, manifest["identity"]
        if identity["weights_sha256"] != model.weights_hash:
            raise UserError(f"{path}: was made with other weights than --model {option} has; make it again with: "
                            f"{hint}")
        files.same_settings(str(path), identity.get("model_settings"), model.settings, hint)
        directions = [np.asarray(files.open_array(place.path(f"neurons{layer}_direction"), manifest, hint))
                      for layer in identity["layers"]]
        self.neurons = Neurons(model, identity["layers"]), torch.from_numpy(np.concatenate(directions)).to(model.device)

    @cached_property
    def tower(self) -> Tower:
        """What is read of the model's image tower."""
        return read_tower(self.decomposer.model.tower)

    @cached_property
    def double(self) -> tuple[nn.Module, Tower]:
        """A copy of the image tower in double precision, and what is read of it."""
        visual = copy.deepcopy(self.decomposer.model.tower).double().requires_grad_(False)
        return visual, read_tower(visual)

    def explain(self, images: Tensor, truth: Tensor | None = None) -> dict[str, Tensor]:
        """Maps [b, rows, columns] of images [b, 3, height, width] by each of the methods: of the logit of the `truth`
        [b], or of the class that is predicted."""
        batch = Batch(self, images, truth)
        return {method: FUNCTIONS[method](batch) for method in self.methods}


class Batch:
    """Images [b, 3, height, width] whose logits are explained, of the `truth` [b] or of the classes that are
    predicted."""

    def __init__(self, explainer: Explainer, images: Tensor, truth: Tensor | None = None):
        self.explainer, self.images, self.truth = explainer, images, truth

    def _classes(self, representation: Tensor) -> Tensor:
        return (representation @ self.explainer.classifier).argmax(dim=1) if self.truth is None else self.truth

    @cached_property
    def tokens(self) -> TokenTerms:
        """The decomposition along the column of each image's class, less the mean over all classes."""
        def direction(representation: Tensor) -> Tensor:
            # A mean of products is the product with the mean: no [b, n, classes] is needed.
            classifier = self.explainer.classifier
            return (classifier[:, self._classes(representation)].T - classifier.mean(dim=1))[None]

        return self.explainer.decomposer.tokens(self.images, direction, self.explainer.maps)

    @property
    def classes(self) -> Tensor:
        """The classes [b] that are explained."""
        return self._classes(self.tokens.representation)

    @property
    def columns(self) -> Tensor:
        """The classifier's columns of these classes: [b, d]."""
        return self.explainer.classifier.T[self.classes]

    @cached_property
    @torch.inference_mode(False)  # gradients even where the caller switched them off
    def single(self) -> Pass:
        """The pass in single precision, with everything of its last layer."""
        visual, tower = self.explainer.decomposer.model.tower, self.explainer.tower
        return Pass(visual, tower, self.images, self.columns, len(tower.blocks) - 1)

    @cached_property
    @torch.inference_mode(False)
    def double(self) -> Pass:
        """The pass in double precision, with everything of the layers that the methods ask for, and no gradients for
        relevance alone: of all layers together, both take much memory."""
        (visual, tower), methods = self.explainer.double, self.explainer.methods
        first = 0 if {"lrp", "chefer"} & set(methods) else len(tower.blocks) - 1
        return Pass(visual, tower, self.images.double(), self.columns.double(), first, gradients="chefer" in methods)

    def grid(self, patches: Tensor) -> Tensor:
        """[b, n - 1], a value for each patch -> [b, rows, columns]."""
        rows, columns = (size // patch for size, patch in zip(self.images.shape[-2:], self.explainer.tower.patch_size))
        return patches.detach().float().unflatten(1, (rows, columns))


def decomposition(batch: Batch) -> Tensor:
    """What each patch contributes to the class's logit through all heads, less the mean over all classes.

    arXiv 2310.05916, section 5; and, for models of any kind, 2406.01583.
    """
    return batch.tokens.patches()[0]


def raw_attention(batch: Batch) -> Tensor:
    """The last layer's attention weights from the class token to every patch, mean over heads.

    The same for every class.
    """
    return batch.grid(batch.single.layers[-1].attention[:, :, 0, 1:].mean(dim=1))


def rollout(batch: Batch) -> Tensor:
    """Attention rollout: the class token's row of the product, over layers, of (A + I) / 2, with A the mean over heads.

    Abnar and Zuidema, "Quantifying Attention Flow in Transformers" (ACL 2020), section 3. The same for every class.
    """
    return batch.grid(_roll(batch.single.attentions, half=True))


def _roll(matrices: list[Tensor], half: bool) -> Tensor:
    """The class token's row of the product of I + M, last layer first, at the patches: [b, n - 1].

    Each M is [b, n, n], the first layer's first; `half` divides each I + M by two. One row is carried along, as the
    others are not asked for.
    """
    row = torch.zeros_like(matrices[0][:, :1])
    row[:, :, 0] = 1
    for matrix in reversed(matrices):
        row = (row + row @ matrix) / (2 if half else 1)
    return row[:, 0, 1:]


def gradcam(batch: Batch) -> Tensor:
    """GradCAM with the last layer's attention in the place of a convolution's channels.

    A head's map is its attention from the class token to the patches; its weight is the logit's gradient with respect
    to these attention weights (after the softmax), mean over patches. The weighted maps' mean over heads, negatives
    set to 0: all zero for an image whose heads all speak against the class. Selvaraju et al., "Grad-CAM" (ICCV 2017),
    as applied to transformers in Chefer et al. 2021, section 4.
    """
    (gradient,), last = batch.single.gradients, batch.single.layers[-1]
    weights = gradient[:, :, 0, 1:].mean(dim=-1, keepdim=True)  # [b, h, 1]
    return batch.grid((weights * last.attention[:, :, 0, 1:]).mean(dim=1).relu())


def maskclip(batch: Batch) -> Tensor:
    """MaskCLIP: every patch takes the class token's way to the joint space, as if it attended to itself alone.

    The last layer's value of each patch, through the output projection, the final norm and the projection, at unit
    length, times the class's column: a cosine, not compared with other classes. No residual stream and no
    MLP of the last layer, as Zhou, Loy and Dai, "Extract Free Dense Labels from CLIP" (ECCV 2022), section 3, define
    it on the attention pooling of CLIP's ResNet; key smoothing and prompt denoising are left out.
    """
    tower, last = batch.single.tower, batch.single.layers[-1]
    values = F.linear(merge(last.v), last.block.out_weight, last.block.out_bias)[:, 1:]
    patches = F.normalize(tower.norm(values) @ tower.projection, dim=-1)
    return batch.grid(torch.einsum("bnd,bd->bn", patches, batch.single.columns))


def lrp(batch: Batch) -> Tensor:
    """Layer-wise relevance propagation from the logit to the tokens that enter the first block.

    The sum over the width of each patch's token; its position embedding and `ln_pre` are part of it. Rules as in
    `propagate`. Binder et al., "Layer-wise Relevance Propagation for Neural Networks with Local Renormalization
    Layers" (ICANN 2016), as applied to transformers in Chefer et al. 2021, section 4.
    """
    _, tokens = batch.double.relevances[-1]
    return batch.grid(tokens[:, 1:].sum(dim=-1))


def partial_lrp(batch: Batch) -> Tensor:
    """The relevance of the last layer's attention weights from the class token to every patch: negatives of each head
    set to 0, mean over heads.

    Voita et al., "Analyzing Multi-Head Self-Attention" (ACL 2019), section 4, as applied in Chefer et al. 2021,
    section 4. Rules as in `propagate`.
    """
    attention, _ = next(propagate(batch.double))
    return batch.grid(attention[:, :, 0, 1:].relu().mean(dim=1))


def chefer(batch: Batch) -> Tensor:
    """Transformer attribution: rollout of relevance times gradient.

    In every layer, the logit's gradient with respect to the attention weights times their relevance (rules as in
    `propagate`), negatives set to 0, mean over heads: M. Then the class token's row of the product of I + M over
    layers, not normalised. Chefer et al. 2021, section 3. The logit is the cosine, without CLIP's
    temperature, which would weigh paths through several layers more.
    """
    matrices = [(gradient * relevance).relu().mean(dim=1)
                for gradient, (relevance, _) in zip(batch.double.gradients, reversed(batch.double.relevances))]
    return batch.grid(_roll(matrices, half=False))


def neurons(batch: Batch) -> Tensor:
    """The mean activation, at every patch, of the 200 neurons whose second-order direction has the largest absolute
    product with the class's text.

    arXiv 2406.04341, section 6; of the layers that compute_second_order.py fitted.
    """
    of_model, directions = batch.explainer.neurons
    chosen = (batch.columns @ directions.T).abs().topk(min(MOST_NEURONS, len(directions)), dim=1)[1]   # [b, 200]
    activations = torch.cat(list(of_model.effects(batch.images).activations.values()), dim=2)[:, 1:]
    return batch.grid(activations.gather(2, chosen[:, None].expand(-1, activations.shape[1], -1)).mean(dim=2))


FUNCTIONS: dict[str, Callable[[Batch], Tensor]] = {name: globals()[name] for name in (*METHODS, NEURONS)}
