"""Fixtures: small random models with every parameter away from its neutral start, and scripts run in place."""
import sys

import numpy as np
import pytest
import torch
from builders import ROOT, VARIANTS, call_script, load_script, random_clip, save_adapter

torch.set_num_threads(1)


@pytest.fixture(params=list(VARIANTS))
def variant(request):
    """Each kind of image tower in turn: (name, model)."""
    return request.param, random_clip(**VARIANTS[request.param])


@pytest.fixture
def run_script(monkeypatch, capsys):
    """Run a script's main as the command line does: returns (exit code, stdout, stderr)."""
    def call(name: str, *arguments) -> tuple[int, str, str]:
        from utils import cli

        module = load_script(name)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.run(module.main, module.get_args_parser())
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def refused(run_script):
    """Run a script that must refuse: exit code 2 and one line. Returns that line."""
    def call(name: str, *arguments) -> str:
        code, _, err = run_script(name, *arguments)
        lines = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
        assert code == 2, err
        assert len(lines) == 1, err
        assert "Traceback" not in err, err
        assert err.rstrip().splitlines()[-1] == lines[0]
        return lines[0]

    return call


@pytest.fixture
def folder_of_images(tmp_path):
    """A folder of three class folders with five small PNG each, one of them odd-sized and grey."""
    from PIL import Image

    rng = np.random.default_rng(0)
    root = tmp_path / "images"
    for name in ("big_dog", "cat", "owl"):
        (root / name).mkdir(parents=True)
        for i in range(5):
            size = (41, 57) if i else (33, 20)
            image = Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8))
            (image.convert("L") if i == 1 else image).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def emoji_run(tmp_path_factory):
    """The embedded model's arrays on 130 images of the embedded data, made by the scripts themselves."""
    from PIL import Image

    from utils.data import scenes

    folder = tmp_path_factory.mktemp("emoji_run")
    drawn = scenes.sample_scenes(130, seed=7)
    images, _ = scenes.draw(drawn, 64)
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        place = folder / "images" / scenes.concepts()[drawn[i].object]["name"].replace(" ", "_")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{i:04d}.png")
    common = ["--model", "emojiclip", "--output_dir", str(folder / "out"), "--device", "cpu"]
    data = ["--dataset", "imagefolder", "--data_path", str(folder / "images")]
    pool = folder / "texts" / "pool.txt"
    pool.parent.mkdir()
    lines = (ROOT / "text_descriptions" / "emoji_descriptions.txt").read_text().splitlines()
    pool.write_text("\n".join(lines[200:]) + "\n")
    for name, arguments in (("compute_prs", [*common, *data, "--batch_size", "32", "--num_workers", "0"]),
                            ("compute_text_projection", [*common, *data]),
                            ("compute_text_set_projection", [*common, "--data_path", str(pool)])):
        call_script(name, *arguments)
    return folder


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory):
    """A folder with a random language model of two small layers, and SmolLM2's tokenizer with its chat template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from utils.language import loading

    folder = tmp_path_factory.mktemp("tiny_lm")
    tokenizer = loading.load_tokenizer("smollm2-135m")
    torch.manual_seed(0)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                 num_attention_heads=2, initializer_range=0.3, **special)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_adapter(tiny_lm, tmp_path_factory):
    """A folder with a LoRA adapter of `tiny_lm` that changes what it says."""
    return save_adapter(tiny_lm, tmp_path_factory.mktemp("tiny_adapter"))


