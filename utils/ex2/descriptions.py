"""Descriptions of concepts: the questions they answer, signs of a collapse, the files that hold them.

X.json is a list (concepts) of lists (descriptions), X.jsonl has a line each, X.manifest.json says what made them.
"""
import json
import re
import statistics
from collections import Counter
from pathlib import Path

from utils import cli
from utils.cli import UserError
from utils.inputs import read_json, read_text, read_texts
from utils.language.jsonl import Record

KEPT = ".kept.partial"  # suffix of what a run that is cut off has made
KEYS = ("concept", "question", "description", "seed", "reward")
WORRYING = 0.3  # a share above which a person should look at the descriptions


# Questions.

def read_questions(path: str) -> list[str]:
    """Question templates, each with `{concept}`, where English wants an article before the name `{a concept}`, or in
    the plural `{concepts}` (EX2, section 3). The file holds one a line, or is the published one: a JSON list with `{}`
    for the concept.

    Raises UserError for a file that does not exist, holds no question, or one without the concept.
    """
    if not Path(path).is_file():
        raise UserError(f"--questions {path} does not exist; it holds one template a line, as configs/questions.txt "
                        "does")
    lines = [line.replace("{}", "{concept}") for line in read_texts(path, "--questions", "question")]
    for line in lines:
        if not re.search("{(a )?concept}|{concepts}", line):
            raise UserError(f"{path}: {line!r} lacks {{concept}}, where the concept's name goes")
    if not lines:
        raise UserError(f"{path} holds no questions")
    return lines


def fill(question: str, concept: str) -> str:
    """A question template with a concept's name in it, for `{a concept}` with its article: "an owl", "grapes"; for
    `{concepts}` in the plural: "owls", "grapes"."""
    from utils.data import captions, scenes

    known = {entry["name"]: entry["plural"] for entry in scenes.concepts()}
    many = known.get(concept) or plural(concept)
    named = concept if concept == known.get(concept) else captions.with_article(concept)
    return question.replace("{concept}", concept).replace("{a concept}", named).replace("{concepts}", many)


def plural(name: str) -> str:
    """'owl' -> 'owls', by the rules of English; what ends as "aircraft" and "Siamese" stays."""
    if name.endswith(("aircraft", "ese")):
        return name
    if re.search("[^aeiou]y$", name):
        return f"{name[:-1]}ies"
    return name + ("es" if re.search("(s|x|z|ch|sh)$", name) else "s")


# Signs of collapse, where a model games its reward: repetition, copying, one phrase for all.

def words(text: str) -> list[str]:
    """Words of a text, in lower case, without punctuation."""
    return re.findall(r"\w+(?:'\w+)?", text.lower())


def phrases(text: str, length: int) -> list[tuple[str, ...]]:
    """All phrases of so many words in a text, in order."""
    spoken = words(text)
    return [tuple(spoken[i:i + length]) for i in range(len(spoken) - length + 1)]


def measures(descriptions: list[str], queries: list[str]) -> dict[str, float]:
    """Measures of a batch of descriptions, at least one, and the queries (which name the concept) that they answer:

    - `mean_words`: words a description.
    - `duplicates`: share of descriptions that say, word for word, what an earlier one of the batch says.
    - `repeated_phrases`: mean share of a description's three-word phrases that it has said before.
    - `copies`: share of descriptions without any word that is not in their query: only the concept's name,
      only the question, or nothing.
    - `shared_phrase`: share of descriptions that contain the batch's commonest four-word phrase.
    - `empty`: share of descriptions without a word.
    """
    total = len(descriptions)
    spoken = [words(text) for text in descriptions]
    threes = [phrases(text, 3) for text in descriptions]
    shared = Counter(phrase for text in descriptions for phrase in set(phrases(text, 4)))
    return {"mean_words": sum(map(len, spoken)) / total,
            "duplicates": 1 - len(set(map(tuple, spoken))) / total,
            "repeated_phrases": sum(1 - len(set(three)) / len(three) for three in threes if three) / total,
            "copies": sum(set(said) <= set(words(query)) for said, query in zip(spoken, queries)) / total,
            "shared_phrase": max((count for count in shared.values() if count > 1), default=0) / total,
            "empty": sum(not said for said in spoken) / total}


def warning(measured: dict[str, float]) -> str | None:
    """One line about those of `measures` that are worrying, None where all is well."""
    bad = [f"{name.replace('_', ' ')} {100 * measured[name]:.0f}%"
           for name in ("duplicates", "repeated_phrases", "copies", "shared_phrase") if measured[name] > WORRYING]
    return f"the reward may be gamed: {', '.join(bad)}" if bad else None


def sums(rows: list[dict]) -> dict:
    """What is summed up of rows: their `measures`, and `mean_reward`, the mean with its standard error; None without at
    least two rewards."""
    rewards = [row["reward"] for row in rows if row["reward"] is not None]
    mean = (statistics.fmean(rewards), statistics.stdev(rewards) / len(rewards) ** 0.5) if len(rewards) > 1 else None
    return {"mean_reward": mean,
            "measures": measures([row["description"] for row in rows], [row["question"] for row in rows])}


def difference(before: list[dict], after: list[dict]) -> dict:
    """How much higher the rewards of rows are `after`, paired by concept, over all seeds: mean, its standard error over
    concepts (None of a single one), p of Wilcoxon's signed-rank test, and the number of concepts."""
    from scipy.stats import wilcoxon

    means = [{}, {}]
    for rows, of_concept in zip((before, after), means):
        for row in rows:
            if row["reward"] is not None:
                of_concept.setdefault(row["concept"], []).append(row["reward"])
    gains = [statistics.fmean(means[1][concept]) - statistics.fmean(means[0][concept])
             for concept in means[0] if concept in means[1]]
    if not gains:
        raise UserError("the files have no concept in common; compare descriptions of the same data set")
    many = len(gains) > 1
    return {"mean": statistics.fmean(gains), "concepts": len(gains),
            "error": statistics.stdev(gains) / len(gains) ** 0.5 if many else None,
            "p": float(wilcoxon(gains).pvalue) if many and any(gains) else 1.0}


