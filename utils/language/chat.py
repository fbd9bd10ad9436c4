"""A client of a server with a chat model: requests, retries, the budget, and what ends a run."""
import asyncio
import difflib
import email.utils
import json
import math
import os
import random
import re
import sys
import time
from collections.abc import Callable

import openai
from tqdm import tqdm

from utils.cli import UserError

OPENAI_URL = "https://api.openai.com/v1"
BACKOFF, LONGEST_BACKOFF = 0.5, 30.0  # seconds: before the first retry, doubled at each; at most
SILENT = 10  # questions in a row that bring no text at all, after which the server is taken for dead
ROOM_TO_THINK = 4096  # tokens that a model gets beside its answer where it thinks before it answers
FORMS = ("json_schema", "json_object", None)  # of an answer, the next where a server refuses one
# Words of a refusal that is about the size of a request, and of one about a setting that a server does not know.
TOO_MUCH = r"too (large|long|many)|fewer|context.(length|window|size)|at most|maximum|exceed|cannot be greater"
TOKENS = r"token|context.(length|window|size)"  # that a request is counted in, as schemas are not
UNSUPPORTED = r"unsupported|n.t support|not (support|allow|permit|accept)|unknown|unrecogni|unexpected|deprecat|instead"
HOPELESS = {401: "set OPENAI_API_KEY to a key of this server", 403: "use a key that may ask this model",
            404: "check --model and --base_url, which usually ends with /v1"}


