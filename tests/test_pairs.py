"""Pairs of patches and words: they sum to the cosine and its marginals, and equal the literal terms' products."""
import json

import literal
import numpy as np
import pytest
import torch
from builders import VIT, images_for, model_of, random_clip, random_images, random_timm

from utils.analysis import heatmaps, pairs, pairs_truth
from utils.decompose.decomposer import Decomposer
from utils.decompose.texts import TextDecomposer
from utils.models.loading import load

TEXT = "two owls on a striped red background"


@pytest.fixture(scope="module")
def clip():
    return load("emojiclip", None, torch.device("cpu"))


def test_every_pair_is_the_product_of_its_literal_terms(clip):
    image = random_images(64, 1)
    found = pairs.compute(Decomposer(clip), TextDecomposer(clip), image, TEXT)
    network = clip.network
    slow = literal.decompose(network.visual, image)
    attn, mlp = slow["attn"][0], slow["mlp"][0]                      # [l, n, h, d], [l + 1, d]
    sources = attn.sum(dim=(0, 2))
    rows = torch.cat([sources[1:], sources[:1], mlp[1:].sum(0, keepdim=True), mlp[:1]])
    ids, text = clip.tokenizer([TEXT])[0], network.double()
    mask = torch.full((32, 32), -torch.inf, dtype=torch.float64).triu(1)
    other = literal.decompose_text(text, ids, int(ids.argmax()), mask,
                                   text.token_embedding(ids) + text.positional_embedding)
    network.float()
    words = other["attn"].sum(dim=(0, 2))[:int(ids.argmax()) + 1]    # no word of this text has two tokens
    columns = torch.cat([words, other["mlp"][1:].sum(0, keepdim=True), other["mlp"][:1]])
    np.testing.assert_allclose(found.values, rows @ columns.T, atol=1e-5)
    heads, of_text = attn.sum(dim=1).flatten(0, 1), other["attn"].sum(dim=1).flatten(0, 1)
    np.testing.assert_allclose(found.heads, heads @ of_text.T, atol=1e-5)
    assert found.columns == ["<start>", *TEXT.split(), "<end>", "MLPs", "start embedding"]
    assert found.rows[:9] == [*(f"patch 0,{i}" for i in range(8)), "patch 1,0"]
    assert found.rows[64:] == ["class token", "MLPs", "start embedding"]


def test_pairs_sum_to_the_cosine_and_to_the_heat_map(clip):
    image, decomposer = random_images((64, 96), 1), Decomposer(clip)
    found = pairs.compute(decomposer, TextDecomposer(clip), image, TEXT)
    direction = clip.embed_texts([TEXT])
    (heat,) = heatmaps.explain(decomposer, image, [TEXT], direction.numpy())
    assert found.values.sum() == pytest.approx(found.cosine, abs=1e-5)
    assert found.cosine == pytest.approx(heat.similarity, abs=1e-5)
    np.testing.assert_allclose(found.maps().sum(axis=0), heat.patches, atol=1e-5)
    np.testing.assert_allclose(found.by_word.sum(axis=0), found.heads, atol=1e-5)


@pytest.mark.parametrize("kind", ["class_token", "pooled_by_average"])
def test_other_image_towers_have_pairs_too(clip, kind):
    """The image tower is another kind than the text's; only the width must agree."""
    if kind == "class_token":
        network = random_clip()
        model = model_of(network.visual)
        image = images_for(network, 1)
    else:
        tower = random_timm("vit_tiny_patch16_224", VIT | {"global_pool": "avg"})
        model, image = model_of(tower, (32, 32), prefix_tokens=1), random_images(32, 1)
    width = Decomposer(model).terms(image).representation.shape[1]
    texts = TextDecomposer(clip)
    bent = torch.randn(128, width, generator=torch.Generator().manual_seed(0)) / 128 ** 0.5
    names, vectors, heads, by_head = pairs.text_columns(texts, TEXT)
    parts = (names, vectors @ bent, heads @ bent, by_head @ bent)
    found = pairs.of_columns(Decomposer(model), texts, image, TEXT, parts)
    assert found.values.sum() == pytest.approx(found.cosine, abs=1e-5)
    representation = Decomposer(model).terms(image).representation[0]
    np.testing.assert_allclose(found.values.sum(axis=0), vectors @ bent @ representation, atol=1e-5)


