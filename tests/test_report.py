import csv
import html
import json
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
from builders import analyse, call_script, load_script, opened, read_report, report_options, write_report
from PIL import Image

from utils import cli
from utils.analysis.names import naming
from utils.data import datasets, pictures
from utils.decompose.decomposer import Decomposer
from utils.models import loading
from utils.report import page as pages
from utils.report import results
from utils.runs import files

TEXTS = "imagefolder_completeness_pool_top_3_heads_emojiclip.json"


@pytest.fixture(scope="module")
def made(emoji_run, tmp_path_factory):
    """A run with its report, which no test may change."""
    return write_report(emoji_run, tmp_path_factory.mktemp("made"))


@pytest.fixture
def own(made, tmp_path):
    """A copy that a test may spoil, without the report."""
    shutil.copytree(made, tmp_path / "own", symlinks=True, ignore=shutil.ignore_patterns("page"))
    return tmp_path / "own"


def page_of(folder):
    return (folder / "index.html").read_text()


def articles(page):
    """What the page says of each head, in its order: id -> its part of the page."""
    return dict(re.findall(r'<article id="(head-\d+-\d+)"(.*?)</article>', page, re.DOTALL))


def load(run, what):
    return np.load(run / "out" / f"imagefolder_{what}_emojiclip.npy").astype(np.float64)


def change(path, edit):
    found = json.loads(path.read_text())
    edit(found)
    path.write_text(json.dumps(found))


def test_the_page_says_what_textspan_found(made):
    found, page = json.loads((made / "out" / TEXTS).read_text()), page_of(made / "page")
    parts = articles(page)
    assert list(parts) == [f"head-{layer}-{head}" for layer in (5, 4) for head in range(6)]
    largest = max(head["variance"] for head in found["heads"])
    for head in found["heads"]:
        part = parts[f"head-{head['layer']}-{head['head']}"]
        listed = re.findall(r'<span class="text-of-head">(.*?)</span> <span class="number">(.*?)</span>', part)
        assert listed == [(html.escape(entry["text"]), f"{100 * entry['share']:.1f}%") for entry in head["texts"]]
        assert [float(width) for width in re.findall(r"--share: ([\d.]+)%", part)] == \
            [pytest.approx(100 * entry["share"], abs=0.01) for entry in head["texts"]]
        assert f'{100 * head["explained"]:.0f}% <span class="aside">of its variance' in part
        assert f'{100 * head["variance"] / largest:.0f}% <span class="aside">of the largest' in part
        percentile = head["consistency"]["percentile"]
        assert ("one role" if percentile >= 95 else "no clear role") in part
        assert (f"more than {percentile:.0f}% of random heads" in part
                or percentile == 100 and "more than all random" in part)
        rank = 1 + sum(other["variance"] > head["variance"] for other in found["heads"])
        assert f"rank {rank} of 12" in part
        index = re.search(rf'<a href="#head-{head["layer"]}-{head["head"]}"><b>.*?</a>', page).group()
        assert re.findall(r'text-of-head">(.*?)<', index) == [html.escape(entry["text"]) for entry in head["texts"][:2]]
    assert "Known truth" not in page
    assert read_report(made / "page")["truth"] is None


