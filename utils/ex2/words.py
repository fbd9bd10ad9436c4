"""An inspector without a model: word lists find the attributes that a description uses (EX2, section 4)."""
import re

from utils.ex2 import inspection
from utils.ex2.inspection import KINDS
from utils.inputs import UserError, read_yaml
from utils.language import jsonl


def read_lists(path: str, sheet: dict) -> dict[str, re.Pattern]:
    """Word lists, as in configs/inspection_words.yaml, as patterns by attribute or spurious kind of the `sheet` (of
    `inspection.read_sheet`). A word that ends with * stands for all that begin so; \\ and [] are those of regular
    expressions. Raises UserError for a name that the sheet lacks, and for words that are none."""
    lists, names = read_yaml(path), {name for kind in KINDS for name in sheet[kind]}
    if not lists:
        raise UserError(f"{path} holds no word lists; it should look like configs/inspection_words.yaml")
    if unknown := sorted(set(lists) - names):
        raise UserError(f"{path}: {unknown[0]!r} is no attribute or spurious kind of the inspection; known are "
                        + ", ".join(sorted(names)))
    try:
        return {name: re.compile("|".join(rf"(?<!\w){word[:-1]}\w*" if word.endswith("*") else rf"(?<!\w){word}(?!\w)"
                                          for word in words)) for name, words in lists.items()}
    except (re.error, AttributeError, TypeError) as error:
        raise UserError(f"{path}: each name needs a list of words ({error})") from error


def answer(lists: dict[str, re.Pattern], sheet: dict, rows: list[dict], answers: dict, record: jsonl.Record) -> None:
    """Answer all that has no answer yet; every answer goes to `record` and `answers`."""
    for index, question in inspection.missing(rows, answers):
        said = judge(rows[index]["description"], lists, sheet)[question]
        inspection.keep_answer(rows, answers, record, (index, question), inspection.answered(said))


def judge(description: str, lists: dict[str, re.Pattern], sheet: dict) -> dict[str, dict]:
    """What the word lists say of a description: by question, in the form of `inspection.read_answer`."""
    text = description.lower()
    found = [name for name, pattern in lists.items() if pattern.search(text)]
    attributes = [name for name in found if name not in sheet["spurious"]]
    specific = [name for name in attributes if name != "other"]
    return {"knowledge": {"explanation": f"uses {', '.join(specific)}" if specific else "uses no attribute",
                          "increases_knowledge": "yes" if specific else "no"},
            "attributes": {"attributes": attributes, "spurious": [name for name in found if name in sheet["spurious"]],
                           "unknown": []}}
