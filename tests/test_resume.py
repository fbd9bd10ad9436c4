"""Runs that are cut off: killed, interrupted, on a full disk, refused; and what --resume makes of them."""
import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from builders import ROOT
from PIL import Image

from utils.runs import files
from utils.runs.writer import RunWriter

KILLS = int(os.environ.get("KILLS", "12"))  # of the test that kills at random moments

# A fork server has imported everything, so that a run begins at once, and most kills meet it at work.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch", "open_clip", "accelerate", "utils.decompose.dataset",
                                  "utils.models.open_clip", "utils.runs.writer"])


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 600 small pictures in four classes."""
    root, rng = tmp_path_factory.mktemp("data") / "images", np.random.default_rng(0)
    for i in range(600):
        place = root / f"class {i % 4}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(place / f"{i:03d}.png")
    return root


def arguments(images, output, *more):
    return ["--model", "emojiclip", "--dataset", "imagefolder", "--data_path", str(images), "--output_dir", str(output),
            "--device", "cpu", "--batch_size", "2", *map(str, more)]


def compute_prs(given, log):
    """A run of the script in a process of its own, whose output goes to the file `log`."""
    import torch

    torch.set_num_threads(1)
    os.setpgid(0, 0)
    # tests that run in a shell's background are told to ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    sys.argv = ["compute_prs.py", *given]
    from builders import load_script

    from utils import cli

    module = load_script("compute_prs")
    cli.run(module.main, module.get_args_parser())


def start(given, log):
    process = PROCESSES.Process(target=compute_prs, args=(given, str(log)))
    process.start()
    return process


def result(folder):
    """Bytes of every file of a run but its times."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if "_time_" not in path.name}


def until(process, condition, seconds=120):
    """Wait until the process has ended or the condition holds."""
    deadline = time.time() + seconds
    while process.is_alive() and not condition() and time.time() < deadline:
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """The files of a run in one piece, by name."""
    folder = tmp_path_factory.mktemp("whole")
    log = folder.with_suffix(".log")
    process = start(arguments(images, folder / "o"), log)
    process.join()
    assert process.exitcode == 0, log.read_text()
    return result(folder / "o")


@pytest.mark.long
def test_runs_killed_at_random_moments_end_with_the_same_bytes(images, whole, tmp_path):
    """Kills come at any moment: before the first batch, at work, while files are renamed. What is under a final name is
    complete at all of them."""
    rng, kills, runs, resumed = random.Random(0), 0, 0, 0
    while kills < KILLS:
        output, log = tmp_path / str(runs), tmp_path / "log"
        runs += 1
        for _ in range(100):
            process = start(arguments(images, output, "--resume", "--num_workers", rng.choice((0, 0, 0, 1))), log)
            journals = len(list(output.glob("*journal*")))
            if rng.random() < 0.7:  # wait until it is at work
                until(process, lambda folder=output, before=journals: len(list(folder.glob("*journal*"))) > before)
            process.join(rng.uniform(0, 3))
            if process.is_alive():
                process.kill()
                process.join()
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # a worker that had not yet seen its parent never misses it
                kills += 1
            resumed += "resuming at image " in log.read_text()
            for path in output.glob("*.npy"):
                assert path.read_bytes() == whole[path.name], f"{path} is incomplete after kill {kills}"
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL, log.read_text()
        assert result(output) == whole
    print(f"{kills} kills, {runs} runs, {resumed} times resumed")
    assert resumed


@pytest.mark.parametrize("told, code, words",
                         [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "told to end")])
def test_a_run_told_to_end_stops_cleanly_and_goes_on(images, whole, tmp_path, told, code, words):
    output, log = tmp_path / "o", tmp_path / "log"
    process = start(arguments(images, output), log)
    until(process, lambda: list(output.glob("*journal*")))
    os.kill(process.pid, told)
    process.join(60)
    # a worker that is cut off in its answer may have the last word
    lines = log.read_text().replace("\r", "\n").splitlines()
    assert process.exitcode == code
    assert sum(line.startswith(f"error: {words}") for line in lines) == 1
    assert all(path.name.endswith(".partial") for path in output.iterdir())
    assert not list(output.glob("*lock*"))
    process = start(arguments(images, output, "--resume"), log)
    process.join(120)
    assert process.exitcode == 0
    assert result(output) == whole
    place = int(log.read_text().partition("resuming at image ")[2].split()[0])
    assert 0 < place < 600


