"""What a language model's text says: its answer without its thoughts, and the JSON objects in it."""
import itertools
import json
import re
from collections.abc import Iterator

import yaml

MOST_OBJECTS = 50  # that are read from either end of an answer
# How reasoning models mark their thoughts: <think>, <thinking>, [THINK], ...
_TAG = r"(?:think|thinking|thought|thoughts|reasoning|reflection)"
THOUGHTS, THOUGHTS_END = (re.compile(rf"[<\[◁]{mark}{_TAG}[>\]▷]", re.IGNORECASE) for mark in ("", "/"))


def without_thoughts(text: str) -> str:
    """What a model says after its thoughts: what follows the last closing tag, whether or not one opens them; nothing
    where they are never closed."""
    text = THOUGHTS_END.split(text)[-1]
    return "" if THOUGHTS.match(text.lstrip()) else text


def objects(text: str) -> Iterator[tuple[dict, int, int]]:
    """JSON objects in what a text says after its thoughts, whatever stands around them, each with where it begins and
    ends; YAML reads single quotes, trailing commas and bare words."""
    text = without_thoughts(text)
    starts = [match.start() for match in re.finditer("{", text)]
    # A model that is stuck may write thousands.
    for start in starts if len(starts) <= 2 * MOST_OBJECTS else starts[:MOST_OBJECTS] + starts[-MOST_OBJECTS:]:
        piece = text[start:]
        try:
            found, end = json.JSONDecoder(strict=False).raw_decode(piece)
            yield found, start, start + end
            continue
        except (ValueError, RecursionError):
            depths = itertools.accumulate((character == "{") - (character == "}") for character in piece)
            end = next((i for i, depth in enumerate(depths, 1) if depth == 0), 0)
        try:
            found = yaml.safe_load(piece[:end])
        except Exception:  # PyYAML raises much besides its own errors on what a model may write
            continue
        if isinstance(found, dict):
            yield found, start, start + end
