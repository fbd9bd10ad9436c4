"""Three engines, one way to sample: temperature 1, nothing cut off, a seed for every description."""
import json
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import fault_server
import pytest
import torch
from fault_server import FaultServer, body, completes, status
from scipy import stats

from utils.cli import UserError
from utils.language import generation, loading

CPU = torch.device("cpu")
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: its absence was not covered")
DRAWS = 20_000


# The noise.

def test_the_highest_of_the_noisy_logits_is_a_sample_of_the_softmax():
    logits = torch.tensor([1.0, -0.5, 0.3, 2.0, -2.0, -float("inf")])
    noise = generation.GumbelNoise(list(range(DRAWS)), CPU)  # neighbouring seeds, as inference.py gives them
    first, second = (noise(None, logits.expand(DRAWS, 6)).argmax(dim=1) for _ in range(2))
    expected = DRAWS * logits.softmax(dim=0)[:5].double().numpy()
    for drawn in (first, second):
        observed = torch.bincount(drawn, minlength=6).numpy()
        assert observed[5] == 0
        assert stats.chisquare(observed[:5], expected * DRAWS / expected.sum()).pvalue > 1e-3
    table = torch.bincount(first * 5 + second, minlength=25).view(5, 5).numpy()  # one token says nothing of the next
    assert stats.chi2_contingency(table).pvalue > 1e-3
    neighbours = torch.bincount(first[:-1] * 5 + first[1:], minlength=25).view(5, 5).numpy()  # nor one seed of the next
    assert stats.chi2_contingency(neighbours).pvalue > 1e-3


def test_one_seed_gives_one_stream_of_samples():
    logits = torch.tensor([1.0, -0.5, 0.3, 2.0, -2.0])
    noise = generation.GumbelNoise([5], CPU)
    drawn = torch.stack([noise(None, logits[None]) for _ in range(4000)]).argmax(dim=-1).flatten()
    expected = 4000 * logits.softmax(0).double().numpy()
    assert stats.chisquare(torch.bincount(drawn, minlength=5).numpy(), expected).pvalue > 1e-3


def test_the_noise_of_a_row_depends_on_its_own_seed_alone():
    scores = torch.randn(3, 1000)
    together, alone = generation.GumbelNoise([3, 7, 9], CPU), generation.GumbelNoise([7], CPU)
    for _ in range(3):
        rows = together(None, scores)
        assert torch.equal(rows[1], alone(None, scores[1:2])[0])
        assert not torch.equal(rows[0] - scores[0], rows[1] - scores[1])
    same = generation.GumbelNoise([7, 7], CPU)(None, scores[:1].expand(2, -1))
    assert torch.equal(same[0], same[1])


def test_logits_of_sixteen_bits_are_not_rounded_with_their_noise():
    scores = torch.zeros(1, 5000, dtype=torch.bfloat16)
    assert len(generation.GumbelNoise([0], CPU)(None, scores)[0].unique()) > 4900


# transformers.

QUERIES = ["What is a cat?", "Describe the colors that a very careful painter would see on a cat.", "Why?",
           "How large is a cat?"]


@pytest.fixture
def prompts(tiny_lm):
    tokenizer = loading.load_tokenizer(tiny_lm)
    return [loading.prompt_ids(tokenizer, query) for query in QUERIES]


def generate(base, prompts, seeds, batch_size=4, adapter=None, max_new_tokens=8):
    chunks = list(generation.with_transformers(base, adapter, prompts, seeds, max_new_tokens, batch_size, CPU))
    assert [len(chunk) for chunk in chunks] == [
        len(prompts[i:i + batch_size]) for i in range(0, len(prompts), batch_size)]
    return [text for chunk in chunks for text in chunk]


@pytest.fixture
def exact(monkeypatch):
    """Models in float32, in which padding changes nothing that matters; a list that gets every model loaded."""
    load, loaded = loading.load_with_adapter, []

    def in_full(base, adapter, dtype):
        assert dtype == loading.precision("cpu")
        loaded.append(load(base, adapter, torch.float32))
        return loaded[-1]

    monkeypatch.setattr(loading, "load_with_adapter", in_full)
    return loaded