def test_the_table_of_all_heads_is_on_the_page_and_in_a_file(made):
    found = read_report(made / "page")["heads"]
    with (made / "page" / "heads.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for head, row in zip(found, rows, strict=True):
        assert (int(row["layer"]), int(row["head"])) == (head["layer"], head["head"])
        for name in ("variance", "explained", "accuracy", "change"):
            assert float(row[name]) == head[name]
        assert [float(row["change_from"]), float(row["change_to"])] == head["interval"]
        assert row["texts"] == "; ".join(entry["text"] for entry in head["texts"])
        assert f'<tr><th scope="row"><a href="#{head["id"]}">{head["name"]}</a>' in page_of(made / "page")


def test_the_page_shows_the_ablations_and_how_it_was_made(made):
    found = json.loads((made / "out" / "imagefolder_ablations_emojiclip.json").read_text())
    page, manifest = page_of(made / "page"), json.loads((made / "out" / "imagefolder_emojiclip.json").read_text())
    cells = re.findall(r'<th scope="row">(.*?)</th><td class="number">(.*?)</td>'
                       r'(?:<td class="number">(.*?)</td>)?', page)
    shown = {label: (value, difference) for label, value, difference in cells}
    whole, without = found["baseline"], found["mlp_ablated"]
    assert shown["whole model"] == (f"{whole:.1f}%", "")
    assert shown["all MLPs ablated"] == (f"{without:.1f}%", f"{without - whole:+.1f}".replace("-", "−"))
    texts = json.loads((made / "out" / TEXTS).read_text())
    reduced = f"heads of the last 2 layers reduced to {texts['number_of_texts']} texts, earlier ones ablated"
    assert shown[reduced][0] == f"{texts['accuracy']:.1f}%"
    assert [value for label, value, _ in cells if label in ("none", "all 6") or label.startswith("the first")] == \
        [f"{value:.1f}%" for value in found["attention_ablated"]]
    heights = [float(y) for y in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)"', page)]
    top = 20 * np.ceil(max(found["attention_ablated"]) / 20)
    assert heights == [pytest.approx(220 - 200 * value / top, abs=0.06) for value in found["attention_ablated"]]
    for word in ("emojiclip on imagefolder", manifest["weights_sha256"], ">130<br>",
                 "torch " + manifest["versions"]["torch"]):
        assert word in page


def test_highest_and_lowest_images_are_those_of_the_definition(made):
    attn, pool, labels = load(made, "attn"), np.load(made / "out" / "pool_emojiclip.npy"), np.load(
        made / "out" / "imagefolder_labels.npy")
    images = datasets.load_images("imagefolder", str(made / "images"))
    for head in read_report(made / "page")["heads"]:
        text = pool[head["texts"][0]["index"]]
        terms = [attn[i, head["layer"], head["head"]] for i in range(len(attn))]
        average = sum(terms) / len(terms)
        scores = [float((term - average) @ text) for term in terms]
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        assert [image["index"] for image in head["highest"]] == order[:4]
        assert [image["index"] for image in head["lowest"]] == order[::-1][:4]
        assert head["average"] == pytest.approx(average @ text, abs=1e-5)
        for image in head["highest"] + head["lowest"]:
            assert image["score"] == pytest.approx(scores[image["index"]], abs=1e-5)
            assert image["label"] == images.classes[labels[image["index"]]]
            assert made / "images" / image["path"] == type(made)(images.paths[image["index"]])
        part = articles(page_of(made / "page"))[head["id"]]
        first = head["highest"][0]
        assert f'alt="image {first["index"]}, scored {first["score"]:+.3f}; label: {first["label"]}"' in part


def test_accuracy_without_a_head_is_that_of_its_mean_ablation(made):
    attn, mlp, classifier = load(made, "attn"), load(made, "mlp"), load(made, "classifier")
    labels = np.load(made / "out" / "imagefolder_labels.npy")
    found = read_report(made / "page")
    baseline = 100 * np.mean(((attn.sum((1, 2)) + mlp.sum(1)) @ classifier).argmax(1) == labels)
    assert found["ablations"]["baseline"] == pytest.approx(baseline)
    for head in found["heads"]:
        without = attn.copy()
        without[:, head["layer"], head["head"]] = attn[:, head["layer"], head["head"]].mean(axis=0)
        accuracy = 100 * np.mean(((without.sum((1, 2)) + mlp.sum(1)) @ classifier).argmax(1) == labels)
        assert head["accuracy"] == pytest.approx(accuracy)
        assert head["change"] == pytest.approx(accuracy - baseline)
        said = f"{accuracy - baseline:+.1f}".replace("-", "−") if abs(accuracy - baseline) > 0.05 else "±0.0"
        assert head["interval"][0] < head["change"] < head["interval"][1]
        assert f'{accuracy:.1f}% <span class="aside">{said} points (' in articles(page_of(made / "page"))[head["id"]]


def test_heat_maps_sum_to_the_term_and_are_drawn_in_their_colours(made):
    attn, pool = load(made, "attn"), np.load(made / "out" / "pool_emojiclip.npy")
    clip = loading.load("emojiclip", None, torch.device("cpu"))
    decomposer = Decomposer(clip)
    images = datasets.load_images("imagefolder", str(made / "images"))
    for head in read_report(made / "page")["heads"]:
        assert [found["index"] for found in head["heat_maps"]] == [image["index"] for image in head["highest"][:2]]
        assert [found["index"] for found in head["heat_maps_lowest"]] == [
            image["index"] for image in head["lowest"][:2]]
        text, limits = pool[head["texts"][0]["index"]], []
        for found in head["heat_maps"] + head["heat_maps_lowest"]:
            whole = attn[found["index"], head["layer"], head["head"]] @ text
            assert found["patches"] + found["class_token"] == pytest.approx(whole, abs=1e-5)
            pixels = clip.preprocess(images.samples[found["index"]][0])[None]
            scores = decomposer.tokens(pixels, torch.from_numpy(text)[None, None]).scores
            values = scores[head["layer"]][0, 0, head["head"]].numpy()
            assert found["class_token"] == pytest.approx(values[0], abs=1e-5)
            limits.append(np.abs(values[1:]).max())
            row, column = divmod(int(np.abs(values[1:]).argmax()), 8)
            if limits[-1] < 0.9 * found["limit"]:
                continue
            patch = np.asarray(Image.open(made / "page" / found["file"]).convert("RGB"), int)[
                24 * row + 8:24 * row + 16, 24 * column + 8:24 * column + 16].mean(axis=(0, 1))
            assert (patch[0] - patch[2] > 60) if values[1 + row * 8 + column] > 0 else (patch[2] - patch[0] > 60)
        assert head["heat_maps"][0]["limit"] == pytest.approx(max(limits), abs=1e-5)


def test_the_overlay_is_red_above_blue_below_and_grey_at_zero():
    picture = Image.new("RGB", (40, 20), (10, 200, 90))
    found = np.asarray(pages.overlay(picture, np.array([[1.0, 0.0, -1.0, 0.5]]), 1.0), int)
    assert found.shape == (20, 40, 3)
    above, zero, below, half = (found[:, start:start + 10].mean(axis=(0, 1)) for start in range(0, 40, 10))
    assert above[0] - above[2] > 100
    assert below[2] - below[0] > 100
    assert np.ptp(zero) < 1
    assert 40 < half[0] - half[2] < above[0] - above[2]
    assert np.ptp(np.asarray(pages.overlay(picture, np.zeros((1, 4)), 0.0), int), axis=-1).max() <= 1


def test_pictures_are_stored_once_and_show_what_the_model_sees(made):
    found = read_report(made / "page")
    shown = {image["index"]: image for head in found["heads"] for image in head["highest"] + head["lowest"]}
    files = {path.relative_to(made / "page").as_posix() for path in (made / "page").rglob("*") if path.is_file()}
    heat = {heat["file"] for head in found["heads"] for heat in head["heat_maps"] + head["heat_maps_lowest"]}
    assert files == {image["file"] for image in shown.values()} | heat | {"index.html", "report.json", "heads.csv"}
    page = page_of(made / "page")
    assert set(re.findall(r'<img src="(.*?)"', page)) == files - {"index.html", "report.json", "heads.csv"}
    for image in shown.values():
        with (Image.open(made / "images" / image["path"]) as original,
              Image.open(made / "page" / image["file"]) as stored):
            assert stored.size == (192, 192)
            difference = np.asarray(stored.resize(original.size), int) - np.asarray(original.convert("RGB"), int)
            assert np.abs(difference).mean() < 10
    assert not re.search(r"https?://|file://|@import|url\(", page)
    # Only commands name folders, as they were given.
    shown = re.sub(r"<code>.*?</code>|<script.*?</script>", "", page, flags=re.DOTALL)
    assert str(made) not in shown


@pytest.mark.parametrize("mode, size", [("shortest", 32), ("squash", 32), ("longest", 32), ("shortest", (24, 40))])
def test_images_are_framed_as_the_model_sees_them(mode, size):
    """A thumbnail made smaller is what open_clip's own preparation makes of the image."""
    from open_clip.transform import image_transform

    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (3, 4, 3), dtype=np.uint8))
    picture = small.resize((270, 180), Image.Resampling.BICUBIC)
    height, width = (size, size) if isinstance(size, int) else size
    seen = image_transform(size, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), resize_mode=mode)(picture)
    errors = {}
    for name in ("shortest", "squash", "longest"):
        framed = pictures.shape(picture, image_transform(size, is_train=False, resize_mode=name), 3)
        assert framed.size == (3 * width, 3 * height)
        framed = np.asarray(framed.resize((width, height)), float).transpose(2, 0, 1) / 255
        errors[name] = np.abs(framed - seen.numpy()).mean()
    assert errors[mode] < 0.03
    assert errors[mode] == min(errors.values()), errors


