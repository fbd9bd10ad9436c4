import csv
import json
import shutil

import literal
import numpy as np
import pytest
from builders import ROOT, call_script
from PIL import Image

from utils.analysis import selection, zeroshot
from utils.analysis.names import sith, textspan
from utils.data import datasets
from utils.inputs import read_yaml
from utils.models import loading
from utils.runs.components import head_list_path, read_head_list
from utils.runs.run import Run

GROUPS = ["land animal on land", "land animal on sea", "sea animal on land", "sea animal on sea"]
TEXTS = ("--select", "texts", "--spurious_texts", ROOT / "text_descriptions" / "spurious_backgrounds_emoji.txt",
         "--core_texts", ROOT / "text_descriptions" / "core_animals_emoji.txt", "--device", "cpu")


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """The embedded model's arrays on the splits val and test of emoji_spurious."""
    folder = str(tmp_path_factory.mktemp("spurious"))
    common = ["--model", "emojiclip", "--dataset", "emoji_spurious", "--output_dir", folder, "--device", "cpu"]
    for name, more in (("compute_prs", ["--batch_size", "16", "--num_workers", "0", "--split", "val"]),
                       ("compute_prs", ["--batch_size", "16", "--num_workers", "0"]), ("compute_text_projection", [])):
        call_script(name, *common, *more)
    return folder


@pytest.fixture
def ablate(run_script, arrays, tmp_path):
    """Run the script on those arrays with the MLPs kept. Returns what it wrote as JSON, and its stdout."""
    def call(*more, folder=arrays):
        code, out, err = run_script("compute_use_specific_heads", "--model", "emojiclip", "--dataset", "emoji_spurious",
                                    "--keep_mlps", "--input_dir", folder, "--output_dir", tmp_path, *more)
        assert code == 0, err
        return json.loads(next(tmp_path.glob("*_specific_heads_emojiclip.json")).read_text()), out

    return call


def load(folder, split=""):
    """Terms and labels, classifier, and groups of a split."""
    run = {name: np.load(f"{folder}/emoji_spurious{split}_{name}{'' if name == 'labels' else '_emojiclip'}.npy")
           for name in ("attn", "mlp", "labels")}
    _, labels, places = datasets.embedded_scenes("emoji_spurious", split.removeprefix("_") or "test")
    assert list(run["labels"]) == labels
    return run, np.load(f"{folder}/emoji_spurious_classifier_emojiclip.npy"), np.array(labels) * 2 + np.array(places)


def read(names):
    return [tuple(map(int, name.split("."))) for name in names]


def test_automatic_selection_lifts_the_worst_group_and_every_figure_is_the_literal_one(ablate, arrays, tmp_path):
    found, out = ablate("--select", "auto", "--random_trials", 3)
    before, after = found["baseline"], found["heads_ablated"]
    assert after["worst_group"] >= before["worst_group"] + 5
    assert after["worst_group"] >= max(found["random_best"]["worst_group"], found["no_heads"]["worst_group"]) + 5
    assert after["overall"] > before["overall"]

    run, classifier, group = load(arrays)
    for key, chosen, layers in (("baseline", (), 6), ("no_heads", (), 4), ("heads_ablated", read(found["heads"]), 4),
                                ("random_best", read(found["random_best_heads"]), 4)):
        answers = literal.right_answers(run, classifier, chosen, layers, True)
        assert found[key]["groups"] == pytest.approx(literal.group_accuracies(answers, group, GROUPS), abs=0.6), key
        assert found[key]["overall"] == pytest.approx(100 * answers.mean(), abs=0.3), key
    assert len(found["random_best_heads"]) == len(found["heads"]) > 0
    assert found["random_mean"]["worst_group"] <= found["random_best"]["worst_group"]
    assert found["images_of_groups"] == {name: int((group == i).sum()) for i, name in enumerate(GROUPS)}
    assert found["images"] == 800
    assert found["split"] == "test"
    assert found["chosen"]["split"] == "val"
    assert found["options"]["keep_last_layers"] == 4
    assert found["options"]["keep_mlps"] is True

    lines = out.splitlines()
    assert lines[:2] == [f"Baseline: {before['overall']}", f"Replaced: {after['overall']}"]
    row = next(line for line in lines if line.startswith("worst group")).split()
    assert row[2:] == [f"{found[key]['worst_group']:.1f}"
                       for key in ("baseline", "no_heads", "heads_ablated", "random_best", "random_mean")]
    assert Image.open(tmp_path / "emoji_spurious_specific_heads_emojiclip.png").width > 1000


