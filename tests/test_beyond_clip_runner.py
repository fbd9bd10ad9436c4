"""The whole chain of a vision transformer that is mapped to a CLIP, by its runner, nothing cut down."""
import json
import os
from pathlib import Path

import pytest
from builders import ROOT, run_command

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def beyond(tmp_path_factory):
    """The runner that maps the embedded vision transformer to the embedded CLIP: (output folder, what it printed)."""
    out = tmp_path_factory.mktemp("beyond clip") / "out"
    return out, run_command(["bash", ROOT / "scripts" / "beyond_clip_runner.sh"], out.parent, OUTPUT_DIR=out).stdout


def test_the_mapped_model_does_what_the_clip_does(beyond):
    out, _ = beyond
    best = json.loads((out / "emoji_train_maps_emojivit_to_emojiclip.json").read_text())["best"]
    assert best["validation_cosine"] > 0.85
    assert best["epoch"] > 0
    for model in ("emojiclip", "emojivit-as-emojiclip"):
        first, *_, last = json.loads((out / f"emoji_component_ablation_{model}.json").read_text())["steps"]
        assert first["accuracy"] > 60
        assert last["accuracy"] < 2  # of 260 classes
        color = json.loads((out / f"emoji_component_scores_{model}.json").read_text())["features"]["color"]
        assert color["rankings"]["spearman"] > 0.5
        assert color["truth"]["spearman"] > 0.2
    truth = json.loads((out / "emoji_head_truth_emojivit-as-emojiclip.json").read_text())
    assert len(truth["heads"]) == 24
    assert truth["kappa"] > 0.3


@pytest.mark.parametrize("classifier", ["texts", "probe"])
def test_its_scores_repair_both_classifiers(beyond, classifier):
    path = beyond[0] / f"emoji_spurious_component_repair_{classifier}_emojivit-as-emojiclip.json"
    found = json.loads(path.read_text())
    worst = {key: found[key]["worst_group"] for key in ("baseline", "ablated", "random_best")}
    assert worst["ablated"] >= worst["baseline"] + 10
    assert worst["ablated"] > worst["random_best"]


def test_its_components_for_colour_find_the_colour(beyond):
    for folder, queries in (("by_text", ["something red", "something blue"]), ("by_image", [5])):
        found = json.loads((beyond[0] / folder / "emoji_retrieval_emojivit-as-emojiclip.json").read_text())["queries"]
        assert [entry["query"].get("text", entry["query"].get("index")) for entry in found] == queries
        for entry in found:
            way = entry["ways"][0]
            assert way["by"] == "color"
            assert len(way["neighbors"]) == 8
            assert way["agreement"]["color"]["share"] > 60 > 20 > way["agreement"]["color"]["chance"]


def test_it_says_where_its_pictures_lie(beyond):
    out, printed = beyond
    shown = [line.strip().partition(".png: ")[0] + ".png" for line in printed.split("The pictures:")[1].splitlines()
             if ".png: " in line]
    assert len(shown) == 8
    assert all(path.startswith(str(out)) and os.path.getsize(path) > 1000 for path in shown)
    assert "a green background" in Path(printed.rstrip().rpartition(": ")[2]).read_text()
    figures = json.loads((out / "emoji_seg_segmentation_decomposition_emojivit-as-emojiclip.json").read_text())
    assert figures["images"] == 520
    assert figures["methods"]["decomposition"]["mean_iou"] > 0.6
    assert not list(out.rglob("*.partial"))