@pytest.mark.parametrize("block", (1, 16, 256))
def test_scores_do_not_depend_on_the_blocks(monkeypatch, made, block):
    monkeypatch.setattr(files.blocks, "__defaults__", (block, "images"))
    run = {what: np.load(made / "out" / f"imagefolder_{what}_emojiclip.npy")[:37] for what in ("attn", "mlp")}
    run["labels"] = np.load(made / "out" / "imagefolder_labels.npy")[:37]
    classifier, pool = (np.load(made / "out" / f"{name}_emojiclip.npy") for name in ("imagefolder_classifier", "pool"))
    heads = [{"layer": layer, "head": head, "texts": [{"index": 7 * head}] if head else [],
              "variance": float(run["attn"][:, layer, head].var(axis=0).sum())}
             for layer in (4, 5) for head in range(6)]
    whole = run["attn"].sum((1, 2)) + run["mlp"].sum(1)
    baseline = 100 * float(((whole @ classifier).argmax(1) == run["labels"]).mean())
    found = results.Results("pool", 3, {"baseline": baseline}, {"heads": heads}, None, {})
    average, scores = results.score_images(opened(run), classifier, pool, found)
    assert average.shape == (12,)
    assert scores.shape == (12, 37)
    for i, head in enumerate(heads):
        term = run["attn"][:, head["layer"], head["head"]]
        expected = term @ pool[7 * head["head"]] if head["texts"] else np.zeros(37)
        np.testing.assert_allclose(scores[i] + average[i], expected, atol=1e-5)
        assert abs(scores[i].mean()) < 1e-6


