import literal
import numpy as np
import pytest
import torch
from builders import SWIN, VARIANTS, family_model, images_for, model_of, random_clip, random_images, random_maps, walked
from PIL import Image

from utils.analysis.alignment import Maps, mapped
from utils.analysis.segmentation import figures
from utils.analysis.segmentation.methods import Batch, Explainer, transform
from utils.cli import UserError
from utils.data import datasets, loader, scenes
from utils.data.masks import mask_transform, true_classes
from utils.decompose.decomposer import Decomposer
from utils.models import loading


def random_classifier(classes=7, seed=2):
    columns = torch.randn(20, classes, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(columns, dim=0)


def batches(data_path, prepare, side, mask_resize, batch_size=4, numbers=None):
    """Images and masks of a folder, in batches."""
    data, prepare_mask = datasets.load_masks("masks_folder", str(data_path)), mask_transform(prepare, side, mask_resize)
    for pixels, masks, _ in loader.batches(data, prepare, batch_size, 0, numbers=numbers,
                                             prepare_target=prepare_mask):
        yield pixels, torch.from_numpy(masks)


def explainer_of(model, classifier, maps=None):
    """Of the decomposition; `maps` are weight and bias."""
    return Explainer(model, classifier, maps=maps and Maps(*maps, {}, ""))


def maps_of(visual, images, classifier):
    return explainer_of(model_of(visual), classifier).explain(images)["decomposition"]


def maps_and_classes(explainer, images, truth):
    return explainer.explain(images, truth)["decomposition"], Batch(explainer, images, truth).classes.tolist()


def test_a_tokens_terms_and_the_maps_equal_their_definition(variant):
    _, model = variant
    images, classifier = images_for(model), random_classifier()
    slow = literal.decompose(model.visual, images)
    grid = tuple(size // patch for size, patch in zip(model.visual.image_size, model.visual.patch_size))
    expected = torch.from_numpy(literal.segmentation_maps(slow["attn"], slow["representation"], classifier, grid))
    # In double precision the definition itself shows; in single, these models' rounding is about 1e-6.
    for precision, tolerance in ((torch.float64, 1e-6), (torch.float32, 5e-6)):
        model.visual.to(precision)
        found = Decomposer(model_of(model.visual)).tokens(images.to(precision), torch.eye(20, dtype=precision)[:, None])
        terms = torch.stack(list(found.scores.values())).permute(2, 0, 4, 3, 1)  # [b, l, n, h, d]
        torch.testing.assert_close(terms.double(), slow["attn"], atol=tolerance, rtol=0)
        mlp = found.parts[:, :, terms.shape[1] * terms.shape[3]:].permute(1, 2, 0)
        torch.testing.assert_close(mlp.double(), slow["mlp"], atol=tolerance, rtol=0)
        maps = maps_of(model.visual, images.to(precision), classifier.to(precision))
        torch.testing.assert_close(maps.double(), expected, atol=tolerance, rtol=0)


def test_the_embedded_models_maps_equal_their_definition_in_single_precision():
    visual = loading.load("emojiclip", None, torch.device("cpu")).tower
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    classifier = torch.nn.functional.normalize(torch.randn(128, 7, generator=torch.Generator().manual_seed(2)), dim=0)
    slow = literal.decompose(visual, images)
    expected = literal.segmentation_maps(slow["attn"], slow["representation"], classifier, (8, 8))
    np.testing.assert_allclose(maps_of(visual, images, classifier), expected, atol=1e-6, rtol=0)


def test_maps_are_the_same_at_any_batch_size():
    model, classifier = random_clip(), random_classifier()
    images = images_for(model, 7)
    together = maps_of(model.visual, images, classifier)
    for size in (1, 3):
        parts = torch.cat([maps_of(model.visual, images[start:start + size], classifier)
                           for start in range(0, 7, size)])
        torch.testing.assert_close(parts, together, atol=1e-6, rtol=0)


@pytest.mark.parametrize("truth", [None, torch.tensor([3, 0, 6])])
@pytest.mark.parametrize("name", ["plain", "oblong", "layer_scale"])
def test_the_walk_gives_the_maps_of_the_fast_path(name, truth):
    model, classifier = random_clip(**VARIANTS[name]), random_classifier()
    images = images_for(model)
    maps, classes = maps_and_classes(explainer_of(model_of(model.visual), classifier), images, truth)
    others, same = maps_and_classes(explainer_of(walked(model.visual), classifier), images, truth)
    assert classes == same
    assert truth is None or classes == [3, 0, 6]
    torch.testing.assert_close(others, maps, atol=5e-6, rtol=0)
    assert maps.std() > 1e-4


@pytest.mark.parametrize("truth", [None, torch.tensor([3, 0, 6])])
@pytest.mark.parametrize("name", ["plain", "layer_scale"])
def test_a_mapped_model_on_the_fast_path_has_the_maps_of_the_walk(name, truth):
    model = random_clip(**VARIANTS[name])
    images, maps = images_for(model), random_maps(16, 20)
    classifier = torch.nn.functional.normalize(torch.randn(10, 7, generator=torch.Generator().manual_seed(2)), dim=0)
    found = [maps_and_classes(explainer_of(each, classifier, maps), images, truth)
             for each in (model_of(model.visual), walked(model.visual))]
    torch.testing.assert_close(found[0][0], found[1][0], atol=5e-6, rtol=0)
    assert found[0][1] == found[1][1]


@pytest.mark.parametrize("truth", [None, torch.tensor([3, 0, 6])])
def test_maps_of_a_mapped_hierarchical_model_equal_their_definition(truth):
    """Each head's tokens through its own map, times the class's column less the mean of all; the bias split evenly."""
    model, images = family_model("swin"), random_images(SWIN["img_size"], 3)
    decomposer = Decomposer(model)
    terms = decomposer.terms(images)
    weight, bias = random_maps(terms.values.shape[1], 96)
    classifier = torch.nn.functional.normalize(torch.randn(10, 7, generator=torch.Generator().manual_seed(2)), dim=0)
    whole = mapped(weight, bias, terms.values).sum(dim=1)
    length = whole.norm(dim=-1)
    expected_classes = (whole @ classifier).argmax(dim=1) if truth is None else truth
    direction = (classifier[:, expected_classes].T - classifier.mean(dim=1)) / length[:, None]
    expected = torch.zeros(3, 14, 14)
    scores = decomposer.tokens(images, torch.eye(96)[:, None]).scores  # layer -> [d, b, h, n]
    for place, head in enumerate(terms.components):
        if head.kind != "attn":
            continue
        tokens = scores[head.layer][:, :, head.head].permute(1, 2, 0)
        tokens = tokens @ weight[place] + bias / len(weight) / tokens.shape[1]
        side = round(tokens.shape[1] ** 0.5)
        values = torch.einsum("bnd,bd->bn", tokens, direction).reshape(3, side, side)
        nearest = [place * side // 14 for place in range(14)]
        share = 1 / torch.bincount(torch.tensor(nearest)).float()
        values = values * share[:, None] * share
        expected += values[:, nearest][:, :, nearest]
    maps, classes = maps_and_classes(explainer_of(model, classifier, (weight, bias)), images, truth)
    assert classes == expected_classes.tolist()
    torch.testing.assert_close(maps, expected, atol=expected.abs().max().item() / 200, rtol=0)
    assert maps.flatten(1).std(dim=1).min() > 1e-5


def test_images_of_another_size_give_a_map_of_all_their_patches():
    model, classifier = random_clip(), random_classifier()
    images = random_images(48, 2)
    assert maps_of(model.visual, images, classifier).shape == (2, 6, 6)
    found = Decomposer(model_of(model.visual)).tokens(images, classifier.T[:, None])
    torch.testing.assert_close(found.representation.norm(dim=-1), torch.ones(2), atol=1e-5, rtol=0)


def literal_foreground(heats, masks) -> tuple[float, float]:
    """IoU of the foreground over all images, and the mean average precision for it over the images that have any."""
    from sklearn.metrics import average_precision_score

    predicted = np.stack([heat > heat.mean() for heat in heats])
    values = [average_precision_score(mask.ravel(), heat.ravel()) for heat, mask in zip(heats, masks) if mask.any()]
    return (predicted & masks).sum() / (predicted | masks).sum(), float(np.mean(values))


def test_heat_and_figures_equal_their_definitions():
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(5, 3, 4)).astype(np.float32)
    heats = figures.heat_maps(torch.from_numpy(maps), 18)
    np.testing.assert_allclose(heats, [literal.heat_map(patches, 18) for patches in maps], atol=1e-6)
    masks = torch.from_numpy(rng.uniform(size=(5, 18, 18)) < heats.numpy())
    masks[1] = False
    scores = figures.Scores(0.0, torch.device("cpu"))
    scores.update(0, heats[:2], masks[:2])
    scores.update(1, heats[2:], masks[2:])
    found = scores.figures()
    assert found.pop("images_without_map") == 0
    assert scores.without_foreground == 1
    alone = found.pop("foreground_iou"), found.pop("foreground_ap")
    assert alone == pytest.approx(literal_foreground(heats.numpy(), masks.numpy()), abs=1e-6)
    assert found == pytest.approx(literal.segmentation_figures(heats.numpy(), masks.numpy()), abs=1e-6)
    assert set(figures.FIGURES) < set(found)


@pytest.mark.parametrize("thr", [0.0, 0.35])
def test_the_curve_is_scikit_learns_at_its_thresholds(thr):
    from sklearn.metrics import precision_score, recall_score

    rng = np.random.default_rng(1)
    heats = torch.from_numpy(rng.uniform(size=(4, 9, 9)).astype(np.float32))
    heats[0, 0, 0] = 1
    masks = heats > torch.from_numpy(rng.uniform(size=(4, 9, 9)))
    scores = figures.Scores(thr, torch.device("cpu"))
    scores.update(0, heats, masks)
    precision, recall = scores.curve()
    assert precision.shape == recall.shape == (1001,)
    for i in (0, 1, 250, 350, 351, 700, 1000):
        predicted = np.maximum(heats.numpy().ravel(), np.float32(thr)) >= figures.THRESHOLDS[i]
        assert precision[i] == pytest.approx(precision_score(masks.ravel(), predicted, zero_division=1))
        assert recall[i] == pytest.approx(recall_score(masks.ravel(), predicted))


def test_scores_of_parts_of_the_batches_add_up_to_the_same_bits():
    rng = np.random.default_rng(4)
    heats = torch.from_numpy(rng.uniform(size=(41, 9, 9)).astype(np.float32))
    masks = torch.from_numpy(rng.uniform(size=(41, 9, 9)) < heats.numpy())
    heats[5], masks[6] = 0, False
    batches = list(enumerate(zip(heats.split(2), masks.split(2))))

    def fed(chosen):
        scores = figures.Scores(0.1, torch.device("cpu"))
        for number, (heat, mask) in chosen:
            scores.update(number, heat, mask)
        return scores

    together, parts = fed(batches), fed(batches[1::3])
    for others in (batches[2::3], batches[::3], []):
        parts.add(fed(others))
    assert parts.figures() == together.figures()
    assert parts.figures()["images_without_map"] == 1
    for found, expected in zip(parts.curve(), together.curve()):
        assert (found == expected).all()
    parts.average_precisions = {2: [1.0], 0: [1e16], 1: [-1e16]}  # whose sum is 0 in this order
    parts.of_foreground = {1: [-1e16, 1.0], 0: [1e16]}
    assert parts.figures()["mean_ap"] == parts.figures()["foreground_ap"] == pytest.approx(1 / 3)


def test_batches_by_number_are_those_of_all(oblong_folder):
    for i in range(4):
        for part in ("images", "masks"):
            Image.fromarray(np.full((40, 80), 40 * i, np.uint8)).save(oblong_folder / part / f"{i}.png")
    prepare, _ = transform(loading.load("emojiclip", None, torch.device("cpu")), (8, 8), 32)
    together = list(batches(oblong_folder, prepare, 32, "published", 2))
    assert [len(masks) for _, masks in together] == [2, 2, 1]
    assert len({float(pixels.mean()) for pixels, _ in together}) == 3
    for numbers in ([2], [0, 2], [1], []):
        found = list(batches(oblong_folder, prepare, 32, "published", 2, numbers))
        assert len(found) == len(numbers)
        for number, batch in zip(numbers, found):
            assert all((part == whole).all() for part, whole in zip(batch, together[number]))


@pytest.mark.parametrize("value", [0.0, 0.3, -1.0, 1e-30, 1e30, float("nan"), float("inf")])
def test_a_constant_map_is_all_background(value):
    heat = figures.heat_maps(torch.full((2, 3, 3), value), 32)
    assert (heat == 0).all()
    assert not figures.foreground(heat).any()
    scores = figures.Scores(0.0, torch.device("cpu"))
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, :8] = True
    scores.update(0, heat, masks)
    found = scores.figures()
    assert found["images_without_map"] == 2
    assert found["pixel_accuracy"] == pytest.approx(0.875)
    assert found["iou_foreground"] == 0
    assert all(np.isfinite(number) for number in found.values())


def test_a_data_set_without_foreground_has_figures():
    scores = figures.Scores(0.0, torch.device("cpu"))
    heat = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    scores.update(0, heat, masks)
    found, (precision, recall) = scores.figures(), scores.curve()
    assert found["foreground_ap"] == 0 == found["foreground_iou"]
    expected = literal.segmentation_figures(heat.numpy(), masks.numpy())
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert np.isfinite(precision).all()
    assert (recall == 1).all()
    assert precision[0] == 0


def test_sizes_that_patches_do_not_cover_are_refused():
    model = loading.load("emojiclip", None, torch.device("cpu"))
    assert transform(model, (8, 8), 48)[1] == 48
    assert transform(model, (8, 8), None)[1] == 64
    for size, nearest in ((37, "32 and 40"), (3, "8 and 16")):
        with pytest.raises(UserError, match=f"nearest are {nearest}"):
            transform(model, (8, 8), size)


@pytest.fixture
def oblong_folder(tmp_path):
    """One image twice as wide as high: white on the left half and black on the right, with the same mask."""
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        picture = np.zeros((40, 80), np.uint8)
        picture[:, :40] = 255
        Image.fromarray(picture).save(tmp_path / part / "half.png")
    return tmp_path


def one_batch(data_path, mask_resize):
    vision = loading.load("emojiclip", None, torch.device("cpu"))
    prepare, _ = transform(vision, (8, 8), 32)
    (pixels, masks), = batches(data_path, prepare, 32, mask_resize)
    assert pixels.shape == (1, 3, 32, 32)
    assert masks.shape == (1, 32, 32)
    assert masks.dtype == torch.bool
    return pixels[0, 0] > 0, masks[0]


def test_an_aligned_mask_is_cropped_like_its_image_and_a_published_one_squeezed(tmp_path, oblong_folder):
    mask = np.zeros((40, 80), np.uint8)
    mask[:, :30] = 1
    Image.fromarray(mask).save(oblong_folder / "masks" / "half.png")
    for how, width in (("published", 12), ("aligned", 8)):  # 30 of 80 columns; and 10 of the 40 in the middle
        _, found = one_batch(oblong_folder, how)
        assert (found.sum(dim=1) == width).all(), how
    Image.fromarray(np.where(np.arange(80) < 40, 255, 0)[None].repeat(40, 0).astype(np.uint8)).save(
        oblong_folder / "masks" / "half.png")
    white, found = one_batch(oblong_folder, "aligned")
    assert (white == found).all()


@pytest.mark.parametrize("options", [{"crop_pct": 0.5}, {"crop_pct": 0.9}, {"crop_pct": 0.8, "crop_mode": "squash"},
                                     {"crop_mode": "border"}])
def test_a_mask_goes_through_the_same_resizing_and_cropping_as_its_image_by_timms_transform(oblong_folder, options):
    from timm.data import create_transform

    vision = model_of(None, (32, 32),
                      preprocess=create_transform((3, 32, 32), is_training=False, mean=(0.3,) * 3, std=(0.2,) * 3,
                                                  interpolation="bilinear", **options))
    for part in ("images", "masks"):  # white at the left, a quarter from the top
        picture = np.zeros((40, 80), np.uint8)
        picture[10:, :35] = 255
        Image.fromarray(picture).save(oblong_folder / part / "half.png")
    prepare, side = transform(vision, None, None)
    (pixels, masks), = batches(oblong_folder, prepare, side, "aligned")
    white = pixels[0, 0] * 0.2 + 0.3 > 0.5
    if options.get("crop_mode") == "border":  # the border is grey, and no foreground
        white[:8], white[24:] = False, False
    assert side == 32
    assert masks.shape == (1, 32, 32)
    assert (white == masks[0]).float().mean() > 0.97
    assert 0.1 < masks.float().mean() < 0.9


def test_sizes_of_a_model_that_takes_its_own_alone():
    vision = model_of(None, (32, 32), preprocess="its own")
    assert transform(vision, None, None) == transform(vision, None, 32) == ("its own", 32)
    with pytest.raises(UserError, match="--image_size 64: the model takes images at its own size alone"):
        transform(vision, None, 64)
    vision.image_size = (24, 40)
    with pytest.raises(UserError, match="24 x 40 pixels, and figures are taken on squares"):
        transform(vision, None, None)


def test_true_classes_are_those_of_the_scenes():
    data = datasets.load_masks("emoji_seg")
    truth = true_classes(data, data.classes)
    assert [data.classes[label] for label in truth] == [scenes.concepts()[scene.object]["name"]
                                                        for scene in data.scenes]
    for classes in (None, data.classes[1:]):
        with pytest.raises(UserError, match="the classifier has other classes than the images"):
            true_classes(data, classes)


@pytest.mark.parametrize("kind", ["boolean", "palette", "colour", "sixteen bits", "grey with alpha"])
def test_any_value_but_black_is_foreground(oblong_folder, kind):
    left = np.arange(80)[None].repeat(40, 0) < 40
    made = {"boolean": lambda: Image.fromarray(left),
            "palette": lambda: Image.fromarray(left.astype(np.uint8)).convert("P"),
            "colour": lambda: Image.fromarray(np.stack([0 * left, 0 * left, left], axis=2).astype(np.uint8)),
            "sixteen bits": lambda: Image.fromarray((left * 256).astype(np.uint16)),
            "grey with alpha": lambda: Image.merge("LA",
                                                   [Image.fromarray(left.astype(np.uint8)),
                                                    Image.new("L", (80, 40), 255)])}
    made[kind]().save(oblong_folder / "masks" / "half.png")
    white, found = one_batch(oblong_folder, "aligned")
    assert (white == found).all()
    assert found.any()
    assert not found.all()


def test_an_image_is_turned_upright_before_it_meets_its_mask(oblong_folder):
    path = oblong_folder / "images" / "half.png"
    tag = Image.Exif()
    tag[0x0112] = 6  # to be turned by 90 degrees
    Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path.with_suffix(".jpg"), exif=tag, quality=95)
    path.unlink()
    white, found = one_batch(oblong_folder, "aligned")
    assert (white == found).float().mean() > 0.95


