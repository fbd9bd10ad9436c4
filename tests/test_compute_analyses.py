import json
import shutil

import literal
import numpy as np
import pytest
from PIL import Image


def arguments(run, *more):
    return ("--model", "emojiclip", "--dataset", "imagefolder", "--input_dir", run / "out", *more)


def texts_of(run, *more):
    return arguments(run, "--text_dir", run / "texts", "--text_descriptions", "pool", *more)


@pytest.fixture
def own_run(emoji_run, tmp_path):
    """A copy of the session's run that a test may spoil."""
    shutil.copytree(emoji_run, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def load(run, what):
    return np.load(run / "out" / f"imagefolder_{what}_emojiclip.npy")


def test_ablations_print_the_published_lines_and_equal_the_literal_ones(run_script, emoji_run, tmp_path):
    code, out, err = run_script("compute_ablations", *arguments(emoji_run, "--figures_dir", tmp_path))
    assert code == 0, err
    labels = np.load(emoji_run / "out" / "imagefolder_labels.npy")
    slow = literal.ablations(load(emoji_run, "attn"), load(emoji_run, "mlp"), load(emoji_run, "cls_attn"), labels,
                             load(emoji_run, "classifier"))
    lines = out.strip().splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        "Baseline", "+ MLPs ablation", "+ CLS ablation", "+ MLPs + CLS ablation", "Attention ablations"]
    printed = dict(line.split(": ") for line in lines)
    assert float(printed["Baseline"]) == pytest.approx(slow["baseline"])
    assert json.loads(printed["Attention ablations"]) == pytest.approx(slow["attention_ablated"])
    written = json.loads((tmp_path / "imagefolder_ablations_emojiclip.json").read_text())
    for name, value in slow.items():
        assert written[name] == pytest.approx(value), name
    assert len(written["attention_ablated"]) == load(emoji_run, "attn").shape[1] + 1
    picture = Image.open(tmp_path / "imagefolder_ablations_emojiclip.png")
    assert picture.format == "PNG"
    assert picture.width > 600


def test_ablations_without_a_class_token(run_script, own_run):
    (own_run / "out" / "imagefolder_cls_attn_emojiclip.npy").unlink()
    code, out, err = run_script("compute_ablations", *arguments(own_run))
    assert code == 0, err
    assert [line.split(": ")[0] for line in out.strip().splitlines()] == ["Baseline", "+ MLPs ablation",
                                                                          "Attention ablations"]
    assert json.loads((own_run / "out" / "imagefolder_ablations_emojiclip.json").read_text())["cls_ablated"] is None


def test_the_report_of_textspan_has_the_published_form(run_script, emoji_run, tmp_path):
    code, out, err = run_script("compute_complete_text_set", *texts_of(
        emoji_run, "--output_dir", tmp_path, "--num_of_last_layers", 2, "--texts_per_head", 3))
    assert code == 0, err
    name = "imagefolder_completeness_pool_top_3_heads_emojiclip"
    report = (tmp_path / f"{name}.txt").read_text().splitlines()
    found = json.loads((tmp_path / f"{name}.json").read_text())
    rule = "-" * 18
    assert report[:3] == [rule, "Layer 4, Head 0", rule]
    assert report[6:9] == [rule, "Layer 4, Head 1", rule]
    assert report[-3] == rule
    assert report[-2] == f"Current accuracy: {found['accuracy']}"
    assert report[-1] == f"Number of texts: {found['number_of_texts']}"
    assert report[-2] in out
    assert report[-1] in out
    assert len(report) == 12 * 6 + 3
    assert report[3:6] == [entry["text"] for entry in found["heads"][0]["texts"]]
    assert found["number_of_texts"] == len({entry["text"] for head in found["heads"] for entry in head["texts"]})
    assert all(0 <= entry["share"] <= 1 for head in found["heads"] for entry in head["texts"])

    attn, pool = load(emoji_run, "attn"), np.load(emoji_run / "out" / "pool_emojiclip.npy")
    lines = (emoji_run / "texts" / "pool.txt").read_text().splitlines()
    for head in found["heads"]:
        picks, _, shares, kept = literal.text_span(attn[:, head["layer"], head["head"]], pool, 3, 80,
                                                   np.finfo(np.float32).eps)
        assert head["rank_used"] == kept
        assert [entry["text"] for entry in head["texts"]] == [lines[pick] for pick in picks]
        assert [entry["share"] for entry in head["texts"]] == pytest.approx(shares, abs=1e-6)


def test_more_texts_explain_more(run_script, emoji_run, tmp_path):
    explained = []
    for number in (1, 8):
        run_script("compute_complete_text_set",
                   *texts_of(emoji_run, "--output_dir", tmp_path, "--num_of_last_layers", 1,
                             "--texts_per_head", number))
        found = json.loads((tmp_path / f"imagefolder_completeness_pool_top_{number}_heads_emojiclip.json").read_text())
        explained.append([head["explained"] for head in found["heads"]])
    assert all(few < many <= 1 + 1e-6 for few, many in zip(*explained))


def test_a_pool_that_changed_is_refused(refused, own_run):
    pool = own_run / "texts" / "pool.txt"
    pool.write_text(pool.read_text().replace("one thing\n", "one single thing\n", 1))
    assert "made from other texts" in refused("compute_complete_text_set", *texts_of(own_run))


def test_arrays_of_different_runs_are_refused(refused, own_run):
    path = own_run / "out" / "imagefolder_mlp_emojiclip.npy"
    np.save(path, np.load(path)[:100])
    assert "comes from another run" in refused("compute_ablations", *arguments(own_run))
    (own_run / "out" / "imagefolder_emojiclip.json").unlink()
    assert "holds 100 images" in refused("compute_ablations", *arguments(own_run))


def test_arrays_of_another_model_are_refused(refused, own_run):
    path = own_run / "out" / "imagefolder_classifier_emojiclip.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"weights_sha256": "0" * 64, "pretrained": "another"}))
    assert "made with other weights (another)" in refused("compute_ablations", *arguments(own_run))


def test_published_arrays_without_manifests_are_read_with_a_warning(run_script, own_run):
    for path in (own_run / "out").glob("*.json"):
        path.unlink()
    code, out, err = run_script("compute_ablations", *arguments(own_run))
    assert code == 0
    assert out.startswith("Baseline: ")
    assert err.count("warning: no manifest") == 2
