"""train_runner.sh: a settings file says what no variable says; its command, not run."""
import shlex
import shutil

import pytest
from builders import ROOT, load_script, run_command

from utils import cli


@pytest.fixture
def runner(tmp_path):
    """Run a copy of the script, where python says what it is called with. Returns the options of train.py."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "setup.sh").touch()
    shutil.copy(ROOT / "scripts" / "train_runner.sh", tmp_path / "scripts")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/usr/bin/env bash\nprintf '%q ' \"$@\"; echo\n")
    python.chmod(0o755)
    config = tmp_path / "my settings.yaml"
    config.write_text("vlm_name: r-open-clip:ViT-B-32:openai\ndataset_name: emoji_fixed\nsteps: 7\n")

    def run(*arguments, **variables):
        done = run_command(["bash", tmp_path / "scripts" / "train_runner.sh", *arguments], tmp_path, CONFIG=config,
                           OUTPUT_DIR=tmp_path / "out put", **variables)
        script, *words = shlex.split(done.stdout.splitlines()[0])
        assert script == "train.py"
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
