"""Cumulative ablation: the whole curve against replacing terms one by one, its linear heads, and the script."""
import json

import numpy as np
import pytest
from builders import NAMES, components_of, opened, uneven_terms, write_classifier, write_run
from PIL import Image
from sklearn.linear_model import LogisticRegression

from utils.analysis import ablation, probe
from utils.cli import UserError
from utils.runs.components import Component
from utils.runs.run import Run

ORDER = ["embedding", "mlp 3", "attn 3", "conv 2", "mlp 1", "attn 1", "mlp 0", "attn 0", "conv 0"]
# The rows of `uneven` in the order in which they go: attn 0 to 5, embed and MLPs 6 to 9, conv 10 and 11.
PLACES = [[6], [9], [3, 4, 5], [11], [8], [2], [7], [0, 1], [10]]


def literal_curve(parts, labels, weight, bias, places):
    """Accuracy after each step: the mean over images written into every image's terms, one after the other."""
    x = np.concatenate([part for what, part in parts.items() if what != "labels"], axis=1).astype(np.float64)
    means, found = x.mean(axis=0), []
    for step in [[], *places]:
        for image in x:
            for place in step:
                image[place] = means[place]
        right = [np.argmax([image.sum(axis=0) @ weight[:, c] + bias[c] for c in range(len(bias))]) == label
                 for image, label in zip(x, labels)]
        found.append(100 * sum(right) / len(right))
    return found


def labelled(images, seed=0, classes=4):
    """A run with a convolution and uneven heads, labels, and the linear head that tells them from its terms."""
    parts, weight = uneven_terms(images,
                                 seed=seed), np.random.default_rng(8).normal(size=(7, classes)).astype(np.float32)
    # classes are balanced
    bias = -np.concatenate(list(uneven_terms(1000).values()), axis=1).sum(axis=1).mean(axis=0) @ weight
    logits = np.concatenate(list(parts.values()), axis=1).sum(axis=1) @ weight + bias
    return parts, logits.argmax(axis=1), weight, bias


def test_layers_go_from_the_last_back_and_a_block_has_no_more_than_it_has():
    def layers(components):
        return {str(layer): columns for layer, columns in ablation.layers_from_the_last(components).items()}

    uneven = layers(opened(uneven_terms(1), NAMES).components)
    assert list(uneven) == ORDER
    assert list(uneven.values()) == PLACES
    plain = layers(opened({"attn": np.zeros((1, 2, 3, 4)), "mlp": np.zeros((1, 3, 4))}).components)
    assert list(plain.items()) == [
        ("embedding", [6]), ("mlp 1", [8]), ("attn 1", [3, 4, 5]), ("mlp 0", [7]), ("attn 0", [0, 1, 2])]
    assert list(layers([Component("mlp", 10), Component("mlp", 9)])) == ["mlp 10", "mlp 9"]


@pytest.mark.parametrize("images", [1, 63, 131])
def test_the_curve_is_the_literal_one(images):
    parts, labels, weight, bias = labelled(images)
    found = ablation.cumulative(opened(parts | {"labels": labels}, NAMES), PLACES, weight, bias)
    assert found == pytest.approx(literal_curve(parts, labels, weight, bias, PLACES))
    assert found[0] == 100
    assert images == 1 or len(set(found)) > 6
    assert len(found) == 10


def test_its_ends_are_the_whole_model_and_a_constant_answer(emoji_run):
    run = Run.open(emoji_run / "out", "imagefolder", "emojiclip", needs="components")
    classifier, layers = run.classifier(), list(ablation.layers_from_the_last(run.components).values())
    found = ablation.cumulative(run, layers, classifier, np.zeros(classifier.shape[1]))
    assert len(found) == 14
    assert found[0] == pytest.approx(ablation.accuracies(run, classifier)["baseline"])
    assert found[0] > 30
    shares = np.bincount(run.labels) / len(run)
    assert any(found[-1] == pytest.approx(100 * share) for share in {0, *shares})
    slow = literal_curve({"attn": run.stack(slice(None))}, run.labels, classifier, np.zeros(classifier.shape[1]),
                         [[36], [42], list(range(30, 36))])
    assert found[:4] == pytest.approx(slow)


