"""Repair of a classifier by scores of components: against literal definitions, with uneven heads, and by the script."""
import json

import literal
import numpy as np
import pytest
from builders import LABELS, NAMES, ROOT, split_components, uneven_run, write_classifier, write_run
from PIL import Image
from sklearn.linear_model import LogisticRegression

from utils.analysis import ablation, selection, zeroshot
from utils.data import datasets
from utils.models import loading
from utils.runs import files
from utils.runs.run import Run

GROUPS = ["land animal on land", "land animal on sea", "sea animal on land", "sea animal on sea"]
TEXTS = ("--spurious_texts", ROOT / "text_descriptions" / "spurious_backgrounds_emoji.txt",
         "--core_texts", ROOT / "text_descriptions" / "core_animals_emoji.txt")


def literal_right(flat, labels, weight, bias, chosen):
    """Which images are right with components [b, c, d] replaced one by one in double precision."""
    flat = flat.astype(np.float64)
    for column in chosen:
        flat[:, column] = sum(flat[:, column]) / len(flat)
    return np.array([(weight.T.astype(np.float64) @ image.sum(axis=0) + bias).argmax() == label
                     for image, label in zip(flat, labels)])


@pytest.mark.parametrize("images", [1, 64, 130])
@pytest.mark.parametrize("classes", [2, 3])
def test_ablation_is_the_literal_one(images, classes):
    run, flat = uneven_run(images, 5)
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(5, classes)).astype(np.float32)
    # else constants decide, whatever is ablated
    bias = rng.normal(size=classes) - flat.sum(axis=1).mean(axis=0) @ weight
    run.labels, means = rng.integers(0, classes, images), run.means()
    np.testing.assert_allclose(means, flat.astype(np.float64).mean(axis=0), atol=1e-6)
    sets = [(), [3, 0, 8], [1, 4, 7], [3], list(range(len(LABELS)))]
    found = ablation.right(run, means, weight, bias, sets)
    assert found.shape == (5, images)
    for own, chosen in zip(found, sets):
        np.testing.assert_array_equal(own, literal_right(flat, run.labels, weight, bias, chosen))
    if images > 1:
        assert len({tuple(own) for own in found}) > 3


def test_a_class_that_is_never_answered_is_none():
    run, _ = uneven_run(70, 5)
    weight, bias = np.zeros((5, 2), np.float32), np.array([-np.inf, 0])
    run.labels = np.arange(70) % 2
    found = ablation.right(run, run.means(), weight, bias, [(), [2]])
    np.testing.assert_array_equal(found, [run.labels == 1] * 2)


