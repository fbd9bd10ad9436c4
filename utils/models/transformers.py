"""Models of transformers by hub name or folder, with their own image processor and tokenizer: those with a text side
(CLIP, SigLIP, ALIGN), and image sides alone (ViT, DeiT, DINOv2, DINOv3 and others)."""
import functools
import os

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from utils.cli import UserError
from utils.data import pictures
from utils.models import names
from utils.models.model import Model, frozen, readable_errors

# How each kind with a text side was trained to pad its texts, and their length in tokens at most.
PADDING = {"clip": True, "metaclip_2": True, "align": "max_length", "siglip": "max_length"}
TEXT_LENGTH = {"align": 64}  # of others, all that they have positions for
ONE_SIZE = ("clip", "clip_vision_model", "metaclip_2", "siglip", "siglip_vision_model", "vit", "deit")
INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # by Pillow's numbers
NUMBERS = {name: number for number, name in INTERPOLATIONS.items()}
OF_PROCESSOR = {"mean": "image_mean", "std": "image_std", "interpolation": "resample"}  # what it calls our settings


class Preprocess:
    """An image processor as a transform: a picture -> float tensor [3, height, width]. `transforms` are its steps as
    torchvision has them, by which pictures are shown and masks are cropped."""

    def __init__(self, processor):
        self.processor, size = processor, dict(processor.size)
        crop = dict(processor.crop_size) if getattr(processor, "do_center_crop", None) else None
        edge, how = size.get("shortest_edge"), transforms.InterpolationMode(INTERPOLATIONS[int(processor.resample)])
        if edge and getattr(processor, "crop_pct", None):  # ConvNeXt: small sizes are cropped out of larger ones
            crop = {"height": edge, "width": edge} if edge < 384 else None
            size = {"shortest_edge": int(edge / processor.crop_pct)} if crop else {"height": edge, "width": edge}
            edge = size.get("shortest_edge")
        self.transforms = []
        if processor.do_resize:
            self.transforms.append(transforms.Resize(edge or (size["height"], size["width"]), how))
        if crop:
            self.transforms.append(transforms.CenterCrop((crop["height"], crop["width"])))
        self.transforms += [transforms.ToTensor(), transforms.Normalize(processor.image_mean, processor.image_std)]

    def settings(self) -> dict:
        """What images are made of."""
        return {"mean": list(self.processor.image_mean), "std": list(self.processor.image_std),
                "interpolation": INTERPOLATIONS[int(self.processor.resample)]}

    def __call__(self, picture: Image.Image) -> Tensor:
        picture = pictures.middle(picture, self.transforms)
        return self.processor(images=picture, return_tensors="pt")["pixel_values"][0]