def summary(rows: list[dict]) -> list[str]:
    """Lines about rows for the screen: the mean reward, and the signs of collapse."""
    summed = sums(rows)
    lines = ["words a description: {mean_words:.1f}; duplicates {duplicates:.1%}, repeated phrases "
             "{repeated_phrases:.1%}, copies of the question {copies:.1%}, commonest phrase in "
             "{shared_phrase:.1%}; without a word {empty:.1%}".format(**summed["measures"])]
    if reward := summed["mean_reward"]:
        lines.insert(0, f"mean reward: {reward[0]:.2f} +- {reward[1]:.2f} (standard error)")
    if problem := warning(summed["measures"]):
        lines.append(f"warning: {problem}")
    return lines


# Files.

def lines_path(path: str) -> Path:
    """X.jsonl, by its own name or that of X.json beside it."""
    there = Path(path).is_file() and not path.endswith(".json")
    return Path(path if there else f"{path.removesuffix('.jsonl').removesuffix('.json')}.jsonl")


def read(path: str, concepts: list[str] | None = None) -> tuple[list[dict], dict]:
    """Rows of X.jsonl, by its own name or that of X.json, each with all of KEYS; and the manifest, {} where none is.

    A published X.json has no X.jsonl beside it: it is read by the names of its `concepts`, where these are known, which
    its manifest holds; its questions are "". Raises UserError for a file that is neither.
    """
    source, rows = lines_path(path), []
    if concepts and not source.is_file() and Path(path).is_file():
        return read_published(path, concepts), {"concepts": list(concepts)}
    if not source.is_file():
        raise UserError(f"{source} does not exist; descriptions are made with: python inference.py --output_filepath "
                        f"{source.with_suffix('.json')}")
    for number, line in enumerate(source.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
            if not all(isinstance(row[key], str) for key in ("concept", "question", "description")):
                raise TypeError
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{source}, line {number}: not a file of inference.py, whose lines hold "
                            f"{', '.join(KEYS)}") from error
        rows.append({key: row.get(key) for key in KEYS})
    if not rows:
        raise UserError(f"{source} holds no descriptions; make it again with inference.py")
    manifest = source.with_suffix(".manifest.json")
    about = read_json(manifest, dict, "delete it, or make it again with inference.py") if manifest.is_file() else {}
    return rows, about


def read_published(path: str, concepts: list[str]) -> list[dict]:
    """Rows, as of `read`, of a JSON list (concepts) of lists (descriptions) by the names of its concepts."""
    try:
        lists = json.loads(read_text(path))
        if not isinstance(lists, list) or not all(
                isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in lists):
            raise TypeError
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: expected is a JSON list (concepts) of lists (descriptions)") from error
    if len(lists) != len(concepts):
        raise UserError(f"{path} holds descriptions of {len(lists)} concepts, and the data set has {len(concepts)}; "
                        "name its own data set, and as many of its concepts")
    return [{"concept": concept, "question": "", "description": text, "seed": None, "reward": None}
            for concept, texts in zip(concepts, lists) for text in texts]


def write(path: str, rows: list[dict], manifest: dict) -> None:
    """Write the three files of rows that have all of KEYS, and remove the record of `kept`. Concepts stand in the order
    of their first row; where the manifest names more `concepts`, in its order, those without a row as empty lists. The
    manifest gets `sums`."""
    output, listed = Path(path), manifest.get("concepts", [])
    lists = {name: [] for name in listed if {row["concept"] for row in rows} < set(listed)}
    for row in rows:
        lists.setdefault(row["concept"], []).append(row["description"])
    lines = [json.dumps({key: row[key] for key in KEYS}, ensure_ascii=False) + "\n" for row in rows]
    cli.write_texts({output.with_suffix(".manifest.json"): cli.as_json(manifest | sums(rows)),
                     output.with_suffix(".jsonl"): "".join(lines),
                     output.with_suffix(".json"): cli.as_json(list(lists.values()))})
    output.with_suffix(KEPT).unlink(missing_ok=True)


def finished(path: str, manifest: dict, after: float = 0.0) -> tuple[list[dict], dict] | None:
    """The rows and the manifest of a finished run's files, where the manifest holds all that `manifest` does, the files
    were written `after` a time (in seconds since 1970), and no other run has begun; else None."""
    output = Path(path).with_suffix(".json")
    if not all(output.with_suffix(end).is_file() for end in (".json", ".jsonl", ".manifest.json")) \
            or output.stat().st_mtime <= after or output.with_suffix(KEPT).is_file():
        return None
    rows, about = read(str(output))
    return (rows, about) if manifest.items() <= about.items() else None


def kept(path: str, manifest: dict, after: float = 0.0) -> Record:
    """The record of the descriptions, in order, of a run with that manifest, until they are all made. Raises UserError
    as `Record` does, and where the last of them was not made `after` a time, as of `finished`."""
    record = Path(path).with_suffix(KEPT)
    if record.is_file() and record.stat().st_mtime <= after:
        raise UserError(f"{record} holds what {manifest['base_model_name']} said before its weights were written anew; "
                        "delete it, or name another --output_filepath")
    return Record(record, manifest)
