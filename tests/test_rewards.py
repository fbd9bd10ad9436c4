"""The reward of a description: equal to its literal definition, and images looked at only once."""
import copy
import dataclasses
import json
import shutil

import literal
import numpy as np
import pytest
import torch
from builders import ROOT, model_of
from PIL import Image

from utils.cli import UserError
from utils.data import concepts, scenes
from utils.ex2 import rewards
from utils.models import loading

CPU = torch.device("cpu")
NUMBERS = {"cat": 5, "cherries": 1, "snail": 4}  # images of each concept, ten in all


@pytest.fixture(scope="module")
def vlm():
    return loading.load_vlm("r-open-clip:emojiclip", CPU)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Class folders with unequal numbers of scenes of three concepts."""
    folder = tmp_path_factory.mktemp("rewards")
    every = [concept["name"] for concept in scenes.concepts()]
    for name, number in NUMBERS.items():
        (folder / name).mkdir()
        drawn = [scenes.sample_scene(np.random.default_rng(i), object=every.index(name)) for i in range(number)]
        images, _ = scenes.draw(drawn, 64)
        for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
            Image.fromarray(image).save(folder / name / f"{i}.png")
    return str(folder)


@pytest.fixture
def images(root):
    return concepts.load_concepts("imagefolder", root, "train", None, 256)


def counting(vlm):
    """The same VLM, and the list of how many images each pass of it took."""
    passes = []

    def encode_image(pixels):
        passes.append(len(pixels))
        return vlm.encode_image(pixels)

    return dataclasses.replace(vlm, encode_image=encode_image), passes


def test_rewards_equal_their_definition(vlm, images):
    assert images.classes == list(NUMBERS)
    counted, passes = counting(vlm)
    means = rewards.image_means(counted, images, batch_size=4, num_workers=0)
    assert passes == [4, 4, 2]
    assert means.shape == (3, vlm.embed_texts(["x"]).shape[1])
    assert means.dtype == np.float32
    texts = ["a cat", "  a red pair of cherries\n", "snail", "nothing like that"]
    pairs = [(text, concept) for text in texts for concept in (2, 0, 1)]
    found = rewards.score(vlm, means, *map(list, zip(*pairs)))
    single = [[], [], []]
    for image, label in (images.samples[i] for i in range(len(images.samples))):
        single[label].append(vlm.embed_images(vlm.preprocess(image)[None])[0].numpy())
    assert [len(of_concept) for of_concept in single] == list(NUMBERS.values())
    for (text, concept), reward in zip(pairs, found):
        expected = literal.description_reward(single[concept], vlm.embed_texts([text.strip()])[0], vlm.logit_scale)
        assert abs(reward - expected) < 2e-3
        assert type(reward) is float
    assert found[pairs.index(("a cat", 0))] > found[pairs.index(("a cat", 1))] + 5  # a judge that can tell
    assert not np.allclose(np.linalg.norm(means[[0, 2]], axis=1), 1, atol=1e-3)     # means of unit vectors are shorter


def test_scenes_are_drawn_at_the_size_of_the_vlm(vlm):
    large, own = (concepts.load_concepts("emoji", None, "train", 2, 3, size) for size in (96, 64))
    assert np.array_equal(rewards.image_means(vlm, large, num_workers=0), rewards.image_means(vlm, own, num_workers=0))


def test_a_description_without_a_word_is_scored_like_any_other(vlm, images):
    means = rewards.image_means(vlm, images, num_workers=0)
    found = rewards.score(vlm, means, ["", " \n\t ", "a cat"], [0, 1, 0])
    single = vlm.embed_texts([""])[0].numpy()
    assert found[:2] == pytest.approx([100 * float(single @ means[0]), 100 * float(single @ means[1])], abs=1e-2)
    assert found[0] != 0
    assert rewards.score(vlm, means, ["a cat"], [0])[0] == pytest.approx(found[2])
    assert rewards.score(vlm, means, [], []) == []


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_text_embedding_that_overflowed_has_no_reward(vlm, images, value):
    def encode_text(texts):
        embeddings = vlm.encode_text(texts).clone()
        embeddings[[i for i, text in enumerate(texts) if text == "long"], 3] = value
        return embeddings

    means = rewards.image_means(vlm, images, num_workers=0)
    broken = dataclasses.replace(vlm, encode_text=encode_text)
    found = rewards.score(broken, means, ["a cat", "long", "snail"], [0, 1, 2])
    assert found[1] is None
    assert found[::2] == rewards.score(vlm, means, ["a cat", "long", "snail"], [0, 1, 2])[::2]


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_an_image_embedding_that_overflowed_is_named(vlm, images, value):
    def encode_image(pixels):
        embeddings = vlm.encode_image(pixels).clone()
        embeddings[len(embeddings) - 1, 0] = value
        return embeddings

    with pytest.raises(UserError, match="r-open-clip:emojiclip gives an embedding that is not finite .* 'cherries'; "
                                        "try --vlm_16bit False"):
        rewards.image_means(dataclasses.replace(vlm, encode_image=encode_image), images, batch_size=6, num_workers=0)


def test_an_image_that_cannot_be_read_is_named(vlm, root, tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.png").write_bytes(b"no image")
    broken = concepts.load_concepts("imagefolder", str(tmp_path), "train", None, 256)
    with pytest.raises(UserError, match="cannot read .*cat/0.png") as problem:
        rewards.image_means(vlm, broken, num_workers=0)
    assert "--skip_bad_images" not in str(problem.value)  # train.py and inference.py have no such option


def unit(texts):
    """Any unit embeddings, each of its own text."""
    rows = [np.random.default_rng(list(text.encode())).normal(size=8) for text in texts]
    return torch.tensor(np.array([row / np.linalg.norm(row) for row in rows]), dtype=torch.float32)


def test_many_texts_come_in_batches_and_look_at_no_image():
    sizes = []

    def encode_text(texts):
        sizes.append(len(texts))
        return unit(texts)

    judge = dataclasses.replace(model_of(None), encode_text=encode_text, logit_scale=20.0)
    means = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    texts = ["" if i in (0, 100, 257, 599) else f"text {i}" for i in range(600)]
    found = rewards.score(judge, means, [f"\n {text}  " for text in texts], [i % 3 for i in range(600)])
    assert sizes == [256, 256, 88]
    for i, (text, reward) in enumerate(zip(texts, found)):
        assert reward == pytest.approx(20 * float(unit([text])[0] @ means[i % 3]), abs=1e-4)


def kept(folder, vlm, number_of_concepts=2, number=3, **description):
    """Kept means of emoji concepts, and how many images were looked at for them."""
    counted, passes = counting(vlm)
    found = concepts.load_concepts("emoji", None, "train", number_of_concepts, number)
    description = {"split": "train", "vlm_16bit": None} | description
    return rewards.kept_image_means(str(folder), "emoji", counted, found, description), sum(passes)


def test_means_are_computed_once_and_kept(vlm, tmp_path):
    first, looked = kept(tmp_path, vlm)
    again, looked_again = kept(tmp_path, vlm)
    assert (looked, looked_again) == (6, 0)
    assert np.array_equal(first, again)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "emoji_image_means_r-open-clip-emojiclip.json", "emoji_image_means_r-open-clip-emojiclip.npy"]
    manifest = json.loads((tmp_path / "emoji_image_means_r-open-clip-emojiclip.json").read_text())
    assert manifest["vlm_name"] == "r-open-clip:emojiclip"
    assert manifest["images"] == 6
    assert len(manifest["concepts"]) == 2
    expected = rewards.image_means(vlm, concepts.load_concepts("emoji", None, "train", 2, 3, 64), num_workers=0)
    assert np.array_equal(first, expected)
    assert not np.allclose(first[0], first[1], atol=0.1)


@pytest.mark.parametrize("changes, looked", [({"number": 4}, 8), ({"number_of_concepts": 3}, 9), ({"split": "val"}, 6),
                                             ({"vlm_16bit": True}, 6)])
def test_means_of_anything_else_are_computed_again(vlm, tmp_path, changes, looked):
    kept(tmp_path, vlm)
    found, passes = kept(tmp_path, vlm, **changes)
    assert passes == looked
    assert np.array_equal(kept(tmp_path, vlm, **changes)[0], found)
    assert kept(tmp_path, vlm, **changes)[1] == 0
    number = {"number": changes.get("number", 3), "number_of_concepts": changes.get("number_of_concepts", 2)}
    same = concepts.load_concepts("emoji", None, "train", number["number_of_concepts"], number["number"], 64)
    assert np.array_equal(found, rewards.image_means(vlm, same, num_workers=0))


def test_means_of_other_files_are_computed_again(vlm, tmp_path, root):
    counted, passes = counting(vlm)
    copy = shutil.copytree(root, tmp_path / "copy")

    def keep(number):
        found = concepts.load_concepts("imagefolder", str(copy), "train", None, number)
        return rewards.kept_image_means(str(tmp_path), "imagefolder", counted, found, {})

    first = keep(256)
    assert np.array_equal(keep(256), first)
    assert sum(passes) == 10
    (copy / "snail" / "0.png").unlink()
    (copy / "cat" / "4.png").rename(copy / "snail" / "9.png")  # as many images of the same names, but others
    assert not np.array_equal(keep(256), first)
    assert sum(passes) == 10 + 9
    picture = (copy / "snail" / "9.png").read_bytes()
    (copy / "snail" / "9.png").write_bytes((copy / "cat" / "0.png").read_bytes())  # another picture of the same name
    assert not np.array_equal(keep(256), first)
    (copy / "snail" / "9.png").write_bytes(picture)
    passes.clear()
    keep(2)
    assert sum(passes) == 5
    before = keep(2)
    (copy / "snail" / "1.png").rename(copy / "snail" / "1b.png")
    (copy / "snail" / "9.png").rename(copy / "snail" / "1a.png")  # as many again
    assert not np.array_equal(keep(2), before)
    assert sum(passes) == 5 + 5


def test_means_of_other_weights_are_computed_again(vlm, tmp_path):
    kept(tmp_path, vlm)
    network = copy.deepcopy(vlm.network)
    with torch.no_grad():
        next(network.parameters()).add_(1)
    trained = dataclasses.replace(vlm, network=network)
    assert trained.weights_hash != vlm.weights_hash
    assert kept(tmp_path, trained)[1] == 6
    assert kept(tmp_path, trained)[1] == 0
    assert dataclasses.replace(vlm, network=network.bfloat16()).weights_hash != trained.weights_hash


def test_means_of_another_vlm_have_a_file_of_their_own(vlm, tmp_path):
    kept(tmp_path, vlm)
    other = loading.load_vlm(f"r-open-clip:local-dir:{ROOT / 'models' / 'emojiclip'}", CPU)
    assert kept(tmp_path, other)[1] == 6
    assert kept(tmp_path, other)[1] == kept(tmp_path, vlm)[1] == 0
