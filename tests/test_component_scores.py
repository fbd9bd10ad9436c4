"""Scores of components for features: their two checks against literal definitions, and the script."""
import json
import shutil

import literal
import numpy as np
import pytest
import torch
from builders import NAMES, ROOT, call_script, components_of, opened, uneven_terms, write_run
from PIL import Image
from scipy.stats import spearmanr

from utils.analysis import component_scores, truth
from utils.cli import UserError
from utils.data import captions, scenes
from utils.models import loading
from utils.runs.components import Component
from utils.runs.run import Run


def flat(parts):
    return components_of(parts).astype(np.float64)


def literal_agreement(component, whole, texts):
    """Spearman correlations of two rankings of images, one text after the other."""
    found = [spearmanr([image @ text for image in component], [image @ text for image in whole]).statistic
             for text in texts]
    return sum(found) / len(found)


@pytest.mark.parametrize("images", [2, 64, 131])
def test_agreements_are_the_literal_rank_correlations(images):
    parts, rng = uneven_terms(images), np.random.default_rng(5)
    parts["mlp"][:, 2] = rng.normal(size=7)  # ranks nothing
    texts = [rng.normal(size=(number, 7)).astype(np.float32) for number in (3, 1, 6)]
    other = uneven_terms(images, seed=1)
    for whole in (parts, other):
        found, ranked = component_scores.agreements(opened(parts, NAMES), opened(whole, NAMES), texts)
        assert found.shape == (3, 12)
        assert ranked == images
        assert not found[:, 8].any()
        x = flat(parts)
        for row, embeddings in zip(found, texts):
            slow = [literal_agreement(x[:, c], flat(whole).sum(axis=1), embeddings) for c in range(12) if c != 8]
            np.testing.assert_allclose(np.delete(row, 8), slow, atol=1e-9)


def test_one_image_agrees_with_nothing_and_of_many_some_are_taken_evenly(monkeypatch):
    texts = [np.ones((1, 7), np.float32)]
    assert not component_scores.agreements(opened(uneven_terms(1), NAMES), opened(uneven_terms(1), NAMES),
                                           texts)[0].any()
    monkeypatch.setattr(component_scores, "RANKED", 70)
    parts, rows = uneven_terms(139), np.arange(0, 139, 2)
    found, ranked = component_scores.agreements(opened(parts, NAMES), opened(parts, NAMES), texts)
    few = {what: part[rows] for what, part in parts.items()}
    assert ranked == 70
    np.testing.assert_array_equal(found, component_scores.agreements(opened(few, NAMES), opened(few, NAMES), texts)[0])


@pytest.mark.parametrize("images", [60, 301])
def test_shares_are_the_analysis_of_variance_of_every_component(images):
    parts, rng = uneven_terms(images), np.random.default_rng(2)
    groups = {"color": rng.integers(3, size=images), "count": rng.integers(20, size=images)}
    parts["conv"][:, 1] += 2 * groups["color"][:, None]
    parts["attn"][:, 4] = 0.5
    found = truth.explained(opened(parts, NAMES), groups)
    assert found["color"][4] == 0
    assert found["color"][11] > 0.5
    for name, group in groups.items():
        slow = [literal.epsilon_squared(flat(parts)[:, c], group) for c in range(12) if c != 4]
        np.testing.assert_allclose(np.delete(found[name], 4), slow, atol=1e-6)


def test_constant_components_are_left_out_and_counted():
    scores, others = np.array([0.1, 0, 0.5, 0.3, 0]), np.array([1, 9, 2, 3, -9])
    assert component_scores.rank_correlation(scores, others) == {"spearman": pytest.approx(0.5), "components": 3,
                                                                 "constant": 2}
    assert component_scores.rank_correlation(scores, np.ones(5))["spearman"] is None
    assert component_scores.rank_correlation(np.array([0.2, 0]), np.array([1, 2])) == {
        "spearman": None, "components": 1, "constant": 1}
    assert component_scores.rank_correlation(np.zeros(3), np.arange(3)) == {"spearman": None, "components": 0,
                                                                            "constant": 3}


