import json
import shutil

import numpy as np
import pytest
from builders import ROOT, opened, write_run
from PIL import Image

from utils.analysis import retrieval
from utils.plots import sheets
from utils.runs.components import head_list_path, read_head_list

WAYS = [None, [6], [1, 8, 11]]  # columns: of the heads 1.2, and 0.1, 2.0 and 2.3


def random_run(images, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    means = {"attn": rng.normal(size=(3, 4, 6)), "mlp": rng.normal(size=(4, 6))}
    return {what: (mean * 3 + rng.normal(size=(images, *mean.shape))).astype(dtype) for what, mean in means.items()}


def literal_vector(attn, mlp, way):
    """What one image [l, h, d] is compared by, added up term by term in double precision."""
    heads = attn.reshape(-1, attn.shape[-1])
    terms = [*heads, *mlp] if way is None else [heads[column] for column in way]
    total = np.zeros(attn.shape[-1])
    for term in terms:
        total = total + term.astype(np.float64)
    return total


def literal_nearest(run, attn, mlp, way, number, left_out=None):
    """The nearest images of one query by definition: every cosine, sorted by similarity, then by index."""
    every = [literal_vector(*terms, way) for terms in zip(run["attn"], run["mlp"])]
    mean = np.zeros(len(every[0])) if way is None else sum(every) / len(every)
    query = literal_vector(attn, mlp, way) - mean
    found = []
    for index, vector in enumerate(every):
        if index != left_out:
            own = vector - mean
            found.append((-(own @ query) / np.sqrt(own @ own) / np.sqrt(query @ query), index))
    found = sorted(found)[:number]
    return [index for _, index in found], [-value for value, _ in found]


@pytest.mark.parametrize("images", [9, 256, 300, 513])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_neighbors_equal_the_literal_ones(images, dtype):
    run, other = random_run(images, dtype), random_run(2, seed=1)
    queries = retrieval.vectors(opened(other), slice(None), WAYS)
    indices, similarities = retrieval.by_images(opened(run), WAYS, queries, 8)
    assert indices.shape == similarities.shape == (3, 2, 8)
    for w, way in enumerate(WAYS):
        for q in range(2):
            slow = literal_nearest(run, other["attn"][q], other["mlp"][q], way, 8)
            assert indices[w, q].tolist() == slow[0]
            np.testing.assert_allclose(similarities[w, q], slow[1], atol=1e-6)


@pytest.mark.parametrize("rows", [[0], [299, 7, 256]])
def test_a_query_of_the_run_is_left_out_of_its_own_neighbors_alone(rows):
    run = random_run(300)
    queries = retrieval.vectors(opened(run), np.array(rows), WAYS)
    indices, similarities = retrieval.by_images(opened(run), WAYS, queries, 299, rows)
    for w, way in enumerate(WAYS):
        for q, row in enumerate(rows):
            slow = literal_nearest(run, run["attn"][row], run["mlp"][row], way, 299, row)
            assert indices[w, q].tolist() == slow[0]
            assert sorted([*indices[w, q], row]) == list(range(300))
            np.testing.assert_allclose(similarities[w, q], slow[1], atol=1e-6)
    itself, _ = retrieval.by_images(opened(run), WAYS, queries, 1)  # where it is not left out
    assert (itself == np.array([rows] * 3)[..., None]).all()


def test_of_equally_near_images_the_first_comes_first():
    run, copies = random_run(600), [3, 255, 256, 257, 400, 598, 599]  # across blocks, and in the last partial one
    for what in run:
        run[what][copies] = run[what][3]
    run = opened(run)
    for row in (3, 400):
        indices, similarities = retrieval.by_images(run, WAYS, retrieval.vectors(run, np.array([row]), WAYS), 7, [row])
        assert (indices[:, 0, :6] == [copy for copy in copies if copy != row]).all()
        assert (similarities[:, 0, :6] == 1).all()
        assert (similarities[:, 0, 6] < 1).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("value", [0.0, 0.3])
def test_a_head_that_writes_a_constant_finds_no_one_nearer(dtype, value):
    run = random_run(300, dtype)
    run["attn"][:, 1, 2] = value
    if value:  # but for the rounding of what is stored
        run["attn"][:, 1,
                    2] += (np.finfo(dtype).eps * value *
                           np.random.default_rng(1).uniform(-1, 1, (300, 6))).astype(dtype)
    run = opened(run)
    queries = retrieval.vectors(run, np.array([0, 150]), [WAYS[1]])
    indices, similarities = retrieval.by_images(run, [WAYS[1]], queries, 4, [0, 150])
    assert (similarities == 0).all()
    assert indices[0].tolist() == [[1, 2, 3, 4], [0, 1, 2, 3]]


def test_a_representation_of_zeros_is_near_to_nothing():
    run = random_run(20)
    for what in run:
        run[what][[4, 9]] = 0
    run = opened(run)
    similarities = retrieval.by_images(run, [None], retrieval.vectors(run, np.array([4, 5]), [None]), 19, [4, 5])[1]
    assert (similarities[0, 0] == 0).all()
    assert np.isfinite(similarities).all()
    assert (similarities[0, 1] == 0).sum() == 2


def test_adding_the_same_to_every_image_changes_no_neighbor_by_heads():
    run = random_run(100)
    shifted = {"attn": run["attn"] + np.float32(5), "mlp": run["mlp"]}
    before, after = (retrieval.by_images(r, WAYS[1:], retrieval.vectors(r, np.array([8]), WAYS[1:]), 20, [8])
                     for r in map(opened, (run, shifted)))
    assert np.array_equal(before[0], after[0])
    np.testing.assert_allclose(before[1], after[1], atol=1e-5)


HEADS = "model: emojiclip\ndataset: imagefolder\nheads:\n  color: 5.4 5.3\n  object: '5.1'\n"


@pytest.fixture
def heads_file(tmp_path):
    (tmp_path / "heads.yaml").write_text(HEADS)
    return tmp_path / "heads.yaml"


def arguments(run, out, *more):
    return ("--model", "emojiclip", "--dataset", "imagefolder", "--input_dir", run / "out", "--data_path",
            run / "images",
            "--output_dir", out, "--device", "cpu", *more)


def report(out):
    return json.loads((out / "imagefolder_neighbors_emojiclip.json").read_text())


def files(run):
    return [str(path) for path in sorted((run / "images").glob("*/*.png"))]


def test_the_script_writes_neighbors_by_every_way(run_script, emoji_run, heads_file, tmp_path):
    code, out, err = run_script("compute_nearest_neighbors", *arguments(
        emoji_run, tmp_path / "new", "--index", 17, 0, "--neighbors", 5, "--heads", "4.2,3.1", "--heads_file",
        heads_file,
        "--property", "object", "whole", "color"))
    assert code == 0, err
    found, paths = report(tmp_path / "new"), files(emoji_run)
    run = {what: np.load(emoji_run / "out" / f"imagefolder_{what}_emojiclip.npy") for what in ("attn", "mlp")}
    ways = {"object": [31], "whole": None, "color": [34, 33], "4.2,3.1": [26, 19]}
    assert (found["images"], found["dataset"], found["split"]) == (len(paths), "imagefolder", None)
    assert [entry["query"]["index"] for entry in found["queries"]] == [17, 0]
    for entry in found["queries"]:
        query = entry["query"]["index"]
        assert [way["by"] for way in entry["ways"]] == list(ways)
        assert [way["heads"] for way in entry["ways"]] == [["5.1"], None, ["5.4", "5.3"], ["4.2", "3.1"]]
        for way in entry["ways"]:
            slow = literal_nearest(run, run["attn"][query], run["mlp"][query], ways[way["by"]], 5, query)
            assert [near["index"] for near in way["neighbors"]] == slow[0]
            assert [near["similarity"] for near in way["neighbors"]] == pytest.approx(slow[1], abs=1e-6)
        for near in [entry["query"], *(near for way in entry["ways"] for near in way["neighbors"])]:
            assert near["path"] == paths[near["index"]]
            assert near["class"] == near["path"].split("/")[-2].replace("_", " ")
    assert out.count("17, ") >= 4
    assert "0, color: heads 5.4, 5.3: " in out
    assert "17, whole representation: " in out
    assert "17, object: head 5.1: " in out
    assert "0, heads 4.2, 3.1: " in out
    with Image.open(tmp_path / "new" / "imagefolder_neighbors_emojiclip.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.height > 8 * 200
        assert sheet.width > 6 * 100
    assert sorted(path.suffix for path in (tmp_path / "new").iterdir()) == [".json", ".png"]


def test_a_picture_is_found_and_has_the_neighbors_of_its_own_image(run_script, emoji_run, heads_file, tmp_path):
    ways = ("--property", "whole", "color", "object", "--heads_file", heads_file)
    pictures = [files(emoji_run)[index] for index in (30, 60)]
    code, _, err = run_script("compute_nearest_neighbors",
                              *arguments(emoji_run, tmp_path / "a", "--image", *pictures, *ways,
                                         "--neighbors", 6))
    assert code == 0, err
    run_script("compute_nearest_neighbors",
               *arguments(emoji_run, tmp_path / "b", "--index", 30, 60, *ways, "--neighbors", 5))
    by_file, by_index = report(tmp_path / "a")["queries"], report(tmp_path / "b")["queries"]
    for file, index, number, path in zip(by_file, by_index, (30, 60), pictures):
        assert file["query"] == {"path": path}
        assert len(file["ways"]) == 3
        for found, known in zip(file["ways"], index["ways"]):
            assert found["neighbors"][0]["index"] == number
            assert found["neighbors"][0]["similarity"] == pytest.approx(1, abs=1e-5)
            assert [near["index"] for near in found["neighbors"][1:]] == [near["index"] for near in known["neighbors"]]
            assert [near["similarity"] for near in found["neighbors"][1:]] == pytest.approx(
                [near["similarity"] for near in known["neighbors"]], abs=1e-4)


def test_the_whole_is_the_default_and_heads_alone_need_no_mlps(run_script, emoji_run, tmp_path):
    shutil.copytree(emoji_run, tmp_path / "run", symlinks=True)
    (tmp_path / "s.yaml").write_text("index: 4\n")
    code, _, err = run_script("compute_nearest_neighbors", *arguments(tmp_path / "run", tmp_path,
                                                                      "--config", tmp_path / "s.yaml"))
    assert code == 0, err
    entry, = report(tmp_path)["queries"]
    assert [way["by"] for way in entry["ways"]] == ["whole"]
    assert len(entry["ways"][0]["neighbors"]) == 8
    (tmp_path / "run" / "out" / "imagefolder_mlp_emojiclip.npy").unlink()
    code, _, err = run_script("compute_nearest_neighbors",
                              *arguments(tmp_path / "run", tmp_path, "--index", 4, "--heads", "5.4"))
    assert code == 0, err
    entry, = report(tmp_path)["queries"]
    assert [way["by"] for way in entry["ways"]] == ["5.4"]


def test_a_picture_is_found_by_a_model_of_timm(run_script, emoji_run, tmp_path):
    for path in files(emoji_run)[:6]:
        place = tmp_path / "images" / path.split("/")[-2]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    given = ("--model", f"timm:local-dir:{ROOT / 'models' / 'emojivit'}", "--dataset", "imagefolder", "--data_path",
             tmp_path / "images", "--output_dir", tmp_path, "--device", "cpu")
    code, _, err = run_script("compute_prs", *given, "--num_workers", 0)
    assert code == 0, err
    picture = files(emoji_run)[4]
    code, _, err = run_script("compute_nearest_neighbors", *given, "--input_dir", tmp_path, "--image", picture,
                              "--neighbors", 2, "--property", "whole", "--heads", "2.1,3.0")
    assert code == 0, err
    report, = tmp_path.glob("*_neighbors_*.json")
    for way in json.loads(report.read_text())["queries"][0]["ways"]:
        first, second = way["neighbors"]
        assert first["path"].endswith("/".join(picture.split("/")[-2:]))
        assert first["similarity"] == pytest.approx(1, abs=1e-4)
        assert second["similarity"] < 0.999


@pytest.fixture
def run_with_a_bad_image(run_script, emoji_run, tmp_path):
    """A run of twelve images without the first, which cannot be read."""
    for path in files(emoji_run)[:12]:
        place = tmp_path / "bad" / "images" / path.split("/")[-2]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    (tmp_path / "bad" / "images" / files(emoji_run)[0].split("/")[-2] / "0.png").write_text("no image")
    code, _, err = run_script("compute_prs", "--model", "emojiclip", "--dataset", "imagefolder", "--skip_bad_images",
                              "--data_path", tmp_path / "bad" / "images", "--output_dir", tmp_path / "bad" / "out",
                              "--num_workers", "0", "--device", "cpu")
    assert code == 0, err
    return tmp_path / "bad"


def test_skipped_images_shift_no_file(run_script, run_with_a_bad_image, tmp_path):
    code, _, err = run_script("compute_nearest_neighbors", *arguments(run_with_a_bad_image, tmp_path, "--index", 0,
                                                                      "--neighbors", 11))
    assert code == 0, err
    entry, = report(tmp_path)["queries"]
    paths = [path for path in files(run_with_a_bad_image) if not path.endswith("/0.png")]
    assert entry["query"]["path"] == paths[0]
    assert {near["index"]: near["path"] for near in entry["ways"][0]["neighbors"]} == dict(enumerate(paths[1:], 1))


def test_an_image_that_can_no_longer_be_read_is_named(refused, run_with_a_bad_image, tmp_path):
    path = [path for path in files(run_with_a_bad_image) if not path.endswith("/0.png")][3]
    with open(path, "wb") as file:
        file.write(b"no image")
    for index, number in ((3, 2), (0, 11)):  # as the query, and as a neighbour
        assert f"cannot read {path}" in refused("compute_nearest_neighbors", *arguments(
            run_with_a_bad_image, tmp_path, "--index", index, "--neighbors", number))


def test_an_embedded_set_is_drawn_and_its_list_is_found(run_script, tmp_path):
    from utils.data import datasets
    roles = read_head_list(head_list_path("emoji_spurious", "emojiclip"), "emojiclip")
    labels = datasets.load_images("emoji_spurious", split="val").samples.labels
    rng = np.random.default_rng(0)
    parts = {"attn": rng.normal(size=(len(labels), 6, 6, 8)), "mlp": rng.normal(size=(len(labels), 7, 8))}
    write_run(tmp_path, "emoji_spurious_val", "emojiclip", parts, labels, dtype="float16",
              classes=datasets.class_names("emoji_spurious"))
    role = next(iter(roles))
    code, _, err = run_script("compute_nearest_neighbors", "--model", "emojiclip", "--dataset", "emoji_spurious",
                              "--split", "val", "--input_dir", tmp_path, "--output_dir", tmp_path, "--index", 399,
                              "--property", role)
    assert code == 0, err
    found = json.loads((tmp_path / "emoji_spurious_val_neighbors_emojiclip.json").read_text())
    way, = found["queries"][0]["ways"]
    assert way["heads"] == [str(head) for head in roles[role]]
    assert found["split"] == "val"
    assert all("path" not in near and near["class"] == ("land animal", "sea animal")[labels[near["index"]]]
               for near in [found["queries"][0]["query"], *way["neighbors"]])
    assert (tmp_path / "emoji_spurious_val_neighbors_emojiclip.png").is_file()


@pytest.mark.parametrize("text, message", [
    (HEADS.replace("emojiclip", "ViT-L-14"), "lists heads of ViT-L-14, and --model is emojiclip"),
    (HEADS.replace("5.4 5.3", "5.4 5.6"), "color: there is no head 5.6"), (None, "no such list of heads")])
def test_lists_of_heads_that_do_not_fit_are_refused(refused, emoji_run, heads_file, tmp_path, text, message):
    heads_file.unlink() if text is None else heads_file.write_text(text)
    line = refused("compute_nearest_neighbors",
                   *arguments(emoji_run, tmp_path, "--heads_file", heads_file, "--index", 1,
                              "--property", "color"))
    assert message in line
    assert str(heads_file) in line


def test_a_single_head_of_a_settings_file_stands_in_quotes(refused, emoji_run, tmp_path):
    (tmp_path / "s.yaml").write_text("index: 1\nheads: 5.10\n")
    assert "in quotes" in refused("compute_nearest_neighbors",
                                  *arguments(emoji_run, tmp_path, "--config", tmp_path / "s.yaml"))


def test_more_neighbors_than_images_are_refused(refused, run_with_a_bad_image, tmp_path):
    line = refused("compute_nearest_neighbors",
                   *arguments(run_with_a_bad_image, tmp_path, "--index", 1, "--neighbors", 12))
    assert "--neighbors is 12; choose from 1 to 11" in line
    line = refused("compute_nearest_neighbors",
                   *arguments(run_with_a_bad_image, tmp_path, "--image", "x", "--neighbors", 13))
    assert "--neighbors is 13; choose from 1 to 12" in line


def test_other_images_than_those_of_the_run_are_refused(refused, emoji_run, run_with_a_bad_image, tmp_path):
    line = refused("compute_nearest_neighbors", *arguments(emoji_run, tmp_path, "--index", 1, "--data_path",
                                                           run_with_a_bad_image / "images"))
    assert "the data set has 13 images, and the arrays hold 130" in line
    shutil.copytree(emoji_run / "images", tmp_path / "images")
    first = sorted(path for path in (tmp_path / "images").iterdir())[0]
    first.rename(first.with_name("a new name"))
    line = refused("compute_nearest_neighbors",
                   *arguments(emoji_run, tmp_path, "--index", 1, "--data_path", tmp_path / "images"))
    assert "has other classes than the arrays" in line


@pytest.mark.parametrize("model, message", [
    (("emojiclip",), None), (("ViT-B-32", "--pretrained", "none"), "has other heads or another width than the arrays")])
def test_weights_that_are_not_those_of_the_run_are_refused(refused, emoji_run, tmp_path, model, message):
    shutil.copytree(emoji_run, tmp_path / "run", symlinks=True)
    out = tmp_path / "run" / "out"
    if message is None:
        manifest = json.loads((out / "imagefolder_emojiclip.json").read_text())
        (out / "imagefolder_emojiclip.json").write_text(json.dumps(manifest |
                                                                   {"weights_sha256": "0", "pretrained": "another"}))
        message = "its weights (emojiclip) are not those of the arrays (another); give --pretrained"
    else:  # foreign arrays, without a manifest
        for path in out.glob("imagefolder_*_emojiclip.npy"):
            path.rename(out / path.name.replace("emojiclip", model[0]))
    line = refused("compute_nearest_neighbors", *arguments(tmp_path / "run", tmp_path, "--image", files(emoji_run)[0]),
                   "--model",
                   *model)
    assert message in line


@pytest.mark.parametrize("by, heads, words", [
    ("whole", None, "whole representation"), ("color", ["5.4", "5.3"], "color: heads 5.4, 5.3"),
    ("object", ["5.1"], "object: head 5.1"), ("5.1,5.5", ["5.1", "5.5"], "heads 5.1, 5.5")])
def test_names_on_the_sheet(by, heads, words):
    assert retrieval.title({"by": by, "heads": heads}) == words


def test_a_sheet_of_odd_pictures_and_long_names(tmp_path):
    near = {"index": 0, "class": "great $white$ shark, Carcharodon carcharias", "similarity": -0.5}
    report = [{"query": {"path": "some/where/a photo.jpg"},
               "ways": [{"by": "whole", "heads": None, "neighbors": [near]}]}]
    sheets.contact_sheet(report, [Image.new("L", (900, 30))], lambda index: Image.new("RGBA", (3, 7)), retrieval.title,
                         "a $title$", tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as sheet:
        assert sheet.format == "PNG"
        assert len(np.unique(np.asarray(sheet.convert("L")))) > 10
