"""What an inspector is asked about descriptions, and what its answers mean (EX2, section 4).

Answers are kept in a JSONL file (utils/language/jsonl.py). Its header says what was asked of whom. Every line is one
question about one description; where an (index, question) comes twice, the later line counts:

    index, concept, description           of the description; index from 0 in the order of the input
    question                              "knowledge" or "attributes"
    vlm_name, dataset, inspector          whose description it is, and who judges
    raw                                   all texts that the model answered, the last one last
    settings, response                    what the last request was sent with; the client's own dump of its answer
    parsed                                what the last of them says; null where nothing could be read
    status, attempts, error               "answered" or "unanswered"; tries; the last fault, null where answered
"""
import asyncio
import functools
import hashlib
import json
import re
from pathlib import Path

from utils.ex2 import descriptions
from utils.inputs import UserError, read_json, read_texts, read_yaml
from utils.language import jsonl, replies

QUESTIONS = ("knowledge", "attributes")
KINDS = ("visual", "nonvisual", "spurious")


def read_sheet(path: str) -> dict:
    """The questions and the lists of names, as in configs/inspection.yaml. Raises UserError where it is incomplete."""
    sheet = read_yaml(path)
    form = "it should look like configs/inspection.yaml"
    try:
        names = [name for kind in KINDS for name in sheet[kind]]
        for question in QUESTIONS:
            messages(sheet, question, sheet["questions"][question]["example"])
            if read_answer(json.dumps(sheet["questions"][question]["example"]["answer"]), question, sheet) is None:
                raise UserError(f"{path}: the example's answer to {question} is not one; {form}")
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: something is missing or in the wrong place ({error}); {form}") from error
    wrong = [name for name in names if name != _plain(str(name)) or names.count(name) > 1]
    if wrong:
        raise UserError(f"{path}: {wrong[0]!r} cannot be a name; use lower-case letters, digits and _, each name once")
    return sheet


def read_descriptions(path: str, class_names: str | None = None) -> tuple[list[dict], dict]:
    """Rows and manifest as of `descriptions.read`; of a published X.json, without an X.jsonl beside it, by the names of
    its concepts in the file `class_names`, one a line or a JSON list. Raises UserError where the names are missing, do
    not fit, or are not needed."""
    lines = descriptions.lines_path(path)
    published = path.endswith(".json") and Path(path).is_file() and not lines.is_file()
    if not published:
        if class_names:
            raise UserError(f"--class_names is for a published X.json without an X.jsonl beside it, and {lines} names "
                            "its own concepts; leave it out" if lines.is_file() else f"{path} does not exist")
        return descriptions.read(path)
    if not class_names:
        raise UserError(f"{path} has no {lines.name} beside it, which would name its concepts; give their names, one a "
                        "line, with --class_names FILE")
    names = read_texts(class_names, "--class_names", "name")
    concepts = len(read_json(path, list, "expected is a JSON list (concepts) of lists (descriptions)"))
    if len(names) != concepts:
        raise UserError(f"--class_names {class_names} holds {len(names)} names, and {path} descriptions of {concepts} "
                        "concepts; write one name a line")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--class_names {class_names}: two concepts are both called {twice[0]!r}; rename one of them")
    return descriptions.read(path, names)


def messages(sheet: dict, question: str, entry: dict) -> list[dict]:
    """The chat that asks one question about an entry's `concept` and `description`, after one worked example."""
    asked = sheet["questions"][question]
    instruction = asked["instruction"]
    for kind in KINDS:
        meanings = "; ".join(f"{name} ({meaning})" for name, meaning in sheet[kind].items())
        instruction = instruction.replace(f"{{{kind}}}", meanings)

    def snippet(shown: dict) -> str:
        return sheet["message"].replace("{concept}", shown["concept"]).replace("{description}", shown["description"])

    return [{"role": "system", "content": instruction},
            {"role": "user", "content": snippet(asked["example"])},
            {"role": "assistant", "content": json.dumps(asked["example"]["answer"])},
            {"role": "user", "content": snippet(entry)}]


