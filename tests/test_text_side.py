"""The text tower taken apart: literal definitions, every kind of tower, words, and the scripts."""
import json
from dataclasses import replace

import literal
import numpy as np
import open_clip
import pytest
import torch
from builders import VISION, call_script, model_of, move

from utils.analysis import text_heads
from utils.cli import UserError
from utils.data import captions, datasets
from utils.decompose.texts import END, PADDING, START, TextDecomposer, group
from utils.models.loading import load
from utils.runs.run import Run

TEXTS = ["a cat", "three striped owls on a blue background", "unbelievable tyrannosaurus"]
TOWER = {"context_length": 16, "vocab_size": 49408, "width": 24, "heads": 3, "layers": 3}
SIGLIP = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
TOWERS = {  # of open_clip: its class, options of its text tower, and more
    "clip": (open_clip.CLIP, {}, {}),
    "quick_gelu": (open_clip.CLIP, {}, {"quick_gelu": True}),
    "one_layer": (open_clip.CLIP, {"layers": 1}, {}),
    "end_by_its_id": (open_clip.CLIP, {"pool_type": "eos", "eos_id": 49407}, {}),
    "siglip": (open_clip.CustomTextCLIP, SIGLIP, {}),
    "first_token": (open_clip.CustomTextCLIP, {"no_causal_mask": True, "pool_type": "first"}, {}),
    "coca": (open_clip.CoCa, {"embed_cls": True, "output_tokens": True},
             {"multimodal_cfg": {"context_length": 16, "vocab_size": 49408, "width": 24, "heads": 3, "layers": 1}}),
}


