"""Figures in the pages are those of docs/results.json, which one command writes."""
import json
import re
import sys

import pytest
from builders import ROOT, run_command

RESULTS = ROOT / "docs" / "results.json"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARK = re.compile(r"<!-- f: (?P<key>[^>]+?) -->(?P<number>-?\d[\d,]*(?:\.\d+)?)")
ELSEWHERE = "-"           # the mark of a figure that the page's own command prints, and results.json does not hold
# Tables that take minutes together, and how far a figure may move: an image or two fall otherwise on another processor.
CHEAP = {"ablation": 0.1, "waterbirds": 1, "sith": 1, "naming": 0.2, "ex2_truth": 0.1}
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def wrong(text: str, results: dict[str, float]) -> list[str]:
    """Marks of a page whose number is another than its figure, at the digits shown."""
    found = []
    for mark in MARK.finditer(CODE.sub("", text)):
        number, key = mark["number"].replace(",", ""), mark["key"]
        if key == ELSEWHERE:
            continue
        digits = len(number.partition(".")[2])
        if key not in results or abs(results[key] - float(number)) > 0.5 * 10 ** -digits + 1e-9:
            found.append(f"{key}: {number}, and results.json has {results.get(key)}")
    return found


def unmarked(text: str) -> list[str]:
    """Numbers before a % sign that have no mark; the level of an interval needs none."""
    return re.findall(r"-?\d[\d.,]*(?= ?%)(?!%\s+interval)", MARK.sub("", CODE.sub("", text)))


def test_a_wrong_digit_and_a_missing_mark_are_seen():
    results = {"a.b.c": 73.75}
    assert wrong("<!-- f: a.b.c -->73.8% and **<!-- f: a.b.c -->74**", results) == []
    assert wrong("<!-- f: a.b.c -->73.6% `<!-- f: a.b.c -->`", results) == ["a.b.c: 73.6, and results.json has 73.75"]
    assert wrong("<!-- f: a.b -->73.8", results) == ["a.b: 73.8, and results.json has None"]
    assert unmarked("<!-- f: a.b.c -->73.8% and 12.5% of `5%`") == ["12.5"]
    assert wrong("<!-- f: - -->12.5%", results) == unmarked("<!-- f: - -->12.5% with its 95% interval") == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_figures_of_a_page_are_those_of_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert wrong(text, json.loads(RESULTS.read_text(encoding="utf-8"))) == []
    assert unmarked(text) == []


@pytest.mark.long
def test_cheap_tables_come_out_as_they_are_committed(tmp_path):
    run_command([sys.executable, "-m", "scripts.reproduce", "--embedded", *CHEAP, "--output_dir", tmp_path / "out",
                 "--docs", tmp_path], ROOT)
    found = json.loads((tmp_path / "results.json").read_text())
    committed = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert {key.partition(".")[0] for key in found} == set(CHEAP)
    for key, value in found.items():
        assert value == pytest.approx(committed[key], abs=CHEAP[key.partition(".")[0]]), key
