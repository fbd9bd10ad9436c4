"""The page of make_report.py, opened from disk in a real browser without a network."""
import re

import browser
import pytest
from browser import find, resize, start
from builders import read_report, write_report

pytestmark = pytest.mark.skipif(not browser.PRESENT, reason=browser.MISSING)


@pytest.fixture(scope="module")
def page(emoji_run, tmp_path_factory):
    return write_report(emoji_run, tmp_path_factory.mktemp("browser")) / "page"


@pytest.fixture(scope="module")
def driver():
    found = start()
    yield found
    found.quit()


@pytest.fixture
def opened(driver, page):
    """The page, freshly loaded in a wide window, with all heads unfolded."""
    resize(driver, 1400)
    driver.get((page / "index.html").as_uri())
    find(driver, "#fold")[0].click()
    return driver


def visible(driver, selector="article"):
    return [element.get_attribute("id") for element in find(driver, selector) if element.is_displayed()]


def type_words(driver, words):
    from selenium.webdriver.common.keys import Keys

    field, = find(driver, "#words")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(Keys.DELETE)
    field.send_keys(words)


def expected(page, words):
    """Heads with a text, or a class among their images, in which each of the words begins a word."""
    return [head["id"] for head in read_report(page)["heads"] if any(
        all(re.search(rf"\b{word}", said, re.IGNORECASE) for word in words.split())
        for said in (*(entry["text"] for entry in head["texts"]),
                     *(image["label"] for image in head["highest"] + head["lowest"])))]


def switch(driver, head):
    """Press a head's switch, as by the keyboard. Returns it."""
    from selenium.webdriver.common.keys import Keys

    box, = find(driver, f"#{head} .switch input")
    box.send_keys(Keys.SPACE)
    return box


def choose(driver, select, value):
    from selenium.webdriver.support.ui import Select

    Select(find(driver, f"#{select}")[0]).select_by_value(value)


def test_the_page_shows_the_texts_without_an_error(opened, page):
    body = find(opened, "body")[0].text
    assert find(opened, "html.js")
    assert opened.title == "Heads of emojiclip on imagefolder"
    for head in read_report(page)["heads"]:
        assert f"Layer {head['layer']}, head {head['head']}" in body
        for entry in head["texts"]:
            assert entry["text"] in body
            assert f"{100 * entry['share']:.1f}%" in body
    assert "12 of 12 heads" in body
    assert [entry for entry in opened.get_log("browser") if entry["level"] != "INFO"] == []


def test_every_picture_is_loaded_and_has_an_alternative(opened, page):
    opened.execute_async_script("""
        const done = arguments[0], pictures = [...document.images];
        (async () => {
            for (const picture of pictures) { picture.scrollIntoView(); await picture.decode(); }
            done();
        })();""")
    found = opened.execute_script(
        "return [...document.images].map(i => [i.naturalWidth, i.naturalHeight, i.width, i.alt])")
    assert len(found) == 12 * (4 + 2 + 4 + 2)
    assert all(size[:2] == [192, 192] and size[2] == 96 and "image " in size[3] for size in found)
    assert [entry for entry in opened.get_log("browser") if entry["level"] != "INFO"] == []


def test_words_leave_the_heads_with_a_text_that_has_them_all(opened, page):
    everything = [head["id"] for head in read_report(page)["heads"]]
    texts = [entry["text"] for head in read_report(page)["heads"] for entry in head["texts"]]
    longest = max(texts, key=lambda text: len(text.split())).split()
    for words in (longest[1], longest[-1][:3].upper(), f"{longest[-1]} {longest[0]}", texts[0][:-1], "xyz"):
        type_words(opened, words)
        wanted = expected(page, words)
        assert visible(opened) == wanted, words
        assert visible(opened, ".index li") == [f"index-{head}" for head in wanted]
        assert find(opened, "#count")[0].text == f"{len(wanted)} of 12 heads"
        marked = {mark.text.lower() for mark in find(opened, "article mark") if mark.is_displayed()}
        assert marked == ({word.lower() for word in words.split()} if wanted else set())
        assert find(opened, "#nothing")[0].is_displayed() == (not wanted)
    assert 0 < len(expected(page, longest[1])) < 12
    type_words(opened, "")
    assert visible(opened) == everything
    assert not find(opened, "mark")
    assert [element.text for element in find(opened, "article .text-of-head")] == texts


