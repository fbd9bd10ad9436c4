import importlib.util

import literal
import pytest
import torch
from builders import TEXT, VISION, images_for, model_of, random_clip

from utils.cli import UserError
from utils.decompose.decomposer import Decomposer
from utils.decompose.tower import decompose, read_tower, refusal
from utils.runs.components import Component


def test_every_term_equals_its_definition(variant):
    _, model = variant
    images = images_for(model)
    terms = decompose(read_tower(model.visual), images)
    slow, arrays = literal.decompose(model.visual, images), terms.arrays()
    assert terms.values.dtype == torch.float32
    torch.testing.assert_close(arrays["attn"].double(), slow["attn"].sum(dim=2), atol=1e-5, rtol=0)
    torch.testing.assert_close(arrays["mlp"].double(), slow["mlp"], atol=1e-5, rtol=0)
    torch.testing.assert_close(arrays["cls_attn"].double(), slow["attn"][:, :, 0].sum(dim=2), atol=1e-5, rtol=0)
    torch.testing.assert_close(terms.representation.double(), slow["representation"], atol=1e-5, rtol=0)


def test_components_are_named_in_the_order_of_their_terms():
    decomposer = Decomposer(model_of(random_clip(vision_cfg={"layers": 2, "head_width": 24}).visual))
    names = [str(component) for component in decomposer.components]
    assert names == ["0.0", "0.1", "1.0", "1.1", "embedding", "mlp 0", "mlp 1"]
    terms = decomposer.terms(torch.randn(2, 3, 32, 32))
    assert terms.components == decomposer.components
    assert torch.equal(terms.of("mlp")[:, 1], terms.values[:, terms.components.index(Component("mlp", 1))])


def test_terms_sum_to_the_models_own_output(variant):
    _, model = variant
    images = images_for(model, 5)
    terms = decompose(read_tower(model.visual), images)
    own = torch.nn.functional.normalize(model.encode_image(images), dim=-1)
    torch.testing.assert_close(terms.values.sum(dim=1), own, atol=1e-5, rtol=0)
    torch.testing.assert_close(terms.representation.norm(dim=-1), torch.ones(5), atol=1e-5, rtol=0)


def test_a_batch_of_one_equals_its_place_in_a_larger_batch():
    model = random_clip()
    images, tower = images_for(model, 4), read_tower(model.visual)
    together, alone = decompose(tower, images), decompose(tower, images[2:3])
    torch.testing.assert_close(alone.values[0], together.values[2], atol=1e-6, rtol=0)


def test_the_embedded_model_is_exact():
    from utils.models.loading import load

    clip = load("emojiclip", None, torch.device("cpu"))
    images = images_for(clip.network, 2)
    arrays, slow = decompose(read_tower(clip.tower), images).arrays(), literal.decompose(clip.tower, images)
    torch.testing.assert_close(arrays["attn"].double(), slow["attn"].sum(dim=2), atol=1e-5, rtol=0)
    torch.testing.assert_close(arrays["mlp"].double(), slow["mlp"], atol=1e-5, rtol=0)
    torch.testing.assert_close(arrays["cls_attn"].double(), slow["attn"][:, :, 0].sum(dim=2), atol=1e-5, rtol=0)


def test_check_sees_a_model_that_computes_something_else():
    visual = random_clip().visual
    decomposer, images = Decomposer(model_of(visual)), torch.randn(3, 3, 32, 32)
    found = decomposer.check(images, repeats=1)
    assert found["error"] < 1e-5
    assert found["cost"] > 0
    projection = visual.transformer.resblocks[1].attn.out_proj
    projection.bias = torch.nn.Parameter(projection.bias + torch.arange(48) * 0.05)
    assert decomposer.check(images, repeats=1)["error"] > 1e-4


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

    vision = changes if "timm_model_name" in changes else VISION | changes
    model = open_clip.CLIP(embed_dim=20, vision_cfg=vision, text_cfg=TEXT).eval()
    assert reason in refusal(model.visual)
    with pytest.raises(UserError, match=reason):
        read_tower(model.visual)


def test_a_tower_that_is_known_has_no_refusal(variant):
    _, model = variant
    assert refusal(model.visual) is None


def test_a_resnet_is_refused_before_it_sees_an_image():
    import open_clip

    vision = VISION | {"layers": [1, 1, 1, 1], "width": 16, "head_width": 16}
    model = open_clip.CLIP(embed_dim=20, vision_cfg=vision, text_cfg=TEXT)
    with pytest.raises(UserError, match="it is a ResNet"):
        Decomposer(model_of(model.visual, (32, 32)))


def test_an_unknown_attention_is_refused():
    model = random_clip()
    model.visual.transformer.resblocks[1].attn = torch.nn.Linear(48, 48)
    with pytest.raises(UserError, match="unknown class"):
        read_tower(model.visual)
    model = random_clip()
    model.visual.transformer.resblocks[0].norm_3 = torch.nn.LayerNorm(48)
    with pytest.raises(UserError, match="norm_3"):
        read_tower(model.visual)


def test_the_sum_that_a_kernel_tells_gives_the_same_terms(variant, monkeypatch):
    """On a GPU, what the class token reads from itself comes from the softmax's sum, which the kernel tells."""
    _, model = variant
    tower, images = read_tower(model.visual), images_for(model)
    softmax = decompose(tower, images)

    def attention(q, k, v):
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        return scores.softmax(dim=-1) @ v, scores.logsumexp(dim=-1)[:, :, 0]

    monkeypatch.setattr("utils.decompose.tower._attention", attention)
    told = decompose(tower, images)
    for what in ("values", "cls_attn"):
        torch.testing.assert_close(getattr(told, what), getattr(softmax, what), atol=1e-5, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the decomposition on a GPU was not covered")
def test_a_gpu_gives_the_same_terms():
    model = random_clip()
    images = images_for(model)
    here = decompose(read_tower(model.visual), images)
    there = decompose(read_tower(model.cuda().visual), images.cuda())
    torch.testing.assert_close(there.values.cpu(), here.values, atol=1e-5, rtol=0)


def test_open_clip_is_the_released_package():
    """Nothing of open_clip is copied or patched here."""
    assert "site-packages" in importlib.util.find_spec("open_clip").origin
