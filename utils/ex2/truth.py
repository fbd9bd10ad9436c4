"""Is what EX2 finds true? The attributes that images of a concept share in `emoji_fixed`, what a VLM makes of the words
for them, and how often descriptions use those words.

Letters of shapes: c concepts, a attributes (of ATTRIBUTES), w words of an attribute.
"""
import re
from collections.abc import Callable

import numpy as np

from utils.data import captions, scenes
from utils.ex2 import descriptions
from utils.inputs import UserError

ATTRIBUTES = scenes.FIXED
WORDS = {"style": [captions.STYLE_WORDS[style] for style in scenes.styles()], "count": list(captions.NUMBERS.values()),
         "color": list(scenes.COLORS), "size": list(scenes.SIZES)}
FORMS = {"style": "{one} in {article} style", "count": "{word} {many}", "color": "{one} on {article} background",
         "size": "{article} {name}"}
SPELLINGS = {**{word: str(number) for number, word in captions.NUMBERS.items()}, "grey": "gray"}  # of the same word
JUDGED = {"color": "color", "size": "size"}  # of ATTRIBUTES: its name in configs/inspection.yaml
DISCOVERY = 0.1  # by how much the share of descriptions with a word must grow for a discovery


def concepts() -> list[dict]:
    """The concepts of emoji_fixed: name, attribute (None where nothing is fixed) and the word for what is fixed."""
    word_of = {"style": captions.STYLE_WORDS, "count": captions.NUMBERS}
    return [{"name": scenes.concepts()[k]["name"], "attribute": kind,
             "word": word_of.get(kind, {}).get(value, value)} for k, kind, value in scenes.fixed_concepts()]


def controlled(name: str) -> dict[tuple[str, str], str]:
    """Texts that add one word to a concept's name, by (attribute, word)."""
    plural = next(concept["plural"] for concept in scenes.concepts() if concept["name"] == name)
    one = name if name == plural else captions.with_article(name)
    texts = {}
    for attribute, words in WORDS.items():
        for word in words:
            many = name if word == "one" else plural
            texts[attribute, word] = FORMS[attribute].format(name=name, one=one, many=many, word=word,
                                                             article=captions.with_article(word))
    return texts


def every_caption(found: list[dict], questions: list[str]) -> list[dict]:
    """Every controlled text of every concept as an answer to its attribute's question: rows with question and caption.
    `questions` are templates, one for each of ATTRIBUTES. Raises UserError for another number of them."""
    if len(questions) != len(ATTRIBUTES):
        raise UserError(f"captions answer {len(ATTRIBUTES)} questions, for {', '.join(ATTRIBUTES)} in this order, and "
                        f"there are {len(questions)}; write one a line, as in configs/questions_captions.txt")
    return [{"question": descriptions.fill(questions[ATTRIBUTES.index(attribute)], concept["name"]), "caption": text}
            for concept in found for (attribute, _), text in controlled(concept["name"]).items()]


def effects(score: Callable[[list[str], list[int]], list[float]], found: list[dict]) -> dict:
    """What a VLM makes of each word, without any language model: `score(texts, concept numbers)` gives rewards.

    Returns bare and article (rewards of "NAME" and "a NAME" [c]), best (of the best text with one word more [c]) and
    words: attribute to the effect of each of its words, its reward minus that of "a NAME" [c, w].
    """
    texts = [controlled(concept["name"]) for concept in found]
    plain = [[concept["name"], captions.with_article(concept["name"])] for concept in found]
    rows = [[*two, *of_concept.values()] for two, of_concept in zip(plain, texts)]
    rewards = np.array(score([text for row in rows for text in row], [c for c, row in enumerate(rows) for _ in row]))
    rewards = rewards.reshape(len(found), -1)
    ends = np.cumsum([len(words) for words in WORDS.values()])
    parts = np.split(rewards[:, 2:], ends[:-1], axis=1)
    return {"bare": rewards[:, 0], "article": rewards[:, 1], "best": rewards.max(axis=1),
            "words": {name: part - rewards[:, 1:2] for name, part in zip(WORDS, parts)}}


def pattern(*words: str) -> re.Pattern:
    """Finds any of these words in a text, whole, in any spelling of SPELLINGS."""
    spelt = [one for word in words for one in (word, SPELLINGS.get(word)) if one]
    return re.compile(rf"(?<!\w)(?:{'|'.join(spelt)})(?!\w)", re.IGNORECASE)


def mentions(rows: list[dict], found: list[dict]) -> dict[str, np.ndarray]:
    """Shares of each concept's descriptions that use each word of an attribute: attribute to [c, w]; NaN where a
    concept has no description. `rows` are those of inference.py's JSONL, of any number of runs."""
    shares = {}
    for attribute, words in WORDS.items():
        shares[attribute] = np.array([
            [np.mean(said) if (said := [bool(one.search(row["description"])) for row in rows
                                        if row["concept"] == concept["name"]]) else np.nan
             for one in map(pattern, words)] for concept in found])
    return shares


def margin(values: np.ndarray, word: int) -> float:
    """How much one of an attribute's words has more than the mean of the others; `values` [w] are effects or shares."""
    return float(values[word] - np.delete(values, word).mean())