def test_few_images_are_never_both_highest_and_lowest():
    found = [[rows.tolist() for rows in results.extremes(np.array(scores, float), number)] for scores, number in (
        ([3.0], 8), ([1, 2], 8), ([1, 3, 2], 8), ([5, 1, 4, 2, 3], 2), ([1, 1, 1, 1], 1))]
    assert found == [[[0], []], [[1], [0]], [[1, 2], [0]], [[0, 2], [1, 3]], [[0], [3]]]


def test_a_head_that_writes_the_same_for_every_image_says_so(own):
    path = own / "out" / "imagefolder_attn_emojiclip.npy"
    attn = np.load(path)
    attn[:, 5, 2] = attn[0, 5, 2]
    np.save(path, attn)
    analyse(own)
    call_script("make_report", *report_options(own, "--heat_maps", 0, "--output_dir", own / "page"))
    parts, found = articles(page_of(own / "page")), read_report(own / "page")
    head = next(head for head in found["heads"] if head["id"] == "head-5-2")
    assert head["texts"] == head["highest"] == head["lowest"] == []
    assert head["consistency"] is None
    assert "the same for every image" in parts["head-5-2"]
    assert "not measured" in parts["head-5-2"]
    assert head["accuracy"] == pytest.approx(found["ablations"]["baseline"])
    assert "no texts" in page_of(own / "page")
    assert "<img" in parts["head-5-1"]


