"""Figures in the pages are those of docs/results.json, which one command writes."""
import json
import re
import sys

import pytest
from builders import ROOT, run_command

RESULTS = ROOT / "docs" / "results.json"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARK = re.compile(r"<!-- f: (?P<key>[^>]+?) -->(?P<number>-?\d[\d,]*(?:\.\d+)?)")
ALL_MARKED = ("decomposition.md",)  # every percentage has a mark
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def wrong(text: str, results: dict[str, float]) -> list[str]:
    """Marks of a page whose number is another than its figure, at the digits shown."""
    found = []
    for mark in MARK.finditer(CODE.sub("", text)):
        number, key = mark["number"].replace(",", ""), mark["key"]
        digits = len(number.partition(".")[2])
        if key not in results or abs(results[key] - float(number)) > 0.5 * 10 ** -digits + 1e-9:
            found.append(f"{key}: {number}, and results.json has {results.get(key)}")
    return found


def unmarked(text: str) -> list[str]:
    """Numbers before a % sign that have no mark."""
    return re.findall(r"-?\d[\d.,]*(?= ?%)", MARK.sub("", CODE.sub("", text)))


def test_a_wrong_digit_and_a_missing_mark_are_seen():
    results = {"a.b.c": 73.75}
    assert wrong("<!-- f: a.b.c -->73.8% and **<!-- f: a.b.c -->74**", results) == []
    assert wrong("<!-- f: a.b.c -->73.6% `<!-- f: a.b.c -->`", results) == ["a.b.c: 73.6, and results.json has 73.75"]
    assert wrong("<!-- f: a.b -->73.8", results) == ["a.b: 73.8, and results.json has None"]
    assert unmarked("<!-- f: a.b.c -->73.8% and 12.5% of `5%`") == ["12.5"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_figures_of_a_page_are_those_of_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert wrong(text, json.loads(RESULTS.read_text(encoding="utf-8"))) == []
    if page.name in ALL_MARKED:
        assert unmarked(text) == []


@pytest.mark.long
def test_the_cheapest_table_comes_out_as_it_is_committed(tmp_path):
    run_command([sys.executable, "-m", "scripts.reproduce", "--embedded", "ablation", "--output_dir", tmp_path / "out",
                 "--docs", tmp_path], ROOT)
    found = json.loads((tmp_path / "results.json").read_text())
    committed = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert len(found) == 6
    # Two images of 2,080 may fall otherwise on another processor.
    assert found == pytest.approx({key: committed[key] for key in found}, abs=0.1)
