"""Names in words: a language model on a chat server is shown what a head goes with, and says its role in a few words;
says which roles are spurious for a task; and gives more texts like a head's, by which attributes grow in rounds.

Answers are kept in a JSONL file as they come (utils/language/jsonl.py), a line for each question: key, parsed, raw,
status, error. The same questions again ask only what is missing.
"""
import asyncio
import functools
import glob
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from utils.cli import UserError
from utils.language import chat, jsonl, replies
from utils.runs.run import Run

NO_ROLE, MOST_WORDS = "no role", 5
SAMPLING = {"temperature": 0.1, "top_p": 0.1, "max_tokens": 256}
ROLE = ("An attention head of a vision model was looked at. You get the attribute that its output goes with, texts of "
        "it, and texts found by another method. Say in at most five words what the head is about. If the texts have "
        'nothing in common, the role is "no role". Answer with JSON: {"role": "..."}')
SPURIOUS = ("A vision model sorts images into classes. You get the classes and the role of one of its heads. Say "
            "whether that role is spurious: whether it is about something that does not decide the class, such as the "
            'background. Answer with JSON: {"spurious": "yes"} or {"spurious": "no"}')
MORE = ("You get an attribute of images and some of its values. Give ten further values of the same attribute, each a "
        'short phrase in the same form, and none that is listed. Answer with JSON: {"texts": ["...", ...]}')


Client = Callable[[], chat.ChatClient]  # makes one, which serves for the questions that are asked at once


def client(model: str | None, base_url: str | None) -> Client:
    """What makes clients of a server with a language model. Raises UserError where there is no key, or no name."""
    chat.api_key(base_url)
    if not model:
        raise UserError("--language_model: name the language model of the server")
    return functools.partial(chat.ChatClient, model, base_url, SAMPLING, 120.0, 3)


def span_texts(run: Run) -> dict[str, list[str]]:
    """The TextSpan texts of heads, from the last file of compute_complete_text_set.py for that run, if any."""
    place = run.place
    there = sorted(Path(place.folder).glob(f"{glob.escape(place.name)}_completeness_*_heads_{place.model_name}.json"),
                   key=lambda file: file.stat().st_mtime)
    found = [content for file in there if run.is_about(content := json.loads(file.read_text(encoding="utf-8")))]
    heads = found[-1]["heads"] if found else []
    return {f"{head['layer']}.{head['head']}": [entry["text"] for entry in head["texts"]] for head in heads}


def schema(name: str, content: dict) -> dict:
    """The form of an answer with one property, as OpenAI-compatible servers take it."""
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": {
        "type": "object", "properties": {name: content}, "required": [name], "additionalProperties": False}}}


def read_object(text: str, name: str, kind: type):
    """The property of the last JSON object in a text that has it; None where there is none of that kind."""
    found = None
    for entry, *_ in replies.objects(text):
        found = entry[name] if isinstance(entry.get(name), kind) else found
    return found


def read_role(text: str) -> dict | None:
    """A role of at most five words; None where the answer has none."""
    said = read_object(text, "role", str)
    words = said.strip(" .\"'").split() if said else []
    return {"role": " ".join(words[:MOST_WORDS])} if words else None


def read_spurious(text: str) -> dict | None:
    """Whether a role is spurious; None where the answer does not say."""
    said = read_object(text, "spurious", (str, bool))
    said = {True: "yes", False: "no"}.get(said, str(said).strip().lower()) if said is not None else None
    return {"spurious": said == "yes"} if said in ("yes", "no") else None


def read_texts(text: str) -> dict | None:
    """More texts; None where the answer has none."""
    said = read_object(text, "texts", list)
    texts = [one.strip() for one in said or [] if isinstance(one, str) and one.strip()]
    return {"texts": list(dict.fromkeys(texts))} if texts else None


def messages(instruction: str, **facts) -> list[dict]:
    """The chat that asks a question about facts."""
    shown = "\n".join(f"{name.replace('_', ' ')}: {'; '.join(fact) if isinstance(fact, list) else fact}"
                      for name, fact in facts.items() if fact)
    return [{"role": "system", "content": instruction}, {"role": "user", "content": shown}]


def ask(client: Client, path: Path, questions: Mapping[str, list[dict]], form: dict,
        read: Callable[[str], dict | None], concurrency: int = 4) -> dict[str, dict]:
    """What a server answers to questions, by key; those without a readable answer are left out, and asked again next
    time. Answers in the file `path`, of the same model and the same question, are not asked for again."""
    server = client()
    keys = {name: hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16] + " " + name
            for name, asked in questions.items()}
    with jsonl.Record(path, {"model": server.model, "made_by": "names in words"}) as record:
        known = {line["key"]: line["parsed"] for line in record.lines if line["parsed"] is not None}

        def keep(name: str, answer: dict) -> None:
            record.append({"key": keys[name], **answer})
            if answer["parsed"] is not None:
                known[keys[name]] = answer["parsed"]

        tasks = [name for name, key in keys.items() if key not in known]
        asyncio.run(chat.ask_all(server, tasks, lambda name: (questions[name], form, read), keep, concurrency,
                                 len(questions)))
    return {name: known[key] for name, key in keys.items() if key in known}


def roles(client: Client, path: Path, rows: Mapping[str, dict],
          spans: Mapping[str, list[str]]) -> dict[str, str]:
    """The role of each head in words, by `rows` of a file of names, and the TextSpan texts `spans` where there are."""
    questions = {head: messages(ROLE, attribute=row["attribute"] if row["name"] != "none" else "unclear",
                                texts_at_one_end=row["ends"][0], texts_at_the_other_end=row["ends"][1],
                                texts_of_another_method=spans.get(head, [])) for head, row in rows.items()}
    found = ask(client, path, questions, schema("role", {"type": "string"}), read_role)
    return {head: answer["role"] for head, answer in found.items()}


def spurious(client: Client, path: Path, task: str, said: Mapping[str, str]) -> list[str]:
    """The heads whose role in words is spurious for a task, such as "land animals against sea animals"."""
    asked = sorted({role for role in said.values() if role.lower() != NO_ROLE})
    form = schema("spurious", {"type": "string", "enum": ["yes", "no"]})
    found = ask(client, path, {role: messages(SPURIOUS, classes=task, role=role) for role in asked}, form,
                read_spurious)
    return [head for head, role in said.items() if found.get(role, {}).get("spurious")]


def more_texts(client: Client, path: Path, texts: Mapping[str, list[str]],
               rows: Sequence[dict]) -> dict[str, list[str]]:
    """The attributes with further texts, like those that the heads named after them part images by."""
    questions = {}
    for name, own in texts.items():
        shown = list(dict.fromkeys(text for row in rows if row["name"] == name for text in row["texts"]))[:20]
        if shown:
            questions[name] = messages(MORE, attribute=name, values=shown, listed_already=own[:100])
    form = schema("texts", {"type": "array", "items": {"type": "string"}, "maxItems": 20})
    found = ask(client, path, questions, form, read_texts)
    known, grown = {text.lower() for own in texts.values() for text in own}, {}
    for name, own in texts.items():
        new = [text for text in found.get(name, {}).get("texts", []) if text.lower() not in known]
        known |= {text.lower() for text in new}
        grown[name] = own + new
    return grown
