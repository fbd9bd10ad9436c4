"""Retrieval through components: against literal definitions, with uneven numbers of heads, and by the script."""
import json

import literal
import numpy as np
import pytest
from builders import LABELS, NAMES, call_script, opened, split_components, uneven_run, uneven_terms, write_run
from PIL import Image

from utils.analysis import retrieval, zeroshot
from utils.data import datasets, scenes
from utils.models import loading
from utils.runs.run import Run

WAYS = [[1, 4, 7], [3], None]
FEATURES = {"color": ["a red background", "a blue background", "a green background"],
            "object": ["a dog", "a pizza", "a fish", "a boot"], "many": ["one thing", "four things"]}


def literal_sum(components, way):
    """What one image [c, d] is compared by, added up one by one in double precision."""
    total = np.zeros(components.shape[1])
    for column, component in enumerate(components):
        if way is None or column in way:
            total = total + component.astype(np.float64)
    return total


def literal_by_image(flat, way, query):
    """Every image's cosine with a query, and its own place."""
    every = [literal_sum(one, way) for one in flat]
    mean = 0 if way is None else sum(every) / len(every)
    own = every[query] - mean
    return [(one - mean) @ own / np.linalg.norm(one - mean) / np.linalg.norm(own) for one in every]


def by_images(run, ways, queries, number):
    """The images nearest to images of the run, without themselves."""
    return retrieval.by_images(run, ways, retrieval.vectors(run, np.array(queries), ways), number, queries)


def literal_order(similarities, number, left_out=None):
    return sorted((i for i in range(len(similarities)) if i != left_out), key=lambda i: (-similarities[i], i))[:number]


