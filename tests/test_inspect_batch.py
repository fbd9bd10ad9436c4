"""The inspector by files of OpenAI's batch interface, which a loopback server stands for."""
import json

import pytest
from builders import ROOT, write_descriptions
from fault_server import GOOD, FaultServer, choosy, run_batch, says, status

from utils.ex2 import inspection
from utils.language import chat

SENT = {"temperature": 0.1, "top_p": 0.1, "max_tokens": 128, "response_format": "json_schema"}
THINKS = {"max_completion_tokens": 128 + chat.ROOM_TO_THINK}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def descriptions(tmp_path):
    """Four descriptions of two concepts, with a manifest."""
    return write_descriptions(tmp_path / "d.jsonl")


@pytest.fixture
def files(descriptions):
    """Requests, output and errors, as the batch interface takes and gives them."""
    return [descriptions.with_name(f"d_inspection_batch{end}.jsonl") for end in ("", "_output", "_errors")]


@pytest.fixture
def ask(run_script, descriptions):
    """Run the inspector with --batch. Returns what it prints and its notes."""
    def call(*more):
        code, out, err = run_script("inspect", "--input_filepath", descriptions, "--model", "judge", "--batch", *more)
        assert code == 0, err
        return out, err

    return call


def bodies(requests):
    """The bodies of a file of requests."""
    return [json.loads(line)["body"] for line in requests.read_text().splitlines()]


def form(body):
    return body.get("response_format", {}).get("type")


def read(descriptions):
    """The lines of the record, without its header."""
    return [json.loads(line) for line in descriptions.with_name("d_inspection.jsonl").read_text().splitlines()[1:]]


def test_requests_are_written_as_the_batch_interface_takes_them(ask, descriptions, files):
    requests = files[0]
    out, _ = ask()
    assert f"8 requests -> {requests}" in out
    assert "d_inspection.jsonl\n" not in out  # there is no answer yet
    lines = [json.loads(line) for line in requests.read_text().splitlines()]
    assert {(line["method"], line["url"]) for line in lines} == {("POST", "/v1/chat/completions")}
    assert len({line["custom_id"] for line in lines}) == 8
    sheet = inspection.read_sheet("configs/inspection.yaml")
    row = json.loads(descriptions.read_text().splitlines()[2])
    assert next(line["body"] for line in lines if line["custom_id"] == "2-attributes") == {
        "model": "judge", "messages": inspection.messages(sheet, "attributes", row), "temperature": 0.1, "top_p": 0.1,
        "max_tokens": 128, "response_format": inspection.response_format(sheet, "attributes")}
    before = requests.read_bytes()
    ask()  # again, before anything came back
    assert requests.read_bytes() == before


def test_batch_files_are_written_read_and_gone_on_with(ask, descriptions, files):
    requests, output, errors = files
    ask()
    with FaultServer(3 * [None] + [says("???"), choosy("max_tokens"), choosy("max_tokens")]) as server:
        run_batch(server, *files)
        output.write_text("".join(reversed(output.read_text().splitlines(keepends=True))))  # in any order
        out, err = ask()
        assert "5 of 8 questions answered, 3 asked in vain" in out
        assert f"3 requests -> {requests}" in out
        assert err.count("note: ") == 1
        assert all(body["max_completion_tokens"] == THINKS["max_completion_tokens"] for body in bodies(requests))
        assert not any("max_tokens" in body for body in bodies(requests))
        record = descriptions.with_name("d_inspection.jsonl").read_bytes()
        ask()  # again, before anything new came back
        assert descriptions.with_name("d_inspection.jsonl").read_bytes() == record

        run_batch(server, *files)
        out, _ = ask("--output_format", "published")
    assert not errors.exists()
    assert "8 of 8 questions answered, 0 asked in vain" in out
    assert "requests ->" not in out
    published = json.loads(descriptions.with_name("d_inspection.json").read_text())
    assert [len(texts) for texts in published] == [2, 2]
    assert all(json.loads(text)["choices"][0]["message"]["content"] == GOOD["knowledge"]
               for texts in published for text in texts)


def test_what_a_batch_was_refused_is_met_and_kept(ask, descriptions, files):
    requests, output, errors = files
    refused = ["max_tokens", "temperature", "json_schema", "json_object"]
    with FaultServer([choosy(*refused)] * 100) as server:
        asked = []
        for _ in range(5):
            ask()
            asked.append(bodies(requests)[0])
            run_batch(server, *files)
        out, _ = ask()
    assert "8 of 8 questions answered, 0 asked in vain" in out
    assert [form(body) for body in asked] == ["json_schema"] * 3 + ["json_object", None]
    assert ["max_tokens" in body for body in asked] == [True] + 4 * [False]
    assert ["temperature" in body for body in asked] == 2 * [True] + 3 * [False]
    tokens = THINKS | {"top_p": 0.1}
    expected = [SENT, tokens | {"temperature": 0.1, "response_format": "json_schema"},
                tokens | {"response_format": "json_schema"}, tokens | {"response_format": "json_object"},
                tokens | {"response_format": None}]
    lines = read(descriptions)
    assert [line["settings"] for line in lines[::8]] == expected  # each answer with what it was asked with
    assert [line["status"] for line in lines] == 32 * ["unanswered"] + 8 * ["answered"]


