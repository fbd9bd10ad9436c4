"""Files of OpenAI's batch interface, which asks for half the price: requests, and the answers that come back."""
import json
from collections.abc import Iterator
from pathlib import Path

from utils import cli
from utils.cli import UserError
from utils.ex2 import inspection

MOST = 50_000  # requests of a file, which is OpenAI's limit


def write(path: Path, model: str, settings, sheet: dict, rows: list[dict], tasks: list[tuple[int, str]]) -> int:
    """Write a file of requests for tasks (index, question), at most MOST; `settings` are `chat.Settings`. Returns their
    number."""
    lines = []
    for index, question in tasks[:MOST]:
        body = {"model": model, "messages": inspection.messages(sheet, question, rows[index]),
                **settings.of_request(inspection.response_format(sheet, question))}
        lines.append(json.dumps({"custom_id": f"{index}-{question}", "method": "POST", "url": "/v1/chat/completions",
                                 "body": body}) + "\n")
    cli.write_text(path, "".join(lines))
    return len(lines)


def read(path: Path, settings, sheet: dict, rows: list[dict]) -> Iterator[tuple[tuple[int, str], dict]]:
    """The answers of a file that came back: (index, question) and what `chat.ChatClient.ask` would have given. Refusals
    change the `settings` of the next file. Raises UserError for a line of another kind."""
    from utils.language import chat

    sent = settings.of_request({})
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            entry = json.loads(line)
            index, _, question = entry["custom_id"].partition("-")
            task = int(index), question
            if not 0 <= task[0] < len(rows) or question not in inspection.QUESTIONS:
                raise ValueError
            status, body = entry["response"]["status_code"], entry["response"]["body"]
            text = body["choices"][0]["message"]["content"] or "" if status == 200 else ""
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise UserError(f"{path}, line {number}: not an answer of the batch interface to a question of this "
                            "inspection; download it again") from error
        parsed = inspection.read_answer(text, question, sheet) if status == 200 else None
        problem = None if parsed else "the text does not answer the question"
        if status != 200:
            problem = json.dumps(body.get("error", body))[:300]
            settings.meet(problem, sent)
        yield task, {"raw": [text] if status == 200 else [], "parsed": parsed, "attempts": 1, "error": problem,
                     "status": "answered" if parsed else "unanswered", "settings": chat.recorded(sent),
                     "response": json.dumps(body) if status == 200 else None}
