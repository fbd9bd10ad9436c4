"""The checks of scripts/check_gpu.py, a function each: what is exact on a GPU, and what it costs there. Each takes the
machine and the report that it adds its rows to."""
import contextlib
import os
from functools import partial
from typing import TYPE_CHECKING

from compute_prs import TOLERANCE

if TYPE_CHECKING:
    from scripts.gpu_machine import Machine, Report

TERM_LIMIT = 1e-5  # between processors, and between kinds of storage
KERNEL_LIMIT = 1e-2  # between kernels of attention in bfloat16
PROFILED = 30      # operations of a profile that are kept


def own(representation):
    """Directions of tokens: each image's own representation [1, b, d]."""
    return representation[None]


def difference(here, there) -> float:
    return (here.double().cpu() - there.double().cpu()).abs().max().item()


def sums(machine: "Machine", report: "Report") -> None:
    torch = machine.torch
    names = {} if machine.small else {
        "ViT-B-16": "ViT-B-16", "ViT-L-14": "ViT-L-14", "vit_small": "timm:vit_small_patch16_224",
        "swin_tiny": "timm:swin_tiny_patch4_window7_224"}
    visions = machine.embedded() | {name: machine.build(full) for name, full in names.items()}
    for name, vision in visions.items():
        images = machine.images(vision, 4)
        walked = machine.decomposer(vision).patch_size is None
        for precision, limit in TOLERANCE.items():
            if precision != "float32" and walked:
                continue  # compute_prs.py refuses them
            decomposer = machine.decomposer(vision, precision)
            with machine.half(precision), torch.no_grad():
                plain = torch.nn.functional.normalize(vision.encode_image(images).float(), dim=-1)
            error = difference(decomposer.terms(images).values.sum(dim=1), plain)
            path = "walk" if walked else "fast path"
            report.row("sums", f"{name}, {precision}, {path}", error <= limit, error=error, limit=limit)
            # Along its own direction, an image's tokens and other components add up to 1.
            tokens = decomposer.tokens(images, own)
            heads = sum(scores.sum(dim=(2, 3)) for scores in tokens.scores.values())
            rest = tokens.parts[..., [one.kind != "attn" for one in tokens.components]].sum(dim=-1)
            error = difference(heads + rest, torch.ones_like(rest))
            report.row("sums", f"{name}, {precision}, tokens", error <= limit, error=error, limit=limit)
    report.missing("sums of the walk in 16 bits and compiled", "compute_prs.py runs the walk in float32 alone")


def compiled(machine: "Machine", report: "Report") -> None:
    torch = machine.torch
    if machine.small:
        report.missing("sums of the compiled decomposition", "on a CPU it takes minutes to compile")
        return
    vision = machine.embedded()["emojiclip"]
    images = machine.images(vision, 4)
    for precision in ("float32", "bfloat16"):
        with machine.half(precision), torch.no_grad():
            plain = torch.nn.functional.normalize(vision.encode_image(images).float(), dim=-1)
        terms = machine.decomposer(vision, precision, compiled=True).terms(images)
        error = difference(terms.values.sum(dim=1), plain)
        report.row("compiled", f"emojiclip, {precision}", error <= TOLERANCE[precision], error=error,
                   limit=TOLERANCE[precision])


def processor(machine: "Machine", report: "Report") -> None:
    cpu = machine.torch.device("cpu")
    names = {} if machine.small else {"ViT-B-16": "ViT-B-16", "vit_small": "timm:vit_small_patch16_224",
                                      "swin_tiny": "timm:swin_tiny_patch4_window7_224",
                                      "maxvit_tiny": "timm:maxvit_tiny_tf_224"}
    visions = machine.embedded(cpu) | {name: machine.build(full, device=cpu) for name, full in names.items()}
    for name, vision in visions.items():
        images = machine.images(vision, 2, cpu)

        def found(images, vision=vision) -> dict:
            decomposer = machine.decomposer(vision)
            tokens = decomposer.tokens(images, own)
            return decomposer.terms(images).arrays() | {"tokens": tokens.patches()}

        here = found(images)
        vision.network.to(machine.device)
        vision.device = machine.device
        there = found(images.to(machine.device))
        errors = {what: difference(here[what], there[what]) for what in here}
        report.row("processor", f"{name}, float32", max(errors.values()) <= TERM_LIMIT, **errors, limit=TERM_LIMIT)
        del vision, there