def test_the_same_seeds_say_the_same_and_others_something_else(tiny_lm, prompts):
    first = generate(tiny_lm, prompts, [0, 1, 2, 3])
    assert first == generate(tiny_lm, prompts, [0, 1, 2, 3])
    assert all(one != other for one, other in zip(first, generate(tiny_lm, prompts, [4, 5, 6, 7])))
    assert len(set(generate(tiny_lm, prompts[:1] * 4, [0, 1, 2, 3]))) == 4
    assert len(set(generate(tiny_lm, prompts[:1] * 4, [5] * 4))) == 1
    assert all(text == text.strip() and "<|im" not in text for text in first)


def test_a_description_does_not_depend_on_its_batch(tiny_lm, prompts, exact):
    together = generate(tiny_lm, prompts, [0, 1, 2, 3])
    assert together == generate(tiny_lm, prompts, [0, 1, 2, 3], batch_size=1)
    assert together == generate(tiny_lm, prompts, [0, 1, 2, 3], batch_size=3)
    assert together[::-1] == generate(tiny_lm, prompts[::-1], [3, 2, 1, 0], batch_size=2)


def test_the_adapter_speaks(tiny_lm, tiny_adapter, prompts):
    plain = generate(tiny_lm, prompts, [0, 1, 2, 3])
    adapted = generate(tiny_lm, prompts, [0, 1, 2, 3], adapter=tiny_adapter)
    assert plain != adapted == generate(tiny_lm, prompts, [0, 1, 2, 3], adapter=tiny_adapter)


def test_descriptions_end_where_the_model_says_or_at_the_limit(tiny_lm, prompts, exact, monkeypatch):
    load, made, ends = loading.load_with_adapter, [], 12.0

    def load_recording(*arguments):
        model = load(*arguments)
        own = model.generate
        model.lm_head.register_forward_hook(lambda module, inputs, logits: logits.index_add(
            -1, torch.tensor([2]), torch.full((*logits.shape[:-1], 1), ends)))
        model.generate = lambda **options: made.append(own(**options)[:, options["input_ids"].shape[1]:]) or torch.cat(
            [options["input_ids"], made[-1]], dim=1)
        return model

    monkeypatch.setattr(loading, "load_with_adapter", load_recording)
    said = generate(tiny_lm, prompts * 4, list(range(16)), batch_size=16, max_new_tokens=6)
    (tokens,) = made
    assert tokens.shape[1] <= 6
    lengths = []
    for row in tokens.tolist():
        lengths.append(row.index(2) if 2 in row else len(row))
        assert set(row[lengths[-1]:]) <= {2}
    assert 0 in lengths
    assert len(set(lengths)) > 2  # otherwise this test would say nothing: change `ends`
    for text, length in zip(said, lengths):
        assert "<|im_end|>" not in text
        assert length > 0 or text == ""
    ends = -1e9
    made.clear()
    generate(tiny_lm, prompts, [0, 1, 2, 3], max_new_tokens=3)
    assert made[0].shape[1] == 3


def test_a_model_s_own_sampling_settings_do_not_apply(tiny_lm, prompts, tmp_path):
    """Some models bring a penalty on repetition or a top_k; vLLM ignores them here, and so must transformers."""
    copy = shutil.copytree(tiny_lm, tmp_path / "copy")
    path = copy / "generation_config.json"
    own = json.loads(path.read_text())
    path.write_text(json.dumps(own | {"do_sample": True, "temperature": 0.1, "top_k": 2, "top_p": 0.1}))
    expected = generate(tiny_lm, prompts, [0, 1, 2, 3])
    assert generate(str(copy), prompts, [0, 1, 2, 3]) == expected
    penalties = {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "suppress_tokens": list(range(9000))}
    path.write_text(json.dumps(own | penalties))
    assert generate(str(copy), prompts, [0, 1, 2, 3]) == expected


# Which engine.

