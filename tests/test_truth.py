import csv
import json
import shutil
from collections import Counter

import literal
import numpy as np
import pytest
from builders import ROOT, call_script, opened
from PIL import Image

from utils.analysis import truth
from utils.cli import UserError
from utils.data import scenes


def explained(terms, groups):
    """The shares of heads [b, c, d]."""
    run = opened({"attn": terms[:, None], "mlp": np.zeros((len(terms), 1, terms.shape[-1]))})
    return truth.explained(run, groups, run.columns["attn"])


@pytest.mark.parametrize("block", (1, 50, 256))
def test_shares_equal_the_analysis_of_variance(monkeypatch, block):
    monkeypatch.setattr("utils.runs.files.blocks.__defaults__", (block, "images"))
    rng = np.random.default_rng(0)
    groups = {"color": rng.integers(3, size=120), "count": rng.integers(40, size=120)}
    terms = rng.normal(size=(120, 2, 5)).astype(np.float32) + 100  # a mean far from 0, as constant parts are
    terms[:, 0, 1] += 2 * groups["color"]
    found = explained(terms, groups)
    for name, group in groups.items():
        for head in range(2):
            assert found[name][head] == pytest.approx(literal.epsilon_squared(terms[:, head], group), abs=1e-6), (name,
                                                                                                                  head)


def test_a_head_about_one_attribute_a_noisy_and_a_constant_one():
    rng = np.random.default_rng(1)
    groups = {"object": rng.integers(200, size=2000), "size": rng.integers(3, size=2000)}
    terms = np.zeros((2000, 3, 4), np.float32)
    terms[:, 0] = rng.normal(size=(3, 4))[groups["size"]]
    terms[:, 1] = rng.normal(size=(2000, 4))
    terms[:, 2] = 0.25
    found = explained(terms, groups)
    assert found["size"][0] == pytest.approx(1)
    assert abs(found["object"][0]) < 0.05
    # Of noise, 200 groups of 10 explain a tenth, which the correction takes off.
    assert abs(found["object"][1]) < 0.03
    assert abs(found["size"][1]) < 0.03
    assert found["object"][2] == found["size"][2] == 0


def test_groups_that_are_empty_or_of_single_images():
    rng = np.random.default_rng(2)
    terms, group = rng.normal(size=(30, 1, 4)).astype(np.float32), np.arange(30) % 7
    gaps = explained(terms, {"object": group * 2})["object"]
    np.testing.assert_allclose(gaps, explained(terms, {"object": group})["object"])
    assert explained(terms, {"object": np.arange(30)})["object"] == 0  # of single images nothing can be said
    assert explained(terms[:1], {"object": np.zeros(1, int)})["object"] == 0


