"""What tests are made from: small random models, runs on disk, pictures and data sets, and calls of scripts."""
import importlib
import importlib.util
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.io import savemat

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [path.stem for path in sorted(ROOT.glob("*.py"))] + [
    ".".join(path.relative_to(ROOT).with_suffix("").parts) for folder in ("scripts", "models", "data")
    for path in sorted((ROOT / folder).rglob("*.py")) if "def get_args_parser()" in path.read_text(encoding="utf-8")]


# Scripts

def load_script(name: str):
    """The module of a script in the root; inspect.py under another name, as its own is the standard library's."""
    if name != "inspect":
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location("inspect_script", ROOT / "inspect.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call_script(name: str, *arguments) -> None:
    """Run a script's main in this process, for what it writes."""
    from utils import cli

    module = load_script(name)
    module.main(cli.parse(module.get_args_parser(), [str(argument) for argument in arguments]))


def run_command(command: list, folder, **variables) -> subprocess.CompletedProcess:
    """Run from another folder than the repository, without OpenAI's key."""
    environment = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    done = subprocess.run([str(word) for word in command], cwd=folder, capture_output=True, text=True, timeout=2400,
                          env=environment | {name: str(value) for name, value in variables.items()})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def runner_copy(name: str, folder) -> Path:
    """A copy of a runner of scripts/ whose python prints the words it is called with, a call a line; python -c runs."""
    (folder / "scripts").mkdir()
    (folder / "scripts" / "setup.sh").touch()
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"""#!/usr/bin/env bash
[ "$1" = -c ] && exec {shlex.quote(sys.executable)} "$@"
printf '%q ' "$@"; echo
""")
    python.chmod(0o755)
    return Path(shutil.copy(ROOT / "scripts" / name, folder / "scripts"))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


# CLIPs of open_clip

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


def random_images(size, number: int = 3, seed: int = 1) -> torch.Tensor:
    """Images [number, 3, height, width]; `size` is (height, width), or one number for both."""
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(number, 3, height, width, generator=torch.Generator().manual_seed(seed))


def images_for(model, number: int = 3, seed: int = 1) -> torch.Tensor:
    """Images of the size that a CLIP takes."""
    return random_images(model.visual.image_size, number, seed)


# Models of timm

VIT = {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 48, "num_heads": 4}
SWIN = {"img_size": 56, "depths": (2, 2, 1), "embed_dim": 24, "num_heads": (2, 2, 4), "window_size": 7}
MAXVIT = {"img_size": 64, "depths": (1, 2), "embed_dim": (32, 64)}
FAMILIES = {
    "vit": ("vit_tiny_patch16_224", VIT),
    "vit_one_block": ("vit_tiny_patch16_224", VIT | {"depth": 1, "num_heads": 1}),
    "vit_average": ("vit_tiny_patch16_224", VIT | {"global_pool": "avg"}),
    "vit_average_norm_first": ("vit_tiny_patch16_224",
                               VIT | {"global_pool": "avg", "final_norm": True, "fc_norm": False}),
    "vit_oblong": ("vit_tiny_patch16_224", VIT | {"img_size": (24, 40)}),
    "vit_qk_norm": ("vit_tiny_patch16_224", VIT | {"qk_norm": True, "pre_norm": True}),
    "vit_norm_over_heads": ("vit_tiny_patch16_224", VIT | {"scale_attn_norm": True, "scale_mlp_norm": True}),
    "vit_post_norm": ("vit_base_patch16_rpn_224", VIT),
    "vit_registers": ("vit_wee_patch16_reg1_gap_256", VIT),
    "vit_attention_and_mlp_at_once": ("vit_pwee_patch16_reg1_gap_256", VIT),
    "vit_two_at_once": ("vit_small_patch16_18x2_224", VIT),
    "deit": ("deit_tiny_patch16_224", VIT),
    "deit3": ("deit3_small_patch16_224", VIT),
    "deit_distilled": ("deit_tiny_distilled_patch16_224", VIT),
    "dino": ("vit_small_patch16_224.dino", VIT),
    "dinov2": ("vit_small_patch14_dinov2", VIT),
    "dinov2_registers": ("vit_small_patch14_reg4_dinov2", VIT),
    "dinov2_swiglu": ("vit_giant_patch14_reg4_dinov2", VIT),
    "siglip": ("vit_base_patch16_siglip_224", VIT),
    "clip": ("vit_base_patch16_clip_quickgelu_224", VIT),
    "eva": ("eva02_tiny_patch14_224", VIT),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
    "swin_padded": ("swin_tiny_patch4_window7_224", SWIN | {"img_size": (60, 76)}),
    "swin_four_stages": ("swin_tiny_patch4_window7_224",
                         SWIN | {"img_size": 96, "depths": (1, 2, 1, 2), "window_size": 3,
                                 "num_heads": (2, 2, 4, 4)}),
    "swinv2": ("swinv2_tiny_window8_256", SWIN | {"img_size": 64, "window_size": 4}),
    "maxvit": ("maxvit_tiny_rw_224", MAXVIT),
    "maxvit_mlp_positions": ("maxvit_rmlp_pico_rw_256", MAXVIT),
    "maxvit_tf": ("maxvit_tiny_tf_224", MAXVIT),
    "maxxvit": ("maxxvit_rmlp_nano_rw_256", MAXVIT | {"embed_dim": (64, 128)}),
}
SAVED = {  # families as a folder: (name, changes)
    "vit": ("vit_tiny_patch16_224", VIT),
    "average": ("vit_tiny_patch16_224", VIT | {"global_pool": "avg"}),
    "swin": ("swin_tiny_patch4_window7_224", {"img_size": 56, "depths": (2, 1), "embed_dim": 24, "num_heads": (2, 4)}),
    "maxvit": ("maxvit_tiny_tf_224", {"img_size": 64, "depths": (1, 1), "embed_dim": (32, 64)}),
}