def test_the_script_writes_pairs_and_a_picture(tmp_path, run_script, refused):
    from PIL import Image

    picture = tmp_path / "x.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(picture)
    common = ("--model", "emojiclip", "--device", "cpu", "--image", picture)
    code, out, _ = run_script("compute_pairs", *common, "--text", TEXT, "--against", "a cat", "--top_heads", 2,
                              "--output", tmp_path / "p.png")
    assert code == 0
    assert "the first less the second" in out
    long = "a very " * 40
    _, _, err = run_script("compute_pairs", *common, "--text", f"{long}big dog", "--output", tmp_path / "q.png")
    assert "1 of 1 texts have more than the 32 tokens that the model reads" in err
    found = json.loads((tmp_path / "p.json").read_text())
    for one in (found, found["against"]):
        values = np.array(one["pairs"])
        assert values.shape == (len(one["rows"]), len(one["columns"]))
        assert values.sum() == pytest.approx(one["cosine"], abs=1e-5)
        assert np.array(one["heads"]["pairs"]).shape == (36, 16)
    assert [len(word["pairs"]) for word in found["top_heads"]] == [2] * 9
    assert Image.open(tmp_path / "p.png").width > 500
    assert "--text is empty" in refused("compute_pairs", *common, "--text", "")
    assert "let the name end in .png" in refused("compute_pairs", *common, "--text", "a", "--output", "x.jpg")
    assert "no text side" in refused("compute_pairs", "--image", picture, "--text", "a", "--model",
                                     "timm:vit_tiny_patch16_224")


def test_scores_of_maps_are_those_of_their_pixels():
    mask = np.zeros((8, 8), bool)
    mask[:4] = True
    hit, precision = pairs_truth.measures(np.array([[1.0, 0.9], [0.1, 0.0]]), mask)
    assert hit
    assert precision > 0.95
    assert not pairs_truth.measures(np.array([[0.0, 0.0], [0.0, 1.0]]), mask)[0]


def test_shares_of_the_baseline_sum_to_what_changes_from_the_reference(clip):
    """Shares of all patches and words sum to the product of what both representations change by, up to the steps."""
    way, image, text = pairs_truth.IntegratedJacobians(clip, steps=12), random_images(64, 1), "red owls"
    names, maps = way(image, text)
    assert names == ["<start>", "red", "owls", "<end>"]
    assert maps.shape == (4, 8, 8)
    ids = clip.tokenizer([text])
    start = way.text.embed(torch.where(ids == ids.max(), ids, 0)).x[0]
    change = pairs_truth.run(way.text, way.text.embed(ids).x[0], -1, causal=True) - pairs_truth.run(way.text, start, -1,
                                                                                                   causal=True)
    grey = pairs_truth.run(way.image, way.image.embed(torch.zeros_like(image))[0], 0)
    own = pairs_truth.run(way.image, way.image.embed(image)[0], 0)
    torch.testing.assert_close(own, clip.embed_images(image)[0].clone(), atol=1e-5, rtol=0)
    assert maps.sum() == pytest.approx(float((own - grey) @ change), abs=0.03)


def test_words_are_scored_on_scenes(tmp_path, run_script, refused):
    code, out, _ = run_script("compute_pairs_truth", "--scenes", 4, "--baseline_scenes", 1, "--steps", 1,
                              "--output_dir", tmp_path, "--device", "cpu")
    assert code == 0
    assert "integrated Jacobians, first 1 scenes" in out
    found = json.loads((tmp_path / "emoji_seg_pairs_truth_emojiclip.json").read_text())
    kinds = found["results"]["decomposition, all scenes"]["kinds"]
    assert kinds["color"]["points_to"] == "ground"
    assert kinds["color"]["scenes"] == 4
    assert "--baseline_scenes 9: there are 4 scenes" in refused("compute_pairs_truth", "--scenes", 4,
                                                                "--baseline_scenes", 9)
