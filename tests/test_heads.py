import pytest

from utils.cli import UserError
from utils.runs import components
from utils.runs.components import Component


def head(layer, number):
    return Component("attn", layer, number)


def every(layers, number):
    return [head(layer, i) for layer in range(layers) for i in range(number)]


def test_heads_are_read_in_every_way_they_are_written():
    expected = [head(22, 12), head(23, 1)]
    for text in ("22.12,23.1", "22.12 23.1", " 22.12,\n 23.1 ,", "22.12,23.1,22.12"):
        assert components.parse_heads(text) == expected
    assert components.parse_heads("0.0") == [head(0, 0)]


@pytest.mark.parametrize("text", ("22", "22.1.3", "a.b", "22.-1", "22/12", "", " , "))
def test_what_is_no_head_is_refused(text):
    with pytest.raises(UserError, match="layer.head, counted from 0"):
        components.parse_heads(text)


def test_a_head_that_does_not_exist_is_named():
    known = every(6, 6)
    components.check_heads([head(5, 5), head(0, 0)], known)
    for wrong in ((6, 0), (0, 6)):
        with pytest.raises(UserError,
                           match=f"there is no head {wrong[0]}.{wrong[1]}; .* layers 0 to 5 with heads 0 to 5"):
            components.check_heads([head(1, 1), head(*wrong)], known)


@pytest.mark.parametrize("numbers, words", [
    ({0: 2, 1: 3, 2: 1}, "layer 0 with heads 0 to 1, layer 1 with heads 0 to 2, layer 2 with head 0"),
    ({0: 4, 1: 4, 2: 8}, "layers 0 to 1 with heads 0 to 3, layer 2 with heads 0 to 7"),
    ({1: 2, 2: 2, 4: 2}, "layers 1 to 2 with heads 0 to 1, layer 4 with heads 0 to 1"),
    ({3: 1}, "layer 3 with head 0")])
def test_heads_are_described_block_by_block(numbers, words):
    known = [head(layer, i) for layer, number in numbers.items() for i in range(number)]
    assert components.describe_heads(known) == words
    with pytest.raises(UserError, match=f"x: there is no head 1.7; the model has {words}"):
        components.check_heads([known[-1], head(1, 7)], known, "x")


def test_every_list_of_the_repository_is_read_and_named_by_its_content():
    paths = sorted(components.HEAD_LISTS.glob("*.yaml"))
    assert len(paths) >= 6
    shapes = {"ViT-B-16": (12, 12), "ViT-L-14": (24, 16), "ViT-H-14": (32, 16), "emojiclip": (6, 6)}
    for path in paths:
        dataset, model = path.stem.rsplit("_", 1)
        assert path == components.head_list_path(dataset, model)
        for role, listed in components.read_head_list(path, model).items():
            components.check_heads(listed, every(*shapes[model]), source=role)
    published = components.read_head_list(components.head_list_path("binary_waterbirds", "ViT-L-14"), "ViT-L-14")
    assert len(published["geolocation"]) == 6
    assert len(published["setting"]) == 10
    assert head(23, 6) in published["geolocation"]
    assert components.read_head_list(components.head_list_path("imagenet", "ViT-L-14"),
                                     "ViT-L-14")["counting"] == [head(23, 10)]


GOOD = "model: m\ndataset: d\nheads:\n  color: 1.2 1.3\n"


@pytest.mark.parametrize("content, message", [
    (GOOD.replace("model: m", "model: other"), "lists heads of other, and --model is m"),
    ("color: 1.2", "should hold model, dataset and heads"), (GOOD.replace("heads:", "hats:"), "should hold model"),
    (GOOD + "  count: 22.10\n", "count: should be text; put a single head in quotes"),
    (GOOD + "  count: '1,2'\n", "count: '1' is no head"), ("a: [", "cannot be read as YAML")])
def test_a_wrong_list_is_refused(tmp_path, content, message):
    path = tmp_path / "d_m.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        components.read_head_list(path, "m")


def test_a_list_of_other_weights_is_refused(tmp_path):
    path = tmp_path / "d_m.yaml"
    path.write_text(GOOD + "pretrained: laion\n")
    assert components.read_head_list(path, "m", {"pretrained": "laion"}) == components.read_head_list(path, "m")
    with pytest.raises(UserError, match="lists heads of the weights laion, and the arrays are of openai"):
        components.read_head_list(path, "m", {"pretrained": "openai"})
    path.write_text(GOOD)
    assert components.read_head_list(path, "m", {"pretrained": "openai"})  # a list need not say


def test_a_list_that_is_not_there_names_those_that_are(tmp_path):
    (tmp_path / "d_m.yaml").write_text(GOOD)
    assert components.read_head_list(tmp_path / "d_m.yaml", "m") == {"color": [head(1, 2), head(1, 3)]}
    with pytest.raises(UserError, match="no such list of heads; there are d_m"):
        components.read_head_list(tmp_path / "e_m.yaml", "m")
