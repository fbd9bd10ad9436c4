"""Fixtures: small random models with every parameter away from its neutral start, and scripts run in place."""
import importlib
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(1)

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VISION = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 3, "head_width": 12}
VARIANTS = {
    "plain": {},
    "quick_gelu": {"quick_gelu": True},
    "no_ln_pre": {"vision_cfg": {"no_ln_pre": True}},
    "layer_scale": {"vision_cfg": {"ls_init_value": 0.4}},
    "odd_size": {"vision_cfg": {"image_size": 35, "patch_size": 7, "layers": 2}},
    "cut_patches": {"vision_cfg": {"image_size": 37, "patch_size": 9}},
    "oblong": {"vision_cfg": {"image_size": [24, 40]}},
    "one_layer": {"vision_cfg": {"layers": 1}},
    "one_head": {"vision_cfg": {"head_width": 48}},
    "norm_after_pool": {"vision_cfg": {"final_ln_after_pool": True}},
    "custom_block": {"vision_cfg": {"block_type": "custom"}},
    "qk_norm_scaled_heads": {"vision_cfg": {"qk_norm": True, "scale_heads": True}},
}


def random_clip(seed: int = 0, **changes):
    """A small open_clip model in eval mode, every parameter moved at random."""
    import open_clip

    torch.manual_seed(seed)
    vision = VISION | changes.pop("vision_cfg", {})
    model = open_clip.CLIP(embed_dim=20, vision_cfg=vision, text_cfg=TEXT, **changes).eval().requires_grad_(False)
    for parameter in model.visual.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


@pytest.fixture(params=list(VARIANTS))
def variant(request):
    """Each kind of image tower in turn: (name, model)."""
    return request.param, random_clip(**VARIANTS[request.param])


def load_script(name: str):
    """The module of a script in the root; inspect.py under another name, as its own is the standard library's."""
    if name != "inspect":
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location("inspect_script", ROOT / "inspect.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
        assert len(lines) == 1 and "Traceback" not in err, err
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

    from utils import cli
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
        module = importlib.import_module(name)
        module.main(cli.parse(module.get_args_parser(), arguments))
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


def save_adapter(base: str, folder) -> str:
    """Save a LoRA adapter of that base, both of its matrices random; an untrained one would change nothing."""
    from peft import LoraConfig, get_peft_model

    from utils.language import loading

    torch.manual_seed(1)
    model = get_peft_model(loading.load_model(base, torch.float32), LoraConfig(r=4, task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    model.save_pretrained(folder)
    return str(folder)
