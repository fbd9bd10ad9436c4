"""The published TextSpan, as scripts/published_ways.py has it to compare with."""
import literal
import numpy as np
from builders import head_terms, unit_texts

from scripts.published_ways import TEXTS, published_span


def test_without_noise_it_is_the_literal_one():
    x, texts = head_terms(inner=24, dtype=np.float64), unit_texts().astype(np.float64)
    picks, rows, one_row = published_span(x, texts)
    expected, reconstruction, *_ = literal.text_span(x, texts, TEXTS, 80, 0)
    assert picks == expected
    np.testing.assert_allclose(rows, reconstruction, atol=1e-12)
    np.testing.assert_allclose(one_row, np.broadcast_to(rows[-1], x.shape), atol=1e-12)  # the last image's


def test_directions_of_noise_change_its_texts():
    x, texts = head_terms(inner=12), unit_texts()
    expected, *_ = literal.text_span(x, texts, TEXTS, 80, np.finfo(np.float32).eps)
    assert published_span(x, texts)[0] != expected
