"""What the checks of scripts/check_gpu.py run on, and where their rows go."""
from pathlib import Path

from utils.cli import save_result


class Report:
    """The rows of the table, printed as they come and kept in a JSON file."""

    def __init__(self, path: str, about: dict):
        self.path, self.content = path, {**about, "rows": [], "missing": [], "failed": {}, "seconds": {}, "profile": {}}

    def row(self, check: str, case: str, passed: bool | None = None, **values) -> None:
        """One measurement: its values by name, and whether it passed, where that can be said."""
        self.content["rows"].append({"check": check, "case": case, "passed": passed, **values})
        verdict = {True: "ok", False: "FAILED", None: ""}[passed]
        shown = "  ".join(f"{name.replace('_', ' ')} {show(value)}" for name, value in values.items())
        print(f"{check:<10}{case:<42}{verdict:<7}{shown}", flush=True)
        if passed is False:
            self.content["failed"].setdefault(check, f"{case}: {shown}")

    def missing(self, what: str, why: str) -> None:
        self.content["missing"].append({"what": what, "why": why})
        print(f"{'missing':<10}{what}: {why}", flush=True)

    def failed(self, check: str, error: Exception) -> None:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        self.content["failed"][check] = reason
        print(f"{check:<10}FAILED: {reason}", flush=True)

    def save(self) -> None:
        save_result(Path(self.path), self.content)


def show(value) -> str:
    """A value as the table has it: numbers to three digits or so."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1e}" if value and abs(value) < 5e-3 else f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"


class Machine:
    """The device, what its checks share, and everything that is taken from utils."""

    def __init__(self, small: bool):
        import torch

        from utils.analysis import textspan
        from utils.decompose.decomposer import Decomposer
        from utils.models import loading
        from utils.processes import pick_device
        from utils.runs import storage

        self.small, self.device = small, pick_device("cpu" if small else None)
        self.torch, self.models, self.decomposer = torch, loading, Decomposer
        self.storage, self.textspan = storage, textspan
        self.cuda = self.device.type == "cuda"

    def about(self) -> dict:
        import importlib.metadata
        import platform

        found = {}
        for name in ("torch", "timm", "open-clip-torch", "transformers", "trl", "peft", "bitsandbytes"):
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = None
        backends = self.torch.backends
        card = self.torch.cuda.get_device_properties(0) if self.cuda else None
        return {"device": card.name if card else platform.processor() or platform.machine(),
                "memory_gb": card.total_memory / 1e9 if card else None, "cuda": self.torch.version.cuda,
                "cores": self.torch.get_num_threads(), "float32_products": backends.cuda.matmul.fp32_precision,
                "float32_convolutions": backends.cudnn.conv.fp32_precision, "versions": found}

    def build(self, name: str, pretrained: str | None = "none", device=None):
        """The image side of a model; random weights are drawn where they are used, which is faster on a GPU."""
        device = self.device if device is None else device
        with self.torch.device(device):
            return self.models.load(name, pretrained, device)

    def embedded(self, device=None) -> dict:
        """The trained models of the repository: one for the fast path, one for the walk."""
        return {name: self.models.load(full, None, self.device if device is None else device)
                for name, full in (("emojiclip", "emojiclip"), ("emojivit", "timm:local-dir:models/emojivit"))}

    def images(self, vision, number: int, device=None):
        noise = self.torch.randn(number, 3, *vision.image_size, generator=self.torch.Generator().manual_seed(number))
        return noise.to(self.device if device is None else device)

    def half(self, precision: str):
        return self.torch.autocast(self.device.type, getattr(self.torch, precision), enabled=precision != "float32")

    def wait(self) -> None:
        if self.cuda:
            self.torch.cuda.synchronize()

    def free(self) -> None:
        import gc

        gc.collect()
        if self.cuda:
            self.torch.cuda.empty_cache()

    def seconds(self, functions: dict, patience: float = 1.0, repeats: int = 7) -> dict:
        """The fastest of several runs of each function, taken in turns: at least 2 of each, and up to `repeats` while
        `patience` seconds last. Also the peak memory of each, as `{name}_gb`."""
        import time

        found, times = {}, {name: [] for name in functions}
        with self.torch.no_grad():
            for name, function in functions.items():  # warms up
                if self.cuda:
                    self.torch.cuda.reset_peak_memory_stats()
                function()
                self.wait()
                found[f"{name}_gb"] = self.torch.cuda.max_memory_allocated() / 1e9 if self.cuda else None
            begin = time.perf_counter()
            while len(times[name]) < 2 or (len(times[name]) < repeats and time.perf_counter() - begin < patience):
                for name, function in functions.items():
                    start = time.perf_counter()
                    function()
                    self.wait()
                    times[name].append(time.perf_counter() - start)
        return found | {name: min(values) for name, values in times.items()}