def response_format(sheet: dict, question: str) -> dict:
    """The JSON schema of an answer, in the form that OpenAI-compatible servers take."""
    if question == "knowledge":
        properties = {"explanation": {"type": "string"},
                      "increases_knowledge": {"type": "string", "enum": ["yes", "no"]}}
    else:
        lists = {"attributes": [*sheet["visual"], *sheet["nonvisual"]], "spurious": list(sheet["spurious"])}
        # Lists have an end, because a small model repeats names for as long as it may.
        properties = {key: {"type": "array", "items": {"type": "string", "enum": names}, "maxItems": min(6, len(names))}
                      for key, names in lists.items()}
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": question, "strict": True, "schema": schema}}


def read_answer(text: str, question: str, sheet: dict) -> dict | None:
    """What an answer says, by the last object in it that is one, once the model's thoughts are taken off; None where
    there is none. Nothing is guessed.

    "knowledge" gives {"explanation": str, "increases_knowledge": "yes" or "no"}; "attributes" gives {"attributes":
    names, "spurious": names, "unknown": names that are not in the lists, which count for nothing}.
    """
    answer, end = None, 0
    for found, start, stop in replies.objects(text):
        if start < end:  # inside an object that is an answer
            continue
        fits = _fitting(found, question, sheet)
        if fits is not None:
            answer, end = fits, stop
    return answer


def _fitting(found: dict, question: str, sheet: dict) -> dict | None:
    """An object as the answer to a question; None where it is none."""
    found = {_plain(str(key)): value for key, value in found.items()}
    if question == "knowledge":
        verdict = found.get("increases_knowledge")
        verdict = _plain(str(verdict)) if isinstance(verdict, (str, bool)) else None
        if verdict not in ("yes", "true", "no", "false"):
            return None
        explanation = found.get("explanation")
        return {"explanation": explanation if isinstance(explanation, str) else "",
                "increases_knowledge": "yes" if verdict in ("yes", "true") else "no"}
    used, spurious = _names(found.get("attributes")), _names(found.get("spurious"))
    if used is None or spurious is None:
        return None
    known = {*sheet["visual"], *sheet["nonvisual"]}
    return {"attributes": [name for name in used if name in known],
            "spurious": [name for name in spurious if name in sheet["spurious"]],
            "unknown": [name for name in used if name not in known]
            + [name for name in spurious if name not in sheet["spurious"]]}


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _names(value) -> list[str] | None:
    """Names in a list, or in a string with commas; None for anything else."""
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        return None
    return list(dict.fromkeys(filter(None, map(_plain, value))))


def make_header(rows: list[dict], sheet: dict, sampling: dict, inspector: str, vlm_name: str | None,
                dataset: str | None) -> dict:
    """What is asked of whom: the header of a file of answers. `sampling` is what else the answers depend on:
    temperature, top_p and max_tokens of a chat model.

    Raises UserError where the VLM or the data set is not known.
    """
    for name, value, option in (("vlm_name", vlm_name, "--vlm_name"), ("dataset", dataset, "--dataset_name")):
        if not value:
            raise UserError(f"no manifest tells the {name} of the descriptions; give it with {option}")
    texts = [[row["concept"], row["description"]] for row in rows]
    return {"inspector": inspector, "vlm_name": vlm_name, "dataset": dataset, "descriptions": len(rows),
            "descriptions_sha256": hash_of(texts), "inspection_sha256": hash_of(sheet), **sampling,
            **{kind: list(sheet[kind]) for kind in KINDS}}


