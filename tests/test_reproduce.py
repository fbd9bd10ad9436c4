"""Every table of the papers from nothing to its page: small fakes of the downloads, and small random models in place of
those that are downloaded. Settings are cut down, steps are not."""
import csv
import json
import pickle
import shlex

import builders
import h5py
import numpy as np
import pytest
import torch
import yaml
from builders import TEXT, VISION, WRITERS, call_script, load_script, random_clip, save_timm, write_flat_imagenet
from fault_server import FaultServer
from markupsafe import escape
from PIL import Image
from safetensors.torch import save_file
from scipy.io import savemat

from utils.data import captions, datasets, loader
from utils.data.downloads import LIST
from utils.inputs import read_yaml
from utils.report import experiments

pytestmark = pytest.mark.long
CLASSES = [int(label) for label in np.random.default_rng(5).integers(0, 1000, 70)]
TOWER = VISION | {"layers": 4}
WITHOUT_FIGURES = {  # of random models, or where the truth is not known: keys that begin so have no number of ours
    "component_scores": ("rankings.position", "rankings.object", "rankings.size", "rankings.count", "rankings.style",
                         "truth", "largest_share", "retrieval"),
    "component_ablation": ("blocks.4", "cosine"),  # of small models, and of the CLIP itself
    "textspan": ("kappa", "agreement", "chance"), "beyond_segmentation": ("gradcam", "chefer"),
    "ex2": ("reward.before",)}


