"""Names of heads: shares against their definitions whatever the storage, the rules of names, the attributes that come
with the project, and the scripts."""
import csv
import json

import literal
import numpy as np
import pytest
from builders import NAMES, ROOT, call_script, components_of, opened, uneven_terms
from PIL import Image

from utils.analysis.names import attributes, naming, shares, zero_shot_shares
from utils.cli import UserError
from utils.runs.components import Component
from utils.runs.run import Run

RNG = np.random.default_rng


def compact_run(images=90, layers=2, heads=2, k=4, d=9, seed=0):
    """A run of narrow outputs, and the same as full terms."""
    rng = RNG(seed)
    arrays = {"heads": rng.normal(size=(images, layers, heads, k)).astype(np.float32),
              "scalars": rng.uniform(0.5, 1.5, size=(images, 3)).astype(np.float32),
              "readout": rng.normal(size=(layers, heads, k + 3, d)).astype(np.float32),
              "mlp": rng.normal(size=(images, 1, d)).astype(np.float32)}
    z = np.concatenate([arrays["heads"], np.broadcast_to(arrays["scalars"][:, None, None],
                                                         (images, layers, heads, 3))], axis=3)
    terms = np.einsum("blhz,lhzd->blhd", z.astype(np.float64), arrays["readout"].astype(np.float64))
    return Run(arrays), terms.reshape(images, -1, d)


def groups_of(images, sizes, seed=1):
    return {name: RNG(seed + i).integers(size, size=images) for i, (name, size) in enumerate(sizes.items())}


def check(found, terms, groups):
    for c in range(terms.shape[1]):
        partial = literal.partial_shares(terms[:, c], groups)
        for a, (name, group) in enumerate(groups.items()):
            assert found.plain[a, c] == pytest.approx(literal.epsilon_squared(terms[:, c], group), abs=1e-6)
            assert found.partial[a, c] == pytest.approx(partial[name], abs=1e-5)
        assert found.variance[c] == pytest.approx(terms[:, c].var(axis=0).sum(), rel=1e-5)


@pytest.mark.parametrize("memory, block", [(1, 7), (2 ** 26, 256)])
def test_shares_of_every_component_are_their_definitions(monkeypatch, memory, block):
    monkeypatch.setattr(shares, "MEMORY", memory)
    monkeypatch.setattr(shares, "BLOCK", block)
    parts = uneven_terms(100)
    sizes = {"color": 3, "object": 20, "size": 2}
    groups = groups_of(100, sizes)
    parts["conv"][:, 1] += 3 * groups["color"][:, None]
    found = shares.explain(opened(parts, NAMES), groups, sizes, range(12))
    check(found, components_of(parts).astype(np.float64), groups)
    assert found.plain[:, 11].argmax() == 0


def test_compact_heads_are_summed_in_their_own_width_and_give_the_same():
    run, terms = compact_run()
    sizes = {"color": 4, "count": 3}
    groups = groups_of(90, sizes)
    assert run.inner(slice(3), range(4)).shape == (3, 4, 7)
    check(shares.explain(run, groups, sizes, range(4)), terms, groups)
    full = shares.explain(opened({"attn": terms.reshape(90, 2, 2, 9), "mlp": np.zeros((90, 1, 9))}), groups, sizes,
                          range(4))
    found = shares.explain(run, groups, sizes, range(4))
    for one, other in ((found.error, full.error), (found.chance, full.chance), (found.values[0], full.values[0])):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_attributes_that_follow_from_others_and_groups_without_images():
    terms = RNG(3).normal(size=(60, 1, 5)).astype(np.float32)
    group = RNG(4).integers(4, size=60)
    groups = {"a": group, "same": (group + 1) % 4 * 2, "b": RNG(5).integers(3, size=60)}
    sizes = {"a": 4, "same": 9, "b": 3}
    terms[:, 0] += group[:, None]
    found = shares.explain(opened({"attn": terms[:, None], "mlp": np.zeros((60, 1, 5))}), groups, sizes, range(1))
    check(found, terms.astype(np.float64), groups)
    assert found.partial[0, 0] == pytest.approx(0, abs=1e-4)  # the other says the same


