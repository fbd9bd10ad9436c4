"""Every analysis of a model whose blocks have different numbers of heads, and convolution blocks, against the
definitions."""
import csv
import json
import shutil

import literal
import numpy as np
import pytest
from builders import (
    component_names,
    family_model,
    opened,
    random_images,
    save_timm,
    split_components,
    write_classifier,
    write_pool,
    write_run,
)
from PIL import Image

from utils import cli
from utils.analysis import ablation, component_scores, groups, probe, selection, truth
from utils.cli import UserError
from utils.data import datasets
from utils.decompose import dataset
from utils.decompose.decomposer import Decomposer
from utils.runs import files
from utils.runs.components import Component
from utils.runs.run import Run

HEADS = {1: 2, 2: 3, 4: 1}  # of each block that has some
EVERY = [(block, head) for block, number in HEADS.items() for head in range(number)]
KEYS = [*(("attn", *head) for head in EVERY), ("embed", -1, None), *(("mlp", block, None) for block in HEADS),
        ("conv", 0, None), ("conv", 3, None)]
NAMES = component_names(EVERY, HEADS, (0, 3))
D, CLASSES, PLACES = 8, 2, 2
TEXTS = [f"text {i}" for i in range(30)]
RNG = np.random.default_rng(11)
CLASSIFIER = RNG.normal(size=(D, CLASSES)).astype(np.float32)
POOL = RNG.normal(size=(len(TEXTS), D)).astype(np.float32)
POOL /= np.linalg.norm(POOL, axis=1, keepdims=True)
MEANS, OFFSETS = RNG.normal(size=(len(KEYS), D)), RNG.normal(size=(CLASSES + PLACES, len(KEYS), D))
MIXES = RNG.normal(size=(len(KEYS), D, D)) * np.linspace(1, 0.2, D)[:, None]