@pytest.mark.parametrize("images", [1, 256, 300])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_images_of_a_text_are_the_literal_ones(images, dtype):
    run, flat = uneven_run(images, 5, dtype=dtype)
    texts = np.random.default_rng(1).normal(size=(2, 5)).astype(np.float32)
    number = min(7, images)
    indices, similarities = retrieval.by_texts(run, WAYS, texts, number)
    assert indices.shape == similarities.shape == (3, 2, number)
    assert similarities.dtype == np.float32
    for w, way in enumerate(WAYS):
        for q, text in enumerate(texts):
            slow = [literal_sum(one, way) @ text.astype(np.float64) for one in flat]
            assert indices[w, q].tolist() == literal_order(slow, number)
            np.testing.assert_allclose(similarities[w, q], np.array(slow)[indices[w, q]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("images", [9, 256, 300])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_images_of_an_image_are_the_literal_ones_without_itself(images, dtype):
    run, flat = uneven_run(images, 5, dtype=dtype)
    queries = [3, images - 1]
    indices, similarities = by_images(run, WAYS, queries, 8)
    assert indices.shape == similarities.shape == (3, 2, 8)
    for w, way in enumerate(WAYS):
        for q, query in enumerate(queries):
            slow = literal_by_image(flat, way, query)
            assert indices[w, q].tolist() == literal_order(slow, 8, query)
            np.testing.assert_allclose(similarities[w, q], np.array(slow)[indices[w, q]], atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_what_is_the_same_in_every_image_is_similar_to_none(dtype):
    parts = uneven_terms(70, 5, dtype=dtype)
    noise = np.random.default_rng(1).uniform(-1, 1, (70, 5))
    # but for the rounding of what is stored
    parts["mlp"][:, 1] = (0.3 + np.finfo(dtype).eps * 0.3 * noise).astype(dtype)
    run = opened(parts, NAMES)
    indices, similarities = by_images(run, [[7], [7, 0]], [2], 69)
    assert (similarities[0] == 0).all()
    assert (similarities[1] != 0).all()
    assert indices[0, :, :3].tolist() == [[0, 1, 3]]


def test_of_equal_images_the_first_comes_first_wherever_they_stand():
    parts, copies = uneven_terms(300, 5), [5, 255, 256, 299]
    for values in parts.values():
        values[copies] = values[5]
    run = opened(parts, NAMES)
    indices, similarities = retrieval.by_texts(run, WAYS, parts["mlp"][256, :1], 300)
    for way, values in zip(indices[:, 0].tolist(), similarities[:, 0]):
        places = [way.index(copy) for copy in copies]
        assert places == list(range(places[0], places[0] + 4))
        assert len(set(values[places].tolist())) == 1
    assert (by_images(run, WAYS, [256], 3)[0][:, 0] == [5, 255, 299]).all()


def test_the_most_of_a_feature_with_and_without_the_others():
    scores = np.array([[0.1, 0.9, 0.5, 0.5, -1], [0.0, 0.8, 0.1, 0.2, 0.3], [-0.2, 0.1, 0.4, -0.5, 0.2]])
    assert retrieval.most(scores, 0, 3, False) == [1, 2, 3]
    literal = sorted(range(5), key=lambda c: -(scores[0, c] - max(scores[1, c], scores[2, c])))
    assert literal == [3, 0, 1, 2, 4]
    assert retrieval.most(scores, 0, 5, True) == literal
    assert retrieval.most(scores, 2, 1, True) == [2]


@pytest.mark.parametrize("attribute, text, value", [
    ("color", "a red background", "red"), ("color", "a colored background", None),
    ("position", "up in the top left", "top left"),
    ("position", "at the top", "top"), ("count", "four dogs", 4), ("count", "a dog", None),
    ("style", "an outlined drawing", "openmoji"), ("object", "two hot dog", "hot dog"),
    ("texture", "striped", "striped")])
def test_the_value_that_a_text_names(attribute, text, value):
    values = {scene.attributes()[attribute] for scene in scenes.sample_scenes(2000, 1)}
    assert retrieval.named_value(attribute, text, values) == value


def test_agreement_is_counted_among_the_others():
    truth = [{"color": color} for color in ("red", "blue", "red", "red", "blue")]
    found = np.array([2, 4])
    assert retrieval.agreement(truth, 0, "color", found) == {"value": "red", "share": 50, "chance": 50}
    assert retrieval.agreement(truth, "a blue thing", "color", found) == {"value": "blue", "share": 50, "chance": 40}
    assert retrieval.agreement(truth, "a green thing", "color", found) is None


@pytest.fixture(scope="module")
def scenes_run(tmp_path_factory):
    """The embedded model's arrays on the val split of emoji_spurious, as a run of emojiclip; as one of a model "m",
    whose blocks have 2, 3 and 1 heads and whose components are turned, in a space of its own; and as
    "m-as-emojiclip"."""
    folder = tmp_path_factory.mktemp("retrieval")
    call_script("compute_prs", "--model", "emojiclip", "--dataset", "emoji_spurious", "--split", "val", "--batch_size",
                16,
                "--num_workers", 0, "--device", "cpu", "--output_dir", folder)
    run = Run.open(folder, "emoji_spurious", "emojiclip", "val")
    groups = np.array_split(run.stack(slice(None)), len(LABELS), axis=1)
    flat = np.stack([group.sum(axis=1) for group in groups], axis=1)  # other components with the same sum
    manifest = {key: value for key, value in run.manifest.items() if key not in ("arrays", "versions")}
    turns = np.linalg.qr(np.random.default_rng(0).normal(size=(len(LABELS), 128, 128)))[0][..., :7].astype(np.float32)
    text = {"text_model": "emojiclip", "text_option": "emojiclip", "text_pretrained": "emojiclip",
            "text_weights_sha256": manifest["weights_sha256"], "source_model": "m"}
    for model, values, more in (("m", np.einsum("bcd,cdk->bck", flat, turns), {}), ("m-as-emojiclip", flat, text)):
        write_run(folder, "emoji_spurious_val", model, split_components(values, NAMES), run.labels, NAMES,
                  **manifest | {"model": model, "weights_sha256": model, **more})
    return folder


@pytest.fixture
def features_file(tmp_path):
    path = tmp_path / "features.yaml"
    path.write_text(json.dumps(FEATURES))
    return path


def arguments(folder, out, features_file, *more, model="emojiclip"):
    return ("--model", model, "--dataset", "emoji_spurious", "--split", "val", "--input_dir", folder, "--output_dir",
            out,
            "--features", features_file, "--device", "cpu", *more)


def literal_scores(flat):
    """Every component's score for every feature [features, c], and the CLIP."""
    clip, whole = loading.load("emojiclip", None, "cpu"), flat.astype(np.float64).sum(axis=1)
    embedded = [zeroshot.embed_texts(clip, texts, 99) for texts in FEATURES.values()]
    return np.array([[literal.feature_score(flat[:, c], whole, texts) for c in range(flat.shape[1])]
                     for texts in embedded]), clip


def loaded(folder, model):
    return Run.open(folder, "emoji_spurious", model, "val").stack(slice(None))


def known():
    drawn, labels, _ = datasets.embedded_scenes("emoji_spurious", "val")
    return [scene.attributes() for scene in drawn], [datasets.SPURIOUS_CLASSES[label] for label in labels]


def test_the_script_finds_images_by_text(run_script, scenes_run, features_file, tmp_path):
    code, out, err = run_script("compute_retrieval", *arguments(
        scenes_run, tmp_path, features_file, "--text", "a blue background", "a dog", "--feature", "color", "many",
        "--components", 4, "--neighbors", 5))
    assert code == 0, err
    found = json.loads((tmp_path / "emoji_spurious_val_retrieval_emojiclip.json").read_text())
    flat = loaded(scenes_run, "emojiclip")
    scores, clip = literal_scores(flat)
    truth, classes = known()
    texts = zeroshot.embed_texts(clip, ["a blue background", "a dog"], 9).astype(np.float64)
    heads = [f"{layer}.{head}" for layer in range(6) for head in range(6)]
    labels = [*heads, "embedding", *(f"mlp {layer}" for layer in range(6))]
    assert [entry["query"] for entry in found["queries"]] == [{"text": "a blue background"}, {"text": "a dog"}]
    for q, entry in enumerate(found["queries"]):
        assert [way["by"] for way in entry["ways"]] == ["color", "many", "whole"]
        for way, row in zip(entry["ways"], (0, 2, None)):
            columns = None if row is None else sorted(range(43), key=lambda c: -scores[row, c])[:4]
            if columns:
                assert [part["name"] for part in way["components"]] == [labels[c] for c in columns]
                assert [part["score"] for part in way["components"]] == pytest.approx(scores[row, columns], abs=1e-5)
            else:
                assert way["components"] is None
            slow = [literal_sum(one, columns) @ texts[q] for one in flat]
            assert [near["index"] for near in way["neighbors"]] == literal_order(slow, 5)
            assert [near["similarity"] for near in way["neighbors"]] == pytest.approx(sorted(slow)[:-6:-1], abs=1e-5)
            assert [near["class"] for near in way["neighbors"]] == [classes[near["index"]] for near in way["neighbors"]]
            blue = [row["color"] == "blue" for row in truth]
            expected = {"value": "blue", "chance": pytest.approx(100 * np.mean(blue)),
                        "share": pytest.approx(20 * sum(blue[near["index"]] for near in way["neighbors"]))}
            assert way["agreement"] == {"color": None if q else expected}
    first = found["queries"][0]["ways"][0]["agreement"]["color"]
    assert first["share"] == 100
    assert f"; color blue 100.0% (any image {first['chance']:.1f}%): " in out
    assert "a dog, whole representation: " in out
    assert Image.open(tmp_path / "emoji_spurious_val_retrieval_emojiclip.png").height > 6 * 200


def test_the_script_compares_the_unmapped_components_of_uneven_blocks(run_script, scenes_run, features_file, tmp_path):
    common = arguments(scenes_run, tmp_path, features_file, "--index", 7, 399, "--feature", "object", "--components", 3,
                       "--neighbors", 6, model="m-as-emojiclip")
    code, out, err = run_script("compute_retrieval", *common)
    assert code == 0, err
    path = tmp_path / "emoji_spurious_val_retrieval_m-as-emojiclip.json"
    text, found = path.read_text(), json.loads(path.read_text())
    flat = loaded(scenes_run, "m-as-emojiclip")
    source = loaded(scenes_run, "m")
    assert source.shape[2] == 7
    scores, _ = literal_scores(flat)
    truth, classes = known()
    columns = sorted(range(len(LABELS)), key=lambda c: -(scores[1, c] - max(scores[0, c], scores[2, c])))[:3]
    for query, entry in zip((7, 399), found["queries"]):
        assert entry["query"] == {"index": query, "class": classes[query]}
        assert [part["name"] for part in entry["ways"][0]["components"]] == [LABELS[c] for c in columns]
        for way, chosen in zip(entry["ways"], (columns, None)):
            slow = literal_by_image(source, chosen, query)
            assert [near["index"] for near in way["neighbors"]] == literal_order(slow, 6, query)
            same = [i for i, row in enumerate(truth) if row["object"] == truth[query]["object"] and i != query]
            assert way["agreement"]["object"] == {
                "value": truth[query]["object"], "chance": pytest.approx(100 * len(same) / 399),
                "share": pytest.approx(100 * sum(near["index"] in same for near in way["neighbors"]) / 6)}
    assert "399, whole representation; object " in out
    assert run_script("compute_retrieval", *common, "--source_model", "m")[0] == 0
    assert path.read_text() == text


def test_what_does_not_belong_together_is_one_line(refused, scenes_run, features_file, tmp_path):
    common = arguments(scenes_run, tmp_path / "new", features_file, model="m-as-emojiclip")
    by_image = ("compute_retrieval", *common, "--feature", "color", "--index", 1)
    assert "the following arguments are required: --feature" in refused("compute_retrieval", *common, "--index", 1)
    assert "--source_model emojiclip: has other components" in refused(*by_image, "--source_model", "emojiclip")
    assert "does not exist; make it with: python compute_prs.py" in refused(*by_image, "--source_model", "n")
    assert "--source_model goes with --index" in refused(*by_image[:-2], "--text", "a", "--source_model", "m")
    features_file.write_text('{"color": ["red", "blue"]}')
    assert "compares a feature with others, and there is one" in refused(*by_image)
