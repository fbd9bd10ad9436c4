"""What a script imports before it says something: no more than it needs."""
import sys

import numpy as np
import pytest
import torch
from builders import ROOT, VARIANTS, picture, random_clip, run_command, write_classifier, write_run

from utils.decompose.dataset import BATCH_SIZES, default_batch_size
from utils.models.model import Model

HEAVY = ("torch", "open_clip", "transformers", "sklearn", "pandas", "matplotlib.pyplot")
CODE = """
import runpy, sys
class Said:  # a standard stream, which looks around at its first words
    seen = None
    def write(self, text):
        Said.seen = Said.seen or [name for name in {heavy!r} if name in sys.modules]
        {then}
    def flush(self): pass
there, sys.{stream} = sys.stdout, Said()
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(*(Said.seen or ["nothing"]), file=there)
"""


def imported(*command, heavy=HEAVY, stream="stdout", then="pass") -> list[str]:
    """What of `heavy` a script has imported when it prints its first line, and what it does `then`."""
    code = CODE.format(heavy=heavy, stream=stream, then=then)
    return run_command([sys.executable, "-c", code, *command], ROOT).stdout.split()


def test_a_step_that_reads_arrays_needs_neither_torch_nor_open_clip(tmp_path):
    rng = np.random.default_rng(0)
    write_run(tmp_path, "emoji", "m", {"attn": rng.normal(size=(6, 2, 2, 7)), "mlp": rng.normal(size=(6, 3, 7))},
              np.arange(6) % 2)
    write_classifier(tmp_path, "emoji", "m", rng.normal(size=(7, 2)))
    assert imported("compute_ablations.py", "--model", "m", "--dataset", "emoji",
                    "--input_dir", tmp_path) == ["nothing"]


@pytest.mark.parametrize("command", [
    ("train.py", "--model_name", "smollm2-135m", "--output_dir", "{folder}"),
    ("inference.py", "--model_name", "smollm2-135m", "--output_filepath", "{folder}/d.json"),
    ("inference.py", "--model_name", "smollm2-135m", "--output_filepath", "{folder}/d.json", "--score",
     "r-open-clip:emojiclip"),
    ("inference.py", "--score", "r-open-clip:emojiclip", "--descriptions", "{folder}/d.json")])
def test_ex2_says_what_it_begins_with_at_once(tmp_path, command):
    """Before it draws scenes, too. Its first line ends it here."""
    assert imported(*(word.format(folder=tmp_path) for word in command), heavy=(*HEAVY, "utils.data.scenes"),
                    stream="stderr", then="sys.exit()") == ["nothing"]


def test_a_heat_map_needs_no_transformers(tmp_path):
    picture(tmp_path / "x.png")
    assert imported("compute_heatmaps.py", "--model", "emojiclip", "--image", tmp_path / "x.png", "--text", "a dog",
                    "--output", tmp_path / "y.png", "--device", "cpu") == ["torch", "open_clip"]


def test_a_text_tower_of_transformers_has_what_it_needs():
    """In a process of its own, where open_clip was imported without transformers."""
    code = "from utils.light import open_clip, with_transformers\n" \
           "from open_clip import hf_model\n" \
           "assert hf_model.transformers is None\n" \
           "with_transformers()\n" \
           "tower = hf_model.HFTextEncoder('roberta-base', 8, pretrained=False, pooler_type='mean_pooler',\n" \
           "    proj_type='linear',\n" \
           "    config=hf_model.AutoConfig.for_model('roberta', vocab_size=50, hidden_size=16, num_hidden_layers=1,\n" \
           "        num_attention_heads=2, intermediate_size=16))\n" \
           "import torch\n" \
           "print(*tower(torch.ones(2, 5, dtype=torch.long) * 7).shape)\n"
    assert run_command([sys.executable, "-c", code], ROOT).stdout.split() == ["2", "8"]


@pytest.mark.parametrize("weights, size, device, expected", [
    (20, 224, "cpu", 64), (20, 224, "cuda", 256), (86, 224, "cpu", 32), (304, 224, "cuda", 64), (304, 336, "cpu", 8),
    (632, 224, "cuda", 32), (304, 518, "cuda", 8), (1800, 224, "cpu", 4)])
def test_the_default_batch_size_goes_by_tower_and_device_alone(weights, size, device, expected):
    tower = torch.nn.Linear(1000, weights * 1000, bias=False, device="meta")
    model = Model(name="m", source="", device=torch.device(device), network=tower, tower=tower, encode_image=tower,
                  preprocess=None, image_size=(size, size), class_token=True, prefix_tokens=1)
    assert default_batch_size(model) == expected
    assert list(BATCH_SIZES) == sorted(BATCH_SIZES)


def test_a_small_tower_on_a_processor_takes_64():
    clip = random_clip(**VARIANTS["plain"])
    model = Model(name="m", source="", device=torch.device("cpu"), network=clip, tower=clip.visual,
                  encode_image=clip.encode_image, preprocess=None, image_size=(32, 32), class_token=True,
                  prefix_tokens=1)
    assert default_batch_size(model) == 64
