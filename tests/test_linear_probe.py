import json
import shutil

import builders
import numpy as np
import pytest
from builders import opened
from PIL import Image
from sklearn.linear_model import LogisticRegression

from utils import cli
from utils.analysis import probe
from utils.cli import UserError
from utils.data import scenes
from utils.runs import files

SPLITS = {"train": (14, 41), "val": (4, 42), "test": (6, 43)}  # images of each class, and the seed
OBJECTS = (3, 40, 90, 160, 220)


def literal_features(attn, mlp, train_attn, train_mlp, last_layers, mlps):
    """Every ablated term of every image replaced by its mean over the train images, one by one, in double precision."""
    attn, mlp = attn.astype(np.float64), mlp.astype(np.float64)
    found = []
    for own_attn, own_mlp in zip(attn, mlp):
        total = np.zeros(attn.shape[-1])
        for layer in range(attn.shape[1]):
            early = last_layers is not None and layer < attn.shape[1] - last_layers
            for head in range(attn.shape[2]):
                total += train_attn[:, layer, head].astype(np.float64).mean(axis=0) if early else own_attn[layer, head]
        for index in range(mlp.shape[1]):
            total += own_mlp[index] if mlps else train_mlp[:, index].astype(np.float64).mean(axis=0)
        found.append(total)
    return np.array(found)


