"""train.py: what it refuses, what it logs, and runs that were cut off. Whole runs are marked long."""
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from builders import ROOT
from safetensors.torch import load_file

import train
from utils import cli, processes
from utils.ex2 import rewards
from utils.language import loading

SMALL = ["--dataset_name", "emoji", "--num_concepts", 3, "--num_images_for_reward", 4, "--steps", 4, "--batch_size", 8,
         "--per_device_batch_size", 4, "--num_generations", 2, "--epochs_per_batch", 2, "--save_freq", 2,
         "--max_new_tokens", 6]


@pytest.fixture
def options(tiny_lm, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)  # where configs/questions.txt is
    return [*SMALL, "--model_name", tiny_lm, "--output_dir", tmp_path / "run"]


def begin(folder, options, **more):
    """Leave a run's settings in its folder, as a run does that was cut off early."""
    folder.mkdir()
    args = cli.parse(train.get_args_parser(), [str(word) for word in options])
    settings = {name: value for name, value in vars(args).items() if name not in train.FREE}
    cli.save_result(folder / "train.json", settings | more)


# What the user can mend.

def test_two_runs_are_not_in_one_folder(refused, options, tmp_path):
    begin(tmp_path / "run", options)
    with processes.alone(tmp_path / "run"):
        line = refused("train", *options, "--resume")
    assert "run: another run writes there; wait for it, or name another --output_dir" in line
    assert "holds a run already" in refused("train", *options)  # nobody is there any more


def test_a_folder_in_which_nothing_was_written_is_not_left(refused, options, tmp_path):
    deep = tmp_path / "new" / "deep"
    assert "holds no run to resume" in refused("train", *options, "--resume", "--output_dir", deep)
    assert not (tmp_path / "new").exists()


def test_a_run_does_not_go_on_with_other_questions(refused, options, tmp_path):
    begin(tmp_path / "run", options, prompts_sha256="of those that were asked")
    line = refused("train", *options, "--resume")
    assert "run was begun with other questions or names of concepts; --questions, --class_names or the data set" in line


def test_a_run_is_not_overwritten(refused, options, tmp_path):
    begin(tmp_path / "run", options)
    line = refused("train", *options)
    assert "run holds a run already; continue it with --resume, or name another --output_dir" in line


@pytest.mark.parametrize("option, value, message", [
    ("--vllm_mode", "server", "--vllm_mode goes with --use_vllm; give that too, or leave it out"),
    ("--vllm_server_base_url", "http://x", "--vllm_server_base_url goes with --use_vllm"),
    ("--vllm_gpu_memory_utilization", 0.5, "--vllm_gpu_memory_utilization goes with --use_vllm"),
    ("--lora_dropout", 1, "--lora_dropout is 1.0; it must be below 1")])
def test_what_would_do_nothing_is_refused(refused, options, option, value, message):
    assert message in refused("train", *options, option, value)


def test_a_run_is_resumed_with_its_own_options(refused, options, tmp_path):
    begin(tmp_path / "run", options)
    line = refused("train", *options, "--resume", "--seed", 1, "--learning_rate", "1e-3")
    assert "run was begun with another learning_rate (" in line


def test_a_run_can_be_resumed_in_another_place_and_by_another_name(run_script, options, tmp_path):
    begin(tmp_path / "run", options)
    (tmp_path / "run" / "adapter_model.safetensors").write_bytes(b"")
    code, _, err = run_script("train", *options, "--resume", "--output_dir", f"{tmp_path}/./run/")
    assert code == 0, err
    (tmp_path / "run").rename(tmp_path / "moved")
    code, _, err = run_script("train", *options, "--resume", "--output_dir", tmp_path / "moved")
    assert code == 0, err


def test_a_finished_run_says_so_at_once(run_script, refused, options, tmp_path, monkeypatch):
    begin(tmp_path / "run", options)
    (tmp_path / "run" / "adapter_model.safetensors").write_bytes(b"")
    monkeypatch.setattr(loading, "load_tokenizer", None)
    code, out, err = run_script("train", *options, "--resume")
    assert (code, out) == (0, f"finished already -> {tmp_path / 'run'}\n"), err
    assert "was begun with another steps" in refused("train", *options, "--resume", "--steps", 5)


