"""The whole chain for real: SmolLM2 trained with TRL, its descriptions by transformers and by vLLM's engine, in process
and as a server, and inspected by word lists and by SmolLM2 behind that server. Settings are cut down, parts are not."""
import json
import os
import subprocess
import sys
import time
import urllib.request

import pytest
from builders import ROOT, free_port, run_command

pytestmark = [pytest.mark.long,
              pytest.mark.skipif(not sys.prefix.startswith(str(ROOT)),
                                 reason="not run from .venv: the runners were not covered")]
VLLM = ROOT / ".venv-vllm" / "bin" / "python"
QUESTIONS = ["What does {concept} look like?", "What is {concept}?", "Which colors would you see on {concept}?"]
SHORT = ["--num_concepts", 2, "--steps", 2, "--batch_size", 4, "--minibatch_size", 4, "--per_device_batch_size", 4,
         "--num_generations", 2, "--max_new_tokens", 8, "--save_freq", 1]


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The three runners in sequence: (output folder, questions file, what each printed)."""
    folder = tmp_path_factory.mktemp("chain of runners")  # blanks in a path must do no harm
    questions = folder / "questions.txt"
    questions.write_text("\n".join(QUESTIONS))
    out = folder / "ex2"
    small = ["--num_images_for_reward", 4, "--questions", questions]
    printed = [run_command(["bash", ROOT / "train_runner.sh", *small, *SHORT], folder, OUTPUT_DIR=out),
               run_command(["bash", ROOT / "inference_runner.sh", *small], folder, OUTPUT_DIR=out, NUM_CONCEPTS=2),
               run_command(["bash", ROOT / "inspection_runner.sh"], folder, OUTPUT_DIR=out)]
    return out, questions, printed


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_training_leaves_an_adapter_and_its_log(chain):
    out, _, (trained, *_) = chain
    assert "step     2  reward" in trained.stderr
    log = (out / "adapter" / "log.csv").read_text().splitlines()
    assert log[0].startswith("step,reward,")
    assert [line.split(",")[0] for line in log[1:]] == ["1", "2"]
    for name in ("adapter_model.safetensors", "reward_curve.png", "checkpoint-1/adapter_model.safetensors"):
        assert (out / "adapter" / name).stat().st_size > 1000, name
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "smollm2-135m"


def test_a_finished_training_is_not_repeated(chain):
    out, questions, _ = chain
    again = run_command(["bash", ROOT / "train_runner.sh", "--num_images_for_reward", 4, "--questions", questions,
                         *SHORT], out, OUTPUT_DIR=out)
    assert "finished already" in again.stdout


def test_descriptions_are_scored_and_compared(chain):
    out, _, (_, described, _) = chain
    for name in ("untrained", "aligned"):
        found = rows(out / f"{name}.jsonl")
        assert len(found) == 6
        assert [row["seed"] for row in found] == list(range(6))
        assert all(list(row) == ["concept", "question", "description", "seed", "reward"] for row in found)
        assert all(isinstance(row["reward"], float) for row in found)
        assert [len(texts) for texts in json.loads((out / f"{name}.json").read_text())] == [3, 3]
    assert "mean reward: " in described.stdout
    assert "standard error over 2 concepts" in described.stdout
    assert "Difference, paired by concept: " in (out / "comparison.md").read_text()


def test_the_inspection_is_summed_up(chain):
    out, _, (*_, inspected) = chain
    header, *answers = rows(out / "aligned_inspection.jsonl")
    assert header["header"]["inspector"] == "words"
    assert header["header"]["vlm_name"] == "r-open-clip:emojiclip"
    assert len(answers) == 12
    assert {answer["status"] for answer in answers} == {"answered"}
    assert "Verdicts of words (word lists, no model)" in inspected.stdout
    assert (out / "summary.png").stat().st_size > 1000
    trust = json.loads((out / "summary.json").read_text())["agreement"]["words"]
    assert trust["informative"]["used"] == 200, "the labelled descriptions were not used"


def test_vllm_in_this_process_describes_with_the_adapter(chain, tmp_path):
    out, questions, _ = chain
    run_command([VLLM, ROOT / "inference.py", "--backend", "vllm", "--model_name", out / "adapter", "--num_concepts", 2,
                 "--questions", questions, "--output_filepath", tmp_path / "v.json"], ROOT)
    made = rows(tmp_path / "v.jsonl")
    assert json.loads((tmp_path / "v.manifest.json").read_text())["backend"] == "vllm"
    assert [(row["concept"], row["question"]) for row in made] == [
        (row["concept"], row["question"]) for row in rows(out / "aligned.jsonl")]
    assert sum(len(row["description"].split()) > 3 for row in made) >= 4
    assert len({row["description"] for row in made}) >= 5
    run_command([sys.executable, "inference.py", "--score", "r-open-clip:emojiclip", "--num_images_for_reward", 4,
                 "--descriptions", tmp_path / "v.json"], ROOT)
    scored = rows(tmp_path / "v.jsonl")
    assert all(isinstance(row["reward"], float) for row in scored)
    assert [row["description"] for row in scored] == [row["description"] for row in made]


def test_vllm_as_a_server_describes(chain, tmp_path):
    out, questions, _ = chain
    export = ["-m", "scripts.export_model", "--model_name", out / "adapter", "--output_dir", tmp_path / "merged"]
    run_command([sys.executable, *export], ROOT)
    port = free_port()
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [VLLM, "-m", "vllm.entrypoints.openai.api_server", "--model", tmp_path / "merged", "--served-model-name",
             "aligned", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "2048",
             "--enforce-eager"],
            stdout=log, stderr=log, env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"})
    try:
        deadline = time.monotonic() + 600
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "log").read_text()[-3000:]
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
                time.sleep(1)
        run_command([sys.executable, "inference.py", "--backend", "server", "--base_url", f"http://127.0.0.1:{port}/v1",
                     "--model_name", out / "adapter", "--num_concepts", 2, "--questions", questions,
                     "--output_filepath", tmp_path / "s.json"], ROOT)
        run_command([sys.executable, "inspect.py", "--base_url", f"http://127.0.0.1:{port}/v1", "--model", "aligned",
                     "--dataset_name", "emoji", "--vlm_name", "v", "--input_filepath", tmp_path / "s.jsonl",
                     "--max_retries", 1], ROOT)
    finally:
        server.terminate()
        server.wait(60)
    header, *answers = rows(tmp_path / "s_inspection.jsonl")
    assert header["header"]["inspector"] == "aligned"
    assert len(answers) == 12
    assert all(answer["raw"] and answer["settings"]["response_format"] == "json_schema" for answer in answers)
    assert sum(answer["status"] == "answered" for answer in answers) >= 10
    made = rows(tmp_path / "s.jsonl")
    assert len(made) == 6
    assert len({row["description"] for row in made}) >= 5
    assert sum(len(row["description"].split()) > 3 for row in made) >= 4