def write(folder, split, seed, **more):
    """A run of emoji_spurious: random components whose means depend on class and place."""
    _, labels, places = datasets.embedded_scenes("emoji_spurious", split)
    labels, places = np.array(labels), np.array(places)
    noise = np.random.default_rng(seed).normal(size=(len(labels), len(KEYS), D))
    values = MEANS + np.einsum("bcd,cde->bce", noise, MIXES) + 0.4 * (OFFSETS[labels] + OFFSETS[CLASSES + places])
    write_run(folder, files.run_name("emoji_spurious", split), "m", split_components(values, NAMES), labels, NAMES,
              classes=list(datasets.SPURIOUS_CLASSES), **more)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs of three splits, a classifier and a pool."""
    folder = tmp_path_factory.mktemp("uneven")
    for seed, split in enumerate(("test", "val", "train")):
        write(folder, split, seed)
    write_classifier(folder, "emoji_spurious", "m", CLASSIFIER, classes=list(datasets.SPURIOUS_CLASSES))
    write_pool(folder, "pool", "m", TEXTS, POOL)
    (folder / "pool.txt").write_text("\n".join(TEXTS) + "\n")
    with (folder / "about.csv").open("w", newline="") as file:
        rows = [(text, truth.ATTRIBUTES[i % 7]) for i, text in enumerate(TEXTS)]
        csv.writer(file).writerows([("text", "attribute"), *rows])
    return folder


@pytest.fixture
def own(made, tmp_path):
    """A copy that a test may spoil."""
    shutil.copytree(made, tmp_path / "own")
    return tmp_path / "own"


@pytest.fixture(autouse=True)
def few_images_at_a_time(monkeypatch):
    """Never more than a block of images is read at once."""
    read = files.Stored.__getitem__

    def checked(self, key):
        found = read(self, key)
        assert found.ndim < 3 or len(found) <= files.BLOCK
        return found

    monkeypatch.setattr(files.Stored, "__getitem__", checked)


def load(folder, split="test"):
    """All components of a run [b, c, d] in double precision, labels [b], and groups [b]."""
    name = files.run_name("emoji_spurious", split)
    parts = [np.load(folder / f"{name}_{what}_m.npy") for what in NAMES]
    _, labels, places = datasets.embedded_scenes("emoji_spurious", split)
    return np.concatenate(parts, axis=1).astype(np.float64), np.array(labels), np.array(labels) * 2 + np.array(places)


def ablated(values, off, means=None):
    """Representations [b, d], the components for which `off` of kind, block and head is true replaced by their mean."""
    found = np.zeros((len(values), D))
    for i, key in enumerate(KEYS):
        mean = (values if means is None else means)[:, i].mean(axis=0)
        found += np.tile(mean, (len(values), 1)) if off(*key) else values[:, i]
    return found


def percent(representations, labels):
    return 100 * np.mean([int(np.argmax(row @ CLASSIFIER)) == label for row, label in zip(representations, labels)])


def options(folder, *more):
    return ("--model", "m", "--dataset", "emoji_spurious", "--input_dir", folder, *more)


def pooled(folder, *more):
    return options(folder, "--text_dir", folder, "--text_descriptions", "pool", "--texts_per_head", 3, *more)


def analyse(run_script, folder):
    """Ablations, and three texts for each head of the last two layers with heads."""
    texts = pooled(folder, "--output_dir", folder, "--num_of_last_layers", 2)
    for name, arguments in (("compute_ablations", options(folder)), ("compute_complete_text_set", texts)):
        code, out, err = run_script(name, *arguments)
        assert code == 0, err
    return out


def read(folder, what):
    return json.loads((folder / f"emoji_spurious_{what}_m.json").read_text())


def test_a_run_is_read_with_what_names_its_components(made, own):
    run, (values, labels, _) = Run.open(made, "emoji_spurious", "m", needs="components"), load(made)
    assert len(run) == len(labels)
    np.testing.assert_array_equal(run.labels, labels)
    assert [tuple(part.to_dict().values()) for part in run.components] == KEYS
    assert run.heads == run.components[:6]
    assert run.layers == [1, 2, 4]
    assert run.columns == {"attn": slice(0, 6), "mlp": slice(6, 10), "conv": slice(10, 12)}
    assert (run.layer(2), run.last(2), run.last(3)) == (slice(2, 5), slice(2, 6), slice(0, 6))
    assert run.heads[run.last(0)] == []
    rows = slice(0, 9)
    for columns in (slice(None), slice(2, 7), [5, 0], [11, 3, 8, 4], [], slice(0, 0)):
        np.testing.assert_array_equal(run.stack([7, 3], columns), values[[7, 3]][:, np.arange(12)[columns].astype(int)])
        expected = values[rows, np.arange(12)[columns].astype(int)].sum(axis=1)
        np.testing.assert_allclose(run.whole(rows, columns), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(run.rest(rows), values[rows, 6:].sum(axis=1), rtol=1e-5)
    assert run.rest(rows, np.float64).dtype == np.float64
    np.testing.assert_allclose(run.rest(rows, np.float64), values[rows, 6:].sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(run.means(), values.mean(axis=0), atol=1e-6)
    mean, second = run.moments(slice(2, 4))
    np.testing.assert_allclose(mean, values[:, 2:4].mean(axis=0), atol=1e-12)
    expected = np.einsum("bcd,bce->cde", values[:, 2:4], values[:, 2:4]) / len(values)
    np.testing.assert_allclose(second, expected, atol=1e-9)
    (own / "emoji_spurious_conv_m.npy").unlink()
    assert list(Run.open(own, "emoji_spurious", "m", needs="heads").columns) == ["attn"]
    missing = "emoji_spurious_conv_m.npy does not exist; make it with: python compute_prs.py"
    with pytest.raises(UserError, match=missing):
        Run.open(own, "emoji_spurious", "m")


@pytest.mark.parametrize("content, message", [
    (None, "which names the components of the arrays; make it with: python compute_prs.py"),
    ("{", "m.json: is not JSON"), ("[]", "m.json: holds a list, and should hold an object; it should name"),
    ({"attn": NAMES["attn"]}, "does not name the components"),
    (NAMES | {"attn": NAMES["attn"][1:]}, "names 5 components of attn, which has shape"),
    (NAMES | {"conv": NAMES["conv"] * 2}, "names 4 components of conv")])
def test_components_that_are_not_named_are_refused(refused, own, content, message):
    path = own / "emoji_spurious_components_m.json"
    path.unlink() if content is None else path.write_text(content if isinstance(content, str) else json.dumps(content))
    assert message in refused("compute_ablations", *options(own))


def test_arrays_without_a_manifest_are_read_with_their_convolution_blocks(own, capsys):
    (own / "emoji_spurious_m.json").unlink()
    run = Run.open(own, "emoji_spurious", "m")
    assert run.manifest is None
    assert [(head.layer, head.head) for head in run.heads] == EVERY
    assert "conv" in run.columns
    with pytest.raises(UserError, match="without it nobody knows which weights made the arrays"):
        Run.open(own, "emoji_spurious", "m", needs="components")


@pytest.mark.parametrize("model, command", [
    ("timm:local-dir:a/m", "make them with: python compute_prs.py --dataset emoji --model timm:local-dir:a/m "
                           "--output_dir {0} --split val && "),
    ("m-as-clip", "&& python compute_alignment.py --dataset emoji --model m --clip clip --input_dir {0} "
                  "--output_dir {0} --apply val && ")])
def test_the_command_that_makes_a_run_names_the_model_as_it_was_given(refused, tmp_path, model, command):
    line = refused("compute_ablations", "--model", model, "--dataset", "emoji", "--split", "val",
                   "--input_dir", tmp_path)
    assert command.format(tmp_path) in line


def test_ablations(run_script, made, tmp_path):
    code, out, err = run_script("compute_ablations", *options(made, "--figures_dir", tmp_path))
    assert code == 0, err
    values, labels, _ = load(made)
    expected = {"baseline": percent(ablated(values, lambda *_: False), labels),
                "mlp_ablated": percent(ablated(values, lambda kind, *_: kind in ("mlp", "embed")), labels),
                "conv_ablated": percent(ablated(values, lambda kind, *_: kind == "conv"), labels),
                "attention_ablated": [percent(ablated(
                    values, lambda kind, block, _, last=last: kind == "attn" and block <= last), labels)
                    for last in (0, 1, 2, 4)]}
    found = read(tmp_path, "ablations")
    assert {name: found[name] for name in expected} == {name: pytest.approx(value) for name, value in expected.items()}
    assert len({*map(float, expected["attention_ablated"]), *(expected[name] for name in list(expected)[:3])}) == 6
    lines = out.strip().splitlines()
    assert [line.split(": ")[0] for line in lines] == ["Baseline", "+ MLPs ablation", "+ Convolution blocks ablation",
                                                       "Attention ablations"]
    assert lines[2] == f"+ Convolution blocks ablation: {found['conv_ablated']}"
    with Image.open(tmp_path / "emoji_spurious_ablations_m.png") as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize("block", (1, 37, 256))
@pytest.mark.parametrize("chosen, last, mlps", [
    ((), None, True), (((2, 1), (4, 0)), 2, False), (((1, 1),), None, False), (((4, 0),), 1, True)])
def test_representations(made, monkeypatch, block, chosen, last, mlps):
    monkeypatch.setattr("utils.runs.files.blocks.__defaults__", (block, "images"))
    run = Run.open(made, "emoji_spurious", "m", "val")
    values, *_ = load(made, "val")
    gone = list(HEADS)[:len(HEADS) - (3 if last is None else last)]
    expected = ablated(values, lambda kind, block, head: (block in gone or (block, head) in chosen) if kind == "attn"
                       else kind != "conv" and not mlps)
    columns = [EVERY.index(head) for head in chosen]
    for rows, found in ablation.representations(run, run.means(), columns + ablation.all_but(run, last, mlps)):
        assert len(found) <= block
        np.testing.assert_allclose(found, expected[rows], atol=1e-4)


def test_textspan(run_script, made, own):
    out = analyse(run_script, own)
    values, labels, _ = load(made)
    found = json.loads((own / "emoji_spurious_completeness_pool_top_3_heads_m.json").read_text())
    assert [(head["layer"], head["head"]) for head in found["heads"]] == EVERY[2:]
    whole = values[:, 6:].sum(axis=1) + values[:, :2].mean(axis=0).sum(axis=0)
    for column, head in enumerate(found["heads"], start=2):
        picks, reconstruction, shares, _ = literal.text_span(values[:, column], POOL, 3, 80, np.finfo(np.float32).eps)
        assert [entry["index"] for entry in head["texts"]] == picks
        assert [entry["share"] for entry in head["texts"]] == pytest.approx(shares, abs=1e-6)
        whole += reconstruction
    assert found["accuracy"] == pytest.approx(percent(whole, labels))
    assert f"Current accuracy: {found['accuracy']}" in out
    report = (own / "emoji_spurious_completeness_pool_top_3_heads_m.txt").read_text()
    assert [line for line in report.splitlines() if line.startswith("Layer")] == [
        "Layer 2, Head 0", "Layer 2, Head 1", "Layer 2, Head 2", "Layer 4, Head 0"]


def test_the_sweep_of_textspan(run_script, own):
    analyse(run_script, own)
    code, _, err = run_script("scripts.sweep_textspan", *options(
        own, "--output_dir", own, "--text_dir", own, "--pools", "pool", "--texts_per_head", 1, 3,
        "--num_of_last_layers", 2))
    assert code == 0, err
    values, labels, _ = load(own)
    found = read(own, "textspan_sweep")
    assert found["whole_model"] == pytest.approx(percent(values.sum(axis=1), labels))
    last = ablated(values, lambda _, block, head: head is not None and block == 1)
    assert found["last_layers"] == pytest.approx(percent(last, labels))
    known = json.loads((own / "emoji_spurious_completeness_pool_top_3_heads_m.json").read_text())
    assert found["rows"][1]["accuracy"] == pytest.approx(known["accuracy"])
    assert found["rows"][1]["number_of_texts"] == known["number_of_texts"]


def test_textspan_counts_blocks_that_have_heads(refused, made):
    line = refused("compute_complete_text_set", *pooled(made, "--num_of_last_layers", 4))
    assert "--num_of_last_layers is 4; choose from 1 to 3" in line


@pytest.mark.parametrize("mlps", [True, False])
def test_specific_heads(run_script, made, tmp_path, mlps):
    code, _, err = run_script("compute_use_specific_heads", *options(
        made, "--output_dir", tmp_path, "--heads", "4.0,2.1", "--keep_last_layers", 2, "--random_trials", 2,
        *(["--keep_mlps"] if mlps else [])))
    assert code == 0, err
    values, labels, group = load(made)
    found, names = read(tmp_path, "specific_heads"), groups.names("emoji_spurious")
    for key, chosen in (("no_heads", []), ("heads_ablated", [(4, 0), (2, 1)]),
                        ("random_best", [tuple(map(int, name.split("."))) for name in found["random_best_heads"]])):
        left = ablated(values, lambda kind, block, head, chosen=chosen: (
            block == 1 or (block, head) in chosen if kind == "attn" else kind != "conv" and not mlps))
        right = (left @ CLASSIFIER).argmax(axis=1) == labels
        assert found[key]["groups"] == pytest.approx(literal.group_accuracies(right, group, names))
    assert set(found["random_best_heads"]) <= {f"{layer}.{head}" for layer, head in EVERY[2:]}
    assert len(found["random_best_heads"]) == 2


def literal_shares(values, group):
    """Each component's share of the place's effect and of the class's."""
    whole = literal.main_effects(values.sum(axis=1), CLASSIFIER, group, CLASSES, PLACES)
    own = [literal.main_effects(values[:, i], CLASSIFIER, group, CLASSES, PLACES) for i in range(len(KEYS))]
    return [[sum(a @ b for a, b in zip(one[i], whole[i])) / sum(b @ b for b in whole[i]) for i in (0, 1)]
            for one in own]