def test_pictures_show_what_they_are_named_for(tmp_path):
    vision = loading.load("emojiclip", None, torch.device("cpu"))
    prepare, _ = transform(vision, (8, 8), 16)
    shown = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8))
    heat = torch.linspace(0, 1, 256).reshape(1, 16, 16)
    masks = torch.zeros(1, 16, 16, dtype=torch.bool)
    masks[0, :5] = True
    figures.save_pictures(tmp_path, ["a"], prepare, prepare(shown)[None], masks, {"rollout": heat})
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")) == sorted(
        ["input/a.png", "mask/a.png", "rollout_heat/a.png", "rollout_mask/a.png", "rollout_overlay/a.png"])
    assert (np.asarray(Image.open(tmp_path / "input" / "a.png")) == np.asarray(shown)).all()
    assert (np.asarray(Image.open(tmp_path / "mask" / "a.png")) == masks[0].numpy()).all()
    assert (np.asarray(Image.open(tmp_path / "rollout_mask" / "a.png")) == (heat[0] > 0.5).numpy()).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: maps and figures on a GPU were not covered")
def test_a_gpu_gives_the_same_maps_and_figures():
    model, classifier = random_clip(), random_classifier()
    images, masks = images_for(model, 3), torch.arange(32).expand(3, 32, 32) > 20
    found = []
    for device in ("cpu", "cuda"):
        maps = maps_of(model.to(device).visual, images.to(device), classifier.to(device))
        scores = figures.Scores(0.0, torch.device(device))
        scores.update(0, figures.heat_maps(maps, 32), masks.to(device))
        found.append(scores.figures())
        assert all(values.shape == (1001,) for values in scores.curve())
    assert found[1] == pytest.approx(found[0], abs=1e-3)