@NO_GPU
@pytest.mark.skipif(generation.cpu_build(), reason="vLLM's CPU build is here: its absence was not covered")
def test_without_a_gpu_transformers_is_picked():
    assert generation.pick_backend("auto") == "hf"
    assert generation.pick_backend("hf") == "hf"
    for given in (("hf",), ("auto",), ("server", "http://localhost:8000/v1")):
        with pytest.raises(UserError, match="^--max_model_len is of --backend vllm, and this is .*; leave it out$"):
            generation.pick_backend(*given, engine_options={"max_model_len": 99})
    assert generation.pick_backend("server", "http://localhost:8000/v1") == "server"
    with pytest.raises(UserError, match="--backend server needs --base_url"):
        generation.pick_backend("server")
    with pytest.raises(UserError, match="--served_model_name judge goes with --backend server; give that too, or "):
        generation.pick_backend("hf", served_model_name="judge")
    with pytest.raises(UserError, match="--backend vllm cannot run here: .*; or take --backend hf"):
        generation.pick_backend("vllm")


@pytest.mark.parametrize("installed, gpu, cpu, reason", [
    (True, True, False, None), (True, False, True, None),
    (True, False, False, "CUDA build needs a GPU; .*setup_vllm_cpu.sh"),
    (False, False, False, "CUDA build needs a GPU; .*setup_vllm_cpu.sh"),
    (False, True, False, "vLLM is not installed; ALL=1 bash scripts/setup.sh installs it")])
def test_vllm_is_picked_where_it_runs(monkeypatch, installed, gpu, cpu, reason):
    monkeypatch.setattr(generation.importlib.util, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(generation, "cpu_build", lambda: cpu)
    assert generation.pick_backend("auto") == ("hf" if reason else "vllm")
    if reason:
        with pytest.raises(UserError, match=reason):
            generation.pick_backend("vllm")
    else:
        assert generation.pick_backend("vllm") == "vllm"


def test_vllm_is_asked_for_samples_with_those_seeds(tiny_lm, tiny_adapter, prompts, monkeypatch):
    """With a stand-in for vLLM; the engine itself is run by tests/test_runners.py."""
    asked, folders, adapters, engines = [], [], [], []

    class LLM:
        def __init__(self, model, **options):
            assert (Path(model) / "model.safetensors").is_file()
            assert options["dtype"] == "bfloat16"
            folders.append(model)
            engines.append(options)

        def generate(self, prompts, params, use_tqdm, lora_request):
            adapters.append(lora_request)
            asked.extend(zip((prompt["prompt_token_ids"] for prompt in prompts), params))
            return [SimpleNamespace(outputs=[SimpleNamespace(text=f" {param['seed']}\n")]) for param in params]

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=LLM, SamplingParams=dict))
    for name in ("vllm.lora", "vllm.lora.request"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(LoRARequest=lambda *values: values))
    for adapter in (None, tiny_adapter):
        more = {"tensor_parallel_size": 2, "max_model_len": 99}
        chunks = list(generation.with_vllm(tiny_lm, adapter, prompts, [4, 5, 6, 7], 9, 3, more))
        assert chunks == [["4", "5", "6"], ["7"]]
    assert folders == [tiny_lm, tiny_lm]
    assert adapters == [None] * 2 + [("adapter", 1, tiny_adapter)] * 2  # beside the weights, and not merged into them
    assert all(engine.items() >= more.items() for engine in engines)
    assert "enable_lora" not in engines[0]
    assert (engines[1]["enable_lora"], engines[1]["max_lora_rank"]) == (True, 8)
    assert [ids for ids, _ in asked] == prompts * 2
    assert [param for _, param in asked[:4]] == [
        {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "max_tokens": 9, "seed": seed} for seed in (4, 5, 6, 7)]


# A server.

