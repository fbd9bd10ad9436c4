"""Files as people hand them on: not UTF-8, other JSON, arrays with NaN, labels of no class, texts too long."""
import hashlib
import json

import numpy as np
import pytest
import torch
from builders import call_script, write_classifier, write_pool, write_run
from open_clip.tokenizer import SimpleTokenizer

from utils import cli, inputs
from utils.analysis import truth, zeroshot
from utils.cli import UserError
from utils.data import datasets
from utils.ex2 import descriptions
from utils.models import loading
from utils.report import results
from utils.runs import files
from utils.runs.run import Run

LATIN = "ein Löwe\nzwei Möwen\n".encode("latin-1")


# Text and JSON

@pytest.mark.parametrize("read", [
    zeroshot.read_texts, truth.read_attributes, descriptions.read_questions, inputs.read_yaml, inputs.read_text,
    lambda path: inputs.read_json(path, dict, "make it again"), files.read_manifest])
def test_what_is_not_utf8_is_refused_with_the_line(tmp_path, read):
    path = tmp_path / "x.txt"
    path.write_bytes(b"a\n" + LATIN)
    with pytest.raises(UserError, match=r"x.txt, line 2: is not UTF-8 \(byte 0xf6\); save the file as UTF-8"):
        read(path if read in (zeroshot.read_texts, files.read_manifest) else str(path))


def test_class_names_and_lists_that_are_not_utf8_are_refused(tmp_path):
    (tmp_path / "metadata.csv").write_bytes(b"img_id,img_filename,y,split,place\n1," + LATIN)
    with pytest.raises(UserError, match="metadata.csv, line 2: is not UTF-8"):
        datasets.load_images("binary_waterbirds", str(tmp_path))
    for name in ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"):
        (tmp_path / name).write_bytes(LATIN)
    with pytest.raises(UserError, match="images.txt, line 1: is not UTF-8"):
        datasets.load_images("cub", str(tmp_path))


@pytest.mark.parametrize("content", ["[1, 2]", "{}", "null", "3", '"x"', '{"arrays": {}}', '{"arrays": [1]}', "{", "",
                                     '{"arrays": [{"file": 3, "shape": [], "dtype": "x"}]}', "[" * 10 ** 5])
def test_a_manifest_of_another_form_is_refused_in_one_line(tmp_path, content):
    rng = np.random.default_rng(0)
    terms = {"attn": rng.normal(size=(3, 2, 2, 4)), "mlp": rng.normal(size=(3, 3, 4))}
    write_run(tmp_path, "x", "m", terms, [0, 1, 0])
    files.manifest_path(tmp_path, "x", "m").write_text(content)
    with pytest.raises(UserError, match="x_m.json: .*delete it or make the arrays again") as caught:
        Run.open(str(tmp_path), "x", "m")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"weights_sha256": 3}, {"classes": None}, {"options": [1]}, {"images": "x"},
                                    {"model": None}, {"reading": 3}, {"model_settings": [1]}])
def test_entries_of_another_type_are_refused_by_name(tmp_path, change):
    write_run(tmp_path, "x", "m", {"attn": np.zeros((3, 2, 2, 4)), "mlp": np.zeros((3, 3, 4))}, [0, 1, 0])
    path = files.manifest_path(tmp_path, "x", "m")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=f"x_m.json: {next(iter(change))} is (missing|of another kind)"):
        Run.open(str(tmp_path), "x", "m")


