"""Maps from components to a CLIP's space: against literal definitions, on planted truths, and through the script."""
import json

import numpy as np
import pytest
import torch
from builders import opened, save_timm, write_run
from sklearn.linear_model import LinearRegression, Ridge

from utils.analysis import alignment
from utils.runs.run import Run

D = 12  # of the CLIP's space


def write(folder, dataset, model, parts, labels, seed=0, **about):
    """A run whose weights follow from the model's name and a seed."""
    write_run(folder, dataset, model, parts, labels, pretrained=f"seed {seed}", weights_sha256=f"{model} {seed}",
              **about)


def literal_loss(weight, bias, x, y, penalty_weight):
    """1 - cosine, averaged over images, plus the penalty, averaged over components; number by number."""
    images, (number, k, d) = len(x), weight.shape
    distance = 0.0
    for b in range(images):
        total = [bias[j] + sum(x[b, c, i] * weight[c, i, j] for c in range(number) for i in range(k)) for j in range(d)]
        dot = sum(total[j] * y[b, j] for j in range(d))
        distance += (1 - dot / (sum(t * t for t in total) * sum(v * v for v in y[b])) ** 0.5) / images
    penalty = 0.0
    for c in range(number):
        for i in range(d):
            for j in range(d):
                entry = sum(weight[c, r, i] * weight[c, r, j] for r in range(k)) - (i == j)
                penalty += d * entry ** 2 / d ** 2 / number
    return distance + penalty_weight * penalty


def unit_terms(rng, images, width, shapes):
    """Random terms of those shapes, whose constant parts differ, and which sum to unit length."""
    parts = {what: rng.normal(size=(images, *shape, width)) + rng.normal(size=(*shape, width))
             for what, shape in shapes.items()}
    whole = sum(part.reshape(images, -1, width).sum(axis=1) for part in parts.values())
    length = np.linalg.norm(whole, axis=1)
    return {what: (part / length.reshape(-1, *[1] * (part.ndim - 1))).astype(np.float32)
            for what, part in parts.items()}


def flat(parts):
    return np.concatenate([part.reshape(len(part), -1, part.shape[-1]) for part in parts.values()], axis=1)


@pytest.fixture
def planted(tmp_path):
    """A model "m" and a CLIP "clip" of as many dimensions, whose representation is the normalised sum of m's
    components, each turned by an orthogonal matrix of its own; splits train (600 images) and test (70)."""
    rng = np.random.default_rng(3)
    turns = np.linalg.qr(rng.normal(size=(9, D, D)))[0]
    for dataset, images in (("emoji_train", 600), ("emoji", 70)):
        parts = unit_terms(rng, images, D, {"attn": (2, 3), "mlp": (3,)})
        labels = rng.integers(0, 2, images)
        target = np.einsum("bck,ckd->bd", flat(parts), turns)
        target = target / np.linalg.norm(target, axis=1, keepdims=True)
        halves = rng.normal(size=(images, 1, D))
        write(tmp_path, dataset, "m", parts, labels)
        write(tmp_path, dataset, "clip", {"attn": (halves / 2)[:, :, None], "mlp": target[:, None] - halves / 2},
              labels)
    return tmp_path


def options(folder, *more):
    return ("--model", "m", "--clip", "clip", "--dataset", "emoji", "--input_dir", folder, "--output_dir",
            folder / "out",
            "--device", "cpu", *more)


LONG = ("--epochs", 40, "--lr", 0.01, "--penalty_weight", 0.1)


@pytest.mark.parametrize("k, d", [(3, 4), (4, 3)])
def test_the_loss_is_the_literal_one(k, d):
    rng = np.random.default_rng(0)
    weight, bias, x, y = (rng.normal(size=shape) for shape in ((5, k, d), (d,), (2, 5, k), (2, d)))
    w, b, *xy = (torch.from_numpy(part) for part in (weight, bias, x, y))
    ours = 1 - alignment.cosines(w, b, *xy).mean() + 0.7 * alignment.penalty(w)
    assert ours.item() == pytest.approx(literal_loss(weight, bias, x, y, 0.7), rel=1e-12)
    literal = np.stack([[x[i, c] @ weight[c] + bias / 5 for c in range(5)] for i in range(2)])
    np.testing.assert_allclose(alignment.mapped(w, b, xy[0]).numpy(), literal, rtol=1e-12)