@pytest.mark.parametrize("left", [True, False], ids=["errors_left", "errors_gone"])
def test_a_later_run_does_not_ask_again_for_what_was_refused(ask, descriptions, files, left):
    requests, output, errors = files
    ask()
    with FaultServer([choosy("max_tokens")] * 8 + [choosy("json_schema")] * 8) as server:
        run_batch(server, *files)
        ask()
        run_batch(server, *files)
        ask()
        before = requests.read_bytes()
        kept = errors.read_bytes()
        with FaultServer(7 * [None] + [says("???")]) as other:
            run_batch(other, *files)
        if left:
            errors.write_bytes(kept)
        out, err = ask()
    assert "7 of 8 questions answered, 1 asked in vain" in out
    assert "note: " not in err
    assert len(bodies(requests)) == 1
    body, = bodies(requests)
    assert (form(body), body["max_completion_tokens"]) == ("json_object", THINKS["max_completion_tokens"])
    assert before.splitlines()[7] == requests.read_bytes().splitlines()[0]
    answered = [line for line in read(descriptions) if line["status"] == "answered"]
    assert all(line["settings"] == THINKS | {"temperature": 0.1, "top_p": 0.1, "response_format": "json_object"}
               for line in answered)


def test_what_an_expired_batch_left_out_is_asked_again(ask, descriptions, files):
    requests, output, errors = files
    ask()
    with FaultServer() as server:
        run_batch(server, *files)
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        output.write_text("".join(json.dumps(line) + "\n" for line in lines[:5]))
        message = "This request could not be executed before the completion window expired."
        errors.write_text("".join(json.dumps(line | {"response": None, "error": {
            "code": "batch_expired", "message": message}}) + "\n" for line in lines[5:]))
        out, err = ask()
        assert "5 of 8 questions answered, 3 asked in vain" in out
        assert f"3 requests -> {requests}" in out
        assert "note: " not in err
        late = [line for line in read(descriptions) if line["status"] == "unanswered"]
        assert len(late) == 3
        assert all("batch_expired" in line["error"] and message in line["error"] for line in late)
        assert all((line["raw"], line["response"], line["settings"]) == ([], None, SENT) for line in late)
        assert [body["max_tokens"] for body in bodies(requests)] == 3 * [128]
        run_batch(server, *files)
        out, _ = ask()
    assert "8 of 8 questions answered, 0 asked in vain" in out


def test_a_fault_of_the_server_or_of_one_long_question_changes_no_setting(ask, descriptions, files):
    requests = files[0]
    ask()
    first = bodies(requests)
    long = status(400, "max_tokens is too large: 128. This model's maximum context length is 2048 tokens")
    with FaultServer([status(500, "max_tokens? json_schema? try again"), long]) as server:
        run_batch(server, *files)
    out, err = ask()
    assert "6 of 8 questions answered, 2 asked in vain" in out
    assert "note: " not in err
    assert bodies(requests) == first[:2]


def test_settings_of_another_inspection_are_refused(ask, refused, descriptions, files):
    ask()
    before = files[0].read_bytes()
    line = refused("inspect", "--input_filepath", descriptions, "--model", "judge", "--batch", "--max_tokens", 64)
    assert "d_inspection_batch_settings.jsonl was made with another max_tokens (128, now 64)" in line
    assert files[0].read_bytes() == before


@pytest.mark.parametrize("line", ["[]", "{",
                                  '{"custom_id": "99-knowledge", "response": {"status_code": 200, "body": {}}}',
                                  '{"custom_id": "0-knowledge", "response": {"status_code": 200, "body": {}}}',
                                  '{"custom_id": "0-other", "response": null, "error": {"code": "batch_expired"}}',
                                  '{"custom_id": "0-knowledge", "response": null, "error": null}',
                                  '{"custom_id": "2.0-knowledge", "response": null, "error": {"code": "a"}}',
                                  '{"custom_id": "0-knowledge", "response": {"status_code": 400, "body": "no"}}'])
def test_what_is_no_batch_answer_is_refused(ask, refused, descriptions, line):
    ask()
    output = descriptions.with_name("d_inspection_batch_output.jsonl")
    output.write_text(line + "\n")
    assert f"{output}, line 1: not an answer of the batch interface" in refused(
        "inspect", "--input_filepath", descriptions, "--model", "judge", "--batch")


def test_answers_to_other_descriptions_are_not_taken_for_those_to_these(ask, refused, descriptions, files):
    """A custom_id is a number: the answers of an earlier inspection would fit any other."""
    ask()
    with FaultServer() as server:
        run_batch(server, *files)
    ask()
    descriptions.write_text(descriptions.read_text().replace("zebra fact", "another zebra fact"))
    more = ["--input_filepath", descriptions, "--model", "judge", "--batch"]
    assert "was made with another descriptions_sha256" in refused("inspect", *more)
    for name in ("d_inspection.jsonl", "d_inspection_batch_settings.jsonl"):  # as one does to begin anew
        descriptions.with_name(name).unlink()
    assert f"{files[1]}: holds answers, and this inspection has asked nothing yet; delete it" in refused(
        "inspect", *more)
    assert not descriptions.with_name("d_inspection.jsonl").exists()
    files[1].unlink()
    assert "0 of 8 questions answered" in ask()[0]