def test_heads_are_selected_by_their_effects(run_script, made, tmp_path):
    values, _, group = load(made, "val")
    shares = literal_shares(values, group)
    assert np.sum(shares, axis=0) == pytest.approx([1, 1])
    ranked = sorted((i for i in range(2, 6) if shares[i][0] > 0), key=lambda i: shares[i][1] - shares[i][0])
    code, _, err = run_script("compute_use_specific_heads", *options(
        made, "--output_dir", tmp_path, "--select", "auto", "--keep_last_layers", 2, "--keep_mlps",
        "--number_of_heads", 1))
    assert code == 0, err
    found = read(tmp_path, "specific_heads")
    names = [f"{layer}.{head}" for layer, head in EVERY]
    assert found["heads"] == [names[ranked[0]]]
    for i in range(2, 6):
        entry = found["chosen"]["heads"][names[i]]
        assert [entry["place_share"], entry["class_share"]] == pytest.approx(shares[i], rel=1e-3, abs=1e-5)


def test_heads_are_selected_by_texts(made):
    run = Run.open(made, "emoji_spurious", "m", "val")
    values, *_ = load(made, "val")
    cue, core = POOL[:3], POOL[3:5]
    slow = {i: [literal.feature_score(values[:, i], values.sum(axis=1), texts) for texts in (cue, core)]
            for i in range(2, 6)}
    scores = component_scores.feature_scores(run.stacks("scores"), (cue, core))
    assert selection.by_scores(scores, range(2, 6)) == sorted(slow, key=lambda head: slow[head][1] - slow[head][0])
    for head, pair in slow.items():
        assert scores[:, head] == pytest.approx(pair, abs=1e-5)