def load(model: str, pretrained: str | None, device: torch.device, seed: int = 0,
         settings: dict | None = None) -> Model:
    """Load a model of transformers by its --model, `hf:` and a hub name or folder; `settings` (mean, std,
    interpolation) take the place of its image processor's. Its representation is what
    `get_image_features` gives, or without a text side the model's own pooling where that is linear, and else its class
    token or the mean of its tokens. The tokenizer is read when a text is first asked for.

    Raises UserError for one that cannot be fetched or read, for `pretrained`, and for an image processor that makes
    images of another size than the model takes.
    """
    names.refuse_pretrained(model, pretrained)
    name = model.removeprefix(names.TRANSFORMERS)
    options = {"trust_remote_code": False, "local_files_only": os.path.isdir(name)}
    with readable_errors(f"--model {model}", "the name, the folder or the network"):
        network = AutoModel.from_pretrained(name, dtype=torch.float32, **options)
        processor = AutoImageProcessor.from_pretrained(name, **options)
        for setting, value in (settings or {}).items():
            if setting in OF_PROCESSOR and value is not None:
                setattr(processor, OF_PROCESSOR[setting], NUMBERS.get(value) if setting == "interpolation" else value)
        if hasattr(processor, "max_num_patches"):
            raise UserError(f"--model {model}: takes pictures as any number of patches (NaFlex), which no map is laid "
                            "out for; choose weights of a fixed image size")
        preprocess = Preprocess(processor)
        size = tuple(preprocess(Image.new("RGB", (300, 200))).shape[-2:])
    kind, config = network.config.model_type, getattr(network.config, "vision_config", network.config)
    own = getattr(config, "image_size", None)
    if kind in ONE_SIZE and size != (own, own):
        raise UserError(f"--model {model}: its image processor makes images of {size[0]} x {size[1]} pixels, and it "
                        f"takes {own} x {own}; mend the processor's settings in preprocessor_config.json")
    if hasattr(getattr(network, "pooler", None), "dense"):
        network.pooler = None  # a layer and a tanh, which fine-tuned classifiers go without
    network = frozen(network, device)
    tower = getattr(network, "vision_model", network)
    tokens = {parameter.rpartition(".")[2] for parameter, _ in tower.named_parameters()}
    class_token = bool(tokens & {"cls_token", "class_embedding"})
    loaded = Model(name=names.file_name(model), source=name, device=device, network=network, tower=tower,
                   encode_image=functools.partial(_representation, network, class_token), preprocess=preprocess,
                   image_size=size, class_token=class_token and not getattr(config, "use_mean_pooling", False),
                   prefix_tokens=class_token + ("distillation_token" in tokens)
                   + (getattr(config, "num_register_tokens", None) or 0), settings=preprocess.settings())
    if kind == "clip":
        loaded.tower = _as_open_clip(network, size[0], preprocess)
    if kind in PADDING:
        length = TEXT_LENGTH.get(kind) or network.config.text_config.max_position_embeddings

        @functools.cache
        def words():
            with readable_errors(f"the tokenizer of --model {model}", "the name, the folder or the network"):
                return AutoTokenizer.from_pretrained(name, **options)

        def tokenizer(texts: list[str]):
            return words()(texts, padding=PADDING[kind], truncation=True, max_length=length, return_tensors="pt")

        def cut(texts: list[str]) -> list[int]:
            return [i for i, ids in enumerate(words()(texts, verbose=False)["input_ids"]) if len(ids) > length]

        loaded.tokenizer, loaded.cut = tokenizer, cut
        loaded.encode_text = lambda texts: network.get_text_features(**tokenizer(texts).to(device)).pooler_output
        loaded.logit_scale = (1 / network.temperature if kind == "align" else network.logit_scale.exp()).item()
    return loaded


def _representation(network: nn.Module, class_token: bool, images: Tensor) -> Tensor:
    """Representations [b, d] of images [b, 3, height, width]."""
    if hasattr(network, "get_image_features"):
        return network.get_image_features(pixel_values=images).pooler_output
    found = network(pixel_values=images)
    if getattr(found, "pooler_output", None) is not None:
        return found.pooler_output.flatten(1)
    return found.last_hidden_state[:, 0] if class_token else found.last_hidden_state.mean(dim=1)


def _as_open_clip(network: nn.Module, image_size: int, preprocess: Preprocess) -> nn.Module:
    """CLIP's image tower as open_clip has it, made of the network's own layers and weights: so it has everything that
    is there for open_clip's towers."""
    from open_clip.transformer import VisionTransformer

    own, sizes = network.vision_model, network.config.vision_config
    with torch.device("meta"):  # weights come below
        tower = VisionTransformer(image_size=image_size, patch_size=sizes.patch_size, width=sizes.hidden_size,
                                  layers=sizes.num_hidden_layers, heads=sizes.num_attention_heads, mlp_ratio=1,
                                  output_dim=network.visual_projection.out_features).eval()
    tower.conv1, tower.ln_pre, tower.ln_post = own.embeddings.patch_embedding, own.pre_layrnorm, own.post_layernorm
    tower.class_embedding = own.embeddings.class_embedding
    tower.positional_embedding = own.embeddings.position_embedding.weight
    tower.proj = nn.Parameter(network.visual_projection.weight.T, requires_grad=False)
    for block, layer in zip(tower.transformer.resblocks, own.encoder.layers):
        attn = layer.self_attn
        parts = attn.q_proj, attn.k_proj, attn.v_proj
        block.attn.in_proj_weight = nn.Parameter(torch.cat([part.weight for part in parts]), requires_grad=False)
        block.attn.in_proj_bias = nn.Parameter(torch.cat([part.bias for part in parts]), requires_grad=False)
        block.attn.out_proj, block.ln_1, block.ln_2 = attn.out_proj, layer.layer_norm1, layer.layer_norm2
        block.mlp.c_fc, block.mlp.gelu, block.mlp.c_proj = layer.mlp.fc1, layer.mlp.activation_fn, layer.mlp.fc2
    shortest = dict(preprocess.processor.size).get("shortest_edge")
    tower.preprocess_cfg = {"size": image_size, "resize_mode": "shortest" if shortest else "squash",
                            **preprocess.settings()}
    return tower
