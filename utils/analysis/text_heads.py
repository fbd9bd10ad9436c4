"""What the heads of a text tower do: which matter for a zero-shot classifier, what they read, which texts they part."""
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from utils.decompose.texts import END, PADDING, START, TextDecomposer

MARKS = (START, END, PADDING, "<class>")  # tokens that are no words


def class_terms(decomposer: TextDecomposer, classes: Sequence[str], templates: Sequence[Callable[[str], str]],
                batch_size: int) -> np.ndarray:
    """What each component contributes to the mean of a class's prompts [classes, c, d]; their sum, over its length, is
    the class's column of the zero-shot classifier."""
    from tqdm import tqdm

    found, step = [], max(1, batch_size // len(templates))
    for start in tqdm(range(0, len(classes), step), "classes", unit="batch", delay=3):
        some = classes[start:start + step]
        values = decomposer.terms([template(name) for name in some for template in templates]).values
        found.append(values.unflatten(0, (len(some), -1)).mean(dim=1).cpu().numpy())
    return np.concatenate(found)


def accuracies(terms: np.ndarray, means: np.ndarray, representations: np.ndarray, labels: np.ndarray,
               sets: dict[str, Sequence[int]]) -> dict[str, float]:
    """Zero-shot accuracy in percent with a classifier rebuilt from `terms` [classes, c, d], in which each of several
    sets of components, by name, is replaced by its `means` [c, d] over a pool. Images are given by their
    representations [b, d] and labels [b]."""
    found, whole = {}, terms.sum(axis=1)
    for name, columns in sets.items():
        columns = list(columns)
        classifier = whole - terms[:, columns].sum(axis=1) + means[columns].sum(axis=0)
        classifier = classifier / np.linalg.norm(classifier, axis=1, keepdims=True)
        found[name] = 100 * float(((representations @ classifier.T).argmax(axis=1) == labels).mean())
    return found


def read_words(decomposer: TextDecomposer, texts: Sequence[str], batch_size: int, number: int) -> dict[str, dict]:
    """What each head of the text tower reads over a pool: by head the mean attention on words, and on each token that
    is no word, and the `number` words (seen in at least two texts) that get the largest mean attention."""
    heads = [str(part) for part in decomposer.components if part.kind == "attn"]
    sums: dict[str, list] = defaultdict(lambda: [0, 0])
    marks, seen = {}, 0
    for start in range(0, len(texts), batch_size):
        for words in decomposer.words(list(texts[start:start + batch_size]))[1]:
            attention = words.attention.flatten(0, 1).double().cpu().numpy()               # [heads, words]
            seen += 1
            for column, name in enumerate(words.names):
                if name in MARKS:
                    marks[name] = marks.get(name, 0) + attention[:, column]
            for name in {name for name in words.names if name not in MARKS}:
                own = [column for column, other in enumerate(words.names) if other == name]
                sums[name][0] += 1
                sums[name][1] = sums[name][1] + attention[:, own].sum(axis=1)
    often = {name: total / count for name, (count, total) in sums.items() if count > 1}
    names, values = list(often), np.array(list(often.values())).reshape(-1, len(heads))
    found = {}
    for i, head in enumerate(heads):
        of_marks = {name: float(total[i] / seen) for name, total in marks.items()}
        best = np.argsort(-values[:, i])[:number] if names else []
        found[head] = {"attention": {"words": 1 - sum(of_marks.values()), **of_marks},
                       "words": [{"word": names[j], "attention": float(values[j, i])} for j in best]}
    return found


def extremes(terms: np.ndarray, texts: Sequence[str], number: int) -> tuple[list[str], list[str], float]:
    """The texts that one head parts: those highest and lowest on the first principal component of its terms [m, d],
    and the share of their variance that it holds."""
    centred = terms.astype(np.float64) - terms.mean(axis=0, dtype=np.float64)
    _, singular, vh = np.linalg.svd(centred, full_matrices=False)
    scores = centred @ vh[0]
    order = np.argsort(scores)
    share = float(singular[0] ** 2 / max((singular ** 2).sum(), np.finfo(float).tiny))
    return [texts[i] for i in order[::-1][:number]], [texts[i] for i in order[:number]], share


def retrieve(terms: np.ndarray, representation: np.ndarray, texts: Sequence[str], number: int) -> list[dict]:
    """The texts that one head brings nearest to an image: by the product of the image's representation [d] and what the
    head contributes to each text, less its mean, terms [m, d]."""
    scores = (terms - terms.mean(axis=0)) @ representation
    return [{"text": texts[i], "score": float(scores[i])} for i in np.argsort(-scores)[:number]]