def test_orthogonal_maps_cost_nothing_and_narrow_models_cannot_reach_it():
    turns = torch.linalg.qr(torch.randn(3, 8, 8).double())[0]
    assert alignment.penalty(turns).item() < 1e-12
    assert alignment.penalty(turns[:, :, :5]).item() < 1e-12                    # k 8, d 5
    # k 5, d 8: three of eight directions are missing
    assert alignment.penalty(turns[:, :5]).item() == pytest.approx(3 / 8)


def test_the_ridge_start_is_sklearns(monkeypatch):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 6)).astype(np.float32) * [1, 2, 3, 1, 1, .1] + 4
    y = (x @ rng.normal(size=(6, 4)) + rng.normal(size=(300, 4))).astype(np.float32)
    given = torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)
    for strength in (alignment.RIDGE, 0.3):
        monkeypatch.setattr(alignment, "RIDGE", strength)
        weight, bias = alignment.ridge(*given)
        other = Ridge(alpha=strength * 300 * x.var(axis=0).mean()).fit(x, y)
        np.testing.assert_allclose(weight.numpy(), other.coef_.T, atol=1e-5)
        np.testing.assert_allclose(bias.numpy(), other.intercept_, atol=1e-4)
    monkeypatch.setattr(alignment, "RIDGE", 0)
    np.testing.assert_allclose(alignment.ridge(*given)[0].numpy(), LinearRegression().fit(x, y).coef_.T, atol=1e-5)


def test_the_start_has_the_cosine_of_ridge_and_the_scale_of_least_penalty():
    rng = np.random.default_rng(2)
    x = torch.from_numpy(flat(unit_terms(rng, 50, 6, {"attn": (2, 2), "mlp": (3,)})))
    y = torch.randn(50, 4)
    weight, bias = alignment.start("ridge", 7, x.sum(dim=1), y, 0)
    plain, intercept = alignment.ridge(x.sum(dim=1), y)
    expected = torch.nn.functional.cosine_similarity(x.sum(dim=1) @ plain + intercept, y, dim=-1)
    torch.testing.assert_close(alignment.cosines(weight, bias, x, y), expected)
    least = alignment.penalty(weight).item()
    assert least < min(alignment.penalty(weight * 0.99).item(), alignment.penalty(weight * 1.01).item())


def test_training_recovers_a_planted_alignment_and_the_mapped_run_is_the_literal_one(run_script, planted):
    code, out, err = run_script("compute_alignment", *options(planted, *LONG))
    assert code == 0, err
    folder = planted / "out"
    told = json.loads((folder / "emoji_train_maps_m_to_clip.json").read_text())
    history, best = told["history"], told["best"]
    assert history[0]["validation_cosine"] < 0.8
    assert best["validation_cosine"] > 0.99
    assert best["validation_cosine"] == max(entry["validation_cosine"] for entry in history[1:])
    assert len(history) == 41
    assert f"epoch 0: cosine {history[0]['train_cosine']:.4f}, {history[0]['validation_cosine']:.4f} held out" in out
    assert told["components"] == {"attn": [2, 3, D], "mlp": [3, D]}

    found = alignment.load(folder / "emoji_train_maps_m_to_clip.safetensors")
    assert found.weight.shape == (9, D, D)
    assert found.bias.shape == (D,)
    assert {key: value for key, value in told.items() if key != "history"} == found.about
    mapped, source, target = (Run.open(*where) for where in (
        (folder, "emoji", "m-as-clip"), (planted, "emoji", "m"), (planted, "emoji", "clip")))
    manifest, own, clip = mapped.manifest, source.manifest, target.manifest
    assert mapped.layout == {"attn": [2, 3, D], "mlp": [3, D]}
    assert len(mapped) == 70
    np.testing.assert_array_equal(mapped.labels, source.labels)
    mapped, terms, target = (run.stack(slice(None)) for run in (mapped, source, target))
    weight, bias = found.weight.double().numpy(), found.bias.double().numpy()
    reached = []
    for i in range(70):
        parts = [terms[i, column] @ weight[column] + bias / 9 for column in range(9)]
        length = np.linalg.norm(np.sum(parts, axis=0))
        np.testing.assert_allclose(mapped[i], np.array(parts) / length, atol=1e-5)
        unit = mapped[i].sum(axis=0)
        assert np.linalg.norm(unit) == pytest.approx(1, abs=1e-5)
        reached.append(unit @ target[i].sum(axis=0))
    assert manifest["cosine"] == pytest.approx(np.mean(reached), abs=1e-5)
    assert manifest["cosine"] > 0.99
    assert f"cosine {manifest['cosine']:.4f} -> " in out
    assert manifest["text_model"] == "clip"
    assert manifest["text_weights_sha256"] == clip["weights_sha256"]
    assert manifest["weights_sha256"] not in (own["weights_sha256"], clip["weights_sha256"])
    assert manifest["model"] == "m-as-clip"
    assert manifest["classes"] == own["classes"]
    assert not list(folder.glob("*.partial"))


