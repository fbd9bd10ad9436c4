"""train_runner.sh: a settings file says what no variable says; its command, not run."""
import shlex

import pytest
from builders import load_script, run_command, runner_copy

from utils import cli


@pytest.fixture
def runner(tmp_path):
    """Run a copy of the script, where python says what it is called with. Returns the options of train.py."""
    script = runner_copy("train_runner.sh", tmp_path)
    config = tmp_path / "my settings.yaml"
    config.write_text("vlm_name: r-open-clip:ViT-B-32:openai\ndataset_name: emoji_fixed\nsteps: 7\n")

    def run(*arguments, **variables):
        done = run_command(["bash", script, *arguments], tmp_path, CONFIG=config,
                           OUTPUT_DIR=tmp_path / "out put", **variables)
        called, *words = shlex.split(done.stdout.splitlines()[0])
        assert called == "train.py"
        return cli.parse(load_script("train").get_args_parser(), words)

    return run


@pytest.mark.parametrize("variables, expected", [
    ({}, ("r-open-clip:ViT-B-32:openai", "emoji_fixed", None)),
    ({"VLM_NAME": "", "DATASET": "", "DATA_ROOT": ""}, ("r-open-clip:ViT-B-32:openai", "emoji_fixed", None)),
    ({"VLM_NAME": "owner/vlm", "DATASET": "cub", "DATA_ROOT": "my images"}, ("owner/vlm", "cub", "my images"))])
def test_variables_win_over_the_settings_file_where_they_are_filled(runner, tmp_path, variables, expected):
    args = runner("--steps", "8", **variables)
    assert (args.vlm_name, args.dataset_name, args.data_root) == expected
    assert (args.steps, args.output_dir, args.resume) == (8, f"{tmp_path}/out put/adapter", False)
    (tmp_path / "out put" / "adapter").mkdir(parents=True)
    (tmp_path / "out put" / "adapter" / "train.json").touch()
    assert runner(**variables).resume
