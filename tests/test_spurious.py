import literal
import numpy as np
import pytest
from builders import ROOT, opened

from utils.analysis import ablation, groups, selection, zeroshot
from utils.analysis.component_scores import feature_scores
from utils.cli import UserError
from utils.data import datasets
from utils.runs.files import Place
from utils.runs.run import Run

NAMES = ("a on land", "a on sea", "b on land", "b on sea")


def make_run(images=300, l=3, h=2, d=5, classes=2, places=2, seed=0, cue=0.0):
    """Random terms whose images differ by class and place, in unequal groups none of which is empty; `cue` is added to
    head (2, 1) along the place's direction. Returns run, classifier, group."""
    rng = np.random.default_rng(seed)
    group = np.concatenate([np.arange(classes * places), rng.choice(classes * places, images - classes * places,
                                                                    p=rng.dirichlet(np.full(classes * places, 3.0)))])
    label, place = group // places, group % places
    offsets = {name: rng.normal(size=(classes + places, *shape)) * 0.5 for name, shape in
               (("attn", (l, h, d)), ("mlp", (l + 1, d)))}
    run = {name: (rng.normal(size=(images, *offset.shape[1:])) + offset[label] +
                  offset[classes + place]).astype(np.float32)
           for name, offset in offsets.items()}
    classifier = rng.normal(size=(d, classes)).astype(np.float32)
    run["attn"][:, 2, 1] += cue * np.where(place == 1, 1, -1)[:, None] * (classifier[:, 1] - classifier[:, 0])
    return {**run, "labels": label}, classifier, group


def literal_shares(run, classifier, group, classes, places):
    """Shares of all heads and of all entries of mlp: two pairs (place, class)."""
    components = {("attn", l, h): run["attn"][:, l, h] for l in range(run["attn"].shape[1])
                  for h in range(run["attn"].shape[2])}
    components |= {("mlp", i): run["mlp"][:, i] for i in range(run["mlp"].shape[1])}
    whole = literal.main_effects(sum(term.astype(np.float64) for term in components.values()), classifier, group,
                                 classes, places)
    shares = {}
    for key, component in components.items():
        own = literal.main_effects(component, classifier, group, classes, places)
        shares[key] = [sum(a @ b for a, b in zip(own[i], whole[i])) / sum(b @ b for b in whole[i]) for i in (0, 1)]
    return shares


def test_group_accuracies_are_the_literal_ones():
    rng = np.random.default_rng(1)
    right, group = rng.random(57) < 0.6, rng.choice([0, 1, 3], 57)
    found = groups.accuracies(right, group, NAMES)
    slow = literal.group_accuracies(right, group, NAMES)
    assert found["groups"] == pytest.approx(slow)
    assert found["groups"]["b on land"] is None
    filled = [value for value in slow.values() if value is not None]
    assert len(filled) == 3
    assert found["worst_group"] == min(filled)
    assert found["average_of_groups"] == pytest.approx(sum(filled) / 3)
    assert found["overall"] == pytest.approx(100 * sum(right) / 57)
    assert groups.sizes(group, NAMES) == {name: list(group).count(index) for index, name in enumerate(NAMES)}


def test_a_group_without_images_is_not_the_worst():
    found = groups.accuracies(np.array([True, True]), np.array([0, 3]), NAMES)
    assert found["worst_group"] == 100
    assert found["groups"]["a on sea"] is None


def test_without_groups_there_is_the_overall_accuracy_alone():
    found = groups.accuracies(np.array([True, False]), None, ())
    assert found == {"overall": 50, "average_of_groups": None, "worst_group": None, "groups": {}}
    assert groups.goal(found) == 50
    assert groups.goal(found | {"worst_group": 7}) == 7
    assert groups.average([found, found | {"overall": 100}]) == found | {"overall": 75}
    assert "worst" not in groups.table({"x": found}, {}, {"x": "before"})