@pytest.mark.parametrize("more, message", [
    (("--heads", "3.0"),
     "no head 3.0; the model has layer 1 with heads 0 to 1, layer 2 with heads 0 to 2, layer 4 with head 0"),
    (("--heads", "4.1"), "there is no head 4.1"), (("--keep_last_layers", 5, "--heads", "2.0"), "choose from 1 to 3"),
    (("--heads", "1.0", "--keep_last_layers", 2), "keep its layer with --keep_last_layers 3"),
    (("--select", "auto", "--keep_last_layers", 2, "--number_of_heads", 5),
     "--number_of_heads is 5; choose from 1 to 4")])
def test_heads_that_are_not_there_are_refused(refused, made, more, message):
    assert message in refused("compute_use_specific_heads", *options(made, "--keep_last_layers", 3, *more))


def test_nearest_neighbors(run_script, made, tmp_path):
    code, _, err = run_script("compute_nearest_neighbors", *options(
        made, "--output_dir", tmp_path, "--index", 5, 700, "--property", "whole", "--heads", "4.0,2.2",
        "--neighbors", 4))
    assert code == 0, err
    values, *_ = load(made)
    chosen = values[:, EVERY.index((4, 0))] + values[:, EVERY.index((2, 2))]
    for entry in read(tmp_path, "neighbors")["queries"]:
        query = entry["query"]["index"]
        for way, vectors in zip(entry["ways"], (values.sum(axis=1), chosen - chosen.mean(axis=0))):
            units = [vector / np.linalg.norm(vector) for vector in vectors]
            cosines = [unit @ units[query] for unit in units]
            order = sorted((i for i in range(len(cosines)) if i != query), key=lambda i: -cosines[i])[:4]
            assert [near["index"] for near in way["neighbors"]] == order
            found = [near["similarity"] for near in way["neighbors"]]
            assert found == pytest.approx([cosines[i] for i in order], abs=1e-6)


