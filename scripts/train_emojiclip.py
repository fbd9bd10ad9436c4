"""Train the small CLIP that ships with the repository, on scenes drawn as it goes.

    python -m scripts.train_emojiclip                  # about 75 minutes on 2 idle CPU cores
    python -m scripts.train_emojiclip --steps 200      # a quick look

open_clip's model (models/emojiclip/open_clip_config.json) and contrastive loss; scenes and captions
from utils.scenes. Training starts easy (one large object, its name alone) and reaches full
difficulty after --ramp of the steps. Every --eval_every steps the zero-shot accuracy on scenes of
full difficulty is measured, and the best weights so far are kept as open_clip_model.safetensors
(fp16), beside training_log.csv, training_curve.png and training.json.

One bias is built in, so that there is a known spurious cue to find: the animals of land and sea
stand before their own kind's background in --agreement of their scenes.
"""
import argparse
import csv
import json
import time
from pathlib import Path

from utils import cli

ROOT = Path(__file__).resolve().parent.parent
CURVES = {"object_seen": "object, seen styles", "object_unseen": "object, unseen style",
          "background_color": "background colour"}
PAIRS = 64  # scenes of a batch that share their object with another: only attributes tell them apart


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--output_dir", default=str(ROOT / "models" / "emojiclip"),
                        help="folder with open_clip_config.json; receives the weights")
    parser.add_argument("--steps", type=cli.POSITIVE, default=3200, help="optimiser steps")
    parser.add_argument("--batch_size", type=cli.POSITIVE, default=256, help="scenes a step")
    parser.add_argument("--lr", type=cli.RATE, default=2e-3, help="peak learning rate")
    parser.add_argument("--weight_decay", type=cli.WEIGHT, default=0.1, help="of matrices")
    parser.add_argument("--warmup", type=cli.POSITIVE, default=150, help="steps of linear warm-up")
    parser.add_argument("--ramp", type=cli.FRACTION, default=0.25,
                        help="fraction of the steps until all scenes are of full difficulty")
    parser.add_argument("--agreement", type=cli.FRACTION, default=0.9,
                        help="how often a land or sea animal has its own background")
    parser.add_argument("--eval_every", type=cli.POSITIVE, default=200, help="steps between evaluations")
    parser.add_argument("--init", metavar="FILE.safetensors", help="start from these weights (default: at random)")
    parser.add_argument("--seed", type=cli.SEED, default=0, help="of weights, scenes and captions")
    return parser


def training_batch(rng, size: int, difficulty: float, agreement: float):
    """Scenes and captions of one step. `difficulty` in [0, 1] is the share of full-difficulty scenes."""
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


