"""inference_runner.sh: describes with what was trained, on what it was trained on; its commands, none of them run."""
import json
import shlex

import pytest
from builders import load_script, run_command, runner_copy

from utils import cli

TRAINED = {"model_name": "owner/model", "dataset_name": "cub", "vlm_name": "v", "data_root": "my images",
           "split": "val", "questions": "q.txt", "class_names": "names.txt", "num_images_for_reward": 7,
           "max_new_tokens": 9, "vlm_16bit": False, "num_concepts": 5, "learning_rate": 1e-3}


@pytest.fixture
def runner(tmp_path):
    """Run a copy of the script with those settings of a training; python says what it is called with. Returns the
    options of each call of inference.py."""
    script = runner_copy("inference_runner.sh", tmp_path)
    adapter = tmp_path / "out put" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_model.safetensors").touch()

    def run(trained, *arguments, **variables):
        (adapter / "train.json").write_text(json.dumps(trained))
        done = run_command(["bash", script, *arguments], tmp_path,
                           OUTPUT_DIR=adapter.parent, **variables)
        calls = [shlex.split(line) for line in done.stdout.splitlines()]
        assert [call[:2] for call in calls[:3]] == [["inference.py", "--model_name"]] * 2 + [
            ["-m", "scripts.compare_descriptions"]]
        for call in calls[:2]:
            cli.parse(load_script("inference").get_args_parser(), call[1:])
        return [dict(zip(call[1::2], call[2::2])) for call in calls[:2]]  # of an option given twice, the last

    return run


def test_what_was_trained_is_what_is_described(runner, tmp_path):
    untrained, aligned = runner(TRAINED)
    shared = {"--eval_dataset": "cub", "--score": "v", "--data_root": "my images", "--split": "val",
              "--questions": "q.txt", "--class_names": "names.txt", "--num_concepts": "5",
              "--num_images_for_reward": "7", "--max_new_tokens": "9", "--vlm_16bit": "False"}
    out = tmp_path / "out put"
    assert untrained == shared | {"--model_name": "owner/model", "--output_filepath": f"{out}/untrained.json"}
    assert aligned == shared | {"--model_name": f"{out}/adapter", "--output_filepath": f"{out}/aligned.json"}


def test_what_was_left_out_is_left_out(runner):
    for options in runner(TRAINED | {"data_root": None, "class_names": None, "vlm_16bit": None,
                                     "num_concepts": None}):
        assert not {"--data_root", "--class_names", "--vlm_16bit", "--num_concepts"} & options.keys()


def test_variables_and_arguments_win(runner):
    untrained, aligned = runner(TRAINED, "--split", "test", "--questions", "other.txt", BASE_MODEL="base",
                                DATASET="pets", VLM_NAME="w", DATA_ROOT="there", NUM_CONCEPTS=3)
    assert untrained["--model_name"] == "base"
    for options in (untrained, aligned):
        found = [options[f"--{name}"] for name in ("eval_dataset", "score", "data_root", "split", "questions",
                                                   "num_concepts", "max_new_tokens")]
        assert found == ["pets", "w", "there", "test", "other.txt", "3", "9"]


@pytest.mark.parametrize("trained, number, arguments, variables, expected", [
    ("cub", 5, (), {}, "5"), ("cub", None, (), {}, None), ("emoji_fixed", 13, (), {}, "13"),
    ("emoji", 32, (), {}, "16"), ("emoji", None, (), {}, "16"), ("emoji", 4, (), {}, "4"),
    ("emoji", 32, (), {"NUM_CONCEPTS": ""}, None), ("emoji", 32, (), {"NUM_CONCEPTS": 20}, "20"),
    ("emoji", 32, (), {"DATASET": "emoji_fixed"}, None), ("emoji", 32, ("--eval_dataset", "cub"), {}, None),
    ("cub", 5, (), {"DATASET": "emoji"}, None)])
def test_as_many_concepts_as_were_trained_and_16_of_emoji(runner, trained, number, arguments, variables, expected):
    for options in runner(TRAINED | {"dataset_name": trained, "num_concepts": number}, *arguments, **variables):
        assert options.get("--num_concepts") == expected