def table(found: list[dict], effect: dict[str, np.ndarray], before: dict | None, after: dict | None) -> dict[str, dict]:
    """By attribute, over the concepts that share one: number, true_over_name and true_over_false (what the VLM gives
    the true word more than the name, and than the mean false word), best (share of concepts whose true word beats the
    name and every false word), and with mentions, lift_before, lift_after and gain (true over mean false mentions). All
    but `number` and `best` are (mean, low, high), with the 95% interval of a bootstrap over concepts."""
    rows = {}
    for attribute, words in WORDS.items():
        own = [(c, words.index(concept["word"])) for c, concept in enumerate(found)
               if concept["attribute"] == attribute]
        values = effect[attribute]
        figures = {"true_over_name": [values[c, w] for c, w in own],
                   "true_over_false": [margin(values[c], w) for c, w in own]}
        if before and after:
            figures |= {"lift_before": [margin(before[attribute][c], w) for c, w in own],
                        "lift_after": [margin(after[attribute][c], w) for c, w in own]}
            figures["gain"] = np.subtract(figures["lift_after"], figures["lift_before"])
        rows[attribute] = {"number": len(own), "best": float(np.mean([values[c].argmax() == w and values[c, w] > 0
                                                                      for c, w in own])),
                           **{name: interval(np.array(numbers)) for name, numbers in figures.items()}}
    return rows


def interval(values: np.ndarray, draws: int = 5000) -> tuple[float, float, float]:
    """The mean of values of concepts [c], and its 95% interval by a bootstrap over them."""
    drawn = np.random.default_rng(0).integers(len(values), size=(draws, len(values)))
    return float(values.mean()), *map(float, np.percentile(values[drawn].mean(axis=1), [2.5, 97.5]))


def agreement_of_effects(effect: dict, before: dict, after: dict) -> dict:
    """Spearman's correlation, over concepts and attributes, of what the VLM prefers and what training made of it: for
    each, the word that the VLM likes best, how much more than the others it likes it, and how much more its mentions
    grew than theirs. Returns correlation, low, high (bootstrap over concepts) and pairs."""
    from scipy.stats import spearmanr

    names = list(WORDS)
    best = {name: effect[name].argmax(axis=1) for name in names}
    liked, grew = (np.array([[margin(values[name][c], best[name][c]) for name in names]
                             for c in range(len(effect[names[0]]))])
                   for values in (effect, {name: after[name] - before[name] for name in names}))
    drawn = np.random.default_rng(0).integers(len(liked), size=(1000, len(liked)))
    every = [spearmanr(liked[rows].ravel(), grew[rows].ravel()).statistic for rows in drawn]
    low, high = np.nanpercentile(every, [2.5, 97.5])
    return {"correlation": float(spearmanr(liked.ravel(), grew.ravel()).statistic), "low": float(low),
            "high": float(high), "pairs": liked.size}


def discoveries(found: list[dict], before: dict, after: dict) -> dict[str, int]:
    """What a reader would take for a finding: an attribute of a concept whose mentions of one word grew most, and by at
    least DISCOVERY. Counts those that are true, that name a wrong word of what is fixed, that are of an attribute which
    is random in a concept with something fixed, and in one with nothing fixed, and how many of each there could be."""
    counts = {"true": 0, "wrong_word": 0, "random_attribute": 0, "nothing_fixed": 0, "fixed_pairs": 0,
              "random_pairs": 0, "nothing_fixed_pairs": 0}
    for c, concept in enumerate(found):
        for attribute, words in WORDS.items():
            growth = after[attribute][c] - before[attribute][c]
            fixed = concept["attribute"] == attribute
            kind = "fixed" if fixed else "random" if concept["attribute"] else "nothing_fixed"
            counts[f"{kind}_pairs"] += 1
            if growth.max() >= DISCOVERY:
                right = fixed and words[growth.argmax()] == concept["word"]
                counts["true" if right else "wrong_word" if fixed else
                       "random_attribute" if concept["attribute"] else "nothing_fixed"] += 1
    return counts


def judged(answers: dict[tuple[int, str], dict]) -> dict[str, dict]:
    """How a judge's answers (of `inspection.read_answers`) agree with the word lists on all descriptions, by those of
    ATTRIBUTES that a judge is asked about: used, kappa (None where it is not defined) and its interval."""
    from sklearn.metrics import cohen_kappa_score

    from utils.ex2 import verdicts

    results = {}
    for attribute, name in JUDGED.items():
        any_word = pattern(*WORDS[attribute])
        pairs = [(name in answer["parsed"]["attributes"], bool(any_word.search(answer["description"])))
                 for (_, question), answer in answers.items() if question == "attributes" and answer["parsed"]]
        constant = len(set(pairs)) < 2 or len({one for one, _ in pairs}) == len({other for _, other in pairs}) == 1
        results[attribute] = {"used": len(pairs),
                              "kappa": None if constant else float(cohen_kappa_score(*zip(*pairs))),
                              "interval": None if constant else verdicts.kappa_interval(*zip(*pairs))}
    return results