def test_the_held_out_images_are_not_trained_on():
    rows, held = alignment.hold_out(101, 4)
    assert len(held) == 10
    assert sorted([*rows, *held]) == list(range(101))
    assert not np.array_equal(held, alignment.hold_out(101, 5)[1])
    rng = np.random.default_rng(0)
    terms = unit_terms(rng, 101, 5, {"attn": (2, 2), "mlp": (1,)})
    targets = torch.randn(101, 4)
    first = alignment.train(opened(terms), targets, "ridge", 1, 0.01, 8, 1, 4, "cpu")
    changed = {what: part.copy() for what, part in terms.items()}
    for part in (*changed.values(), targets):
        part[held] += 5
    second = alignment.train(opened(changed), targets, "ridge", 1, 0.01, 8, 1, 4, "cpu")
    assert torch.equal(first[0], second[0])
    assert first[2][1]["train_cosine"] == second[2][1]["train_cosine"]
    assert first[2][1]["validation_cosine"] != second[2][1]["validation_cosine"]


def test_the_epoch_of_the_highest_held_out_cosine_is_kept():
    rng = np.random.default_rng(6)
    terms = opened(unit_terms(rng, 40, 6, {"attn": (2, 2), "mlp": (3,)}))
    targets = torch.nn.functional.normalize(torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    weight, bias, history = alignment.train(terms, targets, "ridge", 12, 0.05, 8, 0.0, 0, "cpu")
    best = max(history[1:], key=lambda entry: entry["validation_cosine"])
    assert best["epoch"] < 12  # noise is learnt by heart later
    assert alignment.mean_cosine(weight, bias, terms, targets,
                                 alignment.hold_out(40, 0)[1]) == best["validation_cosine"]


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(run_script, planted):
    made = {}
    for folder, seed in (("one", 0), ("two", 0), ("three", 1)):
        code, _, err = run_script("compute_alignment",
                                  *options(planted, "--output_dir", planted / folder, "--seed", seed,
                                           "--start", "random"))
        assert code == 0, err
        made[folder] = {path.name: path.read_bytes() for path in (planted / folder).iterdir()}
    assert made["one"] == made["two"]
    assert len(made["one"]) == 6
    assert all((made["one"][name] == made["three"][name]) == (name == "emoji_labels.npy") for name in made["one"])


def test_maps_of_a_file_are_applied_to_any_split_and_none_are_trained(run_script, planted):
    code, *_ = run_script("compute_alignment", *options(planted))
    path = planted / "out" / "emoji_train_maps_m_to_clip.safetensors"
    code, out, err = run_script("compute_alignment",
                                *options(planted, "--maps", path, "--output_dir", planted / "again",
                                         "--apply", "train", "test"))
    assert code == 0, err
    assert "epoch" not in out
    assert "emoji_train: 600 images, cosine 0." in out
    assert "emoji: 70 images, cosine 0." in out
    first, again = (planted / "out", planted / "again")
    assert (again / "emoji_attn_m-as-clip.npy").read_bytes() == (first / "emoji_attn_m-as-clip.npy").read_bytes()
    kept = [json.loads((folder / "emoji_m-as-clip.json").read_text()) for folder in (first, again)]
    assert "--maps" in kept[1].pop("command")
    assert "--maps" not in kept[0].pop("command")
    assert [about.pop("maps") for about in kept] == [path.name, f"../out/{path.name}"]
    assert kept[0] == kept[1]
    assert not list((planted / "again").glob("*.safetensors"))
    for name in ("emoji_clip.json", "emoji_attn_clip.npy"):  # a split without the CLIP's arrays
        (planted / name).unlink()
    code, out, err = run_script("compute_alignment", *options(planted, "--maps", path))
    assert code == 0, err
    assert "emoji: 70 images -> " in out, err


def test_components_of_uneven_blocks_and_half_precision(run_script, tmp_path):
    """attn [b, c, k], conv, a wider CLIP, and float16."""
    rng = np.random.default_rng(5)
    parts = unit_terms(rng, 300, 6, {"attn": (5,), "mlp": (2,), "conv": (3,)})
    labels = np.zeros(300, np.int64)
    names = {what: [{"kind": what, "block": 0, "head": i} for i in range(len(part[0]))] for what, part in parts.items()}
    write(tmp_path, "emoji", "m", parts, labels, names=names, dtype="float16")
    write(tmp_path, "emoji", "clip", unit_terms(rng, 300, 9, {"attn": (2, 2), "mlp": (3,)}), labels)
    code, out, err = run_script("compute_alignment", *options(tmp_path, "--split", "test"))
    assert code == 0, err
    found = alignment.load(tmp_path / "out" / "emoji_maps_m_to_clip.safetensors")
    mapped = {what: np.load(tmp_path / "out" / f"emoji_{what}_m-as-clip.npy") for what in parts}
    assert {what: part.shape for what, part in mapped.items()} == {"attn": (300, 5, 9), "mlp": (300, 2, 9),
                                                                   "conv": (300, 3, 9)}
    assert all(part.dtype == np.float16 for part in mapped.values())
    given = flat(parts).astype(np.float16).astype(np.float32)
    literal = np.einsum("bck,ckd->bcd", given, found.weight) + found.bias.numpy() / 10
    literal /= np.linalg.norm(literal.sum(axis=1), axis=1)[:, None, None]
    np.testing.assert_allclose(flat(mapped), literal, atol=2e-3)
    assert json.loads((tmp_path / "out" / "emoji_components_m-as-clip.json").read_text()) == names


def test_a_model_of_timm_in_the_space_of_the_embedded_clip(run_script, folder_of_images, tmp_path):
    folder = save_timm(tmp_path, "vit")
    out = tmp_path / "out"
    data = ("--dataset", "imagefolder", "--device", "cpu", "--output_dir", out)
    for model in (f"timm:local-dir:{folder}", "emojiclip"):
        code, _, err = run_script("compute_prs", *data, "--model", model, "--data_path", folder_of_images,
                                  "--num_workers", 0)
        assert code == 0, err
    code, printed, err = run_script("compute_alignment", *data, "--input_dir", out, "--model",
                                    f"timm:local-dir:{folder}",
                                    "--split", "", "--batch_size", 4)
    assert code == 0, err
    mapped = Run.open(out, "imagefolder", "vit-as-emojiclip")
    assert mapped.layout == {"attn": [3, 4, 128], "mlp": [4, 128]}
    assert len(mapped) == 15
    unit, manifest = mapped.whole(slice(None)), mapped.manifest
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-5)
    whole = Run.open(out, "imagefolder", "emojiclip").whole(slice(None))
    assert manifest["cosine"] == pytest.approx((unit * whole).sum(axis=1).mean(), abs=1e-5)
    assert f"imagefolder: 15 images, cosine {manifest['cosine']:.4f} -> " in printed
    assert manifest["text_model"] == "emojiclip"
    assert not (out / "imagefolder_cls_attn_vit-as-emojiclip.npy").exists()
    # The model is found again by its maps, wherever they are.
    path = out / "imagefolder_maps_vit_to_emojiclip.safetensors"
    code, _, err = run_script("compute_alignment", *data[:-1], tmp_path / "again", "--input_dir", out, "--maps", path,
                              "--model", f"timm:local-dir:{folder}")
    assert code == 0, err
    for there in (mapped, Run.open(tmp_path / "again", "imagefolder", "vit-as-emojiclip")):
        model, maps = alignment.load_source(there, None, torch.device("cpu"), 0)
        assert (model.name, maps.about["clip"]) == ("vit", "emojiclip")

    code, _, err = run_script("compute_text_projection", *data, "--model", "emojiclip", "--data_path", folder_of_images)
    assert code == 0, err
    code, printed, err = run_script("compute_ablations", "--dataset", "imagefolder", "--input_dir", out, "--model",
                                    "vit-as-emojiclip")
    assert code == 0, err
    classifier = np.load(out / "imagefolder_classifier_emojiclip.npy")
    correct = ((unit @ classifier).argmax(axis=1) == mapped.labels).mean()
    assert float(printed.split("Baseline: ")[1].split()[0]) == pytest.approx(100 * correct)


