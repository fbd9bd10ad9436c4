import json

import pytest
import yaml
from builders import ROOT
from fault_server import GOOD

from utils.cli import UserError
from utils.language import answers

SHEET = yaml.safe_load((ROOT / "configs/inspection.yaml").read_text())


def test_the_schemas_accept_what_the_examples_answer():
    jsonschema = pytest.importorskip("jsonschema")
    for question in answers.QUESTIONS:
        schema = answers.response_format(SHEET, question)["json_schema"]["schema"]
        jsonschema.validate(SHEET["questions"][question]["example"]["answer"], schema)
        jsonschema.validate(json.loads(GOOD[question]), schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"increases_knowledge": "maybe", "attributes": ["charm"], "spurious": []}, schema)


def test_instructions_name_every_attribute():
    text = answers.messages(SHEET, "attributes", {"concept": "a", "description": "b"})[0]["content"]
    assert all(f"{name} (" in text for kind in answers.KINDS for name in SHEET[kind])
    assert "{" not in text.replace('{"attributes": [names], "spurious": [names]}', "")


@pytest.mark.parametrize("change, message", [
    ({"message": None}, "wrong place"), ({"visual": {"Colour tone": "x"}}, "'Colour tone' cannot be a name"),
    ({"spurious": {"color": "x"}}, "'color' cannot be a name"), ({"questions": {"knowledge": {}}}, "wrong place"),
    ({"questions": SHEET["questions"] | {"attributes": SHEET["questions"]["knowledge"]}}, "the example's answer to attributes")])
def test_a_sheet_that_is_not_one_is_refused(tmp_path, change, message):
    path = tmp_path / "sheet.yaml"
    path.write_text(yaml.safe_dump(SHEET | change))
    with pytest.raises(UserError, match=message):
        answers.read_sheet(str(path))


@pytest.mark.parametrize("text, verdict", [
    ('{"explanation": "a", "increases_knowledge": "yes"}', "yes"), ('{"increases_knowledge": "No."}', "no"),
    ('Sure:\n```json\n{"explanation": "a",\n "increases_knowledge": "YES",}\n```\nDone {ok}', "yes"),
    ("{'explanation': 'it\\'s a \"thing\"', 'increases_knowledge': 'no'}", None),
    ("{'explanation': 'it is a \"thing\"', 'increases_knowledge': 'no'}", "no"),
    ('{"explanation": "two\nlines", "increases_knowledge": true}', "yes"), ('{"increases_knowledge": False}', "no"),
    ('{"explanation": "a } brace {", "increases_knowledge": "no"} and {"increases_knowledge": "yes"}', "no"),
    ('The format {"explanation": "..."} asks for: {"Increases Knowledge": "no"}', "no"),
    ('{"answer": {"increases_knowledge": "yes"}}', "yes"), ("{explanation: fine, increases_knowledge: yes}", "yes"),
    ('{"explanation": ["a"], "increases_knowledge": "yes"}', "yes"),
    ('{"increases_knowledge": "yes"', None), ('{"increases_knowledge": "yes or no"}', None), ('{"increases_knowledge": 1}', None),
    ('{"increases_knowledge": null}', None), ("yes", None), ("", None), ("{" * 5000, None), ('{"a":' * 3000, None), ("}{", None),
    ("{!!timestamp a: b}", None), ("{a: !!bool x}", None), ("{[1]: 2}", None), ("{&a [*a]: 1}", None)])
def test_reading_whether_it_increases_knowledge(text, verdict):
    found = answers.read_answer(text, "knowledge", SHEET)
    assert (found and found["increases_knowledge"]) == verdict
    assert found is None or isinstance(found["explanation"], str)


@pytest.mark.parametrize("text, expected", [
    ('{"attributes": ["color", "use"], "spurious": ["watermark"]}', (["color", "use"], ["watermark"], [])),
    ('{"attributes": ["Color", "pattern or texture", "color", "charm"], "spurious": ["Photo-Wording", "color"]}',
     (["color", "pattern_or_texture"], ["photo_wording"], ["charm", "color"])),
    ('{"attributes": "color, shape", "spurious": ""}', (["color", "shape"], [], [])),
    ("{'attributes': ['size',], 'spurious': [],}", (["size"], [], [])),
    ('{"attributes": ["watermark"], "spurious": []}', ([], [], ["watermark"])),
    ('{"attributes": ["color"]}', None), ('{"attributes": [1], "spurious": []}', None),
    ('{"attributes": {}, "spurious": []}', None),
    ('{"attributes": null, "spurious": []}', None), ('{"attributes": ["color"], "spurious": ["water', None)])
def test_reading_attributes(text, expected):
    found = answers.read_answer(text, "attributes", SHEET)
    assert (found and tuple(found.values())) == expected


@pytest.mark.parametrize("content", ["{}", "[]", '{"concept": 1, "question": "a", "description": "b"}', "[[\"a\"]]", "text", "\n",
                                     '{"concept": "a", "description": "b"}', "\xff"])
def test_other_files_are_refused_with_what_is_expected(tmp_path, content):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match="line 1: .* concept, question, description, seed, reward"):
        answers.read_descriptions(str(path))


def test_a_record_is_on_disk_at_once_and_half_a_line_is_dropped(tmp_path):
    path, entry = tmp_path / "new" / "r.jsonl", {"concept": "größe\u2028梟", "description": "half \ud83d"}
    header = {"inspector": "judge", "vlm_name": "clip-a", "dataset": "birds", "descriptions": 2,
              **{kind: list(SHEET[kind]) for kind in answers.KINDS}}
    with answers.Record(path, header):
        pass
    assert not path.exists()  # nothing was answered
    with answers.Record(path, header) as record:
        for text in ("no", "yes"):
            record.append(0, "knowledge", entry, {"raw": [text], "parsed": {}, "status": "answered"})
            assert answers.read_record(path) == (header, record.answers)
        with pytest.raises(UserError, match="another inspect.py writes to it"):
            answers.Record(path, header)
    assert record.answers[0, "knowledge"]["raw"] == ["yes"]  # the later line counts
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with answers.Record(path, header) as record:
        assert record.answers[0, "knowledge"]["raw"] == ["no"]
        record.append(0, "knowledge", entry, {"raw": ["yes"], "parsed": {}, "status": "answered"})
    assert path.read_bytes() == whole
    with pytest.raises(UserError, match=r"made with another dataset \(birds, now dogs\)"):
        answers.read_record(path, header | {"dataset": "dogs"})
