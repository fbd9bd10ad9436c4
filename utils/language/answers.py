"""What an inspector is asked about descriptions, how its answers are read, and the record that keeps them (EX2).

A record is a JSONL file. Its first line is {"header": {...}}: what was asked of whom. Every other line is one question
about one description; where an (index, question) comes twice, the later line counts:

    index, concept, description           of the description; index from 0 in the order of the input
    question                              "knowledge" or "attributes"
    vlm_name, dataset, inspector          whose description it is, and who judges
    raw                                   all texts that the model answered, the last one last
    parsed                                what the last of them says; null where nothing could be read
    status, attempts, error               "answered" or "unanswered"; tries; the last fault, null where answered
"""
import fcntl
import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from utils.cli import UserError, read_yaml

QUESTIONS = ("knowledge", "attributes")
KINDS = ("visual", "nonvisual", "spurious")
LINES = "on each line a JSON object with the keys concept, question, description, seed, reward"  # of inference.py


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
        properties = {"explanation": {"type": "string"}, "increases_knowledge": {"type": "string", "enum": ["yes", "no"]}}
    else:
        lists = {"attributes": [*sheet["visual"], *sheet["nonvisual"]], "spurious": list(sheet["spurious"])}
        # Lists have an end, because a small model repeats names for as long as it may.
        properties = {key: {"type": "array", "items": {"type": "string", "enum": names}, "maxItems": min(6, len(names))}
                      for key, names in lists.items()}
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": question, "strict": True, "schema": schema}}


def read_answer(text: str, question: str, sheet: dict) -> dict | None:
    """What an answer says, by the first object in it that is one; None where there is none. Nothing is guessed.

    "knowledge" gives {"explanation": str, "increases_knowledge": "yes" or "no"}; "attributes" gives {"attributes": names,
    "spurious": names, "unknown": names that are not in the lists, which count for nothing}.
    """
    for found in _objects(text):
        found = {_plain(str(key)): value for key, value in found.items()}
        if question == "knowledge":
            verdict = found.get("increases_knowledge")
            verdict = _plain(str(verdict)) if isinstance(verdict, (str, bool)) else None
            if verdict in ("yes", "true", "no", "false"):
                explanation = found.get("explanation")
                return {"explanation": explanation if isinstance(explanation, str) else "",
                        "increases_knowledge": "yes" if verdict in ("yes", "true") else "no"}
        else:
            used, spurious = _names(found.get("attributes")), _names(found.get("spurious"))
            if used is not None and spurious is not None:
                known = {*sheet["visual"], *sheet["nonvisual"]}
                return {"attributes": [name for name in used if name in known],
                        "spurious": [name for name in spurious if name in sheet["spurious"]],
                        "unknown": [name for name in used if name not in known]
                        + [name for name in spurious if name not in sheet["spurious"]]}
    return None


def _objects(text: str) -> Iterator[dict]:
    """JSON objects in a text, whatever stands around them; YAML reads single quotes, trailing commas and bare words."""
    for match in itertools.islice(re.finditer("{", text), 50):  # a model that is stuck may write thousands
        piece = text[match.start():]
        try:
            yield json.JSONDecoder(strict=False).raw_decode(piece)[0]
            continue
        except (ValueError, RecursionError):
            depths = itertools.accumulate((character == "{") - (character == "}") for character in piece)
            end = next((i for i, depth in enumerate(depths, 1) if depth == 0), 0)
        try:
            found = yaml.safe_load(piece[:end])
        except Exception:  # PyYAML raises much besides its own errors on what a model may write
            continue
        if isinstance(found, dict):
            yield found


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _names(value) -> list[str] | None:
    """Names in a list, or in a string with commas; None for anything else."""
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        return None
    return list(dict.fromkeys(filter(None, map(_plain, value))))


def read_descriptions(path: str) -> tuple[Path, list[dict]]:
    """inference.py's descriptions: the path of the .jsonl, and its lines. Raises UserError for any other file."""
    source = Path(path)
    if not source.is_file():
        raise UserError(f"{path} does not exist; make it with inference.py")
    if source.suffix == ".json":
        source = source.with_suffix(".jsonl")
        if not source.is_file():
            raise UserError(f"{path}: {source.name} is not beside it, where inference.py puts it; it has {LINES}")
    descriptions = []
    for number, line in enumerate(source.read_bytes().splitlines(), 1):
        try:
            entry = json.loads(line)
            if not all(isinstance(entry[key], str) for key in ("concept", "question", "description")):
                raise TypeError
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{source}, line {number}: not a description of inference.py's; expected is {LINES}") from error
        descriptions.append(entry)
    if not descriptions:
        raise UserError(f"{source} is empty; expected is {LINES}")
    return source, descriptions


