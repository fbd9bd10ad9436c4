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
    plural, one = (descriptions.fill(form, name) for form in ("{concepts}", "{a concept}"))
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

    Returns bare and article (rewards of "NAME" and "a NAME" [c]), best (of the best text with at most one word more
    [c]) and words: attribute to the effect of each of its words, its reward minus that of "a NAME" [c, w].
    """
    texts = [controlled(concept["name"]) for concept in found]
    plain = [[concept["name"], descriptions.fill("{a concept}", concept["name"])] for concept in found]
    rows = [[*two, *of_concept.values()] for two, of_concept in zip(plain, texts)]
    rewards = np.array(score([text for row in rows for text in row], [c for c, row in enumerate(rows) for _ in row]))
    rewards = rewards.reshape(len(found), -1)
    ends = np.cumsum([len(words) for words in WORDS.values()])
    parts = np.split(rewards[:, 2:], ends[:-1], axis=1)
    return {"bare": rewards[:, 0], "article": rewards[:, 1], "best": rewards.max(axis=1),
            "words": {name: part - rewards[:, 1:2] for name, part in zip(WORDS, parts)}}


def pattern(attribute: str, word: str, name: str) -> re.Pattern:
    """Finds a word of an attribute in a description of the concept of this name, whole, in any spelling of SPELLINGS. A
    number is a count where it stands before the concept, with at most two words between them ("two small owls"), or
    after "there are": "one of the oldest" counts nothing."""
    spelt = rf"(?<!\w)(?:{'|'.join(one for one in (word, SPELLINGS.get(word)) if one)})(?!\w)"
    if attribute == "count":
        many = re.escape(descriptions.fill("{concepts}", name))
        named = rf"\s+(?:(?!of\b)[\w-]+\s+){{0,2}}(?:{re.escape(name)}|{many})(?!\w)"
        spelt = rf"{spelt}(?={named})|(?<=there is ){spelt}|(?<=there are ){spelt}"
    return re.compile(spelt, re.IGNORECASE)


def mentions(rows: list[dict], found: list[dict]) -> dict[str, np.ndarray]:
    """Shares of each concept's descriptions that use each word of an attribute: attribute to [c, w]; NaN where a
    concept has no description. `rows` are those of inference.py's JSONL, of any number of runs."""
    of_concept = [[row["description"] for row in rows if row["concept"] == concept["name"]] for concept in found]
    return {attribute: np.array([[np.mean([bool(one.search(text)) for text in texts]) if texts else np.nan
                                  for one in (pattern(attribute, word, concept["name"]) for word in words)]
                                 for concept, texts in zip(found, of_concept)])
            for attribute, words in WORDS.items()}


def margin(values: np.ndarray, word: int) -> float:
    """How much one of an attribute's words has more than the mean of the others; `values` [w] are effects or shares."""
    return float(values[word] - np.delete(values, word).mean())


