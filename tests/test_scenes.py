import csv
import json
import re

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from utils.data import captions, datasets, scenes


def test_the_pack_is_complete_and_small():
    from pathlib import Path

    concepts = scenes.concepts()
    assert 200 <= len(concepts) <= 450
    assert len({c["name"] for c in concepts}) == len(concepts)
    assert len(scenes.styles()) == 6
    assert scenes.styles(seen=False) == ["fluent"]
    assert sum(file.stat().st_size for file in Path(scenes.PACK).iterdir()) < 12e6
    for style in scenes.styles() + scenes.styles(seen=False):
        full = scenes.drawings(style)[0]
        assert full.shape[0] == len(concepts)
        covered = (full[:, 3] > 0.5).float().mean(dim=(1, 2))
        assert covered.min() > 0.02, style  # no drawing is missing
        assert scenes.pack()["styles"][style]["license"]


def test_scenes_depend_on_the_seed_alone():
    assert scenes.sample_scenes(20, 5) == scenes.sample_scenes(40, 5)[:20]
    assert scenes.sample_scenes(20, 5) != scenes.sample_scenes(20, 6)


@pytest.mark.parametrize("size", [32, 64, 97, 224])
def test_a_scene_looks_the_same_alone_and_in_a_batch(size):
    drawn = scenes.sample_scenes(12, 3)
    images, masks = scenes.draw(drawn, size)
    assert images.shape == (12, 3, size, size)
    assert masks.shape == (12, size, size)
    assert images.dtype == masks.dtype == torch.uint8
    alone, mask = scenes.draw(drawn[5:6], size)
    assert torch.equal(alone[0], images[5])
    assert torch.equal(mask[0], masks[5])


def scene(**changes):
    return scenes.Scene(**{"object": 20, "style": "noto", "count": 1, "position": "centre", "size": "medium",
                           "color": "blue", "texture": "plain", **changes})


def test_position_moves_the_object_as_it_says():
    for position in scenes.POSITIONS:
        for count in (1, 2, 3, 4):
            _, masks = scenes.draw([scene(position=position, count=count, size="small")], 96)
            rows, columns = masks[0].nonzero(as_tuple=True)
            x, y = columns.float().mean().item() / 96, rows.float().mean().item() / 96
            assert ("left" in position) == (x < 0.45), (position, count, x)
            assert ("right" in position) == (x > 0.55), (position, count, x)
            assert ("top" in position) == (y < 0.45), (position, count, y)
            assert ("bottom" in position) == (y > 0.55), (position, count, y)


def test_size_and_count_change_the_area_as_they_say():
    area = {(size, count): scenes.draw([scene(size=size, count=count)], 128)[1].sum().item()
            for size in scenes.SIZES for count in (1, 2, 3, 4)}
    for count in (1, 2, 3, 4):
        assert area["small", count] < area["medium", count] < area["large", count]
    for size in scenes.SIZES:  # three and four copies are drawn at one size
        assert area[size, 4] / area[size, 3] == pytest.approx(4 / 3, rel=0.03)


def test_objects_stay_inside_the_image():
    for position in scenes.POSITIONS:
        for count in (1, 2, 3, 4):
            whole = scenes.draw([scene(count=count, size="large")], 96)[1].sum().item()
            moved = scenes.draw([scene(count=count, size="large", position=position)], 96)[1].sum().item()
            assert moved == pytest.approx(whole, rel=0.03)


def test_the_background_has_its_colour_and_the_mask_lies_on_the_object():
    for color, rgb in scenes.COLORS.items():
        images, masks = scenes.draw([scene(color=color)], 64)
        outside = images[0][:, masks[0] == 0].float()
        assert outside.median(dim=1).values.tolist() == pytest.approx(rgb, abs=1)
        assert (images[0][:, masks[0] == 1].float() - torch.tensor(rgb)[:, None]).abs().sum(0).median() > 30


def test_textures_differ_and_keep_the_colour():
    looks = [scenes.draw([scene(texture=texture, noise=1)], 64)[0] for texture in scenes.TEXTURES]
    for i, one in enumerate(looks):
        for other in looks[:i]:
            assert (one.int() - other.int()).abs().float().mean() > 1