def test_selection_never_sees_the_reported_split(ablate, arrays, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(arrays, copy)
    for name in ("attn", "mlp"):
        path = copy / f"emoji_spurious_{name}_emojiclip.npy"
        np.save(path, np.load(path)[::-1] * np.float32(-0.5) + np.float32(0.01))
    for way in (("--select", "auto"), TEXTS):
        whole, _ = ablate(*way, "--random_trials", 1)
        altered, _ = ablate(*way, "--random_trials", 1, folder=copy)
        assert altered["heads"] == whole["heads"]
        assert altered["chosen"] == whole["chosen"]
        assert altered["baseline"] != whole["baseline"]
    other, _ = ablate("--select", "auto", "--random_trials", 1, "--split", "val", "--select_split", "test")
    assert other["split"] == "val"
    assert other["chosen"]["split"] == "test"
    assert other["images"] == 400
    assert other["chosen"]["heads"] != whole["chosen"]["heads"]


def test_selection_by_texts_takes_the_heads_with_the_highest_literal_difference(ablate, arrays):
    found, _ = ablate(*TEXTS, "--random_trials", 1)
    run, _, _ = load(arrays, "_val")
    clip = loading.load("emojiclip", None, "cpu")
    cue, core = (zeroshot.embed_texts(clip, zeroshot.read_texts(TEXTS[i]), 99) for i in (3, 5))
    whole = run["attn"].astype(np.float64).sum(axis=(1, 2)) + run["mlp"].sum(axis=1)
    scores = {(l, h): [literal.feature_score(run["attn"][:, l, h], whole, texts) for texts in (cue, core)]
              for l in range(2, 6) for h in range(6)}
    expected = sorted(scores, key=lambda key: scores[key][1] - scores[key][0])[:10]
    assert read(found["heads"]) == expected
    for name, entry in found["chosen"]["heads"].items():
        assert list(entry.values()) == pytest.approx(scores[read([name])[0]], abs=1e-5)
    assert found["heads_ablated"]["worst_group"] >= found["baseline"]["worst_group"] + 5
    fewer, _ = ablate(*TEXTS, "--random_trials", 1, "--number_of_heads", 3)
    assert fewer["heads"] == found["heads"][:3]


def test_selection_by_textspan_and_sith_takes_the_heads_with_the_largest_share_for_the_attributes(ablate, arrays):
    texts = read_yaml(str(ROOT / "configs" / "attributes" / "emoji.yaml"))
    clip, run = loading.load("emojiclip", None, "cpu"), Run.open(arrays, "emoji_spurious", "emojiclip", "val")
    embedded = {name: zeroshot.embed_texts(clip, own, 99) for name, own in texts.items()}
    for way, method in (("textspan", textspan), ("sith", sith)):
        found, _ = ablate("--select", way, "--attribute", "color", "texture", "--attributes",
                          "configs/attributes/emoji.yaml", "--random_trials", 1, "--device", "cpu")
        shares = dict(zip(texts, method.scores(run, embedded, range(12, 36))))
        own = {(2 + i // 6, i % 6): (shares["color"][i] + shares["texture"][i]) / sum(row[i] for row in shares.values())
               for i in range(24)}
        assert read(found["heads"]) == sorted(own, key=lambda head: -own[head])[:10]
        assert {read([name])[0]: entry["share"] for name, entry in found["chosen"]["heads"].items()} == \
            pytest.approx(own, abs=1e-6)
        assert found["chosen"]["by"] == f"--select {way}"


def test_heads_come_from_the_list_of_the_data_set_another_or_the_command_line(ablate, tmp_path):
    found, out = ablate("--random_trials", 1)
    roles = read_head_list(head_list_path("emoji_spurious", "emojiclip"), "emojiclip")
    listed = dict.fromkeys(str(head) for role in roles.values() for head in role)
    assert found["heads"] == list(listed)
    assert found["chosen"] == {"by": "emoji_spurious_emojiclip.yaml", "roles": list(roles)}
    assert f"{len(listed)} heads ablated, by emoji_spurious_emojiclip.yaml: {' '.join(listed)}\n" in out
    named, _ = ablate("--random_trials", 1, "--heads", ",".join(listed))
    assert named["heads_ablated"] == found["heads_ablated"]
    assert named["chosen"] == {"by": "--heads"}
    path = tmp_path / "own.yaml"
    path.write_text("model: emojiclip\ndataset: emoji\nheads:\n  a: 5.4 5.1\n  b: '5.1'\n  c: '4.2'\n")
    own, _ = ablate("--random_trials", 1, "--heads_file", path)
    assert own["heads"] == ["5.4", "5.1", "4.2"]
    own, _ = ablate("--random_trials", 1, "--heads_file", path, "--roles", "b", "c")
    assert own["heads"] == ["5.1", "4.2"]
    assert own["chosen"]["roles"] == ["b", "c"]
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"random_trials: 1\nheads_file: {path}\nroles: b c\n")
    assert ablate("--config", settings)[0] == own


def test_a_head_that_a_settings_file_reads_as_a_number_is_refused(refused, arrays, tmp_path):
    (tmp_path / "settings.yaml").write_text("heads: 5.10\n")
    assert "settings.yaml, line 1: heads is 5.10, and should be text; put it in quotes" in refused(
        "compute_use_specific_heads", "--model", "emojiclip", "--dataset", "emoji_spurious", "--input_dir", arrays,
        "--config",
        tmp_path / "settings.yaml")


def test_without_keep_mlps_the_published_recipe_is_run(run_script, arrays, tmp_path):
    code, _, err = run_script("compute_use_specific_heads", "--model", "emojiclip", "--dataset", "emoji_spurious",
                              "--heads",
                              "5.4", "--input_dir", arrays, "--output_dir", tmp_path, "--keep_last_layers", 2)
    assert code == 0, err
    found = json.loads((tmp_path / "emoji_spurious_specific_heads_emojiclip.json").read_text())
    run, classifier, group = load(arrays)
    slow = literal.group_accuracies(literal.right_answers(run, classifier, [(5, 4)], 2, False), group, GROUPS)
    assert found["heads_ablated"]["groups"] == pytest.approx(slow, abs=0.6)
    assert all(layer >= 4 for layer, _ in read(found["random_best_heads"]))


def test_random_heads_are_the_best_of_their_trials_and_follow_the_seed(ablate, arrays):
    found, _ = ablate("--heads", "5.3,5.4", "--random_trials", 4, "--seed", 3)
    run, classifier, group = load(arrays)
    trials = selection.random_sets([(layer, head) for layer in range(2, 6) for head in range(6)], 2, 4, 3)
    worst = [min(literal.group_accuracies(literal.right_answers(run, classifier, trial, 4, True), group,
                                          GROUPS).values())
             for trial in trials]
    assert found["random_best"]["worst_group"] == pytest.approx(max(worst), abs=0.6)
    assert found["random_mean"]["worst_group"] == pytest.approx(np.mean(worst), abs=0.6)
    assert read(found["random_best_heads"]) == trials[int(np.argmax(worst))]
    assert ablate("--heads", "5.3,5.4", "--random_trials", 4, "--seed", 4)[0]["random_mean"] != found["random_mean"]


def test_a_data_set_without_groups_has_its_overall_accuracy(run_script, arrays, tmp_path):
    run, classifier, _ = load(arrays, "_val")
    for name, array in {**run, "classifier": classifier}.items():  # foreign arrays, without a manifest
        np.save(tmp_path / f"imagefolder_{name}{'' if name == 'labels' else '_emojiclip'}.npy", array)
    code, out, err = run_script("compute_use_specific_heads", "--model", "emojiclip", "--dataset", "imagefolder",
                                "--input_dir",
                                tmp_path, "--heads", "4.2 5.1 5.2 5.5", "--keep_mlps")
    assert code == 0, err
    found = json.loads((tmp_path / "imagefolder_specific_heads_emojiclip.json").read_text())
    slow = 100 * literal.right_answers(run, classifier, [(4, 2), (5, 1), (5, 2), (5, 5)], 4, True).mean()
    assert found["heads_ablated"]["overall"] == pytest.approx(slow, abs=0.3)
    assert found["heads_ablated"]["groups"] == {}
    assert found["heads_ablated"]["worst_group"] is None
    assert found["random_best"]["overall"] > found["random_mean"]["overall"] > found["heads_ablated"]["overall"]
    assert "overall" in out
    assert "worst" not in out
    assert Image.open(tmp_path / "imagefolder_specific_heads_emojiclip.png").format == "PNG"


@pytest.fixture
def waterbirds(tmp_path):
    """A small download of Waterbirds: 12 images of val with all groups, and 9 of test without landbirds on water."""
    from utils.data import scenes

    rows = []
    for split, number in (("1", 12), ("2", 12)):
        for scene, y, place in scenes.sample_spurious(number, seed=int(split), agreement=0.5):
            rows.append((scene, [len(rows), f"{len(rows):03d}.png", y, split, place, "x"]))
    rows = [(scene, row) for scene, row in rows if row[2:5] != [0, "2", 1]]
    root = tmp_path / "birds" / "waterbird_complete95_forest2water2"
    root.mkdir(parents=True)
    images, _ = scenes.draw([scene for scene, _ in rows], 64)
    for (_, row), image in zip(rows, images.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(root / row[1])
    with (root / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["img_id", "img_filename", "y", "split", "place", "place_filename"],
                                    *[row for _, row in rows]])
    return root.parent, [row for _, row in rows]


def test_waterbirds_as_it_is_downloaded(run_script, refused, waterbirds, tmp_path):
    root, rows = waterbirds
    common = ("--model", "emojiclip", "--dataset", "binary_waterbirds", "--output_dir", tmp_path)
    for split in ("val", "test"):
        assert run_script("compute_prs", *common, "--data_path", root, "--split", split, "--num_workers", 0)[0] == 0
    assert run_script("compute_text_projection", *common)[0] == 0
    given = ("compute_use_specific_heads", *common, "--input_dir", tmp_path)
    code, out, err = run_script(*given, "--data_path", root, "--heads", "5.4,5.3", "--keep_mlps")
    assert code == 0, err
    found = json.loads((tmp_path / "binary_waterbirds_specific_heads_emojiclip.json").read_text())
    names = ["landbird on land", "landbird on water", "waterbird on land", "waterbird on water"]
    test = [row for row in rows if row[3] == "2"]
    sizes = {name: sum(2 * row[2] + row[4] == i for row in test) for i, name in enumerate(names)}
    assert found["images_of_groups"] == sizes
    assert sizes["landbird on water"] == 0
    assert sum(sizes.values()) == len(test) > 5
    assert found["baseline"]["groups"]["landbird on water"] is None
    assert found["baseline"]["worst_group"] == min(value for value in found["baseline"]["groups"].values()
                                                   if value is not None)
    assert next(line for line in out.splitlines() if line.startswith("landbird on water")).split()[3:] == ["0",
                                                                                                           *"-----"]

    code, _, err = run_script(*given, "--data_path", root, "--select", "auto", "--keep_mlps")
    assert code == 0, err
    assert "has no images of landbird on water" in refused(*given, "--data_path", root, "--select", "auto", "--split",
                                                           "val",
                                                       "--select_split", "test")
    assert "needs --data_path" in refused(*given, "--heads", "5.4")
    assert "there is no list of heads binary_waterbirds_emojiclip.yaml" in refused(*given, "--data_path", root)
    table = root / "waterbird_complete95_forest2water2" / "metadata.csv"
    table.write_text(table.read_text().replace(".png,0,2,", ".png,1,2,"))
    assert "other images than the arrays, by their names or labels" in refused(*given, "--data_path", root, "--heads",
                                                                               "5.4")
    manifest = tmp_path / "binary_waterbirds_emojiclip.json"  # of an older version, which says nothing of the images
    manifest.write_text(json.dumps({key: value for key, value in json.loads(manifest.read_text()).items()
                                    if key != "images_sha256"}))
    assert "other labels than the arrays" in refused(*given, "--data_path", root, "--heads", "5.4")


def test_texts_and_splits_of_other_weights_are_refused(refused, arrays, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(arrays, copy)
    call = ("compute_use_specific_heads", "--model", "emojiclip", "--dataset", "emoji_spurious", "--input_dir", copy)

    def alter(name):
        path = copy / name
        path.write_text(json.dumps(json.loads(path.read_text()) |
                                   {"weights_sha256": "0" * 64, "pretrained": "another"}))

    alter("emoji_spurious_val_emojiclip.json")
    assert "made with other weights (another) than the terms (emojiclip)" in refused(*call, "--select", "auto")
    for name in ("emoji_spurious_emojiclip.json", "emoji_spurious_classifier_emojiclip.json"):
        alter(name)
    assert "are not those of the arrays (another)" in refused(*call, *TEXTS)