def test_a_run_that_is_complete_is_recognised_and_a_changed_option_refused(run_script, refused, images, tmp_path):
    short = sorted((images / "class 0").iterdir())[:6]
    data = tmp_path / "images" / "a"
    data.mkdir(parents=True)
    for path in short:
        (data / path.name).write_bytes(path.read_bytes())
    given = arguments(data.parent, tmp_path / "o", "--num_workers", 0)
    assert run_script("compute_prs", *given, "--resume")[0] == 0  # nothing to go on with: it begins
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "o").iterdir()}
    code, out, _ = run_script("compute_prs", *given, "--resume")
    assert code == 0
    assert "is complete; nothing to do" in out
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "o").iterdir()}
    assert "but save_dtype was float32 and is float16; give the same" in refused(
        "compute_prs", *given, "--resume", "--save_dtype", "float16")
    mlp = tmp_path / "o" / "imagefolder_mlp_emojiclip.npy"
    content = mlp.read_bytes()
    mlp.unlink()  # not complete: it begins anew
    assert run_script("compute_prs", *given, "--resume")[0] == 0
    assert mlp.read_bytes() == content
    (data / short[0].name).write_bytes(short[1].read_bytes())
    assert "data_sha256 was" in refused("compute_prs", *given, "--resume")


def test_a_second_run_in_the_same_place_is_refused(refused, images, tmp_path):
    output, log = tmp_path / "o", tmp_path / "log"
    process = start(arguments(images, output), log)
    until(process, lambda: list(output.glob("*journal*")))
    line = refused("compute_prs", *arguments(images, output, "--num_workers", 0))
    assert "another run is writing imagefolder_emojiclip there" in line
    process.join(120)
    assert process.exitcode == 0
    assert not list(output.glob("*.partial"))


def test_a_data_set_that_changes_meanwhile_is_noticed(images, tmp_path):
    data, log = tmp_path / "images" / "a", tmp_path / "log"
    data.mkdir(parents=True)
    for path in sorted(images.glob("class 0/*.png")):
        (data / path.name).write_bytes(path.read_bytes())
    process = start(arguments(data.parent, tmp_path / "o"), log)
    until(process, lambda: list((tmp_path / "o").glob("*.npy.partial")))
    os.utime(sorted(data.iterdir())[0])
    process.join(120)
    assert process.exitcode == 2
    assert "changed while it was read" in log.read_text()
    assert not list((tmp_path / "o").glob("*.npy"))


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to mount a small disk: a full one was not covered")
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(refused, run_script, folder_of_images,
                                                                        tmp_path):
    given = arguments(folder_of_images, tmp_path / "o", "--num_workers", 0)
    assert run_script("compute_prs", *arguments(folder_of_images, tmp_path / "whole", "--num_workers", 0))[0] == 0
    (tmp_path / "o").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path / "o"], check=False).returncode:
        pytest.skip("cannot mount a small disk here: a full one was not covered")
    try:
        filler = tmp_path / "o" / "something"
        filler.write_bytes(bytes(800_000))
        assert "GB are free; free some space" in refused("compute_prs", *given)  # seen at the first batch
        for path in (tmp_path / "o").glob("*.partial"):
            path.unlink()
        assert list((tmp_path / "o").iterdir()) == [filler]
        filler.write_bytes(bytes(1_015_000))
        assert "No space left on device; free some space" in refused("compute_prs", *given)
        assert all(path == filler or path.name.endswith(".partial") for path in (tmp_path / "o").iterdir())
        filler.unlink()
        assert run_script("compute_prs", *given, "--resume")[0] == 0
        assert result(tmp_path / "o") == result(tmp_path / "whole")
    finally:
        subprocess.run(["umount", tmp_path / "o"], check=True)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to mount a read-only folder: one was not covered")
