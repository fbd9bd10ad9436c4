"""Names in words: what is asked of a chat server on loopback, what is made of its answers, and that they are kept."""
import json

import numpy as np
import pytest
from fault_server import FaultServer, status

from utils.analysis.names import describe
from utils.cli import UserError
from utils.language import chat


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(chat, "BACKOFF", 0.01)
    monkeypatch.setattr("fault_server.question_of", lambda request: request["messages"][0]["content"][:20])


def last(request):
    return request["messages"][-1]["content"]


def rows():
    row = {"attribute": "color", "name": "color", "role": "color: red ... blue", "ends": [["red"], ["blue"]],
           "texts": ["red", "blue"]}
    return {"5.3": row, "5.4": row | {"name": "none", "ends": [["a dog"], ["a cat"]]}}


@pytest.mark.parametrize("text, role", [
    ('{"role": "background colour"}', "background colour"),
    ('<think>{"role": "wrong"}</think> Sure: {"role": "No role."}', "No role"),
    ('{"role": "wrong"}[/THINK]{"role": "shape"}', "shape"), ('<think>{"role": "wrong"}', None),
    ('{"role": "one two three four five six seven"}', "one two three four five"),
    ('{"role": 3}', None), ("the colour", None), ('{"role": ""}', None)])
def test_a_role_is_read_in_at_most_five_words(text, role):
    found = describe.read_role(text)
    assert found == (role and {"role": role})


def test_other_answers_are_read_and_nothing_is_guessed():
    assert describe.read_spurious('{"spurious": "Yes"}') == {"spurious": True}
    assert describe.read_spurious('{"spurious": false}') == {"spurious": False}
    assert describe.read_spurious('{"spurious": "perhaps"}') is None
    assert describe.read_texts('{"texts": ["a ", "b", "a", 3, ""]}') == {"texts": ["a", "b"]}
    assert describe.read_texts('{"texts": "a"}') is None


def test_roles_are_asked_for_once_and_kept(tmp_path):
    def answer(request):
        return json.dumps({"role": "no role" if "a dog" in last(request) else "background colour"})

    with FaultServer([status(500)], answer) as server:
        for _ in range(2):
            client = describe.client("judge", server.url)
            found = describe.roles(client, tmp_path / "a.jsonl", rows(), {"5.3": ["a wall of purple"]})
            assert found == {"5.3": "background colour", "5.4": "no role"}
        assert len(server.chats) == 3  # two questions, one of them twice, as the server failed
        asked = [last(request) for _, _, request in server.chats]
    assert any("texts of another method: a wall of purple" in text and "attribute: color" in text for text in asked)
    assert any("attribute: unclear" in text for text in asked)


def test_what_is_not_answered_is_left_out_and_asked_again(tmp_path):
    with FaultServer(answer=lambda request: "I cannot say") as server:
        client = describe.client("judge", server.url)
        assert describe.roles(client, tmp_path / "a.jsonl", rows(), {}) == {}
    with FaultServer(answer=lambda request: '{"role": "colour"}') as server:
        client = describe.client("judge", server.url)
        assert describe.roles(client, tmp_path / "a.jsonl", rows(), {}) == {"5.3": "colour", "5.4": "colour"}


def test_spurious_roles_of_a_task(tmp_path):
    with FaultServer(answer=lambda request: json.dumps(
            {"spurious": "yes" if "role: background" in last(request) else "no"})) as server:
        client = describe.client("judge", server.url)
        said = {"5.3": "background colour", "5.4": "no role", "5.5": "animals", "4.4": "background colour"}
        found = describe.spurious(client, tmp_path / "a.jsonl", "land animals against sea animals", said)
        assert found == ["5.3", "4.4"]
        assert len(server.chats) == 2
        assert all("classes: land animals against sea animals" in last(request) for _, _, request in server.chats)


def test_attributes_grow_by_new_texts_alone(tmp_path):
    with FaultServer(answer=lambda request: '{"texts": ["Blue", "green", "one", "pink"]}') as server:
        client = describe.client("judge", server.url)
        grown = describe.more_texts(client, tmp_path / "a.jsonl", {"color": ["red", "blue"], "count": ["one", "two"]},
                                    list(rows().values()))
    assert grown == {"color": ["red", "blue", "green", "pink"], "count": ["one", "two"]}


def test_without_a_key_no_server_is_asked():
    with pytest.raises(UserError, match="there is no key"):
        describe.client("judge", None)


def test_the_script_describes_and_refines(run_script, emoji_run, tmp_path):
    small = tmp_path / "a.yaml"
    small.write_text("color: [a red background, a blue background]\nobject: [an animal, a plant]\n")

    def answer(request):
        if request["messages"][0]["content"] == describe.MORE:
            return '{"texts": ["a green background", "a vehicle"]}'
        return '{"role": "background colour"}'

    with FaultServer(answer=answer) as server:
        code, out, err = run_script(
            "compute_head_names", "--model", "emojiclip", "--dataset", "imagefolder", "--input_dir", emoji_run / "out",
            "--device", "cpu", "--attributes", small, "--output_dir", tmp_path, "--describe", "--refine", 1,
            "--base_url", server.url, "--language_model", "judge")
    assert code == 0, err
    content = json.loads((tmp_path / "imagefolder_names_emojiclip.json").read_text())
    assert {row["described"] for row in content["heads"]} == {"background colour"}
    assert [entry["texts"] for entry in content["rounds"]] == [4, 6]
    assert np.isfinite([entry["share"] for entry in content["rounds"]]).all()
    assert "round 1: 6 texts" in out