def test_linear_probe(run_script, made, tmp_path):
    splits = probe.open_splits(str(made), "emoji_spurious", "m", None)
    assert set(splits) == {"train", "validation", "test"}
    train, values = load(made, "train")[0], load(made)[0]
    means = splits["train"].means()
    for row in probe.rows(3, 2):
        expected = ablated(values, lambda kind, block, _, row=row: row["last_layers"] is not None and block == 1
                           if kind == "attn" else kind != "conv" and not row["mlps"], train)
        found = probe.features(splits["test"], means, row["last_layers"], row["mlps"])
        np.testing.assert_allclose(found, expected, atol=1e-4)
    chosen = options(made, "--output_dir", tmp_path, "--keep_last_layers", 2)
    code, out, err = run_script("compute_linear_probe", *chosen)
    assert code == 0, err
    assert "all MLPs and first 1 attention layers ablated" in out
    assert read(tmp_path, "linear_probe")["rows"][0]["accuracy"] > 50


def test_a_probe_of_other_blocks_is_refused(refused, own):
    names = json.loads((own / "emoji_spurious_train_components_m.json").read_text())
    names["attn"][1] |= {"block": 0}
    cli.save_result(own / "emoji_spurious_train_components_m.json", names)
    assert "has other layers, heads or width" in refused("compute_linear_probe", *options(own, "--output_dir", own))


