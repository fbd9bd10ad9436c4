"""The page of explore.py: what its views say, and all of it in a real browser."""
import csv
import io
import json
import shlex
import threading
import time
from base64 import b64decode
from dataclasses import replace

import browser
import numpy as np
import pytest
import torch
from browser import find, resize
from builders import ROOT, call_script, free_port, load_script
from PIL import Image

from utils import cli
from utils.analysis import ablation, heatmaps
from utils.cli import UserError
from utils.runs.components import Component, read_head_list

TEXTS = "a red apple\na dog\na blue background"


@pytest.fixture(scope="module")
def folder(emoji_run):
    """A run with texts of its heads."""
    call_script("compute_complete_text_set", "--model", "emojiclip", "--dataset", "imagefolder", "--input_dir",
                emoji_run / "out", "--output_dir", emoji_run / "out", "--text_dir", emoji_run / "texts",
                "--text_descriptions", "pool", "--texts_per_head", 3, "--num_of_last_layers", 2)
    return emoji_run


@pytest.fixture(scope="module")
def session(folder):
    from utils.explore.session import open_session
    from utils.runs.files import Place

    return open_session(Place(str(folder / "out"), "imagefolder", "emojiclip"), str(folder / "images"), "pool", 3,
                        str(folder / "texts"), None, torch.device("cpu"), 0)


def saved(address: str) -> bytes:
    return b64decode(address.partition(";base64,")[2])


def rows(address: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(saved(address).decode())))


def parsed(command: str):
    """The options of a command line, as its script reads them."""
    words = shlex.split(command)
    assert words[0] == "python"
    module = load_script(words[1].removesuffix(".py"))
    return cli.parse(module.get_args_parser(), words[2:])


@pytest.mark.parametrize("part", ["", "5.4"])
def test_a_pictures_parts_and_patches_are_those_of_the_scripts(session, part):
    from utils.explore import picture

    answer = picture.ask(session, "7", TEXTS, part, contrast=False)
    head = Component.parse(part) if part else Component("attn", None)
    pixels, _ = heatmaps.prepare(session.picture("7"), session.model, session.decomposer.patch_size)
    texts = TEXTS.splitlines()
    found = heatmaps.explain(session.decomposer, pixels, texts, session.embed(tuple(texts)), head.layer, head.head)
    for one, values, patches in zip(found, answer.parts, answer.patches, strict=True):
        assert values.sum() == pytest.approx(one.similarity, abs=1e-5)
        np.testing.assert_allclose(patches, one.patches, atol=1e-6)
    for row in range(3):
        assert sum(bar["value"] for bar in picture.bars(session, answer, row)) == pytest.approx(
            answer.parts[row].sum(), abs=1e-5)
    figures = rows(picture.save(session, "csv", "7", TEXTS, part, False)[1])
    assert float(figures[2][1]) == pytest.approx(found[1].similarity, abs=1e-5)
    assert sum(map(float, figures[2][2:])) == pytest.approx(found[1].similarity, abs=1e-5)
    options = parsed(picture.command(session, TEXTS, part))
    assert (options.text, options.layer, options.head) == (texts, head.layer, head.head)


def test_a_contrast_is_the_difference_of_two_texts(session):
    from utils.explore import picture

    answer = picture.ask(session, "7", TEXTS, "", contrast=True)
    assert answer.titles == ["a red apple \N{MINUS SIGN} a dog", *TEXTS.splitlines()]
    np.testing.assert_allclose(answer.parts[0], answer.parts[1] - answer.parts[2], atol=1e-6)
    np.testing.assert_allclose(answer.patches[0], answer.patches[1] - answer.patches[2], atol=1e-6)