def random_run(images, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {"attn": rng.normal(1, 1, (images, 5, 3, 7)).astype(dtype),
            "mlp": rng.normal(2, 1, (images, 6, 7)).astype(dtype),
            "labels": rng.integers(0, 4, images)}


def write_run(folder, split, run, classes="abcd", weights="aa"):
    """A run of flowers, whose names of splits are train, val and test."""
    parts = {what: run[what] for what in ("attn", "mlp")}
    builders.write_run(folder, files.run_name("flowers", split), "m", parts, run["labels"],
                       dtype=run["attn"].dtype.name,
                       classes=list(classes), weights_sha256=weights)


def arguments(folder, *more):
    return ("--model", "m", "--dataset", "flowers", "--input_dir", folder, "--output_dir", folder, *more)


def report(folder, name="flowers_linear_probe_m"):
    return json.loads((folder / f"{name}.json").read_text())


def linear_run(images, seed, shift=0.0, absent=()):
    """A run whose labels are a linear function, with a margin, of what the last layer writes: the largest of its three
    numbers.

    All other terms are of other dimensions; those of the MLPs and of the first layer are `shift` off.
    """
    rng = np.random.default_rng(seed)
    run = {"attn": np.zeros((images, 3, 2, 8), np.float32), "mlp": np.zeros((images, 4, 8), np.float32)}
    labels = rng.choice([label for label in range(3) if label not in absent], images)
    run["attn"][:, 2, 0, :3] = rng.uniform(0, 0.3, (images, 3)) + 0.6 * np.eye(3)[labels]
    run["attn"][:, :2, :, 3:] = rng.normal(0, 0.1, (images, 2, 2, 5))
    run["mlp"][..., 3:] = rng.normal(0, 0.1, (images, 4, 5))
    run["mlp"][..., 0] += shift
    run["attn"][:, 0, :, 0] += shift
    return run | {"labels": labels}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Real arrays of three splits of an imagefolder with scenes of five objects."""
    import compute_prs

    root = tmp_path_factory.mktemp("probe")
    for split, (number, seed) in SPLITS.items():
        for object_ in OBJECTS:
            place = root / "images" / split / scenes.concepts()[object_]["name"]
            place.mkdir(parents=True)
            drawn, _ = scenes.draw(scenes.sample_scenes(number, seed, object=object_), 64)
            for i, image in enumerate(drawn.permute(0, 2, 3, 1).numpy()):
                Image.fromarray(image).save(place / f"{i}.png")
        compute_prs.main(cli.parse(compute_prs.get_args_parser(), [
            "--model", "emojiclip", "--dataset", "imagefolder", "--data_path", str(root / "images"), "--split", split,
            "--output_dir", str(root / "out"), "--batch_size", "32", "--num_workers", "0", "--device", "cpu"]))
    return root / "out"


def real(folder, *more):
    return ("--model", "emojiclip", "--dataset", "imagefolder", "--split", "test", "--input_dir", folder, *more)


def load(folder, split):
    run = {what: np.load(folder / f"imagefolder_{split}_{what}_emojiclip.npy") for what in ("attn", "mlp")}
    return run | {"labels": np.load(folder / f"imagefolder_{split}_labels.npy")}


def score(train, judged, c):
    """Accuracy in percent of scikit-learn's probe."""
    return 100 * LogisticRegression(C=c, tol=probe.TOLERANCE, max_iter=10_000).fit(*train).score(*judged)


def check_rows(found, runs, held):
    """Every figure of a report against scikit-learn on the literal features; C against every C that was tried."""
    for row in found["rows"]:
        features = {split: (literal_features(run["attn"], run["mlp"], runs["train"]["attn"], runs["train"]["mlp"],
                                             row["last_layers"], row["mlps"]).astype(np.float32), run["labels"])
                    for split, run in runs.items()}
        x, labels = features["train"]
        fitted, judged = (features["train"], features["val"]) if held is None else \
            ((x[~held], labels[~held]), (x[held], labels[held]))
        step = 100 / len(judged[1])  # float32 features differ in their last bits: one image may change sides
        for tried in row["search"]:
            assert tried["validation_accuracy"] == pytest.approx(score(fitted, judged, tried["C"]), abs=step * 1.01)
        best = max(tried["validation_accuracy"] for tried in row["search"])
        assert row["C"] == min(tried["C"] for tried in row["search"] if tried["validation_accuracy"] == best)
        assert row["validation_accuracy"] == best
        assert row["converged"]
        expected = score(features["train"], features["test"], row["C"])
        assert row["accuracy"] == pytest.approx(expected, abs=101 / len(features["test"][1]))


@pytest.mark.parametrize("images", [1, 256, 300])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_features_equal_the_literal_ablation(images, dtype):
    run, train = random_run(images, 1, dtype), random_run(90, 2, dtype)
    means = opened(train).means()
    for row in probe.rows(5, 2):
        found = probe.features(opened(run), means, row["last_layers"], row["mlps"])
        assert found.dtype == np.float32
        slow = literal_features(run["attn"], run["mlp"], train["attn"], train["mlp"], row["last_layers"], row["mlps"])
        np.testing.assert_allclose(found, slow, atol=1e-4)
    assert [(row["last_layers"], row["mlps"]) for row in probe.rows(5, 2)] == [(None, True), (None, False), (2, True),
                                                                               (2, False)]
    assert probe.rows(5, 2)[3]["name"] == "all MLPs and first 3 attention layers ablated"


def test_the_script_chooses_on_the_val_split_and_equals_scikit_learn(run_script, folder, tmp_path):
    code, out, err = run_script("compute_linear_probe", *real(folder, "--output_dir", tmp_path))
    assert code == 0, err
    found = report(tmp_path, "imagefolder_test_linear_probe_emojiclip")
    assert found["validation"] == "val split"
    assert "20 images of the val split" in out
    assert found["images"] == {"train": 70, "test": 30, "validation": 20}
    assert (found["keep_last_layers"], found["classes_not_in_train"]) == (4, 0)
    check_rows(found, {split: load(folder, split) for split in SPLITS}, None)
    assert found["rows"][0]["accuracy"] > 60  # five objects, by chance 20
    for row in found["rows"]:
        assert f"{row['name']:<50} {row['accuracy']:6.1f}   C {row['C']:.3g}" in out
    assert [row["last_layers"] for row in found["rows"]] == [None, None, 4, 4]


def test_without_a_val_split_a_tenth_of_train_is_held_out(run_script, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("*_val_*"))
    code, out, err = run_script("compute_linear_probe", *real(tmp_path / "run", "--output_dir", tmp_path, "--seed", 3,
                                                              "--keep_last_layers", 2))
    assert code == 0, err
    found = report(tmp_path, "imagefolder_test_linear_probe_emojiclip")
    assert found["validation"] == "held out of train"
    assert "5 images of train, held out by seed 3" in out
    assert found["images"] == {"train": 70, "test": 30, "validation": 5}
    assert found["seed"] == 3
    runs = {split: load(folder, split) for split in ("train", "test")}
    check_rows(found, runs, probe.hold_out(runs["train"]["labels"], 3))


def test_a_val_split_that_is_stored_otherwise_chooses_too(tmp_path):
    heads = {"heads": np.zeros((6, 5, 2, 3)), "scalars": np.ones((6, 3)), "mlp": np.zeros((6, 2, 4)),
             "readout": np.zeros((5, 2, 6, 4))}
    for split in ("train", "val", "test"):
        builders.write_run(tmp_path, "flowers" if split == "test" else f"flowers_{split}", "m", heads, [0, 1] * 3,
                           options={"storage": "compact"})
    assert set(probe.open_splits(str(tmp_path), "flowers", "m", None)) == {"test", "train", "validation"}


@pytest.mark.parametrize("with_val", [True, False])
def test_the_final_probe_is_fitted_to_all_of_train(with_val):
    def sample(number, seed):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 3, number)
        return (np.eye(3)[labels] + rng.normal(0, 1, (number, 3))).astype(np.float32), labels

    train, val, test = sample(120, 0), sample(50, 1), sample(2000, 2)
    held = None if with_val else probe.hold_out(train[1], 0)
    model, found = probe.fit_best(train, val if with_val else None, held)
    accuracy = 100 * model.score(*test)
    assert accuracy == score(train, test, found["C"])
    if not with_val:
        part, rest = ([values[chosen] for values in train] for chosen in (~held, held))
        assert accuracy != score(part, test, found["C"])
        assert found["validation_accuracy"] == score(part, rest, found["C"])