def kernels(machine: "Machine", report: "Report") -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    vision = machine.embedded()["emojiclip"]
    images = machine.images(vision, 4)
    if not machine.cuda:
        report.missing("kernels of attention", "on the CPU there is one")
        return
    for precision, limit in (("float32", TERM_LIMIT), ("bfloat16", KERNEL_LIMIT)):
        found = {}
        for kernel in ("MATH", "EFFICIENT_ATTENTION", "FLASH_ATTENTION", "CUDNN_ATTENTION"):
            if precision == "float32" and kernel in ("FLASH_ATTENTION", "CUDNN_ATTENTION"):
                continue  # which are of 16 bits
            with sdpa_kernel(getattr(SDPBackend, kernel)):
                found[kernel] = machine.decomposer(vision, precision).terms(images).arrays()
            errors = {what: difference(terms, found[kernel][what]) for what, terms in found["MATH"].items()}
            report.row("kernels", f"{kernel}, {precision}", max(errors.values()) <= limit, **errors, limit=limit)


def compact(machine: "Machine", report: "Report") -> None:
    from utils.decompose.dataset import stored

    torch = machine.torch
    visions = {"emojiclip": machine.embedded()["emojiclip"]}
    if not machine.small:
        visions["ViT-B-16"] = machine.build("ViT-B-16")
    for name, vision in visions.items():
        images = machine.images(vision, 16)
        for precision in ("float32", "bfloat16"):
            decomposer = machine.decomposer(vision, precision)
            terms, readout = decomposer.terms(images), decomposer.readout()
            full, kept = stored(terms, "full"), stored(terms, "compact")
            made = machine.storage.CompactHeads(*(kept[what].cpu().numpy() for what in ("heads", "scalars")),
                                                readout.cpu().numpy())
            again = torch.from_numpy(made.read(slice(None), slice(None)))
            errors = {"heads": difference(again.unflatten(1, full["attn"].shape[1:3]), full["attn"]),
                      "mlp": difference(kept["mlp"].sum(1), full["mlp"].sum(1)),
                      "class_token": difference(kept["cls_attn"].sum(1), full["cls_attn"].sum(1))}
            passed = max(errors.values()) <= TERM_LIMIT
            report.row("compact", f"{name}, {precision}", passed, **errors, limit=TERM_LIMIT)
        moments = machine.storage.MomentSums()
        moments.add(kept["heads"], kept["scalars"])
        kinds = machine.storage.MomentHeads(*moments.arrays().values(), readout.cpu().numpy())
        error = max(map(difference, kinds.moments(slice(None)), made.moments(slice(None))))
        report.row("compact", f"{name}, moments", error <= TERM_LIMIT, error=error, limit=TERM_LIMIT)


def textspan(machine: "Machine", report: "Report") -> None:
    import numpy as np

    torch, method = machine.torch, machine.textspan
    images, width, texts, rank, picks = (2000, 128, 400, 32, 10) if machine.small else (50_000, 1024, 3498, 80, 60)
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(1, 0.1, rank + 3)
    x = torch.randn(images, rank + 3, generator=generator) * scale
    x = x @ torch.randn(rank + 3, width, generator=generator) / 500
    pool = torch.nn.functional.normalize(torch.randn(texts, width, generator=generator, dtype=torch.float64), dim=-1)
    eps, found = float(np.finfo(np.float32).eps), {}
    case = f"{images:,} x {width:,}, {texts:,} texts"

    def span(mean, second, pool):
        return method.text_span(mean, second, pool, picks, rank, eps)

    def on_the_device():
        wide = x.to(machine.device).double()
        return span(wide.mean(0), wide.T @ wide / len(wide), pool.to(machine.device))

    head = machine.storage.FullTerms(x.numpy()[:, None])
    found["moments"] = machine.seconds({"run": lambda: head.moments(slice(None))}, 0, 2)["run"]
    mean, second = (part[0] for part in head.moments(slice(None)))
    found["texts"] = machine.seconds({"run": lambda: span(mean, second, pool)}, 0, 2)["run"]
    report.row("textspan", f"{case}, on the CPU", None, moments_s=found["moments"], texts_s=found["texts"])
    here = span(mean, second, pool)
    there = on_the_device()
    spent = machine.seconds({"run": on_the_device}, 1)["run"]
    alike = sum(a == b for a, b in zip(here.picks, there.picks)) / len(here.picks)
    report.row("textspan", f"{case}, on {machine.device.type}", alike == 1.0, seconds=spent, same_texts=alike)