def test_the_document_s_table_holds_the_defaults():
    lines = [line.split(" | ") for line in (ROOT / "docs" / "ex2.md").read_text(encoding="utf-8").splitlines()]
    defaults = vars(cli.parse(train.get_args_parser(), []))
    found = {name: value for cells in lines if len(cells) == 4  # a line of the table of defaults
             for command in re.findall(r"`(--[^`]+)`", cells[2]) if len(command.split()) % 2 == 0
             for name, value in zip(command.split()[::2], command.split()[1::2]) if value not in ("FILE", "trainval")}
    assert {"--learning_rate", "--lora_r", "--minibatch_size", "--kl", "--split"} <= set(found)
    for name, value in found.items():
        default = defaults[name.removeprefix("--")]
        assert value == str(default) or float(value) == default, name


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: its absence was not covered")
@pytest.mark.parametrize("option", ["--load_in_8bit", "--load_in_4bit", "--use_vllm"])
def test_what_needs_a_gpu_is_refused_before_the_long_work(refused, options, tmp_path, monkeypatch, option):
    monkeypatch.setattr(rewards, "image_means", lambda *_: pytest.fail("the images were looked at first"))
    assert option in refused("train", *options, option)
    assert not (tmp_path / "run").exists()


# The reward function, as the trainer calls it.

def test_the_reward_function_scores_logs_and_remembers():
    from utils.ex2 import descriptions, training

    asked, logged, recent = [], {}, []

    def score(descriptions, concepts):
        asked.append((descriptions, concepts))
        return [1.5, None]

    reward = training.reward_function(score, lambda texts: [i for i, text in enumerate(texts) if text == "It barks."],
                                      ["cat", "dog"], recent)
    more = {"prompts": [], "completion_ids": [], "log_metric": lambda name, value: logged.update({name: value})}
    queries = ["What is dog?", "What is cat?"]
    assert reward(completions=[" It barks. ", "cat"], query=queries, concept=[1, 0], **more) == [1.5, None]
    chat = [[{"role": "assistant", "content": "Hm.</think> It barks. "}], [{"role": "assistant", "content": "cat"}]]
    assert reward(completions=chat, query=queries, concept=[1, 0], **more) == [1.5, None]
    assert asked == [([" It barks. ", "cat"], [1, 0])] * 2
    assert logged == descriptions.measures(["It barks.", "cat"], queries) | {"cut": 0.5, "unscored": 0.5}
    assert recent == [{"concept": "dog", "question": "What is dog?", "description": "It barks.", "reward": 1.5},
                      {"concept": "cat", "question": "What is cat?", "description": "cat", "reward": None}] * 2


# The log.

def state(step, epochs=2, steps=4, main=True):
    return SimpleNamespace(global_step=step * epochs, max_steps=steps * epochs, is_world_process_zero=main)


def log_steps(folder, first, last, write_csv=True):
    """Log those steps of a run with twelve descriptions a step, one of them not scored."""
    from utils.ex2 import training

    recent = []
    log = training.Log(folder, recent, 2, write_csv)
    log.on_train_begin(None, state(first - 1), None)
    for step in range(first, last + 1):
        recent.extend({"concept": "ünicorn", "question": "?", "description": f"{step}\u2028{i}",
                       "reward": float(i * 5 % 12)} for i in range(12))
        recent[3]["reward"] = None
        log.on_step_end(None, state(step), None)
        log.on_log(None, state(step), None, {"reward": step + 0.5, "kl": 0.25, "loss": None, "other": 1})
        assert recent == []
    log.on_log(None, state(last), None, {"train_runtime": 1.0})
    log.on_train_end(None, state(last), None)