def test_the_table_is_aligned_and_shows_what_is_empty():
    found = groups.accuracies(np.array([True, False, True]), np.array([0, 0, 3]), NAMES)
    lines = groups.table({"x": found, "y": groups.average([found])}, groups.sizes(np.array([0, 0, 3]), NAMES),
                           {"x": "before", "y": "after"}).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len(lines) == 8
    assert lines[0].split() == ["images", "before", "after"]
    assert lines[1].split() == ["a", "on", "land", "2", "50.0", "50.0"]
    assert lines[2].split() == ["a", "on", "sea", "0", "-", "-"]
    assert lines[-1].split() == ["worst", "group", "50.0", "50.0"]


def right(run, classifier, sets, last_layers=None, mlps=True):
    """Which images are right with sets of heads (layer, head) ablated, of layers with two heads each."""
    columns = [[2 * layer + head for layer, head in chosen] for chosen in sets]
    return ablation.right(run, run.means(), classifier, 0, columns, ablation.all_but(run, last_layers, mlps))


@pytest.mark.parametrize("images", [4, 256, 300])
@pytest.mark.parametrize("last_layers, mlps", [(3, True), (2, True), (1, False)])
def test_right_answers_with_heads_ablated_are_the_literal_ones(images, last_layers, mlps):
    run, classifier, _ = make_run(images)
    sets = [(), [(2, 1)], [(2, 0), (2, 1)]]
    found = right(opened(run), classifier, sets, last_layers, mlps)
    for answers, chosen in zip(found, sets):
        np.testing.assert_array_equal(answers, literal.right_answers(run, classifier, chosen, last_layers, mlps))
    if images == 300:
        assert not np.array_equal(found[0], found[1])


def test_one_image_alone_and_arrays_in_half_precision():
    run, classifier, _ = make_run(300)
    single = opened({name: array[:1] for name, array in run.items()})
    assert right(single, classifier, [(), [(1, 0)]]).shape == (2, 1)
    half = run | {name: run[name].astype(np.float16) for name in ("attn", "mlp")}
    found, = right(opened(half), classifier, [[(2, 1)]], 2)
    np.testing.assert_array_equal(found, literal.right_answers(half, classifier, [(2, 1)], 2, True))


@pytest.mark.parametrize("classes, places", [(2, 2), (3, 2), (2, 3), (4, 3)])
@pytest.mark.parametrize("images", [40, 300])
def test_shares_of_effects_are_the_literal_ones(classes, places, images):
    run, classifier, group = make_run(images, classes=classes, places=places)
    place, label = selection.effect_shares(opened(run), classifier, group, places)
    slow = literal_shares(run, classifier, group, classes, places)
    for column, head in enumerate(opened(run).heads):
        expected = slow["attn", head.layer, head.head]
        assert [place[column], label[column]] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert sum(pair[0] for pair in slow.values()) == pytest.approx(1) == sum(pair[1] for pair in slow.values())


def test_shares_of_two_classes_and_places_are_those_of_the_differences():
    run, classifier, group = make_run(120)
    place, label = selection.effect_shares(opened(run), classifier, group, 2)
    difference = classifier[:, 1] - classifier[:, 0]
    logits = {name: run[name].astype(np.float64) @ difference for name in ("attn", "mlp")}
    cell = [{name: values[group == index].mean(axis=0) for name, values in logits.items()} for index in range(4)]
    for found, (plus, minus) in ((place, ((1, 3), (0, 2))), (label, ((2, 3), (0, 1)))):
        effect = {name: sum(cell[i][name] for i in plus) - sum(cell[i][name] for i in minus) for name in logits}
        np.testing.assert_allclose(found, effect["attn"].ravel() / (effect["attn"].sum() + effect["mlp"].sum()),
                                   atol=1e-4)


def test_the_sizes_of_groups_do_not_matter():
    run, classifier, group = make_run(60)
    once = selection.effect_shares(opened(run), classifier, group, 2)
    rows = np.concatenate([np.arange(60), *[np.flatnonzero(group == 1)] * 7])
    again = selection.effect_shares(opened({name: array[rows] for name, array in run.items()}), classifier, group[rows],
                                    2)
    np.testing.assert_allclose(once, again, atol=1e-4)


def test_terms_without_any_effect_have_no_share():
    run, classifier, group = make_run(60)
    run = run | {name: np.zeros_like(run[name]) for name in ("attn", "mlp")}
    assert not np.any(selection.effect_shares(opened(run), classifier, group, 2))


