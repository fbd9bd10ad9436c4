"""JSON of another form than a step expects: a line that names the file, whatever stands in it."""
import json
import shutil

import numpy as np
import pytest
from builders import opened, write_classifier, write_run

from utils.analysis import truth
from utils.cli import UserError
from utils.runs import files
from utils.runs.run import Run

WHOLE = ["[1, 2]", "{}", "null", "5", '"text"', "true", "not JSON", "", "{", '{"arrays": [1]}', "[" * 5000,
         '{"arrays": {}, "pretrained": "w", "weights_sha256": "a"}']
VALUES = [None, 5, 1.5, "text", True, [], [None], {}, {"a": 1}]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    write_run(folder, "emoji", "m", {"attn": rng.normal(size=(6, 2, 2, 7)), "mlp": rng.normal(size=(6, 3, 7))},
              np.arange(6) % 2, options={"storage": "full"})
    write_classifier(folder, "emoji", "m", rng.normal(size=(7, 2)))
    return folder


def read(folder):
    run = Run.open(folder, "emoji", "m")
    return run.classifier(), run.means()


@pytest.mark.parametrize("name", ["emoji_m.json", "emoji_classifier_m.json"])
def test_a_manifest_is_read_or_refused_by_its_name(made, tmp_path, name):
    shutil.copytree(made, tmp_path / "x")
    path = tmp_path / "x" / name
    content = json.loads(path.read_text())
    read(tmp_path / "x")
    changed = [{**content, key: value} for key in content for value in VALUES]
    changed += [{key: value for key, value in content.items() if key != gone} for gone in content]
    wrong, refused = [], 0
    for text in [*WHOLE, *map(json.dumps, changed)]:
        path.write_text(text)
        try:
            read(tmp_path / "x")
        except UserError as error:
            refused += 1
            if str(path.parent) not in str(error) or "\n" in str(error):
                wrong.append((text[:200], str(error)))
        except Exception as error:
            wrong.append((text[:200], repr(error)))
    assert wrong == []
    assert refused > 30


@pytest.mark.parametrize("content", [*WHOLE, '{"heads": 5}', '{"heads": [5]}', '{"heads": [[]]}',
                                     '{"heads": [{"layer": 1, "head": 1, "variance": 1, "texts": 5}]}',
                                     '{"heads": [{"layer": 1, "head": 1, "variance": 1, "texts": [{"text": "a"}]}]}'])
def test_texts_of_heads_are_read_or_refused(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"x\.json: .*make it again with: python"):
        truth.read_heads(opened({"attn": np.zeros((1, 1, 1, 2))}), path, "python")


def test_a_mapping_holds_what_is_needed_in_its_kind(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"images": 5, "baseline": 1.5, "mine": []}')
    assert files.read_json(path, ("images", "mine"), "go") == {"images": 5, "baseline": 1.5, "mine": []}
    with pytest.raises(UserError, match="classes is missing, so that it is no file of this project; go"):
        files.read_json(path, ("classes",), "go")
    path.write_text('{"images": "5"}')
    with pytest.raises(UserError, match="images is of another kind"):
        files.read_json(path, (), "go")
