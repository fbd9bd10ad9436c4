"""Captions of scenes: many ways to say what is true of one; and prompts for the classes of a data set."""
import re
from collections.abc import Callable

import numpy as np

from utils.data.datasets import REGISTRY
from utils.data.scenes import Scene, concepts

STYLE_WORDS = {"noto": "detailed", "noto-v1": "rounded", "twemoji": "flat", "emojione": "glossy",
               "openmoji": "outlined", "fluent-flat": "bold", "fluent": "3D"}
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
EMOJI_TEMPLATES = ("a drawing of {one}", "an icon of {one}", "{name}", "a picture of {many}", "an emoji of four {many}")
MEDIA = ("a drawing of", "a picture of", "an icon of", "an emoji of", "an image showing", "")


def with_article(words: str) -> str:
    """'owl' -> 'an owl'. What begins with figures or with letters that are spelled ("MD-11", "x-ray") goes by its
    sound."""
    if re.match(r"\d", words):
        vowel = re.match(r"8|1[18](\d{3})*(?!\d)", words)
    elif re.match(r"[A-Za-z](?![A-Za-z])|[A-Z]{2,3}(?![A-Za-z])|[B-DF-HJ-NP-TV-Z]+(?![A-Za-z])", words):
        vowel = words[0].lower() in "aefhilmnorsx"
    else:
        vowel = words[0].lower() in "aeiou" and not words.lower().startswith(("uni", "use", "eu", "one "))
    return ("an " if vowel or words.startswith("hour") else "a ") + words


def _noun(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """A singular and a plural for the scene's object: mostly its name, at times a broader word with it."""
    concept = concepts()[scene.object]
    name, plural = concept["name"], concept["plural"]
    broader = [tag for tag in concept["tags"] if tag.isalpha() and tag not in name.lower()] + [concept["group"]]
    draw_ = rng.random()
    if concept["habitat"] and draw_ < 0.5:
        kind = f"{concept['habitat']} animal"
        return (kind, f"{kind}s") if draw_ < 0.15 else (f"{name}, a {kind}", f"{plural}, {kind}s")
    if draw_ > 0.85:
        word = str(rng.choice(broader))
        return f"{name} ({word})", f"{plural} ({word})"
    return name, plural


def caption(scene: Scene, rng: np.random.Generator, detail: float = 0.5) -> str:
    """One of many captions that are true of the scene.

    `detail` is the chance that each attribute is mentioned; 0 names the object alone. At times the
    object is left unnamed ("three things on a red background").
    """
    says = {name: rng.random() < detail for name in ("count", "style", "size", "position", "color", "texture")}
    single, plural = _noun(scene, rng)
    if (says["color"] or says["count"]) and rng.random() < 0.1:
        single, plural = str(rng.choice(("thing", "object"))), str(rng.choice(("things", "objects")))
    one = scene.count == 1
    words = single if one else plural
    adjectives = [scene.size] if says["size"] else []
    if says["style"] and rng.random() < 0.5:
        adjectives.append(STYLE_WORDS[scene.style])
    words = " ".join([*adjectives, words])
    if says["count"]:
        words = f"{NUMBERS[scene.count]} {words}"
    elif one and words != plural:
        words = with_article(words)
    parts = []
    if says["position"]:
        where = scene.position if scene.position != "centre" else str(rng.choice(("centre", "middle")))
        parts.append(f"{rng.choice(('at the', 'in the', 'on the'))} {where}")
    ground = " ".join(([scene.texture] if says["texture"] else []) + ([scene.color] if says["color"] else []))
    if ground:
        parts.append(f"{rng.choice(('on', 'before', 'with', 'against'))} {with_article(ground)} background")
    if rng.random() < 0.5:
        parts.reverse()
    if says["style"] and STYLE_WORDS[scene.style] not in adjectives:
        parts.append(f"in {with_article(STYLE_WORDS[scene.style])} style")
    medium = str(rng.choice(MEDIA))
    text = " ".join(piece for piece in (medium, words, *parts) if piece)
    if ground and rng.random() < 0.2:
        text = f"{ground} background: {words}"
    return text


def templates(name: str) -> list[Callable[[str], str]]:
    """Prompt templates for class names of a data set: functions from a name to a text."""
    if not REGISTRY[name].scenes:
        from utils.light import open_clip
        return list(open_clip.OPENAI_IMAGENET_TEMPLATES)
    plurals = {concept["name"]: concept["plural"] for concept in concepts()}

    def fill(template: str, class_name: str) -> str:
        plural = plurals.get(class_name, f"{class_name}s")
        one = class_name if class_name == plural else with_article(class_name)
        return template.format(name=class_name, one=one, many=plural)

    return [lambda class_name, template=template: fill(template, class_name) for template in EMOJI_TEMPLATES]
