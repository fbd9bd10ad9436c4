"""inspection_runner.sh: which options go to both of its inspections; its commands, none of them run."""
import shlex
import subprocess

import pytest
from builders import load_script, runner_copy

from utils import cli


@pytest.fixture
def runner(tmp_path):
    """Run a copy of the script, in whose folder of results `there` lies; python says what it is called with. Returns
    the calls, the exit code and stderr."""
    script = runner_copy("inspection_runner.sh", tmp_path)
    out = tmp_path / "out put"
    out.mkdir()

    def run(*arguments, there=("aligned", "aligned_inspection", "labels_inspection"), **variables):
        for name in there:
            (out / f"{name}.jsonl").touch()
        done = subprocess.run(["bash", script, *arguments], capture_output=True,
                              text=True, env={"PATH": "/usr/bin:/bin", "OUTPUT_DIR": str(out), **variables})
        calls = [shlex.split(line) for line in done.stdout.splitlines()]
        for call in calls:
            cli.parse(load_script("inspect").get_args_parser(), call[1:])
        return calls, done.returncode, done.stderr

    return run


def test_both_files_are_asked_about_alike_and_summed_up(runner, tmp_path):
    calls, code, err = runner("--max_tokens", "64", OPENAI_API_KEY="", INSPECTOR="")
    assert code == 0, err
    about, labelled, summed = calls
    out = tmp_path / "out put"
    assert about == ["inspect.py", "--input_filepath", f"{out}/aligned.jsonl", "--output_filepath",
                     f"{out}/aligned_inspection.jsonl", "--concurrency", "16", "--model", "words", "--max_tokens", "64"]
    assert labelled[-6:] == about[-6:]
    assert labelled[1:7] == ["--input_filepath", "data/inspection/labels.jsonl", "--dataset_name", "labelled",
                             "--vlm_name", "any"]
    assert summed == ["inspect.py", "--summarize", f"{out}/aligned_inspection.jsonl", f"{out}/labels_inspection.jsonl",
                      "--output_dir", str(out)]


@pytest.mark.parametrize("given", [["--class_names", "names.txt"], ["--class", "names.txt"], ["--vlm_name=v"],
                                   ["--dataset_name", "cub"], ["--input_filepath", "x"], ["--output_filepath", "x"],
                                   ["--summarize", "x.jsonl"], ["--output_dir", "x"], ["--config", "x.yaml"]])
def test_what_cannot_go_to_both_is_refused_before_anything_is_asked(runner, given):
    calls, code, err = runner(*given)
    assert (calls, code) == ([], 2)
    assert err.startswith(f"error: {given[0]} does not go to both files ")
    assert len(err.splitlines()) == 1


def test_batches_need_no_server_and_are_summed_up_when_answers_are_there(runner):
    calls, code, err = runner("--batch", there=["aligned"], INSPECTOR="gpt-5.4-mini")
    assert code == 0, err
    assert len(calls) == 2
    assert all("--batch" in call for call in calls)
    assert "no answers yet in " in err
    assert "aligned_inspection.jsonl; with answers, the same command sums them up" in err
    calls, code, _ = runner("--batch", INSPECTOR="gpt-5.4-mini")
    assert (len(calls), code) == (3, 0)


def test_a_dry_run_sums_nothing_up(runner):
    calls, code, err = runner("--dry_run", "--price_per_million", "1", "2", INSPECTOR="gpt-5.4-mini")
    assert (len(calls), code) == (2, 0), err


def test_a_key_alone_asks_no_chat_model(runner):
    calls, code, err = runner(OPENAI_API_KEY="sk-1")
    assert code == 0, err
    assert calls[0][-2:] == ["--model", "words"]