def test_what_others_wrote_is_escaped(own):
    images, pool = own / "images", own / "texts" / "pool.txt"
    first = sorted(path.name for path in images.iterdir())[0]
    (images / first).rename(images / "<b>x&")
    for name in ("imagefolder_emojiclip.json", "imagefolder_classifier_emojiclip.json"):
        change(own / "out" / name, lambda found: found["classes"].__setitem__(0, "<b>x&"))
    change(own / "out" / "imagefolder_emojiclip.json", lambda found: found.pop("images_sha256"))
    lines = pool.read_text().splitlines()
    evil = '</script><script>alert("1")</script>{{ 7 * 7 }} \'"&amp;'
    index = json.loads((own / "out" / TEXTS).read_text())["heads"][0]["texts"][0]["index"]
    lines[index] = evil
    pool.write_text("\n".join(lines) + "\n")
    change(own / "out" / "pool_emojiclip.json", lambda found: found.update(texts_sha256=files.texts_hash(lines)))
    analyse(own)
    call_script("make_report", *report_options(own, "--heat_maps", 0, "--images_per_head", 65,
                                               "--output_dir", own / "page"))
    page = page_of(own / "page")
    assert "<b>x" not in page
    assert "alert(" in page
    assert "<script>alert" not in page
    assert evil in [html.unescape(text) for text in re.findall(r'<span class="text-of-head">([^<>]*)</span>', page)]
    assert 'label: &lt;b&gt;x&amp;"' in page
    assert any(entry["text"] == evil for head in read_report(own / "page")["heads"] for entry in head["texts"])


def test_the_text_form_says_what_others_found_and_draws_it(run_script, own):
    code, out, err = run_script("make_report", *report_options(own, "--text"))
    assert code == 0, err
    ablations, texts = (json.loads((own / "out" / name).read_text())
                        for name in ("imagefolder_ablations_emojiclip.json", TEXTS))
    lines = out.splitlines()
    assert lines[1] == "emojiclip on 130 images of imagefolder: zero-shot accuracy (%)"
    values = {line[:52].strip(): float(line[52:]) for line in lines[2:lines.index("", 2)]}
    assert values["whole model"] == pytest.approx(ablations["baseline"], abs=0.05)
    assert values["attention layers 1 to 6 ablated"] == pytest.approx(ablations["attention_ablated"][6], abs=0.05)
    assert values[f"heads of the last 2 layers reduced to {texts['number_of_texts']} texts"] == pytest.approx(
        texts["accuracy"], abs=0.05)
    heads = sorted(texts["heads"], key=lambda head: -head["variance"])[:8]
    first = "; ".join(f"{entry['text']} ({entry['share']:.0%})" for entry in heads[0]["texts"][:4])
    assert f"  layer {heads[0]['layer']}, head {heads[0]['head']}: {first}" in lines
    assert sum(line.startswith("  layer ") for line in lines) == 8
    for line in lines[lines.index("All of it:") + 1:]:
        assert (own / "out" / line.strip()).is_file()
    with Image.open(own / "out" / "imagefolder_heads_emojiclip.png") as sheet:
        assert sheet.format == "PNG"
    assert not (own / "out" / "imagefolder_report_emojiclip").exists()


def test_the_commands_on_the_page_are_understood(made):
    found = read_report(made / "page")
    names = []
    for line in [*found["commands"], found["command_for_several"].replace("{heads}", "5.4,4.0")]:
        words = shlex.split(line)
        names.append(words[1].removesuffix(".py"))
        args = cli.parse(load_script(names[-1]).get_args_parser(), words[2:])
        folders = {getattr(args, "input_dir", None), getattr(args, "output_dir", None)}
        assert args.model == "emojiclip"
        assert str(made / "out") in folders
    assert names == ["compute_prs", "compute_text_projection", "compute_text_set_projection", "compute_ablations",
                     "compute_complete_text_set", "make_report", "compute_use_specific_heads"]
    assert html.escape(found["commands"][-1]) in page_of(made / "page")


def test_the_command_for_several_heads_computes_what_the_page_says_of_one(run_script, made, tmp_path):
    found = read_report(made / "page")
    words = shlex.split(found["command_for_several"].replace("{heads}", "5.4"))
    code, out, err = run_script("compute_use_specific_heads", *words[2:], "--random_trials", 1,
                                "--output_dir", tmp_path)
    assert code == 0, err
    head = next(head for head in found["heads"] if head["name"] == "5.4")
    assert float(re.search(r"Replaced: ([\d.]+)", out)[1]) == pytest.approx(head["accuracy"])


