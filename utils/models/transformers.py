"""Models of transformers that have an image and a text side: CLIP, ALIGN, SigLIP."""
import torch
from transformers import AutoModel, AutoProcessor

from utils.cli import UserError
from utils.models import names
from utils.models.model import Model, frozen, readable_errors

# How each kind was trained to pad its texts, and their length in tokens.
PADDING = {"clip": True, "align": "max_length", "siglip": "max_length"}
TEXT_LENGTH = {"clip": 77, "align": 64, "siglip": 64}


def load(name: str, device: torch.device) -> Model:
    """Load a model by its hub name or folder. Raises UserError for one that cannot be fetched or read, and for other
    kinds."""
    with readable_errors(f"VLM {name}", "the name, the folder or the network"):
        network = AutoModel.from_pretrained(name, dtype=torch.float32, trust_remote_code=False)
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
    kind = network.config.model_type
    if kind not in PADDING:
        raise UserError(f"VLM {name} is a {kind} model; known are {', '.join(PADDING)}, "
                        f"and every model of open_clip as {names.OPEN_CLIP}MODEL:DATASET")
    network, size = frozen(network, device), getattr(network.config.vision_config, "image_size", 224)

    def preprocess(picture) -> torch.Tensor:
        return processor.image_processor(images=picture, return_tensors="pt")["pixel_values"][0]

    def tokenizer(texts: list[str]):
        return processor.tokenizer(texts, padding=PADDING[kind], truncation=True, max_length=TEXT_LENGTH[kind],
                                   return_tensors="pt")

    return Model(name=names.file_name(name), source=name, device=device, network=network, tower=network.vision_model,
                 encode_image=lambda images: network.get_image_features(pixel_values=images).pooler_output,
                 preprocess=preprocess, image_size=(size, size), class_token=kind == "clip",
                 prefix_tokens=int(kind == "clip"), tokenizer=tokenizer,
                 encode_text=lambda texts: network.get_text_features(**tokenizer(texts).to(device)).pooler_output,
                 logit_scale=1 / network.temperature.item() if kind == "align" else network.logit_scale.exp().item())