def test_the_ranking_is_by_the_difference_and_random_sets_are_drawn_without_replacement():
    scores = np.array([[0.5, 0.2, 0.9, -0.3], [0.6, -0.4, 0.5, -0.5]])
    assert selection.by_scores(scores, range(4)) == sorted(range(4), key=lambda c: scores[1, c] - scores[0, c]) == [1,
                                                                                                                    2,
                                                                                                                    3,
                                                                                                                    0]
    sets = selection.random_sets(range(20), 7, 50, 0)
    assert sets == selection.random_sets(range(20), 7, 50, 0) != selection.random_sets(range(20), 7, 50, 1)
    assert all(len(set(chosen)) == 7 for chosen in sets)
    assert {place for chosen in sets for place in chosen} == set(range(20))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of the scenes of emoji_spurious, with random components that code class and place: of a model "m" (uneven
    heads, width 7) and of "m-as-emojiclip" (width 128), on all three splits; a classifier."""
    folder, rng = tmp_path_factory.mktemp("repair"), np.random.default_rng(0)
    clip = loading.load("emojiclip", None, "cpu")
    own = clip.weights_hash
    cue, core = (zeroshot.embed_texts(clip, zeroshot.read_texts(TEXTS[i]), 99) for i in (1, 3))
    turns = {"m": rng.normal(size=(2, 7)), "m-as-emojiclip": np.stack([cue[1] - cue[2], core[0] - core[1]]) * 3}
    coding = rng.normal(size=(2, len(LABELS)))  # how much of the place and of the class each component writes
    constant = {model: rng.normal(size=(len(LABELS), turn.shape[1])) for model, turn in turns.items()}
    about = {"pretrained": "none", "classes": list(datasets.SPURIOUS_CLASSES), "skipped_images": [],
             "skipped_indices": []}
    text = {"text_model": "emojiclip", "text_option": "emojiclip", "text_pretrained": "emojiclip",
            "text_weights_sha256": own,
            "source_model": "m"}
    for split in ("train", "val", "test"):
        _, labels, places = datasets.embedded_scenes("emoji_spurious", split)
        truth = np.stack([np.array(places) * 2 - 1, np.array(labels) * 2 - 1])  # [2, b]
        amounts = np.einsum("kc,kb->bck", coding, truth) + rng.normal(size=(len(labels), len(LABELS), 2))
        for model, turn in turns.items():
            flat = amounts @ turn + constant[model] + rng.normal(size=(len(labels), len(LABELS), turn.shape[1])) * 0.3
            more = text if model != "m" else {}
            write_run(folder, files.run_name("emoji_spurious", split), model, split_components(flat, NAMES), labels,
                      NAMES,
                      **about | {"weights_sha256": model, **more})
    direction = turns["m-as-emojiclip"][1] + turns["m-as-emojiclip"][0]
    write_classifier(folder, "emoji_spurious", "emojiclip", np.stack([-direction, direction], axis=1), **about,
                     weights_sha256=own)
    return folder


def loaded(folder, model, split):
    run = Run.open(folder, "emoji_spurious", model, split, needs="components")
    _, labels, places = datasets.embedded_scenes("emoji_spurious", split or "test")
    return run.stack(slice(None)), np.array(labels), np.array(labels) * 2 + np.array(places)


def call(folder, out, *more):
    return ("compute_component_repair", "--model", "m-as-emojiclip", "--dataset", "emoji_spurious", "--input_dir",
            folder,
            "--output_dir", out, "--device", "cpu", *TEXTS, *more)


def literal_choice(folder, split):
    """The scores of every component on a split, and all components by their difference."""
    flat, _, _ = loaded(folder, "m-as-emojiclip", split)
    clip, whole = loading.load("emojiclip", None, "cpu"), flat.astype(np.float64).sum(axis=1)
    scores = np.array([[literal.feature_score(flat[:, c], whole,
                                              zeroshot.embed_texts(clip, zeroshot.read_texts(TEXTS[i]), 99))
                        for c in range(len(LABELS))] for i in (1, 3)])
    return scores, sorted(range(len(LABELS)), key=lambda c: scores[1, c] - scores[0, c])


def check_figures(found, flat, labels, group, weight, bias, chosen):
    for key, places in (("baseline", ()), ("ablated", chosen),
                        ("random_best", [LABELS.index(name) for name in found["random_best_components"]])):
        right = literal_right(flat, labels, weight, bias, places)
        assert found[key]["groups"] == pytest.approx(literal.group_accuracies(right, group, GROUPS), abs=0.6), key
        assert found[key]["overall"] == pytest.approx(100 * right.mean(), abs=0.3), key
        assert found[key]["worst_group"] == min(found[key]["groups"].values())


def test_with_texts_the_mapped_components_are_ablated_and_every_figure_is_the_literal_one(run_script, runs, tmp_path):
    code, out, err = run_script(*call(runs, tmp_path, "--components", 4, "--random_trials", 5))
    assert code == 0, err
    path = tmp_path / "emoji_spurious_component_repair_texts_m-as-emojiclip.json"
    found = json.loads(path.read_text())
    scores, order = literal_choice(runs, "val")
    assert found["components"] == [LABELS[place] for place in order[:4]]
    assert [tuple(entry.values()) for entry in found["scores"].values()] == [pytest.approx(column, abs=1e-5)
                                                                             for column in scores.T.tolist()]
    assert list(found["scores"]) == LABELS
    assert found["linear_head"] is None
    flat, labels, group = loaded(runs, "m-as-emojiclip", None)
    weight = np.load(runs / "emoji_spurious_classifier_emojiclip.npy")
    check_figures(found, flat, labels, group, weight, 0, order[:4])
    assert found["images_of_groups"] == {name: int((group == i).sum()) for i, name in enumerate(GROUPS)}
    assert found["ablated"]["worst_group"] > found["baseline"]["worst_group"] + 5
    assert (found["images"], found["split"], found["ablated_in_the_space_of"]) == (800, "test", "m-as-emojiclip")
    before, after = found["baseline"]["overall"], found["ablated"]["overall"]
    assert out.startswith(f"Baseline: {before}\nReplaced: {after}\n4 components")
    row = next(line for line in out.splitlines() if line.startswith("worst group")).split()
    assert row[2:] == [f"{found[key]['worst_group']:.1f}"
                       for key in ("baseline", "ablated", "random_best", "random_mean")]
    assert Image.open(path.with_suffix(".png")).width > 1000
    other = literal_choice(runs, "train")[1]
    assert run_script(*
                      call(runs, tmp_path, "--components", len(LABELS), "--select_split", "train", "--random_trials",
                           1))[0] == 0
    found = json.loads(path.read_text())
    assert found["components"] == [LABELS[place] for place in other]
    assert found["options"]["select_split"] == "train"
    assert other != order
    assert found["ablated"] == found["random_mean"]  # all of them


def test_with_a_probe_the_components_of_the_model_itself_are_ablated(run_script, runs, tmp_path):
    code, _, err = run_script(*call(runs, tmp_path, "--components", 4, "--classifier", "probe", "--random_trials", 2))
    assert code == 0, err
    path = tmp_path / "emoji_spurious_component_repair_probe_m-as-emojiclip.json"
    found = json.loads(path.read_text())
    order = literal_choice(runs, "val")[1]
    assert found["components"] == [LABELS[place] for place in order[:4]]
    assert found["ablated_in_the_space_of"] == "m"
    train, train_labels, _ = loaded(runs, "m", "train")
    head = LogisticRegression(C=found["linear_head"]["C"], tol=1e-6, max_iter=10_000).fit(train.sum(axis=1),
                                                                                          train_labels)
    weight, bias = np.stack([0 * head.coef_[0], head.coef_[0]], axis=1), np.array([0, head.intercept_[0]])
    check_figures(found, *loaded(runs, "m", None), weight, bias, order[:4])
    assert run_script(*call(runs, tmp_path / "b", "--components", 4, "--classifier", "probe", "--random_trials", 2,
                            "--source_model", "m"))[0] == 0
    assert (tmp_path / "b" / path.name).read_text() == path.read_text()


@pytest.mark.parametrize("file, change, message", [
    ("emoji_spurious_val_m-as-emojiclip.json", {"weights_sha256": "0"}, "made with other weights"),
    ("emoji_spurious_components_m-as-emojiclip.json", {"mlp": NAMES["mlp"][::-1]}, "has other components than the run"),
    ("emoji_spurious_classifier_emojiclip.json", {"weights_sha256": "0"}, "made with other weights"),
    ("emoji_spurious_m-as-emojiclip.json", {"classes": ["a", "b"]}, "has other classes than")])
def test_what_does_not_belong_together_is_one_line(refused, runs, tmp_path, file, change, message):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in runs.iterdir():
        (copy / path.name).symlink_to(path)
    content = json.loads((copy / file).read_text())
    (copy / file).unlink()
    (copy / file).write_text(json.dumps(content | change))
    assert message in refused(*call(copy, tmp_path / "new"))


def test_the_texts_of_waterbirds_are_the_published_ones():
    from compute_component_repair import get_args_parser

    args = get_args_parser().parse_args([])
    spurious, core = (zeroshot.read_texts(ROOT / path) for path in (args.spurious_texts, args.core_texts))
    assert spurious == "water ocean lake sky land forest trees bamboo leaves".split()
    assert core == "bird finch hummingbird crow sparrow swan albatross pelican".split()
    assert args.components == 10
    assert args.random_trials == 10
    assert args.select_split == "val"
