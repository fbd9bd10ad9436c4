import json
import re
import shutil

import h5py
import numpy as np
import pytest
from builders import ROOT, TEXT, VISION, load_script
from PIL import Image

SCENES = 11


@pytest.fixture(scope="module")
def classifier_dir(tmp_path_factory):
    """A folder with the embedded model's classifier of the embedded concepts, made by the script itself."""
    from utils import cli

    folder = tmp_path_factory.mktemp("classifier")
    module = load_script("compute_text_projection")
    module.main(cli.parse(module.get_args_parser(), ["--model", "emojiclip", "--dataset", "emoji", "--device", "cpu",
                                                        "--output_dir", str(folder)]))
    return folder


@pytest.fixture
def drawn():
    from utils.data import scenes

    return scenes.sample_scenes(SCENES, seed=5)


@pytest.fixture
def options(classifier_dir, tmp_path):
    """Options of a run with the embedded model, and more."""
    def make(dataset, *more):
        return ("--model", "emojiclip", "--device", "cpu", "--classifier_dir", classifier_dir, "--classifier_dataset",
                "emoji",
                "--train_dataset", dataset, "--output_dir", tmp_path / "out", "--num_workers", 0, *more)
    return make


@pytest.fixture
def mat_file(drawn, tmp_path):
    """The scenes as ImageNet-Segmentation's file, at 64 pixels."""
    from data.emoji import write

    write.write_segmentation(tmp_path / "gtsegs_ijcv.mat", drawn, 64)
    return tmp_path / "gtsegs_ijcv.mat"


@pytest.fixture
def mask_folder(drawn, tmp_path):
    """The scenes as PNG files, at 64 pixels."""
    from utils.data import scenes

    for part in ("images", "masks"):
        (tmp_path / "data" / part).mkdir(parents=True)
    images, masks = scenes.draw(drawn, 64)
    for i, (image, mask) in enumerate(zip(images.permute(0, 2, 3, 1).numpy(), masks.numpy())):
        Image.fromarray(image).save(tmp_path / "data" / "images" / f"scene{i:02d}.png")
        Image.fromarray(255 * mask).save(tmp_path / "data" / "masks" / f"scene{i:02d}.png")
    return tmp_path / "data"


@pytest.fixture
def result(run_script, options, tmp_path):
    """Run the script; its JSON."""
    def call(dataset, *more, method="decomposition"):
        code, _, err = run_script("compute_segmentations", *options(dataset, *more, "--method", method))
        assert code == 0, err
        assert not list(tmp_path.rglob("*.partial"))
        return json.loads((tmp_path / "out" / f"{dataset}_segmentation_{method}_emojiclip.json").read_text())
    return call


def test_the_embedded_scenes_from_drawing_to_figures(run_script, options, tmp_path, monkeypatch):
    from utils.analysis.segmentation import figures as comparison
    from utils.data import datasets

    monkeypatch.setitem(datasets.REGISTRY["emoji_seg"].scenes, "test", (SCENES, 3))
    code, out, err = run_script("compute_segmentations", *options("emoji_seg", "--save_img", "--batch_size", 4))
    assert code == 0, err
    lines = out.splitlines()
    assert re.fullmatch(r"Mean IoU over 2 classes: 0\.\d{4}", lines[0])
    assert re.fullmatch(r"Pixel-wise Accuracy: \d\d\.\d\d%", lines[1])
    assert re.fullmatch(r"Mean AP over 2 classes: 0\.\d{4}", lines[2])
    found = json.loads((tmp_path / "out" / "emoji_seg_segmentation_decomposition_emojiclip.json").read_text())
    figures = found["methods"]["decomposition"]
    assert found["images"] == SCENES
    assert found["images_without_foreground"] == 0
    assert figures["images_without_map"] == 0
    assert lines[0].endswith(f"{figures['mean_iou']:.4f}")
    assert lines[2].endswith(f"{figures['mean_ap']:.4f}")
    # All background scores 80% and 40%: these maps find the objects.
    assert figures["pixel_accuracy"] > 0.8
    assert figures["mean_iou"] > 0.6
    assert figures["mean_ap"] > 0.9
    assert figures["published_percent"] is None
    assert found["definitions"] == comparison.DEFINITIONS
    assert found["options"]["image_size"] == 64
    assert found["weights_sha256"]
    for what in ("precision", "recall"):
        values = np.load(tmp_path / "out" / f"emoji_seg_decomposition_{what}_emojiclip.npy")
        assert values.shape == (1, 1001)
        assert np.isfinite(values).all()
    pictures = tmp_path / "out" / "emoji_seg_decomposition_pictures_emojiclip"
    assert len(list(pictures.glob("*/*.png"))) == 5 * SCENES
    assert Image.open(pictures / "decomposition_overlay" / "00010.png").size == (64, 64)
    assert list(pictures.glob("*.png")) == [pictures / "sheet.png"]


