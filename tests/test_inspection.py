"""What an inspector is asked, what its answers mean, and the files that keep them."""
import json

import pytest
import yaml
from builders import ROOT
from fault_server import GOOD

from utils.cli import UserError
from utils.ex2 import inspection
from utils.language import jsonl

SHEET = yaml.safe_load((ROOT / "configs/inspection.yaml").read_text())


def test_the_schemas_accept_what_the_examples_answer():
    jsonschema = pytest.importorskip("jsonschema")
    for question in inspection.QUESTIONS:
        schema = inspection.response_format(SHEET, question)["json_schema"]["schema"]
        jsonschema.validate(SHEET["questions"][question]["example"]["answer"], schema)
        jsonschema.validate(json.loads(GOOD[question]), schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"increases_knowledge": "maybe", "attributes": ["charm"], "spurious": []}, schema)


def test_instructions_name_every_attribute():
    text = inspection.messages(SHEET, "attributes", {"concept": "a", "description": "b"})[0]["content"]
    assert all(f"{name} (" in text for kind in inspection.KINDS for name in SHEET[kind])
    assert "{" not in text.replace('{"attributes": [names], "spurious": [names]}', "")


@pytest.mark.parametrize("change, message", [
    ({"message": None}, "wrong place"), ({"visual": {"Colour tone": "x"}}, "'Colour tone' cannot be a name"),
    ({"spurious": {"color": "x"}}, "'color' cannot be a name"), ({"questions": {"knowledge": {}}}, "wrong place"),
    ({"questions": SHEET["questions"] | {"attributes": SHEET["questions"]["knowledge"]}},
     "the example's answer to attributes")])
def test_a_sheet_that_is_not_one_is_refused(tmp_path, change, message):
    path = tmp_path / "sheet.yaml"
    path.write_text(yaml.safe_dump(SHEET | change))
    with pytest.raises(UserError, match=message):
        inspection.read_sheet(str(path))


@pytest.mark.parametrize("text, verdict", [
    ('{"explanation": "a", "increases_knowledge": "yes"}', "yes"), ('{"increases_knowledge": "No."}', "no"),
    ('Sure:\n```json\n{"explanation": "a",\n "increases_knowledge": "YES",}\n```\nDone {ok}', "yes"),
    ("{'explanation': 'it\\'s a \"thing\"', 'increases_knowledge': 'no'}", None),
    ("{'explanation': 'it is a \"thing\"', 'increases_knowledge': 'no'}", "no"),
    ('{"explanation": "two\nlines", "increases_knowledge": true}', "yes"), ('{"increases_knowledge": False}', "no"),
    ('{"explanation": "a } brace {", "increases_knowledge": "no"} and {"increases_knowledge": "yes"}', "yes"),
    ('{"increases_knowledge": "no"}, or else {"increases_knowledge": "maybe"}', "no"),
    ('{"increases_knowledge": "no", "draft": {"increases_knowledge": "yes"}}', "no"),
    ('{' * 200 + '{"increases_knowledge": "no"}', "no"), ('{"increases_knowledge": "no"}' + '{' * 200, "no"),
    ('<think>{"increases_knowledge": "yes"}? Rather not.</think>{"increases_knowledge": "no"}', "no"),
    ('{"increases_knowledge": "yes"}?\n</think>\n\n{"increases_knowledge": "no"}', "no"),
    ('[THINK]{"increases_knowledge": "yes"}[/THINK] {"increases_knowledge": "no"}', "no"),
    ('<Thinking>\n{"increases_knowledge": "yes"}\n</Thinking>', None), ('<think>{"increases_knowledge": "yes"}', None),
    ('{"explanation": "no <think> here", "increases_knowledge": "yes"}', "yes"),
    ('The format {"explanation": "..."} asks for: {"Increases Knowledge": "no"}', "no"),
    ('{"answer": {"increases_knowledge": "yes"}}', "yes"), ("{explanation: fine, increases_knowledge: yes}", "yes"),
    ('{"explanation": ["a"], "increases_knowledge": "yes"}', "yes"),
    ('{"increases_knowledge": "yes"', None), ('{"increases_knowledge": "yes or no"}', None),
    ('{"increases_knowledge": 1}', None), ('{"increases_knowledge": null}', None), ("yes", None), ("", None),
    ("{" * 5000, None), ('{"a":' * 3000, None), ("}{", None),
    ("{!!timestamp a: b}", None), ("{a: !!bool x}", None), ("{[1]: 2}", None), ("{&a [*a]: 1}", None)])