def hash_of(content: list | dict) -> str:
    """SHA-256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def estimate_tokens(chat: list[dict]) -> int:
    """Tokens of a chat, at four characters a token and four tokens around each message."""
    return sum(len(message["content"]) // 4 + 4 for message in chat)


def estimate(sheet: dict, rows: list[dict], tasks: list[tuple[int, str]], most: int,
             prices: list[float] | None) -> list[str]:
    """Lines that say what the questions `tasks` (index, question) would cost, with answers of `most` tokens; `prices`
    are those of a million tokens to read, and to write."""
    tokens = sum(estimate_tokens(messages(sheet, question, rows[index])) for index, question in tasks)
    written = len(tasks) * most
    lines = [f"about {tokens:,} tokens to read, estimated at four characters a token; at most {written:,} to write; "
             "retries come on top"]
    if prices:
        price = (tokens * prices[0] + written * prices[1]) / 1e6
        lines.append(f"at most {price:.2f} at these prices, and {price / 2:.2f} with --batch, half of it; a model that "
                     "thinks before it answers writes more")
    return lines


def read_answers(path: Path, header: dict | None = None) -> tuple[dict, dict[tuple[int, str], dict]]:
    """Header and answers, by (index, question), of a file of answers.

    Raises UserError for another kind of file, and for one that was made with another header than the one given.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; make it with: python inspect.py --input_filepath FILE.jsonl")
    found, lines = jsonl.read(path)
    if not {"inspector", "vlm_name", "dataset", "descriptions", *KINDS} <= set(found):
        raise UserError(f"{path} is not a file of inspect.py's answers; name another")
    if header:
        jsonl.check(path, found, header)
    return found, by_question(path, lines)


def by_question(path: Path, lines: list) -> dict[tuple[int, str], dict]:
    """The answers of a file's lines, by (index, question). Raises UserError for a line that is none."""
    answers = {}
    for number, answer in enumerate(lines, 2):
        try:
            if answer["status"] == "answered" and not isinstance(answer["parsed"], dict):
                raise TypeError
            answers[answer["index"], answer["question"]] = answer
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number}: damaged; delete that line") from error
    return answers


def missing(rows: list[dict], answers: dict) -> list[tuple[int, str]]:
    """(index, question) of all that has no answer; what was asked in vain comes last, or it might eat up a budget."""
    tasks = [(i, question) for i in range(len(rows)) for question in QUESTIONS]
    return [task for task in tasks if task not in answers] + [
        task for task in tasks if task in answers and answers[task]["status"] != "answered"]


def ask(client, sheet: dict, rows: list[dict], answers: dict, record: jsonl.Record, concurrency: int) -> None:
    """Ask a `chat.ChatClient` all that has no answer yet. Every answer goes to `record` and `answers` as it comes.

    Raises UserError where the server cannot answer at all.
    """
    from utils.language import chat

    def request(task: tuple[int, str]) -> tuple:
        index, question = task
        return (messages(sheet, question, rows[index]), response_format(sheet, question),
                functools.partial(read_answer, question=question, sheet=sheet))

    keep = functools.partial(keep_answer, rows, answers, record)
    total = len(rows) * len(QUESTIONS)
    asyncio.run(chat.ask_all(client, missing(rows, answers), request, keep, concurrency, total))


def answered(parsed: dict) -> dict:
    """What `chat.ChatClient.ask` gives, of an answer that needed no model."""
    return {"raw": [json.dumps(parsed)], "parsed": parsed, "status": "answered", "attempts": 1, "error": None,
            "settings": None, "response": None}


def keep_answer(rows: list[dict], answers: dict, record: jsonl.Record, task: tuple[int, str], answer: dict) -> None:
    """Keep what came of one question about one description, in `answers` and in the `record`."""
    index, question = task
    about = {name: record.header[name] for name in ("vlm_name", "dataset", "inspector")}
    answers[task] = {"index": index, "concept": rows[index]["concept"], "description": rows[index]["description"],
                     "question": question, **about, **answer}
    record.append(answers[task])


def published(rows: list[dict], answers: dict) -> list[list[str | None]]:
    """The published layout: for each concept, the client's dump of the response to the first question; null where none
    came."""
    concepts: dict[str, list[str | None]] = {}
    for i, row in enumerate(rows):
        concepts.setdefault(row["concept"], []).append(answers[i, QUESTIONS[0]].get("response"))
    return list(concepts.values())
