"""Small random models of transformers, each saved as a folder with its image processor, and its tokenizer if it has
one."""
import torch

WORDS = ["a", "red", "blue", "dog", "cat", "of", "photo"]
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 10,
        "max_position_embeddings": 80, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": 32, "patch_size": 8}
SQUARE = {"height": 32, "width": 32}


def save_clip(kind: str, folder, **vision) -> None:
    """A model with texts: clip, siglip, or align; `vision` changes its image tower's settings."""
    import transformers as hf
    from tokenizers import Tokenizer, pre_tokenizers, processors
    from tokenizers.models import WordLevel

    numbers = {word: i for i, word in enumerate(["<pad>", "<unk>", "<eos>", *WORDS])}
    words = Tokenizer(WordLevel(numbers, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 2)])
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>",
                                           eos_token="<eos>")
    if kind == "clip":
        model = hf.CLIPModel(hf.CLIPConfig(text_config=TEXT, vision_config=VISION | vision, projection_dim=12))
        processor = hf.CLIPProcessor(hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE), tokenizer)
    elif kind == "siglip":
        model = hf.SiglipModel(hf.SiglipConfig(text_config=TEXT | {"projection_size": 16},
                                               vision_config=VISION | vision))
        processor = hf.SiglipProcessor(hf.SiglipImageProcessor(size=SQUARE), tokenizer)
    else:
        sizes = {"image_size": 32, "width_coefficient": 0.3, "depth_coefficient": 0.1, "hidden_dim": 64}
        model = hf.AlignModel(hf.AlignConfig(text_config=TEXT, vision_config=sizes | vision, projection_dim=96))
        processor = hf.AlignProcessor(hf.EfficientNetImageProcessor(size=SQUARE, crop_size=SQUARE), tokenizer)
    moved(model).save_pretrained(folder)
    processor.save_pretrained(folder)


def moved(model: torch.nn.Module) -> torch.nn.Module:
    """The model, every parameter moved at random."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim:
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return model


IMAGE_SIDES = {  # model, its processor, and its settings: (class, settings) of each
    "vit": ("ViTModel", {}, "ViTImageProcessor", {"size": SQUARE}),
    "deit": ("DeiTModel", {}, "DeiTImageProcessor", {"size": {"height": 36, "width": 36}, "crop_size": SQUARE}),
    "dinov2": ("Dinov2Model", {"image_size": 48}, "BitImageProcessor",
               {"size": {"shortest_edge": 36}, "crop_size": SQUARE}),
    "dinov2_registers": ("Dinov2WithRegistersModel", {"num_register_tokens": 3, "use_swiglu_ffn": True},
                         "BitImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": SQUARE}),
    "dinov3": ("DINOv3ViTModel", {"num_register_tokens": 2}, "DINOv3ViTImageProcessor", {"size": SQUARE}),
    "beit": ("BeitModel", {"use_relative_position_bias": True}, "ViTImageProcessor", {"size": SQUARE}),
    "ijepa": ("IJepaModel", {}, "ViTImageProcessor", {"size": SQUARE}),
    "clip_vision": ("CLIPVisionModel", {}, "CLIPImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": SQUARE}),
    "siglip_vision": ("SiglipVisionModel", {}, "SiglipImageProcessor", {"size": SQUARE}),
}


def save_image_side(kind: str, folder) -> None:
    """A model without texts, one of IMAGE_SIDES."""
    import transformers as hf

    name, changes, processor, settings = IMAGE_SIDES[kind]
    model = getattr(hf, name)
    moved(model(model.config_class(**VISION | changes))).save_pretrained(folder)
    getattr(hf, processor)(**settings).save_pretrained(folder)