def test_every_log_step_is_a_row_and_its_ten_best(tmp_path, capsys):
    from utils.ex2 import training

    log_steps(tmp_path, 1, 2)
    with (tmp_path / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == training.COLUMNS == (
        "step", "reward", "reward_std", "kl", "beta", "clipped", "entropy", "loss", "mean_words",
        "duplicates", "repeated_phrases", "copies", "shared_phrase", "empty", "cut", "unscored")
    assert [(row["step"], row["reward"], row["kl"], row["loss"]) for row in rows] == [
        ("1", "1.5", "0.25", ""), ("2", "2.5", "0.25", "")]
    lines = (tmp_path / "top_descriptions.jsonl").read_text(encoding="utf-8").split("\n")
    best = [json.loads(line) for line in lines[:-1]]
    assert [entry["step"] for entry in best] == [1] * 10 + [2] * 10
    expected = sorted((i * 5 % 12 for i in range(12) if i != 3), reverse=True)[:10]
    for entries in (best[:10], best[10:]):
        assert [entry["reward"] for entry in entries] == expected
        assert all(float(int(entry["description"].split("\u2028")[1]) * 5 % 12) == entry["reward"] for entry in entries)
    assert set(best[0]) == {"step", "concept", "question", "description", "reward"}
    assert best[0]["concept"] == "ünicorn"
    err = capsys.readouterr().err
    assert "step     1  reward   1.50" in err
    assert "step     2  reward   2.50" in err


def test_the_signs_of_collapse_are_said(tmp_path, capsys):
    from utils.ex2 import training

    log = training.Log(tmp_path, [], 1, True)
    log.on_log(None, state(1, 1), None, {"reward": 1.0, "duplicates": 0.9, "copies": 0.1})
    assert "warning: the reward may be gamed: duplicates 90%; see top_descriptions.jsonl" in capsys.readouterr().err


def test_only_the_first_process_writes(tmp_path):
    from utils.ex2 import training

    recent = [{"reward": 1.0}]
    log = training.Log(tmp_path, recent, 1, True)
    log.on_train_begin(None, state(0, 1, main=False), None)
    log.on_log(None, state(1, 1, main=False), None, {"reward": 1.0})
    assert recent == []
    assert not list(tmp_path.iterdir())
    log_steps(tmp_path, 1, 1, write_csv=False)
    assert [path.name for path in tmp_path.iterdir()] == ["top_descriptions.jsonl"]


@pytest.mark.parametrize("cut", [0, 1, 2, 30])
def test_a_resumed_run_logs_what_one_in_one_piece_logs(tmp_path, cut):
    for name in ("whole", "resumed"):
        (tmp_path / name).mkdir()
        log_steps(tmp_path / name, 1, 4 if name == "whole" else 3)
    for name in ("log.csv", "top_descriptions.jsonl"):  # the last line may have been cut off
        content = (tmp_path / "resumed" / name).read_bytes()
        last = len(content.split(b"\n")[-2])
        (tmp_path / "resumed" / name).write_bytes(content[:len(content) - min(cut, last)])
    log_steps(tmp_path / "resumed", 3, 4)  # from a checkpoint after step 2
    for name in ("log.csv", "top_descriptions.jsonl"):
        found, expected = ((tmp_path / which / name).read_text(encoding="utf-8") for which in ("resumed", "whole"))
        assert found == expected


def test_a_resumed_log_has_one_kind_of_line_ends(tmp_path):
    log_steps(tmp_path, 1, 3)
    log_steps(tmp_path, 3, 4)
    content = (tmp_path / "log.csv").read_bytes()
    assert content.count(b"\r\n") in (0, content.count(b"\n"))


def test_a_line_cut_within_its_number_is_dropped(tmp_path):
    log_steps(tmp_path, 1, 3)
    with (tmp_path / "log.csv").open("a") as file:
        file.write("1")  # of 12
    log_steps(tmp_path, 4, 4)
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "1", "2", "3", "4"]


def test_ratios_that_are_mostly_clipped_are_said(tmp_path, capsys):
    from utils.ex2 import training

    log = training.Log(tmp_path, [], 1, True)
    log.on_log(None, state(1, 1), None, {"reward": 1.0, training.CLIPPED: 0.51})
    assert "warning: 51% of the ratios were clipped" in capsys.readouterr().err
    log.on_log(None, state(2, 1), None, {"reward": 1.0, training.CLIPPED: 0.5})
    assert "warning" not in capsys.readouterr().err


def test_descriptions_that_the_vlm_does_not_read_to_their_end_are_said(tmp_path, capsys):
    from utils.ex2 import training

    log = training.Log(tmp_path, [], 1, True)
    log.on_log(None, state(1, 1), None, {"reward": 1.0, "cut": 0.25})
    assert "note: 25% of the descriptions have more tokens than the VLM reads" in capsys.readouterr().err
    log.on_log(None, state(2, 1), None, {"reward": 1.0, "cut": 0.0})
    assert "note" not in capsys.readouterr().err


# The adaptive KL.

