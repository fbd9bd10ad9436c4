import importlib.util
from functools import partial

import literal
import pytest
import torch
from builders import VISION, images_for, random_clip

from utils.cli import UserError
from utils.decompose.tower import by_tower, check, decompose, read_tower


def test_every_term_equals_its_definition(variant):
    _, model = variant
    images = images_for(model)
    terms = decompose(read_tower(model.visual), images)
    slow = literal.decompose(model.visual, images)
    assert terms.attn.dtype == torch.float32
    assert terms.attn.shape == slow["attn"].sum(2).shape
    torch.testing.assert_close(terms.attn.double(), slow["attn"].sum(dim=2), atol=1e-5, rtol=0)
    torch.testing.assert_close(terms.mlp.double(), slow["mlp"], atol=1e-5, rtol=0)
    torch.testing.assert_close(terms.cls_attn.double(), slow["attn"][:, :, 0].sum(dim=2), atol=1e-5, rtol=0)
    torch.testing.assert_close(terms.representation.double(), slow["representation"], atol=1e-5, rtol=0)


def test_terms_sum_to_the_models_own_output(variant):
    _, model = variant
    images = images_for(model, 5)
    terms = decompose(read_tower(model.visual), images)
    own = torch.nn.functional.normalize(model.encode_image(images), dim=-1)
    torch.testing.assert_close(terms.attn.sum((1, 2)) + terms.mlp.sum(1), own, atol=1e-5, rtol=0)
    torch.testing.assert_close(terms.representation.norm(dim=-1), torch.ones(5), atol=1e-5, rtol=0)


def test_a_batch_of_one_equals_its_place_in_a_larger_batch():
    model = random_clip()
    images, tower = images_for(model, 4), read_tower(model.visual)
    together, alone = decompose(tower, images), decompose(tower, images[2:3])
    torch.testing.assert_close(alone.attn[0], together.attn[2], atol=1e-6, rtol=0)


def test_the_embedded_model_is_exact():
    from utils.models.names import load_clip

    clip = load_clip("emojiclip", None, torch.device("cpu"))
    images = images_for(clip.model, 2)
    terms, slow = decompose(read_tower(clip.model.visual), images), literal.decompose(clip.model.visual, images)
    torch.testing.assert_close(terms.attn.double(), slow["attn"].sum(dim=2), atol=1e-5, rtol=0)
    torch.testing.assert_close(terms.mlp.double(), slow["mlp"], atol=1e-5, rtol=0)
    torch.testing.assert_close(terms.cls_attn.double(), slow["attn"][:, :, 0].sum(dim=2), atol=1e-5, rtol=0)


def test_check_sees_a_wrong_tower():
    model = random_clip()
    tower, images = read_tower(model.visual), images_for(model)
    read = partial(by_tower, tower)
    assert check(model.encode_image, read, images, repeats=1)["error"] < 1e-5
    tower.blocks[1].out_bias = tower.blocks[1].out_bias + torch.arange(48) * 0.05
    assert check(model.encode_image, read, images, repeats=1)["error"] > 1e-4


@pytest.mark.parametrize("changes, reason", [
    ({"pool_type": "avg"}, "avg"),
    ({"attentional_pool": True, "attn_pooler_heads": 4}, "by attention"),
    ({"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear", "image_size": 224}, "timm"),
    ({"layers": [1, 1, 1, 1], "width": 16, "head_width": 16}, "ResNet"),
    ({"scale_attn_inner": True}, "scale_attn_inner"),
    ({"scale_attn": True}, "ln_attn"),
])
def test_what_cannot_be_decomposed_is_refused_with_its_reason(changes, reason):
    import open_clip
    from builders import TEXT

    vision = {key: value for key, value in VISION.items() if not (changes.get("timm_model_name") and key != "image_size")}
    model = open_clip.CLIP(embed_dim=20, vision_cfg=vision | changes, text_cfg=TEXT).eval()
    with pytest.raises(UserError, match=reason):
        read_tower(model.visual)


def test_an_unknown_attention_is_refused():
    model = random_clip()
    model.visual.transformer.resblocks[1].attn = torch.nn.Linear(48, 48)
    with pytest.raises(UserError, match="unknown class"):
        read_tower(model.visual)
    model = random_clip()
    model.visual.transformer.resblocks[0].norm_3 = torch.nn.LayerNorm(48)
    with pytest.raises(UserError, match="norm_3"):
        read_tower(model.visual)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the decomposition on a GPU was not covered")
def test_a_gpu_gives_the_same_terms():
    model = random_clip()
    images = images_for(model)
    here = decompose(read_tower(model.visual), images)
    there = decompose(read_tower(model.cuda().visual), images.cuda())
    torch.testing.assert_close(there.attn.cpu(), here.attn, atol=1e-5, rtol=0)


def test_open_clip_is_the_released_package():
    """Nothing of open_clip is copied or patched here."""
    assert "site-packages" in importlib.util.find_spec("open_clip").origin