@pytest.mark.parametrize(("words", "fits"), [
    ("5.4", lambda layer, head: (layer, head) == (5, 4)), ("layer 5", lambda layer, head: layer == 5),
    ("Head 4", lambda layer, head: head == 4), ("layer 4 head 2", lambda layer, head: (layer, head) == (4, 2))])
def test_heads_are_found_by_their_numbers(opened, words, fits):
    type_words(opened, words)
    assert visible(opened) == [f"head-{layer}-{head}" for layer in (5, 4) for head in range(6) if fits(layer, head)]


def test_heads_are_found_by_the_classes_of_their_images(opened, page):
    label = read_report(page)["heads"][3]["lowest"][0]["label"]
    type_words(opened, label)
    assert "head-5-3" in visible(opened)
    assert visible(opened) == expected(page, label)


def test_the_index_shows_the_texts_that_were_found(opened, page):
    head = read_report(page)["heads"][2]
    type_words(opened, head["texts"][2]["text"])
    entry, = find(opened, f"#index-{head['id']} a")
    assert head["texts"][2]["text"] in entry.text
    assert head["texts"][0]["text"] not in entry.text
    type_words(opened, "")
    assert head["texts"][0]["text"] in entry.text


def test_heads_are_folded_until_they_are_asked_for(driver, page):
    driver.get("about:blank")
    driver.get((page / "index.html").as_uri())
    assert not [image for image in find(driver, "article img") if image.is_displayed()]
    assert find(driver, ".power")[0].is_displayed() is False
    find(driver, "#index-head-4-3 a")[0].click()
    assert find(driver, "#head-4-3 img")[0].is_displayed()
    assert not find(driver, "#head-4-2 img")[0].is_displayed()
    assert driver.execute_script("return document.documentElement.scrollHeight") < 4000
    find(driver, "#head-4-3 .title a")[0].click()
    assert driver.current_url.endswith("#heads")


@pytest.mark.parametrize("words", ["(", "[a", "a.b*", "\\", "+?"])
def test_words_are_no_patterns(opened, words):
    type_words(opened, words)
    assert visible(opened) == []
    assert [entry for entry in opened.get_log("browser") if entry["level"] != "INFO"] == []


def test_heads_are_sorted_and_chosen_by_layer(opened, page):
    heads = read_report(page)["heads"]
    keys = {"variance": lambda head: -head["variance"], "lost": lambda head: head["change"],
            "consistency": lambda head: -head["consistency"]["percentile"], "layer": lambda head: -head["layer"]}
    for order, key in keys.items():
        choose(opened, "order", order)
        wanted = [head["id"] for head in sorted(heads, key=key)]
        assert visible(opened) == wanted, order
        assert visible(opened, ".index li") == [f"index-{head}" for head in wanted], order
    choose(opened, "layer", "4")
    assert visible(opened) == [f"head-4-{head}" for head in range(6)]
    assert find(opened, "#count")[0].text == "6 of 12 heads"
    type_words(opened, heads[-1]["texts"][0]["text"])
    assert "head-4-5" in visible(opened)
    assert not {id for id in visible(opened) if id.startswith("head-5")}
    choose(opened, "layer", "")


def test_a_head_that_is_switched_off_shows_the_accuracy_without_it(opened, page):
    found = read_report(page)
    bar, restore, command = (find(opened, selector)[0] for selector in (".power", "#restore", "#command"))
    assert not bar.is_displayed()
    for head in (found["heads"][1], found["heads"][7]):
        box = switch(opened, head["id"])
        said = f"without layer {head['layer']}, head {head['head']}: {head['accuracy']:.1f}% ("
        assert f"Whole model {found['ablations']['baseline']:.1f}%" in bar.text
        assert said in bar.text
        assert bar.is_displayed()
        assert not command.is_displayed()
        assert find(opened, f"#{head['id']}.off")
        restore.click()
        assert not bar.is_displayed()
        assert not box.is_selected()


