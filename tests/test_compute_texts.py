import json

import numpy as np
import pytest
import torch
from builders import ROOT

from utils.data import captions
from utils.models import loading

FUNCTION_WORDS = set("""
    a the an of in on at with and or by to from for under over behind beside between into its their his her one two
    three across against along around through beneath above below inside near off onto out up down past toward towards
    without within upon after before during like as but not no is are was be been being that which who whose while where
    all each every some than then there this these those only just still""".split())


def test_a_classifier_has_one_unit_column_a_class(emoji_run):
    columns = np.load(emoji_run / "out" / "imagefolder_classifier_emojiclip.npy")
    manifest = json.loads((emoji_run / "out" / "imagefolder_classifier_emojiclip.json").read_text())
    assert columns.shape == (128, len(manifest["classes"]))
    assert columns.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(columns, axis=0), 1, atol=1e-5)


def test_a_column_is_the_mean_of_its_prompts(run_script, tmp_path):
    assert run_script("compute_text_projection", "--model", "emojiclip", "--dataset", "emoji_spurious", "--output_dir",
                      tmp_path,
                      "--batch_size", 7)[0] == 0
    columns = np.load(tmp_path / "emoji_spurious_classifier_emojiclip.npy")
    clip = loading.load("emojiclip", None, torch.device("cpu"))
    for i, name in enumerate(("land animal", "sea animal")):
        prompts = [clip.network.encode_text(clip.tokenizer([template(name)]))[0]
                   for template in captions.templates("emoji_spurious")]
        mean = torch.stack([p / p.norm() for p in prompts]).mean(0)
        np.testing.assert_allclose(columns[:, i], mean / mean.norm(), atol=1e-5)


def test_a_text_pool_is_embedded_line_by_line(run_script, tmp_path):
    pool = tmp_path / "my pool.txt"
    pool.write_text("an owl\na red background\nthree dogs\n")
    assert run_script("compute_text_set_projection", "--model", "emojiclip", "--data_path", pool, "--output_dir",
                      tmp_path,
                      "--batch_size", 2)[0] == 0
    found = np.load(tmp_path / "my pool_emojiclip.npy")
    clip = loading.load("emojiclip", None, torch.device("cpu"))
    for row, text in zip(found, pool.read_text().splitlines()):
        embedding = clip.network.encode_text(clip.tokenizer([text]))[0]
        np.testing.assert_allclose(row, embedding / embedding.norm(), atol=1e-5)


@pytest.mark.parametrize("content, message", [
    ("a dog\n\na cat\n", "line 2: is empty"), ("a dog\n  \n", "line 2: is empty"), ("", "line 1: is empty"),
    ("a dog\na cat\na dog\n", "line 3: repeats line 1 ('a dog')")])
def test_a_pool_with_empty_or_repeated_lines_is_refused(refused, tmp_path, content, message):
    (tmp_path / "pool.txt").write_text(content)
    assert message in refused("compute_text_set_projection", "--model", "emojiclip", "--data_path",
                              tmp_path / "pool.txt",
                              "--output_dir", tmp_path)


def test_a_pool_that_is_called_as_a_data_set_is_refused(refused, tmp_path):
    (tmp_path / "emoji.txt").write_text("a dog\n")
    assert "is called as a data set" in refused("compute_text_set_projection", "--model", "emojiclip", "--data_path",
                                                tmp_path / "emoji.txt", "--output_dir", tmp_path)


def test_a_missing_pool_is_refused(refused, tmp_path):
    assert "does not exist" in refused("compute_text_set_projection", "--model", "emojiclip", "--data_path",
                                       tmp_path / "no.txt")


@pytest.mark.parametrize("name, least", [
    ("image_descriptions_general", 3400), ("google_3498_english", 3498), ("emoji_descriptions", 300),
    ("emoji_descriptions_balanced", 115)])
def test_the_pools_are_clean(name, least):
    from utils.analysis.zeroshot import read_texts

    texts = read_texts(ROOT / "text_descriptions" / f"{name}.txt")
    assert len(texts) >= least
    assert len({text.lower() for text in texts}) == len(texts)
    assert all(text == text.strip() for text in texts)


def test_the_general_pool_is_varied():
    """No opening, no ending and no frame of function words makes more than 2% of the lines."""
    from collections import Counter

    texts = (ROOT / "text_descriptions" / "image_descriptions_general.txt").read_text().splitlines()
    words = [text.lower().replace(",", "").split() for text in texts]
    assert sum(text.split()[0].lower() in ("a", "an", "the") for text in texts) < 0.25 * len(texts)
    for pattern in (lambda w: tuple(w[:2]), lambda w: tuple(w[-2:])):
        assert Counter(map(pattern, words)).most_common(1)[0][1] < 0.02 * len(texts)
    frames = Counter(tuple(word if word in FUNCTION_WORDS else "_" for word in w) for w in words
                     if set(w) & FUNCTION_WORDS)
    assert frames.most_common(1)[0][1] < 0.02 * len(texts)