def test_the_three_ways_to_read_the_same_images_give_the_same_figures(result, mat_file, mask_folder):
    """And any batch size, with a last batch that is not full."""
    first = result("imagenet_seg", "--data_path", mat_file, "--batch_size", 1)["methods"]["decomposition"]
    for again in (result("imagenet_seg", "--data_path", mat_file, "--batch_size", 4),
                  result("masks_folder", "--data_path", mask_folder, "--batch_size", 11),
                  result("imagenet_seg", "--data_path", mat_file, "--num_workers", 2, "--mask_resize", "aligned")):
        assert again["methods"]["decomposition"] == pytest.approx(first, abs=1e-3)
        assert again["images"] == SCENES


def test_the_figures_equal_the_literal_ones(result, mask_folder, classifier_dir):
    import literal
    import torch

    from utils.models.loading import load

    figures = result("masks_folder", "--data_path", mask_folder)["methods"]["decomposition"]
    clip = load("emojiclip", None, torch.device("cpu"))
    pixels = torch.stack([clip.preprocess(Image.open(path)) for path in sorted((mask_folder / "images").iterdir())])
    masks = np.stack([np.asarray(Image.open(path)) > 0 for path in sorted((mask_folder / "masks").iterdir())])
    terms = literal.decompose(clip.network.visual, pixels)
    maps = literal.segmentation_maps(terms["attn"], terms["representation"], np.load(
        classifier_dir / "emoji_classifier_emojiclip.npy"), (8, 8))
    # The scores in single precision, in which 1 - heat ties as it does in the script.
    slow = literal.segmentation_figures(np.stack([literal.heat_map(patches, 64)
                                                  for patches in maps]).astype(np.float32), masks)
    assert {name: figures[name] for name in slow} == pytest.approx(slow, abs=1e-3)


def test_another_image_size_and_thr(result, mat_file, tmp_path):
    found = result("imagenet_seg", "--data_path", mat_file, "--image_size", 96, "--thr", 0.5)
    assert found["options"]["image_size"] == 96
    assert found["options"]["thr"] == 0.5
    precision = np.load(tmp_path / "out" / "imagenet_seg_decomposition_precision_emojiclip.npy")[0]
    recall = np.load(tmp_path / "out" / "imagenet_seg_decomposition_recall_emojiclip.npy")[0]
    assert (recall[:501] == 1).all()
    assert recall[501] < 1
    assert len(set(precision[:501])) == 1


def test_all_methods_in_one_table(result, run_script, options, mat_file, tmp_path):
    from utils.analysis.segmentation import METHODS

    code, out, err = run_script("compute_segmentations",
                                *options("imagenet_seg", "--data_path", mat_file, "--method", "all"))
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()] == ["percent", *METHODS, str(SCENES)]
    found = json.loads((tmp_path / "out" / "imagenet_seg_segmentation_all_emojiclip.json").read_text())["methods"]
    assert list(found) == list(METHODS)
    assert np.load(tmp_path / "out" / "imagenet_seg_all_recall_emojiclip.npy").shape == (8, 1001)
    alone = result("imagenet_seg", "--data_path", mat_file, "--batch_size", 3, method="chefer")["methods"]["chefer"]
    assert alone == pytest.approx(found["chefer"], abs=1e-3)


