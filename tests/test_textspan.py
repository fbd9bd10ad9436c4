import literal
import numpy as np
import pytest
import torch
from builders import head_terms, opened, unit_texts

from utils.analysis import ablation, textspan
from utils.runs.components import Component


def one_head(x):
    """A run of one head's terms [b, d]."""
    return opened({"attn": x[:, None, None], "mlp": np.zeros((len(x), 1, x.shape[-1]))})


def span(x, texts, number, rank):
    means, seconds = one_head(x).moments(slice(None))
    return textspan.text_span(means[0], seconds[0], torch.from_numpy(texts).double(), number, rank,
                              np.finfo(x.dtype).eps)


def reconstruct(found, x, number=None):
    """Terms [b, d] with only what the first texts span: the mean plus the part along the picked directions."""
    mean, directions = (part.numpy().astype(x.dtype) for part in (found.mean, found.directions[:number]))
    return mean + (x - mean) @ directions.T @ directions


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rank", [3, 8, 80])
def test_same_texts_shares_and_reconstruction_as_the_literal_algorithm(seed, rank):
    x, texts = head_terms(seed=seed), unit_texts(seed=seed + 100)
    number = min(rank, 6)
    found = span(x, texts, number, rank)
    picks, reconstruction, shares, kept = literal.text_span(x, texts, number, rank, np.finfo(np.float32).eps)
    assert found.rank == kept == min(rank, 9)  # 8 directions and the mean
    assert found.picks == picks
    np.testing.assert_allclose(found.shares, shares, atol=1e-8)
    np.testing.assert_allclose(reconstruct(found, x.astype(np.float64)), reconstruction, atol=1e-9)
    np.testing.assert_allclose(reconstruct(found, x), reconstruction, atol=1e-4)


def test_on_the_embedded_model_too(emoji_run):
    attn = np.load(emoji_run / "out" / "imagefolder_attn_emojiclip.npy")
    texts = np.load(emoji_run / "out" / "pool_emojiclip.npy")
    for head in range(attn.shape[2]):
        x = attn[:, -1, head]
        found = span(x, texts, 10, 20)
        picks, reconstruction, *_ = literal.text_span(x, texts, 10, 20, np.finfo(np.float32).eps)
        assert found.picks == picks
        np.testing.assert_allclose(reconstruct(found, x), reconstruction, atol=1e-4)


def test_picks_are_in_falling_order_of_what_they_explain_and_never_repeat():
    found = span(head_terms(), unit_texts(), 8, 80)
    assert len(set(found.picks)) == len(found.picks) == 8
    assert sum(found.shares) <= 1 + 1e-9
    np.testing.assert_allclose(found.directions @ found.directions.T, np.eye(8), atol=1e-9)


def test_no_more_texts_than_there_are_directions():
    found = span(head_terms(inner=3), unit_texts(), 20, 80)
    assert found.rank == 4
    assert len(found.picks) <= 4
    assert sum(found.shares) == pytest.approx(1, abs=1e-5)


def test_a_constant_head_has_no_texts():
    x = np.tile(np.float32([[0.5, -1.0, 2.0, 0.25]]), (50, 1))
    found = span(x, unit_texts(width=4), 5, 80)
    assert found.picks == []
    np.testing.assert_allclose(reconstruct(found, x), x, atol=1e-6)


def test_half_precision_arrays_cut_where_their_rounding_starts():
    x = head_terms(dtype=np.float16)
    found = span(x, unit_texts(), 5, 80)
    *_, kept = literal.text_span(x, unit_texts(), 5, 80, np.finfo(np.float16).eps)
    assert found.rank == kept <= 9


def test_moments_do_not_depend_on_the_blocks(monkeypatch):
    x = head_terms(images=700)
    run = one_head(x)
    whole = run.moments(slice(None))
    monkeypatch.setattr("utils.runs.files.blocks.__defaults__", (33, "images"))
    for a, b in zip(run.moments(slice(None)), whole):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
    np.testing.assert_allclose(whole[0][0], x.astype(np.float64).mean(0), atol=1e-12)