def make_header(args, source: Path, descriptions: list[dict], sheet: dict) -> dict:
    """What is asked of whom. `args` are inspect.py's; names that they lack come from inference.py's manifest.

    Raises UserError where neither tells the VLM or the data set.
    """
    names = {"vlm_name": args.vlm_name, "dataset": args.dataset_name}
    path = source.with_name(f"{source.stem}.manifest.json")
    if not all(names.values()) and path.is_file():
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            names = {name: given or manifest.get(name) for name, given in names.items()}
        except (ValueError, AttributeError) as error:
            raise UserError(f"{path}: not a manifest of inference.py's; give --vlm_name and --dataset_name instead") from error
    for name, option in (("vlm_name", "--vlm_name"), ("dataset", "--dataset_name")):
        if not names[name]:
            raise UserError(f"{path} does not tell the {name} of the descriptions; give it with {option}")
    texts = [[entry["concept"], entry["description"]] for entry in descriptions]
    return {"inspector": args.model, **names, "descriptions": len(descriptions), "descriptions_sha256": _hash(texts),
            "inspection_sha256": _hash(sheet), "temperature": args.temperature, "top_p": args.top_p,
            "max_tokens": args.max_tokens, **{kind: list(sheet[kind]) for kind in KINDS}}


def _hash(content: list | dict) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def estimate_tokens(chat: list[dict]) -> int:
    """Tokens of a chat, at four characters a token and four tokens around each message."""
    return sum(len(message["content"]) // 4 + 4 for message in chat)


def missing(descriptions: list[dict], answers: dict) -> list[tuple[int, str]]:
    """(index, question) of all that has no answer; what was asked in vain before comes last, or it might eat up every budget."""
    tasks = [(i, question) for i in range(len(descriptions)) for question in QUESTIONS]
    return [task for task in tasks if task not in answers] + [
        task for task in tasks if task in answers and answers[task]["status"] != "answered"]


def published(descriptions: list[dict], answers: dict) -> list[list[str | None]]:
    """The published layout: for each concept, the last raw response to the first question; null where none came."""
    concepts: dict[str, list[str | None]] = {}
    for i, entry in enumerate(descriptions):
        raw = answers[i, QUESTIONS[0]]["raw"]
        concepts.setdefault(entry["concept"], []).append(raw[-1] if raw else None)
    return list(concepts.values())


def read_record(path: Path, header: dict | None = None) -> tuple[dict, dict[tuple[int, str], dict]]:
    """Header and answers, by (index, question), of a record. A last line without an end is left out.

    Raises UserError for another kind of file, and for a record that was made with another header than the one given.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; make it with: python inspect.py --input_filepath FILE.jsonl")
    first, *lines = path.read_bytes().split(b"\n")[:-1] or [b""]
    try:
        found = json.loads(first)["header"]
        if not {"inspector", "vlm_name", "dataset", "descriptions", *KINDS} <= set(found):
            raise ValueError
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a file of inspect.py's answers; name another") from error
    answers = {}
    for number, line in enumerate(lines, 2):
        try:
            answer = json.loads(line)
            if answer["status"] == "answered" and not isinstance(answer["parsed"], dict):
                raise TypeError
            answers[answer["index"], answer["question"]] = answer
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number}: damaged; delete that line") from error
    for name in header or {}:
        if found.get(name) != header[name]:
            values = "" if name.endswith("sha256") else f" ({found.get(name)}, now {header[name]})"
            raise UserError(f"{path} was made with another {name}{values}; name another --output_filepath")
    return found, answers


class Record:
    """A record that is being written: an answer is on disk as soon as it is there. Used with `with`.

    Raises UserError for a file that is another inspection's, or that another process writes to.
    """

    def __init__(self, path: Path, header: dict):
        self.path, self.header, self.answers = path, header, {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("ab")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
            if path.stat().st_size:
                self.answers = read_record(path, header)[1]
                self.file.truncate(path.read_bytes().rindex(b"\n") + 1)  # a killed run may have left half a line
        except BaseException as error:
            self.file.close()
            if isinstance(error, BlockingIOError):
                raise UserError(f"{path}: another inspect.py writes to it; wait, or name another --output_filepath") from error
            raise

    def append(self, index: int, question: str, entry: dict, answer: dict) -> None:
        """Write the answer to a question about the description with that index."""
        about = {name: self.header[name] for name in ("vlm_name", "dataset", "inspector")}
        line = {"index": index, "concept": entry["concept"], "description": entry["description"], "question": question,
                **about, **answer}
        new = [line] if self.path.stat().st_size else [{"header": self.header}, line]
        # Half a character, which a model may well end with, has no UTF-8, but its escape is valid JSON.
        self.file.write(b"".join(json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
                                 for content in new))
        self.file.flush()
        self.answers[index, question] = line

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, *_) -> None:
        self.file.close()
        if not self.path.stat().st_size:
            self.path.unlink()