def test_the_clip_ranks_where_its_arrays_are_there(tmp_path):
    labels, about = np.zeros(30, np.int64), {"text_model": "clip", "text_option": "clip", "text_weights_sha256": "aa"}
    write_run(tmp_path, "emoji", "m-as-clip", uneven_terms(30), labels, NAMES, **about)
    run = Run.open(tmp_path, "emoji", "m-as-clip", needs="components")
    assert component_scores.target(run) is run
    write_run(tmp_path, "emoji", "clip", {"attn": np.ones((30, 2, 2, 7)), "mlp": np.ones((30, 3, 7))}, labels)
    found = component_scores.target(run)
    assert found.place.model == "clip"
    assert found.layout["attn"] == [2, 2, 7]
    assert component_scores.target(found) is found
    manifest = run.manifest
    with pytest.raises(UserError,
                       match="the arrays of clip have other weights .* than those that m-as-clip was mapped to"):
        run.manifest = manifest | {"text_weights_sha256": "bb"}
        component_scores.target(run)
    with pytest.raises(UserError, match="differ in their skipped images"):
        run.manifest = manifest | {"skipped_indices": [3]}
        component_scores.target(run)


def test_the_lists_of_features_are_whole_and_true_to_the_scenes():
    published = ["color", "texture", "animal", "person", "location", "pattern", "shape"]
    found = component_scores.read(str(ROOT / "configs" / "features.yaml"))
    assert list(found) == published
    assert all(6 <= len(texts) <= 10 for texts in found.values())
    found = component_scores.read(str(ROOT / "configs" / "features_emoji.yaml"))
    assert set(found) == set(truth.ATTRIBUTES)
    assert all(len(texts) <= 128 for texts in found.values())
    assert found["color"] == [f"{captions.with_article(color)} background" for color in scenes.COLORS]
    assert found["texture"] == [f"{captions.with_article(texture)} background" for texture in scenes.TEXTURES]
    assert [text.removeprefix("in the ").removeprefix("on the ").removeprefix("at the ")
            for text in found["position"]] == list(
scenes.POSITIONS)
    assert [text.split()[1] for text in found["size"]] == list(scenes.SIZES)
    assert [text.split()[1] for text in found["style"]] == [captions.STYLE_WORDS[style] for style in scenes.styles()]
    assert [text.split()[0] for text in found["count"]] == list(captions.NUMBERS.values())
    names = {concept["name"] for concept in scenes.concepts()}
    assert all(text.removeprefix("a ").removeprefix("an ") in names for text in found["object"])


@pytest.mark.parametrize("content, message", [
    ("", "names no feature"), ("color: red\n", "color: should be a list of texts"),
    ("color: []\n", "color: should be a list"),
    ("count: [one, 2]\n", "quote those that are no text"), ("a: ['']\n", "a: should be a list of texts"),
    ("a: [red, blue, red]\n", "a: repeats 'red'"), ("- red\n", "should hold"), ("a: [\n", "cannot be read as YAML")])
def test_a_wrong_file_of_features_is_refused(refused, tmp_path, content, message):
    path = tmp_path / "f.yaml"
    path.write_text(content)
    assert message in refused("compute_component_scores", "--model", "emojiclip", "--input_dir", tmp_path, "--features",
                              path)


@pytest.fixture(scope="module")
def scenes_run(tmp_path_factory):
    """Arrays of the embedded model on 140 scenes of emoji_seg, and of a random model with uneven heads, mapped to
    it."""
    from utils.data import datasets

    folder = tmp_path_factory.mktemp("scores")
    splits = datasets.REGISTRY["emoji_seg"].scenes
    before, splits["test"] = splits["test"], (140, 3)
    try:
        call_script("compute_prs", "--model", "emojiclip", "--dataset", "emoji_seg", "--batch_size", 70,
                    "--num_workers", 0,
                    "--device", "cpu", "--output_dir", folder)
        manifest = json.loads((folder / "emoji_seg_emojiclip.json").read_text())
        write_run(folder, "emoji_seg", "m-as-emojiclip", uneven_terms(140, 128),
                  np.load(folder / "emoji_seg_labels.npy"), NAMES,
                  classes=manifest["classes"], text_model="emojiclip", text_option="emojiclip",
                  text_pretrained="emojiclip",
                  text_weights_sha256=manifest["weights_sha256"])
        yield folder
    finally:
        splits["test"] = before


def options(folder, *more):
    return ("--dataset", "emoji_seg", "--input_dir", folder, "--features", ROOT / "configs" / "features_emoji.yaml",
            "--device",
            "cpu", *more)