def test_attributes_with_few_images_a_value_are_named():
    groups = {"object": np.arange(30) // 3, "color": np.arange(30) % 5, "size": np.arange(30) % 2}
    line, = truth.few(groups)
    assert line.startswith("object: 3.0 images a value on average")
    assert not truth.few({"color": groups["color"]})


def test_codes_are_the_scenes_attributes():
    drawn = scenes.sample_scenes(60, seed=3)
    found = truth.codes(drawn)
    assert set(found) == set(truth.ATTRIBUTES)
    for name, group in found.items():
        for i in range(0, 60, 7):
            same = [drawn[j].attributes()[name] == drawn[i].attributes()[name] for j in range(60)]
            assert (group == group[i]).tolist() == same


def test_a_reading_counts_texts_by_their_share():
    attributes = {"a dog": "object", "a red background": "color", "a cat": "object"}
    texts = [{"text": "a dog", "share": 0.2}, {"text": "a red background", "share": 0.3},
             {"text": "a cat", "share": 0.15}]
    found = truth.reading(texts, attributes)
    assert found["object"] == pytest.approx(0.35)
    assert found["color"] == 0.3
    assert found["size"] == 0
    with pytest.raises(UserError, match="'a cow' is not among the texts whose attribute is known"):
        truth.reading([{"text": "a cow", "share": 1.0}], attributes)


def test_scores_of_perfect_chance_and_constant_readings():
    names = ["object", "color", "object", "size"]
    assert truth.score(names, names, [1, 1, 1, 1]) == pytest.approx({
        "agreement": 100, "agreement_by_variance": 100, "chance": 37.5, "kappa": 1})
    lazy = truth.score(names, ["object"] * 4, [5, 1, 1, 1])  # always the same answer
    assert lazy == pytest.approx({"agreement": 50, "agreement_by_variance": 75, "chance": 50, "kappa": 0})
    assert truth.score(["object"], ["object"], [2.0])["kappa"] == 1


def test_every_text_of_the_embedded_pool_has_one_attribute():
    found = truth.read_attributes(str(ROOT / "text_descriptions" / "emoji_attributes.csv"))
    texts = (ROOT / "text_descriptions" / "emoji_descriptions.txt").read_text().splitlines()
    assert list(found) == texts
    names = {concept["name"] for concept in scenes.concepts()}
    assert all(found[text] == "object" for text in texts if text.removeprefix("a ").removeprefix("an ") in names)
    assert found["a wall of purple"] == "color"
    assert found["a pair of objects"] == "count"
    assert found["a flat drawing"] == "style"
    assert set(found.values()) == set(truth.ATTRIBUTES)
    balanced = (ROOT / "text_descriptions" / "emoji_descriptions_balanced.txt").read_text().splitlines()
    number = Counter(found[text] for text in balanced)
    assert number["object"] == number["color"] == 27
    assert all(number[name] == list(found.values()).count(name) for name in truth.ATTRIBUTES if name != "object")


@pytest.mark.parametrize("content, message", [
    ("text;attribute\na;object\n", "should have the columns"), ("", "should have the columns"),
    ("text,attribute\na dog,animal\n", "'a dog' is about 'animal'; choose from object")])
def test_a_wrong_list_of_attributes_is_refused(tmp_path, content, message):
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        truth.read_attributes(str(path))
    with pytest.raises(UserError, match="does not exist; it is a CSV"):
        truth.read_attributes(str(tmp_path / "b.csv"))


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """Arrays and texts of the embedded model on 400 scenes of the data set emoji_seg."""
    from utils.data import datasets

    folder = tmp_path_factory.mktemp("truth")
    splits = datasets.REGISTRY["emoji_seg"].scenes
    before, splits["test"] = splits["test"], (400, 3)
    common = ["--model", "emojiclip", "--device", "cpu", "--output_dir", str(folder)]
    try:
        for name, *arguments in (
                ("compute_prs", "--dataset", "emoji_seg", "--batch_size", "50", "--num_workers", "0"),
                ("compute_text_projection", "--dataset", "emoji_seg"),
                ("compute_text_set_projection", "--data_path",
                 str(ROOT / "text_descriptions" / "emoji_descriptions.txt"))):
            call_script(name, *common, *arguments)
        call_script("compute_complete_text_set", "--model", "emojiclip", "--dataset", "emoji_seg", "--input_dir",
                    folder,
                    "--output_dir", folder, "--text_dir", ROOT / "text_descriptions", "--text_descriptions",
                    "emoji_descriptions",
                    "--num_of_last_layers", 2, "--texts_per_head", 6)
        yield folder
    finally:
        splits["test"] = before


def options(folder, *more):
    return ("--dataset", "emoji_seg", "--input_dir", folder, "--texts_per_head", 6, *more)


def test_the_table_equals_the_definition(run_script, small_run, tmp_path):
    code, out, err = run_script("compute_head_truth", *options(small_run, "--output_dir", tmp_path))
    assert code == 0, err
    found = json.loads((tmp_path / "emoji_seg_head_truth_emojiclip.json").read_text())
    assert [(row["layer"], row["head"]) for row in found["heads"]] == [(i, j) for i in (4, 5) for j in range(6)]
    attn = np.load(small_run / "emoji_seg_attn_emojiclip.npy")
    spans = json.loads((small_run / "emoji_seg_completeness_emoji_descriptions_top_6_heads_emojiclip.json").read_text())
    from utils.data import datasets
    drawn = datasets.load_images("emoji_seg").scenes
    with (ROOT / "text_descriptions" / "emoji_attributes.csv").open(newline="") as file:
        about = dict(csv.reader(file))
    for row, head in zip(found["heads"], spans["heads"]):
        for name, share in row["explained"].items():
            group = np.array([str(scene.attributes()[name]) for scene in drawn])
            assert share == pytest.approx(literal.epsilon_squared(attn[:, row["layer"], row["head"]], group), abs=1e-5)
        assert row["truth"] == max(row["explained"], key=row["explained"].get)
        said = {name: sum(t["share"] for t in head["texts"] if about[t["text"]] == name) for name in truth.ATTRIBUTES}
        assert row["reading_shares"] == pytest.approx(said)
        assert row["reading"] == max(said, key=said.get)
        assert row["agree"] == (row["truth"] == row["reading"])
        assert f"| {row['layer']}.{row['head']} |" in out
    assert found["agreement"] == pytest.approx(100 * np.mean([row["agree"] for row in found["heads"]]))
    assert f"kappa: {found['kappa']:.2f}" in out
    assert "warning: object: 1.5 images a value on average" in err
    heads = {row["layer"] * 10 + row["head"]: row for row in found["heads"]}
    assert heads[54]["truth"] == heads[53]["truth"] == "color"
    assert heads[55]["truth"] == "object"
    assert Image.open(tmp_path / "emoji_seg_head_truth_emojiclip.png").format == "PNG"


def test_a_text_whose_attribute_is_not_listed_is_one_line(refused, small_run, tmp_path):
    short = tmp_path / "short.csv"
    short.write_text("text,attribute\na dog,object\n")
    assert "add it to --text_attributes" in refused("compute_head_truth",
                                                    *options(small_run, "--text_attributes", short))


def test_arrays_of_another_number_of_scenes_are_refused(refused, small_run, tmp_path, monkeypatch):
    from utils.data import datasets
    shutil.copytree(small_run, tmp_path / "run")
    monkeypatch.setitem(datasets.REGISTRY["emoji_seg"].scenes, "test", (401, 3))
    assert "the data set has 401 images, and the arrays hold 400" in refused(
        "compute_head_truth", *options(tmp_path / "run"))