def test_a_read_only_folder_is_one_line(refused, folder_of_images, tmp_path):
    (tmp_path / "o").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", tmp_path / "o"], check=False).returncode:
        pytest.skip("cannot mount a read-only folder here: it was not covered")
    try:
        line = refused("compute_prs", *arguments(folder_of_images, tmp_path / "o", "--num_workers", 0))
        assert f"nothing can be written to {tmp_path / 'o'}; choose another folder" in line
    finally:
        subprocess.run(["umount", tmp_path / "o"], check=True)


def test_nan_in_a_models_output_names_the_image(refused, folder_of_images, tmp_path, monkeypatch):
    from utils.decompose.decomposer import Decomposer

    real = Decomposer.terms

    def spoiled(self, pixels):
        terms = real(self, pixels)
        if len(pixels) == 2 and not spoiled.calls:
            terms.values = terms.values.clone()
            terms.values[1] = float("nan")
        spoiled.calls += len(pixels) == 2
        return terms

    spoiled.calls = -1  # the second batch of two
    monkeypatch.setattr(Decomposer, "terms", spoiled)
    line = refused("compute_prs", *arguments(folder_of_images, tmp_path / "o", "--num_workers", 0))
    assert "the model gives NaN or infinity for" in line
    assert "big_dog/3.png" in line


def test_a_run_goes_on_whatever_its_split_is_called(tmp_path):
    for split in ("val[1]", "a b*", "?"):
        manifest = files.manifest_path(tmp_path, f"imagefolder_{split}", "m")
        path = files.term_path(tmp_path, f"imagefolder_{split}", "attn", "m")
        for number in range(2):
            with RunWriter(manifest, {"split": split}, 4, 2, resume=True) as writer:
                assert writer.left == [0, 1][number:]
                writer.write(number, 2, {path: (np.full((2, 3), number), "float32")}, [])
                if number:
                    writer.finish({}, {})
        assert np.load(path)[:, 0].tolist() == [0, 0, 1, 1]
    assert not list(tmp_path.glob("*.partial"))


def test_an_interrupted_renaming_is_finished(run_script, folder_of_images, tmp_path, monkeypatch):
    """The moment that a kill hardly ever meets: some files have their final names, and others have not."""
    from utils.runs import writer

    given = arguments(folder_of_images, tmp_path / "o", "--num_workers", 0)
    assert run_script("compute_prs", *arguments(folder_of_images, tmp_path / "whole", "--num_workers", 0))[0] == 0
    real, names = os.replace, []

    def cut_off(source, target):
        names.append(str(target))
        if len([name for name in names if name.endswith(".npy")]) == 3:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(writer.os, "replace", cut_off)
    assert run_script("compute_prs", *given)[0] == 130
    monkeypatch.undo()
    assert len(list((tmp_path / "o").glob("*.npy"))) == 2
    assert not (tmp_path / "o" / "imagefolder_emojiclip.json").exists()
    assert run_script("compute_prs", *given, "--resume")[0] == 0
    assert result(tmp_path / "o") == result(tmp_path / "whole")


def test_gaps_of_bad_images_are_closed(run_script, folder_of_images, tmp_path):
    (folder_of_images / "big_dog" / "1.png").write_bytes(b"")
    (folder_of_images / "cat" / "0.png").write_bytes(b"no image")
    given = arguments(folder_of_images, tmp_path / "o", "--num_workers", 0, "--skip_bad_images")
    assert run_script("compute_prs", *given)[0] == 0
    manifest = json.loads((tmp_path / "o" / "imagefolder_emojiclip.json").read_text())
    assert manifest["skipped_indices"] == [1, 5]
    assert manifest["images"] == 13
    for name in ("big_dog/1.png", "cat/0.png"):
        (folder_of_images / name).unlink()
    assert run_script("compute_prs",
                      *arguments(folder_of_images, tmp_path / "w", "--num_workers", 0, "--batch_size", 1))[0] == 0
    for what in ("attn", "mlp", "cls_attn"):
        found, alone = (np.load(tmp_path / folder / f"imagefolder_{what}_emojiclip.npy") for folder in ("o", "w"))
        np.testing.assert_allclose(found, alone, atol=1e-6)
    assert np.load(tmp_path / "o" / "imagefolder_labels.npy").tolist() == [0] * 4 + [1] * 4 + [2] * 5
