"""compute_ex2_truth.py against literal counts: what the VLM prefers, what descriptions mention, what is found."""
import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from utils.data import concepts, scenes
from utils.ex2 import descriptions, rewards, truth
from utils.models import loading

FOUND = truth.concepts()
NAMES = [concept["name"] for concept in FOUND]


def descriptions_of(says) -> list[dict]:
    """Four descriptions of each concept; `says(concept, i)` is the i-th."""
    return [{"concept": concept["name"], "question": "q", "description": says(concept, i), "seed": i, "reward": None}
            for concept in FOUND for i in range(4)]


def test_the_words_are_those_of_the_scenes():
    known = scenes.fixed_concepts()
    assert len(FOUND) == 40
    for concept, (k, kind, value) in zip(FOUND, known):
        assert concept["name"] == scenes.concepts()[k]["name"]
        assert concept["attribute"] == kind
        assert concept["word"] is None if kind is None else concept["word"] in truth.WORDS[kind]
        if kind in ("color", "size"):
            assert concept["word"] == value
    texts = truth.controlled("owl")
    assert len(texts) == sum(map(len, truth.WORDS.values()))
    assert texts["color", "orange"] == "an owl on an orange background"
    assert texts["count", "one"] == "one owl"
    assert texts["count", "three"] == "three owls"
    assert texts["style", "outlined"] == "an owl in an outlined style"
    assert texts["size", "small"] == "a small owl"


def test_effects_are_differences_of_rewards():
    vlm = loading.load_vlm("r-open-clip:emojiclip", torch.device("cpu"))
    means = rewards.image_means(vlm, concepts.load_concepts("emoji_fixed", None, "val", None, 2), num_workers=0)

    def score(texts, numbers):
        return rewards.score(vlm, means, texts, numbers)

    effect = truth.effects(score, FOUND)
    for c in (0, 17):
        texts = truth.controlled(NAMES[c])
        bare, article = score([NAMES[c], descriptions.fill("{a concept}", NAMES[c])], [c, c])
        assert (effect["bare"][c], effect["article"][c]) == pytest.approx((bare, article), abs=1e-3)
        for attribute, words in truth.WORDS.items():
            for w, word in enumerate(words):
                single = score([texts[attribute, word]], [c])[0]
                assert effect["words"][attribute][c, w] == pytest.approx(single - article, abs=1e-3)
        assert effect["best"][c] == pytest.approx(max([bare, article, *score(list(texts.values()), [c] * len(texts))]),
                                                  abs=1e-3)


def test_mentions_are_whole_words():
    rows = descriptions_of(lambda concept, i: ["A Red one.", "redder bread", "red-ish, RED",
                                               f"Three small {concept['name']}"][i])
    shares = truth.mentions(rows, FOUND)
    assert shares["color"].shape == (40, 11)
    assert set(shares["color"][:, truth.WORDS["color"].index("red")]) == {0.5}
    assert shares["color"].sum() == 20
    assert set(shares["count"][:, 0]) == {0}
    assert set(shares["count"][:, 2]) == {0.25}
    assert np.isnan(truth.mentions(rows[4:], FOUND)["size"][0]).all()


@pytest.mark.parametrize(("text", "counts"), [
    ("2 owls", [0, 1, 0, 0]), ("Two small blue owls.", [0, 1, 0, 0]), ("One owl", [1, 0, 0, 0]),
    ("There are three of them", [0, 0, 1, 0]), ("12 owls, 2nd, 3D", [0, 0, 0, 0]), ("four-eyed owls", [0, 0, 0, 0]),
    ("One of the most striking owls", [0, 0, 0, 0]), ("one of two reasons", [0, 0, 0, 0]), ("this one", [0, 0, 0, 0]),
    ("two owlets", [0, 0, 0, 0]), ("one owl beside four owls", [1, 0, 0, 1])])
def test_a_number_counts_what_it_stands_before(text, counts):
    assert [bool(truth.pattern("count", word, "owl").search(text)) for word in truth.WORDS["count"]] == counts


def test_another_spelling_is_the_same_word():
    assert truth.pattern("color", "grey", "owl").search("A Gray owl")
    assert not truth.pattern("color", "grey", "owl").search("greyhound")


def random_parts(seed):
    rng = np.random.default_rng(seed)
    return [{name: rng.random((40, len(words))) for name, words in truth.WORDS.items()} for _ in range(3)]


