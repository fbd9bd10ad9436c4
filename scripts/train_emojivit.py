"""Train the small supervised vision transformer that ships with the repository, on scenes drawn as it goes.

    python -m scripts.train_emojivit                   # about 12 minutes on 2 idle CPU cores
    python -m scripts.train_emojivit --steps 200       # a quick look

timm's model (config.json of --output_dir) and scenes of utils.scenes, with the curriculum and the bias of
scripts/train_emojiclip.py. The class token learns to tell the object, through the model's own classifier,
and every other attribute of the scene, each through a linear head that is not kept. Every --eval_every
steps the accuracies on held-out scenes are logged, and the weights so far kept as model.safetensors (fp16),
beside training_log.csv and training_curve.png. At the end the accuracies on the test scenes of `emoji` and
`emoji_unseen_style` are written to training.json and printed as a table (that of the model card).
"""
import argparse
import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path

from utils import cli
from utils.cli import UserError

ROOT = Path(__file__).resolve().parent.parent


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--output_dir", default=str(ROOT / "models" / "emojivit"),
                        help="folder with config.json; receives the weights")
    parser.add_argument("--steps", type=cli.POSITIVE, default=1300, help="optimiser steps")
    parser.add_argument("--batch_size", type=cli.Number(int, 64), default=128, help="scenes a step")
    parser.add_argument("--lr", type=cli.RATE, default=5e-3, help="peak learning rate")
    parser.add_argument("--weight_decay", type=cli.WEIGHT, default=0.05, help="of matrices")
    parser.add_argument("--attribute_weight", type=cli.WEIGHT, default=0.3,
                        help="of each attribute's loss against the object's")
    parser.add_argument("--ramp", type=cli.FRACTION, default=0.25,
                        help="fraction of the steps until all scenes are of full difficulty")
    parser.add_argument("--agreement", type=cli.FRACTION, default=0.9,
                        help="how often a land or sea animal has its own background")
    parser.add_argument("--eval_every", type=cli.POSITIVE, default=200, help="steps between evaluations")
    parser.add_argument("--eval_scenes", type=cli.POSITIVE, default=2080, help="scenes of each held-out set, at most")
    parser.add_argument("--seed", type=cli.SEED, default=0, help="of weights and scenes")
    return parser


def named() -> dict[str, Sequence]:
    """What the model learns to tell of a scene, and the values of each, in the order of its head's outputs."""
    from utils.data.scenes import COLORS, POSITIONS, SIZES, TEXTURES, concepts, styles

    return {"object": range(len(concepts())), "count": range(1, 5), "position": POSITIONS, "size": SIZES,
            "color": tuple(COLORS), "texture": TEXTURES, "style": styles()}


def main(args: argparse.Namespace) -> None:
    import numpy as np
    import timm
    import torch
    from safetensors.torch import save_file
    from timm.data import resolve_model_data_config
    from timm.optim import create_optimizer_v2
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import cross_entropy
    from torchvision.transforms.functional import normalize
    from tqdm import tqdm

    from scripts.train_emojiclip import training_batch
    from utils.data.datasets import embedded_scenes
    from utils.data.scenes import draw
    from utils.plots import charts

    folder = Path(args.output_dir)
    if not (folder / "config.json").is_file():
        raise UserError(f"--output_dir {folder}: no config.json there; copy that of models/emojivit, and change it at will")
    torch.manual_seed(args.seed)
    model = timm.create_model(f"local-dir:{folder}")
    data = resolve_model_data_config(model)
    values = named()
    heads = torch.nn.ModuleDict({name: model.head if name == "object" else torch.nn.Linear(model.num_features, len(known))
                                 for name, known in values.items()})
    learned = torch.nn.ModuleList([model, heads])

    def representation(images):
        return model.forward_head(model.forward_features(images), pre_logits=True)

    # Compiling takes half a minute and then saves a third of each step; so does attention as plain matrix products.
    forward = representation if args.steps < 100 else torch.compile(representation)

    def pixels(scenes):
        return normalize(draw(scenes, data["input_size"][-1])[0].float() / 255, data["mean"], data["std"])

    def truth(name: str, scenes):
        return torch.tensor([values[name].index(getattr(scene, name)) for scene in scenes])

    @torch.inference_mode()
    def accuracies(dataset: str, split: str, names) -> dict[str, float]:
        """Top-1 accuracy of the heads of these names on embedded scenes, in percent."""
        scenes = embedded_scenes(dataset, split)[0][:args.eval_scenes]
        model.eval()
        features = torch.cat([representation(pixels(scenes[i:i + 260])) for i in range(0, len(scenes), 260)])
        return {name: round(100 * (heads[name](features).argmax(dim=1) == truth(name, scenes)).float().mean().item(), 2)
                for name in names}

    # timm's Muon: orthogonalised steps for matrices, AdamW for the rest. It learns in far fewer steps.
    optimizer = create_optimizer_v2(learned, "nmuon", lr=args.lr, weight_decay=args.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.steps + 1, pct_start=0.1,
                                                   cycle_momentum=False)
    history, started = [], time.time()
    for step in tqdm(range(1, args.steps + 1), desc="train", unit="step", mininterval=10):
        rng = np.random.default_rng((args.seed, 1, step))
        scenes, _ = training_batch(rng, args.batch_size, min(1.0, step / max(1, args.ramp * args.steps)), args.agreement)
        model.train()
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            features = forward(pixels(scenes))
            losses = {name: cross_entropy(head(features).float(), truth(name, scenes)) for name, head in heads.items()}
        loss = losses.pop("object") + args.attribute_weight * sum(losses.values())
        optimizer.zero_grad()
        with sdpa_kernel(SDPBackend.MATH):
            loss.backward()
        torch.nn.utils.clip_grad_norm_(learned.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % args.eval_every and step != args.steps:
            continue
        row = {"step": step, "minutes": round((time.time() - started) / 60, 1), "loss": round(loss.item(), 4)}
        row |= accuracies("emoji", "val", values)
        history.append(row)
        tqdm.write(json.dumps(row))
        with (folder / "training_log.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, row)
            writer.writeheader()
            writer.writerows(history)
        charts.training_curve(history, "loss, all terms", "accuracy, held-out scenes (%)", dict(zip(values, values)),
                              folder / "training_curve.png")
        save_file({name: value.to(torch.float16).contiguous() for name, value in model.state_dict().items()},
                  folder / "model.safetensors.partial")
        (folder / "model.safetensors.partial").replace(folder / "model.safetensors")

    measured = {f"{name}, {dataset}": value for dataset, names in (("emoji", values), ("emoji_unseen_style", ("object",)))
                for name, value in accuracies(dataset, "test", names).items()}
    print("| what is named | top-1 (%) | chance (%) |\n| --- | --- | --- |")
    for name, value in measured.items():
        print(f"| {name} | {value:.1f} | {100 / len(values[name.split(',')[0]]):.1f} |")
    settings = {name: value for name, value in vars(args).items() if name not in ("output_dir", "config", "debug")}
    cli.save_result(folder / "training.json", {"settings": settings, "minutes": round((time.time() - started) / 60, 1),
                                          "measured": measured})


if __name__ == "__main__":
    cli.run(main, get_args_parser())