@pytest.mark.parametrize("model", ["emojiclip", "m-as-emojiclip"])
def test_the_script_tells_scores_and_both_correlations(run_script, scenes_run, tmp_path, model):
    code, out, err = run_script("compute_component_scores",
                                *options(scenes_run, "--model", model, "--truth", "--output_dir",
                                         tmp_path))
    assert code == 0, err
    told = json.loads((tmp_path / f"emoji_seg_component_scores_{model}.json").read_text())
    run, clip = (Run.open(scenes_run, "emoji_seg", name, needs="components") for name in (model, "emojiclip"))
    x, components = run.stack(slice(None)).astype(np.float64), run.components
    whole = clip.stack(slice(None)).astype(np.float64).sum(axis=1)
    assert [Component.from_dict(part) for part in told["components"]] == components
    assert [part["name"] for part in told["components"]] == [str(component) for component in components]
    assert told["images"] == 140
    assert told["rankings"] == {"images": 140, "against": "emojiclip"}
    loaded = loading.load("emojiclip", None, torch.device("cpu"))
    from utils.data import datasets
    drawn = datasets.load_images("emoji_seg").scenes
    for feature in ("color", "size"):
        row = told["features"][feature]
        texts = loaded.network.encode_text(loaded.tokenizer(row["texts"]), normalize=True).numpy()
        slow = [literal_agreement(x[:, c], whole, texts) for c in range(len(components))]
        column = {kind: [part[kind][feature] for part in told["components"]]
                  for kind in ("scores", "rankings", "truth")}
        # ranks of float32 products: a near tie may turn
        np.testing.assert_allclose(column["rankings"], slow, atol=2e-3)
        np.testing.assert_allclose(column["scores"], component_scores.feature_scores([x], [texts])[0], atol=1e-5)
        group = np.array([scene.attributes()[feature] for scene in drawn])
        np.testing.assert_allclose(column["truth"],
                                   [literal.epsilon_squared(x[:, c], group) for c in range(len(components))], atol=1e-5)
        assert row["truth"]["spearman"] == pytest.approx(spearmanr(column["scores"], column["truth"]).statistic)
        assert row["rankings"]["spearman"] == pytest.approx(spearmanr(column["scores"], column["rankings"]).statistic)
        assert row["truth"]["largest_share"] == max(column["truth"])
        assert row["truth"]["constant"] == 0
        best = max(told["components"], key=lambda part: part["scores"][feature])
        assert f"| {feature} | {best['name']} ({best['scores'][feature]:.2f}), " in out
        assert (f" | {row['rankings']['spearman']:.2f} | {row['truth']['spearman']:.2f} | "
                f"{100 * max(column['truth']):.1f} |" in out)
    picture = Image.open(tmp_path / f"emoji_seg_component_scores_{model}.png")
    assert picture.format == "PNG"
    assert picture.width > 800
    if model == "emojiclip":  # the truth of its colour head is known, and its score is among the best
        best = sorted(told["components"], key=lambda part: -part["scores"]["color"])[:3]
        assert "5.4" in [part["name"] for part in best]


def test_without_truth_and_with_features_that_are_not_known(run_script, scenes_run, tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text("animal: [a dog, a cat]\ncolor: [a red background]\n")
    code, out, err = run_script("compute_component_scores", *options(
        scenes_run, "--model", "emojiclip", "--output_dir", tmp_path / "new", "--features", path))
    assert code == 0, err
    assert out.startswith("| feature | best components | rankings |\n| --- | --- | --- |\n| animal | ")
    told = json.loads((tmp_path / "new" / "emoji_seg_component_scores_emojiclip.json").read_text())
    assert set(told["features"]["color"]) == {"texts", "rankings"}
    assert set(told["components"][0]["scores"]) == {"animal", "color"}
    assert "truth" not in told["components"][0]


def test_bad_input_is_one_line(refused, scenes_run, tmp_path, monkeypatch):
    from utils.data import datasets

    def line(folder, *more):
        return refused("compute_component_scores", *options(folder, "--truth", *more))

    path = tmp_path / "f.yaml"
    path.write_text(f"color: [{', '.join(f'a{i}' for i in range(129))}]\n")
    assert "129 texts span more than the 128 directions" in line(scenes_run, "--model", "emojiclip", "--features", path)
    assert "make it with: python compute_prs.py" in line(tmp_path, "--model", "emojiclip")
    shutil.copytree(scenes_run, tmp_path / "run")
    manifest = tmp_path / "run" / "emoji_seg_emojiclip.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"weights_sha256": "0" * 64}))
    assert "are not those of the arrays" in line(tmp_path / "run", "--model", "emojiclip")
    assert "the arrays of emojiclip have other weights" in line(tmp_path / "run", "--model", "m-as-emojiclip")
    monkeypatch.setitem(datasets.REGISTRY["emoji_seg"].scenes, "test", (141, 3))
    assert "the data set has 141 images, and the arrays hold 140" in line(scenes_run, "--model", "emojiclip")


def test_a_model_without_texts_is_sent_to_be_mapped():
    with pytest.raises(UserError, match="--model timm:x has no text side; map it to a CLIP with compute_alignment.py"):
        component_scores.embed({"model": "timm:x"}, [["a"]], 8, "timm:x", None, "cpu", 0)