def test_accuracy_with_reconstructions_equals_the_literal_one():
    rng = np.random.default_rng(3)
    b, l, h, d, last = 200, 4, 3, 24, 2
    attn = np.stack([np.stack([head_terms(b, d, 5, seed=10 * i + j) for j in range(h)], 1) for i in range(l)], 1)
    run = {"attn": attn, "mlp": rng.normal(size=(b, l + 1, d)).astype(np.float32) * 0.1,
           "labels": rng.integers(0, 7, b)}
    classifier = rng.normal(size=(d, 7)).astype(np.float32)
    texts = unit_texts(width=d)
    spans = textspan.span_heads(opened(run), {"pool": texts}, last, 4, 80)
    assert list(spans["pool"]) == [Component("attn", i, j) for i in (2, 3) for j in range(h)]
    whole = run["mlp"].astype(np.float64).sum(1) + attn[:, :last].astype(np.float64).mean(0).sum((0, 1))
    for i in (2, 3):
        for j in range(h):
            whole += literal.text_span(attn[:, i, j], texts, 4, 80, np.finfo(np.float32).eps)[1]
    expected = 100 * np.mean((whole @ classifier).argmax(1) == run["labels"])
    assert textspan.accuracies(opened(run), classifier, spans, [4])[1] == {"pool": [pytest.approx(expected)]}


@pytest.mark.parametrize("images", [1, 200, 600])
def test_ablations_equal_the_literal_ones(images):
    rng = np.random.default_rng(images)
    l, h, d = 3, 2, 10
    run = {"attn": rng.normal(size=(images, l, h, d)), "mlp": rng.normal(size=(images, l + 1, d)),
           "cls_attn": rng.normal(size=(images, l, d)), "labels": rng.integers(0, 4, images)}
    run = {name: value.astype(np.float32) if value.dtype == np.float64 else value for name, value in run.items()}
    classifier = rng.normal(size=(d, 4)).astype(np.float32)
    found = ablation.accuracies(opened(run), classifier)
    slow = literal.ablations(run["attn"], run["mlp"], run["cls_attn"], run["labels"], classifier)
    assert found.keys() == slow.keys()
    for name, value in slow.items():
        assert found[name] == pytest.approx(value), name


def test_fewer_texts_are_a_beginning_of_more():
    x, texts = head_terms(), unit_texts()
    many, few = span(x, texts, 7, 80), span(x, texts, 3, 80)
    assert many.picks[:3] == few.picks
    assert many.shares[:3] == pytest.approx(few.shares)
    np.testing.assert_allclose(reconstruct(many, x, 3), reconstruct(few, x), atol=1e-5)


def test_similarity_is_the_mean_over_pairs():
    u = unit_texts(6).astype(np.float64)
    pairs = [u[i] @ u[j] for i in range(6) for j in range(6) if i != j]
    assert textspan.similarity(torch.from_numpy(u)) == pytest.approx(np.mean(pairs), abs=1e-7)


def test_a_head_of_one_role_is_consistent_and_a_random_one_is_not():
    rng = np.random.default_rng(5)
    near = 0.6 * rng.normal(size=24) + 0.5 * rng.normal(size=(12, 24))  # twelve texts that resemble each other
    texts = np.concatenate([near, rng.normal(size=(200, 24))])
    texts = (texts / np.linalg.norm(texts, axis=1, keepdims=True)).astype(np.float32)
    one_role = (rng.normal(size=(300, 12)) @ texts[:12]).astype(np.float32)
    spans = {(0, 0): span(one_role, texts, 5, 80),
             **{(1, i): span(head_terms(seed=i), texts, 5, 80) for i in range(40)}}
    spans[2, 0] = span(head_terms(), texts, 1, 80)
    found = textspan.consistency(texts, spans)
    assert list(found) == list(spans)
    assert found[0, 0]["percentile"] >= 85
    assert found[0, 0]["similarity"] > found[0, 0]["random"]
    others = [found[1, i]["percentile"] for i in range(40)]
    assert 25 < np.mean(others) < 75
    assert min(others) < 25
    assert max(others) > 75  # spread as chance spreads them
    assert found[2, 0] is None
    assert found == textspan.consistency(texts, spans)