@pytest.mark.parametrize("query", ["7", "given"])
def test_words_are_paired_with_patches_as_the_script_pairs_them(session, query):
    from utils.analysis import pairs
    from utils.decompose.texts import TextDecomposer
    from utils.explore import words

    if query == "given":
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)).save(buffer, "png")
        query = session.take(buffer.getvalue(), "noise.png")
    pixels, _ = heatmaps.prepare(session.picture(query), session.model, session.decomposer.patch_size)
    slow = pairs.compute(session.decomposer, TextDecomposer(session.clip), pixels, "a red apple")
    table = rows(words.save(session, "csv", query, TEXTS, "2 a red apple")[1])
    assert table[0] == ["", *slow.columns]
    assert [row[0] for row in table[1:]] == slow.rows
    np.testing.assert_allclose(np.array([row[1:] for row in table[1:]], float), slow.values, atol=1e-6)
    page = words.view(session, query, TEXTS, "2 a red apple")
    value, patches = slow.values[:, 2].sum(), slow.maps()[2].sum()
    minus = "\N{MINUS SIGN}"
    assert f"<b>red</b> {value:+.3f}: these patches {patches:+.3f}".replace("-", minus) in page
    assert f"{np.abs(slow.maps()[:slow.words]).max():.2g}" in page  # one scale over the words
    way = pairs.top_heads(slow, 1)[2]["pairs"][0]
    assert f"× {way['text_head']} {way['value']:+.3f}".replace("-", minus) in page
    options = parsed(words.command(session, "a red apple"))
    assert (options.model, options.text, options.top_heads) == ("emojiclip", "a red apple", 3)
    assert words.save(session, "png", query, TEXTS, "2 a red apple")[0] == "words.png"


@pytest.mark.parametrize("word", ["", "9 a red apple", "2 another text", "x a red apple"])
def test_a_word_that_is_not_there_is_not_open(session, word):
    from utils.explore import words

    assert "Click a word" in words.view(session, "7", TEXTS, word)
    with pytest.raises(UserError, match="click a word first"):
        words.save(session, "csv", "7", TEXTS, word)


def test_words_of_models_without_pairs_are_a_line(session):
    from utils.explore import words

    assert "the arrays of this run were mapped" in words.view(replace(session, model=None), "7", TEXTS, "")


def test_heads_switched_off_are_mean_ablated(session):
    off = [31, 34]
    right, = ablation.right(session.run, session.means, session.classifier, 0, [off])
    assert session.accuracy(off)["overall"] == pytest.approx(100 * right.mean())
    row = 5
    terms = session.run.stack([row])[0].astype(np.float64)
    terms[off] = session.means[off]
    logits = terms.sum(axis=0) @ session.classifier
    for name, value in session.top_classes(str(row), off):
        assert value == pytest.approx(logits[session.images.classes.index(name)], abs=1e-5)
    assert session.top_classes(str(row), off)[0][1] == pytest.approx(logits.max(), abs=1e-5)


def test_the_list_of_heads_is_one_that_scripts_read(session, tmp_path):
    from utils.explore import heads

    name, content = heads.save(session, "list", "", "layer", "", "", "5.1 4.0")
    (tmp_path / name).write_bytes(saved(content))
    found = read_head_list(tmp_path / name, "emojiclip", session.run.manifest)
    assert found == {"switched_off": [Component("attn", 5, 1), Component("attn", 4, 0)]}
    options = parsed(heads.switch_command(session, session.columns("5.1 4.0")))
    assert (options.heads, options.keep_last_layers, options.keep_mlps) == ("5.1,4.0", 6, True)
    with pytest.raises(UserError, match="no head is switched off"):
        heads.save(session, "list", "", "layer", "", "", "")


def test_what_heads_add_and_what_is_lost_is_saved(session):
    from utils.explore import heads

    table = rows(heads.save(session, "head-csv", "", "layer", "5.4", "a dog", "")[1])
    scores = heads.ends(session, "5.4", "a dog")[2]
    assert table[0][2] == "added to the cosine with: a dog"
    np.testing.assert_allclose([float(row[2]) for row in table[1:]], scores, atol=1e-6)
    table = rows(heads.save(session, "switches-csv", "", "layer", "", "", "5.1 4.0")[1])
    assert table[0] == ["accuracy", "before", "without 5.1 4.0"]
    assert list(map(float, table[1][1:])) == [session.accuracy(session.columns(off))["overall"]
                                              for off in ("", "5.1 4.0")]
    options = parsed(session.report)
    assert (options.text_descriptions, options.texts_per_head, options.model) == ("pool", 3, "emojiclip")
    assert "make_report.py" in heads.table(session, "", "layer", "", "")