def api_key(base_url: str | None) -> str:
    """The key, from OPENAI_API_KEY. Raises UserError where OpenAI's own server would be asked without one."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key and not base_url:
        raise UserError("there is no key: set OPENAI_API_KEY, or name another server with --base_url")
    if not key.isascii() or not key.isprintable():
        raise UserError("OPENAI_API_KEY holds characters that no key has; set it again")
    return key or "EMPTY"


class Settings:
    """What goes with every request, until a server refuses some of it: `sampling` (temperature, top_p, max_tokens) and
    `form`, one of FORMS. `context` is how many tokens the server has for question and answer, None where it is not
    known."""

    def __init__(self, sampling: dict, form: str | None = FORMS[0]):
        self.sampling, self.form, self.context = dict(sampling), form, None

    def of_request(self, schema: dict) -> dict:
        """The settings of a request whose answer has that schema, as servers take them."""
        form = {"json_schema": schema, "json_object": {"type": "json_object"}}.get(self.form)
        return self.sampling | ({"response_format": form} if form else {})

    def by_name(self) -> dict:
        """The settings as they are kept: the form of the answer by its name."""
        return self.sampling | {"response_format": self.form}

    def meet(self, refusal: str, sent: dict) -> bool:
        """Change what a refusal names of the settings that were sent (`by_name`), once; a change is said in one line. A
        refusal that speaks of the size of a request, in tokens, changes nothing; of that of its schema, the form.
        Returns whether the request can be sent again."""
        form = sent["response_format"]
        of_form = form and re.search("response_format|schema|grammar|json_object", refusal, re.IGNORECASE)
        if re.search(TOO_MUCH, refusal, re.IGNORECASE) and (not of_form or re.search(TOKENS, refusal, re.IGNORECASE)):
            return False  # the next question may well be shorter
        named = [name for name in ("max_tokens", "temperature", "top_p")
                 if name in sent and re.search(rf"\b{name}\b", refusal)]
        if "max_completion_tokens" in refusal and not re.search(UNSUPPORTED, refusal, re.IGNORECASE):
            named = [name for name in named if name != "max_tokens"]
        for name in named:
            if name in self.sampling and name == "max_tokens":
                asked = self.sampling.pop(name)
                tokens = asked + ROOM_TO_THINK
                if self.context:  # the other half is for the question
                    tokens = max(asked, min(tokens, self.context // 2))
                self.sampling["max_completion_tokens"] = tokens
                _note(f"the server refuses max_tokens; max_completion_tokens {tokens} from here on, with room to think")
            elif name in self.sampling:
                del self.sampling[name]
                _note(f"the server refuses {name}; it is left out from here on")
        if of_form:
            if form == self.form:
                self.form = FORMS[FORMS.index(form) + 1]
                _note(f"the server takes no {form.replace('_', ' ').replace('json', 'JSON')}; asking for "
                      f"{'plain text' if self.form is None else 'a JSON object'} from here on")
            return True
        return bool(named)


def _note(text: str) -> None:
    tqdm.write(f"note: {text}", file=sys.stderr)


class BudgetSpent(Exception):
    """No further request may be sent."""


class ChatClient:
    """One model behind one server. Sends requests, repeats what failed, and counts.

    `base_url` None is OpenAI's own server; `sampling` is temperature, top_p and max_tokens, `timeout` the seconds of a
    request; `max_requests` None is no budget. Raises UserError where there is no key.
    """

    def __init__(self, model: str, base_url: str | None, sampling: dict, timeout: float, max_retries: int,
                 max_requests: int | None = None):
        self.server = openai.AsyncOpenAI(api_key=api_key(base_url), base_url=base_url or OPENAI_URL, timeout=timeout,
                                         max_retries=0)
        self.model, self.settings, self.timeout = model, Settings(sampling), timeout
        self.max_retries, self.max_requests = max_retries, max_requests
        self.sent = 0  # requests so far
        self.not_before = 0.0  # monotonic time until which the server wants to be left alone
        self.silent = 0  # questions in a row that brought no text

    async def check(self) -> None:
        """Raises UserError where the server cannot be reached, refuses the key, or lacks the model."""
        try:
            offered = {model.id: model for model in (await self.server.models.list()).data}
        except openai.APIConnectionError as error:
            raise UserError(f"{self.server.base_url} cannot be reached ({self._reason(error)}); start the server, or "
                            "check --base_url, which looks like http://localhost:8000/v1") from error
        except openai.APIStatusError as error:
            if error.status_code == 401 or error.status_code >= 500:
                raise UserError(f"{self.server.base_url} does not answer ({self._reason(error)}); "
                                f"{HOPELESS.get(error.status_code, 'try again later')}") from error
            return  # not every server lists its models, and not every key may see the list
        except (openai.OpenAIError, AttributeError, TypeError, ValueError):
            return
        if offered and self.model not in offered:
            closest = ", ".join(difflib.get_close_matches(self.model, offered, n=3, cutoff=0))
            raise UserError(f"{self.server.base_url} has no model {self.model}; give --model one that it has, such as "
                            f"{closest}")
        context = getattr(offered.get(self.model), "max_model_len", None)  # as vLLM tells it
        self.settings.context = context if isinstance(context, int) else None

    async def ask(self, chat: list[dict], form: dict, read: Callable[[str], dict | None]) -> dict:
        """Ask until `read` makes something of the answer; `form` is the answer's schema, as servers take it.

        Returns raw (all texts that came), parsed (what `read` made of the last), status, attempts, error, settings
        (what the last request was sent with; the form of the answer by its name) and response (the client's own dump of
        the last answer, as JSON). Raises UserError where no question can be answered, BudgetSpent where the budget ends
        first.
        """
        raw, error, pause, last = [], None, 0.0, {"settings": None, "response": None}
        for attempt in range(1, self.max_retries + 2):
            await asyncio.sleep(pause)
            pause = min(LONGEST_BACKOFF, BACKOFF * 2 ** (attempt - 1)) * random.uniform(0.5, 1)
            try:
                text, last = await self._send(chat, form)
            except openai.APIStatusError as fault:
                error = self._reason(fault)
                if fault.status_code in HOPELESS:
                    raise UserError(f"the server refuses ({error}); {HOPELESS[fault.status_code]}") from fault
                if fault.code == "insufficient_quota":
                    raise UserError(f"the account has no credit left ({error}); run again when it has") from fault
                if fault.status_code < 500 and fault.status_code not in (408, 409, 429):
                    break  # the same request would be refused again
                self._leave_alone(fault.response.headers.get("retry-after", ""))
            except (openai.APIConnectionError, TimeoutError) as fault:
                error = self._reason(fault)
            except (openai.APIResponseValidationError, ValueError):
                error = "the response is not JSON"
            else:
                self.silent = 0
                raw.append(text)
                parsed = read(text)
                if parsed is not None:
                    return {"raw": raw, "parsed": parsed, "status": "answered", "attempts": attempt, "error": None,
                            **last}
                error = "the text does not answer the question" if text.strip() else "the answer is empty"
                pause = 0.0  # the server is well, there is nothing to wait for
        self.silent += not raw
        if self.silent >= SILENT:
            raise UserError(f"{SILENT} questions in a row brought no answer ({error}); see to the server and run "
                            "again, which asks only what is missing")
        return {"raw": raw, "parsed": None, "status": "unanswered", "attempts": attempt, "error": error, **last}

    async def _send(self, chat: list[dict], form: dict) -> tuple[str, dict]:
        """One request. Returns the text of the answer, empty where there is none, and its settings and response."""
        while (wait := self.not_before - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        if self.sent == self.max_requests:
            raise BudgetSpent
        self.sent += 1
        sent = self.settings.by_name()
        try:
            async with asyncio.timeout(self.timeout):  # for the whole answer; the client's own is for each piece of it
                completion = await self.server.chat.completions.create(model=self.model, messages=chat,
                                                                       **self.settings.of_request(form))
        except (openai.BadRequestError, openai.UnprocessableEntityError) as fault:
            if not self.settings.meet(f"{fault} {fault.param or ''}", sent):
                raise
            return await self._send(chat, form)
        return text_of(completion), {"settings": sent, "response": dump(completion)}

    def _leave_alone(self, retry_after: str) -> None:
        """Heed a Retry-After, in seconds or as a date (RFC 9110, 10.2.3), with all requests."""
        try:
            seconds = float(retry_after)
        except ValueError:
            date = email.utils.parsedate_tz(retry_after)
            seconds = email.utils.mktime_tz(date) - time.time() if date else 0.0
        if math.isfinite(seconds):
            if seconds > 60:
                tqdm.write(f"note: the server asks to be left alone for {seconds:.0f} s", file=sys.stderr)
            self.not_before = max(self.not_before, time.monotonic() + seconds)

    def _reason(self, error: Exception) -> str:
        """An error in a few words, without the key, which a server may repeat."""
        if isinstance(error, (TimeoutError, openai.APITimeoutError)):
            return f"no answer within {self.timeout:g} s"
        if isinstance(error, openai.APIConnectionError) and error.__cause__:
            error = error.__cause__
        return " ".join((str(error) or type(error).__name__).split()).replace(self.server.api_key, "***")[:300]


def text_of(completion) -> str:
    """The text of an answer, empty where there is none; the client does not check what a server sends."""
    try:
        text = completion.choices[0].message.content
    except (AttributeError, IndexError, TypeError):
        return ""
    return text if isinstance(text, str) else ""


def dump(completion) -> str | None:
    """The client's own JSON dump of an answer; None for what is none."""
    try:
        return completion.model_dump_json(warnings=False)
    except ValueError:  # half a character has no UTF-8, but an escape
        return json.dumps(completion.model_dump(warnings=False))
    except (AttributeError, TypeError):
        return None


async def ask_all(client: ChatClient, tasks: list, request: Callable, keep: Callable[..., None], concurrency: int,
                  total: int) -> None:
    """Ask all tasks, `concurrency` at a time, until all are answered or the budget is spent.

    `request(task)` gives what `ChatClient.ask` takes; `keep(task, answer)` is called as soon as an answer is there.
    `total` counts, for the progress bar, also what was answered before. Raises UserError as `ChatClient.ask` does.
    """
    waiting = iter(tasks)

    async def work(progress: tqdm) -> None:
        for task in waiting:
            try:
                answer = await client.ask(*request(task))
            except BudgetSpent:
                return
            keep(task, answer)
            progress.update()

    async with client.server:
        if tasks:
            await client.check()
        with tqdm(total=total, initial=total - len(tasks), desc="questions", unit="question") as progress:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(concurrency):
                        group.create_task(work(progress))
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
