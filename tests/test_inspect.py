import csv
import email.utils
import inspect
import json
import math
import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import yaml
from builders import ROOT, write_descriptions
from fault_server import GOOD, FaultServer, body, choosy, no_schema, question_of, reset, says, slow, status

from utils.ex2 import inspection, verdicts
from utils.language import chat, jsonl

SHEET = yaml.safe_load((ROOT / "configs/inspection.yaml").read_text())
STDLIB = sysconfig.get_path("stdlib")
SAYS_WHERE = "import inspect, sys; assert inspect is sys.modules['inspect'] and inspect.signature(len); " \
             "print(inspect.__file__)"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(chat, "BACKOFF", 0.01)


@pytest.fixture
def descriptions(tmp_path):
    """Four descriptions of two concepts, with a manifest."""
    return write_descriptions(tmp_path / "d.jsonl")


def options(path, server, *more):
    return ["--input_filepath", path, "--base_url", server.url, "--model", "judge", *more]


def read_lines(path):
    header, *lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return header["header"], lines


# The name that our script shares with the standard library.

@pytest.mark.parametrize("how", [
    ["-c", SAYS_WHERE], ["-m", "timeit", "-n", "1", "-r", "1", SAYS_WHERE],
    ["-c", f"import multiprocessing as m\nwith m.get_context('spawn').Pool(1) as p: p.apply(exec, ({SAYS_WHERE!r},))"],
    ["-c", "import dataclasses, inspect, importlib\nimportlib.import_module('inspect')\n" + SAYS_WHERE],
    ["-S", "-c", SAYS_WHERE]], ids=["c", "m", "spawn", "dataclasses", "no_site"])