def test_beta_follows_the_kl_as_in_ppo():
    from utils.ex2 import training

    kl = training.KLWeight(0.2, 32, 16, True, False)
    kl.trainer = SimpleNamespace(beta=0.2)
    logged, expected = [], 0.2
    for step, (token, length) in enumerate([(0.0, 30.0), (0.33, 30.0), (0.35, 30.0), (1.0, 30.0)], 1):
        logs = {"kl": token, "completions/mean_length": length, "step": step * 16}
        kl.on_log(None, state(step, 16), None, logs)
        expected *= 1 + min(max(token * length / 10 - 1, -0.2), 0.2) * 32 / 10_000
        logged.append(logs)
        assert kl.trainer.beta == kl.beta == pytest.approx(expected, rel=1e-12)
    kl.on_log(None, state(4, 16), None, {"train_runtime": 1.0})
    assert kl.beta == pytest.approx(expected)
    again = training.KLWeight(0.2, 32, 16, True, False)
    again.trainer = SimpleNamespace(beta=0.2)
    again.on_train_begin(None, SimpleNamespace(log_history=logged), None)  # a run that is resumed
    assert again.trainer.beta == kl.beta
    rare = training.KLWeight(0.2, 32, 16, True, False)
    rare.trainer = SimpleNamespace(beta=0.2)
    rare.on_log(None, state(1000, 16), None, logged[-1])  # logged once in 1,000 steps
    assert rare.beta == pytest.approx(0.2 * (1 + 0.2 * 3.2))


def test_beta_is_in_units_of_the_reward_beside_scaled_advantages():
    from utils.ex2 import training

    kl = training.KLWeight(0.2, 32, 16, False, True)
    kl.trainer = SimpleNamespace(beta=0.2)
    for deviation, weight in ((8.0, 0.025), (0.5, 0.4), (0.0, 0.2)):  # the last: all rewards were the same
        kl.on_log(None, state(1, 16), None, {"kl": 1.0, "reward_std": deviation})
        assert kl.trainer.beta == pytest.approx(weight)
    fixed = training.KLWeight(0.2, 32, 16, False, False)
    fixed.trainer = SimpleNamespace(beta=0.2)
    fixed.on_log(None, state(1, 16), None, {"kl": 1.0, "reward_std": 8.0})
    assert fixed.trainer.beta == 0.2


# The trainer.

def trainer_of(model, folder, algorithm="rloo", learning_rate=1e-5):
    from utils.ex2 import training

    return training.make_trainer(
        algorithm, model, loading.load_tokenizer(model.name_or_path),
        [{"prompt": "What is a cat?", "query": "What is a cat?", "concept": 0}] * 8, lambda **_: None,
        {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0}, [], 4, 4, 1, True, {}, output_dir=str(folder), max_steps=16,
        per_device_train_batch_size=2, num_generations=2, learning_rate=learning_rate, bf16=True, use_cpu=True,
        gradient_checkpointing=False, report_to="none", max_grad_norm=0.0, beta=0.2)


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_the_adapter_of_a_quantised_model_is_trained_in_float32(tiny_lm, tmp_path, algorithm):
    model = loading.load_model(tiny_lm, torch.bfloat16)
    model.is_loaded_in_8bit = True  # by which TRL knows a quantised model
    trainer = trainer_of(model, tmp_path, algorithm)
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    assert trained
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    for parameter in trained:
        parameter.data.fill_(0.1)  # beside which 1e-5 is nothing in bfloat16
        parameter.grad = torch.ones_like(parameter)
    trainer.create_optimizer().step()
    for parameter in trained:
        assert torch.allclose(parameter.data, torch.full_like(parameter, 0.1 - 1e-5), rtol=0, atol=2e-6)
        assert (parameter.data < 0.1 - 5e-6).all()


def test_a_batch_gives_as_many_updates_as_published(tiny_lm, tmp_path):
    config = trainer_of(loading.load_model(tiny_lm, torch.bfloat16), tmp_path).args
    assert (config.num_iterations, config.steps_per_generation, config.gradient_accumulation_steps) == (4, 4, 1)
    assert config.generation_batch_size == 8
    assert config.normalize_advantages
    assert config.max_grad_norm == 0
    args = cli.parse(train.get_args_parser(), ["--config", str(ROOT / "configs/train/published.yaml")])
    assert args.epochs_per_batch * args.batch_size // args.minibatch_size == 16


# Checkpoints.

def checkpoint(folder, name, content='{"global_step": 4}'):
    (folder / name).mkdir(parents=True)
    (folder / name / "adapter_model.safetensors").write_bytes(b"weights")
    if content is not None:
        (folder / name / "trainer_state.json").write_text(content)