@pytest.fixture(scope="module")
def truth_run(tmp_path_factory):
    """Arrays, texts and truth of 60 embedded scenes, and their report without heat maps."""
    patch, out = pytest.MonkeyPatch(), tmp_path_factory.mktemp("truth")
    patch.setitem(datasets.REGISTRY["emoji"].scenes, "test", (60, 1))
    model, pool = ("--model", "emojiclip"), ("--text_descriptions", "emoji_descriptions", "--texts_per_head", 3)
    made = (*model, "--device", "cpu", "--output_dir", out)
    call_script("compute_prs", *made, "--dataset", "emoji", "--batch_size", 30, "--num_workers", 0)
    call_script("compute_text_projection", *made, "--dataset", "emoji")
    call_script("compute_text_set_projection", *made, "--data_path", "text_descriptions/emoji_descriptions.txt")
    read = (*model, "--dataset", "emoji", "--input_dir", out)
    call_script("compute_ablations", *read)
    call_script("compute_complete_text_set", *read, *pool, "--output_dir", out, "--num_of_last_layers", 1)
    call_script("compute_head_truth", *read, *pool)
    yield out, (*read, *pool, "--heat_maps", 0)
    patch.undo()


def test_the_truth_is_shown_where_it_is_known(run_script, truth_run, tmp_path):
    out, arguments = truth_run
    code, _, err = run_script("make_report", *arguments, "--output_dir", tmp_path / "page")
    assert code == 0, err
    truth, page = json.loads((out / "emoji_head_truth_emojiclip.json").read_text()), page_of(tmp_path / "page")
    assert f"{truth['agreement']:.1f}% of heads" in page
    assert "compute_head_truth.py" in page
    for head in truth["heads"]:
        part = articles(page)[f"head-{head['layer']}-{head['head']}"].split('<div class="truth">')[1]
        assert f"<strong>{head['truth'].replace('color', 'colour')}</strong> explains the most" in part
        assert f"texts say <strong>{head['reading'].replace('color', 'colour')}</strong>" in part
        assert ("they agree" in part) == head["agree"]
        assert ("they disagree" in part) != head["agree"]
        assert [float(width) for width in re.findall(r"--share: ([\d.]+)%", part)] == [
            pytest.approx(max(100 * share, 0), abs=0.01) for share in head["explained"].values()]
        for attribute, share in head["explained"].items():
            assert (f"</i>{attribute.replace('color', 'colour')} {100 * share:.0f}%" in part) == (share >= 0.005)
        rest = 1 - sum(max(share, 0) for share in head["explained"].values())
        assert (f"</i>none of these alone {100 * rest:.0f}%" in part) == (rest >= 0.005)


def test_names_are_the_headings_of_heads(run_script, truth_run, tmp_path):
    out, arguments = truth_run
    shutil.copytree(out, tmp_path / "run")
    row = {"attribute": "color", "name": "color", "role": "color: red ... <blue>", "shares": {"color": 0.634},
           "partial": {"color": 0.6}, "texts": ["red"], "ends": [["red"], ["blue"]], "interval": [0.61, 0.66],
           "chance": 0.01, "variance": 1.0}
    names = [{"layer": layer, "head": head, **row} for layer in range(6) for head in range(6)]
    path = tmp_path / "run" / "emoji_names_emojiclip.json"
    path.write_text(json.dumps({"images": 60, "heads": names}))
    arguments = [tmp_path / "run" if word == out else word for word in arguments]
    code, _, err = run_script("make_report", *arguments, "--output_dir", tmp_path / "page")
    assert code == 0, err
    for article in articles(page_of(tmp_path / "page")).values():
        assert "colour: red ... &lt;blue&gt;" in article
        assert "Explained by colour" in article
        assert "63%" in article
    assert page_of(tmp_path / "page").count("<td>colour: red ... &lt;blue&gt;</td>") == 6
    code, out_text, err = run_script("make_report", *arguments, "--text")
    assert code == 0, err
    assert ", colour: red ... <blue>: " in out_text
    path.write_text(json.dumps({"images": 61, "heads": names}))
    code, _, err = run_script("make_report", *arguments, "--output_dir", tmp_path / "page")
    assert code == 2
    assert "is about other arrays; make it again with: python compute_head_names.py" in err


@pytest.mark.parametrize(("role", "shown"), [
    ("color", "colour"), ("size", "size"), ("mixed: object and color", "mixed: object and colour"),
    ("color: a color photo ... red", "colour: a color photo ... red"), ("none", "none")])
