import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import WRITERS, cells, picture
from PIL import Image
from scipy.io import savemat

from utils import cli
from utils.cli import UserError
from utils.data import concepts, datasets, scenes

ROOT = Path(__file__).resolve().parent.parent


def folder(root, **classes):
    for name, files in classes.items():
        for file in files:
            picture(root / name / file)
    return str(root)


def options(*arguments, **settings):
    parser = argparse.ArgumentParser()
    cli.add_concept_options(parser, datasets.WITH_CONCEPTS, **settings)
    return vars(parser.parse_args(arguments))


def test_options():
    assert options() == {"dataset_name": "emoji", "data_root": None, "split": "train", "class_names": None,
                         "num_concepts": None, "num_images_for_reward": 256}
    assert options("--eval_dataset", "pets", "--num_concepts", "3", option="--eval_dataset")["eval_dataset"] == "pets"
    with pytest.raises(SystemExit):
        options("--dataset_name", "imagenet")


def test_aircraft_and_dogs_are_called_so(tmp_path):
    names = ["n1-Chihuahua/1.jpg", "n2-African_hunting_dog/1.jpg", "n3-Bulldog/1.jpg", "n4-Dogo/1.jpg"]
    savemat(tmp_path / "train_list.mat", {"file_list": cells(*names), "labels": np.array([[1], [2], [3], [4]])})
    (tmp_path / "Images").mkdir()
    assert concepts.concept_names("stanford_dogs", str(tmp_path), "train", None) == [
        "Chihuahua dog", "African hunting dog", "Bulldog", "Dogo"]
    WRITERS["fgvc_aircraft"](tmp_path)
    assert concepts.concept_names("fgvc_aircraft", str(tmp_path), "test", None) == [
        "Boeing 747-400 aircraft", "Canadair Challenger 600 aircraft", "McDonnell Douglas F/A-18 aircraft"]


def test_an_aircraft_s_maker_is_named_once(tmp_path):
    from utils.data import concept_names

    makers = {"Boeing 717": "Boeing", "ATR-42": "ATR", "Gulfstream IV": "Gulfstream Aerospace", "707-320": "Boeing",
              "Eurofighter Typhoon": "Eurofighter"}
    for split in ("train", "val", "test"):
        for kind, names in (("variant", makers.keys()), ("manufacturer", makers.values())):
            (tmp_path / f"images_{kind}_{split}.txt").write_text(
                "".join(f"{i:07d} {name}\n" for i, name in enumerate(names)))
    assert concept_names.with_maker(list(makers), tmp_path) == [
        "Boeing 717 aircraft", "ATR ATR-42 aircraft", "Gulfstream Aerospace Gulfstream IV aircraft",
        "Boeing 707-320 aircraft", "Eurofighter Typhoon aircraft"]


@pytest.mark.parametrize("name, names", [
    ("cub", ["Black-footed Albatross", "Laysan Albatross"]), ("pets", ["Abyssinian", "german shorthaired"]),
    ("stanford_cars", ["2000 AM General Hummer SUV", "2012 Ram C/V Van"]), ("imagefolder", ["A", "b b"])])
def test_names_are_as_published(tmp_path, name, names):
    WRITERS[name](tmp_path)
    assert concepts.concept_names(name, str(tmp_path), "train", None) == names


def test_names_of_birds_have_their_hyphens_and_no_flower_is_a_question():
    from torchvision.datasets import Flowers102

    from utils.data import concept_names

    names = ["Black footed Albatross", "Spotted Catbird", "Great Crested Flycatcher", "Nelson Sharp tailed Sparrow",
             "Cape May Warbler", "Whip poor Will", "Bobolink", ""]
    assert concept_names.with_hyphens(names, None) == [
        "Black-footed Albatross", "Spotted Catbird", "Great-Crested Flycatcher", "Nelson-Sharp-tailed Sparrow",
        "Cape-May Warbler", "Whip-poor Will", "Bobolink", ""]
    found = concept_names.without_question_marks(list(Flowers102.classes), None)
    assert "pink-yellow dahlia" in found
    assert not any("?" in name for name in found)


