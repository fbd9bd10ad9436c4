"""VLMs by name: each kind's own logits are the cosine of our embeddings times the scale we report."""
import numpy as np
import pytest
import torch
from builders import ROOT
from hub_models import save_clip, save_image_side
from PIL import Image

from utils.cli import UserError
from utils.models import loading, names

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["clip", "align", "siglip"])
def test_models_of_transformers_give_their_own_logits(kind, tmp_path):
    import transformers as hf

    save_clip(kind, tmp_path)
    vlm = loading.load_vlm(str(tmp_path), CPU)
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)) for _ in range(3)]
    texts = ["a red dog", "photo of a blue cat", "dog " * 200]  # the last is cut off where the model's context ends
    images = vlm.embed_images(torch.stack([vlm.preprocess(picture) for picture in pictures]))
    words = vlm.embed_texts(texts)
    assert images.dtype == words.dtype == torch.float32
    length = {"clip": 80, "align": 64, "siglip": 80}[kind]  # ALIGN has more positions than it was trained on
    assert vlm.cut(texts) == [2]
    assert vlm.image_size == (32, 32)
    assert torch.allclose(images.norm(dim=1), torch.ones(3))
    assert torch.allclose(words.norm(dim=1), torch.ones(3))
    assert torch.allclose(vlm.embed_texts(texts[:1]), words[:1], atol=1e-5)

    model, processor = hf.AutoModel.from_pretrained(tmp_path).eval(), hf.AutoProcessor.from_pretrained(tmp_path)
    inputs = processor(images=pictures, text=texts, padding="max_length", truncation=True,
                       max_length=length, return_tensors="pt")
    with torch.inference_mode():
        own = model(**inputs).logits_per_image
    offset = model.logit_bias if kind == "siglip" else 0  # left out of the reward
    assert torch.allclose(vlm.logit_scale * images @ words.T, own - offset, atol=2e-4)
    assert own.std() > 1e-3


def test_the_embedded_vlm_and_a_folder_of_open_clip():
    vlm = loading.load_vlm("r-open-clip:emojiclip", CPU)
    same = loading.load_vlm(f"r-open-clip:local-dir:{ROOT / 'models' / 'emojiclip'}", CPU)
    assert vlm.logit_scale == 100
    assert vlm.image_size == (64, 64)
    assert torch.equal(vlm.embed_texts(["a red dog"]), same.embed_texts(["a red dog"]))
    assert vlm.embed_images(torch.zeros(2, 3, 64, 64)).shape == vlm.embed_texts(["x", ""]).shape


def test_sixteen_bits_are_close():
    full, half = (loading.load_vlm("r-open-clip:emojiclip", CPU, half=half) for half in (False, True))
    texts = ["a red dog", "two blue cats on a yellow ground"]
    assert half.embed_texts(texts).dtype == torch.float32
    assert not torch.equal(full.embed_texts(texts), half.embed_texts(texts))
    assert (full.embed_texts(texts) * half.embed_texts(texts)).sum(dim=1).min() > 0.999


@pytest.mark.parametrize("name, message", [
    ("emojiclip", "closest are r-open-clip:emojiclip"),
    ("r-open-clip:ViT-L14:openai", "no open_clip model 'ViT-L14'; closest are r-open-clip:ViT-L-14"),
    ("r-open-clip:ViT-L-14:laion2b", "ViT-L-14 has no weights 'laion2b'; closest are .*laion2b_s32b_b82k"),
    ("r-open-clip:ViT-L-14", "ViT-L-14 has no weights ''"),
    ("clip", "neither a folder nor a hub name")])
def test_an_unknown_vlm_is_refused_with_the_closest(name, message):
    with pytest.raises(UserError, match=message):
        loading.load_vlm(name, CPU)


def test_a_model_without_a_text_side_is_refused(tmp_path):
    save_image_side("vit", tmp_path)
    with pytest.raises(UserError, match="has no text side"):
        loading.load_vlm(str(tmp_path), CPU)


@pytest.mark.parametrize("name, split", [
    ("r-open-clip:ViT-bigG-14-CLIPA-336:datacomp1b", ("ViT-bigG-14-CLIPA-336", "datacomp1b")),
    ("r-open-clip:hf-hub:apple/DFN5B-CLIP-ViT-H-14-384", ("hf-hub:apple/DFN5B-CLIP-ViT-H-14-384", None)),
    ("r-open-clip:emojiclip", ("emojiclip", None)), ("openai/clip-vit-large-patch14", None)])
def test_the_name_of_every_kind_is_split(name, split):
    assert names.split_vlm_name(name) == split


@pytest.mark.parametrize("name, message", [
    ("r-open-clip:ViT-bigG-14-CLIPA-336:datacomp", "has no weights 'datacomp'"),
    ("r-open-clip:hub:apple/DFN5B-CLIP-ViT-H-14-384", "no open_clip model 'hub'"),
    ("clip-vit-large-patch14", "neither a folder nor a hub name")])
def test_a_name_that_cannot_be_split_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        names.split_vlm_name(name)
