"""Files of OpenAI's batch interface, which asks for half the price: requests, and the answers that come back.

X_batch.jsonl holds the requests. Their answers come back as X_batch_output.jsonl and X_batch_errors.jsonl. What is
refused of the settings of a request changes them for all later files: X_batch_settings.jsonl keeps them in order. A
request's custom_id is INDEX-QUESTION; where it has not the first settings, N.INDEX-QUESTION with their number.
"""
import json
from collections.abc import Iterator
from pathlib import Path

from utils import cli
from utils.cli import UserError
from utils.ex2 import inspection
from utils.language import jsonl

MOST = 50_000  # requests of a file, which is OpenAI's limit


def go_on(stem: str, model: str, sampling: dict, sheet: dict, rows: list[dict], answers: dict,
          record: jsonl.Record) -> int:
    """Read what came back for X = `stem`, which goes to `answers` and `record`, and write the requests that are still
    missing, at most MOST. `sampling` are the settings of the first request. Returns the number of requests written.

    Raises UserError for a file of another kind, and for settings that were kept of another inspection.
    """
    from utils.language import chat

    with jsonl.Record(Path(f"{stem}_batch_settings.jsonl"), record.header) as kept:
        paths = [path for name in ("output", "errors") if (path := Path(f"{stem}_batch_{name}.jsonl")).is_file()]
        if paths and not kept.lines:  # answers say which question they are to by its number alone
            raise UserError(f"{paths[0]}: holds answers, and this inspection has asked nothing yet; delete it, or put "
                            f"back {kept.path.name}, which was beside it")
        known = list(kept.lines) or [chat.Settings(sampling).by_name()]
        settings = chat.Settings({name: value for name, value in known[-1].items() if name != "response_format"},
                                 known[-1]["response_format"])
        for path in paths:
            for task, answer in read(path, settings, known, sheet, rows):
                before = answers.get(task, {})
                again = all(before.get(key) == value for key, value in answer.items())  # an earlier run has read it
                if before.get("status") != "answered" and not again:
                    inspection.keep_answer(rows, answers, record, task, answer)
        tasks = inspection.missing(rows, answers)[:MOST]
        if not tasks:
            return 0
        if settings.by_name() != known[-1]:
            known.append(settings.by_name())
        if len(known) > len(kept.lines):
            kept.append(known[-1])
        write(Path(f"{stem}_batch.jsonl"), model, settings, len(known), sheet, rows, tasks)
        return len(tasks)


def write(path: Path, model: str, settings, number: int, sheet: dict, rows: list[dict],
          tasks: list[tuple[int, str]]) -> None:
    """Write a file of requests for tasks (index, question); `settings` are `chat.Settings`, and `number` is theirs."""
    lines = []
    for index, question in tasks:
        body = {"model": model, "messages": inspection.messages(sheet, question, rows[index]),
                **settings.of_request(inspection.response_format(sheet, question))}
        custom_id = f"{index}-{question}" if number == 1 else f"{number}.{index}-{question}"
        lines.append(json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions",
                                 "body": body}) + "\n")
    cli.write_text(path, "".join(lines))


def read(path: Path, settings, known: list[dict], sheet: dict, rows: list[dict]) -> Iterator[tuple]:
    """The answers of a file that came back: (index, question) and what `chat.ChatClient.ask` would have given. `known`
    are all settings that requests were written with; refusals change `settings`, those of the next file. A request that
    was not executed (its batch expired, for one) has no response, and counts as unanswered.

    Raises UserError for a line of another kind.
    """
    for place, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            entry = json.loads(line)
            head, _, question = entry["custom_id"].partition("-")
            number, _, index = head.rpartition(".")
            task, number = (int(index), question), int(number or 1)
            if not (0 <= task[0] < len(rows) and question in inspection.QUESTIONS and 1 <= number <= len(known)):
                raise ValueError
            status, body, text = None, {"error": dict(entry["error"])} if entry["response"] is None else None, ""
            if body is None:
                status, body = entry["response"]["status_code"], dict(entry["response"]["body"])
            if status == 200:
                text = body["choices"][0]["message"]["content"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(f"{path}, line {place}: not an answer of the batch interface to a question of this "
                            "inspection; download it again") from error
        text, sent = text if isinstance(text, str) else "", known[number - 1]
        parsed = inspection.read_answer(text, question, sheet) if status == 200 else None
        problem = None if parsed else "the text does not answer the question"
        if status != 200:
            problem = json.dumps(body.get("error", body))
            if status in (400, 422):
                settings.meet(problem, sent)
        yield task, {"raw": [text] if status == 200 else [], "parsed": parsed, "attempts": 1,
                     "error": problem and problem[:300], "status": "answered" if parsed else "unanswered",
                     "settings": sent, "response": json.dumps(body) if status == 200 else None}