def test_published_figures_stand_beside_ours():
    from utils.analysis.segmentation import figures as comparison
    from utils.report import experiments

    ours = {"pixel_accuracy": 0.75, "mean_iou": 0.5, "mean_ap": 0.8, "foreground_iou": 0.25, "foreground_ap": 0.625}
    published = experiments.published_segmentation("imagenet_seg", "ViT-L-14", "laion2b_s32b_b82k")
    assert experiments.published_segmentation("emoji_seg", "ViT-L-14", "openai") == {}

    def lines(*methods):
        return list(comparison.table({method: ours | {"published_percent": published.get(method)}
                                      for method in methods}))

    assert lines("decomposition") == [
        "Mean IoU over 2 classes: 0.5000", "Pixel-wise Accuracy: 75.00%", "Mean AP over 2 classes: 0.8000",
        "Foreground alone: IoU 0.2500, AP 0.6250", "published: accuracy 75.21, mIoU 54.50, mAP 81.61"]
    head, row, without, note = lines("lrp", "maskclip")
    assert row.split() == ["lrp", "75.00", "(52.81)", "50.00", "(33.57)", "80.00", "(54.37)", "25.00", "62.50"]
    assert without.split() == ["maskclip", "75.00", "50.00", "80.00", "25.00", "62.50"]
    assert "published" in note
    assert len(head) == len(row) == len(without)


def test_an_image_without_foreground_is_counted(result, mask_folder):
    Image.new("L", (64, 64)).save(mask_folder / "masks" / "scene03.png")
    found = result("masks_folder", "--data_path", mask_folder)
    assert found["images_without_foreground"] == 1
    assert all(np.isfinite(found["methods"]["decomposition"][name])
               for name in ("pixel_accuracy", "mean_iou", "mean_ap"))


def write(path, change):
    """A file like ImageNet-Segmentation's with three small images, as MATLAB writes it, after `change(file, refs)`."""
    with h5py.File(path, "w", userblock_size=512) as file:
        value, refs = file.create_group("value"), file.create_group("#refs#")
        for name in ("img", "gt"):
            value.create_dataset(name, (3, 1), h5py.ref_dtype)
        for i in range(3):
            image = refs.create_dataset(f"image{i}", data=np.zeros((3, 20, 30), np.uint8))
            mask = refs.create_dataset(f"mask{i}", data=np.ones((20, 30), np.uint8))
            holder = refs.create_dataset(f"holder{i}", (1, 1), h5py.ref_dtype)
            holder[0, 0] = mask.ref
            value["img"][i, 0], value["gt"][i, 0] = image.ref, holder.ref
        change(file, refs)
    return path


def other_mask(file, refs):
    refs["holder1"][0, 0] = refs.create_dataset("other", data=np.ones((30, 20), np.uint8)).ref


def grey_image(file, refs):
    file["value/img"][2, 0] = refs.create_dataset("grey", data=np.ones((20, 30), np.uint8)).ref


def float_image(file, refs):
    file["value/img"][0, 0] = refs.create_dataset("float", data=np.ones((3, 20, 30))).ref


def no_references(file, refs):
    del file["value/img"]
    file["value"].create_dataset("img", data=np.zeros((3, 1)))


def null_reference(file, refs):
    file["value/gt"][1, 0] = h5py.Reference()


def no_group(file, refs):
    del file["value/gt"]


def fewer_masks(file, refs):
    del file["value/gt"]
    file["value"].create_dataset("gt", (2, 1), h5py.ref_dtype)
    for i in range(2):
        file["value/gt"][i, 0] = refs[f"holder{i}"].ref