def test_the_table_is_the_literal_one():
    effect, before, after = random_parts(0)
    effect = {name: values - 0.5 for name, values in effect.items()}
    bare, article = np.random.default_rng(5).random((2, 40))
    prefers = {"words": effect, "bare": bare, "article": article}
    found = truth.table(FOUND, prefers, before, after)
    for attribute, words in truth.WORDS.items():
        over_article, over_bare, over_false, lifts, best, best_over_bare = [], [], [], [], [], []
        for c, concept in enumerate(FOUND):
            if concept["attribute"] != attribute:
                continue
            w = words.index(concept["word"])
            others = [i for i in range(len(words)) if i != w]
            over_article.append(effect[attribute][c, w])
            over_bare.append(article[c] + effect[attribute][c, w] - bare[c])
            over_false.append(effect[attribute][c, w] - sum(effect[attribute][c, i] for i in others) / len(others))
            lifts.append([values[attribute][c, w] - sum(values[attribute][c, i] for i in others) / len(others)
                          for values in (before, after)])
            best.append(all(effect[attribute][c, w] > effect[attribute][c, i] for i in others)
                        and effect[attribute][c, w] > 0)
            best_over_bare.append(best[-1] and over_bare[-1] > 0)
        over_others = []
        for c, concept in enumerate(FOUND):
            if concept["attribute"] == attribute:
                w = words.index(concept["word"])
                grew = [after[attribute][i, w] - before[attribute][i, w] for i, other in enumerate(FOUND)
                        if not (other["attribute"] == attribute and other["word"] == concept["word"])]
                over_others.append(after[attribute][c, w] - before[attribute][c, w] - sum(grew) / len(grew))
        row = found[attribute]
        assert row["gain_over_others"][0] == pytest.approx(np.mean(over_others))
        assert row["number"] == len(best) == 8
        assert row["best"] == np.mean(best)
        assert row["best_over_bare"] == np.mean(best_over_bare)
        assert row["true_over_article"][0] == pytest.approx(np.mean(over_article))
        assert row["true_over_bare"][0] == pytest.approx(np.mean(over_bare))
        assert row["true_over_false"][0] == pytest.approx(np.mean(over_false))
        assert row["lift_before"][0] == pytest.approx(np.mean([one for one, _ in lifts]))
        assert row["lift_after"][0] == pytest.approx(np.mean([two for _, two in lifts]))
        assert row["gain"][0] == pytest.approx(np.mean([two - one for one, two in lifts]))
        assert all(row[name][1] <= row[name][0] <= row[name][2] for name in row if isinstance(row[name], tuple))
    every = [found[attribute]["gain"][0] for attribute in truth.WORDS]
    assert found["all"]["number"] == 32
    assert found["all"]["gain"][0] == pytest.approx(np.mean(every))  # eight concepts each
    assert found["all"]["best"] == pytest.approx(np.mean([found[attribute]["best"] for attribute in truth.WORDS]))
    some = [concept for concept in FOUND if concept["attribute"] in (None, "size")]
    rows = [c for c, concept in enumerate(FOUND) if concept in some]
    part = truth.table(some, {"words": {name: values[rows] for name, values in effect.items()}, "bare": bare[rows],
                              "article": article[rows]}, None, None)
    assert set(part) == {"size", "all"}
    assert part["size"] == part["all"] == truth.table(FOUND, prefers, None, None)["size"]
    assert "gain" not in truth.table(FOUND, prefers, None, None)["size"]
    one = next(c for c, concept in enumerate(FOUND) if concept["attribute"] == "size")
    alone = truth.table([FOUND[one]], {"words": {name: values[[one]] for name, values in effect.items()},
                                       "bare": bare[[one]], "article": article[[one]]},
                        *({name: values[[one]] for name, values in part.items()} for part in (before, after)))
    assert "gain" in alone["size"] and "gain_over_others" not in alone["size"]  # there are no others


def test_the_correlation_is_over_concepts_and_attributes():
    effect, before, after = random_parts(1)
    liked, grew = [], []
    for c in range(40):
        for attribute in truth.WORDS:
            best = int(effect[attribute][c].argmax())
            growth = after[attribute][c] - before[attribute][c]
            for values, into in ((effect[attribute][c], liked), (growth, grew)):
                into.append(values[best] - (values.sum() - values[best]) / (len(values) - 1))
    found = truth.agreement_of_effects(effect, before, after)
    assert found["correlation"] == pytest.approx(spearmanr(liked, grew).statistic)
    assert found["low"] < found["correlation"] < found["high"]
    assert found["pairs"] == 160
    same = truth.agreement_of_effects(effect, {name: np.zeros_like(part) for name, part in effect.items()}, effect)
    assert same["correlation"] == pytest.approx(1)