def test_an_empty_group_is_refused_for_selection():
    run, classifier, group = make_run(60)
    keep = group != 2
    with pytest.raises(UserError, match="has no images of b on land; choose them on another"):
        selection.by_effects(opened({name: array[keep] for name, array in run.items()}), classifier, group[keep],
                                   NAMES, 2, True)


def test_heads_are_selected_by_their_effects():
    run, classifier, group = make_run(400, d=8, seed=10, cue=2.0)
    shares = literal_shares(run, classifier, group, 2, 2)
    ranked = sorted(((2, 0), (2, 1), (1, 0), (1, 1)), key=lambda key: shares["attn", *key][1] - shares["attn", *key][0])
    ranked = [key for key in ranked if shares["attn", *key][0] > 0]
    assert ranked[0] == (2, 1)
    assert 1 < len(ranked) < 4  # a head works against the place's effect, and is never ablated
    worst = []
    for k in range(len(ranked) + 1):
        right = literal.right_answers(run, classifier, ranked[:k], 2, True)
        worst.append(min(literal.group_accuracies(right, group, NAMES).values()))
    found, how = selection.by_effects(opened(run), classifier, group, NAMES, 2, True)
    assert how["worst_group_by_number_of_heads"] == pytest.approx(worst)
    assert worst[1] > worst[0]
    columns = [2 * layer + head for layer, head in ranked]
    assert found == columns[:worst.index(max(worst))]
    assert set(how["heads"]) == {"1.0", "1.1", "2.0", "2.1"}
    assert how["heads"]["2.1"]["place_share"] == pytest.approx(shares["attn", 2, 1][0], abs=1e-5)
    assert selection.by_effects(opened(run), classifier, group, NAMES, 2, True, 2)[0] == columns[:2]
    with pytest.raises(UserError, match=f"--number_of_heads is 4, and only {len(ranked)} heads"):
        selection.by_effects(opened(run), classifier, group, NAMES, 2, True, 4)


def test_of_numbers_that_are_alike_the_smaller_is_chosen():
    run, classifier, group = make_run(400, d=8, seed=10)
    run["mlp"][:, 0] += 1000 * classifier[:, 0]  # one class is answered always, whatever is ablated
    found, how = selection.by_effects(opened(run), classifier, group, NAMES, 2, True)
    assert found == []
    assert len(how["worst_group_by_number_of_heads"]) > 1
    assert not any(how["worst_group_by_number_of_heads"])


@pytest.mark.parametrize("images", [1, 2, 64, 150])
def test_feature_scores_are_the_literal_correlations(images):
    run, _, _ = make_run(images + 4, d=9, seed=2)
    run = {name: array[:images] for name, array in run.items()}
    run["attn"] += 100 * np.arange(6, dtype=np.float32).reshape(3, 2, 1)  # far from 0
    run["attn"][:, 1, 1] = np.random.default_rng(5).normal(size=9)
    features = [np.random.default_rng(seed).normal(size=(m, 9)).astype(np.float32)
                for seed, m in ((0, 4), (1, 1), (2, 9))]
    found = feature_scores(opened(run).stacks("scores"), features)
    assert found.shape == (3, 10)
    every = np.concatenate([run["attn"].reshape(images, 6, 9), run["mlp"]], axis=1)
    for row, texts in zip(found, features):
        slow = [literal.feature_score(every[:, c], every.astype(np.float64).sum(axis=1), texts) if images > 1 else 0
                for c in range(10)]
        np.testing.assert_allclose(row, slow, atol=1e-6)
    assert not found[:, 3].any()  # layer 1, head 1 is the same for every image
    if images > 2:
        assert np.abs(np.delete(found, 3, axis=1)).min() > 0


def test_feature_scores_do_not_depend_on_the_blocks():
    every = np.random.default_rng(0).normal(size=(50, 4, 6))
    texts = [np.random.default_rng(1).normal(size=(3, 6))]
    whole = feature_scores([every], texts)
    np.testing.assert_allclose(feature_scores(np.split(every, [1, 7, 30]), texts), whole, atol=1e-12)


