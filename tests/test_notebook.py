"""The notebook runs from top to bottom, and says what it says in its file."""
import json
import re
import sys

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

DEMO = ROOT / "demo.ipynb"


def printed(notebook) -> str:
    return "".join(output.text for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == "stream")


def test_the_notebook_runs_and_its_outputs_are_of_today(tmp_path, monkeypatch):
    # A kernel of this very interpreter, whatever kernels there are on the machine; no file outside tmp_path.
    kernel = tmp_path / "kernels" / "this" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps({"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                                  "display_name": "this", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    notebook = nbformat.read(DEMO, as_version=4)
    before = printed(notebook)
    NotebookClient(notebook, timeout=300, kernel_name="this", resources={"metadata": {"path": str(ROOT)}}).execute()
    after = printed(notebook)
    number = r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?"
    assert re.sub(number, "#", after) == re.sub(number, "#", before)
    numbers = [[float(value) for value in re.findall(number, text)] for text in (after, before)]
    assert numbers[0] == pytest.approx(numbers[1], abs=2e-3, rel=0.02)
    assert sum("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])) == 4


def test_the_notebook_is_small_and_tells_nothing_of_the_machine():
    assert DEMO.stat().st_size < 300_000
    notebook = nbformat.read(DEMO, as_version=4)
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"] == list(range(1, 9))
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)
    text = nbformat.writes(notebook)
    assert not re.search(r"/(home|work|tmp|root|usr)/|site-packages|0x[0-9a-f]{6}", text)
    assert "stderr" not in text and '"output_type": "error"' not in text


def test_the_commands_in_the_notebook_are_understood():
    import shlex

    from conftest import load_script

    from utils import script

    text = "\n".join(cell.source for cell in nbformat.read(DEMO, as_version=4).cells)
    commands = re.findall(r"(?m)^python (\w+)\.py (.*)$", text)
    assert len(commands) == 2
    for name, rest in commands:
        script.parse(load_script(name).get_args_parser(), shlex.split(rest))