def test_captions_are_true():
    rng, positions = np.random.default_rng(0), 0
    for drawn in scenes.sample_scenes(400, 11):
        said = f" {captions.caption(drawn, rng, detail=0.6)} "
        names = scenes.concepts()[drawn.object]
        objects = said.replace(names["plural"], "").replace(names["name"], "")
        for color in scenes.COLORS:  # of the background, unless the object's own name holds the word
            assert f" {color} background" not in objects or color == drawn.color, said
        for number, word in captions.NUMBERS.items():
            assert f" {word} " not in objects or number == drawn.count, said
        for texture in scenes.TEXTURES:
            assert texture not in objects or texture == drawn.texture, said
        for size in scenes.SIZES:
            assert f" {size} " not in objects or size == drawn.size, said
        place = re.search(r" (?:at|in|on) the ((?:top|bottom|left|right|centre|middle)(?: left| right)?) ", said)
        assert place is None or place[1].replace("middle", "centre") == drawn.position, said
        positions += place is not None
    assert positions > 100  # they are really mentioned


def test_data_sets_are_balanced_and_of_the_promised_size():
    drawn, labels, _ = datasets.embedded_scenes("emoji")
    assert len(drawn) >= 1000
    assert len(set(labels)) >= 100
    assert np.bincount(labels).min() == np.bincount(labels).max()
    assert {s.style for s in drawn} == set(scenes.styles())
    unseen, *_ = datasets.embedded_scenes("emoji_unseen_style")
    assert {s.style for s in unseen} == {"fluent"}


@pytest.mark.parametrize("split, agreement", [("train", 0.95), ("val", 0.5), ("test", 0.5)])
def test_spurious_backgrounds_agree_as_often_as_promised(split, agreement):
    drawn, labels, places = datasets.embedded_scenes("emoji_spurious", split)
    labels, places = np.array(labels), np.array(places)
    assert np.mean(labels == 0) == 0.5
    assert np.mean(labels == places) == pytest.approx(agreement, abs=0.05)
    for s, y, place in zip(drawn, labels, places):
        assert scenes.concepts()[s.object]["habitat"] == ("land", "sea")[y]
        assert (s.color == "blue") == bool(place)


def test_spurious_on_disk_is_a_waterbirds_folder(run_script, tmp_path):
    code, *_ = run_script("data.emoji.write", "--dataset", "emoji_spurious", "--output_dir", tmp_path,
                          "--image_size", 32)
    assert code == 0
    rows = list(csv.DictReader((tmp_path / "metadata.csv").open()))
    assert list(rows[0]) == ["img_id", "img_filename", "y", "split", "place", "place_filename"]
    assert {row["split"] for row in rows} == {"0", "1", "2"}
    loaded = datasets.load_images("binary_waterbirds", str(tmp_path))
    drawn, labels, _ = datasets.embedded_scenes("emoji_spurious")
    assert [label for _, label in loaded.samples.samples] == labels
    images, _ = scenes.draw(drawn[:1], 32)
    assert np.array_equal(np.array(loaded.samples[0][0]), images[0].permute(1, 2, 0).numpy())


def test_segmentation_on_disk_is_imagenet_segmentations_file(run_script, tmp_path):
    code, *_ = run_script("data.emoji.write", "--dataset", "emoji_seg", "--output_dir", tmp_path, "--image_size", 48)
    assert code == 0
    drawn, *_ = datasets.embedded_scenes("emoji_seg")
    images, masks = scenes.draw(drawn[:3], 48)
    with h5py.File(tmp_path / "gtsegs_ijcv.mat") as file:
        assert file["value/img"].shape == file["value/gt"].shape == (len(drawn), 1)
        for i in range(3):
            image = np.array(file[file["value/img"][i, 0]]).transpose(2, 1, 0)
            mask = np.array(file[file[file["value/gt"][i, 0]][0, 0]]).T
            assert np.array_equal(image, images[i].permute(1, 2, 0).numpy())
            assert np.array_equal(mask, masks[i].numpy())
    lines = (tmp_path / "scenes.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert len(lines) == len(drawn)
    assert first["object_name"] == scenes.concepts()[drawn[0].object]["name"]
    assert first["caption"]


def test_class_folders_read_back(run_script, tmp_path, monkeypatch):
    monkeypatch.setitem(datasets.REGISTRY["emoji"].scenes, "test", (12, 1))
    assert run_script("data.emoji.write", "--output_dir", tmp_path, "--image_size", 32)[0] == 0
    assert len(datasets.load_images("imagefolder", str(tmp_path)).samples) == 12
    assert Image.open(next(tmp_path.glob("*/*.png"))).size == (32, 32)