@pytest.fixture
def completions(monkeypatch):
    """What FaultServer answers to prompts, for a run without a key."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return completes


def test_a_server_is_asked_for_samples_with_those_seeds(completions):
    prompts = [[1, 2, i] for i in range(40)]
    with FaultServer(script=[completions] * 40) as server:
        assert generation.served_model(server.url) == "judge"
        chunks = list(generation.with_server(server.url, "judge", prompts, list(range(40)), 9, 16))
    assert [len(chunk) for chunk in chunks] == [16, 16, 8]
    assert [text for chunk in chunks for text in chunk] == [f"said {i}" for i in range(40)]
    requests = sorted((request for _, _, request in server.chats), key=lambda request: request["seed"])
    assert requests == [{"model": "judge", "prompt": [1, 2, i], "seed": i, "temperature": 1.0, "top_p": 1.0,
                         "top_k": -1, "max_tokens": 9} for i in range(40)]


def test_what_a_server_refuses_ends_in_one_line_and_keeps_what_is_done(completions):
    with FaultServer(script=[completions] * 2 + [status(400, "too long\nfor me")] * 2) as server:
        chunks = generation.with_server(server.url, "judge", [[1], [2], [3], [4]], [0, 1, 2, 3], 9, 2)
        assert next(chunks) == ["said 0", "said 1"]
        with pytest.raises(UserError, match="--base_url http.*: .*too long.*; what is done is kept, ") as problem:
            next(chunks)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("answer, message", [
    (body({"choices": None}), "an answer has no text; see to the server"), (body({"choices": []}), "has no text"),
    (body({"choices": [{"index": 0, "text": None}]}), "has no text"), (body(b"<html>", "text/html"), "has no text"),
    (body(b"null"), "has no text"), (body(b'{"id": "1", "cho'), "the response is not JSON"),
    (status(401, "wrong key sk-secret-1"), r"wrong key \*\*\*; set OPENAI_API_KEY to a key of this server"),
    (status(404, "no such model"), "check --served_model_name and --base_url")])
def test_what_a_server_sends_in_place_of_a_text_ends_in_one_line(completions, monkeypatch, answer, message):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1")
    with FaultServer(script=[completions] * 2 + [answer] * 9) as server:
        chunks = generation.with_server(server.url, "judge", [[1], [2], [3]], [0, 1, 2], 9, 2)
        assert next(chunks) == ["said 0", "said 1"]
        with pytest.raises(UserError, match=f"--base_url {server.url}: .*{message}.*; what is done is kept, "):
            next(chunks)


@pytest.mark.parametrize("key", ["", " "])
def test_an_empty_key_is_none(completions, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with FaultServer(script=[completions]) as server:
        assert generation.served_model(server.url) == "judge"
        assert list(generation.with_server(server.url, "judge", [[1]], [0], 9, 2)) == [["said 0"]]


@pytest.mark.parametrize("models", [b"null", b"[]", b'{"data": null}', b'{"data": [null]}', b'{"data": [{}]}',
                                    b'{"data": [{"id": null}]}', b'{"da'])
def test_a_list_of_models_without_a_name_is_refused(models):
    with FaultServer(models=body(models)) as server, pytest.raises(UserError, match=f"--base_url {server.url}: "):
        generation.served_model(server.url)


def test_a_server_s_faults_that_pass_are_tried_again(completions):
    faults = [status(503, headers=[("retry-after-ms", "10")]), fault_server.reset]
    with FaultServer(script=faults + [completions] * 2) as server:
        assert list(generation.with_server(server.url, "judge", [[1], [2]], [0, 1], 9, 2)) == [["said 0", "said 1"]]
    assert Counter(request["seed"] for _, _, request in server.chats).total() == 4


def test_no_server_is_found_out_at_once(monkeypatch):
    import socket

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
    start = time.monotonic()
    with pytest.raises(UserError, match=f"--base_url {url}: no OpenAI-compatible server answers there .*; start one, "
                                        "for example: vllm serve FOLDER"):
        generation.served_model(url)
    assert time.monotonic() - start < 20
    with FaultServer(models=()) as server, pytest.raises(UserError, match="the server there has no model"):
        generation.served_model(server.url)


@pytest.mark.parametrize("url", ["localhost:8000/v1", "nonsense", "http://"])
def test_a_url_that_is_none_is_refused(url):
    with pytest.raises(UserError, match=f"--base_url {url}"):
        generation.served_model(url)


def test_something_else_than_an_openai_server_is_refused():
    with FaultServer(models=fault_server.body(b"<html>hello</html>", "text/html")) as server, \
            pytest.raises(UserError, match=f"--base_url {server.url}"):
        generation.served_model(server.url)