@pytest.mark.parametrize("change, reason", [
    (other_mask, "image 1: its mask is 30 x 20 pixels and the image 20 x 30"),
    (grey_image, "image 2: is uint8 of shape"),
    (float_image, "image 0: is float64"), (no_references, "does not hold /value/img and /value/gt"),
    (null_reference, "does not hold"), (no_group, "does not hold"), (fewer_masks, "3 images and 2 masks")])
def test_a_wrong_mat_file_is_refused(refused, options, tmp_path, change, reason):
    path = write(tmp_path / "wrong.mat", change)
    assert reason in refused("compute_segmentations", *options("imagenet_seg", "--data_path", path))
    assert not (tmp_path / "out").exists()


def test_matlabs_own_layout_is_read(result, tmp_path):
    path = write(tmp_path / "right.mat", lambda file, refs: None)
    assert result("imagenet_seg", "--data_path", path)["images"] == 3


def test_files_that_are_no_mat_file_are_refused(refused, options, tmp_path, mat_file):
    (tmp_path / "text.mat").write_text("MATLAB 5.0 MAT-file")
    assert "not an HDF5 file" in refused("compute_segmentations",
                                         *options("imagenet_seg", "--data_path", tmp_path / "text.mat"))
    (tmp_path / "cut.mat").write_bytes(mat_file.read_bytes()[:20_000])
    assert "complete" in refused("compute_segmentations", *options("imagenet_seg", "--data_path", tmp_path / "cut.mat"))
    assert "no such file" in refused("compute_segmentations",
                                     *options("imagenet_seg", "--data_path", tmp_path / "none.mat"))
    assert "needs --data_path" in refused("compute_segmentations", *options("imagenet_seg"))


def spoil_size(folder):
    Image.new("L", (64, 60)).save(folder / "masks" / "scene04.png")


def spoil_name(folder):
    (folder / "masks" / "scene04.png").rename(folder / "masks" / "other.png")


def spoil_image(folder):
    (folder / "images" / "scene04.png").write_text("no image")


def spoil_double(folder):
    shutil.copy(folder / "images" / "scene04.png", folder / "images" / "scene04.bmp")


def spoil_masks(folder):
    shutil.rmtree(folder / "masks")


def spoil_images(folder):
    shutil.rmtree(folder / "images")
    (folder / "images").mkdir()


@pytest.mark.parametrize("spoil, reason", [
    (spoil_size, "scene04.png: its mask is 64 x 60 pixels"),
    (spoil_name, "no mask for 1 of 11 images, such as scene04.png"),
    (spoil_image, "scene04.png: cannot be read as an image"), (spoil_double, "keep one file of a name"),
    (spoil_masks, "masks: no such folder"), (spoil_images, "images: no images there")])
def test_a_wrong_folder_is_refused(refused, options, mask_folder, tmp_path, spoil, reason):
    spoil(mask_folder)
    assert reason in refused("compute_segmentations", *options("masks_folder", "--data_path", mask_folder))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_ends_too_early_is_named(refused, options, mask_folder, tmp_path, workers):
    path = mask_folder / "images" / "scene04.png"
    path.write_bytes(path.read_bytes()[:200])
    line = refused("compute_segmentations",
                   *options("masks_folder", "--data_path", mask_folder, "--num_workers", workers))
    assert "cannot read image scene04" in line
    assert not list((tmp_path / "out").glob("*.npy*"))
    assert not list((tmp_path / "out").glob("*.json*"))


def test_a_classifier_of_another_model_or_width_is_refused(refused, options, classifier_dir, mask_folder, tmp_path):
    own = tmp_path / "own"
    arguments = options("masks_folder", "--data_path", mask_folder, "--classifier_dir", own)
    shutil.copytree(classifier_dir, own)
    manifest = own / "emoji_classifier_emojiclip.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"weights_sha256": "0" * 64}))
    assert "was made with other weights" in refused("compute_segmentations", *arguments)
    manifest.unlink()
    np.save(own / "emoji_classifier_emojiclip.npy", np.zeros((64, 260), np.float32))
    assert "has shape (64, 260), and the terms are 128 wide" in refused("compute_segmentations", *arguments)
    (own / "emoji_classifier_emojiclip.npy").unlink()
    assert "python compute_text_projection.py --dataset emoji" in refused("compute_segmentations", *arguments)


