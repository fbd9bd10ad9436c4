"""Soft shares against their definition, and as an option of compute_head_names.py."""
import json

import literal
import numpy as np
import pytest
from builders import NAMES, components_of, opened, uneven_terms

from utils.analysis.names import attributes, soft_shares
from utils.cli import UserError

RNG = np.random.default_rng


@pytest.fixture
def example():
    parts = uneven_terms(120)
    return parts, {"a": RNG(0).normal(size=(5, 7)).astype(np.float32), "b": RNG(1).normal(size=(3, 7)).astype(
        np.float32)}


def literal_memberships(whole, texts):
    """For each attribute the softmax of centred scores, in units of their standard deviation over images and texts."""
    whole = np.asarray(whole, np.float64)
    whole = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    found = {}
    for name, own in texts.items():
        scores = whole @ own.T
        scores = scores - scores.mean(axis=0)
        sharp = np.exp(soft_shares.SHARPNESS * scores / np.sqrt((scores ** 2).mean()))
        found[name] = sharp / sharp.sum(axis=1, keepdims=True)
    return found


@pytest.mark.parametrize("memory, block", [(1, 7), (2 ** 26, 256)])
def test_soft_shares_are_regressions_on_memberships(monkeypatch, example, memory, block):
    monkeypatch.setattr("utils.analysis.names.shares.MEMORY", memory)
    monkeypatch.setattr("utils.runs.files.blocks.__defaults__", (block, "images"))
    parts, texts = example
    run, terms = opened(parts, NAMES), components_of(parts).astype(np.float64)
    member = literal_memberships(terms.sum(axis=1), texts)
    found = soft_shares.explain(run, texts, range(12), seed=4)
    scores = soft_shares.scores(run, texts, range(12))
    rng = RNG(4)
    for _ in range(3):
        rng.permutation(120)
    part = rng.permutation(120) % 20
    for c in range(12):
        every = np.concatenate(list(member.values()), axis=1)
        for a, (name, own) in enumerate(member.items()):
            wanted = literal.soft_share(terms[:, c], own)
            assert found.plain[a, c] == pytest.approx(wanted, abs=1e-5)
            assert scores[a, c] == pytest.approx(wanted, abs=1e-5)
            other = np.concatenate([one for other, one in member.items() if other != name], axis=1)
            partial = literal.soft_share(terms[:, c], every) - literal.soft_share(terms[:, c], other)
            assert found.partial[a, c] == pytest.approx(partial, abs=1e-4)
            total = own.sum(axis=0)
            means = own.T @ (terms[:, c] - terms[:, c].mean(axis=0)) / total[:, None]
            np.testing.assert_allclose(found.values[a][:, c], total * (means ** 2).sum(axis=1), rtol=1e-4, atol=1e-7)
        without = [literal.soft_share(terms[part != j, c], member["a"][part != j]) for j in range(20)]
        assert found.error[0, c] == pytest.approx(np.sqrt(19 * np.var(without)), rel=1e-3, abs=1e-6)
        assert found.variance[c] == pytest.approx(terms[:, c].var(axis=0).sum(), rel=1e-5)
    assert np.abs(found.chance).max() < 0.3


def test_more_values_than_images_are_refused(example):
    parts, texts = example
    run = opened({what: part[:5] for what, part in parts.items()}, NAMES)
    with pytest.raises(UserError, match="a: 5 images are too few to tell 5 soft values apart"):
        soft_shares.explain(run, texts, range(12))


def test_a_constant_part_has_no_share(example):
    parts, texts = example
    parts["attn"][:, 0] = 0.3
    assert not soft_shares.explain(opened(parts, NAMES), texts, range(12)).plain[:, 0].any()


def test_images_between_texts_tell_a_head_that_answers_do_not():
    # Four objects on a circle, of which the pool has two texts: those between go half with each.
    rng, value = RNG(0), RNG(1).integers(4, size=400)
    angle = value * np.pi / 3
    terms = np.zeros((400, 2, 4), np.float32)
    terms[:, 0, 0], terms[:, 0, 1] = np.cos(angle), np.sin(angle)
    terms[:, 1, 2] = rng.normal(size=400)
    run = opened({"attn": terms[:, None], "mlp": np.zeros((400, 1, 4), np.float32)})
    texts = {"object": np.array([[1, 0, 0, 0], [-1, 0, 0, 0.0]]), "size": np.array([[0, 0, 1, 0], [0, 0, -1, 0.0]])}
    from utils.analysis.names import zero_shot_shares

    soft, hard = (one.scores(run, texts, range(2)) for one in (soft_shares, zero_shot_shares))
    assert soft[0, 0] > hard[0, 0]
    assert attributes.labels(run, texts)["object"].max() == 1


def test_the_script_takes_soft_labels(run_script, emoji_run, tmp_path):
    small = tmp_path / "a.yaml"
    small.write_text("color: [a red background, a blue background, a white background, a black background]\n"
                     "object: [an animal, a plant, something to eat, a vehicle]\n")
    options = ("--model", "emojiclip", "--dataset", "imagefolder", "--input_dir", emoji_run / "out", "--device", "cpu",
               "--attributes", small, "--output_dir", tmp_path)
    found = {}
    for labels in ("hard", "soft"):
        code, out, err = run_script("compute_head_names", *options, "--labels", labels)
        assert code == 0, err
        found[labels] = json.loads((tmp_path / "imagefolder_names_emojiclip.json").read_text())
        assert found[labels]["labels"] == labels
    soft, hard = ({(row["layer"], row["head"]): row for row in found[labels]["heads"]} for labels in ("soft", "hard"))
    assert soft[5, 4]["attribute"] == hard[5, 4]["attribute"] == "color"
    assert soft[5, 4]["shares"]["color"] != hard[5, 4]["shares"]["color"]
    assert all(row["interval"][0] < row["shares"][row["attribute"]] < row["interval"][1] for row in soft.values())
