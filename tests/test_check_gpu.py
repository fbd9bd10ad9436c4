"""scripts/check_gpu.py in its small form, on the CPU."""
import json

import pytest
import torch
from builders import ROOT

from scripts import check_gpu, gpu_checks


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_the_small_form_passes_and_is_kept(run_script, tmp_path):
    code, out, err = run_script("scripts.check_gpu", "--cpu", "--output", tmp_path / "gpu.json")
    assert code == 0, out + err
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["failed"] == {}
    assert list(found["seconds"]) == list(check_gpu.CHECKS)
    assert {row["check"] for row in found["rows"]} == set(check_gpu.CHECKS) - {"kernels", "compiled"}
    assert {entry["what"] for entry in found["missing"]} >= {"kernels of attention", "a step of train.py in 8 bit"}
    assert found["profile"]["heads"][0]["ms"] > 0
    assert all(line in out for line in ("sums      emojiclip, bfloat16, fast path", "all passed -> "))


def test_a_check_that_fails_is_reported_and_the_others_go_on(run_script, tmp_path, monkeypatch):
    def broken(machine, report):
        raise RuntimeError("no kernel\nfor this")

    def absent(machine, report):
        raise ImportError("No module named 'other'")

    monkeypatch.setattr(gpu_checks, "sums", broken)
    monkeypatch.setattr(gpu_checks, "compact", absent)
    path = tmp_path / "gpu.json"
    code, out, err = run_script("scripts.check_gpu", "--cpu", "--only", "sums", "compact", "textspan", "--output", path)
    assert (code, err) == (2, f"error: failed: sums; the reasons stand above and in {path}\n")
    assert "sums      FAILED: RuntimeError: no kernel for this\n" in out
    assert "missing   compact: No module named 'other'\n" in out
    assert [row["check"] for row in json.loads(path.read_text())["rows"]] == ["textspan", "textspan"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_small_form_is_named(refused):
    assert refused("scripts.check_gpu") == "error: there is no CUDA GPU here; --cpu runs the small form on the CPU"