def test_roles_are_spelled_as_pages_spell_attributes(role, shown):
    assert naming.spelled(role) == shown


def test_truth_about_other_texts_is_left_out_with_a_warning(run_script, truth_run, tmp_path):
    out, arguments = truth_run
    path = out / "emoji_head_truth_emojiclip.json"
    kept = path.read_text()
    change(path, lambda found: found.update(texts_per_head=4))
    code, _, err = run_script("make_report", *arguments, "--output_dir", tmp_path / "page")
    path.write_text(kept)
    assert code == 0
    assert "is about other texts, and left out; make it again with: python compute_head_truth.py" in err
    assert "Known truth" not in page_of(tmp_path / "page")


def test_scenes_are_drawn_as_large_as_they_are_stored(run_script, truth_run, tmp_path):
    from utils.data import scenes

    _, arguments = truth_run
    run_script("make_report", *arguments, "--thumbnail_size", 70, "--output_dir", tmp_path / "page")
    image = read_report(tmp_path / "page")["heads"][0]["highest"][0]
    drawn = scenes.draw([datasets.embedded_scenes("emoji")[0][image["index"]]], 140)[0][0].permute(1, 2, 0).numpy()
    stored = np.asarray(Image.open(tmp_path / "page" / image["file"]).convert("RGB"), int)
    assert stored.shape == drawn.shape
    assert np.abs(stored - drawn.astype(int)).mean() < 6


def test_size_is_printed_and_a_large_report_is_warned_of(run_script, monkeypatch, own):
    arguments = report_options(own, "--heat_maps", 0, "--images_per_head", 2)
    code, out, err = run_script("make_report", *arguments)
    folder = own / "out" / "imagefolder_report_emojiclip"
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert code == 0
    assert out == f"12 heads, {size / 1e6:.1f} MB -> {folder / 'index.html'}\n"
    assert "warning" not in err
    assert size < 1e6
    monkeypatch.setattr(load_script("make_report"), "LARGE", 1000)
    code, out, err = run_script("make_report", *arguments)
    assert code == 0
    assert "smaller with fewer --images_per_head" in err


def test_a_report_is_replaced_and_nothing_else(run_script, refused, own):
    folder = own / "page"
    arguments = report_options(own, "--heat_maps", 0, "--images_per_head", 2, "--output_dir", folder)
    folder.mkdir()  # an empty one is taken
    assert run_script("make_report", *arguments)[0] == 0
    before = {path.name for path in (folder / "images").iterdir()}
    options = report_options(own, "--heat_maps", 0, "--images_per_head", 1, "--output_dir", folder)
    assert run_script("make_report", *options)[0] == 0
    assert {path.name for path in (folder / "images").iterdir()} < before
    (folder / "images" / "mine.txt").write_text("mine")
    assert "beside the report, it holds images/mine.txt" in refused("make_report", *arguments)
    (folder / "report.json").unlink()
    assert "is there already, and no report of this script" in refused("make_report", *arguments)
    assert (folder / "images" / "mine.txt").read_text() == "mine"
    assert "is a file; give a folder" in refused("make_report", *report_options(
        own, "--output_dir", own / "texts" / "pool.txt"))
    assert not list(own.glob("*.partial"))


def test_a_report_that_fails_leaves_the_old_one(run_script, refused, own):
    folder = own / "page"
    arguments = report_options(own, "--heat_maps", 0, "--images_per_head", 2, "--output_dir", folder)
    assert run_script("make_report", *arguments)[0] == 0
    before = read_report(folder)
    image = before["heads"][-1]["lowest"][0]
    (own / "images" / image["path"]).write_text("no image")
    line = refused("make_report", *arguments)
    assert f"cannot read {own / 'images' / image['path']}" in line
    assert "mend it" in line
    assert read_report(folder) == before
    assert {path.name for path in own.iterdir()} == {"images", "out", "texts", "page"}


@pytest.mark.parametrize("name, made_by", [
    ("imagefolder_attn_emojiclip.npy", "compute_prs"),
    ("imagefolder_classifier_emojiclip.npy", "compute_text_projection"),
    ("pool_emojiclip.npy", "compute_text_set_projection"),
    ("imagefolder_ablations_emojiclip.json", "compute_ablations"),
    (TEXTS, "compute_complete_text_set")])