def test_import_inspect_is_the_standard_library_s(how):
    found = subprocess.run([sys.executable, *how], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert found.stdout.split("\n")[0] == f"{STDLIB}/inspect.py", found.stderr


@pytest.mark.parametrize("name", sorted(path.name for path in ROOT.glob("*.py")))
def test_every_script_finds_the_standard_library_s_inspect_and_answers_help(name):
    code = f"import runpy, sys; sys.argv = [{name!r}, '--help']\ntry: runpy.run_path({name!r}, run_name='__main__')\n" \
           f"except SystemExit as stop: assert not stop.code\nimport dataclasses; {SAYS_WHERE}\n" \
           "print('HEAVY' if {'torch', 'openai', 'scipy', 'matplotlib'} & set(sys.modules) else 'light')"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert found.stdout.rstrip().endswith(f"{STDLIB}/inspect.py\nlight"), found.stdout[-300:] + found.stderr
    assert "--config" in found.stdout


def test_run_as_a_script_the_file_is_ours():
    found = subprocess.run([sys.executable, "inspect.py", "--help"], cwd=ROOT, capture_output=True, text=True,
                           timeout=60)
    assert found.returncode == 0
    assert "--summarize" in found.stdout
    assert "gpt-3.5" not in found.stdout  # which is no longer served
    assert inspect.__file__ == f"{STDLIB}/inspect.py"


# Asking.

def test_every_question_is_asked_once_and_recorded(run_script, descriptions, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-mine")
    with FaultServer() as server:
        code, out, err = run_script("inspect", *options(descriptions, server))
    assert code == 0, err
    assert "8 of 8 questions answered, 0 asked in vain; 8 requests sent" in out, err
    header, lines = read_lines(descriptions.with_name("d_inspection.jsonl"))
    assert len(set(server.asked())) == len(server.chats) == 8
    assert header["inspector"] == "judge"
    assert header["vlm_name"] == "clip-a"
    assert header["dataset"] == "birds"
    assert {name: header[name] for name in ("descriptions", "temperature", "top_p", "max_tokens")} == {
        "descriptions": 4, "temperature": 0.1, "top_p": 0.1, "max_tokens": 128}
    assert sorted((line["index"], line["question"]) for line in lines) == sorted(
        (i, question) for i in range(4) for question in ("knowledge", "attributes"))
    line = next(line for line in lines if (line["index"], line["question"]) == (2, "knowledge"))
    assert line == {"index": 2, "concept": "puffin", "description": "puffin fact 0", "question": "knowledge",
                    "vlm_name": "clip-a", "dataset": "birds", "inspector": "judge", "raw": [GOOD["knowledge"]],
                    "parsed": json.loads(GOOD["knowledge"]), "status": "answered", "attempts": 1, "error": None,
                    "settings": {"temperature": 0.1, "top_p": 0.1, "max_tokens": 128,
                                 "response_format": "json_schema"}, "response": line["response"]}
    assert json.loads(line["response"])["choices"][0]["message"]["content"] == GOOD["knowledge"]
    _, headers, request = server.chats[0]
    assert headers["Authorization"] == "Bearer sk-of-mine"
    assert [request[name] for name in ("model", "temperature", "top_p", "max_tokens")] == ["judge", 0.1, 0.1, 128]
    assert request["response_format"]["json_schema"]["strict"] is True
    assert [message["role"] for message in request["messages"]] == ["system", "user", "assistant", "user"]
    assert request["messages"][-1]["content"] == "Concept: zebra\nSnippet: zebra fact 0"


@pytest.mark.parametrize("fault", [
    status(429), status(500), status(503), status(408), reset, slow(4), body(b'{"choices": [{"mess'),
    body(b"<html>", "text/html"), body({"choices": None}), body([1, 2]),
    body({"choices": [{"message": {"content": ["a"]}}]}),
    says('{"explanation": "It tells of str'), says(""), says("   "), says(None, refusal="no"), says("yes"),
    says('{"explanation": 3, "increases_knowledge": 1}'), says('{"increases_knowledge": "perhaps"}'),
    says('["increases_knowledge", "yes"]')],
    ids=str(list(range(19))).strip("[]").split(", "))
def test_what_fails_once_is_asked_again(run_script, tmp_path, fault):
    path = write_descriptions(tmp_path / "d.jsonl", ["owl"], 1)
    with FaultServer([fault]) as server:
        code, out, err = run_script("inspect", *options(path, server, "--concurrency", 1, "--timeout", 2))
    assert code == 0, err
    assert "2 of 2 questions answered" in out, err
    assert [question for question, _ in server.asked()] == ["knowledge", "knowledge", "attributes"]
    _, lines = read_lines(tmp_path / "d_inspection.jsonl")
    assert [(line["attempts"], line["status"], line["error"]) for line in lines] == [
        (2, "answered", None), (1, "answered", None)]


def test_a_slow_trickle_ends_at_the_timeout(run_script, tmp_path):
    path = write_descriptions(tmp_path / "d.jsonl", ["owl"], 1)

    def trickle(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        for _ in range(50):  # a byte in time, never the whole
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.1)

    with FaultServer([trickle]) as server:
        code, _, err = run_script("inspect", *options(path, server, "--concurrency", 1, "--timeout", 1.5))
    assert code == 0, err
    assert 1.4 < server.chats[1][0] - server.chats[0][0] < 4, err


@pytest.mark.parametrize("value", ["1", "date"])
def test_all_requests_heed_retry_after(run_script, descriptions, value):
    value = email.utils.formatdate(time.time() + 2.5, usegmt=True) if value == "date" else value
    with FaultServer([status(429, headers={"Retry-After": value})], delay=0.05) as server:
        code, _, err = run_script("inspect", *options(descriptions, server, "--concurrency", 2))
    times = [moment for moment, _, _ in server.chats]
    assert code == 0, err
    assert len(times) == 9, err
    assert times[2] - times[0] >= 1  # the second was on its way


@pytest.mark.parametrize("value", ["inf", "nan", "-3", "soon", "Mon, 99 Foo 2026", ""])
def test_a_retry_after_without_sense_is_left_alone(run_script, tmp_path, value):
    path = write_descriptions(tmp_path / "d.jsonl", ["owl"], 1)
    with FaultServer([status(429, headers={"Retry-After": value})]) as server:
        start = time.monotonic()
        assert run_script("inspect", *options(path, server))[0] == 0
    assert time.monotonic() - start < 10
    assert len(server.chats) == 3


def test_what_cannot_be_read_is_recorded_as_unanswered_and_asked_again_by_the_next_run(run_script, descriptions):
    path = descriptions.with_name("d_inspection.jsonl")
    faults = [says("Stripes!"), says(""), says('{"increases_knowledge": "no'), status(500), status(500)]
    with FaultServer(faults) as server:
        code, out, _ = run_script("inspect", *options(descriptions, server, "--concurrency", 1, "--max_retries", 2))
        assert code == 0
        assert "7 of 8 questions answered, 1 asked in vain; 12 requests sent" in out
        line = read_lines(path)[1][0]
        assert (line["status"], line["parsed"], line["attempts"]) == ("unanswered", None, 3)
        assert line["raw"] == ["Stripes!", "", '{"increases_knowledge": "no']
        assert "does not answer" in line["error"]
        before = path.read_bytes()

        code, out, _ = run_script("inspect", *options(descriptions, server))
        assert code == 0
        assert "8 of 8 questions answered, 0 asked in vain; 1 requests sent" in out
    assert path.read_bytes().startswith(before)
    assert server.asked()[-1] == server.asked()[0]
    assert inspection.read_answers(path)[1][0, "knowledge"]["status"] == "answered"  # the last line counts


def test_a_refused_description_does_not_stop_the_others(run_script, descriptions):
    with FaultServer([status(400, "this text violates our policy")]) as server:
        code, out, _ = run_script("inspect", *options(descriptions, server, "--concurrency", 1))
    assert code == 0
    assert "7 of 8 questions answered, 1 asked in vain; 8 requests sent" in out
    line = read_lines(descriptions.with_name("d_inspection.jsonl"))[1][0]
    assert (line["raw"], line["attempts"]) == ([], 1)
    assert "violates our policy" in line["error"]


@pytest.mark.parametrize("code", [400, 422])
def test_a_server_without_schemas_is_asked_in_plain_words(run_script, descriptions, code):
    with FaultServer([no_schema(code)] * 100) as server:
        done, out, err = run_script("inspect", *options(descriptions, server, "--concurrency", 1, "--max_retries", 0))
    assert done == 0, err
    assert "8 of 8 questions answered" in out, err
    forms = [request.get("response_format", {}).get("type") for _, _, request in server.chats]
    assert forms == ["json_schema", "json_object"] + 8 * [None]
    assert err.count("no JSON schema") == err.count("no JSON object") == 1


REFUSED = {"max_tokens": {"max_completion_tokens": 128 + chat.ROOM_TO_THINK}, "temperature": {}, "top_p": {},
           "json_schema": {"response_format": "json_object"}}


@pytest.mark.parametrize("refused", [[name] for name in REFUSED] + [[*REFUSED], [*REFUSED, "json_object"]], ids=str)
@pytest.mark.parametrize("concurrency", [1, 4])
def test_what_a_server_refuses_is_met_once_and_recorded(run_script, descriptions, refused, concurrency):
    with FaultServer([choosy(*refused)] * 100, delay=0.02) as server:
        done, out, err = run_script("inspect", *options(descriptions, server, "--concurrency", concurrency,
                                                        "--max_retries", 0))
    assert done == 0, err
    assert "8 of 8 questions answered" in out, err
    assert err.count("note: ") == len(refused)
    assert len(server.chats) <= 8 + concurrency * len(refused)
    if concurrency == 1:
        assert len(server.chats) == 8 + len(refused)
    expected = {"temperature": 0.1, "top_p": 0.1, "max_tokens": 128, "response_format": "json_schema"}
    for name in refused:
        expected.pop(name, None)
        expected |= REFUSED.get(name, {"response_format": None})
    last = server.chats[-1][2]
    last = {name: last[name] for name in expected if name in last} | {
        "response_format": last.get("response_format", {}).get("type")}
    assert last == expected
    _, lines = read_lines(descriptions.with_name("d_inspection.jsonl"))
    assert all(line["settings"] == expected for line in lines)


def test_a_refusal_that_names_several_settings_is_met_at_once(run_script, descriptions):
    def answer(handler):
        if {"max_tokens", "temperature", "top_p"} & set(handler.request_body):
            return status(400, "max_tokens, temperature and top_p are not supported")(handler)
        says(GOOD[handler.question])(handler)

    with FaultServer([answer] * 100) as server:
        done, out, err = run_script("inspect", *options(descriptions, server, "--concurrency", 1))
    assert done == 0, err
    assert len(server.chats) == 9
    assert err.count("note: ") == 3


@pytest.mark.parametrize("refusal", [
    "Invalid schema for response_format 'attributes': In context=(), enum has too many values; at most 100 are allowed",
    "The specified schema produces a constraint that has too many states for serving",
    "response_format: the grammar exceeds the maximum number of rules"])
def test_a_schema_that_is_too_large_is_left_out(run_script, descriptions, refusal):
    def answer(handler):
        if handler.request_body.get("response_format", {}).get("type") == "json_schema":
            return status(400, refusal)(handler)
        says(GOOD[handler.question])(handler)

    with FaultServer([answer] * 100) as server:
        done, out, err = run_script("inspect", *options(descriptions, server, "--concurrency", 1))
    assert done == 0, err
    assert "8 of 8 questions answered, 0 asked in vain; 9 requests sent" in out
    assert err.count("note: the server takes no JSON schema; asking for a JSON object from here on") == 1


CONTEXT = "This model's maximum context length is 2048 tokens"


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("refusal", [
    f"'max_tokens' or 'max_completion_tokens' is too large: 128. {CONTEXT} and your request has 1990 input tokens "
    "(128 > 2048 - 1990). None",
    f"{CONTEXT}. However, you requested 128 output tokens and your prompt contains at least 1921 input tokens, for a "
    "total of at least 2049 tokens. (parameter=max_tokens)",
    f"{CONTEXT}. However, your messages resulted in 2100 tokens (including 80 in the response_format schemas).",
    "max_tokens is too large: 128. This model supports at most 64 completion tokens, whereas you provided 128.",
    "max_tokens=128 cannot be greater than max_model_len=64. Please request fewer output tokens.",
    "give max_tokens or max_completion_tokens"])
def test_a_question_that_is_too_long_ends_alone(run_script, descriptions, refusal, concurrency):
    def answer(handler):
        request = handler.request_body
        if request["messages"][-1]["content"].endswith("zebra fact 1") and handler.question == "knowledge":
            return status(400, refusal)(handler)
        if request.get("max_tokens") != 128:  # as the server that inspection_runner.sh starts would
            return status(400, f"'max_completion_tokens' is too large: 4224. {CONTEXT}")(handler)
        says(GOOD[handler.question])(handler)

    with FaultServer([answer] * 100, delay=0.02) as server:
        done, out, err = run_script("inspect", *options(descriptions, server, "--concurrency", concurrency))
    assert done == 0, err
    assert "7 of 8 questions answered, 1 asked in vain; 8 requests sent" in out
    assert "note: " not in err
    _, lines = read_lines(descriptions.with_name("d_inspection.jsonl"))
    in_vain, = [line for line in lines if line["status"] == "unanswered"]
    assert (in_vain["index"], in_vain["question"], in_vain["attempts"]) == (1, "knowledge", 1)
    assert refusal.split(":")[0] in in_vain["error"]
    assert all(line["settings"] == {"temperature": 0.1, "top_p": 0.1, "max_tokens": 128,
                                    "response_format": "json_schema"} for line in lines if line is not in_vain)


@pytest.mark.parametrize("context, expected", [(100_000, 128 + chat.ROOM_TO_THINK), (2048, 1024), (200, 128),
                                               (None, 128 + chat.ROOM_TO_THINK), ("?", 128 + chat.ROOM_TO_THINK)])
def test_a_server_that_tells_its_context_is_asked_for_no_more_room_than_half_of_it(run_script, descriptions, context,
                                                                                  expected):
    models = body({"object": "list", "data": [{"id": "other", "object": "model", "max_model_len": 7},
                                              {"id": "judge", "object": "model", "max_model_len": context}]})
    with FaultServer([choosy("max_tokens")] * 100, models=models) as server:
        assert run_script("inspect", *options(descriptions, server, "--concurrency", 1))[0] == 0
    assert [request.get("max_completion_tokens") for _, _, request in server.chats] == [None] + 8 * [expected]


def test_several_requests_on_their_way_when_schemas_are_refused(run_script, descriptions):
    with FaultServer([no_schema(400)] * 100, delay=0.05) as server:
        done, _, err = run_script("inspect", *options(descriptions, server, "--concurrency", 4, "--max_retries", 0))
    assert done == 0
    assert err.count("no JSON schema") == 1
    assert 8 + 2 <= len(server.chats) <= 8 + 2 * 4


@pytest.mark.parametrize("fault, message", [
    (status(401, "wrong key sk-secret-1"), "set OPENAI_API_KEY"), (status(403, "no access"), "may ask this model"),
    (status(404, "no such path"), "check --model and --base_url"),
    (status(429, "pay first", code="insufficient_quota"), "no credit left")])
def test_what_no_retry_can_mend_stops_the_run_in_one_line(refused, descriptions, monkeypatch, fault, message):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1")
    with FaultServer([None, None, None, fault]) as server:
        line = refused("inspect", *options(descriptions, server, "--concurrency", 1))
    assert message in line
    assert "sk-secret-1" not in line
    assert len(server.chats) == 4
    assert len(read_lines(descriptions.with_name("d_inspection.jsonl"))[1]) == 3  # what was answered is kept


def test_a_server_that_dies_ends_the_run_instead_of_the_list(refused, tmp_path):
    path = write_descriptions(tmp_path / "d.jsonl", ["owl"], 30)
    with FaultServer([None] * 4 + [status(502)] * 1000) as server:
        line = refused("inspect", *options(path, server, "--max_retries", 1))
    assert "10 questions in a row brought no answer" in line
    assert "502" in line
    assert len(server.chats) < 40
    assert sum(line["status"] == "answered" for line in read_lines(tmp_path / "d_inspection.jsonl")[1]) == 4


def test_the_key_is_in_no_file_and_no_message(run_script, refused, descriptions, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1")
    faults = [status(500, "key sk-secret-1 met a fault")] * 2 + [status(400, "response_format? sk-secret-1")]
    with FaultServer(faults, models=status(404)) as server:
        code, out, err = run_script("inspect", *options(descriptions, server, "--concurrency", 1, "--max_retries", 1))
        assert code == 0
        assert "sk-secret-1" not in out + err
        assert "key *** met a fault" in read_lines(descriptions.with_name("d_inspection.jsonl"))[1][0]["error"]
    for fault in (status(401, "sk-secret-1 is wrong"), status(500, "sk-secret-1 is wrong")):
        with FaultServer(models=fault) as server:
            assert "sk-secret-1" not in refused(
                "inspect", *options(descriptions, server, "--output_filepath", tmp_path / "e"))
            assert not server.chats
    assert not any(b"sk-secret-1" in path.read_bytes() for path in tmp_path.iterdir())


# Before anything is asked.

def test_a_server_that_cannot_be_reached_or_lacks_the_model_is_refused_at_once(refused, descriptions):
    with FaultServer(models=("judge-1", "judge-2", "other")) as server:
        line = refused("inspect", *options(descriptions, server))
        assert "has no model judge; give --model one that it has, such as judge-" in line
    assert not server.chats
    assert "cannot be reached" in refused("inspect", *options(descriptions, server))
    server.url = server.url.removeprefix("http://")
    assert "which looks like http://localhost:8000/v1" in refused("inspect", *options(descriptions, server))
    assert not descriptions.with_name("d_inspection.jsonl").exists()  # which another --model could not go on with


@pytest.mark.parametrize("answer", [status(404), status(403), body({"data": None}), body(b"<html>", "text/html"),
                                    body({"data": []})])
def test_a_server_that_does_not_list_its_models_is_accepted(run_script, descriptions, answer):
    with FaultServer(models=answer) as server:
        assert run_script("inspect", *options(descriptions, server))[0] == 0
    assert server.lists == 1
    assert len(server.chats) == 8


def test_openai_needs_a_key_and_the_name_of_a_model(refused, descriptions, monkeypatch):
    named = ["--input_filepath", descriptions, "--model", "m"]
    assert "set OPENAI_API_KEY" in refused("inspect", *named)
    monkeypatch.setenv("OPENAI_API_KEY", "“sk-1”")
    assert "characters that no key has" in refused("inspect", *named)
    for more in ([], ["--base_url", "http://localhost:1/v1"]):
        assert "name the inspector with --model, such as gpt-" in refused("inspect", *named[:2], *more)
    monkeypatch.delenv("OPENAI_API_KEY")
    for more in (["--batch"], ["--base_url", "http://localhost:1/v1"]):
        assert "name the inspector with --model, such as gpt-" in refused("inspect", *named[:2], *more)
    assert len(list(descriptions.parent.iterdir())) == 2


def test_without_a_key_word_lists_inspect(run_script, tmp_path):
    path = write_descriptions(tmp_path / "d.jsonl", ["owl"], 3)
    texts = ["Brown feathers; it hunts at night in the forest.", "A photo of an owl.", "An owl, an owl."]
    rows = [json.loads(line) | {"description": text} for line, text in zip(path.read_text().splitlines(), texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = run_script("inspect", "--input_filepath", path)
    assert code == 0, err
    assert out.splitlines()[0] == ("the inspector is words, the word lists of configs/inspection_words.yaml: there "
                                   "is no --model, no --base_url and no OPENAI_API_KEY")
    assert "6 of 6 questions answered" in out
    record = tmp_path / "d_inspection.jsonl"
    found = inspection.read_answers(record)[1]
    assert [found[i, "knowledge"]["parsed"]["increases_knowledge"] for i in range(3)] == ["yes", "no", "no"]
    assert [found[i, "attributes"]["parsed"]["attributes"] for i in range(3)] == [
        ["color", "body_part_or_component", "habitat_or_place", "behavior"], [], []]
    assert [found[i, "attributes"]["parsed"]["spurious"] for i in range(3)] == [[], ["photo_wording"], []]
    before = record.read_bytes()
    assert run_script("inspect", "--input_filepath", path, "--model", "words")[0] == 0
    assert record.read_bytes() == before
    code, out, _ = run_script("inspect", "--summarize", record)
    assert code == 0
    assert "Verdicts of words (word lists, no model)" in out


@pytest.mark.parametrize("content, message", [
    ("colour: [red]", "'colour' is no attribute"), ("", "holds no word lists"),
    ("color: 3", "each name needs a list of words"), ("color: ['(']", "each name needs a list of words"),
    ("- red", "should hold 'option: value' lines")])
def test_word_lists_that_are_none_are_refused(refused, descriptions, tmp_path, content, message):
    (tmp_path / "w.yaml").write_text(content)
    assert message in refused("inspect", "--input_filepath", descriptions, "--words", tmp_path / "w.yaml")


def test_input_that_is_missing_is_refused(refused, tmp_path):
    (tmp_path / "x.jsonl").write_text("")
    assert "holds no descriptions" in refused("inspect", "--input_filepath", tmp_path / "x.jsonl")
    assert "y.jsonl does not exist; descriptions are made with" in refused(
        "inspect", "--input_filepath", tmp_path / "y.json")


def test_a_published_list_of_lists_is_read_by_the_names_of_its_concepts(run_script, refused, tmp_path):
    published, names = tmp_path / "y.json", tmp_path / "names.txt"
    published.write_text('[["It hunts at night.", "Brown feathers."], ["A seabird."]]')
    about = ["--input_filepath", published, "--vlm_name", "v", "--dataset_name", "d"]
    assert "give their names, one a line, with --class_names FILE" in refused("inspect", *about)
    about += ["--class_names", names]
    assert "names.txt: No such file" in refused("inspect", *about)
    names.write_text("owl\n")
    assert "holds 1 names, and" in refused("inspect", *about)
    names.write_text("owl\nowl\n")
    assert "two concepts are both called 'owl'" in refused("inspect", *about)
    for content in ("owl\n\ngreat auk\n", '["owl", "great auk"]'):
        names.write_text(content)
        assert "no manifest tells the dataset" in refused("inspect", *about[:4], *about[6:])
    code, out, err = run_script("inspect", *about)
    assert code == 0, err
    assert "6 of 6 questions answered" in out
    _, lines = read_lines(tmp_path / "y_inspection.jsonl")
    assert [(line["concept"], line["description"]) for line in lines[::2]] == [
        ("owl", "It hunts at night."), ("owl", "Brown feathers."), ("great auk", "A seabird.")]
    for content in ('{"owl": []}', '[["a"], [1]]', "["):
        published.write_text(content)
        assert "y.json" in refused("inspect", *about, "--output_filepath", tmp_path / "o.jsonl")
    lined = write_descriptions(tmp_path / "z.jsonl")
    assert "z.jsonl names its own concepts; leave it out" in refused(
        "inspect", "--input_filepath", lined, "--class_names", names)
    assert not (tmp_path / "z_inspection.jsonl").exists()


@pytest.mark.parametrize("given, message", [
    (["--output_format", "published"], "--output_format published is for a chat model"),
    (["--model", "words", "--output_format", "published"], "--output_format published is for a chat model"),
    (["--model", "words", "--base_url", "http://localhost:1/v1"], "--base_url is for a chat model"),
    (["--model", "words", "--batch"], "--batch is for a chat model"),
    (["--model", "m", "--batch", "--base_url", "http://localhost:1/v1"], "leave --base_url out"),
    (["--dry_run", "--price_per_million", "1", "2"], "--price_per_million needs --model"),
    (["--model", "words", "--dry_run", "--price_per_million", "1", "2"], "--price_per_million needs --model"),
    (["--model", "m", "--dry_run", "--price_per_million", "1"], "takes two prices"),
    (["--model", "m", "--price_per_million", "1", "2"], "--price_per_million is for --dry_run")])
def test_options_that_would_do_nothing_are_refused_before_the_work(refused, descriptions, monkeypatch, given, message):
    if "m" in given:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-of-mine")
    assert message in refused("inspect", "--input_filepath", descriptions, *given)
    assert len(list(descriptions.parent.iterdir())) == 2


def test_names_come_from_the_options_or_from_the_manifest(refused, run_script, descriptions):
    manifest = descriptions.with_name("d.manifest.json")
    arguments = ["--input_filepath", descriptions, "--dry_run"]
    manifest.write_text('{"vlm_name": "clip-a"}')
    assert "tells the dataset of the descriptions; give it with --dataset_name" in refused("inspect", *arguments)
    manifest.write_text("[")
    assert "manifest.json: " in refused("inspect", *arguments)
    manifest.unlink()
    assert "give it with --vlm_name" in refused("inspect", *arguments)
    assert run_script("inspect", *arguments, "--vlm_name", "v", "--dataset_name", "d")[0] == 0


def test_the_list_of_lists_stands_for_the_lines_beside_it(run_script, descriptions):
    descriptions.with_suffix(".json").write_text("[[]]")
    with FaultServer() as server:
        assert run_script("inspect", *options(descriptions.with_suffix(".json"), server))[0] == 0
    assert len(read_lines(descriptions.with_name("d_inspection.jsonl"))[1]) == 8


def test_a_dry_run_sends_and_writes_nothing(run_script, descriptions):
    with FaultServer() as server:
        code, out, _ = run_script("inspect", *options(descriptions, server, "--dry_run", "--max_tokens", 100))
        assert code == 0
        assert "8 requests for 4 descriptions, two each, 0 answered before" in out
        assert "at most 800 to write" in out
        assert "prices" not in out
        _, out, _ = run_script("inspect", *options(descriptions, server, "--dry_run", "--max_tokens", 100,
                                                   "--price_per_million", 1, 1000))
        price = float(out.split("at most ")[2].split()[0])
        tokens = int(out.split("about ")[1].split()[0].replace(",", ""))
        assert price == pytest.approx(tokens / 1e6 + 0.8, abs=0.005)
        assert f"{price / 2:.2f} with --batch" in out
        chats = [inspection.messages(SHEET, question, json.loads(line))
                 for line in descriptions.read_text().splitlines() for question in inspection.QUESTIONS]
        assert f"about {sum(map(inspection.estimate_tokens, chats)):,} tokens to read" in out
        assert not server.chats
        assert not server.lists
        assert len(list(descriptions.parent.iterdir())) == 2

        run_script("inspect", *options(descriptions, server, "--max_requests", 3))
        code, out, _ = run_script("inspect", *options(descriptions, server, "--dry_run"))
        assert "5 requests for 4 descriptions, two each, 3 answered before" in out
        assert len(server.chats) == 3


def test_a_dry_run_of_word_lists_counts_questions(run_script, descriptions):
    code, out, _ = run_script("inspect", "--input_filepath", descriptions, "--dry_run")
    assert code == 0
    assert "8 questions for 4 descriptions" in out
    assert "requests" not in out
    assert "tokens" not in out


# Budget, kill, resume.

def test_the_budget_is_kept_to_the_request(run_script, descriptions):
    faults = [status(500), says(""), None, status(500), reset]
    with FaultServer(faults, delay=0.02) as server:
        code, out, _ = run_script("inspect", *options(descriptions, server, "--concurrency", 3, "--max_requests", 7))
        assert code == 0
        assert len(server.chats) == 7
        answered = len(read_lines(descriptions.with_name("d_inspection.jsonl"))[1])
        assert f"the budget of 7 requests is spent, {8 - answered} questions remain" in out
        code, out, _ = run_script("inspect", *options(descriptions, server, "--max_requests", 50))
    assert code == 0
    assert len(server.chats) == 7 + 8 - answered
    assert "budget of" not in out
    assert len(read_lines(descriptions.with_name("d_inspection.jsonl"))[1]) == 8


def test_a_killed_run_goes_on_without_loss_and_without_asking_twice(tmp_path):
    path, record = write_descriptions(tmp_path / "d.jsonl", ["owl", "gull"], 15), tmp_path / "d_inspection.jsonl"
    server = FaultServer(delay=0.05)
    command = [sys.executable, "inspect.py", *map(str, options(path, server, "--concurrency", "4"))]
    with server:
        first = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        while len(server.chats) < 25:
            assert first.poll() is None
            time.sleep(0.005)
        first.send_signal(signal.SIGKILL)
        first.wait()
        kept = record.read_bytes()
        kept = kept[:kept.rindex(b"\n") + 1]
        assert 15 <= kept.count(b"\n") - 1 <= 25
        time.sleep(0.2)  # until the server has done with what was on its way
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert second.returncode == 0, second.stderr
    assert "60 of 60 questions answered" in second.stdout, second.stderr
    assert record.read_bytes().startswith(kept)
    lines = read_lines(record)[1]
    assert len(lines) == 60 == len({(line["index"], line["question"]) for line in lines})
    assert len(set(server.asked())) == 60
    assert len(server.chats) <= 60 + 4


def test_half_a_line_is_dropped_and_asked_again(run_script, descriptions):
    record = descriptions.with_name("d_inspection.jsonl")
    with FaultServer() as server:
        run_script("inspect", *options(descriptions, server))
        whole = record.read_bytes()
        record.write_bytes(whole[:-20])
        code, out, _ = run_script("inspect", *options(descriptions, server))
    assert code == 0
    assert "1 requests sent" in out
    assert len(server.chats) == 9
    assert record.read_bytes().count(b"\n") == whole.count(b"\n")
    assert len(read_lines(record)[1]) == 8


@pytest.mark.parametrize("change", ["inspector", "temperature", "vlm_name", "inspection_sha256", "descriptions_sha256"])
def test_a_record_of_another_inspection_is_refused(refused, run_script, descriptions, tmp_path, change):
    more = {"inspector": ["--model", "other"], "temperature": ["--temperature", "0.2"],
            "vlm_name": ["--vlm_name", "clip-b"], "inspection_sha256": ["--inspection", tmp_path / "s.yaml"],
            "descriptions_sha256": []}[change]
    with FaultServer(models=("judge", "other")) as server:
        run_script("inspect", *options(descriptions, server))
        before = descriptions.with_name("d_inspection.jsonl").read_bytes()
        (tmp_path / "s.yaml").write_text(yaml.safe_dump(SHEET | {"message": "{concept}: {description}"}))
        if not more:
            descriptions.write_text(descriptions.read_text().replace("zebra fact 1", "zebra fact 7"))
        for dry in ([], ["--dry_run"]):
            line = refused("inspect", *options(descriptions, server, *more, *dry))
            assert f"made with another {change}" in line
            assert "name another --output_filepath" in line
    assert len(server.chats) == 8
    assert descriptions.with_name("d_inspection.jsonl").read_bytes() == before


def test_new_rewards_leave_the_answers_valid(run_script, descriptions):
    with FaultServer() as server:
        run_script("inspect", *options(descriptions, server))
        descriptions.write_text(descriptions.read_text().replace("1.5", "2.5"))
        code, out, _ = run_script("inspect", *options(descriptions, server))
    assert code == 0
    assert "0 requests sent" in out
    assert len(server.chats) == 8


@pytest.mark.parametrize("content", [b"", b"{}\n", b"[1]\n", b'{"header": {}}\n', b'{"concept": "a"}\n', b"text"])
def test_other_files_are_not_written_to(refused, run_script, descriptions, content):
    other = descriptions.with_name("other.jsonl")
    other.write_bytes(content)
    with FaultServer() as server:
        arguments = options(descriptions, server, "--output_filepath", other)
        if not content:  # an empty file is as good as none
            assert run_script("inspect", *arguments)[0] == 0
            return
        assert "is a file of another kind; name another --output_filepath" in refused("inspect", *arguments)
        assert "is a file of another kind" in refused("inspect", *options(descriptions, server, "--output_filepath",
                                                                          descriptions))
    assert other.read_bytes() == content
    assert not server.chats


def test_a_damaged_line_is_named(refused, run_script, descriptions):
    record = descriptions.with_name("d_inspection.jsonl")
    with FaultServer() as server:
        run_script("inspect", *options(descriptions, server))
        lines = record.read_text().splitlines()
        record.write_text("\n".join([*lines[:3], lines[3][:-9], *lines[4:]]) + "\n")
        assert "line 4: damaged" in refused("inspect", *options(descriptions, server))
        assert "line 4: damaged" in refused("inspect", "--summarize", record)


def test_two_runs_do_not_write_to_one_record(refused, descriptions):
    with FaultServer() as server, jsonl.Record(descriptions.with_name("d_inspection.jsonl"), {}):
        assert "another run writes to it" in refused("inspect", *options(descriptions, server))
    assert not server.chats


def test_the_published_layout(run_script, descriptions):
    def answer(request):
        return GOOD[question_of(request)].replace("stripes", request["messages"][-1]["content"][-6:])

    out = descriptions.with_name("out.json")
    arguments = ["--output_format", "published", "--output_filepath", out, "--max_retries", 0, "--concurrency", 1]
    with FaultServer([says("???"), None, status(500)], answer=answer) as server:
        run_script("inspect", *options(descriptions, server, *arguments, "--max_requests", 5))
        assert not out.exists()  # not before every question was asked
        code, printed, _ = run_script("inspect", *options(descriptions, server, *arguments, "--max_requests", 3))
    assert code == 0
    assert str(out) in printed.splitlines()
    assert out.with_suffix(".jsonl").exists()
    zebra, puffin = json.loads(out.read_text())

    def said(dump):
        return json.loads(dump)["choices"][0]["message"]["content"]

    assert said(zebra[0]) == "???"  # what was said, and nothing where nothing was
    assert zebra[1] is None
    assert [json.loads(said(dump))["explanation"] for dump in puffin] == ["It tells of fact 0.", "It tells of fact 1."]


def test_half_a_character_and_other_scripts_come_through(run_script, tmp_path):
    path = write_descriptions(tmp_path / "d.jsonl", ["größe\u2028梟"], 1)
    text = '{"explanation": "\\ud83d 梟\u2028\x00", "increases_knowledge": "no"}'
    with FaultServer([says(text)]) as server:
        code, _, err = run_script("inspect", *options(path, server, "--concurrency", 1, "--output_format", "published"))
    assert code == 0, err
    found = inspection.read_answers(tmp_path / "d_inspection.jsonl")[1]
    assert found[0, "knowledge"]["raw"] == [text]
    assert found[0, "knowledge"]["parsed"]["explanation"] == "\ud83d 梟\u2028\x00"
    assert found[0, "attributes"]["concept"] == "größe\u2028梟"
    [[dump]] = json.loads((tmp_path / "d_inspection.json").read_text())
    assert json.loads(dump)["choices"][0]["message"]["content"] == text


# Summing up.

def write_record(path, judged, header=None, descriptions=None):
    """A record with (concept, description, increases_knowledge or None, (attributes, spurious) or None) each."""
    header = {"inspector": "judge", "vlm_name": "clip-a", "dataset": "birds",
              "descriptions": descriptions or len(judged),
              **{kind: list(SHEET[kind]) for kind in inspection.KINDS}} | (header or {})
    lines = [{"header": header}]
    for i, (concept, description, informative, names) in enumerate(judged):
        both = {"knowledge": informative and {"explanation": "", "increases_knowledge": informative},
                "attributes": names and {"attributes": names[0], "spurious": names[1], "unknown": []}}
        for question, parsed in both.items():
            lines.append({"index": i, "concept": concept, "description": description, "question": question,
                          "parsed": parsed, "raw": [], "status": "answered" if parsed else "unanswered", "attempts": 1,
                          "error": None})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


JUDGED = [("owl", "brown feathers", "yes", (["color"], [])), ("owl", "hunts at night", "yes", (["behavior"], [])),
          ("owl", "brown, from Asia", "yes", (["color", "origin_or_history"], [])),
          ("owl", "photo", "no", ([], ["photo_wording"])),
          ("gull", "white\nand grey", "yes", (["color"], ["watermark", "photo_wording"])),
          ("gull", "a gull", "no", ([], [])),
          ("gull", "big", "no", (["size"], [])), ("gull", "at sea", "yes", (["habitat_or_place"], [])),
          ("gull", "half asked", "yes", None), ("gull", "in vain", None, None)]


def wilson(count, total, z=1.959963984540054):
    middle = (count / total + z * z / 2 / total) / (1 + z * z / total)
    half = z * math.sqrt(count / total * (1 - count / total) / total + z * z / 4 / total ** 2) / (1 + z * z / total)
    return middle - half, middle + half


def test_shares_and_intervals(tmp_path):
    files = verdicts.read_files([write_record(tmp_path / "a.jsonl", JUDGED, descriptions=12)])
    [row] = verdicts.summarize(files)
    assert (row["descriptions"], row["answered"]) == (12, 8)
    assert {name: found["count"] for name, found in row["measures"].items()} == {
        "uninformative": 3, "informative": 5, "spurious": 2, "visual": 4, "nonvisual": 3, "only_nonvisual": 2,
        "informative_visual": 3, "informative_only_nonvisual": 2}
    for found in row["measures"].values():
        assert found["share"] == found["count"] / 8
        assert (found["low"], found["high"]) == pytest.approx(wilson(found["count"], 8), abs=1e-9)
    assert list(row["attributes"])[:2] == ["color", "photo_wording"]
    assert row["attributes"]["color"]["count"] == 3
    assert row["attributes"]["color"]["kind"] == "visual"
    assert row["attributes"]["size"]["share"] == 1 / 8
    assert row["attributes"]["use"]["count"] == 0
    assert [found["description"] for found in row["examples"]["informative_visual"]] == [
        "brown feathers", "brown, from Asia", "white\nand grey"]
    assert [found["description"] for found in row["examples"]["informative_only_nonvisual"]] == [
        "hunts at night", "at sea"]
    assert [found["description"] for found in row["examples"]["spurious"]] == ["photo", "white\nand grey"]


def test_the_summary_on_screen_and_on_disk(run_script, tmp_path, monkeypatch):
    monkeypatch.setattr(verdicts, "LABELS", tmp_path / "labels.jsonl")
    records = [write_record(tmp_path / "a.jsonl", JUDGED),
               write_record(tmp_path / "b.jsonl", JUDGED[:5], {"vlm_name": "clip-b"}),
               write_record(tmp_path / "c.jsonl", JUDGED[8:], {"vlm_name": "clip-c"}),
               write_record(tmp_path / "d.jsonl", JUDGED, {"inspector": "oracle", "dataset": "dogs"})]
    code, out, err = run_script("inspect", "--summarize", *records, "--output_dir", tmp_path / "sum")
    assert code == 0, err
    for part in ("Verdicts of judge", "Verdicts of oracle", "labels.jsonl, the descriptions labelled"):
        assert part in out
    table = {line.split()[0]: line for line in out.splitlines()
             if line.startswith("clip-") and "," not in line.split()[0]}
    low, high = wilson(3, 8)
    assert f"37.5 [{100 * low:.1f}, {100 * high:.1f}]" in table["clip-a"]
    assert table["clip-c"].split()[2:] == ["2", "0"] + 5 * ["-"]
    heading = next(line for line in out.splitlines() if line.startswith("VLM"))
    assert heading.index("uninformative (the paper's spurious)") == table["clip-a"].index("37.5 [")
    assert "    gull: white and grey" in out
    assert "visual: color 37.5, size 12.5" in out
    assert "spurious wording: photo_wording 25.0, watermark 12.5" in out
    rows = list(csv.DictReader((tmp_path / "sum/summary.csv").open()))
    line = next(row for row in rows if (row["vlm_name"], row["dataset"], row["name"]) == ("clip-a", "birds", "color"))
    assert [line[name] for name in ("kind", "count", "share", "answered", "inspector")] == [
        "visual", "3", "0.375", "8", "judge"]
    assert float(line["low"]) == pytest.approx(wilson(3, 8)[0])
    assert [row["count"] for row in rows if row["vlm_name"] == "clip-c"] == [""]
    content = json.loads((tmp_path / "sum/summary.json").read_text())
    assert len(content["rows"]) == 4
    assert set(content["agreement"]) == {"judge", "oracle"}
    from PIL import Image

    image = Image.open(tmp_path / "sum/summary.png")
    assert image.size[0] > 1000
    assert len(image.convert("RGB").getcolors(1 << 24)) > 10
    assert sorted(path.name for path in (tmp_path / "sum").iterdir()) == ["summary.csv", "summary.json", "summary.png"]


def test_summing_up_needs_no_openai(tmp_path):
    command = ["inspect.py", "--summarize", str(write_record(tmp_path / "a.jsonl", JUDGED))]
    code = f"import runpy, sys; sys.modules['openai'] = None; sys.argv = {command}\n" \
           "runpy.run_path('inspect.py', run_name='__main__')"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "summary.png").exists(), found.stderr


def write_labels(path, labels):
    lines = [{"concept": concept, "question": "q", "description": description, "seed": 0, "reward": 1.0,
              "labels": {"increases_knowledge": informative, "attributes": used, "spurious": spurious}}
             for concept, description, informative, (used, spurious) in labels]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_agreement_with_labels(run_script, tmp_path, monkeypatch):
    monkeypatch.setattr(verdicts, "LABELS", tmp_path / "labels.jsonl")
    changed = {2: "no", 5: "yes", 6: "yes"}  # of ten labels, the inspector gave nine verdicts, six of them the same
    write_labels(verdicts.LABELS, [(concept, description, changed.get(i, informative or "no"), names or ([], []))
                                   for i, (concept, description, informative, names) in enumerate(JUDGED)]
                 + [("owl", "never asked", "yes", ([], []))])
    labelled = write_record(tmp_path / "l.jsonl", JUDGED[:6], {"dataset": "labelled"})
    a = write_record(tmp_path / "a.jsonl", [*JUDGED, ("owl", "not labelled", "yes", ([], []))])
    files = verdicts.read_files([a, labelled])
    found = verdicts.agreement(files)["judge"]
    # Informative, of nine: both yes 0 1 4 7 8, both no 3, inspector yes and label no 2, the reverse 5 6.
    chance = (6 / 9) * (7 / 9) + (3 / 9) * (2 / 9)
    assert found["informative"]["used"] == 9
    assert found["informative"]["share"] == pytest.approx(6 / 9)
    assert found["informative"]["kappa"] == pytest.approx((6 / 9 - chance) / (1 - chance))
    assert (found["informative"]["low"], found["informative"]["high"]) == pytest.approx(wilson(6, 9))
    assert [found[name]["used"] for name in verdicts.LABELED] == [9, 8, 8, 8]
    assert [found[name]["kappa"] for name in verdicts.LABELED[1:]] == [1, 1, 1]
    low, high = found["informative"]["kappa_interval"]
    assert low < found["informative"]["kappa"] < high
    assert found["visual"]["kappa_interval"] == (1, 1)
    assert [row["dataset"] for row in verdicts.summarize(files)] == ["birds"]

    code, out, _ = run_script("inspect", "--summarize", labelled, "--output_dir", tmp_path / "only")
    assert code == 0
    assert "Verdicts of" not in out
    assert "by 6 descriptions labelled by hand" in out
    assert [path.name for path in (tmp_path / "only").iterdir()] == ["summary.json"]
    assert out.count("undefined") == 0
    assert "informative 6" in " ".join(out.split())


def test_kappa_without_a_meaning_is_called_undefined(run_script, tmp_path, monkeypatch):
    monkeypatch.setattr(verdicts, "LABELS", tmp_path / "labels.jsonl")
    write_labels(verdicts.LABELS, JUDGED[:3])
    code, out, err = run_script("inspect", "--summarize", write_record(tmp_path / "a.jsonl", JUDGED[:3]))
    assert code == 0
    assert "undefined" in out
    assert "nan" not in out
    assert "Warning" not in err
    write_labels(verdicts.LABELS, [("owl", "elsewhere", "yes", ([], []))])
    code, out, _ = run_script("inspect", "--summarize", tmp_path / "a.jsonl")
    assert code == 0
    assert "holds none of these descriptions" in out


def test_what_cannot_be_summed_up_is_refused(refused, tmp_path, monkeypatch, descriptions):
    monkeypatch.setattr(verdicts, "LABELS", tmp_path / "labels.jsonl")
    a, b = write_record(tmp_path / "a.jsonl", JUDGED), write_record(tmp_path / "b.jsonl", JUDGED)
    assert "is not a file of inspect.py's answers" in refused("inspect", "--summarize", descriptions)
    assert "does not exist; make it with: python inspect.py" in refused(
        "inspect", "--summarize", tmp_path / "none.jsonl")
    assert "both hold answers of judge on clip-a, birds" in refused("inspect", "--summarize", a, b)
    verdicts.LABELS.write_text('{"concept": "owl", "description": "a"}\n')
    assert "labels.jsonl, line 1: expected is" in refused("inspect", "--summarize", a)


def test_a_labels_file_can_be_inspected(run_script, tmp_path, monkeypatch):
    monkeypatch.setattr(verdicts, "LABELS", tmp_path / "labels.jsonl")
    write_labels(verdicts.LABELS, JUDGED[:4])
    with FaultServer() as server:
        out = tmp_path / "out" / "labelled.jsonl"
        more = ["--dataset_name", "labelled", "--vlm_name", "any", "--output_filepath", out]
        assert run_script("inspect", *options(verdicts.LABELS, server, *more))[0] == 0
    code, text, _ = run_script("inspect", "--summarize", out)
    assert code == 0
    assert "by 4 descriptions labelled by hand" in text


def test_a_full_disk_is_one_line(refused, descriptions):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full: a full disk was not covered")
    record = descriptions.with_name("d_inspection.jsonl")
    record.symlink_to("/dev/full")
    with FaultServer() as server:
        assert "No space left" in refused("inspect", *options(descriptions, server, "--concurrency", 1))


# What can be believed.

def agreed(**kappas):
    """What `verdicts.agreement` finds, with these kappas, and 0.8 elsewhere."""
    return {name: {"used": 50, "kappa": kappas.get(name, 0.8)} for name in verdicts.LABELED}


@pytest.mark.parametrize("kappas, expected", [
    ({}, set()), ({"informative": 0.2}, set()),
    ({"informative": 0.19}, {"informative", "uninformative", "informative_visual", "informative_only_nonvisual"}),
    ({"visual": None}, {"visual", "only_nonvisual", "informative_visual", "informative_only_nonvisual"}),
    ({"nonvisual": -0.4}, {"nonvisual", "only_nonvisual", "informative_only_nonvisual"}),
    ({"spurious": 0.0}, {"spurious"}),
    (dict.fromkeys(verdicts.LABELED), set(verdicts.MEASURES))],
    ids=["well", "bound", "informative", "visual", "nonvisual", "spurious", "none"])
def test_a_verdict_is_doubtful_where_a_part_of_it_is_near_chance_or_not_known(kappas, expected):
    trust = {"judge": agreed(**kappas), "sure": agreed()}
    assert verdicts.doubtful(trust) == {("judge", name) for name in expected}


def test_bars_are_pale_where_the_verdict_is_doubtful(tmp_path, monkeypatch):
    from utils.plots import ex2

    drawn = []
    monkeypatch.setattr(ex2, "save", lambda figure, path: drawn.append(figure))
    files = verdicts.read_files([write_record(tmp_path / "a.jsonl", JUDGED),
                                 write_record(tmp_path / "b.jsonl", JUDGED, {"inspector": "sure"}),
                                 write_record(tmp_path / "c.jsonl", JUDGED, {"dataset": "dogs"})])
    rows = verdicts.summarize(files)
    trust = {"judge": agreed(visual=0.1, spurious=None), "sure": agreed()}
    ex2.inspection_shares(rows, verdicts.MEASURES, verdicts.doubtful(trust), tmp_path / "x.png")
    figure, = drawn
    names = list(verdicts.MEASURES)
    pale = {"visual", "only_nonvisual", "informative_visual", "informative_only_nonvisual", "spurious"}
    panels = {axes.get_title(): [bars for bars in axes.containers if hasattr(bars, "patches")] for axes in figure.axes}
    assert {title: len(bars) for title, bars in panels.items()} == {"birds": 2, "dogs": 1}
    for bars, expected in [(panels["birds"][0], pale), (panels["birds"][1], set()), (panels["dogs"][0], pale)]:
        assert {name for name, bar in zip(names, bars, strict=True) if bar.get_alpha() == 0.3} == expected
        assert {name for name, bar in zip(names, bars, strict=True) if bar.get_hatch()} == expected
        assert [bar.get_height() for bar in bars] == pytest.approx(
            [100 * rows[0]["measures"][name]["share"] for name in names])


def test_all_bars_are_pale_where_no_label_was_judged(run_script, tmp_path, monkeypatch):
    from utils.plots import ex2

    monkeypatch.setattr(verdicts, "LABELS", tmp_path / "labels.jsonl")
    drawn = []
    monkeypatch.setattr(ex2, "save", lambda figure, path: drawn.append(figure))
    assert run_script("inspect", "--summarize", write_record(tmp_path / "a.jsonl", JUDGED))[0] == 0
    bars, = [bars for bars in drawn[0].axes[0].containers if hasattr(bars, "patches")]
    assert [bar.get_alpha() for bar in bars] == [0.3] * len(verdicts.MEASURES)