def clip_of(kind):
    """A small model with that text tower, every weight moved at random, as the scripts have it."""
    make, changes, more = TOWERS[kind]
    torch.manual_seed(0)
    vision = VISION | ({"attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True} if kind == "coca"
                       else {})
    network = move(make(embed_dim=20, vision_cfg=vision, text_cfg=TOWER | changes, **more))
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    return replace(model_of(network.visual, (32, 32)), network=network, tokenizer=tokenizer,
                   encode_text=lambda texts: network.encode_text(tokenizer(texts)))


def slow_terms(clip, kind):
    """The literal terms of each text."""
    network = clip.network.double()
    text = getattr(network, "text", network)
    found = []
    for ids in clip.tokenizer(TEXTS):
        x, n = text.token_embedding(ids), len(ids)
        if kind == "coca":
            x, n = torch.cat([x, text.cls_emb[None]]), n + 1
        causal = torch.full((n, n), -torch.inf, dtype=torch.float64).triu(1)
        mask = torch.zeros(n, n, dtype=torch.float64) if kind in ("siglip", "first_token") else causal
        if kind == "coca":  # as published: the mask of padding stands one place too far to the right
            mask = mask + torch.where(torch.cat([torch.ones(1).bool(), ids != 0]), 0.0, -torch.inf)[None]
        place = {"siglip": n - 1, "coca": n - 1, "first_token": 0}.get(kind, int(ids.argmax()))
        found.append(literal.decompose_text(text, ids, place, mask, x + text.positional_embedding))
    network.float()
    return found


@pytest.mark.parametrize("kind", TOWERS)
def test_every_term_of_a_text_equals_its_definition(kind):
    clip = clip_of(kind)
    decomposer = TextDecomposer(clip)
    arrays, words = decomposer.arrays(TEXTS), decomposer.words(TEXTS)[1]
    own = torch.nn.functional.normalize(clip.encode_text(TEXTS), dim=-1).numpy()
    np.testing.assert_allclose(arrays["attn"].sum((1, 2)) + arrays["mlp"].sum(1), own, atol=1e-5)
    assert [decomposer.names(text) for text in TEXTS] == [one.names for one in words]
    for i, slow in enumerate(slow_terms(clip, kind)):
        np.testing.assert_allclose(own[i], slow["representation"], atol=1e-5)
        np.testing.assert_allclose(arrays["attn"][i], slow["attn"].sum(1), atol=1e-5)
        slow["mlp"][0] += slow["bias"]
        np.testing.assert_allclose(arrays["mlp"][i], slow["mlp"], atol=1e-5)
        np.testing.assert_allclose(words[i].values.sum(0), slow["attn"].sum((0, 1, 2)), atol=1e-5)
        first = slow["attn"].sum((0, 2))[0]                    # of <start>, the first token, which all towers have
        assert words[i].names[0] == START
        np.testing.assert_allclose(words[i].values[0], first, atol=1e-5)
    if kind == "siglip":
        np.testing.assert_allclose(arrays["bias"][0], slow_terms(clip, kind)[0]["bias"], atol=1e-5)


def test_words_are_whole_and_what_pads_is_one():
    clip = clip_of("siglip")
    _, words = TextDecomposer(clip).words(TEXTS)
    assert words[0].names == [START, "a", "cat", END, PADDING]
    assert words[2].names == [START, "unbelievable", "tyrannosaurus", END, PADDING]
    torch.testing.assert_close(words[0].attention.sum(-1), torch.ones(3, 3))
    _, words = TextDecomposer(clip_of("coca")).words(TEXTS[:1])
    assert words[0].names[:4] == [START, "a", "cat", END]
    assert words[0].names[-1] == "<class>" or PADDING in words[0].names


def test_pieces_of_words_are_joined():
    assert group([START, "un", "real</w>", "cat</w>", END, PADDING, PADDING]) == (
        [START, "unreal", "cat", END, PADDING], [[0], [1, 2], [3], [4], [5, 6]])
    assert group(["\u2581a", "\u2581ty", "rant", END]) == (["a", "tyrant", END], [[0], [1, 2], [3]])


def test_a_batch_of_texts_gives_what_each_gives_alone():
    decomposer = TextDecomposer(clip_of("clip"))
    together, alone = decomposer.terms(TEXTS), decomposer.terms(TEXTS[1:2])
    torch.testing.assert_close(together.values[1], alone.values[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_texts_of_transformers_are_taken_apart(kind):
    import transformers

    torch.manual_seed(0)
    text = {"hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 3, "num_hidden_layers": 2,
            "vocab_size": 99, "max_position_embeddings": 16}
    vision = {"hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 3, "num_hidden_layers": 1,
              "image_size": 32, "patch_size": 8}
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=text | {"projection_dim": 20, "eos_token_id": 98},
                                         vision_config=vision, projection_dim=20)
        network = move(transformers.CLIPModel(config))
    else:
        config = transformers.SiglipConfig(text_config=text | {"projection_size": 20}, vision_config=vision)
        network = move(transformers.SiglipModel(config))
    ids = torch.randint(2, 90, (3, 9), generator=torch.Generator().manual_seed(1))
    ids[torch.arange(3), torch.tensor([4, 8, 6])] = 98
    encoded = transformers.BatchEncoding({"input_ids": ids})
    clip = replace(model_of(torch.nn.Identity(), (32, 32), prefix_tokens=1), network=network,
                   tokenizer=lambda texts: encoded,
                   encode_text=lambda texts: network.get_text_features(**encoded).pooler_output)
    assert TextDecomposer(clip).check(["a"] * 3) < 1e-5


def test_what_has_no_known_text_tower_is_refused():
    with pytest.raises(UserError, match="no text side"):
        TextDecomposer(model_of(torch.nn.Identity(), (32, 32)))
    clip = clip_of("clip")
    clip.network.text_pool_type = "none"
    with pytest.raises(UserError, match="pools its tokens by 'none'"):
        TextDecomposer(clip)


def test_the_script_writes_terms_that_sum_to_the_representation(tmp_path, run_script, refused):
    pool = tmp_path / "pool.txt"
    pool.write_text("\n".join(TEXTS) + "\n")
    code, out, _ = run_script("compute_text_prs", "--model", "emojiclip", "--data_path", pool, "--batch_size", 2,
                              "--output_dir", tmp_path / "out", "--device", "cpu")
    assert code == 0
    assert "3 texts" in out
    run_script("compute_text_set_projection", "--model", "emojiclip", "--data_path", pool, "--output_dir",
               tmp_path / "out", "--device", "cpu")
    attn, mlp = (np.load(tmp_path / "out" / f"pool_text_{what}_emojiclip.npy") for what in ("attn", "mlp"))
    assert attn.shape == (3, 4, 4, 128)
    assert mlp.shape == (3, 5, 128)
    np.testing.assert_allclose(attn.sum((1, 2)) + mlp.sum(1), np.load(tmp_path / "out" / "pool_emojiclip.npy"),
                               atol=1e-5)
    assert "does not exist" in refused("compute_text_prs", "--model", "emojiclip", "--data_path", tmp_path / "no.txt")
    assert "no text side" in refused("compute_text_prs", "--model", "timm:vit_tiny_patch16_224", "--data_path", pool)


def test_lines_that_the_model_does_not_read_to_their_end_are_named(tmp_path, run_script, refused):
    pool, long = tmp_path / "pool.txt", "a very " * 40
    pool.write_text(f"a cat\n{long}big dog\n")
    given = ("--model", "emojiclip", "--data_path", pool, "--output_dir", tmp_path / "out", "--device", "cpu")
    code, _, err = run_script("compute_text_prs", *given)
    assert code == 0
    assert "1 of 2 texts have more than the 32 tokens that the model reads, and are cut there: line 2" in err
    pool.write_text(f"{long}big dog\n{long}small dog\n")
    assert "line 1 and line 2 are the same in their first 32 tokens" in refused("compute_text_prs", *given)


def test_heads_of_the_text_side_are_ablated_and_described(tmp_path, run_script, refused, monkeypatch):
    monkeypatch.setitem(datasets.REGISTRY["emoji"].scenes, "test", (40, 1))
    pool = tmp_path / "pool.txt"
    pool.write_text("\n".join(TEXTS) + "\n")
    to = ("--output_dir", tmp_path, "--device", "cpu")
    call_script("compute_prs", "--model", "emojiclip", "--dataset", "emoji", "--num_workers", 0, *to)
    call_script("compute_text_prs", "--model", "emojiclip", "--data_path", pool, *to)
    call_script("compute_text_projection", "--model", "emojiclip", "--dataset", "emoji", *to)
    datasets.load_images("emoji").read(5)[0].save(tmp_path / "scene.png")
    code, out, err = run_script("compute_text_heads", "--model", "emojiclip", "--dataset", "emoji",
                                "--text_descriptions", "pool", "--text_dir", tmp_path, "--input_dir", tmp_path,
                                "--image", tmp_path / "scene.png", "--head", "3.1", "--device", "cpu")
    assert code == 0, err
    manifest = tmp_path / "emoji_emojiclip.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"classes": content["classes"][::-1]}))
    assert "has other classes than the arrays" in refused(
        "compute_text_heads", "--model", "emojiclip", "--dataset", "emoji", "--text_descriptions", "pool",
        "--text_dir", tmp_path, "--input_dir", tmp_path, "--device", "cpu")
    manifest.write_text(json.dumps(content))
    found = json.loads((tmp_path / "emoji_text_heads_pool_emojiclip.json").read_text())
    run = Run.open(tmp_path, "emoji", "emojiclip")
    scores = run.whole(slice(None)) @ np.load(tmp_path / "emoji_classifier_emojiclip.npy")
    assert found["layers"]["baseline"] == pytest.approx(100 * (scores.argmax(axis=1) == run.labels).mean())
    assert list(found["heads"]) == [f"{layer}.{head}" for layer in range(4) for head in range(4)]
    head = found["heads"]["3.1"]
    assert out.startswith(f"3.1: accuracy without it {head['accuracy_without']:.1f}; ")
    # One head ablated, a prompt at a time: its contribution to each prompt goes, and its mean over the pool comes.
    clip = load("emojiclip", None, torch.device("cpu"), text_side=True)
    decomposer = TextDecomposer(clip)
    column = [str(part) for part in decomposer.components].index("3.1")
    mean = np.load(tmp_path / "pool_text_attn_emojiclip.npy")[:, 3, 1].mean(axis=0)
    columns = []
    for name in datasets.class_names("emoji"):
        changed = []
        for prompt in [template(name) for template in captions.templates("emoji")]:
            terms = decomposer.terms([prompt]).values[0].cpu().numpy()
            changed.append(terms.sum(axis=0) - terms[column] + mean)
        columns.append(np.mean(changed, axis=0) / np.linalg.norm(np.mean(changed, axis=0)))
    scores = run.whole(slice(None)) @ np.stack(columns).T
    assert head["accuracy_without"] == pytest.approx(100 * (scores.argmax(axis=1) == run.labels).mean())
    assert head["texts_of_image"][0]["text"] in TEXTS
    assert (tmp_path / "emoji_text_heads_pool_emojiclip.png").is_file()


def test_ablated_parts_are_replaced_by_their_means_over_the_pool():
    rng = np.random.default_rng(0)
    terms, means = rng.normal(size=(5, 4, 6)), 3 * rng.normal(size=(4, 6))
    representations, labels = rng.normal(size=(300, 6)), rng.integers(5, size=300)
    sets = {"baseline": [], "one": [2], "two": [0, 3]}
    found = text_heads.accuracies(terms, means, representations, labels, sets)
    for name, columns in sets.items():
        right = 0
        for image, label in zip(representations, labels):
            cosines = []
            for of_class in terms:
                column = sum(means[c] if c in columns else of_class[c] for c in range(4))
                cosines.append(image @ column / np.linalg.norm(column))
            right += int(np.argmax(cosines)) == label
        assert found[name] == pytest.approx(100 * right / 300)
    assert len(set(found.values())) == 3


def test_what_a_head_reads_is_its_mean_attention_over_the_texts_that_have_a_word():
    texts = ["red cat", "a red red dog", "three owls", "a cat"]
    decomposer = TextDecomposer(clip_of("clip"))
    each = [decomposer.words([text])[1][0] for text in texts]
    found = text_heads.read_words(decomposer, texts, 3, 9)
    for layer in range(3):
        for head in range(3):
            slow = {word: np.mean([sum(float(words.attention[layer, head, i]) for i, name in enumerate(words.names)
                                       if name == word) for words in each if word in words.names])
                    for word in ("red", "cat", "a")}
            own = found[f"{layer}.{head}"]
            assert {entry["word"]: entry["attention"] for entry in own["words"]} == pytest.approx(slow, abs=1e-5)
            assert [entry["word"] for entry in own["words"]] == sorted(slow, key=slow.get, reverse=True)
            start = np.mean([float(words.attention[layer, head, words.names.index(START)]) for words in each])
            assert own["attention"][START] == pytest.approx(start, abs=1e-5)
            on_words = np.mean([sum(float(words.attention[layer, head, i]) for i, name in enumerate(words.names)
                                    if name not in (START, END, PADDING)) for words in each])
            assert own["attention"]["words"] == pytest.approx(on_words, abs=1e-5)


def test_the_texts_that_a_head_parts_and_that_it_brings_nearest():
    rng = np.random.default_rng(0)
    terms, texts = rng.normal(size=(40, 6)) * [5, 2, 1, 1, 1, 1] + 7, [f"text {i}" for i in range(40)]
    high, low, share = text_heads.extremes(terms, texts, 3)
    values, vectors = np.linalg.eigh(np.cov(terms.T, bias=True))
    order = [f"text {i}" for i in np.argsort((terms - terms.mean(axis=0)) @ vectors[:, -1])]
    assert (high, low) in ((order[::-1][:3], order[:3]), (order[:3], order[::-1][:3]))
    assert share == pytest.approx(values[-1] / values.sum())
    image = rng.normal(size=6)
    found = text_heads.retrieve(terms, image, texts, 40)
    slow = {text: own @ image - np.mean([other @ image for other in terms]) for text, own in zip(texts, terms)}
    assert {entry["text"]: entry["score"] for entry in found} == pytest.approx(slow)
    assert [entry["text"] for entry in found] == sorted(slow, key=slow.get, reverse=True)
