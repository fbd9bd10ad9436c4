"""Missing inputs: all of them in one line, with whole commands that make them, and that the parsers take."""
import json
import re
import shlex

import numpy as np
import pytest
from builders import load_script, write_classifier, write_run

from utils import cli
from utils.runs import commands, files
from utils.runs.files import Place

TERMS = {"attn": np.zeros((1, 2, 2, 7)), "mlp": np.zeros((1, 3, 7))}


def plan(error: str) -> list[list[str]]:
    """The commands of a line, as words; each is taken by its script's parser."""
    lines = error.partition("make them with: ")[2] or error.partition("make it with: ")[2]
    found = [shlex.split(line) for line in lines.split(" && ")]
    for python, script, *options in found:
        assert python == "python"
        cli.parse(load_script(script.removesuffix(".py")).get_args_parser(), options)
    return [words[1:] for words in found]


def missing(*places, **needs) -> list[list[str]]:
    with pytest.raises(cli.UserError) as raised:
        files.check_there(places, **needs)
    return plan(str(raised.value))


def test_all_that_a_report_reads_is_named_at_once(tmp_path):
    folder = str(tmp_path / "a folder")
    given = {"pretrained": "openai", "seed": 3, "data_path": "/my pictures"}
    found = missing(Place(folder, "imagefolder", "ViT-L-14", "test"), classifier=True, pools=["pool"],
                    text_dir="my texts", heads=("pool", 5), ablations=True, given=given)
    assert found == [
        ["compute_prs.py", "--dataset", "imagefolder", "--model", "ViT-L-14", "--pretrained", "openai", "--seed", "3",
         "--data_path", "/my pictures", "--output_dir", folder, "--split", "test"],
        ["compute_text_projection.py", "--dataset", "imagefolder", "--model", "ViT-L-14", "--pretrained", "openai",
         "--seed", "3", "--data_path", "/my pictures/test", "--output_dir", folder],
        ["compute_text_set_projection.py", "--data_path", "my texts/pool.txt", "--model", "ViT-L-14", "--pretrained",
         "openai", "--seed", "3", "--output_dir", folder],
        ["compute_ablations.py", "--model", "ViT-L-14", "--dataset", "imagefolder", "--split", "test", "--input_dir",
         folder],
        ["compute_complete_text_set.py", "--model", "ViT-L-14", "--dataset", "imagefolder", "--split", "test",
         "--input_dir", folder, "--text_descriptions", "pool", "--texts_per_head", "5", "--text_dir", "my texts",
         "--output_dir", folder]]


def test_what_nobody_knows_stands_in_capitals_and_what_needs_nothing_is_left_out():
    assert commands.make_run("o", "imagenet", "ViT-L-14") == \
        "python compute_prs.py --dataset imagenet --model ViT-L-14 --pretrained TAG --data_path DIR --output_dir o"
    assert commands.make_run("o", "emoji", "emojiclip", "") == \
        "python compute_prs.py --dataset emoji --model emojiclip --output_dir o"
    assert commands.make_classifier("o", "imagenet", "ViT-H-14") == \
        "python compute_text_projection.py --dataset imagenet --model ViT-H-14 --output_dir o"


def test_the_manifests_of_the_folder_say_how_the_rest_was_made(tmp_path):
    made = "python compute_prs.py --dataset imagefolder --model ViT-L-14 --pretrained 'my weights.pt' --data_path " \
           "'/my pictures' --split train --compact"
    (tmp_path / "imagefolder_train_ViT-L-14.json").write_text(json.dumps({"command": made}))
    for number, content in enumerate(("[1, 2]", "{}", "no JSON", '{"command": 5}')):  # of another kind
        (tmp_path / f"{number}_ViT-L-14.json").write_text(content)
    folder = str(tmp_path)
    found, classifier = missing(Place(folder, "imagefolder", "ViT-L-14"), classifier=True)
    assert found == ["compute_prs.py", "--dataset", "imagefolder", "--model", "ViT-L-14", "--pretrained",
                     "my weights.pt", "--data_path", "/my pictures", "--output_dir", folder]
    assert classifier[-4:] == ["--data_path", "/my pictures", "--output_dir", folder]
    assert missing(Place(folder, "cub", "ViT-L-14"))[0][5:9] == ["--pretrained", "my weights.pt", "--data_path", "DIR"]


def test_a_mapped_model_needs_the_runs_that_its_maps_are_trained_on(tmp_path):
    folder = str(tmp_path)
    place = Place(folder, "emoji", "emojivit-as-emojiclip")
    found = missing(place, classifier=True)
    source = "timm:local-dir:models/emojivit"
    assert [words[0] for words in found] == [*["compute_prs.py"] * 3, "compute_alignment.py",
                                             "compute_text_projection.py"]
    assert [words[4] for words in found] == [source, "emojiclip", source, source, "emojiclip"]
    assert [words[-1] for words in found[:3]] == ["train", "train", folder]
    assert missing(Place(folder, "emoji", "timm-vit-as-emojiclip"))[0][4] == "timm:vit"
    # The run itself is there: its manifest says whose the texts are.
    write_run(tmp_path, "emoji", place.model, TERMS, [0], text_model="emojiclip", text_option="emojiclip",
              text_pretrained="emojiclip", text_weights_sha256="x", source_model=source)
    assert missing(place, classifier=True) == [["compute_text_projection.py", "--dataset", "emoji", "--model",
                                                "emojiclip", "--output_dir", folder]]


def test_only_what_is_missing_is_named(tmp_path):
    place = Place(str(tmp_path), "emoji", "emojiclip")
    write_run(tmp_path, "emoji", "emojiclip", TERMS, [0])
    files.check_there([place])
    message = "emoji_classifier_emojiclip.npy does not exist; make it with: python"
    with pytest.raises(cli.UserError, match=re.escape(message)):
        files.check_there([place], classifier=True)
    write_classifier(tmp_path, "emoji", "emojiclip", np.zeros((7, 2), np.float32))
    files.check_there([place], classifier=True)


def test_what_was_made_of_other_weights_or_images_is_found_by_its_manifest(tmp_path):
    manifest = tmp_path / "imagefolder_m.json"
    assert commands.differs(str(manifest), {"pretrained": "openai"}) == ""
    manifest.write_text("[]")
    assert commands.differs(str(manifest), {"pretrained": "openai"}) == ""
    command = f"python compute_prs.py --model m --pretrained laion --data_path {tmp_path}/my/../images"
    manifest.write_text(json.dumps({"command": command}))
    for same in ({}, {"pretrained": ""}, {"pretrained": "laion", "data_path": f"{tmp_path}/images/"}):
        assert commands.differs(str(manifest), same) == ""
    assert commands.differs(str(manifest), {"pretrained": "openai", "data_path": ""}) == (
        f"{manifest} was made with --pretrained laion, and now it is openai")
    assert "--data_path" in commands.differs(str(manifest), {"pretrained": "laion", "data_path": str(tmp_path)})
    assert "--reading none, and" in commands.differs(str(manifest), {"reading": "seen"})


def test_an_option_reads_back_from_a_command():
    options = {"model": ["a", "b c"], "probe": True, "seed": "3", "split": ""}
    assert commands.options_of(commands.line("x", options)) == options