def test_several_heads_show_the_command_that_computes_them(opened, page):
    for head in ("head-5-4", "head-4-0"):
        switch(opened, head)
    bar, command = find(opened, ".power")[0], find(opened, "#command")[0]
    assert "2 heads off" in bar.text
    find(opened, "#several summary")[0].click()
    assert command.text == read_report(page)["command_for_several"].replace("{heads}", "5.4,4.0")
    assert "--keep_last_layers 6 --keep_mlps --heads 5.4,4.0" in command.text
    switch(opened, "head-5-4")
    assert "without layer 4, head 0" in bar.text
    assert not command.is_displayed()


@pytest.mark.parametrize("width", (1400, 900, 380))
def test_nothing_is_cut_off_at_any_width(opened, width):
    resize(opened, width)
    for box in find(opened, ".switch input")[:6]:
        opened.execute_script("arguments[0].click()", box)
    for details in find(opened, "details"):
        opened.execute_script("arguments[0].open = true", details)
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    beyond = opened.execute_script("""
        const beyond = ({left, right}) => left < -0.5 || right > innerWidth + 0.5;
        return [...document.querySelectorAll("body *:not(.skip, .unseen, .scroll *)")].filter(
            e => e.getClientRects().length && beyond(e.getBoundingClientRect())).map(e => e.outerHTML)""")
    assert beyond == []


def test_every_control_has_a_name_and_headings_do_not_skip(opened):
    unnamed = opened.execute_script("""
        return [...document.querySelectorAll("input, select, button")].filter(e => !(e.labels && e.labels.length) &&
            !e.textContent.trim()).length""")
    levels = opened.execute_script("return [...document.querySelectorAll('h1, h2, h3')].map(e => Number(e.tagName[1]))")
    ids = opened.execute_script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert unnamed == 0
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:]))
    assert len(ids) == len(set(ids))
    assert opened.execute_script("return document.documentElement.lang") == "en"


def contrast(driver, selector):
    """Ratio of an element's text colour to the page's colour, as WCAG 2 defines it."""
    colors = driver.execute_script("""
        const page = document.documentElement, element = document.querySelector(arguments[0]);
        const own = getComputedStyle(element)[element.closest("svg") ? "fill" : "color"];
        return [own, getComputedStyle(page).backgroundColor]
        """, selector)

    def luminance(color):
        parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted(map(luminance, colors))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ("light", "dark"))
def test_text_stands_out_in_light_and_in_dark(opened, scheme):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    for selector in ("h1", ".aside", ".text-of-head", ".index b", "dt", "summary", "svg text"):
        assert contrast(opened, selector) >= 4.5, selector
    shown = opened.execute_script("return getComputedStyle(document.documentElement).backgroundColor")
    dark = shown != "rgb(255, 255, 255)"
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert dark == (scheme == "dark")


def test_everything_is_readable_without_javascript(page):
    driver = start(**{"profile.managed_default_content_settings.javascript": 2})
    try:
        driver.get((page / "index.html").as_uri())
        body = find(driver, "body")[0].text
        assert not find(driver, "html.js")
        assert visible(driver, ".js-only") == []
        for head in read_report(page)["heads"]:
            part = find(driver, f"#{head['id']}")[0].text
            assert all(entry["text"] in part and f"{100 * entry['share']:.1f}%" in part for entry in head["texts"])
            assert f"{head['accuracy']:.1f}%" in part
            assert "points" in part
            assert head["texts"][1]["text"] in find(driver, f"#index-{head['id']} a")[0].text
        assert f"{read_report(page)['ablations']['mlp_ablated']:.1f}%" in body
        find(driver, "#index-head-4-3 a")[0].click()
        assert driver.current_url.endswith("#head-4-3")
    finally:
        driver.quit()
