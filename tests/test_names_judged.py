"""What names are held against: three truths against their definitions, and the scores."""
import json

import numpy as np
import pytest
from builders import call_script, opened

from utils.analysis.names import judges
from utils.data import datasets, scenes

RNG = np.random.default_rng


def test_values_of_scenes_have_the_order_of_the_attributes_texts():
    import yaml
    from builders import ROOT

    texts = yaml.safe_load((ROOT / "configs" / "attributes" / "emoji.yaml").read_text())
    drawn = scenes.sample_scenes(40, seed=3)
    found = judges.codes(drawn, list(texts))
    for name, own in texts.items():
        assert len(own) == len(list(judges.VALUES[name]()))
        assert found[name].max() < len(own)
    for i, scene in enumerate(drawn):
        assert texts["color"][found["color"][i]].split()[1] == scene.color
        assert texts["texture"][found["texture"][i]].split()[1] == scene.texture
        assert texts["object"][found["object"][i]].endswith(scene.attributes()["object"])
        assert texts["size"][found["size"][i]].split()[1] == scene.size
        assert texts["position"][found["position"][i]].endswith(scene.position)
        assert texts["count"][found["count"][i]].split()[0] == ["one", "two", "three", "four"][scene.count - 1]


def test_a_changed_scene_differs_in_one_attribute():
    drawn = scenes.sample_scenes(30, seed=3)
    for name in judges.VALUES:
        for before, after in zip(drawn, judges.changed(drawn, name, 1)):
            assert getattr(before, name) != getattr(after, name)
            assert all(getattr(before, other) == getattr(after, other) for other in before.__dict__ if other != name)


def test_effects_are_the_literal_total_effects():
    terms = RNG(0).normal(size=(20, 3, 4)).astype(np.float32)
    moved = {"a": terms + 1, "b": terms + RNG(1).normal(size=terms.shape).astype(np.float32)}
    terms[:, 2] = 0.5
    found = judges.effects(terms, moved)
    for a, other in enumerate(moved.values()):
        for c in range(2):
            total = np.mean([((other[i, c] - terms[i, c]) ** 2).sum() for i in range(20)]) / 2
            assert found[a, c] == pytest.approx(total / terms[:, c].var(axis=0).sum(), rel=1e-5)
    assert not found[:, 2].any()


def test_falls_are_the_accuracy_lost_where_that_is_no_chance():
    rng = RNG(0)
    values = {"a": rng.integers(3, size=300), "b": rng.integers(2, size=300)}
    attn = np.zeros((300, 1, 2, 6), np.float32)
    attn[:, 0, 0, :3] = np.eye(3)[values["a"]]
    attn[:, 0, 1] = 0.01 * rng.normal(size=(300, 6))
    run = opened({"attn": attn, "mlp": np.zeros((300, 2, 6), np.float32)})
    texts = {"a": np.eye(6)[:3], "b": np.eye(6)[3:5]}
    found = judges.falls(run, texts, values, range(2))
    scores = (attn.sum(axis=(1, 2)) - attn.sum(axis=(1, 2)).mean(axis=0)) @ texts["a"].T
    without = attn[:, 0, 1] - attn[:, 0, 1].mean(axis=0)
    lost = 100 * ((scores.argmax(1) == values["a"]).mean() - ((without @ texts["a"].T).argmax(1) == values["a"]).mean())
    assert found[0, 0] == pytest.approx(lost)
    assert found[0, 0] > 50
    assert found[0, 1] == found[1, 0] == 0
    assert judges.names(found, ["a", "b"]) == ["a", "b" if found[1, 1] > 0 else "none"]


def test_a_fall_within_chance_is_none():
    rng = RNG(0)
    values, attn = {"a": rng.integers(4, size=120)}, 0.6 * rng.normal(size=(120, 1, 40, 4)).astype(np.float32)
    attn[:, 0] += 0.05 * np.eye(4, dtype=np.float32)[values["a"]][:, None]
    run = opened({"attn": attn, "mlp": np.zeros((120, 2, 4), np.float32)})
    found, terms, small = judges.falls(run, {"a": np.eye(4)}, values, range(40))[0], attn[:, 0].astype(np.float64), 0
    centred = terms.sum(axis=1) - terms.sum(axis=1).mean(axis=0)
    for head in range(40):
        without = centred - (terms[:, head] - terms[:, head].mean(axis=0))
        before, after = (scores.argmax(axis=1) == values["a"] for scores in (centred, without))
        lost, won = int((before & ~after).sum()), int((~before & after).sum())
        sure = lost - won > 1.96 * np.sqrt(lost + won)
        small += lost > won and not sure
        assert found[head] == pytest.approx(100 * (lost - won) / 120 if sure else 0)
    assert small > 3


def test_scores_of_perfect_wrong_and_constant_names():
    truth = np.array([[0.9, 0.8, 0.1, 0.2], [0.1, 0.1, 0.9, 0.7]])
    perfect = judges.score(truth, truth, ["a", "b"])
    assert (perfect["kappa"], perfect["macro_f1"], perfect["right"]) == (1, 1, 4)
    assert perfect["recall"] == {"a": 1, "b": 1}
    assert perfect["cosine"] == pytest.approx(1)
    assert perfect["spearman"] == pytest.approx(1)
    wrong = judges.score(truth, truth[::-1], ["a", "b"])
    assert wrong["kappa"] == -1
    assert wrong["spearman"] == pytest.approx(-1)
    lazy = judges.score(truth, np.array([[1.0] * 4, [0.0] * 4]), ["a", "b"])
    assert lazy["kappa"] == 0
    assert lazy["recall"] == {"a": 1, "b": 0}
    assert lazy["low"] <= lazy["kappa"] <= lazy["high"]


def test_kappa_falls_for_missing_and_for_extra_labels():
    found = judges.sanity(["a"] * 12 + ["b"] * 6 + ["c"])
    assert set(found) == {"a", "b"}
    assert all(own["missing"] > 0.05 and own["extra"] > 0.05 for own in found.values())


@pytest.mark.long
def test_the_benchmark_writes_a_leaderboard(run_script, monkeypatch, tmp_path):
    from scripts import bench_names

    monkeypatch.setitem(datasets.REGISTRY["emoji"].scenes, "test", (780, 1))  # three of each object
    monkeypatch.setattr(bench_names, "HELD_OUT", 60)
    monkeypatch.setattr(bench_names, "CHANGED", 20)
    monkeypatch.setattr(bench_names, "COVERAGE", (13,))
    call_script("compute_prs", "--model", "emojiclip", "--dataset", "emoji", "--output_dir", tmp_path,
                "--device", "cpu", "--batch_size", 130, "--num_workers", 0)
    code, out, err = run_script("scripts.bench", "names", "--input_dir", tmp_path, "--output_dir", tmp_path, "--models",
                                "emojiclip", "--methods", "majority", "zero_shot_shares", "sith", "--draws", 1)
    assert code == 0, err
    rows = json.loads((tmp_path / "names_leaderboard.json").read_text())["rows"]
    found = {(row["images"], row["pool"], row["method"]): row for row in rows}
    assert found["all", "attributes", "zero_shot_shares"]["kappa"] > 0.8
    assert found["held out", "attributes", "majority"]["kappa"] == 0
    assert 0 <= found["all", "attributes", "sith"]["right"] <= 36
    assert found["all", "13 objects", "zero_shot_shares"]["heads"] == 36
    assert len((tmp_path / "names_leaderboard.csv").read_text().splitlines()) == 1 + len(rows)
