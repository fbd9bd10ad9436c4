"""The notebooks run from top to bottom, and say what they say in their files."""
import json
import re
import shlex
import sys

import nbformat
import pytest
from builders import ROOT, load_script
from nbclient import NotebookClient

from utils import cli

NOTEBOOKS = {"demo": (8, 2), "nns": (3, 3)}  # numbers of code cells, and of commands in the text


def printed(notebook) -> str:
    return "".join(output.text for cell in notebook.cells for output in cell.get("outputs", [])
                   if output.output_type == "stream")


def pictures(notebook) -> int:
    return sum("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Run a notebook: returns it, and what it printed before and now."""
    # A kernel of this very interpreter, whatever kernels there are on the machine; no file outside tmp_path.
    kernel = tmp_path / "kernels" / "this" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps({"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                                  "display_name": "this", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))

    def call(name: str):
        notebook = nbformat.read(ROOT / f"{name}.ipynb", as_version=4)
        before = printed(notebook)
        NotebookClient(notebook, timeout=300, kernel_name="this", resources={"metadata": {"path": str(ROOT)}}).execute()
        return notebook, before, printed(notebook)

    return call


def test_the_demo_runs_and_its_outputs_are_of_today(execute):
    notebook, before, after = execute("demo")
    number = r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?"
    assert re.sub(number, "#", after) == re.sub(number, "#", before)
    numbers = [[float(value) for value in re.findall(number, text)] for text in (after, before)]
    assert numbers[0] == pytest.approx(numbers[1], abs=2e-3, rel=0.02)
    assert pictures(notebook) == 4


def shares(text: str) -> dict[str, list[float]]:
    """The rows of the table in nns.ipynb."""
    rows = re.findall(r"(?m)^([a-z ]+?) +((?:\d+\.\d *){4})$", text)
    return {name: [float(value) for value in values.split()] for name, values in rows}


def test_the_neighbours_run_and_their_outputs_are_of_today(execute, tmp_path, monkeypatch):
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "out"))
    notebook, before, after = execute("nns")
    assert re.sub(r"\d+\.\d", "#", after) == re.sub(r"\d+\.\d", "#", before)
    found, known = shares(after), shares(before)
    assert list(found) == list(known) == ["whole", "color", "object", "any other scene"]
    for name, values in found.items():
        assert values == pytest.approx(known[name], abs=0.3), name
    # What its text says of the shares of object, style, count and colour.
    whole, color, by_object, chance = found.values()
    assert color[3] > 99 > whole[3] > by_object[3] > 2 * chance[3]
    assert color[0] < 2
    assert color[2] > 1.3 * chance[2]
    assert whole[0] > by_object[0] > 50 * 100 * 7 / 2079  # 7 of the 2,079 others show the same object
    assert pictures(notebook) == 1
    assert (tmp_path / "out" / "emoji_neighbors_emojiclip.json").is_file()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_small_and_tells_nothing_of_the_machine(name):
    path = ROOT / f"{name}.ipynb"
    assert path.stat().st_size < 300_000
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in notebook.cells
            if cell.cell_type == "code"] == list(range(1, NOTEBOOKS[name][0] + 1))
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)
    text = nbformat.writes(notebook)
    assert not re.search(r"/(home|work|tmp|root|usr)/|site-packages|0x[0-9a-f]{6}", text)
    assert "stderr" not in text.replace("done.stderr", "")
    assert '"output_type": "error"' not in text


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_commands_in_a_notebook_are_understood(name):
    text = "\n".join(cell.source for cell in nbformat.read(ROOT / f"{name}.ipynb", as_version=4).cells)
    commands = re.findall(r"(?m)^python (\w+)\.py (.*)$", text)
    assert len(commands) == NOTEBOOKS[name][1]
    for script_name, rest in commands:
        cli.parse(load_script(script_name).get_args_parser(), shlex.split(rest))