@pytest.mark.parametrize(("words", "fits"), [
    ("5.4", lambda row: row["head"] == "5.4"), ("layer 5", lambda row: row["layer"] == 5),
    ("head 4", lambda row: row["head"].endswith(".4")), ("layer 4 head 2", lambda row: row["head"] == "4.2"),
    ("a", lambda row: any(" a" in f" {text}" for text in row["texts"])), ("zzz", lambda row: False)])
def test_heads_are_found_by_number_layer_and_text(session, words, fits):
    from utils.explore import heads

    every = heads.table_rows(session)
    assert len(every) == 36
    assert heads.table_rows(session, words) == [row for row in every if fits(row)]
    assert words == "zzz" or heads.table_rows(session, words)


def test_heads_are_sorted_and_their_figures_are_right(session):
    from utils.explore import heads

    by = [row["variance"] for row in heads.table_rows(session, sort="variance")]
    assert by == sorted(by, reverse=True)
    lost = heads.table_rows(session, sort="accuracy lost without it")[0]
    assert lost["change"] == min(row["change"] for row in heads.table_rows(session))
    for entry in session.texts["heads"]:
        row = next(row for row in heads.table_rows(session) if row["head"] == f"{entry['layer']}.{entry['head']}")
        assert row["variance"] == pytest.approx(entry["variance"], rel=1e-3)
    table = rows(heads.save(session, "csv", "", "layer", "", "", "")[1])
    assert len(table) == 37
    assert table[1][0] == "5.0"


def test_a_heads_images_are_sorted_by_what_it_adds(session):
    from utils.explore import heads

    column, text, scores, found = heads.ends(session, "5.4", "a dog")
    slow = session.run.stack(slice(None))[:, column] @ session.embed(("a dog",))[0]
    np.testing.assert_allclose(scores, slow - slow.mean(), atol=1e-6)
    assert found["Highest"] == np.argsort(-scores, kind="stable")[:6].tolist()
    assert found["Lowest"][0] == scores.argmin()
    assert np.median(scores) == pytest.approx(scores[found["Middle"][3]], abs=0.01)
    with pytest.raises(UserError, match="compute_complete_text_set"):
        heads.ends(session, "0.0", "")  # has no texts
    assert heads.ends(session, "0.0", "a cat")[1] == "a cat"


def test_search_finds_itself_nowhere_and_its_copy_first(session):
    from utils.explore import search

    near = search.find(session, "9", "whole", "", "")[0]["ways"][0]["neighbors"]
    assert 9 not in [one["index"] for one in near]
    buffer = io.BytesIO()
    session.picture("9", 64).save(buffer, "png")
    query = session.take(buffer.getvalue(), "copy.png")
    assert search.find(session, query, "whole", "5.4 5.3", "")[0]["ways"][0]["neighbors"][0]["index"] == 9
    options = parsed(search.command(session, "9", "whole", "5.4 5.3", ""))
    assert (options.index, options.heads) == ([9], "5.4,5.3")
    by_text = search.find(session, "9", "whole", "", "a dog")[0]["ways"][0]["neighbors"]
    cosines = session.whole @ session.embed(("a dog",))[0]
    assert by_text[0]["index"] == cosines.argmax()


def test_names_of_heads_are_shown_and_searched_by(session):
    from utils.explore import heads, search

    named = replace(session, names={
        head: {"name": "color" if head.head == 4 else "mixed", "role": f"role of {head}",
               "shares": {"color": 0.5 if head.head == 4 else 0.1, "size": None}} for head in session.run.heads})
    row = next(row for row in heads.table_rows(named) if row["head"] == "5.4")
    assert (row["about"], row["attribute"], row["share"]) == ("role of 5.4", "color", 0.5)
    assert [row["head"] for row in heads.table_rows(named, sort="attribute share")][:6] == [
        f"{layer}.4" for layer in range(6)]
    assert search.choices(named) == ["whole", "heads named color"]
    asked = search.command(named, "3", "heads named color", "", "")
    assert parsed(asked).heads == "0.4,1.4,2.4,3.4,4.4,5.4"
    assert search.find(named, "3", "heads named color", "", "") == search.find(
        named, "3", "whole", parsed(asked).heads, "")


