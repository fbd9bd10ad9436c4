"""scripts/sweep_textspan.py: TextSpan's accuracy for several numbers of texts and several pools at once."""
import csv
import json
import os
import shutil
import subprocess
import sys

import literal
import numpy as np
import pytest
from builders import ROOT, call_script, head_terms, opened, unit_texts
from PIL import Image

from utils.analysis import textspan
from utils.plots import charts

NAME = "imagefolder_textspan_sweep_emojiclip"
EPS = np.finfo(np.float32).eps


def random_run(images, layers=3, heads=2, width=24, inner=6):
    """Arrays of a run, its classifier, and two pools."""
    rng = np.random.default_rng(images)
    attn = np.stack([np.stack([head_terms(images, width, inner, seed=10 * i + j) for j in range(heads)], 1)
                     for i in range(layers)], 1)
    run = {"attn": attn, "mlp": rng.normal(size=(images, layers + 1, width)).astype(np.float32) * 0.1,
           "labels": rng.integers(0, 7, images)}
    return run, rng.normal(size=(width, 7)).astype(np.float32), {"small": unit_texts(40, width, 1),
                                                                 "large": unit_texts(90, width, 2)}


def percent_right(representations, classifier, labels):
    return 100 * np.mean([int(np.argmax(row @ classifier)) == label for row, label in zip(representations, labels)])


def literal_row(run, classifier, texts, last, number):
    """Accuracy, distinct texts and mean explained share, by the literal algorithm run anew for this number of texts."""
    layers, heads = run["attn"].shape[1:3]
    x = run["mlp"].astype(np.float64).sum(1) + run["attn"][:, :layers - last].astype(np.float64).mean(0).sum((0, 1))
    distinct, explained = set(), []
    for layer in range(layers - last, layers):
        for head in range(heads):
            picks, reconstruction, shares, _ = literal.text_span(run["attn"][:, layer, head], texts, number, 80, EPS)
            x = x + reconstruction
            distinct |= set(picks)
            explained.append(sum(shares))
    return percent_right(x, classifier, run["labels"]), len(distinct), np.mean(explained)


@pytest.mark.parametrize("images, last", [(200, 2), (200, 3), (199, 1)])
def test_rows_equal_the_literal_algorithm_for_every_pool_and_number(images, last, monkeypatch):
    monkeypatch.setattr("utils.runs.files.blocks.__defaults__", (33, "images"))  # several blocks, the last one partial
    run, classifier, pools = random_run(images)
    without, rows = textspan.sweep(opened(run), classifier, pools, last, [1, 2, 5], 80)
    assert [(row["pool"], row["texts_per_head"]) for row in rows] == [(name, n) for name in pools for n in (1, 2, 5)]
    for row in rows:
        accuracy, distinct, explained = literal_row(run, classifier, pools[row["pool"]], last, row["texts_per_head"])
        assert row["accuracy"] == pytest.approx(accuracy)
        assert row["number_of_texts"] == distinct
        assert row["explained"] == pytest.approx(explained, abs=1e-6)
    assert len({row["accuracy"] for row in rows}) > 2  # otherwise the comparison says little
    attn, mlp = run["attn"].astype(np.float64), run["mlp"].astype(np.float64).sum(1)
    ablated = mlp + attn[:, :3 - last].mean(0).sum((0, 1)) + attn[:, 3 - last:].sum((1, 2))
    assert without == {"whole_model": pytest.approx(percent_right(mlp + attn.sum((1, 2)), classifier, run["labels"])),
                       "last_layers": pytest.approx(percent_right(ablated, classifier, run["labels"]))}


def test_texts_that_span_all_a_head_writes_change_nothing():
    run, classifier, pools = random_run(150, inner=3)
    without, rows = textspan.sweep(opened(run), classifier, pools, 2, [2, 10, 20], 80)
    for row in rows:
        if row["texts_per_head"] > 2:
            assert row["accuracy"] == pytest.approx(without["last_layers"])
            assert row["explained"] == pytest.approx(1, abs=1e-5)
    assert rows[0]["explained"] < 0.999
    assert rows[1]["number_of_texts"] == rows[2]["number_of_texts"]


def test_a_single_image_has_nothing_to_explain():
    run, classifier, pools = random_run(1)
    without, rows = textspan.sweep(opened(run), classifier, pools, 2, [1, 3], 80)
    assert {row["number_of_texts"] for row in rows} == {0}
    assert {row["accuracy"] for row in rows} == {without["whole_model"]} == {without["last_layers"]}


def test_the_arrays_are_read_once_for_all_pools_and_numbers(monkeypatch):
    run, classifier, pools = random_run(100)
    run, calls = opened(run), []
    own = run.moments
    monkeypatch.setattr(run, "moments", lambda columns: calls.append(columns) or own(columns))
    textspan.sweep(run, classifier, pools, 2, [1, 2, 5], 80)
    assert calls == [run.layer(layer) for layer in run.layers[-2:]]


@pytest.fixture(scope="module")
def two_pools(emoji_run, tmp_path_factory):
    """The session's run with a second pool of 30 texts."""
    folder = tmp_path_factory.mktemp("sweep") / "run"
    shutil.copytree(emoji_run, folder)
    lines = (folder / "texts" / "pool.txt").read_text().splitlines()
    (folder / "texts" / "few.txt").write_text("\n".join(lines[::7][:30]) + "\n")
    call_script("compute_text_set_projection", "--model", "emojiclip", "--device", "cpu", "--data_path",
                folder / "texts" / "few.txt", "--output_dir", folder / "out")
    return folder


def arguments(run, *more):
    return ("--model", "emojiclip", "--dataset", "imagefolder", "--input_dir", run / "out", "--text_dir", run / "texts",
            *more)