def cost(machine: "Machine", report: "Report") -> None:
    names = ("emojiclip",) if machine.small else ("ViT-B-16", "ViT-L-14", "ViT-H-14")
    for name in names:
        vision = machine.embedded()["emojiclip"] if machine.small else machine.build(name)
        for precision in ("float32", "bfloat16"):
            functions = _passes(machine, vision, precision)
            cast = {"cast": _cast(machine, vision)} if precision == "bfloat16" else {}
            for batch in (1, 8) if machine.small else (1, 16, 64, 256):
                images = machine.images(vision, batch)
                passes = {what: partial(function, images) for what, function in (functions | cast).items()}
                with machine.half(precision):
                    found = machine.seconds(passes)
                more = {"cast_ms": 1000 * found["cast"], "over_cast": found["heads"] / found["cast"]} if cast else {}
                report.row("cost", f"{name}, {precision}, batch {batch}", None, plain_ms=1000 * found["plain"],
                           heads=found["heads"] / found["plain"], tokens=found["tokens"] / found["plain"], **more,
                           images_a_second=batch / found["heads"],
                           **{f"{what}_gb": found[f"{what}_gb"] for what in functions})
        del vision, functions, cast
        machine.free()
        report.save()


def _passes(machine: "Machine", vision, precision: str) -> dict:
    """A plain pass of images, the terms of heads, and the terms of tokens."""
    decomposer = machine.decomposer(vision, precision)
    return {"plain": vision.encode_image, "heads": decomposer.terms,
            "tokens": lambda images: decomposer.tokens(images, own)}


def _cast(machine: "Machine", vision):
    """A plain pass of a model that is all in bfloat16, its residual stream too: the fastest, and the least exact."""
    import copy

    tower = copy.deepcopy(vision.tower).to(machine.torch.bfloat16)

    def encode(images):
        with machine.torch.autocast(machine.device.type, enabled=False):
            return tower(images.to(machine.torch.bfloat16))

    return encode


def walk(machine: "Machine", report: "Report") -> None:
    names = {"timm:local-dir:models/emojivit": (1, 8)} if machine.small else {
        "timm:vit_large_patch14_dinov2": (1, 8), "timm:swin_base_patch4_window7_224": (1, 16, 64)}
    for name, sizes in names.items():
        vision = machine.build(name, None if machine.small else "none")
        for batch in sizes:
            images = machine.images(vision, batch)
            found = machine.seconds({
                "plain": partial(vision.encode_image, images),
                "walk": partial(machine.decomposer(vision).terms, images)})
            case = f"{name.rpartition('/')[2].removeprefix('timm:')}, float32, batch {batch}"
            report.row("walk", case, None, plain_ms=1000 * found["plain"], walk=found["walk"] / found["plain"],
                       images_a_second=batch / found["walk"], plain_gb=found["plain_gb"], walk_gb=found["walk_gb"])
        machine.free()


def profile(machine: "Machine", report: "Report") -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watch

    torch = machine.torch
    vision = machine.embedded()["emojiclip"] if machine.small else machine.build("ViT-H-14")
    images = machine.images(vision, 8 if machine.small else 64)
    time_of = "self_device_time_total" if machine.cuda else "self_cpu_time_total"
    for name, function in _passes(machine, vision, "bfloat16").items():
        with machine.half("bfloat16"), torch.no_grad():
            function(images)
            machine.wait()
            with watch(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * machine.cuda]) as watched:
                function(images)
                machine.wait()
        events = [event for event in watched.key_averages()
                  if not machine.cuda or event.device_type == torch.autograd.DeviceType.CUDA]
        rows = sorted(({"operation": event.key[:120], "ms": getattr(event, time_of) / 1000, "calls": event.count}
                       for event in events), key=lambda row: -row["ms"])
        report.content["profile"][name] = rows[:PROFILED]
        report.row("profile", f"{vision.name}, bfloat16, {name}", None, kernels_ms=sum(row["ms"] for row in rows),
                   kernels=sum(row["calls"] for row in rows))


class InMemory:
    """So many images of a model's size, a few of them again and again, that take no time to read."""

    def __init__(self, number: int, pixels):
        self.number, self.pixels = number, pixels

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> tuple:
        return self.pixels[index % len(self.pixels)], 0