def test_a_component_that_is_the_whole_scores_one_and_its_opposite_minus_one():
    x = np.random.default_rng(0).normal(size=(50, 1, 6))
    texts = [np.random.default_rng(1).normal(size=(3, 6))]
    found = feature_scores([np.concatenate([3 * x, -x, np.full_like(x, 0.1)], axis=1)], texts)
    np.testing.assert_allclose(found, [[1, -1, 0]], atol=1e-12)
    assert not feature_scores([np.concatenate([x, -x], axis=1)], texts).any()  # the whole is constant


def test_a_component_far_from_zero_loses_no_digits_and_rounding_noise_counts_as_constant():
    rng = np.random.default_rng(0)
    every, offset = rng.normal(size=(50, 3, 6)), 1e5 * rng.normal(size=6)
    texts = [rng.normal(size=(3, 6))]
    near = feature_scores([every], texts)
    np.testing.assert_allclose(feature_scores([every + offset * np.array([1, -1, 0])[:, None]], texts), near, atol=1e-9)
    noisy = np.concatenate([every, offset * (1 + 1e-7 * rng.normal(size=(50, 1, 6)))], axis=1)
    found = feature_scores([noisy], texts)
    assert found[0, 3] == 0
    assert np.abs(found[0, :3]).min() > 0


def test_random_sets_are_of_the_kept_heads_without_repeats():
    pool = range(16, 24)
    sets = selection.random_sets(pool, 3, 20, seed=1)
    assert len(sets) == 20
    assert all(len(set(chosen)) == 3 and set(chosen) <= set(pool) for chosen in sets)
    assert len(set(map(tuple, sets))) > 5
    assert sets == selection.random_sets(pool, 3, 20, seed=1) != selection.random_sets(pool, 3, 20, seed=2)
    assert selection.random_sets(pool, 0, 2, seed=1) == [[], []]


def run_of(dataset, labels, split=None, manifest=None):
    """A run with these labels, whose terms do not matter."""
    arrays = {"attn": np.zeros((len(labels), 1, 1, 2)), "mlp": np.zeros((len(labels), 2, 2))}
    return Run(arrays, labels=np.array(labels), manifest=manifest, place=Place("", dataset, "m", split))


def test_groups_are_class_by_place_and_skip_images_that_were_left_out():
    _, labels, places = datasets.embedded_scenes("emoji_spurious", "val")
    group = groups.of_images(run_of("emoji_spurious", labels, "val"), None)
    names = groups.names("emoji_spurious")
    assert names == ["land animal on land", "land animal on sea", "sea animal on land", "sea animal on sea"]
    assert [names[i] for i in group[:9]] == [f"{('land', 'sea')[y]} animal on {('land', 'sea')[p]}"
                                             for y, p in zip(labels[:9], places[:9])]
    manifest = {"skipped_indices": [0, 5], "classes": list(datasets.SPURIOUS_CLASSES)}
    short = groups.of_images(run_of("emoji_spurious", np.delete(labels, [0, 5]), "val", manifest), None)
    np.testing.assert_array_equal(short, np.delete(group, [0, 5]))
    assert groups.of_images(run_of("emoji", np.zeros(3)), None) is None
    assert groups.names("emoji") == []
    assert groups.names("binary_waterbirds") == ["landbird on land", "landbird on water", "waterbird on land",
                                                         "waterbird on water"]


def test_arrays_of_other_images_are_refused():
    _, labels, _ = datasets.embedded_scenes("emoji_spurious", "val")
    with pytest.raises(UserError, match="other labels than the arrays"):
        groups.of_images(run_of("emoji_spurious", 1 - np.array(labels), "val"), None)
    with pytest.raises(UserError, match="400 images, and the arrays hold 399"):
        groups.of_images(run_of("emoji_spurious", labels[1:], "val"), None)


@pytest.mark.parametrize("name", ["spurious_backgrounds_emoji", "core_animals_emoji", "spurious_backgrounds_waterbirds",
                                  "core_birds_waterbirds"])
def test_the_texts_can_be_read(name):
    assert 4 < len(zeroshot.read_texts(ROOT / "text_descriptions" / f"{name}.txt")) < 11