def test_every_accuracy_is_the_one_that_textspan_reports(run_script, two_pools, tmp_path):
    code, out, err = run_script("scripts.sweep_textspan", *arguments(
        two_pools, "--output_dir", tmp_path / "new", "--pools", "pool", "few", "--num_of_last_layers", 2,
        "--texts_per_head", 20, 3, 8, 3))
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [f"{NAME}.{kind}"
                                                                          for kind in ("csv", "json", "png")]
    with (tmp_path / "new" / f"{NAME}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["pool", "texts_per_head", "accuracy", "number_of_texts", "explained"]
    numbered = [(row["pool"], row["texts_per_head"]) for row in rows]
    assert numbered == [(name, number) for name in ("pool", "few") for number in ("3", "8", "20")]
    for row in rows:
        code, _, err = run_script("compute_complete_text_set", *arguments(
            two_pools, "--output_dir", tmp_path, "--text_descriptions", row["pool"], "--num_of_last_layers", 2,
            "--texts_per_head", row["texts_per_head"]))
        assert code == 0, err
        path = tmp_path / f"imagefolder_completeness_{row['pool']}_top_{row['texts_per_head']}_heads_emojiclip.json"
        expected = json.loads(path.read_text())
        assert float(row["accuracy"]) == pytest.approx(expected["accuracy"])
        assert int(row["number_of_texts"]) == expected["number_of_texts"]
        assert float(row["explained"]) == pytest.approx(np.mean([head["explained"] for head in expected["heads"]]),
                                                        abs=1e-9)
        assert f"{expected['accuracy']:.2f}" in out
    assert len({row["accuracy"] for row in rows}) > 3

    found = json.loads((tmp_path / "new" / f"{NAME}.json").read_text())
    assert [{name: str(value) for name, value in row.items()} for row in found["rows"]] == rows
    run_script("compute_ablations", "--model", "emojiclip", "--dataset", "imagefolder", "--input_dir",
               two_pools / "out",
               "--figures_dir", tmp_path)
    ablations = json.loads((tmp_path / "imagefolder_ablations_emojiclip.json").read_text())
    assert found["whole_model"] == pytest.approx(ablations["baseline"])
    assert found["last_layers"] == pytest.approx(ablations["attention_ablated"][4])
    assert (found["images"], found["num_of_last_layers"], found["w_ov_rank"]) == (130, 2, 80)
    picture = Image.open(tmp_path / "new" / f"{NAME}.png")
    assert picture.format == "PNG"
    assert picture.width > 600


def test_the_picture_has_a_line_for_each_pool_and_each_reference(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(charts, "save", lambda figure, path: drawn.append(figure))
    rows = [{"pool": name, "texts_per_head": n, "accuracy": a} for name, n, a in (
        ("a", 10, 50.0), ("a", 60, 60.0), ("b", 10, 40.0), ("b", 60, 65.0))]
    charts.textspan_sweep(rows, {"whole_model": 70.0, "last_layers": 66.0}, "title", tmp_path / "x.png")
    lines = {line.get_label(): line for line in drawn[0].axes[0].get_lines()}
    assert lines["a"].get_xydata().tolist() == [[10, 50], [60, 60]]
    assert lines["b"].get_xydata().tolist() == [[10, 40], [60, 65]]
    whole = lines["whole model: 70.0%"]
    assert whole.get_linestyle() == "--"
    assert set(whole.get_ydata()) == {70.0}
    assert len(lines) == 4


def test_a_pool_that_was_not_embedded_is_one_line(refused, two_pools, tmp_path):
    (tmp_path / "new.txt").write_text("a\nb\n")
    line = refused("scripts.sweep_textspan", *arguments(two_pools), "--text_dir", tmp_path, "--pools", "new",
                   "--texts_per_head", 1)
    assert "make it with: python compute_text_set_projection.py" in line


@pytest.mark.skipif(not sys.prefix.startswith(str(ROOT)),
                    reason="not run from .venv: sweep_textspan.sh was not covered")
def test_the_runner_makes_only_what_is_missing(two_pools, tmp_path):
    folder = tmp_path / "with blanks"
    shutil.copytree(two_pools, folder)
    (folder / "out" / "few_emojiclip.json").unlink()

    settings = {"DATASET": "imagefolder", "DATA_PATH": str(folder / "images"), "OUTPUT_DIR": str(folder / "out"),
                "TEXT_DIR": str(folder / "texts"), "POOLS": "pool few", "TEXTS": "2 4", "LAST_LAYERS": "1",
                "DEVICE": "cpu"}

    def sweep(**changes):
        """The run, and the commands it started."""
        done = subprocess.run(["bash", ROOT / "scripts" / "sweep_textspan.sh"], cwd=tmp_path, capture_output=True,
                              text=True,
                              timeout=300, env=os.environ | settings | changes)
        return done, [line for line in done.stderr.splitlines() if line.startswith("+ ")]

    done, commands = sweep()
    assert done.returncode == 0, done.stderr
    assert [command.split()[2] for command in commands] == ["compute_text_set_projection.py", "-m"]
    assert f"note: {folder}/out/imagefolder_emojiclip.json was made with --data_path " in done.stderr
    assert len((folder / "out" / f"{NAME}.csv").read_text().splitlines()) == 5
    done, commands = sweep(PRETRAINED="openai")  # the arrays are of other weights
    assert (done.returncode, commands) == (2, [])
    assert "was made with --pretrained none, and now it is openai; name another OUTPUT_DIR" in done.stderr
    done, commands = sweep(DATASET="another")  # has no arrays yet, and compute_prs.py does not know it
    assert done.returncode == 2
    assert "invalid choice: 'another'" in done.stderr
    assert len(commands) == 1
    assert commands[0].startswith("+ python compute_prs.py --model emojiclip ")