def test_the_val_split_does_not_choose_what_it_reports(run_script, folder, tmp_path):
    code, _, err = run_script("compute_linear_probe", "--model", "emojiclip", "--dataset", "imagefolder", "--split",
                              "val",
                              "--input_dir", folder, "--output_dir", tmp_path)
    assert code == 0, err
    found = report(tmp_path, "imagefolder_val_linear_probe_emojiclip")
    assert found["validation"] == "held out of train"
    assert found["images"]["test"] == 20


def test_a_linear_function_is_read_and_the_means_are_those_of_train(run_script, tmp_path):
    # Ablated parts of the test images are far off: with any means but train's, the labels could not be read.
    write_run(tmp_path, "train", linear_run(300, 1), "abc")
    write_run(tmp_path, "val", linear_run(60, 2), "abc")
    write_run(tmp_path, None, linear_run(90, 3, shift=5.0), "abc")
    code, out, err = run_script("compute_linear_probe", *arguments(tmp_path, "--keep_last_layers", 1))
    assert code == 0, err
    whole, no_mlps, no_early, neither = (row["accuracy"] for row in report(tmp_path)["rows"])
    assert neither >= 99
    assert max(whole, no_mlps, no_early) < 60  # the shift is left in
    write_run(tmp_path, None, linear_run(90, 3), "abc")
    run_script("compute_linear_probe", *arguments(tmp_path, "--keep_last_layers", 1))
    assert all(row["accuracy"] >= 99 for row in report(tmp_path)["rows"])


@pytest.mark.parametrize("absent, expected", [({"train": (2,)}, 1), ({"val": (0,), "test": (1, 2)}, 0)])
def test_classes_without_images_in_a_split(run_script, tmp_path, absent, expected):
    for split, (number, seed) in {"train": (90, 1), "val": (150, 2), "test": (60, 3)}.items():
        write_run(tmp_path, split, linear_run(number, seed, absent=absent.get(split, ())), "abc")
    code, out, err = run_script("compute_linear_probe", *arguments(tmp_path, "--keep_last_layers", 2))
    assert code == 0, err
    found = report(tmp_path)
    assert found["classes_not_in_train"] == expected
    labels = np.load(tmp_path / "flowers_labels.npy")
    assert found["rows"][0]["accuracy"] == pytest.approx(100 * np.mean(labels != 2) if expected else 100, abs=3.4)


def test_held_out_are_a_tenth_of_every_class():
    labels = np.random.default_rng(0).permutation(np.repeat([4, 7, 8, 9, 11], [40, 25, 3, 2, 1]))
    held = probe.hold_out(labels, 0)
    assert [int(held[labels == label].sum()) for label in (4, 7, 8, 9, 11)] == [4, 2, 1, 1, 0]
    assert np.array_equal(held, probe.hold_out(labels, 0))
    assert not np.array_equal(held, probe.hold_out(labels, 1))
    with pytest.raises(UserError, match="one image of each class"):
        probe.hold_out(np.arange(5), 0)


@pytest.mark.parametrize("peak, best", [(0.3, 0.25), (-6, -6), (6, 6), (3.9, 3.875), (100, 6)])
def test_the_search_finds_the_peak_to_an_eighth_of_a_decade(peak, best):
    tried = []

    def score(c):
        tried.append(c)
        return -abs(np.log10(c) - peak)

    found, scores = probe.search(score)
    assert found == best
    assert len(tried) == len(set(tried)) == len(scores) <= probe.SWEEP_FITS
    assert sorted(tried) == pytest.approx([10 ** exponent for exponent in sorted(scores)])
    assert min(tried) >= 1e-6
    assert max(tried) <= 1e6