def test_reading_whether_it_increases_knowledge(text, verdict):
    found = inspection.read_answer(text, "knowledge", SHEET)
    assert (found and found["increases_knowledge"]) == verdict
    assert found is None or isinstance(found["explanation"], str)


@pytest.mark.parametrize("text, expected", [
    ('{"attributes": ["color", "use"], "spurious": ["watermark"]}', (["color", "use"], ["watermark"], [])),
    ('{"attributes": ["Color", "pattern or texture", "color", "charm"], "spurious": ["Photo-Wording", "color"]}',
     (["color", "pattern_or_texture"], ["photo_wording"], ["charm", "color"])),
    ('{"attributes": "color, shape", "spurious": ""}', (["color", "shape"], [], [])),
    ("{'attributes': ['size',], 'spurious': [],}", (["size"], [], [])),
    ('{"attributes": ["use"], "spurious": []}</think>{"attributes": ["size"], "spurious": []}', (["size"], [], [])),
    ('{"attributes": ["watermark"], "spurious": []}', ([], [], ["watermark"])),
    ('{"attributes": ["color"]}', None), ('{"attributes": [1], "spurious": []}', None),
    ('{"attributes": {}, "spurious": []}', None),
    ('{"attributes": null, "spurious": []}', None), ('{"attributes": ["color"], "spurious": ["water', None)])
def test_reading_attributes(text, expected):
    found = inspection.read_answer(text, "attributes", SHEET)
    assert (found and tuple(found.values())) == expected


def test_answers_are_on_disk_at_once_and_half_a_line_is_dropped(tmp_path):
    path = tmp_path / "new" / "r.jsonl"
    about = {"index": 0, "question": "knowledge", "concept": "größe\u2028梟", "description": "half \ud83d",
             "parsed": {}, "status": "answered"}
    header = {"inspector": "judge", "vlm_name": "clip-a", "dataset": "birds", "descriptions": 2,
              **{kind: list(SHEET[kind]) for kind in inspection.KINDS}}
    with jsonl.Record(path, header):
        pass
    assert not path.exists()  # nothing was answered
    with jsonl.Record(path, header) as record:
        for text in ("no", "yes"):
            record.append(about | {"raw": [text]})
            found, answers = inspection.read_answers(path)
            assert found == header
            assert answers == {(0, "knowledge"): about | {"raw": [text]}}  # the later line counts
        with pytest.raises(UserError, match="another run writes to it"):
            jsonl.Record(path, header)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with jsonl.Record(path, header) as record:
        assert record.lines == [about | {"raw": ["no"]}]
        record.append(about | {"raw": ["yes"]})
    assert path.read_bytes() == whole
    with pytest.raises(UserError, match=r"made with another dataset \(birds, now dogs\)"):
        inspection.read_answers(path, header | {"dataset": "dogs"})


def test_a_file_that_was_cut_off_in_its_first_line_is_begun_again(tmp_path):
    path, header = tmp_path / "r.jsonl", {"inspector": "größe"}
    with jsonl.Record(path, header) as record:
        record.append("first")
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with jsonl.Record(path, header) as record:
            assert record.lines == []
            record.append("first")
        assert path.read_bytes() == whole


@pytest.mark.parametrize("content, message", [
    (b"not ours\n", "another kind"), (b"\xff\n", "another kind"), (b'{"header": 1}', "another kind"),
    (b"[1]\n{}\n", "another kind"), (b'{"header": {"a": 1}}\nnot ours\n', "line 2: damaged"),
    (b'{"header": {"a": 2}}\n', r"another a \(2, now 1\)"),
    (b'{"header": {"a": 1, "b": 1}}\n', "another b")])
def test_what_a_run_cannot_go_on_with_is_left_alone(tmp_path, content, message):
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path}.*{message}"):
        jsonl.Record(path, {"a": 1})
    assert path.read_bytes() == content