def test_the_names_offered_are_those_that_can_be_read():
    from utils.analysis.segmentation import METHODS
    from utils.report import experiments

    script = load_script("compute_segmentations")
    assert set(script.WITH_MASKS) == {"imagenet_seg", "masks_folder", "emoji_seg"}
    for weights in ("laion2b_s32b_b82k", "openai"):
        assert set(experiments.published_segmentation("imagenet_seg", "ViT-L-14", weights)) <= set(METHODS)


EMOJIVIT = f"timm:local-dir:{ROOT / 'models' / 'emojivit'}"


@pytest.fixture(scope="module")
def maps_file(tmp_path_factory):
    """Maps of emojivit to the embedded CLIP: for every component the ridge solution of the representations of 400
    scenes."""
    import torch

    from utils.analysis import alignment
    from utils.data import scenes
    from utils.models import loading

    path = tmp_path_factory.mktemp("maps") / "maps.safetensors"
    images, _ = scenes.draw(scenes.sample_scenes(400, seed=11), 64)
    pictures = [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).numpy()]
    vision, clip = (loading.load(name, None, torch.device("cpu")) for name in (EMOJIVIT, "emojiclip"))
    with torch.no_grad():
        x, y = (model.encode_image(torch.stack([model.preprocess(picture) for picture in pictures]))
                for model in (vision, clip))
    weight, bias = alignment.start("ridge", 43, x / x.norm(dim=1, keepdim=True), y / y.norm(dim=1, keepdim=True), 0)
    alignment.save(path, weight, bias, {
        "model": "emojivit", "pretrained": vision.source, "weights_sha256": vision.weights_hash, "clip": "emojiclip",
        "clip_option": "emojiclip", "clip_pretrained": clip.source, "clip_weights_sha256": clip.weights_hash})
    return path


@pytest.fixture
def mapped(classifier_dir, maps_file, tmp_path):
    """Options of a run with the mapped model, and more."""
    def make(dataset, *more):
        return ("--model", EMOJIVIT, "--maps", maps_file, "--device", "cpu", "--classifier_dir", classifier_dir,
                "--classifier_dataset", "emoji", "--train_dataset", dataset, "--output_dir", tmp_path / "out",
                "--num_workers", 0, *more)
    return make


def test_a_mapped_model_finds_the_objects(run_script, mapped, tmp_path, monkeypatch):
    from utils.data import datasets

    monkeypatch.setitem(datasets.REGISTRY["emoji_seg"].scenes, "test", (40, 3))
    found, name = {}, "emojivit-as-emojiclip"
    for target in ("predicted", "true"):
        code, out, err = run_script("compute_segmentations", *mapped("emoji_seg", "--target", target, "--save_img"))
        assert code == 0, err
        found[target] = json.loads((tmp_path / "out" / f"emoji_seg_segmentation_decomposition_{name}.json").read_text())
        figures = found[target]["methods"]["decomposition"]
        assert f"Foreground alone: IoU {figures['foreground_iou']:.4f}, AP {figures['foreground_ap']:.4f}" in out
        assert found[target]["options"]["target"] == target
        assert found[target]["options"]["mask_resize"] == "aligned"
        assert found[target]["text_model"] == "emojiclip"
        assert len(found[target]["maps_sha256"]) == 64
        # All background scores 80% and 40%.
        assert figures["pixel_accuracy"] > 0.8
        assert figures["mean_iou"] > 0.58
        assert figures["foreground_iou"] > 0.35
    assert found["predicted"]["methods"] != found["true"]["methods"]
    pictures = tmp_path / "out" / f"emoji_seg_decomposition_pictures_{name}"
    assert len(list(pictures.glob("*/*.png"))) == 5 * 40
    values = np.load(tmp_path / "out" / f"emoji_seg_decomposition_precision_{name}.npy")
    assert values.shape == (1, 1001)


