"""Models for `python -m scripts.bench coverage`: every one that open_clip lists, and families of timm and transformers,
with random weights and two blocks, or one a stage."""
import copy
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from unittest import mock

# Of timm; each architecture takes one of these.
FEW = ({"depth": 2}, {"depths": (1,) * 5}, {"depths": (1,) * 4}, {"layers": (1,) * 4}, {"depths": (1,) * 3}, {})
TEXT = {"context_length": 8, "vocab_size": 16, "width": 8, "heads": 1, "layers": 1}  # no text is read here
TIMM = ["vit_base_patch16_224", "vit_relpos_base_patch16_224", "vit_base_patch16_rpn_224",
        "vit_base_patch16_siglip_224", "vit_base_patch16_clip_224", "vit_base_patch14_dinov2",
        "vit_base_patch14_reg4_dinov2", "vit_base_patch16_dinov3",
        "deit_base_patch16_224", "deit_base_distilled_patch16_224", "deit3_base_patch16_224", "beit_base_patch16_224",
        "beitv2_base_patch16_224", "eva02_base_patch14_224", "flexivit_base", "cait_s24_224", "xcit_small_12_p16_224",
        "pit_b_224", "levit_192", "swin_base_patch4_window7_224", "swinv2_base_window8_256",
        "maxvit_tiny_tf_224", "maxxvit_rmlp_nano_rw_256", "coatnet_0_rw_224", "hiera_base_224", "davit_tiny",
        "twins_svt_small", "pvt_v2_b1", "convnext_tiny", "convnextv2_tiny", "vitamin_small_224", "mixer_b16_224",
        "poolformer_s12", "fastvit_t8", "mobilevit_s", "efficientnet_b0", "regnety_032", "resnet50"]
SMALL = {"num_hidden_layers": 2, "depths": [1, 1, 1, 1], "depth_coefficient": 0.2}  # of transformers
SQUARE = {"height": 224, "width": 224}
CROPPED = {"size": {"shortest_edge": 224}, "crop_size": SQUARE}
TRANSFORMERS = {  # model, and its image processor with its settings
    "clip": ("CLIPModel", "CLIPImageProcessor", CROPPED), "siglip": ("SiglipModel", "SiglipImageProcessor", {}),
    "align": ("AlignModel", "EfficientNetImageProcessor", {"size": SQUARE, "crop_size": SQUARE}),
    "clip, image tower": ("CLIPVisionModel", "CLIPImageProcessor", CROPPED),
    "siglip, image tower": ("SiglipVisionModel", "SiglipImageProcessor", {}),
    "vit": ("ViTModel", "ViTImageProcessor", {}), "deit": ("DeiTModel", "DeiTImageProcessor", {}),
    "dinov2": ("Dinov2Model", "BitImageProcessor", CROPPED),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", "BitImageProcessor", CROPPED),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTImageProcessor", {}), "beit": ("BeitModel", "ViTImageProcessor", {}),
    "ijepa": ("IJepaModel", "ViTImageProcessor", {}), "vit_msn": ("ViTMSNModel", "ViTImageProcessor", {}),
    "convnext": ("ConvNextModel", "ConvNextImageProcessor", {"size": {"shortest_edge": 224}}),
    "resnet": ("ResNetModel", "ConvNextImageProcessor", {"size": {"shortest_edge": 224}})}


def shallow(create: Callable, name: str, **options):
    """A model of timm with as few blocks as its architecture takes."""
    for few in ({},) if name.startswith("fastvit") else FEW:  # its stages are of several kinds, and are not checked
        try:
            return create(name, **options | {"pretrained": False} | few)
        except Exception:  # each architecture has its own way to refuse
            if not few:
                raise


def of_open_clip() -> Iterator[tuple[str, list[str], Callable]]:
    """What open_clip lists: library, names, and what makes a Model. Names whose image towers differ in image size,
    output width or the kind of GELU alone come together; the smallest images are taken."""
    import open_clip
    import timm

    towers: dict[str, dict[str, dict]] = {}
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        own = {key: value for key, value in config["vision_cfg"].items()
               if key != "image_size" and not key.startswith("timm_drop")}
        if "timm_model_name" in own:
            own["timm_model_name"] = re.sub(r"_\d+$", "", own["timm_model_name"])
        towers.setdefault(json.dumps(own, sort_keys=True), {})[name] = config
    create = timm.create_model

    def make(device, configs: dict[str, dict]):
        from utils.models.open_clip import as_model

        name, config = min(configs.items(), key=lambda pair: pair[1]["vision_cfg"]["image_size"])
        vision = copy.deepcopy(config["vision_cfg"])
        vision["output_tokens"] = False  # CoCa's, for its captions
        vision["layers"] = [1, 1, 1, 1] if isinstance(vision.get("layers"), list) else 2
        with mock.patch("timm.create_model", lambda *args, **options: shallow(create, *args, **options)):
            network = open_clip.CLIP(config["embed_dim"], vision, TEXT, quick_gelu=config.get("quick_gelu", False))
        return as_model(network, name, "random weights, seed 0", device)

    for configs in sorted(towers.values(), key=list):
        yield "open_clip", list(configs), lambda device, configs=configs: make(device, configs)


def of_timm() -> Iterator[tuple[str, list[str], Callable]]:
    """Families of timm, as `of_open_clip` gives its models."""
    import timm

    from utils.models.timm import as_model

    for name in TIMM:
        yield "timm", [name], lambda device, name=name: as_model(
            shallow(timm.create_model, name, num_classes=0), name, "random weights, seed 0", device)


def of_transformers() -> Iterator[tuple[str, list[str], Callable]]:
    """Families of transformers, as `of_open_clip` gives its models; each goes through a folder."""
    import torch
    import transformers

    from utils.models import loading

    def make(device, model: str, processor: str, settings: dict):
        kind = getattr(transformers, model)
        config = kind.config_class()
        vision = getattr(config, "vision_config", config)
        vision = type(vision)(**{field: few for field, few in SMALL.items() if hasattr(vision, field)})
        if hasattr(config, "text_config"):
            config.vision_config, config.text_config.num_hidden_layers, config.text_config.vocab_size = vision, 1, 16
        config = config if hasattr(config, "text_config") else vision
        transformers.utils.logging.disable_progress_bar()
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            kind(config).save_pretrained(folder)
            getattr(transformers, processor)(**settings).save_pretrained(folder)
            return loading.load(f"hf:{folder}", None, device)

    for name, (model, processor, settings) in TRANSFORMERS.items():
        yield "transformers", [name], lambda device, all=(model, processor, settings): make(device, *all)