def splits_of(classes, parts):
    """Splits of a run whose labels, among some classes, a linear head can nearly tell."""
    weight = np.random.default_rng(9).normal(size=(7, len(classes)))
    found = {}
    for seed, part in enumerate(parts):
        run = {what: values - values.mean(axis=0) for what, values in uneven_terms(400, seed=seed).items()}
        scores = components_of(run).sum(axis=1) @ weight
        labels = np.array(classes)[(scores + np.random.default_rng(seed).normal(size=scores.shape)).argmax(axis=1)]
        found[part] = opened(run | {"labels": labels}, NAMES)
    return found


def whole(run):
    return run.stack(slice(None)).sum(axis=1)


@pytest.mark.parametrize("parts", [("test", "train", "validation"), ("test", "train")])
@pytest.mark.parametrize("classes", [(0, 1), (1, 3), (0, 2, 3, 5)])
def test_the_linear_head_is_sklearns(classes, parts):
    splits = splits_of(classes, parts)
    weight, bias, told = probe.fit_head(splits, 0)
    x, labels = whole(splits["train"]), splits["train"].labels
    sklearns = LogisticRegression(C=told["C"], tol=1e-6, max_iter=5000).fit(x, labels)
    test = whole(splits["test"])
    answers = (test @ weight + bias).argmax(axis=1)
    assert weight.shape == (7, max(classes) + 1)
    assert set(answers) <= set(classes)
    assert (answers == sklearns.predict(test)).mean() > 0.995
    assert (answers == splits["test"].labels).mean() > 0.8
    assert told["converged"]
    assert told["images"] == 400
    if "validation" in parts:
        judged = 100 * sklearns.score(whole(splits["validation"]), splits["validation"].labels)
        assert told["validation"] == "val split"
        assert told["validation_accuracy"] == pytest.approx(judged, abs=0.5)
    else:
        assert told["validation"] == "held out of train"
        assert 80 < told["validation_accuracy"] <= 100


def test_a_probe_of_one_class_is_refused():
    splits = splits_of((0, 1), ("test", "train"))
    splits["train"].labels[:] = 1
    with pytest.raises(UserError, match="all images of the train split are of one class; a probe needs two"):
        probe.fit_head(splits, 0)


@pytest.fixture
def folder(tmp_path):
    """Two runs of emoji, splits test and train: "clip", and "m-as-clip" with a convolution and uneven heads."""
    about = {"text_model": "clip", "text_option": "clip", "text_pretrained": "w", "text_weights_sha256": "aa",
             "classes": list("abcd")}
    for dataset, images, seed in (("emoji", 131, 0), ("emoji_train", 300, 1)):
        parts, labels, weight, _ = labelled(images, seed=seed)
        write_run(tmp_path, dataset, "m-as-clip", parts, labels, NAMES, **about)
        write_run(tmp_path, dataset, "timm-m", parts, labels, NAMES, classes=list("abcd"), model="timm:m")
        total = np.concatenate(list(parts.values()), axis=1).sum(axis=1)
        rng = np.random.default_rng(seed)
        halves = rng.normal(size=(images, 3, 7))
        write_run(tmp_path, dataset, "clip", {"attn": halves[:, :2, None], "mlp": np.stack(
            [halves[:, 2], total - halves.sum(axis=1), 0 * total], axis=1)}, labels, classes=list("abcd"))
    parts, labels, weight, bias = labelled(131)
    write_classifier(tmp_path, "emoji", "clip", weight, classes=list("abcd"))
    return tmp_path


def options(folder, *more):
    return ("--dataset", "emoji", "--input_dir", folder, *more)