def test_only_complete_checkpoints_count_in_their_order(tmp_path):
    from utils.ex2 import training

    for name, done in (("checkpoint-4", 8), ("checkpoint-12", 24), ("checkpoint-8", 16)):
        checkpoint(tmp_path, name, f'{{"global_step": {done}}}')
    checkpoint(tmp_path, "checkpoint-16", None)
    checkpoint(tmp_path, "checkpoint-20", '{"global_st')
    found = training.complete_checkpoints(tmp_path, 2)
    assert [path.name for path in found] == ["checkpoint-4", "checkpoint-8", "checkpoint-12"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in found)
    assert training.complete_checkpoints(tmp_path / "nowhere", 2) == []
    checkpoint(tmp_path, "checkpoint-20", '{"global_step": 20}')  # cut off before it had the number of its step, 10
    found = training.complete_checkpoints(tmp_path, 2)
    assert [path.name for path in found] == ["checkpoint-4", "checkpoint-8", "checkpoint-10", "checkpoint-12"]


def test_what_is_no_checkpoint_of_ours_is_left_alone(tmp_path):
    from utils.ex2 import training

    checkpoint(tmp_path, "checkpoint-best", None)
    checkpoint(tmp_path, "checkpoint-last-good")
    (tmp_path / "checkpoint-notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert training.complete_checkpoints(tmp_path, 2) == []
    assert sorted(tmp_path.rglob("*")) == before


# Whole runs.

# A rate at which each step shows in the next one's descriptions.
WHOLE = [*SMALL, "--learning_rate", "1e-2"]


def long(test):
    return pytest.mark.long(test)


def command(model, folder, *more):
    return [sys.executable, "train.py", *map(str, [*WHOLE, "--model_name", model, "--output_dir", folder, *more])]


def run(*arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    return done


def log_rows(folder):
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def same_run(folder, whole):
    """Assert that a run left what the run in one piece left."""
    assert (folder / "adapter_model.safetensors").read_bytes() == (whole / "adapter_model.safetensors").read_bytes()
    assert log_rows(folder) == log_rows(whole)
    for name in ("top_descriptions.jsonl", "emoji_image_means_r-open-clip-emojiclip.npy"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    for path in whole.glob("checkpoint-*/adapter_model.safetensors"):
        assert (folder / path.relative_to(whole)).read_bytes() == path.read_bytes()
    assert not list(folder.glob("*.partial"))


def copied(whole, folder):
    """A copy of a run that takes itself for the run in its place."""
    shutil.copytree(whole, folder)
    settings = json.loads((folder / "train.json").read_text())
    settings = {name: str(folder) if name == "output_dir" else value for name, value in settings.items()}
    cli.save_result(folder / "train.json", settings)
    return folder


@pytest.fixture(scope="module")
def whole_run(tiny_lm, tmp_path_factory):
    """A run in one piece: four steps, checkpoints after the second and the fourth."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run(tiny_lm, folder)


@long
def test_a_run_leaves_an_adapter_and_its_log(whole_run, tiny_lm):
    from utils.ex2 import training

    folder, done = whole_run
    assert done.stdout.endswith(f"4 steps -> {folder}\n")
    assert "step     4  reward" in done.stderr
    assert {path.name for path in folder.iterdir()} >= {
        "adapter_model.safetensors", "adapter_config.json", "checkpoint-2", "checkpoint-4", "log.csv",
        "reward_curve.png", "top_descriptions.jsonl", "train.json"}
    rows = log_rows(folder)
    assert tuple(rows[0]) == training.COLUMNS
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert all(float(value) == float(value) for row in rows for value in row.values())
    assert 0 < float(rows[0]["kl"]) != float(rows[-1]["kl"])  # over a step's updates, of which only the first has none
    lines = (folder / "top_descriptions.jsonl").read_text(encoding="utf-8").split("\n")
    best = [json.loads(line) for line in lines if line]
    for row in rows:
        found = [entry["reward"] for entry in best if entry["step"] == int(row["step"])]
        assert found == sorted(found, reverse=True)
        assert 1 <= len(found) <= 10
        assert sum(found) / len(found) == pytest.approx(float(row["reward"]), abs=1e-3)  # all eight of the step
    tensors = load_file(folder / "adapter_model.safetensors")
    assert all(value.abs().max() > 1e-3 for name, value in tensors.items() if "lora_B" in name)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == tiny_lm
    settings = json.loads((folder / "train.json").read_text())
    assert settings["learning_rate"] == 0.01
    assert settings["seed"] == 0
    assert "resume" not in settings


@long
def test_the_adapter_describes(whole_run, run_script, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in (whole_run[0], whole_run[0] / "checkpoint-2"):
        code, out, err = run_script("inference", "--model_name", name, "--num_concepts", 1, "--max_new_tokens", 4,
                                    "--device", "cpu", "--output_filepath", tmp_path / "d.json")
        assert code == 0, err
        assert "25 descriptions" in out, err


@long
def test_a_run_that_was_killed_goes_on_exactly(whole_run, tiny_lm, tmp_path):
    whole, folder = whole_run[0], tmp_path / "run"
    process = subprocess.Popen(command(tiny_lm, folder), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 900
        while not (folder / "log.csv").is_file() or "\n3," not in (folder / "log.csv").read_text():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert (folder / "checkpoint-2" / "trainer_state.json").is_file()
    assert not (folder / "adapter_model.safetensors").exists()
    assert [row["step"] for row in log_rows(folder)] == ["1", "2", "3"]  # the third will be made again
    checkpoint(folder, "checkpoint-6", None)  # two that the kill came into
    shutil.rmtree(folder / "checkpoint-4", ignore_errors=True)
    checkpoint(folder, "checkpoint-4", '{"epoch": ')
    done = run(tiny_lm, folder, "--resume")
    assert "step     3  reward" in done.stderr
    assert "step     2  reward" not in done.stderr
    assert not (folder / "checkpoint-6").exists()
    same_run(folder, whole)
    again = run(tiny_lm, folder, "--resume")
    assert again.stdout == f"finished already -> {folder}\n"
    assert "step " not in again.stderr
    same_run(folder, whole)


@long
def test_a_run_that_was_killed_while_it_wrote_the_adapter_goes_on(whole_run, tiny_lm, tmp_path):
    folder = copied(whole_run[0], tmp_path / "run")
    (folder / "final.partial").mkdir()
    (folder / "adapter_model.safetensors").rename(folder / "final.partial" / "adapter_model.safetensors")
    os.truncate(folder / "final.partial" / "adapter_model.safetensors", 100)
    done = run(tiny_lm, folder, "--resume")
    assert "reward" not in done.stderr  # nothing is trained again
    same_run(folder, whole_run[0])
    assert not (folder / "final.partial").exists()


@long
def test_a_run_without_a_checkpoint_begins_again(whole_run, tiny_lm, tmp_path):
    folder = copied(whole_run[0], tmp_path / "run")
    (folder / "adapter_model.safetensors").unlink()
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)
    run(tiny_lm, folder, "--resume")
    same_run(folder, whole_run[0])


@long
def test_rloo_trains_too(tiny_lm, tmp_path):
    folder = tmp_path / "run"
    run(tiny_lm, folder, "--algorithm", "rloo", "--steps", 1)
    (row,) = log_rows(folder)
    assert row["step"] == "1"
    assert float(row["reward"]) > 0
    assert float(row["beta"]) == pytest.approx(0.2, rel=1e-3)
    tensors = load_file(folder / "adapter_model.safetensors")
    assert all(value.abs().max() > 1e-3 for name, value in tensors.items() if "lora_B" in name)


@long
def test_beta_is_divided_by_the_deviation_of_a_batch(tiny_lm, tmp_path):
    folder = tmp_path / "run"
    run(tiny_lm, folder, "--steps", 1)
    (row,) = log_rows(folder)
    assert float(row["kl"]) >= 0
    rewards = [json.loads(line)["reward"] for line in (folder / "top_descriptions.jsonl").read_text().splitlines()]
    assert len(rewards) == 8  # the whole batch, over which TRL scales the advantages
    assert float(row["beta"]) == pytest.approx(0.2 / torch.tensor(rewards).std().item(), rel=1e-3)


@long
def test_two_processes_share_a_batch(tiny_lm, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launch += command(tiny_lm, tmp_path / "run", "--steps", 2, "--per_device_batch_size", 4)[1:]
    done = subprocess.run(launch, cwd=ROOT, capture_output=True, text=True, timeout=900,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    assert [row["step"] for row in log_rows(tmp_path / "run")] == ["1", "2"]
    lines = (tmp_path / "run" / "top_descriptions.jsonl").read_text(encoding="utf-8").split("\n")
    best = [json.loads(line) for line in lines if line]
    assert [entry["step"] for entry in best] == [1] * 8 + [2] * 8  # the descriptions of both processes, once each
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