def test_head_truth(run_script, own):
    analyse(run_script, own)
    code, out, err = run_script("compute_head_truth", *options(
        own, "--text_descriptions", "pool", "--texts_per_head", 3, "--text_attributes", own / "about.csv"))
    assert code == 0, err
    values, *_ = load(own)
    drawn = datasets.load_images("emoji_spurious").scenes
    found = read(own, "head_truth")
    assert [(row["layer"], row["head"]) for row in found["heads"]] == EVERY[2:]
    for column, row in enumerate(found["heads"], start=2):
        for name, share in row["explained"].items():
            group = np.array([str(scene.attributes()[name]) for scene in drawn])
            assert share == pytest.approx(literal.epsilon_squared(values[:, column], group), abs=1e-5)
    assert "| 4.0 |" in out
    assert "| 2.2 |" in out


def test_the_report_and_the_summary(run_script, refused, own):
    analyse(run_script, own)
    chosen = pooled(own, "--heat_maps", 0, "--images_per_head", 3, "--output_dir", own / "page")
    code, _, err = run_script("make_report", *chosen)
    assert code == 0, err
    values, labels, _ = load(own)
    content = json.loads((own / "page" / "report.json").read_text())
    assert "all convolution blocks ablated" in (own / "page" / "index.html").read_text()
    assert [head["name"] for head in content["heads"]] == ["4.0", "2.0", "2.1", "2.2"]
    assert content["layers"] == 3
    for head in content["heads"]:
        key = (head["layer"], head["head"])
        without = ablated(values, lambda _, block, index, key=key: (block, index) == key)
        assert head["accuracy"] == pytest.approx(percent(without, labels))
        scores = values[:, EVERY.index(key)] @ POOL[head["texts"][0]["index"]]
        assert [image["index"] for image in head["highest"]] == np.argsort(-scores)[:3].tolist()
    assert "unknown model 'm'" in refused("make_report", *pooled(own, "--output_dir", own / "page"))

    code, out, err = run_script("make_report", *pooled(own, "--text"))
    assert code == 0, err
    assert "all convolution blocks mean-ablated" in out
    assert "layer 4, head 0" in out
    assert (own / "emoji_spurious_heads_m.png").is_file()


