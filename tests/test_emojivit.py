"""The second embedded model: what its card promises, and the script that trains such a model."""
import csv
import json
import shutil

import pytest
import timm
import torch
from builders import ROOT
from timm.data import create_transform, resolve_model_data_config

from utils.data import datasets, loader, scenes

FOLDER = ROOT / "models" / "emojivit"


@pytest.fixture(scope="module")
def model():
    return timm.create_model(f"local-dir:{FOLDER}", pretrained=True).eval().requires_grad_(False)


def card() -> dict[str, float]:
    """What the card's table says: accuracies in percent."""
    lines = (FOLDER / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [line.split("|") for line in lines if ", emoji" in line]
    return {row[1].strip(): float(row[2]) for row in rows if len(row) == 5}


def test_timm_loads_it_and_gives_the_class_tokens_representation(model):
    bare = timm.create_model(f"local-dir:{FOLDER}", pretrained=True, num_classes=0).eval().requires_grad_(False)
    assert type(bare) is timm.models.VisionTransformer
    assert len(bare.blocks) == 6
    assert [block.attn.num_heads for block in bare.blocks] == [6] * 6
    pixels = torch.rand(2, 3, 64, 64)
    representation = bare(pixels)
    assert representation.shape == (2, 192)
    torch.testing.assert_close(representation, bare.forward_features(pixels)[:, 0])
    assert model(pixels).shape == (2, 260)
    torch.testing.assert_close(model.head(representation), model(pixels))


def test_timms_own_transform_crops_nothing(model):
    from PIL import Image

    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    picture = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8)
    torch.testing.assert_close(transform(Image.fromarray(picture.numpy())), picture.permute(2, 0, 1) / 127.5 - 1)
    marked = Image.new("RGB", (128, 128))
    marked.paste((255, 255, 255), (0, 0, 128, 6))  # a stripe along the edge is still there
    assert transform(marked).shape == (3, 64, 64)
    assert transform(marked)[:, 0].min() > 0.9


def test_the_model_is_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 10e6


def scores(model, name: str, number: int) -> tuple[torch.Tensor, datasets.Images]:
    """The classifier's scores [number, 260] of the first images of an embedded data set, and the data set."""
    images = datasets.load_images(name, image_size=64)
    images.samples.drawn = images.samples.drawn[:number]
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    return torch.cat([model(pixels) for pixels, *_ in loader.batches(images, transform, 130, num_workers=0)]), images


def test_it_names_objects_as_well_as_its_card_says(model):
    found, images = scores(model, "emoji", 520)
    truth = torch.tensor([scene.object for scene in images.scenes[:520]])
    assert abs(100 * (found.argmax(dim=1) == truth).float().mean() - card()["object, emoji"]) < 4


def test_it_leans_on_the_background_as_its_card_says(model):
    found, images = scores(model, "emoji_spurious", 800)
    habitats = [concept["habitat"] for concept in scenes.concepts()]
    best = torch.stack([found[:, [habitat == kind for habitat in habitats]].amax(dim=1)
                        for kind in scenes.HABITATS], dim=1)
    right = best.argmax(dim=1) == torch.tensor(images.samples.labels)
    named = found.argmax(dim=1) == torch.tensor([scene.object for scene in images.scenes])
    own = torch.tensor(images.samples.labels) == torch.tensor(images.places)
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for background, rows in (("its own kind's", own), ("the other kind's", ~own)):
        line = next(line for line in text.splitlines() if line.startswith(f"| {background} |"))
        for written, measured in zip(line.split("|")[2:4], (right, named)):
            assert abs(float(written) - 100 * measured[rows].float().mean()) < 0.6, line  # rounding may tip a scene
    assert right[own].float().mean() - right[~own].float().mean() > 0.1  # there is something to repair


def test_three_steps_of_training_leave_a_model_that_loads(run_script, tmp_path):
    shutil.copy(FOLDER / "config.json", tmp_path)
    code, out, err = run_script("models.emojivit.train", "--output_dir", tmp_path, "--steps", 3, "--batch_size", 64,
                                "--eval_every", 2, "--eval_scenes", 40, "--seed", 3)
    assert code == 0, err
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", "training_log.csv",
                                                          "training_curve.png", "training.json"}
    assert [row["step"] for row in csv.DictReader((tmp_path / "training_log.csv").open())] == ["2", "3"]
    training = json.loads((tmp_path / "training.json").read_text())
    assert set(training["measured"]) == set(card())
    assert training["settings"]["seed"] == 3
    assert all(f"| {name} | {value:.1f} |" in out for name, value in training["measured"].items())
    torch.manual_seed(3)
    start = timm.create_model(f"local-dir:{tmp_path}").state_dict()
    trained = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).state_dict()
    moved = {name: (trained[name] - start[name]).abs().max().item() for name in start}
    assert min(moved.values()) > 0
    assert max(moved.values()) < 0.1