def noise(path):
    """A picture of its own for every name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(sum(str(path).encode()))
    Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)


def write_waterbirds(root):
    folder = root / "waterbird_complete95_forest2water2"
    rows = [[i, f"001.A/{i}.jpg", i % 2, i // 2 % 3, i // 6 % 2, "x"] for i in range(48)]
    for row in rows:
        noise(folder / row[1])
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["img_id", "img_filename", "y", "split", "place", "place_filename"], *rows])


def write_cifar(root):
    rng = np.random.default_rng(0)
    (root / "cifar-100-python").mkdir(parents=True)
    for name in ("train", "test"):
        labels = [i % 4 for i in range(24)]
        pixels = rng.integers(0, 255, (24, 3072), dtype=np.uint8)
        (root / "cifar-100-python" / name).write_bytes(pickle.dumps({"data": pixels, "fine_labels": labels}))
    (root / "cifar-100-python" / "meta").write_bytes(pickle.dumps({"fine_label_names": ["a", "b", "c", "d"]}))


def write_flowers(root):
    for i in range(1, 105):
        noise(root / "jpg" / f"image_{i:05d}.jpg")
    savemat(root / "imagelabels.mat", {"labels": np.array([[*range(1, 103), 1, 1]], dtype=np.uint8)})
    savemat(root / "setid.mat", {name: np.array([ids], dtype=np.uint16)
                                 for name, ids in (("trnid", range(1, 103)), ("valid", [103]), ("tstid", [104]))})


def write_segmentation(root):
    root.mkdir()
    rng = np.random.default_rng(1)
    with h5py.File(root / "gtsegs_ijcv.mat", "w", userblock_size=512) as file:
        value, refs = file.create_group("value"), file.create_group("#refs#")
        for name in ("img", "gt"):
            value.create_dataset(name, (6, 1), h5py.ref_dtype)
        for i in range(6):
            image = refs.create_dataset(f"image{i}", data=rng.integers(0, 255, (3, 50, 40), dtype=np.uint8))
            mask = refs.create_dataset(f"mask{i}", data=(rng.random((50, 40)) > 0.5).astype(np.uint8))
            holder = refs.create_dataset(f"holder{i}", (1, 1), h5py.ref_dtype)
            holder[0, 0] = mask.ref
            value["img"][i, 0], value["gt"][i, 0] = image.ref, holder.ref


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    """A folder with a small fake of every download, in its own layout."""
    root, patch = tmp_path_factory.mktemp("downloads"), pytest.MonkeyPatch()
    patch.setattr(builders, "picture", noise)
    write_flat_imagenet(root / "imagenet", CLASSES, noise)
    for label in range(1000):
        noise(root / "imagenet" / "train" / f"n{label:08d}" / "0.JPEG")
    for name, write in WRITERS.items():
        if name in datasets.NAMES and name not in ("imagefolder", "binary_waterbirds", "flowers"):
            (root / name).mkdir()
            write(root / name)
    builders.write_caltech(root / "caltech101")
    write_waterbirds(root / "binary_waterbirds")
    write_flowers(root / "flowers")
    write_cifar(root / "CIFAR100")
    write_segmentation(root / "imagenet_seg")
    patch.undo()
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_lm):
    """Folders of small models: a CLIP, a ViT and a Swin of timm; and a language model's settings of training."""
    folder = tmp_path_factory.mktemp("models")
    clip = folder / "tinyclip"
    clip.mkdir()
    config = {"embed_dim": 20, "vision_cfg": TOWER, "text_cfg": TEXT}
    (clip / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file({name: value.contiguous() for name, value in random_clip(vision_cfg=TOWER).state_dict().items()},
              clip / "open_clip_model.safetensors")
    settings = {"model_name": tiny_lm, "steps": 1, "batch_size": 8, "per_device_batch_size": 4, "minibatch_size": 8,
                "num_generations": 2, "epochs_per_batch": 1, "max_new_tokens": 8, "num_images_for_reward": 2,
                "num_concepts": 2}
    (folder / "train.yaml").write_text(yaml.safe_dump(settings))
    (folder / "question.txt").write_text("What is {concept}?\n")
    return {"clip": clip, "training": folder / "train.yaml", "question": folder / "question.txt",
            "deit": save_timm(folder, "vit"), "swin": save_timm(folder, "swin")}


def cut_down(name: str, models: dict) -> dict:
    """A table with small models for its own."""
    table = experiments.read(name)
    clip = {"weights": f"--model local-dir:{models['clip']}", "model": "tinyclip", "pretrained": "none"}
    if name.startswith(("beyond", "component")):
        own = {"clip": "tinyclip", "of_clip": f"--model local-dir:{models['clip']}", "training": "--epochs 1"}
        variants = {family.name: own | {"source": f"timm:local-dir:{family}", "name": family.name}
                    for family in (models["deit"], models["swin"])}
        variants["CLIP"] = table["variants"]["CLIP"] | {"weights": own["of_clip"], "of_clip": own["of_clip"],
                                                        "reads": own["of_clip"], "mapped": "tinyclip", "cue": "",
                                                        "reload": ""}
    elif name in ("probe", "sith"):
        variants = {variant: own | clip for variant, own in table["variants"].items()}
    elif name == "ex2":
        small = {"training": f"--config {models['training']} --questions {models['question']}", "short": "tinyclip",
                 "generating": f"--num_concepts 2 --questions {models['question']} --max_new_tokens 8 --backend hf "
                               "--num_images_for_reward 2", "vlm": f"r-open-clip:local-dir:{models['clip']}"}
        variants = {own["set"]: own | small for own in table["variants"].values()}
    else:
        variants = {"tinyclip": clip | {"early": 1, "how": "--heads 2.0,3.1", "classes": "emoji_descriptions",
                                        "class_dir": "text_descriptions", "write_classes": ""}}
        if name == "segmentation":
            variants["tinyclip"]["classes"] = "imagenet"
    return table | {"variants": variants, "published": {}}


@pytest.mark.parametrize("name", ["ablation", "beyond_segmentation", "beyond_waterbirds", "component_ablation",
                                  "component_scores", "ex2", "probe", "segmentation", "sith", "textspan", "waterbirds"])
def test_every_table_passes_from_nothing_to_its_page(name, downloads, models, run_script, tmp_path, monkeypatch):
    (tmp_path / "tables").mkdir()
    table = cut_down(name, models)
    (tmp_path / "tables" / f"{name}.yaml").write_text(yaml.safe_dump(table, sort_keys=False))
    script = load_script("scripts.reproduce")

    def start(words, log):
        words = [word for word in words if word != "-m"]
        try:
            call_script(words[0].removesuffix(".py"), *words[1:])
        except Exception as error:
            with open(log, "a") as file:
                file.write(f"error: {shlex.join(words)}: {error!r}\n")
            return 2
        return 0

    monkeypatch.setattr(script, "start", start)
    monkeypatch.setattr(loader, "worker_count", lambda wanted: 0)
    templates = captions.templates("imagenet")[:2]
    monkeypatch.setattr(captions, "templates", lambda dataset: templates)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)  # these are not the real files
    monkeypatch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda self: True)
    torch.manual_seed(0)
    with FaultServer() as server:
        monkeypatch.setenv("INSPECTOR", f"--base_url {server.url} --model judge")
        code, _, err = run_script("scripts.reproduce", name, "--experiments", tmp_path / "tables", "--data_root",
                                  downloads, "--output_dir", tmp_path / "out")
    assert code == 0, err
    found = json.loads((tmp_path / "out" / f"{name}.json").read_text())
    assert found["variants"] == list(table["variants"])
    shown = {(row["variant"], row["key"]) for row in found["rows"] if row["ours"] is not None}
    values = dict.fromkeys([*read_yaml(str(LIST)), "out", "inspector"], "x")
    assert [figure.key for variant, own in experiments.variants(table, False, values).items()
            for figure in experiments.figures(table, own) if (variant, figure.key) not in shown
            and not figure.key.startswith(WITHOUT_FIGURES.get(name, ()))] == []
    assert all(runs and runs[0] for runs in found["runs"].values())
    page = (tmp_path / "out" / "index.html").read_text()
    assert f'id="{name}"' in page
    assert all(f"<td>{escape(row['name'])}</td>" in page for row in found["rows"])
