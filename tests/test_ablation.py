import numpy as np
import pytest
from builders import opened

from utils.analysis import ablation
from utils.runs import files
from utils.runs.components import Component


def random_run(seed=0, images=37, layers=4, heads=3, width=7, classes=5):
    rng = np.random.default_rng(seed)
    run = {"attn": rng.standard_normal((images, layers, heads, width)).astype(np.float32),
           "mlp": rng.standard_normal((images, layers + 1, width)).astype(np.float32),
           "labels": rng.integers(classes, size=images)}
    return run, rng.standard_normal((width, classes)).astype(np.float32)


def literal_representations(run, means, heads, last_layers, mlps):
    """Each component of each image in turn: its own, or its mean."""
    found = np.zeros((len(run["attn"]), run["attn"].shape[-1]))
    layers, number = run["attn"].shape[1:3]
    for i in range(len(found)):
        for layer in range(layers):
            for head in range(number):
                off = (layer, head) in heads or (last_layers is not None and layer < layers - last_layers)
                found[i] += means[layer * number + head] if off else run["attn"][i, layer, head]
        for layer in range(layers + 1):
            found[i] += run["mlp"][i, layer] if mlps else means[layers * number + layer]
    return found


def recipe(run, heads, last_layers, mlps):
    """The columns of these heads, all attention layers but the last, and without `mlps` all of them, by hand."""
    layers, number = run["attn"].shape[1:3]
    early = 0 if last_layers is None else layers - last_layers
    others = [] if mlps else range(layers * number, layers * number + layers + 1)
    return [*(layer * number + head for layer, head in heads), *range(early * number), *others]


@pytest.mark.parametrize("block", (1, 16, 256))
@pytest.mark.parametrize("heads, last_layers, mlps", [
    ((), None, True), (((1, 2), (3, 0)), None, True), ((), 2, False), (((0, 0), (3, 1)), 1, True), ((), 4, False),
    (tuple((3, head) for head in range(3)), 1, True)])
def test_representations_equal_the_definition(monkeypatch, block, heads, last_layers, mlps):
    monkeypatch.setattr(files.blocks, "__defaults__", (block, "images"))
    run, _ = random_run()
    means, columns = opened(run).means(), recipe(run, heads, last_layers, mlps)
    assert set(ablation.all_but(opened(run), last_layers, mlps)) == set(recipe(run, (), last_layers, mlps))
    found = np.zeros((37, 7), np.float32)
    for part, values in ablation.representations(opened(run), means, columns):
        assert values.dtype == np.float32
        assert len(values) <= block
        found[part] = values
    np.testing.assert_allclose(found, literal_representations(run, means, heads, last_layers, mlps), atol=1e-5)


def test_the_means_may_be_those_of_another_run():
    run, _ = random_run(images=5)
    other, _ = random_run(seed=1)
    means = opened(other).means()
    (_, found), = ablation.representations(opened(run), means, recipe(run, [(2, 1)], 2, False))
    np.testing.assert_allclose(found, literal_representations(run, means, [(2, 1)], 2, False), atol=1e-5)


@pytest.mark.parametrize("images", (1, 37, 300))
def test_single_heads_equal_ablating_each_alone(images):
    run, classifier = random_run(images=images)
    found = ablation.single_heads(opened(run), classifier, last_layers=2)
    assert list(found) == [Component("attn", layer, head) for layer in (2, 3) for head in range(3)]
    means, whole = opened(run).means(), opened(run).whole(slice(None))
    before = (literal_representations(run, means, [], None, True) @ classifier).argmax(1) == run["labels"]
    for key, entry in found.items():
        slow = literal_representations(run, means, [(key.layer, key.head)], None, True) @ classifier
        after = slow.argmax(1) == run["labels"]
        assert entry["accuracy"] == pytest.approx(100 * after.mean())
        assert (entry["lost"], entry["gained"]) == (sum(before & ~after), sum(after & ~before))
        assert entry["change"] == pytest.approx(100 * (after.mean() - before.mean()))
        np.testing.assert_array_equal(ablation.right_without(
            opened(run), whole, means, classifier, [opened(run).heads.index(key)]), after)


def test_the_interval_of_a_change_holds_the_truth_about_as_often_as_it_says():
    rng, held, truth = np.random.default_rng(0), [], 100 * (0.02 - 0.06)
    for lost, gained, _ in rng.multinomial(400, (0.06, 0.02, 0.92), size=3000):
        low, high = ablation.paired_change(lost, gained, 400)["interval"]
        held.append(low <= truth <= high)
    assert 0.94 < np.mean(held) < 0.97
    assert ablation.paired_change(0, 0, 400)["interval"][1] > 0


def test_without_a_class_token_its_ablations_are_left_out():
    run, classifier = random_run()
    run["cls_attn"] = np.random.default_rng(5).standard_normal((37, 4, 7)).astype(np.float32)
    whole = ablation.accuracies(opened(run), classifier)
    del run["cls_attn"]
    found = ablation.accuracies(opened(run), classifier)
    assert found.pop("cls_ablated") is None
    assert found.pop("mlp_and_cls_ablated") is None
    assert found == {name: whole[name] for name in found}
    assert len(found) == 3