def random_timm(name: str, changes: dict) -> torch.nn.Module:
    """A small model of timm in eval mode, every parameter and every running statistic moved at random."""
    import timm

    torch.manual_seed(0)
    return move(timm.create_model(name, pretrained=False, num_classes=0, **changes))


def move(model: torch.nn.Module) -> torch.nn.Module:
    model = model.eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.15)
    for key, buffer in model.named_buffers():
        if key.endswith(("running_mean", "running_var")):
            buffer.add_(torch.rand_like(buffer) * 0.3)
    return model


def representation_of(family: str, model: torch.nn.Module):
    """What is decomposed: the model, or where a tanh follows the pooling, the mean of its features."""
    return (lambda images: model.forward_features(images).mean((-2, -1))) if family == "maxvit_tf" else model


def model_of(tower, image_size=None, encode=None, prefix_tokens=0, class_token=False, preprocess=None):
    """An image tower as the scripts have it once it is loaded; of open_clip's own with class-token pooling, what it
    has."""
    from utils.models.model import Model

    if hasattr(tower, "class_embedding") and tower.pool_type == "tok":
        image_size, prefix_tokens, class_token = tower.image_size, 1, True
    return Model(name="x", source="", device=torch.device("cpu"), network=tower, tower=tower,
                 encode_image=encode or tower,
                 preprocess=preprocess, image_size=image_size, class_token=class_token, prefix_tokens=prefix_tokens)


def walked(visual):
    """An open_clip tower as one that only the walk takes."""
    return model_of(torch.nn.Sequential(visual), visual.image_size, prefix_tokens=1, class_token=True)


def family_model(family: str):
    network, images = random_timm(*FAMILIES[family]), random_images(FAMILIES[family][1]["img_size"], 1)
    return model_of(network, tuple(images.shape[-2:]), representation_of(family, network),
                    getattr(network, "num_prefix_tokens", 0), getattr(network, "global_pool", "") == "token")


def save_timm(folder: Path, family: str) -> Path:
    """A small random model of that family as a folder in timm's own format."""
    import timm

    name, changes = SAVED[family]
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=5, **changes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    size, place = changes["img_size"], folder / family
    timm.models.save_for_hf(network, place, model_config=None, model_args=changes)
    path = place / "config.json"
    config = json.loads(path.read_text())
    config["pretrained_cfg"] |= {"input_size": [3, size, size], "crop_pct": 1.0}
    path.write_text(json.dumps(config))
    return place