def test_what_is_missing_is_named_with_its_command(refused, own, name, made_by):
    (own / "out" / name).unlink()
    line = refused("make_report", *report_options(own))
    assert f"{name} does not exist; make it with: python {made_by}.py" in line
    words = shlex.split(line.split("make it with: ")[1])
    cli.parse(load_script(made_by).get_args_parser(), words[2:])


@pytest.mark.parametrize("name, edit, message", [
    ("imagefolder_ablations_emojiclip.json", {"images": 12}, "is about 12 images, and the arrays hold 130"),
    ("imagefolder_ablations_emojiclip.json", {"baseline": 3.0}, "the ablations are about other arrays"),
    (TEXTS, {"num_of_last_layers": 1}, "is about other heads or texts"),
    ("imagefolder_emojiclip.json", {"classes": [f"class {i}" for i in range(130)]},
     "has other classes than the run")])
def test_results_of_other_arrays_are_refused(refused, own, name, edit, message):
    change(own / "out" / name, lambda found: found.update(edit))
    assert message in refused("make_report", *report_options(own))


def test_texts_of_other_arrays_or_of_another_pool_are_refused(refused, own):
    path = own / "out" / TEXTS
    kept = path.read_text()
    change(path, lambda found: found["heads"][3].update(variance=2 * found["heads"][3]["variance"]))
    assert "the texts of heads are about other arrays" in refused("make_report", *report_options(own))
    path.write_text(kept)
    change(path, lambda found: found["heads"][3]["texts"][1].update(index=100_000))
    assert "is about other heads or texts" in refused("make_report", *report_options(own))
    path.write_text("{")
    assert "; make it again with" in refused("make_report", *report_options(own))
    pool = own / "texts" / "pool.txt"
    pool.write_text(pool.read_text().replace("one thing\n", "one single thing\n", 1))
    assert "made from other texts" in refused("make_report", *report_options(own))


def test_other_weights_are_refused_unless_no_model_is_needed(run_script, refused, own):
    for name in ("imagefolder", "imagefolder_classifier", "pool"):
        change(own / "out" / f"{name}_emojiclip.json",
               lambda found: found.update(weights_sha256="0" * 64, pretrained="others"))
    assert f"{TEXTS}: is about other arrays" in refused("make_report", *report_options(own))
    change(own / "out" / TEXTS, lambda found: found["made_of"].update(weights_sha256="0" * 64))
    assert "are not those of the arrays (others)" in refused("make_report", *report_options(own))
    # With a tag that does not go with the model, loading it would be refused.
    code, _, err = run_script("make_report", *report_options(
        own, "--heat_maps", 0, "--pretrained", "openai", "--images_per_head", 1))
    assert code == 0, err
    page = page_of(own / "out" / "imagefolder_report_emojiclip")
    assert not (own / "out" / "imagefolder_report_emojiclip" / "heat").exists()
    assert "Heat maps" not in page
    assert "<dt>Weights</dt><dd>others" in page


def test_images_that_changed_are_refused(refused, own):
    images = datasets.load_images("imagefolder", str(own / "images"))
    extra = own / "images" / images.classes[0] / "zzz.png"
    shutil.copy(images.paths[5], extra)
    assert "the data set has 131 images, and the arrays hold 130" in refused("make_report", *report_options(own))
    extra.unlink()
    (own / "images" / images.classes[0]).rename(own / "images" / "0 other")
    assert "the data set has other classes" in refused("make_report", *report_options(own, "--heat_maps", 0))
    (own / "images" / "0 other").rename(own / "images" / images.classes[0])
    for path in images.paths:
        Image.new("RGB", (64, 64), "red").save(path)
    assert "do not sum to what the arrays hold of it" in refused("make_report", *report_options(own, "--device", "cpu"))


def test_a_label_that_changed_is_refused(folder_of_images):
    images = datasets.load_images("imagefolder", str(folder_of_images))
    assert pages.read_picture(images, 6, "cat").size == (57, 41)
    with pytest.raises(cli.UserError, match="image 6 is labelled cat, and was owl: the data set has changed"):
        pages.read_picture(images, 6, "owl")