def trained(run_script, planted):
    code, _, err = run_script("compute_alignment", *options(planted, "--epochs", 1))
    assert code == 0, err
    return "--maps", planted / "out" / "emoji_train_maps_m_to_clip.safetensors"


def test_maps_of_something_else_are_refused_in_one_line(run_script, refused, planted):
    given = trained(run_script, planted)
    before = sorted(path.name for path in (planted / "out").iterdir())
    assert "trained with --model m, and --model is clip" in refused(
        "compute_alignment", *options(planted, *given, "--model", "clip"))
    assert "trained with --clip clip, and --clip is emojiclip" in refused(
        "compute_alignment", *options(planted, *given, "--clip", "emojiclip"))
    rng, labels = np.random.default_rng(0), np.load(planted / "emoji_labels.npy")
    for width, layers in ((D, 1), (D + 1, 2)):
        write(planted, "emoji", "m", unit_terms(rng, 70, width, {"attn": (layers, 3), "mlp": (layers + 1,)}), labels)
        message = (f"trained for components attn [2, 3, {D}], mlp [3, {D}], and the arrays hold attn "
                   f"[{layers}, 3, {width}], mlp")
        assert message in refused("compute_alignment", *options(planted, *given))
    parts = unit_terms(rng, 70, D, {"attn": (2, 3), "mlp": (3,)})
    write(planted, "emoji", "m", parts, labels, seed=1)
    assert "other weights of m than those of the arrays (seed 1)" in refused("compute_alignment",
                                                                             *options(planted, *given))
    write(planted, "emoji", "m", parts, labels)
    write(planted, "emoji", "clip", {"attn": parts["attn"], "mlp": parts["mlp"]}, labels, seed=2)
    assert "other weights of clip than those of the arrays (seed 2)" in refused("compute_alignment",
                                                                                *options(planted, *given))
    assert sorted(path.name for path in (planted / "out").iterdir()) == before