def random_maps(components: int, width: int, d: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps of a model's components to a space of d dimensions: weight [c, width, d] and bias [d]."""
    generator = torch.Generator().manual_seed(4)
    return torch.randn(components, width, d, generator=generator) / width ** 0.5, torch.randn(d,
                                                                                              generator=generator) * 0.3


# Language models

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


# Runs

def component_names(heads, mlps, convs) -> dict[str, list[dict]]:
    """Names of components as compute_prs.py writes them: of heads (block, head), an embedding, and of the blocks of
    MLPs and convolutions."""
    return {"attn": [{"kind": "attn", "block": block, "head": head} for block, head in heads],
            "mlp": [{"kind": "embed", "block": -1, "head": None},
                    *({"kind": "mlp", "block": block, "head": None} for block in mlps)],
            "conv": [{"kind": "conv", "block": block, "head": None} for block in convs]}


HEADS = [(0, 0), (0, 1), (1, 0), (3, 0), (3, 1), (3, 2)]  # of blocks with different numbers, and one without
NAMES = component_names(HEADS, (0, 1, 3), (0, 2))
LABELS = ["0.0", "0.1", "1.0", "3.0", "3.1", "3.2", "embedding", "mlp 0", "mlp 1", "mlp 3", "conv 0", "conv 2"]


def uneven_terms(images: int, d: int = 7, seed: int = 0, dtype=np.float32) -> dict[str, np.ndarray]:
    """Random terms of the components NAMES; the constant parts of components differ, and are those of any seed."""
    rng, constants = np.random.default_rng(seed), np.random.default_rng(99)
    return {what: (rng.normal(size=(images, number, d)) + 3 * constants.normal(size=(number, d))).astype(dtype)
            for what, number in (("attn", 6), ("mlp", 4), ("conv", 2))}


def opened(parts: dict, names: dict[str, list[dict]] | None = None):
    """A run of arrays in memory, labels among them or not: attn [b, l, h, d], or attn [b, c, d] and `names` of
    components."""
    from utils.runs.components import Component
    from utils.runs.run import Run

    components = names and [Component.from_dict(entry) for listed in names.values() for entry in listed]
    return Run({what: array for what, array in parts.items() if what != "labels"}, components, parts.get("labels"))


def components_of(parts: dict) -> np.ndarray:
    """All components of the arrays of a run [b, c, d], in the order in which they are stored."""
    arrays = [parts[what][:] for what in ("attn", "mlp", "conv") if what in parts]
    return np.concatenate([array.reshape(len(array), -1, array.shape[-1]) for array in arrays], axis=1)


def uneven_run(images: int, d: int = 7, seed: int = 0, dtype=np.float32):
    """A run of such terms, all of one class, and its components [b, c, d]."""
    parts = uneven_terms(images, d, seed, dtype)
    return opened(parts | {"labels": np.zeros(images, int)}, NAMES), components_of(parts)


def split_components(values: np.ndarray, names: dict[str, list]) -> dict[str, np.ndarray]:
    """Components [b, c, d] as the arrays of a run."""
    ends = np.cumsum([len(listed) for listed in names.values()])
    return dict(zip(names, np.split(values, ends[:-1], axis=1)))


def write_run(folder: Path, name: str, model: str, parts: dict, labels, /, names=None, dtype: str = "float32",
              **about) -> None:
    """Arrays with a manifest, as compute_prs.py writes them; `names` are those of components, `about` goes into the
    manifest."""
    from utils import cli
    from utils.runs import files

    if names:
        cli.save_result(files.Place(folder, name, model).path("components", ".json"), names)
    arrays = {files.term_path(folder, name, what, model): np.asarray(values, dtype) for what, values in parts.items()}
    arrays[files.term_path(folder, name, "labels", model)] = np.asarray(labels, np.int64)
    files.write_arrays(files.manifest_path(folder, name, model), arrays, {
        "model": model, "pretrained": "w", "weights_sha256": "aa", "images": len(labels), "classes": ["a", "b"],
        "skipped_images": [], "skipped_indices": [], **about})


def write_classifier(folder: Path, dataset: str, model: str, classifier, **about) -> None:
    """A zero-shot classifier [d, classes] with a manifest, as compute_text_projection.py writes it."""
    from utils.runs import files

    arrays = {files.term_path(folder, dataset, "classifier", model): np.asarray(classifier, np.float32)}
    files.write_arrays(files.manifest_path(folder, dataset, "classifier", model), arrays,
                       {"pretrained": "w", "weights_sha256": "aa", "classes": ["a", "b"], **about})


def write_pool(folder: Path, name: str, model: str, texts: list[str], embedded, **about) -> None:
    """Embedded texts [m, d] with a manifest, as compute_text_set_projection.py writes them."""
    from utils.runs import files

    arrays = {files.text_path(folder, name, model): np.asarray(embedded, np.float32)}
    files.write_arrays(files.manifest_path(folder, name, model), arrays,
                       {"pretrained": "w", "weights_sha256": "aa", "texts_sha256": files.texts_hash(texts), **about})


def write_descriptions(path: Path, concepts=("zebra", "puffin"), each=2, vlm="clip-a", dataset="birds") -> Path:
    """Descriptions X.jsonl with a manifest, as inference.py writes them."""
    lines = [{"concept": concept, "question": "What is it?", "description": f"{concept} fact {i}", "seed": i,
              "reward": 1.5} for concept in concepts for i in range(each)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    path.with_name(f"{path.stem}.manifest.json").write_text(json.dumps({"dataset": dataset, "vlm_name": vlm}))
    return path


def head_terms(images=300, width=24, inner=8, seed=0, dtype=np.float32):
    """Terms as a head writes them: of low rank, around a mean, with a rounding's worth of noise."""
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(images, inner)) * np.linspace(2, 0.3, inner)
    x = latent @ rng.normal(size=(inner, width)) + rng.normal(size=width)
    return (0.02 * x).astype(dtype)


def unit_texts(texts=90, width=24, seed=1):
    t = np.random.default_rng(seed).normal(size=(texts, width))
    return (t / np.linalg.norm(t, axis=1, keepdims=True)).astype(np.float32)


# Reports

def report_options(run, *more):
    return ("--model", "emojiclip", "--dataset", "imagefolder", "--data_path", run / "images", "--input_dir",
            run / "out",
            "--text_dir", run / "texts", "--text_descriptions", "pool", "--texts_per_head", 3, *more)


def analyse(run) -> None:
    """What a report reads beside the arrays: ablations, and three texts for each head of the last two layers."""
    common = ("--model", "emojiclip", "--dataset", "imagefolder", "--input_dir", run / "out")
    call_script("compute_ablations", *common)
    call_script("compute_complete_text_set", *common, "--output_dir", run / "out", "--text_dir", run / "texts",
                "--text_descriptions", "pool", "--texts_per_head", 3, "--num_of_last_layers", 2)


def write_report(emoji_run, folder):
    """A report on a copy of the run. Returns the copy; the report lies in its folder `page`."""
    run = folder / "run"
    shutil.copytree(emoji_run, run, symlinks=True)
    analyse(run)
    call_script("make_report",
                *report_options(run, "--images_per_head", 4, "--heat_maps", 2, "--output_dir", run / "page",
                                "--device", "cpu"))
    return run


def read_report(folder) -> dict:
    """What a report says, as it is kept beside the page."""
    from utils.report import page

    return json.loads((folder / page.RECORD).read_text())


# Data sets as they are downloaded

def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def cells(*texts):
    """A column of MATLAB cells."""
    column = np.empty((len(texts), 1), dtype=object)
    column[:, 0] = texts
    return column


def write_imagefolder(root):
    for name in ("b_b/2.PNG", "b_b/deep/0.png", "b_b/1.jpg", "A/x.webp"):
        picture(root / name)
    (root / "b_b" / "notes.txt").write_text("no image")


def write_waterbirds(root):
    root = root / "waterbird_complete95_forest2water2"
    rows = ["img_id,img_filename,y,split,place,place_filename"]
    for i, (y, split) in enumerate([(0, 0), (1, 2), (0, 2), (1, 1)]):
        picture(root / "001.A" / f"{i}.jpg")
        rows.append(f"{i},001.A/{i}.jpg,{y},{split},1,/o/x.jpg")
    (root / "metadata.csv").write_text("\n".join(rows) + "\n")


def write_cub(root):
    root = root / "CUB_200_2011"
    for name in ("001.Black_footed_Albatross/a.jpg", "002.Laysan_Albatross/b.jpg", "002.Laysan_Albatross/c.jpg"):
        picture(root / "images" / name)
    (root / "images.txt").write_text("1 001.Black_footed_Albatross/a.jpg\n2 002.Laysan_Albatross/b.jpg\n"
                                     "3 002.Laysan_Albatross/c.jpg\n")
    (root / "image_class_labels.txt").write_text("1 1\n2 2\n3 2\n")
    (root / "train_test_split.txt").write_text("1 1\n2 0\n3 1\n")
    (root / "classes.txt").write_text("1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n")


def write_aircraft(root):
    data = root / "fgvc-aircraft-2013b" / "data"
    rows = {"train": ["0056978 Challenger 600", "0034309 747-400", "0001000 747-400"], "val": ["0000002 F/A-18"],
            "test": ["0000003 Challenger 600"]}
    for line in sum(rows.values(), []):
        picture(data / "images" / f"{line.split()[0]}.jpg")
    for split, lines in (rows | {"trainval": rows["train"] + rows["val"]}).items():
        (data / f"images_variant_{split}.txt").write_text("\n".join(lines) + "\n")
        makers = {"Challenger": "Canadair", "747-400": "Boeing", "F/A-18": "McDonnell Douglas"}
        (data / f"images_manufacturer_{split}.txt").write_text(
            "".join(f"{line.split()[0]} {makers[line.split()[1]]}\n" for line in lines))
    (data / "variants.txt").write_text("747-400\nChallenger 600\nF/A-18\n")


def write_flowers(root):
    for i in range(1, 6):
        picture(root / "jpg" / f"image_{i:05d}.jpg")
    savemat(root / "imagelabels.mat", {"labels": np.array([[102, 1, 21, 1, 77]], dtype=np.uint8)})
    savemat(root / "setid.mat", {name: np.array([ids], dtype=np.uint16)
                                 for name, ids in (("trnid", [4, 1, 2]), ("valid", [3]), ("tstid", [5]))})


def write_pets(root):
    tables = {"trainval": [("german_shorthaired_10", 2), ("german_shorthaired_9", 2), ("Abyssinian_100", 1)],
              "test": [("Abyssinian_2", 1), ("german_shorthaired_1", 2)]}
    (root / "annotations").mkdir(parents=True)
    for name, rows in tables.items():
        (root / "annotations" / f"{name}.txt").write_text("".join(f"{image} {label} 1 1\n" for image, label in rows))
        for image, _ in rows:
            picture(root / "images" / f"{image}.jpg")


def annotations(rows, with_class=True):
    """MATLAB's struct array of Stanford Cars."""
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", *(["class"] if with_class else []), "fname"]
    array = np.zeros((1, len(rows)), dtype=[(field, object) for field in fields])
    for i, (name, label) in enumerate(rows):
        for field in fields:
            array[0, i][field] = {"fname": name, "class": np.uint8(label)}.get(field, np.uint8(1))
    return array


def write_cars(root):
    rows = {"train": [("00002.jpg", 2), ("00001.jpg", 2), ("00003.jpg", 1)], "test": [("00001.jpg", 1)]}
    for split, listed in rows.items():
        for name, _ in listed:
            picture(root / f"cars_{split}" / name)
    (root / "devkit").mkdir(parents=True)
    savemat(root / "devkit" / "cars_meta.mat",
            {"class_names": cells("AM General Hummer SUV 2000", "Ram C/V Van 2012").T})
    savemat(root / "devkit" / "cars_train_annos.mat", {"annotations": annotations(rows["train"])})
    savemat(root / "cars_test_annos_withlabels.mat", {"annotations": annotations(rows["test"])})


def write_dogs(root):
    names = {"train": ["n02089078-black-and-tan_coonhound/n02089078_9.jpg", "n02085620-Chihuahua/n02085620_7.jpg",
                       "n02085620-Chihuahua/n02085620_5927.jpg"],
             "test": ["n02085620-Chihuahua/n02085620_1.jpg", "n02089078-black-and-tan_coonhound/n02089078_1.jpg"]}
    labels = {"train": [2, 1, 1], "test": [1, 2]}
    for split, listed in names.items():
        for name in listed:
            picture(root / "Images" / name)
        savemat(root / f"{split}_list.mat", {"file_list": cells(*listed), "labels": np.array(labels[split])[:, None]})


def write_caltech(root):
    for name, number in (("BACKGROUND_Google", 2), ("accordion", 33), ("water_lilly", 31)):
        for i in range(1, number + 1):
            picture(root / "101_ObjectCategories" / name / f"image_{i:04d}.jpg")


def write_flat_imagenet(root, classes, picture=picture):
    """ImageNet's validation images as in their archive, one of each class (labels from 0), beside the kit."""
    data = root / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    # In the kit, classes have numbers in an order of their own, and inner nodes of the tree follow.
    kinds = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("num_children", object)]
    synsets = np.zeros((1001, 1), dtype=kinds)
    for number in range(1, 1002):
        inner = number == 1001
        synsets[number - 1, 0] = (number, f"n{99999999 if inner else 20000000 - number:08d}", "x", 2 if inner else 0)
    savemat(data / "meta.mat", {"synsets": synsets})
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{1000 - label}\n" for label in classes))
    for i in range(1, len(classes) + 1):
        picture(root / "val" / f"ILSVRC2012_val_{i:08d}.JPEG")


WRITERS = {"imagefolder": write_imagefolder, "binary_waterbirds": write_waterbirds, "cub": write_cub,
           "fgvc_aircraft": write_aircraft, "flowers": write_flowers, "pets": write_pets, "stanford_cars": write_cars,
           "stanford_dogs": write_dogs}