def test_discoveries_are_counted_true_and_false():
    zero = {name: np.zeros((40, len(words))) for name, words in truth.WORDS.items()}
    after = {name: part.copy() for name, part in zero.items()}
    own = [c for c, concept in enumerate(FOUND) if concept["attribute"] == "color"]
    free = [c for c, concept in enumerate(FOUND) if concept["attribute"] is None]
    right, wrong = (truth.WORDS["color"].index(FOUND[own[0]]["word"]), 0)
    wrong = 1 if truth.WORDS["color"].index(FOUND[own[1]]["word"]) == 0 else 0
    after["color"][own[0], right] = 0.1
    after["color"][own[1], wrong] = 0.5
    after["color"][own[2], 0] = 0.09  # too little
    after["size"][own[0], 1] = 0.2
    after["style"][free[3], 1] = 0.2
    assert truth.discoveries(FOUND, zero, after) == {
        "true": 1, "wrong_word": 1, "random_attribute": 1, "nothing_fixed": 1, "fixed_pairs": 32, "random_pairs": 96,
        "nothing_fixed_pairs": 32}


def write(path, says):
    path.write_text("".join(json.dumps(row) + "\n" for row in descriptions_of(says)))
    return path


def test_the_script_tells_and_writes_it(run_script, refused, tmp_path):
    before = write(tmp_path / "before.jsonl", lambda concept, i: f"This is {concept['name']}.")
    after = write(tmp_path / "after.jsonl", lambda concept, i: f"{concept['word'] or 'red'} {concept['name']}")
    answers = tmp_path / "after_inspection.jsonl"
    code, _, err = run_script("inspect", "--input_filepath", after, "--dataset_name", "emoji_fixed", "--vlm_name", "v",
                              "--model", "words")
    assert code == 0, err
    arguments = ["--output_dir", tmp_path / "out", "--device", "cpu", "--split", "train"]
    code, out, err = run_script("compute_ex2_truth", *arguments, "--before", before, "--after", after, after,
                                "--answers", answers, answers)
    assert code == 0, err
    result = json.loads((tmp_path / "out" / "ex2_truth.json").read_text())
    assert (tmp_path / "out" / "ex2_truth.png").stat().st_size > 1000
    assert all(row["gain"] == [1.0, 1.0, 1.0] for row in result["attributes"].values())
    assert result["discoveries"] == {"true": 32, "wrong_word": 0, "random_attribute": 0, "nothing_fixed": 8,
                                     "fixed_pairs": 32, "random_pairs": 96, "nothing_fixed_pairs": 32}
    assert set(result["rewards"]) == {"bare", "article", "best", "before", "after"}
    assert result["judges"]["words"]["color"]["used"] == 320
    assert result["judges"]["words"]["color"]["kappa"] > 0.9
    assert "| style | 8 |" in out
    assert "Findings: 32 true and 0 with a wrong word, of 32" in out
    short = tmp_path / "short.jsonl"
    short.write_text("".join(line + "\n" for line in before.read_text().splitlines()[4:]))
    assert "only --before or only --after describes 'monkey'" in refused("compute_ex2_truth", *arguments, "--before",
                                                                         short, "--after", after)
    code, out, err = run_script("compute_ex2_truth", *arguments, "--before", short, "--after", short)
    assert code == 0, err
    assert json.loads((tmp_path / "out" / "ex2_truth.json").read_text())["discoveries"]["fixed_pairs"] == 31
    assert "Spearman of the VLM's preference and the gain, over 156 pairs: undefined" in out  # nothing grew
    assert "| all | 31 |" in out
    foreign = write(tmp_path / "foreign.jsonl", lambda concept, i: "x")
    foreign.write_text(foreign.read_text().replace('"monkey"', '"unicorn"'))
    assert "that emoji_fixed does not have" in refused("compute_ex2_truth", *arguments, "--before", foreign, "--after",
                                                       foreign)
    free = tmp_path / "free.jsonl"
    names = {concept["name"] for concept in FOUND if concept["attribute"] is None}
    free.write_text("".join(line + "\n" for line in before.read_text().splitlines()
                            if json.loads(line)["concept"] in names))
    assert "only concepts with nothing fixed" in refused("compute_ex2_truth", *arguments, "--before", free, "--after",
                                                         free)
    assert "is not about the descriptions of --after" in refused("compute_ex2_truth", *arguments, "--before", after,
                                                                 "--after", before, "--answers", answers)
    assert "--before and --after go together" in refused("compute_ex2_truth", *arguments, "--before", before)