def loop(machine: "Machine", report: "Report") -> None:
    import dataclasses
    import json
    import tempfile
    import time
    from pathlib import Path
    from unittest import mock

    import compute_prs
    from utils.cli import parse
    from utils.data import datasets

    half, full = ["--precision", "bfloat16", "--compact"], ["--precision", "bfloat16", "--save_dtype", "float16"]
    cases = [("emojiclip", "emoji_seg", None, ["--compact"]), ("emojiclip", "in memory", 256, ["--compact"])] \
        if machine.small else [
            ("ViT-B-16", "emoji", None, half), ("ViT-B-16", "in memory", 16384, half),
            ("ViT-H-14", "emoji", None, half), ("ViT-H-14", "in memory", 6144, half),
            ("ViT-H-14", "in memory", 2048, full)]
    built = {}
    for model, dataset, number, options in cases:
        if model not in built:
            built.clear()
            machine.free()
            built[model] = machine.embedded()[model] if model == "emojiclip" else machine.build(model)
        vision, patches = built[model], []
        if number:
            memory = datasets.Images(InMemory(number, machine.images(vision, 64, "cpu")), ["all"], None)
            vision, dataset = dataclasses.replace(vision, preprocess=_same), "emoji"
            patches.append(mock.patch.object(datasets, "load_images", return_value=memory))
        # Built above, on the device: drawing random weights on the CPU would take longer than all else.
        patches.append(mock.patch.object(machine.models, "load", return_value=vision))
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch)
            if machine.cuda:
                machine.torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            compute_prs.main(parse(compute_prs.get_args_parser(), [
                "--model", model, "--dataset", dataset, "--batch_size", "64", "--output_dir", folder,
                "--num_workers", "0" if machine.small else str(os.cpu_count()),
                "--device", str(machine.device), *options]))
            whole = time.perf_counter() - start
            made = json.loads(next(Path(folder).glob("*_time_*.json")).read_text())
            size = sum(file.stat().st_size for file in Path(folder).glob("*.npy"))
        case = f"{model}, {'in memory' if number else 'rendered'}, {' '.join(option.strip('-') for option in options)}"
        report.row("loop", case, None, images=made["images"], images_a_second=made["images"] / made["loop_seconds"],
                   **{f"{name}_s": value for name, value in made["seconds"].items()}, loop_s=made["loop_seconds"],
                   whole_s=whole, disk_gb=size / 1e9,
                   peak_gb=machine.torch.cuda.max_memory_allocated() / 1e9 if machine.cuda else None)


def _same(pixels):
    return pixels


def rloo(machine: "Machine", report: "Report") -> None:
    import importlib.util
    import tempfile
    import time
    from pathlib import Path
    from unittest import mock

    absent = [name for name in ("trl", "peft", "datasets", "accelerate") if importlib.util.find_spec(name) is None]
    if absent:
        report.missing("a step of train.py", f"needs {', '.join(absent)}")
        return
    import train
    from utils.cli import parse
    from utils.ex2 import training

    kinds = {"bfloat16": []}
    if not machine.cuda or importlib.util.find_spec("bitsandbytes") is None:
        report.missing("a step of train.py in 8 bit", "needs a GPU" if not machine.cuda else "needs bitsandbytes")
    else:
        kinds["8 bit"] = ["--load_in_8bit"]
    with tempfile.TemporaryDirectory() as folder:
        parameters = _write_language_model(machine, Path(folder, "model"))
        for kind, options in kinds.items():
            ends, on_log = [], training.Log.on_log

            def timed(*args, **kwargs):
                ends.append(time.perf_counter())     # noqa: B023
                return on_log(*args, **kwargs)       # noqa: B023

            if machine.cuda:
                machine.torch.cuda.reset_peak_memory_stats()
            numbers = ["--steps", "2", "--epochs_per_batch", "2"]
            if machine.small:
                numbers += ["--batch_size", "4", "--minibatch_size", "4", "--per_device_batch_size", "4",
                            "--num_generations", "2", "--max_new_tokens", "4"]
            with mock.patch.object(training.Log, "on_log", timed):
                train.main(parse(train.get_args_parser(), [
                    "--model_name", str(Path(folder, "model")), "--dataset_name", "emoji", "--num_concepts", "8",
                    "--num_images_for_reward", "4", "--output_dir", str(Path(folder, kind.replace(" ", "_"))),
                    *numbers, *options]))
            report.row("rloo", f"{parameters / 1e6:,.0f} million weights, {kind}", True, step_s=ends[1] - ends[0],
                       peak_gb=machine.torch.cuda.max_memory_allocated() / 1e9 if machine.cuda else None)
            machine.free()


def _write_language_model(machine: "Machine", folder) -> int:
    """A folder with a random language model and a tokenizer of bytes. Returns its number of weights."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    names = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(kinds.BPE({name: place for place, name in enumerate(names)}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    sizes = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 8, "num_attention_heads": 32,
             "num_key_value_heads": 4}
    if machine.small:
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    machine.torch.manual_seed(0)
    with machine.torch.device(machine.device):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(names), bos_token_id=0, eos_token_id=1, pad_token_id=1,
                                             **sizes))
    model.to(machine.torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())