def table(found: list[dict], effect: dict, before: dict | None, after: dict | None) -> dict[str, dict]:
    """By attribute, over the concepts that share one, and over `all` of them: `number`; what the VLM gives the true
    word more than "a NAME" (true_over_article), than the bare name (true_over_bare) and than the mean false word
    (true_over_false); the share of concepts whose true word beats "a NAME" and every false word (best), and the bare
    name too (best_over_bare); and with mentions, lift_before, lift_after and gain (true over mean false mentions), and
    gain_over_others: how much more mentions of the true word grew than they did for concepts that do not share it
    (left out where all share it). `effect` is that of `effects`. All but `number` and the two shares are (mean, low,
    high), with the 95% interval of a bootstrap over concepts."""
    figures, bare = {}, effect["bare"] - effect["article"]
    for attribute, words in WORDS.items():
        own = [(c, words.index(concept["word"])) for c, concept in enumerate(found)
               if concept["attribute"] == attribute]
        values = effect["words"][attribute]
        figures[attribute] = {"true_over_article": [values[c, w] for c, w in own],
                              "true_over_bare": [values[c, w] - bare[c] for c, w in own],
                              "true_over_false": [margin(values[c], w) for c, w in own],
                              "best": [values[c].argmax() == w and values[c, w] > 0 for c, w in own]}
        figures[attribute]["best_over_bare"] = [best and over > 0 for best, over in zip(
            figures[attribute]["best"], figures[attribute]["true_over_bare"])]
        if before and after:
            lifts = {name: [margin(shares[attribute][c], w) for c, w in own]
                     for name, shares in (("lift_before", before), ("lift_after", after))}
            growth = after[attribute] - before[attribute]
            others = {w: [c for c, concept in enumerate(found) if concept["word"] != words[w]] for _, w in own}
            figures[attribute] |= lifts | {
                "gain": list(np.subtract(lifts["lift_after"], lifts["lift_before"])),
                "gain_over_others": [growth[c, w] - growth[others[w], w].mean() for c, w in own if others[w]]}
    figures["all"] = {name: [value for attribute in WORDS for value in figures[attribute][name]]
                      for name in figures["style"]}
    return {attribute: {"number": len(own["best"])} | {
        name: float(np.mean(values)) if name.startswith("best") else interval(np.array(values))
        for name, values in own.items() if values} for attribute, own in figures.items() if own["best"]}


def interval(values: np.ndarray, draws: int = 5000) -> tuple[float, float, float]:
    """The mean of values of concepts [c], and its 95% interval by a bootstrap over them."""
    drawn = np.random.default_rng(0).integers(len(values), size=(draws, len(values)))
    return float(values.mean()), *map(float, np.percentile(values[drawn].mean(axis=1), [2.5, 97.5]))


def agreement_of_effects(effect: dict, before: dict, after: dict) -> dict:
    """Spearman's correlation, over concepts and attributes, of what the VLM prefers and what training made of it: for
    each, the word that the VLM likes best, how much more than the others it likes it, and how much more its mentions
    grew than theirs. Returns correlation, low, high (bootstrap over concepts; all None where nothing grew), pairs."""
    from scipy.stats import spearmanr

    names = list(WORDS)
    best = {name: effect[name].argmax(axis=1) for name in names}
    liked, grew = (np.array([[margin(values[name][c], best[name][c]) for name in names]
                             for c in range(len(effect[names[0]]))])
                   for values in (effect, {name: after[name] - before[name] for name in names}))
    if np.ptp(liked) == 0 or np.ptp(grew) == 0:
        return {"correlation": None, "low": None, "high": None, "pairs": liked.size}
    drawn = np.random.default_rng(0).integers(len(liked), size=(1000, len(liked)))
    every = [spearmanr(liked[rows].ravel(), grew[rows].ravel()).statistic for rows in drawn if np.ptp(grew[rows])]
    low, high = np.percentile(every, [2.5, 97.5])
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


def judged(answers: list[dict]) -> dict[str, dict]:
    """How a judge's answers (of `inspection.read_answers`) agree with the word lists on all descriptions, by those of
    ATTRIBUTES that a judge is asked about: used, kappa (None where it is not defined) and its interval."""
    from sklearn.metrics import cohen_kappa_score

    from utils.ex2 import verdicts

    results = {}
    for attribute, name in JUDGED.items():
        pairs = [(name in answer["parsed"]["attributes"],
                  any(pattern(attribute, word, answer["concept"]).search(answer["description"])
                      for word in WORDS[attribute]))
                 for answer in answers if answer["question"] == "attributes" and answer["parsed"]]
        constant = len(set(pairs)) < 2 or len({one for one, _ in pairs}) == len({other for _, other in pairs}) == 1
        results[attribute] = {"used": len(pairs),
                              "kappa": None if constant else float(cohen_kappa_score(*zip(*pairs))),
                              "interval": None if constant else verdicts.kappa_interval(*zip(*pairs))}
    return results
