"""An OpenAI-compatible server on loopback that answers well, except where its script says otherwise."""
import json
import socket
import struct
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GOOD = {"knowledge": '{"explanation": "It tells of stripes.", "increases_knowledge": "yes"}',
        "attributes": '{"attributes": ["color"], "spurious": []}'}


def says(text, **message):
    """A well-formed response with that text as the model's answer."""
    return lambda handler: handler.reply(200, {
        "id": "1", "object": "chat.completion", "created": 0, "model": "judge",
        "choices": [{"index": 0, "finish_reason": "stop",
                     "message": {"role": "assistant", "content": text} | message}]})


def status(number, message="injected", headers=(), code=None):
    """An error as OpenAI words it."""
    return lambda handler: handler.reply(number, {"error": {"message": message, "code": code}}, dict(headers))


def body(content, kind="application/json"):
    """A response with status 200 and any body."""
    return lambda handler: handler.reply(200, content, {"Content-Type": kind})


def reset(handler):
    """Close the connection at once, so that the client sees a reset."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def slow(seconds):
    """A good answer, too late."""
    def late(handler):
        time.sleep(seconds)
        says(GOOD[handler.question])(handler)
    return late


def no_schema(number):
    """Refuses schemas with that status, and answers plain requests well."""
    def choosy(handler):
        if "response_format" in handler.request_body:
            return status(number, "'response_format' of type 'json_schema' is not supported with this model")(handler)
        says("Sure! Here is the JSON:\n```json\n" + GOOD[handler.question] + "\n```")(handler)
    return choosy


def choosy(*refused):
    """Refuses requests with any of these settings (of a `response_format`, its type), one after the other, as OpenAI
    and others word it, and answers the rest well."""
    def answer(handler):
        request = handler.request_body
        for name in refused:
            if name in request:
                instead = " Use 'max_completion_tokens' instead." if name == "max_tokens" else ""
                return status(400, f"Unsupported parameter: '{name}' is not supported here.{instead}")(handler)
            if request.get("response_format", {}).get("type") == name:
                return status(400, f"'response_format' of type '{name}' is not supported with this model")(handler)
        says(GOOD[handler.question])(handler)
    return answer


class FaultServer:
    """Used with `with`. `script`: what the first chat requests meet, one after the other (None: a good answer).

    `answer(request)` makes the text of a good answer, where given; `delay` is what each takes, in seconds. `chats`
    holds (time, headers, body) of all chat requests, in the order of their arrival, `lists` the number of requests for
    models.
    """

    def __init__(self, script=(), answer=None, delay=0.0, models=("judge",)):
        self.script, self.answer, self.delay, self.models = list(script), answer, delay, models
        self.chats, self.lists, self.lock = [], 0, threading.Lock()
        self.server = Server(("127.0.0.1", 0), type("Handler", (Handler,), {"owner": self}))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def asked(self):
        """(question, last message) of all chat requests."""
        return [(question_of(request), request["messages"][-1]["content"]) for _, _, request in self.chats]


def run_batch(server, requests, output, errors):
    """What the batch interface does: sends each line of the file `requests` to the server, and writes the files of what
    came back, each line as OpenAI does; a file without lines is not written."""
    came = {output: [], errors: []}
    for line in map(json.loads, requests.read_text().splitlines()):
        address = server.url.removesuffix("/v1") + line["url"]
        request = urllib.request.Request(address, json.dumps(line["body"]).encode(), method=line["method"])
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                code, content = reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            code, content = error.code, json.load(error)
        came[output if code == 200 else errors].append(
            {"id": "batch_req_1", "custom_id": line["custom_id"], "error": None,
             "response": {"status_code": code, "request_id": "req_1", "body": content}})
    for path, lines in came.items():
        path.unlink(missing_ok=True)
        if lines:
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def completes(handler):
    """The completion of a prompt: its seed, after thoughts; answers come in another order than requests."""
    seed = handler.request_body["seed"]
    time.sleep(0.02 * (seed % 3))
    handler.reply(200, {"id": "1", "object": "text_completion", "created": 0, "model": "judge",
                        "choices": [{"index": 0, "finish_reason": "length", "logprobs": None,
                                     "text": f"<think>what? {seed}</think>  said {seed}\n"}]})


def question_of(request):
    """Which question a request asks, by the worked example in it."""
    if "prompt" in request:
        return "completion"
    return "knowledge" if "increases_knowledge" in request["messages"][2]["content"] else "attributes"


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), OSError):  # clients that go away are what some tests are about
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet
    owner: FaultServer

    def do_GET(self):
        self.owner.lists += 1
        if callable(self.owner.models):
            return self.owner.models(self)
        self.reply(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in self.owner.models]})

    def do_POST(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if len(data) < int(self.headers["Content-Length"]):  # the client went away while it was sending
            self.close_connection = True
            return
        self.request_body = request = json.loads(data)
        self.question = question_of(request)
        with self.owner.lock:
            self.owner.chats.append((time.monotonic(), self.headers, request))
            fault = self.owner.script.pop(0) if self.owner.script else None
        if fault:
            return fault(self)
        time.sleep(self.owner.delay)
        says(self.owner.answer(request) if self.owner.answer else GOOD[self.question])(self)

    def reply(self, code, content, headers=()):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        try:
            self.send_response(code)
            own = {"Content-Type": "application/json", "Content-Length": str(len(data))}
            for name, value in (own | dict(headers)).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
            self.wfile.flush()
        except OSError:
            self.close_connection = True  # the client has gone, as clients do that wait no longer

    def log_message(self, *_):
        pass