def test_the_script_draws_several_models_and_names_every_step(run_script, folder):
    code, out, err = run_script("compute_component_ablation", *options(folder, "--model", "clip", "m-as-clip", "clip"))
    assert code == 0, err
    parts, labels, weight, _ = labelled(131)
    told = json.loads((folder / "emoji_component_ablation_m-as-clip.json").read_text())
    assert [step["ablated"] for step in told["steps"]] == ["nothing", *ORDER]
    assert [step["components"] for step in told["steps"]] == [0, 1, 2, 5, 6, 7, 8, 9, 11, 12]
    assert told["number_of_components"] == 12
    slow = literal_curve(parts, labels, weight, np.zeros(4), PLACES)
    assert [step["accuracy"] for step in told["steps"]] == pytest.approx(slow)
    assert told["steps"][3] == {"ablated": "attn 3", "kind": "attn", "block": 3, "components": 5,
                                "accuracy": told["steps"][3]["accuracy"]}
    other = json.loads((folder / "emoji_component_ablation_clip.json").read_text())
    assert [step["ablated"] for step in other["steps"]] == ["nothing", "embedding", "mlp 1", "attn 1", "mlp 0",
                                                            "attn 0"]
    assert other["steps"][0]["accuracy"] == pytest.approx(told["steps"][0]["accuracy"])  # the same sums, other terms
    lines = out.splitlines()
    assert lines[0] == "clip, zero-shot, 131 images"
    assert lines.count(lines[0]) == 1
    assert f"  attn 3    {told['steps'][3]['accuracy']:6.1f}" in lines
    picture = Image.open(folder / "emoji_component_ablation.png")
    assert picture.format == "PNG"
    assert picture.width > 900
    colors = {color for _, color in picture.convert("RGB").getcolors(1 << 20)}
    assert {(31, 119, 180), (255, 127, 14)} <= colors
    assert (44, 160, 44) not in colors  # two lines, not three


def test_models_without_texts_take_a_probe(run_script, refused, folder):
    assert "--model timm:m has no text side; give --probe, or map it" in refused(
        "compute_component_ablation", *options(folder, "--model", "clip", "timm:m"))
    code, out, err = run_script("compute_component_ablation", *options(
        folder, "--model", "timm:m", "clip", "--probe", "--output_dir", folder / "new"))
    assert code == 0, err
    first, second = (json.loads((folder / "new" / f"emoji_component_ablation_probe_{model}.json").read_text())
                     for model in ("timm-m", "clip"))
    assert first["probe"]["validation"] == "held out of train"
    assert first["probe"]["images"] == 300
    assert first["steps"][0]["accuracy"] == pytest.approx(second["steps"][0]["accuracy"], abs=1)
    train, labels, *_ = labelled(300, seed=1)
    total = {what: np.concatenate(list(run.values()), axis=1).sum(axis=1) for what, run in (("train", train),
                                                                                          ("test", labelled(131)[0]))}
    probe = LogisticRegression(C=first["probe"]["C"], tol=1e-6, max_iter=10_000).fit(total["train"], labels)
    slow = literal_curve(*labelled(131)[:2], probe.coef_.T, probe.intercept_, PLACES)
    assert slow[0] > 90
    assert [step["accuracy"] for step in first["steps"]] == pytest.approx(slow, abs=2)
    assert out.startswith("timm-m, linear probe, 131 images\n")
    assert Image.open(folder / "new" / "emoji_component_ablation_probe.png").format == "PNG"


def test_what_does_not_belong_together_is_one_line(refused, folder):
    def line(*more):
        return refused("compute_component_ablation", *options(folder, *more))

    write_run(folder, "emoji_train", "clip", {"attn": np.zeros((4, 2, 1, 7)), "mlp": np.zeros((4, 3, 7))},
              np.zeros(4, int),
              classes=list("abcd"), weights_sha256="bb")
    assert "made with other weights" in line("--model", "clip", "--probe")
    (folder / "emoji_classifier_clip.npy").unlink()
    assert "make it with: python compute_text_projection.py --dataset emoji --model clip" in line("--model",
                                                                                                  "m-as-clip")


def test_a_settings_file_names_models_in_a_line(run_script, folder):
    path = folder / "s.yaml"
    path.write_text("model: clip m-as-clip\n")
    code, out, err = run_script("compute_component_ablation", *options(folder, "--config", path))
    assert code == 0, err
    assert out.count("zero-shot, 131 images") == 2, err
