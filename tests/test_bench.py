"""The benchmarks, at sizes that take seconds."""
import re
import shlex

import pytest
from builders import load_script

from utils import cli


@pytest.fixture
def bench(run_script):
    """Run a benchmark: what it prints."""
    def call(*arguments) -> str:
        code, out, err = run_script("scripts.bench", *arguments)
        assert code == 0, err
        return out

    return call


SMALL = ("--model", "emojiclip", "--device", "cpu", "--batch_size", 2)


def test_prs(bench):
    out = bench("prs", *SMALL, "--images", 5)
    assert out.startswith("emojiclip, 5 images in batches of 2, cpu, ")
    assert re.search(r"encode_image +\d+\.\d\d ms an image\n  compute_prs +\d+\.\d\d ms an image\n", out)
    assert re.search(r"  ratio +\d+\.\d{3}\n", out)
    assert float(re.search(r"largest error +(\S+)", out)[1]) < 1e-5


def test_segmentation(bench):
    out = bench("segmentation", *SMALL, "--repeats", 2)
    assert re.search(r"heat maps +\d+\.\d\d ms an image\n  ratio +\d+\.\d{3}\n", out)


def test_inside(bench):
    out = bench("inside", *SMALL, "--repeats", 1)
    assert "all neurons of layers 2, 3, 4" in out
    assert re.search(r"terms of texts +\d+\.\d\d ms an image\n  ratio +\d+\.\d{3}\n", out)


def test_page(bench):
    out = bench("page", "--model", "emojiclip", "--device", "cpu", "--repeats", 1)
    assert out.startswith("emojiclip, ")
    assert [re.match(r"\| ([a-z ]+) \| \d+\.\d\d \| \d+\.\d\d \|", line)[1] for line in out.splitlines()[3:]] == [
        "a picture and three texts", "a bar clicked", "a word clicked"]


def test_components(bench):
    out = bench("components", "--models", "vit_tiny_patch16_224", "--batch_size", 1, "--repeats", 1, "--threads", 1)
    row = out.splitlines()[1].split()
    assert row[0] == "vit_tiny_patch16_224"
    assert int(row[1]) == 12 * 3 + 12 + 1
    assert float(row[-1]) < 1e-5


def test_coverage(bench):
    lines = bench("coverage", "--only", "ViT-S-32-alt", "resnet50", "ijepa", "--repeats", 1).splitlines()
    rows = {name: row for row in lines[1:] for name in ("ViT-S-32-alt", "resnet50", "ijepa") if name in row}
    for name, library, heads in (("ViT-S-32-alt", "open_clip", 6), ("ijepa", "transformers", 12)):
        found = rows[name].split()
        assert found[0] == library
        assert int(found[1]) == 2 * heads + 2 + 1
        assert float(found[2]) < 1e-5
    assert "refused  resnet50: aten.relu_ in layer4.0.act3" in rows["resnet50"]
    assert set(lines[4:]) == {"open_clip: 1 towers of 2 models exact", "timm: 1 towers of 1 models refused: aten.relu_",
                               "transformers: 1 towers of 1 models exact"}


def test_textspan(bench):
    out = bench("textspan", "--images", 60, "--width", 16, "--texts", 40, "--texts_per_head", 3, "--rank", 8)
    assert "same texts in the same order: True" in out


def test_scale_runs_scripts_that_exist_with_options_that_they_take():
    from scripts import bench_scripts

    for name, command in bench_scripts.script_commands("/images", "/output").items():
        words = shlex.split(command)
        assert words[0] == f"{name}.py"
        cli.parse(load_script(name).get_args_parser(), words[1:])


def test_what_the_user_can_mend(refused, tmp_path):
    assert "--images 2: give more than --batch_size" in refused("scripts.bench", "prs", *SMALL, "--images", 2)
    assert "BENCHMARK: invalid choice: 'all'" in refused("scripts.bench", "all")
    path = tmp_path / "s.yaml"
    path.write_text("repeats: 0\n")
    assert "repeats is 0; it must be at least 1" in refused("scripts.bench", "segmentation", "--config", path)
    path.write_text("texts: 5\n")
    assert "unknown option texts" in refused("scripts.bench", "segmentation", "--config", path)