def test_a_mapped_models_figures_are_the_same_at_any_batch_size(run_script, mapped, mask_folder, tmp_path):
    found = []
    for size in (1, 4):
        arguments = mapped("masks_folder", "--data_path", mask_folder, "--batch_size", size)
        code, _, err = run_script("compute_segmentations", *arguments)
        assert code == 0, err
        path = tmp_path / "out" / "masks_folder_segmentation_decomposition_emojivit-as-emojiclip.json"
        found.append(json.loads(path.read_text())["methods"]["decomposition"])
    assert found[0].pop("published_percent") is found[1].pop("published_percent") is None
    assert found[0] == pytest.approx(found[1], abs=2e-3)


def test_the_true_class_is_explained_by_every_method(result, monkeypatch):
    from utils.data import datasets

    monkeypatch.setitem(datasets.REGISTRY["emoji_seg"].scenes, "test", (12, 3))
    predicted, true = (result("emoji_seg", "--target", target, method="all")["methods"]
                       for target in ("predicted", "true"))
    for method in ("decomposition", "gradcam", "maskclip"):
        assert predicted[method] != true[method]
    assert predicted["rollout"] == true["rollout"]  # it knows no class


def test_a_clip_that_the_walk_alone_takes(run_script, refused, drawn, mask_folder, tmp_path):
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    config, folder = {"embed_dim": 20, "vision_cfg": VISION | {"pool_type": "avg"},
                      "text_cfg": TEXT}, tmp_path / "small"
    folder.mkdir()
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    np.save(tmp_path / "emoji_classifier_small.npy", np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32))
    options = ("--model", f"local-dir:{folder}", "--device", "cpu", "--classifier_dir", tmp_path,
               "--classifier_dataset", "emoji",
               "--train_dataset", "masks_folder", "--data_path", mask_folder, "--num_workers", 0, "--output_dir",
               tmp_path / "o")
    code, out, err = run_script("compute_segmentations", *options)
    assert code == 0, err
    assert f"{SCENES} images" in out, err
    assert "this model has --method decomposition alone" in refused("compute_segmentations", *options, "--method",
                                                                    "rollout")


def test_what_a_mapped_model_cannot_is_refused(refused, mapped, mask_folder, maps_file, classifier_dir, tmp_path):
    def line(*more):
        return refused("compute_segmentations", *mapped("masks_folder", "--data_path", mask_folder, *more))

    assert "this model has --method decomposition alone" in line("--method", "all")
    assert "takes images at its own size alone" in line("--image_size", 32)
    assert "only --train_dataset emoji_seg knows" in line("--target", "true")
    assert "does not exist; make them with compute_alignment.py" in line("--maps", tmp_path / "none")
    assert "and --model is emojiclip" in line("--model", "emojiclip")
    own = tmp_path / "own"
    shutil.copytree(classifier_dir, own)
    content = json.loads((own / "emoji_classifier_emojiclip.json").read_text())
    (own / "emoji_classifier_emojiclip.json").write_text(json.dumps(content | {"weights_sha256": "0" * 64}))
    assert "was made with other weights" in line("--classifier_dir", own)
    (own / "emoji_classifier_emojiclip.json").write_text(json.dumps(content | {"classes": content["classes"][::-1]}))
    assert "the classifier has other classes" in refused("compute_segmentations", *mapped(
        "emoji_seg", "--target", "true", "--classifier_dir", own))
    (own / "emoji_classifier_emojiclip.npy").unlink()
    assert "compute_text_projection.py --dataset emoji --model emojiclip" in line("--classifier_dir", own)
    unmapped = refused("compute_segmentations", "--model", EMOJIVIT, "--train_dataset", "emoji_seg")
    assert "has no text side; this step needs a CLIP, or --maps" in unmapped
    assert not (tmp_path / "out").exists()