def test_names_of_a_file_of_the_user_s(tmp_path):
    WRITERS["pets"](tmp_path)
    names = tmp_path / "names.txt"
    names.write_text("a cat\n\n a dog \n")
    assert concepts.concept_names("pets", str(tmp_path), "train", None, str(names)) == ["a cat", "a dog"]
    found = concepts.load_concepts("pets", str(tmp_path), "trainval", None, 9, class_names=str(names))
    assert found.classes == ["a cat", "a dog"]
    assert found.paths == concepts.load_concepts("pets", str(tmp_path), "train", None, 9).paths
    for content in ('["a cat",\n "a dog"]', "\ufeffa cat\na dog\n", '\ufeff["a cat", "a dog"]'):
        names.write_text(content, encoding="utf-8")
        assert concepts.concept_names("pets", str(tmp_path), "train", None, str(names)) == ["a cat", "a dog"]
    for content in ('["a cat",', "[1, 2]"):
        names.write_text(content)
        with pytest.raises(UserError, match="--class_names .*names.txt is not a JSON list of names .*; write one name"):
            concepts.concept_names("pets", str(tmp_path), "train", None, str(names))
    names.write_bytes("Kätzchen\nHund".encode("latin-1"))
    with pytest.raises(UserError, match="names.txt, line 1: is not UTF-8"):
        concepts.concept_names("pets", str(tmp_path), "train", None, str(names))
    names.write_text("a cat\n")
    with pytest.raises(UserError, match="names.txt holds 1 names, and pets has 2 classes; write one a line"):
        concepts.concept_names("pets", str(tmp_path), "train", None, str(names))


def test_concepts_are_evenly_spaced():
    every = [concept["name"] for concept in scenes.concepts()]
    assert concepts.concept_names("emoji", None, "train", None) == every
    assert len(every) == 260
    assert concepts.concept_names("emoji", None, "train", 4) == [every[k] for k in (0, 65, 130, 195)]
    assert concepts.concept_names("emoji", None, "train", 3) == [every[k] for k in (0, 86, 173)]
    assert concepts.concept_names("emoji", None, "train", 260) == every
    for number in (261, 0, -1):
        with pytest.raises(UserError, match=f"--num_concepts {number}: there are 260 concepts; choose from 1 to 260"):
            concepts.concept_names("emoji", None, "train", number)


def of_concept(images, name):
    """Indices of a concept's images."""
    labels = [images.samples[i][1] for i in range(len(images.samples))]
    return [i for i, label in enumerate(labels) if label == images.classes.index(name)]


def test_images_are_sorted_by_file_name_and_limited(tmp_path):
    root = folder(tmp_path, big_owl=["b.png", "z/a.png", "c.png", "z/c.png"], cat=["1.png"], elk=["2.png"])
    Image.new("RGB", (9, 5)).save(tmp_path / "big_owl" / "b.png")
    found = concepts.load_concepts("imagefolder", root, "train", 2, 3)
    assert found.classes == ["big owl", "cat"] == concepts.concept_names("imagefolder", root, "train", 2)
    names = ("big_owl/z/a.png", "big_owl/b.png", "big_owl/c.png", "cat/1.png")
    assert found.paths == [f"{root}/{name}" for name in names]
    assert found.scenes is None
    assert [(image.size, label) for image, label in found.samples] == [
        ((4, 4), 0), ((9, 5), 0), ((4, 4), 0), ((4, 4), 1)]


def test_images_of_the_split_asked_for(tmp_path):
    WRITERS["stanford_cars"](tmp_path)
    train = concepts.load_concepts("stanford_cars", str(tmp_path), "train", None, 256)
    assert train.classes == ["2000 AM General Hummer SUV", "2012 Ram C/V Van"]
    assert [(Path(path).name, label) for path, label in train.samples.samples] == [
        ("00003.jpg", 0), ("00001.jpg", 1), ("00002.jpg", 1)]
    with pytest.raises(UserError, match="no images of '2012 Ram C/V Van' in the split 'test'"):
        concepts.load_concepts("stanford_cars", str(tmp_path), "test", None, 256)
    first = concepts.load_concepts("stanford_cars", str(tmp_path), "test", 1, 256)  # the empty one is not among these
    assert first.paths == [str(tmp_path / "cars_test" / "00001.jpg")]