def test_a_constant_part_and_more_groups_than_images():
    parts = {"attn": np.full((12, 1, 2, 4), 0.3, np.float32), "mlp": np.zeros((12, 1, 4), np.float32)}
    parts["attn"][:, 0, 1] = RNG(0).normal(size=(12, 4))
    sizes = {"a": 12, "b": 2}
    found = shares.explain(opened(parts), {"a": np.arange(12), "b": np.arange(12) % 2}, sizes, range(2))
    assert not found.plain[:, 0].any()
    assert not found.partial[:, 0].any()
    assert np.isnan(found.partial[:, 1]).all()
    rows = naming.describe([Component("attn", 0, 0), Component("attn", 0, 1)], found,
                           {"a": [f"a{i}" for i in range(12)], "b": ["x", "y"]})
    assert rows[0]["name"] == "none"
    assert rows[1]["partial"] == {"a": None, "b": None}


def test_an_attribute_with_one_answer_for_all_images_explains_nothing():
    terms, sizes = RNG(1).normal(size=(60, 1, 5)).astype(np.float32), {"a": 4, "one": 3}
    groups = {"a": RNG(4).integers(4, size=60), "one": np.full(60, 2)}
    found = shares.explain(opened({"attn": terms[:, None], "mlp": np.zeros((60, 1, 5))}), groups, sizes, range(1))
    check(found, terms.astype(np.float64), groups)
    assert found.partial[1, 0] == pytest.approx(0, abs=1e-6)


def test_heads_of_noise_have_no_name():
    # The largest of seven shares is above what its own shuffled answers reach in more than half of such heads.
    sizes = {"object": 60, "style": 7, "count": 4, "position": 9, "size": 3, "color": 12, "texture": 6}
    texts = {name: [f"{name} {i}" for i in range(number)] for name, number in sizes.items()}
    terms = RNG(0).normal(size=(400, 1, 40, 8)).astype(np.float32)
    groups = {name: RNG(i).integers(number, size=400) for i, (name, number) in enumerate(sizes.items())}
    terms[:, 0, :5, 0] += groups["color"][:, None] / 3
    run = opened({"attn": terms, "mlp": np.zeros((400, 1, 8))})
    names = [row["name"] for row in naming.describe(run.heads, shares.explain(run, groups, sizes, range(40)), texts)]
    assert names[:5] == ["color"] * 5
    assert names[5:].count("none") >= 33


def test_the_interval_is_the_jackknife_over_parts_of_the_images():
    terms, sizes = RNG(1).normal(size=(80, 1, 3)).astype(np.float32), {"a": 3}
    group = RNG(2).integers(3, size=80)
    terms[:, 0, 0] += group
    found = shares.explain(opened({"attn": terms[:, None], "mlp": np.zeros((80, 1, 3))}), {"a": group}, sizes, range(1),
                           seed=5)
    part = RNG(5)
    part.permuted(np.zeros((80, 1)), axis=0), [part.permuted(np.zeros((80, 1)), axis=0) for _ in range(2)]
    part = part.permutation(80) % 20
    without = np.array([literal.epsilon_squared(terms[part != j, 0], group[part != j]) for j in range(20)])
    error = np.sqrt(19 / 20 * ((without - without.mean()) ** 2).sum())
    assert found.error[0, 0] == pytest.approx(error, rel=1e-4)


