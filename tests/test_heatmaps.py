import json

import literal
import numpy as np
import pytest
import torch
from builders import (
    FAMILIES,
    ROOT,
    SWIN,
    TEXT,
    VARIANTS,
    VISION,
    family_model,
    images_for,
    model_of,
    random_clip,
    random_images,
    random_maps,
    walked,
)
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform

from utils.analysis import alignment, heatmaps
from utils.cli import UserError
from utils.decompose.decomposer import Decomposer
from utils.models import loading

SELECTIONS = [(None, None), (1, None), (1, 2)]


def random_directions(width: int, number: int = 2) -> np.ndarray:
    directions = np.random.default_rng(0).normal(size=(number, width)).astype(np.float32)
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def emojiclip():
    return loading.load("emojiclip", None, torch.device("cpu"))


@pytest.fixture(scope="module")
def decomposer(emojiclip):
    return Decomposer(emojiclip)


def pixels_of(picture, clip, patch_size):
    pixels, shown = heatmaps.prepare(picture, clip, patch_size)
    assert shown is picture
    return pixels


@pytest.fixture
def photo():
    """A picture of no symmetry, 60 pixels wide and 40 high."""
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 60, 3), dtype=np.uint8))


@pytest.fixture
def photo_file(photo, tmp_path):
    photo.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize("layer, head", SELECTIONS)
@pytest.mark.parametrize("changes",
                         [{}, {"vision_cfg": {"image_size": [24, 40]}}, {"vision_cfg": {"ls_init_value": 0.4}}])
def test_maps_and_parts_equal_their_definition(layer, head, changes):
    model = random_clip(**changes)
    images, directions = images_for(model, 1), random_directions(20)
    found = heatmaps.explain(Decomposer(model_of(model.visual)), images, ["a", "b"], directions, layer, head)
    slow = literal.decompose(model.visual, images)
    attn, mlp = slow["attn"][0].numpy(), slow["mlp"][0].numpy()  # [l, n, h, d], [l + 1, d]
    chosen = attn[slice(None) if layer is None else [layer]][:, :, slice(None) if head is None else [head]]
    rows, columns = (size // 8 for size in model.visual.image_size)
    for one, direction in zip(found, directions.astype(np.float64)):
        expected = (chosen[:, 1:].sum(axis=(0, 2)) @ direction).reshape(rows, columns)
        np.testing.assert_allclose(one.patches, expected, atol=1e-5)
        values = [expected.sum(), attn[:, 0].sum(axis=(0, 1)) @ direction, mlp[1:].sum(axis=0) @ direction,
                  mlp[0] @ direction]
        if layer is not None:
            values.insert(1, attn[:, 1:].sum(axis=(0, 1, 2)) @ direction - expected.sum())
        np.testing.assert_allclose(list(one.parts.values()), values, atol=1e-5)
        np.testing.assert_allclose(one.similarity, slow["representation"][0].numpy() @ direction, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (60, 40), (31, 97), (200, 50), (1, 1)])