def test_emoji_concepts_show_their_object():
    found = concepts.load_concepts("emoji", None, "train", 4, 5, 48)
    again = concepts.load_concepts("emoji", "ignored", "train", None, 3, 48)
    assert len(again.classes) == 260
    assert len(again.samples) == 780
    assert len(set(found.scenes)) == 20
    for name in found.classes:
        own = [found.scenes[i] for i in of_concept(found, name)]
        assert [scene.attributes()["object"] for scene in own] == [name] * 5
        assert own[:3] == [again.scenes[i] for i in of_concept(again, name)]  # whatever else is asked for
    expected, _ = scenes.draw(found.scenes, 48)
    for i in range(20):
        image, label = found.samples[i]
        assert label == i // 5
        assert np.array_equal(np.array(image), expected[i].permute(1, 2, 0).numpy())
    k = [concept["name"] for concept in scenes.concepts()].index(found.classes[2])
    rng = np.random.default_rng((datasets.CONCEPT_SEEDS["train"], k, 4))
    assert found.scenes[14] == scenes.sample_scene(rng, object=k)


def test_emoji_splits_differ_from_each_other_and_from_the_data_sets():
    drawn = [scene for split in ("train", "val", "test")
             for scene in concepts.load_concepts("emoji", None, split, 20, 4).scenes]
    assert len(set(drawn)) == 240
    of_sets = [scene for name in datasets.EMBEDDED for scene in datasets.embedded_scenes(name)[0]]
    # A seed without its trailing zeros is the same to numpy: (seed, k) of a data set and (seed, k, 0) of a concept.
    assert not {scene.noise for scene in drawn} & {scene.noise for scene in of_sets}
    used = [seed for name in datasets.EMBEDDED for _, seed in datasets.REGISTRY[name].scenes.values()]
    shown = [*datasets.CONCEPT_SEEDS.values(), *datasets.FIXED_SEEDS.values()]
    assert len({*used, *shown}) == len(used) + len(shown)


def test_concepts_of_emoji_fixed_share_their_attribute_and_no_other():
    known = scenes.fixed_concepts()
    every = [concept["name"] for concept in scenes.concepts()]
    assert [kind for _, kind, _ in known].count(None) == 8
    assert all([kind for _, kind, _ in known].count(name) == 8 for name in scenes.FIXED)
    names = concepts.concept_names("emoji_fixed", None, "train", None)
    assert names == [every[k] for k, _, _ in known]
    assert len(set(names)) == 40
    for split in ("train", "val"):
        found = concepts.load_concepts("emoji_fixed", None, split, None, 256)
        assert len(found.samples) == 40 * 64
        for label, (k, kind, value) in enumerate(known):
            own = found.scenes[64 * label:64 * label + 64]
            assert {scene.object for scene in own} == {k}
            assert found.samples[64 * label][1] == label if label < 2 else True
            for name in ("style", "count", "color", "size", "texture", "position"):
                values = {getattr(scene, name) for scene in own}
                assert values == {value} if name == kind else len(values) > 2
    some = concepts.load_concepts("emoji_fixed", None, "val", 10, 5)
    assert some.scenes[5:10] == found.scenes[64 * 4:64 * 4 + 5]
    with pytest.raises(UserError, match="emoji_fixed has no split 'test'; there are train, val"):
        concepts.load_concepts("emoji_fixed", None, "test", None, 1)


def test_what_the_user_can_mend(tmp_path):
    with pytest.raises(UserError, match="emoji has no split 'all'; there are train, val, test"):
        concepts.load_concepts("emoji", None, "all", 1, 1)
    with pytest.raises(UserError, match="cub needs --data_root"):
        concepts.concept_names("cub", None, "train", None)
    with pytest.raises(UserError, match="--data_root .*nowhere: no such folder"):
        concepts.concept_names("cub", str(tmp_path / "nowhere"), "train", None)
    with pytest.raises(UserError, match="images.txt does not exist; get CUB_200_2011.tgz"):
        concepts.concept_names("cub", str(tmp_path), "train", None)
    root = folder(tmp_path / "twice", big_owl=["1.png"], **{"big owl": ["1.png"]}, cat=["1.png"])
    with pytest.raises(UserError, match="two classes of imagefolder are both called 'big owl'"):
        concepts.concept_names("imagefolder", root, "train", 1)


def test_names_need_neither_torch_nor_torchvision_nor_open_clip(tmp_path):
    root = folder(tmp_path, big_owl=["1.png"], cat=["1.png"])
    code = f"""
import sys
for name in ("torch", "torchvision", "open_clip"):
    sys.modules[name] = None
from utils.data import concepts, datasets, layouts
print(concepts.concept_names("imagefolder", {root!r}, "train", None))
print(concepts.concept_names("emoji", None, "test", 2))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    every = [concept["name"] for concept in scenes.concepts()]
    assert done.stdout.splitlines() == ["['big owl', 'cat']", str([every[0], every[130]])]
