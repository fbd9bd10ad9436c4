"""Several processes, started as a cluster starts them, leave what one leaves."""
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT


def launch(number, script, *arguments):
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(number), f"{script}.py",
            *map(str, arguments)]


def run(command):
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, capture_output=True,
                          check=False, timeout=600)


def result(folder):
    """Bytes of every file but the times."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if "_time_" not in path.name}


def prs(images, output, *more):
    return ("--model", "emojiclip", "--dataset", "imagefolder", "--data_path", images, "--output_dir", output, "--device", "cpu",
            "--batch_size", 2, "--num_workers", 0, *more)


@pytest.mark.parametrize("number", [2, 3])
def test_processes_share_the_images_and_leave_the_same_bytes(folder_of_images, tmp_path, number):
    (folder_of_images / "cat" / "3.png").write_bytes(b"")
    one = run([sys.executable, "compute_prs.py", *map(str, prs(folder_of_images, tmp_path / "one", "--skip_bad_images"))])
    assert one.returncode == 0, one.stderr
    many = run(launch(number, "compute_prs", *prs(folder_of_images, tmp_path / "many", "--skip_bad_images")))
    assert many.returncode == 0, many.stderr
    assert f"{number} processes, on cpu" in many.stderr and many.stdout.count("14 images -> ") == 1
    assert f'"processes": {number}' in (tmp_path / "many" / "imagefolder_time_emojiclip.json").read_text()
    assert result(tmp_path / "one") == result(tmp_path / "many")
