"""What the scripts that trained the embedded models share: their options, scenes that become harder, and the loop.

One bias is built in, so that there is a known spurious cue to find: the animals of land and sea stand before their own
kind's background in --agreement of their scenes.
"""
import csv
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from utils import cli

PAIRS = 64  # scenes of a batch that share their object with another: only attributes tell them apart


def add_training_options(parser, folder: Path, holds: str, steps: int, batch_size: int, lr: float, weight_decay: float,
                         seed: str, curriculum: bool = True) -> None:
    """The options of training with their defaults; `holds` is what is in the `folder`, `seed` what --seed is of, and
    those of a `curriculum` say how scenes become harder."""
    parser.add_argument("--output_dir", default=str(folder), metavar="FOLDER",
                        help=f"folder with {holds}; receives the weights")
    parser.add_argument("--steps", type=cli.STEPS, default=steps, help="optimiser steps")
    parser.add_argument("--batch_size", type=cli.Number(int, PAIRS, cli.SIZE.high), default=batch_size,
                        help="scenes a step")
    parser.add_argument("--lr", type=cli.RATE, default=lr, help="peak learning rate")
    parser.add_argument("--weight_decay", type=cli.WEIGHT, default=weight_decay, help="of matrices")
    if curriculum:
        parser.add_argument("--ramp", type=cli.FRACTION, default=0.25,
                            help="fraction of the steps until all scenes are of full difficulty")
        parser.add_argument("--agreement", type=cli.FRACTION, default=0.9,
                            help="how often a land or sea animal has its own background")
    parser.add_argument("--eval_every", type=cli.POSITIVE, default=200, help="steps between evaluations")
    parser.add_argument("--seed", type=cli.SEED, default=0, help=seed)


def settings(args) -> dict:
    """The options by which a training can be run again."""
    return {name: value for name, value in vars(args).items() if name not in ("output_dir", "config", "debug")}


def training_batch(rng, size: int, difficulty: float, agreement: float) -> tuple[list, list[str]]:
    """Scenes and captions of one step. `difficulty` in [0, 1] is the share of full-difficulty scenes; the others show
    one large object."""
    import numpy as np

    from utils.data.captions import caption
    from utils.data.scenes import HABITATS, concepts, sample_scene

    order = rng.permutation(len(concepts()))
    objects = np.resize(order, size - PAIRS).tolist() + order[:PAIRS].tolist()
    scenes, captions = [], []
    for index, number in enumerate(objects):
        paired = index < PAIRS or index >= size - PAIRS
        easy = rng.random() >= difficulty
        fixed = {"count": 1, "size": "large"} if easy else {}
        home = HABITATS.get(concepts()[number]["habitat"])
        if home and rng.random() < agreement:
            fixed |= {"color": str(rng.choice(home["colors"])), "texture": home["texture"]}
        scene = sample_scene(rng, object=number, **fixed)
        scenes.append(scene)
        plain = rng.random() < 0.6 and not paired
        captions.append(caption(scene, rng, detail=0.0 if plain else 0.7 if paired else 0.45))
    return scenes, captions


def train(args, learned, loss_of: Callable, update: Sequence[Callable], evaluate: Callable[[], dict],
          curve: tuple[str, str, dict[str, str]], batch: Callable | None = None) -> Iterator[dict]:
    """Train the module `learned` for --steps. `loss_of` takes the scenes and captions of a step, in bfloat16 by
    autocast where the CPU has products of it; `batch` makes both from a generator and the step (default: the
    curriculum's); `update` is called after each backward pass.

    Every --eval_every steps, what `evaluate` measures is logged to training_log.csv and training_curve.png (`curve` as
    charts.training_curve takes it), and the row of the log is yielded, for the caller to save the weights.
    """
    import numpy as np
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from tqdm import tqdm

    from utils.plots import charts

    folder, history, started = Path(args.output_dir), [], time.time()
    half = any(torch.cpu.get_capabilities().get(name) for name in ("amx_bf16", "avx512_bf16"))
    progress = tqdm(range(1, args.steps + 1), desc="train", unit="step", mininterval=10)
    for step in progress:
        rng = np.random.default_rng((args.seed, 1, step))
        scenes, captions = batch(rng, step) if batch else training_batch(
            rng, args.batch_size, min(1.0, step / max(1, args.ramp * args.steps)), args.agreement)
        learned.train()
        # Attention as plain matrix products takes two thirds of the time on a CPU.
        with torch.autocast("cpu", torch.bfloat16, enabled=half), sdpa_kernel(SDPBackend.MATH):
            loss = loss_of(scenes, captions)
        learned.zero_grad()
        with sdpa_kernel(SDPBackend.MATH):
            loss.backward()
        torch.nn.utils.clip_grad_norm_(learned.parameters(), 1.0)
        for call in update:
            call()
        progress.set_postfix(loss=f"{loss.item():.3f}")
        if step % args.eval_every and step != args.steps:
            continue
        learned.eval()
        minutes = round((time.time() - started) / 60, 1)
        row = {"step": step, "minutes": minutes, "loss": round(loss.item(), 4), **evaluate()}
        history.append(row)
        tqdm.write(json.dumps(row))
        with (folder / "training_log.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, row)
            writer.writeheader()
            writer.writerows(history)
        charts.training_curve(history, *curve, folder / "training_curve.png")
        yield row


def save_half(weights: dict, path: Path) -> None:
    """Write weights as float16."""
    import torch
    from safetensors.torch import save_file

    with cli.complete(path) as partial:
        save_file({name: value.to(torch.float16).contiguous() for name, value in weights.items()}, partial)