@pytest.mark.parametrize("family, layers, number", [("swin", [0, 1, 2], 8), ("maxvit", [0, 1, 2, 3], 6)])
def test_a_mapped_model_with_uneven_blocks(run_script, refused, folder_of_images, tmp_path, family, layers, number):
    """From pixels to texts: a small random model of timm, mapped to the embedded CLIP."""
    model, out = f"timm:local-dir:{save_timm(tmp_path, family)}", tmp_path / "out"
    (tmp_path / "few.txt").write_text("a red apple\na dog\na yellow background\nmany things\na car\n")
    data = ("--dataset", "imagefolder", "--device", "cpu", "--output_dir", out)
    for name, *more in (
            ("compute_prs", *data, "--model", model, "--data_path", folder_of_images, "--num_workers", 0,
             "--batch_size", 5),
            ("compute_prs", *data, "--model", "emojiclip", "--data_path", folder_of_images, "--num_workers", 0),
            ("compute_alignment", *data, "--input_dir", out, "--model", model, "--split", "", "--batch_size", 4,
             "--epochs", 1),
            ("compute_text_projection", *data, "--model", "emojiclip", "--data_path", folder_of_images),
            ("compute_text_set_projection", "--model", "emojiclip", "--device", "cpu", "--output_dir", out,
             "--data_path", tmp_path / "few.txt")):
        code, _, err = run_script(name, *more)
        assert code == 0, err
    mapped = ("--model", f"{family}-as-emojiclip", "--dataset", "imagefolder", "--input_dir", out)
    run = Run.open(out, "imagefolder", f"{family}-as-emojiclip")
    assert run.layers == layers
    assert len(run.heads) == number
    assert ("conv" in run.columns) == (family == "maxvit")
    whole, terms = run.whole(slice(None)), run.stack(slice(None))
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-5)
    classifier = np.load(out / "imagefolder_classifier_emojiclip.npy")

    code, printed, err = run_script("compute_ablations", *mapped)
    assert code == 0, err
    found = dict(line.split(": ") for line in printed.strip().splitlines())
    assert float(found["Baseline"]) == pytest.approx(100 * np.mean((whole @ classifier).argmax(axis=1) == run.labels))
    assert len(json.loads(found["Attention ablations"])) == len(layers) + 1
    assert ("+ Convolution blocks ablation" in found) == (family == "maxvit")
    assert "+ CLS ablation" not in found
    texts = ("--text_dir", tmp_path, "--text_descriptions", "few", "--texts_per_head", 2)
    code, printed, err = run_script("compute_complete_text_set", *mapped, *texts, "--output_dir", out,
                                    "--num_of_last_layers", 2)
    assert code == 0, err
    told = json.loads((out / f"imagefolder_completeness_few_top_2_heads_{family}-as-emojiclip.json").read_text())
    pool, last = np.load(out / "few_emojiclip.npy"), run.last(2)
    assert [Component("attn", head["layer"], head["head"]) for head in told["heads"]] == run.heads[last]
    rest = whole - terms[:, last].sum(axis=1) - terms[:, :last.start].sum(axis=1)
    rest = rest + terms[:, :last.start].mean(axis=0).sum(axis=0)
    for column, head in enumerate(told["heads"], start=last.start):
        picks, reconstruction, *_ = literal.text_span(terms[:, column], pool, 2, 80, np.finfo(np.float32).eps)
        assert [entry["index"] for entry in head["texts"]] == picks
        rest = rest + reconstruction
    assert told["accuracy"] == pytest.approx(100 * np.mean((rest @ classifier).argmax(axis=1) == run.labels))

    report = ("make_report", *mapped, *texts, "--data_path", folder_of_images, "--images_per_head", 2,
              "--device", "cpu")
    code, _, err = run_script(*report, "--heat_maps", 0)
    assert code == 0, err
    page = json.loads((out / f"imagefolder_report_{family}-as-emojiclip" / "report.json").read_text())
    assert page["commands"][0].startswith(f"python compute_alignment.py --model {model} --dataset imagefolder ")
    assert page["commands"][0].endswith(f" --output_dir {out}")
    assert page["commands"][1].startswith("python compute_text_projection.py --model emojiclip --dataset imagefolder")
    assert all(head["heat_maps"] == [] for head in page["heads"])
    code, printed, err = run_script(*report, "--heat_maps", 1)
    assert code == 0, err
    assert "left out" not in printed
    page = json.loads((out / f"imagefolder_report_{family}-as-emojiclip" / "report.json").read_text())
    heads = sorted(page["heads"], key=lambda head: (head["layer"], head["head"]))
    for column, head in enumerate(heads, start=last.start):
        (drawn,), text = head["heat_maps"], pool[head["texts"][0]["index"]]
        assert drawn["patches"] == pytest.approx(terms[drawn["index"], column] @ text, abs=1e-4)
        assert drawn["class_token"] == 0
    (out / f"imagefolder_maps_{family}_to_emojiclip.safetensors").unlink()
    code, printed, err = run_script(*report, "--heat_maps", 1)
    assert code == 0, err
    assert f"heat maps are left out: the maps that made the arrays are not in {out}" in printed
    line = refused("compute_nearest_neighbors", *mapped, "--data_path", folder_of_images, "--image",
                   folder_of_images / "cat" / "0.png")
    assert "its components were mapped, and a picture's are not; give the queries by --index" in line


@pytest.mark.parametrize(("family", "layers", "shape"), [
    ("vit", [0, 1, 2], [3, 4, 48]), ("vit_two_at_once", [0, 1, 3, 4, 6, 7], [24, 48])])
def test_terms_are_read_under_the_names_that_they_were_written_with(family, layers, shape):
    terms = Decomposer(family_model(family)).terms(random_images(32, 2))
    names = dataset.names_of(terms.components)
    run = opened({what: values.numpy() for what, values in terms.arrays().items()}, names)
    assert run.layout["attn"] == shape
    assert run.layers == layers
    assert run.components == terms.components
    np.testing.assert_array_equal(run.stack(slice(None)), terms.values)