def test_what_is_wrong_is_said_in_a_line(session):
    from utils.explore import heads, picture

    for call, line in ((lambda: session.take(b"no picture", "a\nb.png"), "a b.png: cannot be read"),
                       (lambda: picture.ask(session, "../../etc/passwd", TEXTS, "", False), "is no picture"),
                       (lambda: picture.ask(session, "130", TEXTS, "", False), "has the images 0 to 129"),
                       (lambda: picture.ask(session, "1", " \n", "", False), "type a text"),
                       (lambda: picture.ask(session, "1", "\n".join("abcdefghi"), "", False), "has room for 8"),
                       (lambda: picture.ask(session, "1", "a" * 301, "", False), "shorten it"),
                       (lambda: heads.table(session, "", "layer", "", "9.9"), "there is no head 9.9"),
                       (lambda: heads.switches(session, "1", "nonsense"), "is no head")):
        with pytest.raises(UserError, match=line) as error:
            call()
        assert "\n" not in str(error.value)


def test_a_text_that_is_not_read_to_its_end_is_refused(session):
    with pytest.raises(UserError, match="has more tokens than the model reads; shorten it"):
        session.embed(("a dog", "a very " * 40 + "big dog"))


def test_a_bomb_and_a_strip_are_refused(session, monkeypatch):
    buffer = io.BytesIO()
    Image.new("1", (3000, 3000)).save(buffer, "png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3_000_000)
    with pytest.raises(UserError, match="cannot be read"):
        session.take(buffer.getvalue(), "bomb.png")
    buffer = io.BytesIO()
    Image.new("1", (500, 100)).save(buffer, "png")
    with pytest.raises(UserError, match="crop it"):
        session.take(buffer.getvalue(), "strip.png")


def test_pictures_are_kept_in_memory_and_the_oldest_go(session):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20)).save(buffer, "png")
    names = [session.take(buffer.getvalue(), "17") for _ in range(18)]
    assert len(set(names)) == 18
    assert len(session.given) == 16
    with pytest.raises(UserError, match="drop it in again"):
        session.row(names[0])


def test_names_are_escaped(session):
    from utils.explore import html, picture, search

    text = "<img src=x onerror=alert(1)>"
    assert text not in picture.view(session, "1", text, "", False)
    classes = [text] * len(session.images.classes)
    hostile = replace(session, images=replace(session.images, classes=classes))
    hostile.run.manifest["classes"], kept = classes, hostile.run.manifest["classes"]
    try:
        page = search.view(hostile, "1", "whole", "", "")
    finally:
        hostile.run.manifest["classes"] = kept
    assert text not in page
    assert "&lt;img" in page
    assert text not in html.render("error", text=text)


def test_what_is_missing_is_said_with_its_command(folder, tmp_path):
    import shutil

    from utils.explore.session import command_of, is_small, open_session
    from utils.runs.files import Place

    shutil.copytree(folder / "out", tmp_path / "out")
    for path in (*tmp_path.glob("out/*completeness*"), *tmp_path.glob("out/*classifier*")):
        path.unlink()
    session = open_session(Place(str(tmp_path / "out"), "imagefolder", "emojiclip"), str(folder / "images"), "pool", 3,
                           str(folder / "texts"), None, torch.device("cpu"), 0)
    assert "compute_text_projection.py" in command_of(session.missing["zero-shot classifier"])
    command = command_of(session.missing["texts of heads"])
    assert parsed(command).texts_per_head == 3
    assert is_small(session)


def test_the_script_refuses_what_it_cannot_open(refused, tmp_path):
    import socket

    line = refused("explore", "--model", "emojiclip", "--dataset", "emoji", "--input_dir", tmp_path, "--port",
                   free_port())
    assert "python compute_prs.py --dataset emoji --model emojiclip" in line
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "is in use; choose another" in refused("explore", "--port", taken.getsockname()[1])