@pytest.mark.parametrize("content, message", [("[1]", "holds a list, and should hold an object"), ("{", "is not JSON")])
def test_results_of_another_form_are_refused(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        results._read(path, 3, "COMMAND")


# Arrays

def small_run(folder, labels=(0, 1, 0, 1), dtype="float32", **changes):
    rng = np.random.default_rng(0)
    terms = {"attn": rng.normal(size=(4, 2, 2, 4)), "mlp": rng.normal(size=(4, 3, 4)),
             "cls_attn": rng.normal(size=(4, 2, 4))} | changes
    write_run(folder, "x", "m", terms, labels, dtype=dtype)
    write_classifier(folder, "x", "m", rng.normal(size=(4, 2)))
    return Run.open(str(folder), "x", "m")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("what", ["attn", "mlp", "cls_attn"])
def test_a_value_that_is_no_number_is_found_where_it_is_read(tmp_path, value, dtype, what):
    small_run(tmp_path, dtype=dtype)
    path = files.term_path(tmp_path, "x", what, "m")
    array = np.load(path)
    array.reshape(4, -1)[2, -1] = value
    np.save(path, array)
    run = Run.open(str(tmp_path), "x", "m")
    read = {"attn": lambda rows: run.stack(rows, run.columns["attn"]), "mlp": run.rest, "cls_attn": lambda rows:
            run.cls_attn[rows]}[what]
    read(slice(0, 2))
    for rows in (slice(1, 4), np.array([3, 2])):
        with pytest.raises(UserError, match=rf"x_{what}_m.npy, row 2: holds NaN or infinity, .*; make it again with: "):
            read(rows)


def test_texts_and_classifiers_with_such_values_are_refused(tmp_path):
    run = small_run(tmp_path)
    write_classifier(tmp_path, "x", "m", np.full((4, 2), np.nan))
    with pytest.raises(UserError, match="x_classifier_m.npy, row 0: holds NaN or infinity"):
        run.classifier()
    write_pool(tmp_path, "pool", "m", ["a", "b"], [[0, 1, 2, 3], [0, np.inf, 0, 0]])
    with pytest.raises(UserError, match="pool_m.npy, row 1: holds NaN or infinity"):
        run.texts("pool", ["a", "b"])


@pytest.mark.parametrize("values, finite", [
    ([], True), ([0, -0.0, 65504, -65504, 6e-8], True), ([1, np.nan], False), ([np.inf], False), ([-np.inf], False)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_whether_all_is_finite(values, finite, dtype):
    if dtype == np.int64:
        values, finite = [3, -1], True
    assert files.is_finite(np.array(values, dtype)) == finite


@pytest.mark.parametrize("labels, message", [
    ((0, 1, 2, 1), "row 2: is label 2, and there are 2 classes"), ((0, -1, 1, 1), "row 1: is label -1"),
    ((-1, -2, -1, -1), "row 1: is label -2")])
def test_labels_of_no_class_are_refused(tmp_path, labels, message):
    with pytest.raises(UserError, match=message):
        small_run(tmp_path, labels)


def test_labels_that_are_no_whole_numbers_are_refused(tmp_path):
    small_run(tmp_path)
    np.save(files.term_path(tmp_path, "x", "labels", "m"), np.array([0.0, 1.0, 0.0, 1.0]))
    np.save(tmp_path / "x_labels.npy", np.array([0.0, 1.0, 0.0, 1.0]))
    with pytest.raises(UserError, match="holds float64, and labels are whole numbers"):
        Run.open(str(tmp_path), "x", "m")


def test_images_without_labels_have_no_accuracy(tmp_path, capsys):
    run = small_run(tmp_path, (-1, -1, -1, -1))
    assert not run.is_labelled
    common = ("--model", "m", "--dataset", "emoji", "--input_dir", tmp_path)
    for path in tmp_path.glob("x_*"):
        text = path.name.replace("x_", "emoji_", 1)
        path.rename(tmp_path / text)
        if path.suffix == ".json":
            (tmp_path / text).write_text((tmp_path / text).read_text().replace('"x_', '"emoji_'))
    with pytest.raises(UserError, match="emoji_labels.npy: no image has a label, and without labels there is no "
                                        "accuracy"):
        call_script("compute_ablations", *common)
    (tmp_path / "pool.txt").write_text("a\nb\nc\n")
    write_pool(tmp_path, "pool", "m", ["a", "b", "c"], np.random.default_rng(1).normal(size=(3, 4)))
    capsys.readouterr()
    call_script("compute_complete_text_set", *common, "--text_dir", tmp_path, "--text_descriptions", "pool",
                "--texts_per_head", 1, "--num_of_last_layers", 1, "--output_dir", tmp_path / "out")
    shown = capsys.readouterr()
    assert "no image has a label, so there is no accuracy" in shown.err
    assert "0.0" not in shown.out


def test_one_class_is_said(tmp_path, capsys):
    from PIL import Image

    (tmp_path / "only").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "only" / "0.png")
    assert datasets.class_names("imagefolder", str(tmp_path)) == ["only"]
    assert "has one class, only: every accuracy is 100%" in capsys.readouterr().err


# Checksums

def test_verify_reads_all_and_compares(tmp_path, capsys):
    small_run(tmp_path)
    verify = ("compute_prs", "--verify", "--output_dir", tmp_path)
    call_script(*verify)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 5 and all(line.endswith("as it was written") for line in shown)
    path = files.term_path(tmp_path, "x", "mlp", "m")
    array = np.load(path)
    array[3, 2, 1] += 1e-3
    np.save(path, array)
    with pytest.raises(UserError, match="x_mlp_m.npy: differs from what was written") as caught:
        call_script(*verify)
    assert "x_attn_m" not in str(caught.value)
    array[1, 0, 0] = np.nan
    np.save(path, array)
    manifest = files.manifest_path(tmp_path, "x", "m")
    content = json.loads(manifest.read_text())
    for entry in content["arrays"]:
        del entry["sha256"]  # as of an older version
    manifest.write_text(json.dumps(content))
    with pytest.raises(UserError, match="x_mlp_m.npy, row 1: holds NaN"):
        call_script(*verify)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="x_mlp_m.npy: not a complete .npy file"):
        call_script(*verify)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no arrays with a manifest"):
        call_script(*verify[:-1], tmp_path / "empty")


def test_a_checksum_is_that_of_every_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK", 10)
    data = bytes(range(35))
    (tmp_path / "x").write_bytes(data)
    parts = [hashlib.sha256(data[start:start + 10]).digest() for start in (0, 10, 20, 30)]
    assert files.checksum(tmp_path / "x") == hashlib.sha256(b"".join(parts)).hexdigest()


# Texts

def long_texts(number: int, first: str = "") -> str:
    return first + " ".join(["word"] * number)


@pytest.fixture(scope="module")
def clip():
    return loading.load("emojiclip", None, torch.device("cpu"))


def test_which_texts_are_cut_is_told_by_the_context_of_the_model(clip):
    length = clip.tokenizer(["a"]).shape[1]
    texts = [long_texts(number) for number in (1, length - 2, length - 1, 3 * length)] + ["", "a"]
    assert [len(SimpleTokenizer().encode(text)) + 2 for text in texts[:3]] == [3, length, length + 1]
    assert clip.cut(texts) == [2, 3]
    assert clip.cut([long_texts(length - 2)]) == []


def test_lines_that_are_cut_are_named_and_two_that_become_one_refused(clip, tmp_path, capsys):
    pool, length = tmp_path / "pool.txt", clip.tokenizer(["a"]).shape[1]
    command = ("compute_text_set_projection", "--model", "emojiclip", "--data_path", pool, "--output_dir", tmp_path)
    pool.write_text(f"a dog\n{long_texts(length, 'x ')}\na cat\n{long_texts(length, 'y ')}\n")
    call_script(*command)
    said = [line for line in capsys.readouterr().err.splitlines() if "pool.txt" in line]
    assert len(said) == 1
    assert (f"2 of 4 texts have more than the {length} tokens that the model reads, and are cut there: "
            "line 2, line 4") in said[0]
    pool.write_text(f"a dog\n{long_texts(length)} sea\na cat\n{long_texts(length)} land\n")
    with pytest.raises(UserError, match=f"pool.txt: line 2 and line 4 are the same in their first {length} tokens"):
        call_script(*command)
    with pytest.raises(UserError, match="--text: 'word .* are the same"):
        zeroshot.embed_texts(clip, [long_texts(length) + " sea", long_texts(length) + " land"], 2, "--text")
    with pytest.raises(UserError, match=r"the prompts: of class 'word.* are the same"):
        zeroshot.classifier(clip, [long_texts(length) + " sea", long_texts(length) + " land"], ["a {}".format], 2)


@pytest.mark.parametrize("script, options", [
    ("compute_heatmaps", ["--image", "x.png"]), ("compute_retrieval", ["--features", "x", "--feature", "a"])])
@pytest.mark.parametrize("text", ["", "  ", "\t"])
def test_an_empty_text_is_refused_everywhere(script, options, text):
    from builders import load_script

    with pytest.raises(UserError, match="--text is empty; give it a value"):
        cli.parse(load_script(script).get_args_parser(), [*options, "--text", "a dog", text])