def main(args: argparse.Namespace) -> None:
    import numpy as np
    import open_clip
    import torch
    from open_clip.loss import ClipLoss
    from safetensors.torch import load_file, save_file
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import normalize as unit
    from torchvision.transforms.functional import normalize
    from tqdm import tqdm

    from scripts.measure_emojiclip import attribute_prompts, naming_accuracy
    from utils.data.datasets import templates
    from utils.data.scenes import UNSEEN_STYLE, concepts, draw, sample_scenes
    from utils.plots import charts

    folder = Path(args.output_dir)
    config = json.loads((folder / "open_clip_config.json").read_text())
    preprocess = config["preprocess_cfg"]
    torch.manual_seed(args.seed)
    # open_clip's custom block has the default block's weights, and its attention, computed as plain matrix
    # products, takes two thirds of the time on a CPU.
    fast = {tower: config["model_cfg"][tower] | {"block_type": "custom"} for tower in ("vision_cfg", "text_cfg")}
    model = open_clip.CLIP(**config["model_cfg"] | fast)
    if args.init:
        model.load_state_dict(load_file(args.init))
    visual = torch.compile(model.visual)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    image_size = config["model_cfg"]["vision_cfg"]["image_size"]

    def pixels(scenes):
        return normalize(draw(scenes, image_size)[0].float() / 255, preprocess["mean"], preprocess["std"])

    # Muon for the matrices inside the blocks, AdamW for the rest: on these scenes it learns in far fewer steps.
    inside = [p for name, p in model.named_parameters() if ".resblocks." in name and p.ndim == 2]
    members = set(map(id, inside))
    rest = [p for p in model.parameters() if id(p) not in members]
    optimizers = [torch.optim.Muon(inside, lr=args.lr, weight_decay=args.weight_decay, adjust_lr_fn="match_rms_adamw"),
                  torch.optim.AdamW([{"params": [p for p in rest if p.ndim >= 2], "weight_decay": args.weight_decay},
                                     {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0}],
                                    lr=args.lr, betas=(0.9, 0.98), fused=True)]

    def pace(step: int) -> float:
        """Linear warm-up, then a cosine down to nothing."""
        return min((step + 1) / args.warmup, 0.5 + 0.5 * np.cos(np.pi * min(1.0, step / args.steps)))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, pace) for optimizer in optimizers]
    loss_function = ClipLoss()

    held_out = {"seen": sample_scenes(1040, seed=90_001), "unseen": sample_scenes(520, seed=90_002, style=UNSEEN_STYLE)}
    names = [[template(concept["name"]) for template in templates("emoji")] for concept in concepts()]
    grounds = attribute_prompts()["color"]

    def evaluate() -> dict[str, float]:
        """Zero-shot accuracies on held-out scenes of full difficulty, in percent."""
        found = {}
        for name, scenes in held_out.items():
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                features = torch.cat([model.encode_image(pixels(scenes[i:i + 260])) for i in range(0, len(scenes), 260)])
            found[f"object_{name}"] = naming_accuracy(model, tokenizer, features, names, [scene.object for scene in scenes])
            if name == "seen":
                truth = [list(grounds).index(scene.color) for scene in scenes]
                found["background_color"] = naming_accuracy(model, tokenizer, features, list(grounds.values()), truth)
        return {name: round(value, 2) for name, value in found.items()}

    settings = {name: value for name, value in vars(args).items() if name not in ("output_dir", "config", "debug")}
    history, best, started = [], -1.0, time.time()
    progress = tqdm(range(1, args.steps + 1), desc="train", unit="step", mininterval=10)
    for step in progress:
        rng = np.random.default_rng((args.seed, 1, step))
        difficulty = min(1.0, step / max(1, args.ramp * args.steps))
        scenes, captions = training_batch(rng, args.batch_size, difficulty, args.agreement)
        model.train()
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            image_features = unit(visual(pixels(scenes)).float(), dim=-1)
            text_features = unit(model.encode_text(tokenizer(captions)).float(), dim=-1)
        loss = loss_function(image_features, text_features, model.logit_scale.exp())
        model.zero_grad(set_to_none=True)
        with sdpa_kernel(SDPBackend.MATH):
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in (*optimizers, *schedules):
            stepper.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))
        progress.set_postfix(loss=f"{loss.item():.3f}")
        if step % args.eval_every and step != args.steps:
            continue
        model.eval()
        row = {"step": step, "minutes": round((time.time() - started) / 60, 1), "loss": round(loss.item(), 4)}
        row |= evaluate()
        history.append(row)
        tqdm.write(json.dumps(row))
        with (folder / "training_log.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, row)
            writer.writeheader()
            writer.writerows(history)
        charts.training_curve(history, "contrastive loss", "zero-shot accuracy (%)", CURVES, folder / "training_curve.png")
        if row["object_seen"] > best:
            best = row["object_seen"]
            save_file({name: value.to(torch.float16).contiguous() for name, value in model.state_dict().items()
                       if value.is_floating_point() and not name.endswith("attn_mask")},
                      folder / "open_clip_model.safetensors.partial")
            (folder / "open_clip_model.safetensors.partial").replace(folder / "open_clip_model.safetensors")
            (folder / "training.json").write_text(json.dumps({"settings": settings, "best": row}, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