def test_files_that_are_no_maps_are_refused(run_script, refused, planted):
    from safetensors.torch import save_file

    path = trained(run_script, planted)[1]
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    assert "not maps of compute_alignment.py, or cut off" in refused("compute_alignment",
                                                                     *options(planted, "--maps", path))
    save_file({"weight": torch.zeros(2)}, path)
    assert "not maps of compute_alignment.py, or cut off" in refused("compute_alignment",
                                                                     *options(planted, "--maps", path))
    assert "nowhere does not exist" in refused("compute_alignment", *options(planted, "--maps", "nowhere"))


def test_runs_of_other_images_are_refused(refused, planted):
    rng = np.random.default_rng(0)
    labels = np.load(planted / "emoji_train_labels.npy")
    parts = unit_terms(rng, 600, D, {"attn": (1, 2), "mlp": (2,)})
    for changes, message in (({"skipped_indices": [3]}, "differ in their skipped images"),
                             ({"classes": ["a", "c"]}, "in their classes")):
        write(planted, "emoji_train", "clip", parts, labels, **changes)
        assert message in refused("compute_alignment", *options(planted))
    write(planted, "emoji_train", "clip", {what: part[:50] for what, part in parts.items()}, labels[:50])
    assert "they are of different runs" in refused("compute_alignment", *options(planted))
    assert not (planted / "out").exists()


def test_arrays_without_a_manifest_are_refused(refused, planted):
    (planted / "emoji_train_clip.json").unlink()
    assert "emoji_train_clip.json does not exist" in refused("compute_alignment", *options(planted))


def test_one_image_is_too_few(refused, tmp_path):
    parts = unit_terms(np.random.default_rng(0), 1, D, {"attn": (1, 2), "mlp": (2,)})
    for model in ("m", "clip"):
        write(tmp_path, "emoji_train", model, parts, np.zeros(1, np.int64))
    assert "training needs at least two" in refused("compute_alignment", *options(tmp_path))