def test_of_equal_scores_the_strongest_penalty_is_chosen():
    assert probe.search(lambda c: 50.0)[0] == -6
    found, scores = probe.search(lambda c: float(c >= 10))
    assert found == 1
    assert scores[0.875] == 0
    assert len(scores) == probe.SWEEP_FITS


def test_a_fit_that_has_not_converged_goes_on_and_says_so():
    run = random_run(200)
    x = run["attn"].sum(axis=(1, 2))
    _, iterations, converged = probe.fit(x, run["labels"], 10.0, 3)
    assert (iterations, converged) == (3, False)
    model, iterations, converged = probe.fit(x, run["labels"], 10.0, 3, 1000)
    assert converged
    assert 3 < iterations < 1000
    assert probe.fit(x, run["labels"], 10.0, *range(5, 1000, 5))[2]  # five at a time: from where it stood
    direct = LogisticRegression(C=10.0, tol=probe.TOLERANCE, max_iter=1000).fit(x, run["labels"])
    np.testing.assert_allclose(model.predict_proba(x), direct.predict_proba(x), atol=1e-3)


def test_what_did_not_converge_stands_in_table_and_json(run_script, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "EXPONENTS", (2, 6))  # with a strong penalty two iterations are enough
    monkeypatch.setattr(probe, "ITERATIONS", 2)
    monkeypatch.setattr(probe, "MORE_ITERATIONS", 4)
    code, out, err = run_script("compute_linear_probe", *real(folder, "--output_dir", tmp_path))
    assert code == 0, err
    assert out.count("not converged in 4 iterations") == 4, err
    found = report(tmp_path, "imagefolder_test_linear_probe_emojiclip")
    assert found["max_iterations"] == [2, 4]
    assert all(not row["converged"] and row["iterations"] == 4 and len(row["unconverged_C"]) > 3
               for row in found["rows"])


def test_missing_arrays_are_named_with_the_command_that_makes_them(refused, tmp_path):
    write_run(tmp_path, None, linear_run(20, 1), "abc")
    line = refused("compute_linear_probe", *arguments(tmp_path))
    assert "flowers_train_attn_m.npy does not exist; make it with: python compute_prs.py" in line
    assert "--split train" in line


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("change, message", [
    ({"weights": "bb"}, "made with other weights"),
    ({"classes": "abd"}, "has other classes than flowers; make both from"),
    ({"run": random_run(30) | {"labels": np.arange(30) % 3}}, "has other layers, heads or width than flowers")])
def test_splits_that_do_not_belong_together_are_refused(refused, tmp_path, split, change, message):
    for own in ("train", "val", "test"):
        write_run(tmp_path, own, **{"run": linear_run(30, 1), "classes": "abc"} | (change if own == split else {}))
    line = refused("compute_linear_probe", *arguments(tmp_path, "--keep_last_layers", 2))
    assert message in line
    assert f"flowers_{split}_attn_m.npy" in line


def test_a_folder_without_splits_is_not_probed_on_what_it_is_fitted_to(refused, tmp_path):
    """Its images are those of every split."""
    run = linear_run(30, 1)
    for split in ("train", "test"):
        builders.write_run(tmp_path, files.run_name("imagefolder", split), "m", {what: run[what] for what in (
            "attn", "mlp")}, run["labels"], classes=list("abc"), identity={"data_sha256": "one"})
    line = refused("compute_linear_probe", *arguments(tmp_path), "--dataset", "imagefolder", "--split", "test")
    assert "imagefolder_train_attn_m.npy: is of the same images as imagefolder_test, as the folder has no " in line


def test_a_train_split_that_teaches_nothing_is_refused(refused, tmp_path):
    write_run(tmp_path, None, linear_run(20, 2), "abc")
    write_run(tmp_path, "train", linear_run(20, 1, absent=(0, 2)), "abc")
    assert "of one class" in refused("compute_linear_probe", *arguments(tmp_path, "--keep_last_layers", 2))
    write_run(tmp_path, "train", {what: values[:2] for what, values in linear_run(20, 1).items()} | {
        "labels": np.array([0, 1])}, "abc")
    assert "one image of each class" in refused("compute_linear_probe", *arguments(tmp_path, "--keep_last_layers", 2))