@pytest.mark.parametrize("layer, head", [(None, None), (3, None), (3, 1)])
def test_parts_sum_to_the_similarity_at_any_aspect_ratio(emojiclip, decomposer, photo, size, layer, head):
    pixels = pixels_of(photo.resize(size), emojiclip, decomposer.patch_size)
    for one in heatmaps.explain(decomposer, pixels, ["a", "b"], random_directions(128), layer, head):
        assert sum(one.parts.values()) == pytest.approx(one.similarity, abs=1e-5)
        assert one.patches.sum() == pytest.approx(list(one.parts.values())[0], abs=1e-5)
        assert one.patches.shape == (pixels.shape[2] // 8, pixels.shape[3] // 8)


def test_heads_sum_to_their_layer_and_layers_to_the_whole(emojiclip, decomposer, photo):
    directions, pixels = random_directions(128), pixels_of(photo, emojiclip, decomposer.patch_size)

    def maps(layer=None, head=None):
        return np.stack([one.patches
                         for one in heatmaps.explain(decomposer, pixels, ["a", "b"], directions, layer, head)])

    np.testing.assert_allclose(sum(maps(2, head) for head in range(6)), maps(2), atol=1e-5)
    np.testing.assert_allclose(sum(maps(layer) for layer in range(6)), maps(), atol=1e-5)


def test_a_square_picture_is_what_the_model_itself_would_see(emojiclip, decomposer, photo):
    square = photo.resize((90, 90))
    pixels = pixels_of(square, emojiclip, (8, 8))
    assert torch.equal(pixels[0], emojiclip.preprocess(square))
    one = heatmaps.explain(decomposer, pixels, ["a"], random_directions(128, 1))[0]
    own = torch.nn.functional.normalize(emojiclip.network.encode_image(pixels), dim=-1)[0].numpy()
    assert one.similarity == pytest.approx(own @ random_directions(128, 1)[0], abs=1e-5)


@pytest.mark.parametrize("size, patch, expected", [
    ((60, 40), (8, 8), (64, 96)), ((40, 60), (8, 8), (96, 64)), ((100, 99), (8, 8), (64, 64)),
    ((100, 80), (8, 8), (64, 80)),
    ((60, 40), (7, 7), (63, 98)), ((4000, 1000), (8, 8), (64, 256)), ((4, 3), (8, 16), (64, 80))])
def test_sizes_follow_the_picture_in_whole_patches(emojiclip, photo, size, patch, expected):
    assert tuple(pixels_of(photo.resize(size), emojiclip, patch).shape) == (1, 3, *expected)


def test_the_script_prints_draws_and_writes(run_script, photo_file, tmp_path):
    picture = tmp_path / "new" / "out.png"
    code, out, err = run_script("compute_heatmaps", "--model", "emojiclip", "--device", "cpu", "--image", photo_file,
                                "--text",
                                "a red apple", "costs $5 or $6\nin all", "--text", "a dog", "--output", picture,
                                "--layer", "5", "--head", "1")
    assert code == 0, err
    assert "layer 5, head 1, patches" in out
    assert "= cosine similarity" in out
    assert out.count("MLPs") == 3
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG"
        assert min(drawn.size) > 300
    written = json.loads(picture.with_suffix(".json").read_text())
    assert [entry["text"] for entry in written["texts"]] == ["a red apple", "costs $5 or $6\nin all", "a dog"]
    assert (written["grid"], written["pixels"], written["layer"], written["head"]) == ([8, 12], [64, 96], 5, 1)
    for entry in written["texts"]:
        assert np.shape(entry["patches"]) == (8, 12)
        assert sum(entry["parts"].values()) == pytest.approx(entry["similarity"], abs=1e-5)
    assert sorted(path.name for path in picture.parent.iterdir()) == ["out.json", "out.png"]


def test_default_place_and_settings_file(run_script, photo_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(f"model: emojiclip\nimage: {photo_file}\ntext: a dog\n")
    code, out, err = run_script("compute_heatmaps", "--config", "s.yaml", "--device", "cpu")
    assert code == 0, err
    assert "\na dog\n" in "\n" + out, err
    assert (tmp_path / "output_dir" / "photo_heatmaps.png").is_file()
    code, out, err = run_script("compute_heatmaps", "--config", "s.yaml", "--device", "cpu", "--text", "a cat")
    assert code == 0, err
    assert "a cat" in out, err
    assert "a dog" not in out, err


def test_a_number_in_a_settings_file_is_no_text(refused, photo_file, tmp_path):
    for text in ("5", "[a, 5]"):
        (tmp_path / "s.yaml").write_text(f"image: {photo_file}\ntext: {text}\n")
        assert "text is 5, and should be text; put it in quotes" in refused("compute_heatmaps", "--config",
                                                                            tmp_path / "s.yaml")


def test_a_map_of_zeros_is_drawn_white(photo, tmp_path):
    from utils.plots import sheets

    sheets.heat_maps(photo, [("nothing", np.zeros((2, 3), np.float32), "a table")], "title", tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_the_input_is_not_replaced(refused, photo_file):
    before = photo_file.read_bytes()
    assert "would replace --image" in refused("compute_heatmaps", "--image", photo_file, "--text", "a", "--output",
                                              photo_file)
    assert photo_file.read_bytes() == before


def _truncated(path, photo):
    photo.resize((300, 200)).save(path, "PNG")
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize("make, message", [
    (lambda path, photo: None, "no such file"), (lambda path, photo: path.mkdir(), "is a folder; give a file"),
    (lambda path, photo: path.write_text("<svg></svg>"), "in no format of Pillow's"),
    (lambda path, photo: path.write_bytes(b""), "in no format of Pillow's"), (_truncated, "cannot be read"),
    (lambda path, photo: photo.resize((410, 100)).save(path, "PNG"), "410 x 100 pixels; crop it")])
def test_files_that_are_no_fitting_picture_are_refused_before_a_model_is_loaded(refused, photo, tmp_path, make,
                                                                                message):
    make(tmp_path / "x", photo)
    line = refused("compute_heatmaps", "--model", "no such model", "--image", tmp_path / "x", "--text", "a")
    assert message in line
    assert "--image" in line


def test_python_callers_get_the_same_refusals(emojiclip, decomposer, photo):
    with pytest.raises(UserError, match="head needs its layer"):
        heatmaps.explain(decomposer, pixels_of(photo, emojiclip, (8, 8)), ["a"], random_directions(128, 1), None, 1)


@pytest.mark.parametrize("layer, head", SELECTIONS)
@pytest.mark.parametrize("name", ["plain", "layer_scale", "oblong", "cut_patches", "qk_norm_scaled_heads"])
def test_the_walk_gives_the_maps_and_parts_of_the_fast_path(name, layer, head):
    model = random_clip(**VARIANTS[name])
    images, directions = images_for(model, 1), random_directions(20)
    found, expected = (heatmaps.explain(Decomposer(each), images, ["a", "b"], directions, layer, head)
                       for each in (walked(model.visual), model_of(model.visual)))
    for one, other in zip(found, expected):
        assert one.text == other.text
        assert one.similarity == pytest.approx(other.similarity, abs=1e-5)
        np.testing.assert_allclose(one.patches, other.patches, atol=5e-6)
        assert one.parts == pytest.approx(other.parts, abs=1e-5)


@pytest.mark.parametrize("family",
                         ["vit", "vit_average", "vit_oblong", "deit_distilled", "dinov2_registers", "siglip", "swin",
                          "swin_padded", "maxvit"])
def test_a_mapped_models_maps_and_parts_equal_their_definition(family):
    """Each head's terms of tokens, one coordinate after the other, through that head's own map; patches of a coarser
    layer one by one."""
    model, images = family_model(family), random_images(FAMILIES[family][1]["img_size"], 1)
    decomposer = Decomposer(model)
    terms = decomposer.terms(images)
    stored, order = terms.values[0], terms.components
    weight, bias = random_maps(len(stored), stored.shape[-1])
    whole = alignment.mapped(weight, bias, stored[None]).sum(dim=1)[0]
    directions, length = random_directions(10), whole.norm()
    tokens = decomposer.tokens(images, torch.eye(stored.shape[-1])[:, None]).scores  # layer -> [d, 1, h, n]
    scored = {}  # (layer, head) -> [m, n]
    for place, one in enumerate(order):
        if one.kind == "attn":
            own = tokens[one.layer][:, 0, one.head].T
            mapped = (own @ weight[place] + bias / len(stored) / len(own)) / length
            scored[one.layer, one.head] = (mapped @ directions.T).T.numpy()
    prefix = model.prefix_tokens
    sizes = {layer: scores.shape[1] - prefix for (layer, _), scores in scored.items()}
    aspect = model.image_size[0] / model.image_size[1]
    grids = {layer: (round((number * aspect) ** 0.5), round((number / aspect) ** 0.5))
             for layer, number in sizes.items()}
    finest = max(grids.values())

    def laid(layer, values, grid):
        rows, columns = grids[layer]
        out = np.zeros(grid)
        cells = [[r * rows // grid[0] * columns + c * columns // grid[1] for c in range(grid[1])]
                 for r in range(grid[0])]
        for cell in np.unique(cells):
            out[cells == cell] = values[cell] / np.sum(cells == cell)
        return out

    first = min(layer for layer, _ in scored)
    for layer, head in [(None, None), (first, None), (max(sizes), 0)]:
        wanted = [key for key in scored if layer in (None, key[0]) and head in (None, key[1])]
        grid = finest if layer is None else grids[layer]
        found = heatmaps.explain(decomposer, images, ["a", "b"], directions, layer, head, (weight, bias))
        for i, one in enumerate(found):
            expected = sum(laid(key[0], scored[key][i, prefix:], grid) for key in wanted)
            assert one.patches.shape == grid
            np.testing.assert_allclose(one.patches, expected, atol=np.abs(expected).max() / 200)
            assert one.similarity == pytest.approx(float(whole @ directions[i] / length), abs=1e-5)
            assert sum(one.parts.values()) == pytest.approx(one.similarity, abs=1e-5)
            own = ((stored[:, None] @ weight)[:, 0] + bias / len(stored)) @ directions[i] / length
            kinds = [component.kind for component in order]
            labels = {"mlp": "MLPs", "conv": "convolution blocks",
                      "embed": "constant (class embedding)" if model.class_token else "embedding"}
            others = {label: float(sum(own[k] for k in range(len(kinds)) if kinds[k] == kind))
                      for kind, label in labels.items() if kind in kinds}
            patches = float(sum(scores[i, prefix:].sum() for scores in scored.values()))
            others[f"{heatmaps.selection(layer, head)}, patches"] = expected.sum()
            if layer is not None:
                others[f"other {'layers' if head is None else 'heads'}, patches"] = patches - expected.sum()
            if prefix:
                alone = prefix == 1 and model.class_token
                label = "class token to itself" if alone else "class and register tokens"
                others[label] = float(sum(scores[i, :prefix].sum() for scores in scored.values()))
            assert one.parts == pytest.approx(others, abs=2e-5)


def test_heads_of_a_hierarchical_model_sum_to_their_layer_and_layers_to_the_whole():
    decomposer, images, directions = Decomposer(family_model("swin")), random_images(SWIN["img_size"],
                                                                                     1), random_directions(96)

    def maps_of(layer=None, head=None):
        return heatmaps.explain(decomposer, images, ["a"], directions[:1], layer, head)[0].patches

    layers = [maps_of(layer) for layer in range(5)]
    assert [patches.shape for patches in layers] == [(14, 14), (14, 14), (7, 7), (7, 7), (4, 4)]
    np.testing.assert_allclose(sum(maps_of(4, head) for head in range(4)), layers[4], atol=1e-6)
    np.testing.assert_allclose(maps_of().sum(), sum(patches.sum() for patches in layers), atol=1e-6)
    np.testing.assert_allclose(maps_of()[:2, :2].sum(), sum(patches[:2, :2].sum() for patches in layers[:2])
                               + sum(patches[0, 0] for patches in layers[2:4]) + layers[4][0, 0] / 4, atol=1e-6)


def test_layers_and_heads_that_a_walked_model_lacks_are_refused():
    decomposer, images, directions = Decomposer(family_model("swin")), random_images(SWIN["img_size"],
                                                                                     1), random_directions(96, 1)
    for layer, head, message in ((5, None, "layer 5: the model's layers with heads are 0, 1, 2, 3, 4"),
                                 (-1, None, "layer -1"), (0, 2, "head 2: layer 0 has 2 of them"), (0, -1, "head -1"),
                                 (None, 1, "head needs its layer")):
        with pytest.raises(UserError, match=message):
            heatmaps.explain(decomposer, images, ["a"], directions, layer, head)


def test_tokens_that_are_no_grid_and_maps_of_other_components_are_refused():
    model, images = family_model("vit"), random_images(32, 1)
    for prefix in (0, 17):
        model.prefix_tokens = prefix
        with pytest.raises(UserError, match="tokens cannot be laid out on its images of 32 x 32 pixels"):
            heatmaps.explain(Decomposer(model), images, ["a"], random_directions(48, 1))
    for number, width in ((15, 48), (16, 47)):
        with pytest.raises(UserError,
                           match=f"for {number} components of width {width}, and the model has 16 of width 48"):
            heatmaps.explain(Decomposer(model), images, ["a"], random_directions(10, 1),
                             maps=random_maps(number, width))


@pytest.mark.parametrize("options",
                         [{}, {"crop_pct": 0.5}, {"crop_pct": 0.9, "crop_mode": "squash"}, {"crop_mode": "border"}])
@pytest.mark.parametrize("size", [(60, 40), (31, 97), (64, 64)])
def test_the_picture_that_is_shown_is_what_the_model_sees(photo, options, size):
    vision = model_of(None, (32, 32), preprocess=create_transform((3, 32, 32), is_training=False, **options))
    pixels, shown = heatmaps.prepare(photo.resize(size), vision, None)
    assert shown.size == (32, 32)
    normalize = vision.preprocess.transforms[-1]
    seen = pixels[0] * normalize.std[:, None, None] + normalize.mean[:, None, None]
    np.testing.assert_allclose(np.asarray(shown).transpose(2, 0, 1) / 255, seen, atol=1e-5)


@pytest.fixture(scope="module")
def emojivit():
    return loading.load(f"timm:local-dir:{ROOT / 'models' / 'emojivit'}", None, torch.device("cpu"))


@pytest.fixture
def maps_file(emojivit, emojiclip, tmp_path):
    """Random maps of emojivit to emojiclip; a function that writes them, with some entries changed."""
    def write(**changes):
        about = {"model": "emojivit", "pretrained": emojivit.source, "weights_sha256": emojivit.weights_hash,
                 "clip": "emojiclip", "clip_option": "emojiclip", "clip_pretrained": "emojiclip",
                 "clip_weights_sha256": emojiclip.weights_hash, "components": {"attn": [6, 6, 192], "mlp": [7, 192]}}
        alignment.save(tmp_path / "maps.safetensors", *random_maps(43, 192, 128), about | changes)
        return tmp_path / "maps.safetensors"
    return write


EMOJIVIT = ("--model", f"timm:local-dir:{ROOT / 'models' / 'emojivit'}", "--device", "cpu")


def test_a_mapped_models_picture_and_numbers(run_script, photo, photo_file, maps_file, emojivit, emojiclip, tmp_path):
    from utils.analysis.zeroshot import embed_texts

    file, parts = maps_file(), {}
    for name, options in (("all", ()), ("head", ("--layer", "5", "--head", "1"))):
        code, out, err = run_script("compute_heatmaps", *EMOJIVIT, "--maps", file, "--image", photo_file, "--text",
                                    "a dog",
                                    "red", "--output", tmp_path / f"{name}.png", *options)
        assert code == 0, err
        assert "class token to itself" in out, err
        assert "8 x 8 patches, 2 texts" in out, err
        found = json.loads((tmp_path / f"{name}.json").read_text())
        assert (found["grid"], found["pixels"], found["text_model"]) == ([8, 8], [64, 64], "emojiclip")
        assert found["maps"] == str(file)
        assert len(found["maps_sha256"]) == 64
        for entry in found["texts"]:
            assert sum(entry["parts"].values()) == pytest.approx(entry["similarity"], abs=1e-5)
        parts[name] = found["texts"]
    with Image.open(tmp_path / "all.png") as drawn:
        assert min(drawn.size) > 300
    trained, pixels = alignment.load(file), emojivit.preprocess(photo)[None]
    terms = Decomposer(emojivit).terms(pixels).values
    whole = torch.nn.functional.normalize(alignment.mapped(trained.weight, trained.bias, terms).sum(dim=1),
                                          dim=-1)[0].numpy()
    for entry, text in zip(parts["all"], embed_texts(emojiclip, ["a dog", "red"], 2)):
        assert entry["similarity"] == pytest.approx(float(whole @ text), abs=1e-5)


@pytest.mark.parametrize("embed_dim, vision_cfg, grid", [
    (20, VISION | {"pool_type": "avg"}, [4, 4]),
    (64, {"timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none", "image_size": 160}, [10, 10])])
def test_a_clip_that_the_walk_alone_takes_gets_the_picture_at_its_own_size(run_script, photo_file, tmp_path, embed_dim,
                                                                          vision_cfg, grid):
    import open_clip

    torch.manual_seed(0)
    config = {"embed_dim": embed_dim, "vision_cfg": vision_cfg, "text_cfg": TEXT}
    save_file(open_clip.CLIP(**config).state_dict(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    code, out, err = run_script("compute_heatmaps", "--model", f"local-dir:{tmp_path}", "--device", "cpu", "--image",
                                photo_file,
                                "--text", "a dog", "--output", tmp_path / "x.png")
    assert code == 0, err
    found = json.loads((tmp_path / "x.json").read_text())
    assert (found["grid"], found["pixels"]) == (grid, [vision_cfg["image_size"]] * 2)
    (entry,) = found["texts"]
    assert list(entry["parts"]) == ["all heads, patches", "class and register tokens", "MLPs", "embedding"]
    assert sum(entry["parts"].values()) == pytest.approx(entry["similarity"], abs=1e-5)
    assert np.abs(entry["patches"]).max() > 1e-5


def test_wrong_maps_are_refused(refused, photo_file, maps_file, tmp_path):
    def line(*options):
        return refused("compute_heatmaps", "--image", photo_file, "--text", "a", *options)

    assert "has no text side; give --maps" in line(*EMOJIVIT)
    assert "does not exist; make them with compute_alignment.py" in line(*EMOJIVIT, "--maps", tmp_path / "none")
    assert "not maps of compute_alignment.py" in line(*EMOJIVIT, "--maps", photo_file)
    assert "maps were trained with --model other, and --model is emojivit" in line(*EMOJIVIT, "--maps",
                                                                                   maps_file(model="other"))
    assert "trained with other weights of emojivit" in line(*EMOJIVIT, "--maps", maps_file(weights_sha256="0" * 64))
    assert "mapped to emojiclip, whose weights are others" in line(*EMOJIVIT, "--maps",
                                                                   maps_file(clip_weights_sha256="0" * 64))
    assert "maps were trained with --model emojivit, and --model is emojiclip" in line("--model", "emojiclip",
                                                                                       "--device", "cpu",
                                                                                       "--maps", maps_file())
    assert "layer 6: the model's layers" in line(*EMOJIVIT, "--maps", maps_file(), "--layer", "6")