def test_answers_are_the_literal_best_texts():
    parts = uneven_terms(70)
    texts = {"a": RNG(0).normal(size=(5, 7)).astype(np.float32), "b": RNG(1).normal(size=(3, 7)).astype(np.float32)}
    run = opened(parts, NAMES)
    found = attributes.labels(run, texts)
    for name, own in texts.items():
        wanted = literal.zero_shot_labels(components_of(parts).sum(axis=1), own)
        assert (found[name] == wanted).all()
    said = zero_shot_shares.scores(run, texts, range(12))
    terms = components_of(parts)
    assert said.shape == (2, 12)
    assert said[1, 4] == pytest.approx(literal.epsilon_squared(terms[:, 4], found["b"]), abs=1e-6)


def test_quality_says_which_answers_are_noise():
    rng = RNG(0)
    truth = rng.integers(3, size=600)
    whole = np.eye(8)[truth] * 3 + 0.1 * rng.normal(size=(600, 8))
    texts = {"known": np.eye(8)[:3], "noise": rng.normal(size=(3, 8)) * 1e-3 + np.eye(8)[7]}
    again = {"known": np.eye(8)[:3] + 0.01, "noise": rng.normal(size=(3, 8)) * 1e-3 + np.eye(8)[7]}
    whole = (whole - whole.mean(axis=0)).astype(np.float32)
    labels, said = attributes.quality(whole, {k: v.astype(np.float32) for k, v in texts.items()},
                                      {k: v.astype(np.float32) for k, v in again.items()})
    assert (labels["known"] == truth).all()
    assert not said["known"]["weak"]
    assert said["known"]["entropy"] > 0.98
    assert said["known"]["agreement"] == 1
    assert said["noise"]["weak"]


@pytest.mark.parametrize("plain, chance, name", [([0.5, 0.2], 0.01, "a"), ([0.5, 0.3], 0.01, "mixed"),
                                                 ([0.2, 0.5], 0.01, "b"), ([0.01, 0.0], 0.02, "none")])
def test_names_and_the_words_for_them(plain, chance, name):
    values = [np.array([[0.1], [0.3], [0.0]]), np.array([[0.2], [0.1]])]
    positions = [np.array([-1.0, 2.0, 0.0]) if plain[0] > plain[1] else np.array([1.0, -2.0])]
    found = shares.Shares(["a", "b"], np.array(plain)[:, None], np.array([[0.1], [0.2]]), np.full((2, 1), 0.05),
                          np.full((2, 1), chance), np.array([2.0]), values, positions)
    row, = naming.describe([Component("attn", 3, 1)], found, {"a": ["red", "green", "blue"], "b": ["one", "two"]})
    assert (row["layer"], row["head"], row["name"]) == (3, 1, name)
    assert row["attribute"] == ("b" if plain[1] > plain[0] else "a")
    assert row["role"] == {"a": "a: red ... green", "b": "b: two ... one", "mixed": "mixed: a and b",
                           "none": "none"}[name]
    assert row["texts"] == (["one", "two"] if row["attribute"] == "b" else ["green", "red"])
    assert row["interval"] == pytest.approx([max(plain) - 0.098, max(plain) + 0.098])


@pytest.mark.parametrize("name", ["emoji", "general"])
def test_attributes_that_come_with_the_project(name):
    import open_clip

    found = attributes.read(str(ROOT / "configs" / "attributes" / f"{name}.yaml"))
    texts = [text for own in found.values() for text in own]
    lowered = [text.lower() for text in texts]
    assert len(set(lowered)) == len(lowered)
    tokens = open_clip.tokenize(texts, context_length=300)
    assert (tokens != 0).sum(dim=1).max() <= 77
    if name == "general":
        assert len(found) >= 20
        assert len(found["object"]) >= 200
        assert {own for own in found if len(found[own]) < 20} == {"season", "time_of_day"}
    else:
        from utils.analysis import truth
        from utils.data import scenes

        assert set(found) == set(truth.ATTRIBUTES)
        assert len(found["object"]) == len(scenes.concepts())
        assert len(found["color"]) == len(scenes.COLORS)


@pytest.mark.parametrize("content, message", [
    ("color: [red]\n", "color: has one text"), ("a: [x, y]\nb: [z, x]\n", "b: 'x' is also a text of a"),
    ("a: red\n", "should be a list"), ("", "names no feature")])
