import subprocess
import sys

import pytest
from conftest import ROOT

from utils import cli
from utils.cli import UserError

SCRIPTS = ["compute_prs", "compute_text_projection", "compute_text_set_projection", "compute_ablations",
           "compute_complete_text_set", "compute_segmentations", "compute_heatmaps", "compute_head_truth", "compute_alignment",
           "compute_use_specific_heads", "compute_nearest_neighbors", "compute_linear_probe", "make_report", "train", "inference",
           "inspect", "scripts.show_results", "scripts.write_emoji", "scripts.build_emoji", "scripts.bench_prs",
           "scripts.bench_textspan", "scripts.bench_segmentation", "scripts.train_emojiclip", "scripts.measure_emojiclip",
           "scripts.export_model", "scripts.compare_descriptions", "scripts.sweep_textspan", "scripts.build_class_descriptions",
           "scripts.bench_components", "scripts.train_emojivit", "scripts.bench_scale", "compute_component_scores",
           "compute_component_ablation", "compute_retrieval", "compute_component_repair"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_teaches_and_answers_without_heavy_imports(name):
    how = ["-m", name] if "." in name else [f"{name}.py"]
    code = "import sys, runpy; sys.argv = sys.argv[1:]\ntry: runpy.{}\nexcept SystemExit: pass\n" \
           "print('HEAVY' if 'torch' in sys.modules else 'light')".format(
               f"run_module({name!r}, run_name='__main__')" if "." in name else f"run_path({how[0]!r}, run_name='__main__')")
    found = subprocess.run([sys.executable, "-c", code, name, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert found.stdout.rstrip().endswith("light"), found.stdout[-300:] + found.stderr
    assert "python" in found.stdout and "default: " in found.stdout


def parser():
    p = cli.make_parser("doc")
    p.add_argument("--model", default="a")
    p.add_argument("--batch_size", type=int, default=2)
    p.add_argument("--kind", choices=("x", "y"), default="x")
    return p


def test_a_settings_file_sets_defaults_and_the_command_line_wins(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("model: b\nbatch_size: 7\n")
    args = cli.parse(parser(), ["--config", str(path), "--batch_size", "9"])
    assert (args.model, args.batch_size, args.kind) == ("b", 9, "x")


@pytest.mark.parametrize("content, message", [
    ("modle: b", "unknown option modle; known are"), ("kind: z", "choose from x, y"), ("- a", "option: value"),
    ("a: [", "cannot be read as YAML")])
def test_a_wrong_settings_file_is_refused(tmp_path, content, message):
    path = tmp_path / "s.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        cli.parse(parser(), ["--config", str(path)])


def test_errors_of_the_command_line_are_one_line():
    with pytest.raises(UserError, match="unrecognized arguments: --modle x; see --help"):
        cli.parse(parser(), ["--modle", "x"])


def run(main, arguments=(), monkeypatch=None):
    monkeypatch.setattr(sys, "argv", ["x.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.run(main, parser())
    return stop.value.code


def test_exit_codes(monkeypatch, capsys):
    def wrong(args):
        raise UserError("this\nis wrong")

    def full(args):
        raise OSError(28, "No space left on device", "x.npy")

    def stopped(args):
        raise KeyboardInterrupt

    def broken(args):
        raise RuntimeError("a defect of ours")

    assert run(wrong, monkeypatch=monkeypatch) == 2
    assert capsys.readouterr().err == "error: this is wrong\n"
    assert run(full, monkeypatch=monkeypatch) == 2
    assert capsys.readouterr().err == "error: x.npy: No space left on device; free some space or choose another --output_dir\n"
    assert run(stopped, monkeypatch=monkeypatch) == 130
    with pytest.raises(RuntimeError):  # our own defects keep their traceback
        cli.run(broken, parser())
    monkeypatch.setattr(sys, "argv", ["x.py", "--debug"])
    with pytest.raises(UserError):
        cli.run(wrong, parser())
