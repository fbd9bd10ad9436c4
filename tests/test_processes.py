"""Several processes, started as a cluster starts them, leave what one leaves."""
import os
import signal
import subprocess
import sys
import time

import pytest
from builders import ROOT
from PIL import Image

pytestmark = pytest.mark.long  # every process imports all that a script needs


def launch(number, script, *arguments):
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(number),
            f"{script}.py", *map(str, arguments)]


def alone(script, *arguments):
    return [sys.executable, f"{script}.py", *map(str, arguments)]


def run(command):
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, capture_output=True,
                          check=False, timeout=600)


def result(folder):
    """Bytes of every file but the times."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and "_time_" not in path.name}


def prs(images, output, *more):
    return ("--model", "emojiclip", "--dataset", "imagefolder", "--data_path", images, "--output_dir", output,
            "--device", "cpu", "--batch_size", 2, "--num_workers", 0, *more)


@pytest.mark.parametrize("number", [2, 3])
def test_processes_share_the_images_and_leave_the_same_bytes(folder_of_images, tmp_path, number):
    (folder_of_images / "cat" / "3.png").write_bytes(b"")
    one = run(alone("compute_prs", *prs(folder_of_images, tmp_path / "one", "--skip_bad_images")))
    assert one.returncode == 0, one.stderr
    many = run(launch(number, "compute_prs", *prs(folder_of_images, tmp_path / "many", "--skip_bad_images")))
    assert many.returncode == 0, many.stderr
    assert f"{number} processes, on cpu" in many.stderr
    assert many.stdout.count("14 images -> ") == 1
    assert f'"processes": {number}' in (tmp_path / "many" / "imagefolder_time_emojiclip.json").read_text()
    assert result(tmp_path / "one") == result(tmp_path / "many")


def test_processes_share_the_texts(tmp_path):
    pool = tmp_path / "pool.txt"
    pool.write_text("".join(f"a picture of {i} things\n" for i in range(45)))
    given = ("--model", "emojiclip", "--data_path", pool, "--batch_size", 8)  # no --device: there may be no GPU
    one = run(alone("compute_text_set_projection", *given, "--output_dir", tmp_path / "one"))
    assert one.returncode == 0, one.stderr
    many = run(launch(2, "compute_text_set_projection", *given, "--output_dir", tmp_path / "many"))
    assert many.returncode == 0, many.stderr
    assert "2 processes, on cpu" in many.stderr, many.stderr
    assert result(tmp_path / "one") == result(tmp_path / "many")
    assert len(result(tmp_path / "one")) == 2


def test_processes_share_the_descriptions(tiny_lm, tmp_path):
    questions = tmp_path / "questions.txt"
    questions.write_text("Describe {concept}.\nWhat does {concept} look like?\nName {concept}.\n")
    given = ("--model_name", tiny_lm, "--num_concepts", 3, "--questions", questions, "--max_new_tokens", 5,
             "--backend", "hf", "--batch_size", 2, "--device", "cpu")
    one = run(alone("inference", *given, "--output_filepath", tmp_path / "one" / "x.json"))
    assert one.returncode == 0, one.stderr
    many = run(launch(2, "inference", *given, "--output_filepath", tmp_path / "many" / "x.json"))
    assert many.returncode == 0, many.stderr
    assert "2 processes, on cpu" in many.stderr
    assert many.stdout.count("9 descriptions") == 1
    assert result(tmp_path / "one") == result(tmp_path / "many")
    assert len(result(tmp_path / "one")) == 3
    line = run(launch(2, "inference", *given[:9], "server", *given[10:], "--base_url", "http://localhost:1/v1",
                      "--output_filepath", tmp_path / "no" / "x.json"))
    assert line.returncode
    assert "--backend server uses several GPUs by itself" in line.stderr


def test_a_run_that_lost_one_of_its_processes_goes_on(folder_of_images, tmp_path):
    one = run(alone("compute_prs", *prs(folder_of_images, tmp_path / "one", "--batch_size", 1)))
    assert one.returncode == 0, one.stderr
    images, output = prs(folder_of_images, tmp_path / "many", "--batch_size", 1), tmp_path / "many"
    agent = subprocess.Popen(launch(2, "compute_prs", *images), cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
                             text=True, stderr=subprocess.PIPE)
    deadline = time.time() + 120
    while not list(output.glob("*lock*")) and agent.poll() is None and time.time() < deadline:
        time.sleep(0.01)
    children = subprocess.run(["pgrep", "-P", str(agent.pid), "-f", "compute_prs"], text=True, capture_output=True,
                              check=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    _, err = agent.communicate(timeout=120)
    assert agent.returncode, err
    assert all(path.name.endswith(".partial") for path in output.iterdir())
    resumed = run(alone("compute_prs", *images, "--resume"))  # as many processes as there are now
    assert resumed.returncode == 0, resumed.stderr
    assert result(tmp_path / "one") == result(output)


@pytest.fixture
def segmentations(run_script, tmp_path):
    """Options of a run over 11 scenes with masks, one of them without foreground, and more."""
    from utils.data import scenes

    code, _, err = run_script("compute_text_projection", "--model", "emojiclip", "--dataset", "emoji",
                              "--device", "cpu", "--output_dir", tmp_path / "classifier")
    assert code == 0, err
    images, masks = scenes.draw(scenes.sample_scenes(11, seed=5), 64)
    masks[3] = 0
    for part, drawn in (("images", images.permute(0, 2, 3, 1)), ("masks", 255 * masks)):
        (tmp_path / "data" / part).mkdir(parents=True)
        for i, picture in enumerate(drawn.numpy()):
            Image.fromarray(picture).save(tmp_path / "data" / part / f"{i:02d}.png")
    return lambda output, *more: (
        "--model", "emojiclip", "--train_dataset", "masks_folder", "--data_path", tmp_path / "data", "--classifier_dir",
        tmp_path / "classifier", "--classifier_dataset", "emoji", "--output_dir", tmp_path / output, "--device", "cpu",
        "--num_workers", 0, *more)


@pytest.mark.parametrize("number, method, batch_size, pictures", [
    (2, "decomposition", 2, 5),  # the last of six batches is not full
    (3, "all", 8, 26)])          # two batches: the third process has none
def test_processes_share_the_images_with_masks(run_script, segmentations, tmp_path, number, method, batch_size,
                                               pictures):
    more = ("--method", method, "--batch_size", batch_size, "--save_img")
    # On one thread, as the processes.
    code, out, err = run_script("compute_segmentations", *segmentations("one", *more))
    assert code == 0, err
    many = run(launch(number, "compute_segmentations", *segmentations("many", *more)))
    assert many.returncode == 0, many.stderr
    assert f"{number} processes, on cpu" in many.stderr
    assert "Warning" not in many.stderr
    assert many.stdout == out.replace(str(tmp_path / "one"), str(tmp_path / "many"))
    assert result(tmp_path / "one") == result(tmp_path / "many")
    assert len(result(tmp_path / "one")) == 4 + 11 * pictures  # the arrays, the sheet, the figures