def test_wrong_attributes_are_refused(tmp_path, content, message):
    path = tmp_path / "a.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        attributes.read(str(path))


def test_the_script_names_the_heads_of_a_run(run_script, refused, emoji_run, tmp_path):
    options = ("--model", "emojiclip", "--dataset", "imagefolder", "--input_dir", emoji_run / "out", "--device", "cpu")
    small = tmp_path / "a.yaml"
    small.write_text("color: [a red background, a blue background, a white background, a black background]\n"
                     "object: [an animal, a plant, something to eat, a vehicle]\n"
                     "position: [at the top, at the bottom]\n")
    code, out, err = run_script("compute_head_names", *options, "--attributes", small, "--output_dir", tmp_path)
    assert code == 0, err
    path = tmp_path / "imagefolder_names_emojiclip.json"
    content = json.loads(path.read_text())
    assert [(row["layer"], row["head"]) for row in content["heads"]] == [(i, j) for i in range(6) for j in range(6)]
    assert [row["kind"] for row in content["others"]] == ["embed"] + ["mlp"] * 6
    attn = np.load(emoji_run / "out" / "imagefolder_attn_emojiclip.npy")
    for row in content["heads"]:
        assert row["attribute"] == max(row["shares"], key=row["shares"].get)
        assert set(row) == {"layer", "head", "attribute", "name", "role", "shares", "partial", "texts", "ends",
                            "interval", "chance", "variance"}
        assert row["variance"] == pytest.approx(attn[:, row["layer"], row["head"]].var(axis=0).sum(), rel=1e-3)
    heads = {(row["layer"], row["head"]): row for row in content["heads"]}
    assert heads[5, 4]["attribute"] == heads[5, 3]["attribute"] == "color"
    assert "| 5.4 | color |" in out
    assert "| position | 2 |" in out
    with path.with_suffix(".csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["part"] for line in table[:7]] == [f"0.{i}" for i in range(6)] + ["1.0"]
    assert float(table[0]["color"]) == pytest.approx(content["heads"][0]["shares"]["color"])
    assert Image.open(path.with_suffix(".png")).format == "PNG"

    run = Run.open(emoji_run / "out", "imagefolder", "emojiclip")
    assert naming.find(run) == {}
    with pytest.raises(UserError, match="names_emojiclip.json does not exist; make it with: python compute_head_names"):
        naming.read(run)
    assert "does not exist" in refused("compute_head_names", *options, "--dataset", "emoji", "--attributes", small)


def test_compact_arrays_are_named_alike_and_moments_refused(run_script, refused, emoji_run, tmp_path):
    small = tmp_path / "a.yaml"
    small.write_text("color: [a red background, a blue background, a white background]\n"
                     "object: [an animal, a plant]\n")
    images = ("--model", "emojiclip", "--dataset", "imagefolder")
    found = {}
    for storage in ("compact", "moments_only"):
        folder = tmp_path / storage
        call_script("compute_prs", *images, "--data_path", emoji_run / "images", "--batch_size", 32, "--num_workers", 0,
                    "--device", "cpu", "--output_dir", folder, f"--{storage}")
    for folder in (emoji_run / "out", tmp_path / "compact"):
        code, _, err = run_script("compute_head_names", *images, "--input_dir", folder, "--attributes", small,
                                  "--output_dir", tmp_path / "names")
        assert code == 0, err
        found[folder] = json.loads((tmp_path / "names" / "imagefolder_names_emojiclip.json").read_text())
    full, compact = found.values()
    assert compact["others"] == []
    for one, other in zip(full["heads"], compact["heads"]):
        assert one["shares"] == pytest.approx(other["shares"], abs=1e-3)
        assert one["partial"] == pytest.approx(other["partial"], abs=1e-3)
        assert one["interval"] == pytest.approx(other["interval"], abs=2e-3)
    assert "were made with --moments_only" in refused("compute_head_names", *images, "--input_dir",
                                                      tmp_path / "moments_only", "--attributes", small)


# What other steps make of names

def named(run, attribute, share=0.5, **other):
    """A file's row for each head of a run, all of one attribute but those of `other`, such as h1_0="mixed"."""
    rows = {}
    for head in run.heads:
        name = other.get(f"h{head.layer}_{head.head}", attribute)
        first = attribute if name in ("mixed", "none") else name
        shares = {"color": 0.1, "object": 0.1, "texture": 0.1} | {first: share + head.head / 100}
        shares |= {"texture": 0.4} if name == "mixed" else {}
        rows[head] = {"layer": head.layer, "head": head.head, "attribute": first, "name": name,
                      "role": f"{name}: one ... two", "shares": shares, "partial": dict(shares), "texts": ["one"],
                      "ends": [["one"], ["two"]], "interval": [0.4, 0.6], "chance": 0.01, "variance": 1.0 + head.layer}
    return rows


def six_heads():
    return opened({"attn": RNG(0).normal(size=(30, 2, 3, 4)).astype(np.float32),
                   "mlp": np.zeros((30, 3, 4), np.float32)})


def test_heads_are_selected_by_their_names():
    from utils.analysis import selection

    run = six_heads()
    names = named(run, "color", h0_0="object", h1_0="object", h1_1="mixed", h1_2="color")
    columns, how = selection.by_names(run, names, ["color"], 2)
    assert [str(run.heads[c]) for c in columns] == ["0.2", "1.2", "0.1", "1.1"]  # by share
    assert how["heads"]["1.1"]["name"] == "mixed"
    assert selection.by_names(run, names, ["color"], 2, number=1)[0] == [2]
    with pytest.raises(UserError, match="0 heads of the last 2 layers go with texture"):
        selection.by_names(run, names, ["texture"], 2)
    with pytest.raises(UserError, match="--attribute colour: heads were named after color, object, texture"):
        selection.by_names(run, names, ["colour"], 2)


def test_neighbours_find_their_heads_by_name_where_no_list_has_them(tmp_path):
    from utils.analysis import retrieval

    run = six_heads()
    run.place = type("Place", (), {"model_name": "m"})
    own = naming.by_attribute(named(run, "color", h0_0="object", h1_1="mixed", h1_2="none"))
    assert {name: list(map(str, heads)) for name, heads in own.items()} == {"color": ["0.2", "0.1", "1.0"],
                                                                             "object": ["0.0"]}
    ways = retrieval.read_ways(run, ["whole", "color"], None, tmp_path / "none.yaml", own)
    assert ways == {"whole": None, "color": [2, 1, 3]}
    with pytest.raises(UserError, match="no such list of heads"):
        retrieval.read_ways(run, ["size"], None, tmp_path / "none.yaml", own)
    (tmp_path / "a.yaml").write_text("model: m\ndataset: emoji\nheads:\n  color: '1.1'\n")
    ways = retrieval.read_ways(run, ["color", "object"], None, tmp_path / "a.yaml", own)
    assert ways == {"color": [4], "object": [0]}


def test_a_file_of_names_is_read_and_a_wrong_one_refused(tmp_path):
    run = six_heads()
    path = tmp_path / "n.json"
    path.write_text(json.dumps({"images": 30, "heads": list(named(run, "color").values())}))
    assert naming.role_of(str(path), 1, 2) == "color: one ... two"
    with pytest.raises(UserError, match="there is no head 2.0"):
        naming.role_of(str(path), 2, 0)
    path.write_text(json.dumps({"images": 30, "heads": list(named(run, "color").values()),
                                "made_of": {"weights_sha256": "aa"}}))
    assert naming.role_of(str(path), 1, 2, "aa") == "color: one ... two"
    with pytest.raises(UserError, match="names heads of other weights than those of --model"):
        naming.role_of(str(path), 1, 2, "bb")
    path.write_text("{}")
    with pytest.raises(UserError, match="holds no names; make it again with: python compute_head_names.py"):
        naming.role_of(str(path), 1, 2)


def test_two_runs_are_held_against_each_other():
    from utils.analysis.names import compare

    run = six_heads()
    x = run.stack(slice(None))[:, :6]
    turned = (x[:, ::-1] @ np.linalg.qr(RNG(1).normal(size=(4, 4)))[0]).astype(np.float32)  # other order, another space
    other = opened({"attn": turned.reshape(30, 2, 3, 4), "mlp": np.zeros((30, 3, 4), np.float32)})
    found = compare.alike(run, other)
    for c in range(6):
        for e in range(6):
            a, b = (v - v.mean(axis=0) for v in (x[:, c].astype(float), turned[:, e].astype(float)))
            wanted = (np.linalg.norm(a.T @ b) ** 2) / np.linalg.norm(a.T @ a) / np.linalg.norm(b.T @ b)
            assert found[c, e] == pytest.approx(wanted, abs=1e-9)
    assert found.argmax(axis=1).tolist() == [5, 4, 3, 2, 1, 0]
    names, others = named(run, "color", h0_0="object"), named(other, "color", h1_2="object", h1_1="none")
    said = compare.report(names, others, found)
    assert said["agreement"] == 1
    assert said["matches"][0] | {"similarity": 1} == {"head": "0.0", "name": "object", "match": "1.2",
                                                      "match_name": "object", "similarity": 1, "same": True}
    assert said["roles"][0]["object"]["heads"] == ["0.0"]
    held = sum(row["shares"]["color"] * row["variance"] for row in names.values()) / 9
    assert said["roles"][0]["color"]["variance"] == pytest.approx(held)
    assert "| color | 5 | " in compare.table(said, ("a", "b"))
    assert compare.report(names, others, None)["agreement"] == pytest.approx(4 / 6)


# Other ways of naming

def test_pursuit_is_the_literal_one():
    from utils.analysis.names import head_pursuit

    x, pool = RNG(0).normal(size=(40, 6)), RNG(1).normal(size=(15, 6))
    x, pool = x - x.mean(axis=0), pool / np.linalg.norm(pool, axis=1, keepdims=True)
    picks, shares = head_pursuit.pursue(x, pool, 4)
    left, chosen = x, []
    for share in shares:
        worth = [sum(abs(row @ text) for row in left) if i not in chosen else -1 for i, text in enumerate(pool)]
        chosen.append(int(np.argmax(worth)))
        basis = pool[chosen].T
        fitted = basis @ np.linalg.lstsq(basis, x.T, rcond=None)[0]
        assert share == pytest.approx(((left ** 2).sum() - ((x - fitted.T) ** 2).sum()) / (x ** 2).sum())
        left = x - fitted.T
    assert picks == chosen


def test_a_vector_is_a_sum_of_few_texts_with_weights_above_zero():
    from utils.analysis.names import sith

    pool = np.eye(6)
    picks, weights = sith.comp(np.array([0.8, 0.0, 0.6, 0, 0, 0]), pool, 5)
    assert picks[:2] == [0, 2]
    assert weights[:2] == pytest.approx([0.8, 0.6])
    assert sith.comp(-np.ones(6) / 6 ** 0.5, pool, 5)[0] == []


def test_every_method_has_the_one_signature_and_finds_what_is_planted():
    import importlib

    from utils.analysis.names import METHODS

    rng = RNG(0)
    texts = {"color": np.eye(10)[:3], "object": np.eye(10)[3:9]}
    which = {name: rng.integers(len(own), size=400) for name, own in texts.items()}
    attn = np.stack([texts["color"][which["color"]], texts["object"][which["object"]]], axis=1)
    attn = (attn + 0.05 * rng.normal(size=attn.shape)).astype(np.float32)
    run = opened({"attn": attn[:, None], "mlp": np.zeros((400, 2, 10), np.float32)})
    for method in set(METHODS) - {"sith"}:  # which reads a model's weights
        scores = importlib.import_module(f"utils.analysis.names.{method}").scores(run, texts, range(2), 0)
        assert scores.shape == (2, 2), method
        if method not in ("majority", "shuffled"):
            assert scores.argmax(axis=0).tolist() == [0, 1], method


# What speaks for which class

def test_logits_are_the_literal_sums(monkeypatch):
    from utils.analysis import logits

    parts = uneven_terms(70)
    labels, columns = RNG(1).integers(3, size=70), RNG(2).normal(size=(7, 3)).astype(np.float32)
    run = opened(parts | {"labels": labels}, NAMES)
    terms = components_of(parts).astype(np.float64)
    own, others = logits.by_class(run, columns)
    for c in range(12):
        for k in range(3):
            added = [terms[i, c] @ columns[:, k] for i in range(70)]
            assert own[c, k] == pytest.approx(np.mean([v for v, y in zip(added, labels) if y == k]), abs=1e-5)
            assert others[c, k] == pytest.approx(np.mean([v for v, y in zip(added, labels) if y != k]), abs=1e-5)
    np.testing.assert_allclose(logits.along(run, columns[:, 0]), terms @ columns[:, 0], atol=1e-5)
    accuracy, lost = logits.accuracy_lost(run, columns)
    assert accuracy == pytest.approx(100 * ((terms.sum(1) @ columns).argmax(1) == labels).mean())
    without = terms.copy()
    without[:, 8] = terms[:, 8].mean(axis=0)
    assert lost[8] == pytest.approx(accuracy - 100 * ((without.sum(1) @ columns).argmax(1) == labels).mean())


def test_the_script_of_logits(run_script, refused, emoji_run, tmp_path):
    options = ("--model", "emojiclip", "--dataset", "imagefolder", "--input_dir", emoji_run / "out")
    classes = json.loads((emoji_run / "out" / "imagefolder_emojiclip.json").read_text())["classes"]
    first, second = classes[:2]
    attn = np.load(emoji_run / "out" / "imagefolder_attn_emojiclip.npy").astype(np.float64).reshape(130, 36, -1)
    columns = np.load(emoji_run / "out" / "imagefolder_classifier_emojiclip.npy").astype(np.float64)
    labels = np.load(emoji_run / "out" / "imagefolder_labels.npy")
    for more in ((), ("--classes", first), ("--classes", first, second), ("--index", 7),
                 ("--classes", first, second, "--index", 7)):
        code, out, err = run_script("compute_logit_attribution", *options, *more, "--output_dir", tmp_path)
        assert code == 0, err
        found = json.loads((tmp_path / "imagefolder_logits_emojiclip.json").read_text())
        assert len(found["parts"]) == 43
        assert len(found["classes"]) == (len(classes) if not more else 1)
        with (tmp_path / "imagefolder_logits_emojiclip.csv").open(newline="") as file:
            assert len(list(csv.DictReader(file))) == 43
        if more[:1] == ("--classes",) and len(more) == 3:
            values = attn[:, 20] @ (columns[:, 0] - columns[:, 1])
            assert found["parts"][20]["added"] == pytest.approx([values[labels == 0].mean()
                                                                 - values[labels == 1].mean()], abs=1e-5)
        if "--index" in more and len(more) > 2:
            values = attn[:, 20] @ (columns[:, 0] - columns[:, 1])
            assert found["parts"][20]["added"] == pytest.approx([values[7] - values.mean()], abs=1e-5)
    assert "there is no class 'zebras'" in refused("compute_logit_attribution", *options, "--classes", "zebras")
    assert "--index is 130" in refused("compute_logit_attribution", *options, "--index", 130)
    assert "--classes names 3" in refused("compute_logit_attribution", *options, "--classes", "a", "b", "c")