@pytest.mark.long
def test_the_script_serves_the_page_until_it_is_interrupted(folder):
    import signal
    import subprocess
    import sys

    import httpx

    words = [sys.executable, "explore.py", "--model", "emojiclip", "--dataset", "imagefolder", "--input_dir",
             folder / "out", "--data_path", folder / "images", "--text_dir", folder / "texts", "--text_descriptions",
             "pool", "--texts_per_head", "3", "--compare_input_dir", folder / "out", "--port", str(free_port())]
    # A job in the background of a shell ignores Ctrl-C, and so would what it starts.
    with subprocess.Popen(list(map(str, words)), cwd=ROOT, stdout=subprocess.PIPE, text=True,
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as process:
        try:
            page = httpx.get(process.stdout.readline().strip(), timeout=120)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert page.status_code == 200
    assert "Ask emojiclip on imagefolder" in page.text


# In a browser

@pytest.fixture(scope="module")
def address(session):
    """The page, served by this process."""
    import uvicorn

    from utils.explore import page

    port = free_port()
    app = page.application(page.build([session, session], lambda: session), [session, session], port)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for(lambda: server.started)
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join()


def wait_for(condition, seconds=60):
    """What a condition gives once it holds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("did not happen")


def test_the_server_closes_what_the_page_does_not_need(address):
    import httpx

    with httpx.Client(base_url=address) as client:
        page = client.get("/")
        assert page.status_code == 200
        assert "default-src 'self'" in page.headers["content-security-policy"]
        for path in ("/gradio_api/file=/etc/passwd", "/file=/etc/passwd", "/gradio_api/upload", "/monitoring",
                     "/gradio_api/proxy=http://example.com", "/docs", "/static/../../../../etc/passwd",
                     "/assets/..%2f..%2f..%2fetc/passwd"):
            assert client.get(path).status_code in (403, 404), path
        assert client.post("/gradio_api/upload", files={"files": b"x"}).status_code == 404
        assert client.get("/", headers={"Host": "example.com"}).status_code == 400
        assert client.post("/picture", content=b"x", headers={"Origin": "http://example.com"}).status_code == 403
        found = client.post("/picture", content=b"x" * (21 << 20), headers={"Origin": address.rstrip("/")}).json()
        assert "more than 20 MB" in found["error"]


@pytest.fixture(scope="module")
def driver():
    if not browser.PRESENT:
        pytest.skip(browser.MISSING)
    found = browser.start()
    yield found
    found.quit()


@pytest.fixture
def opened(driver, address):
    def go(query=""):
        assert complaints(driver, address) == []
        driver.get("about:blank")  # a page that is left while it asks may complain that its requests were cut off
        driver.get_log("browser")
        driver.get(address + query)
        wait_for(lambda: find(driver, ".ask h2, .ask .note, .ask .error"))
        return driver

    resize(driver, 1400)
    return go


def text_of(driver, selector):
    """The text of all elements, at one moment: answers replace them."""
    return driver.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText).join(' ')", selector)


def click(driver, selector):
    """Press a button as the keyboard does."""
    wait_for(lambda: driver.execute_script(
        "const e = document.querySelector(arguments[0]); e?.focus(); e?.click(); return !!e", selector))


def tab(driver, name):
    next(button for button in find(driver, "button[role=tab]") if button.text == name).click()


def complaints(driver, address):
    """What was asked of other hosts, and the console's errors, since the last call."""
    asked = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [entry["params"]["request"]["url"] for entry in asked if entry["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith((address, "data:", "blob:", "about:"))] + [
        entry for entry in driver.get_log("browser") if entry["level"] not in ("INFO", "DEBUG")]


def test_complaints_are_heard(opened, driver, address):
    page = opened()
    page.execute_script("console.error('wrong'); location = 'http://elsewhere.example/'")
    heard = []
    wait_for(lambda: heard.extend(complaints(page, address)) or len(heard) >= 2)
    assert any(entry == "http://elsewhere.example/" for entry in heard)
    assert any("wrong" in entry["message"] for entry in heard if isinstance(entry, dict))


def test_a_picture_is_uploaded_a_text_typed_and_a_bar_clicked(opened, session, address, tmp_path):
    page = opened()
    Image.new("RGB", (90, 60), "red").save(tmp_path / "<b>${1}{{value}}.png")
    find(page, "#drop input[type=file]")[0].send_keys(str(tmp_path / "<b>${1}{{value}}.png"))
    wait_for(lambda: "<b>${1}{{value}}.png" in text_of(page, "#picture-view figcaption"))
    field, = find(page, "#texts textarea")
    field.clear()
    field.send_keys("a red background\na cat")
    click(page, "#ask")
    wait_for(lambda: "a red background" in text_of(page, "#picture-view h3"))
    expected = heatmaps_of(session, "<b>${1}{{value}}.png", "a red background")
    assert f"{expected:+.3f}".replace("-", "\N{MINUS SIGN}") in text_of(page, "#picture-view h3")
    head = page.execute_script("return document.querySelector('#picture-view .bars button').dataset.value")
    click(page, "#picture-view .bars button")
    wait_for(lambda: f"Heat maps of head {head} alone" in text_of(page, "#picture-view"))
    click(page, "#picture-view [data-set=word][data-value='2 a red background']")
    wait_for(lambda: "these patches" in text_of(page, "#picture-view .word figure"))
    value = float(session.pairs("<b>${1}{{value}}.png", "a red background").values[:, 2].sum())
    assert f"red {value:+.3f}".replace("-", "\N{MINUS SIGN}") in text_of(page, "#picture-view .word figure")
    assert len(find(page, "#picture-view .words img")) == 5  # start, three words, end
    wait_for(lambda: "word=2+a+red+background" in page.current_url)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    find(page, "#drop input[type=file]")[0].send_keys(str(tmp_path / "bad.png"))
    wait_for(lambda: "bad.png: cannot be read" in text_of(page, "#drop .wrong"))
    assert complaints(page, address) == []


def heatmaps_of(session, query, text):
    return float(session.tokens(query, (text, "a cat")).parts[0].sum())


def test_heads_are_clicked_and_switched_off(opened, session, address):
    page = opened("?view=Heads&image=3")
    wait_for(lambda: len(find(page, "#head-table tbody tr")) == 36)
    click(page, "#head-table [data-value='5.4']")
    wait_for(lambda: "Layer 5, head 4" in text_of(page, "#head-view"))
    for head in ("5.4", "5.5"):
        click(page, f"#head-table [data-toggle='{head}']")
        wait_for(lambda head=head: head in text_of(page, "#switches h2"))
    expected = session.accuracy(session.columns("5.4 5.5"))["overall"]
    assert text_of(page, "#switches [data-figure=overall]") == f"{expected:.1f}%"
    find(page, "#find input, #find textarea")[0].send_keys("layer 4")
    wait_for(lambda: len(find(page, "#head-table tbody tr")) == 6)
    wait_for(lambda: "off=5.4+5.5" in page.current_url and "find=layer+4" in page.current_url)
    assert complaints(page, address) == []


def test_the_address_brings_a_view_back(opened, address):
    page = opened("?view=Search&image=7&heads=5.4")
    wait_for(lambda: "heads 5.4" in text_of(page, "#search-view") or "head 5.4" in text_of(page, "#search-view"))
    assert len(find(page, "#search-view .thumb")) == 12
    tab(page, "Compare")
    wait_for(lambda: len(find(page, "#compare-view .pair")) == 6)
    page = opened("?view=A+picture&image=nothing")
    wait_for(lambda: "is no picture that is kept here" in text_of(page, "#picture-view [role=alert]"))
    assert complaints(page, address) == []


@pytest.mark.parametrize("query", ["?image=7&word=1+a+red+apple", "?view=Heads&head=5.4&off=5.4",
                                   "?view=Search&image=7"])
def test_nothing_is_cut_off_on_a_phone(opened, query):
    page = opened(query)
    resize(page, 400)
    wait_for(lambda: page.execute_script("return document.documentElement.scrollWidth") <= 400)
    beyond = page.execute_script("""
        return [...document.querySelectorAll("body *")].filter(e => e.getClientRects().length &&
            !e.closest(".scroll") && e.getBoundingClientRect().right > 400.5).map(e => e.outerHTML.slice(0, 90))""")
    assert beyond == []


def test_what_is_saved_arrives(opened, tmp_path):
    page = opened("?image=7&word=1+a+red+apple")
    page.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    for kind, name in (("csv", "picture.csv"), ("png", "picture.png"), ("words-csv", "words.csv"),
                       ("words-png", "words.png")):
        click(page, f"#picture-view [data-value={kind}]")
        wait_for(lambda name=name: (tmp_path / name).is_file() and (tmp_path / name).stat().st_size)
    assert (tmp_path / "picture.csv").read_text().startswith("text,cosine,0.0,")
    (tmp_path / "picture.csv").unlink()
    click(page, "#picture-view [data-value=csv]")  # the same once more
    wait_for(lambda: (tmp_path / "picture.csv").is_file())
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.format == "PNG"
