"""Train the small CLIP that ships with the repository, on scenes drawn as it goes.

    python -m models.emojiclip.train                  # about 75 minutes on 2 idle CPU cores
    python -m models.emojiclip.train --steps 200      # a quick look

open_clip's model (open_clip_config.json of --output_dir) and contrastive loss; scenes and captions from utils/data.
Training starts easy (one large object, its name alone) and reaches full difficulty after --ramp of the steps. Every
--eval_every steps the zero-shot accuracy on scenes of full difficulty is measured, and the best weights so far are kept
as open_clip_model.safetensors (fp16), beside training_log.csv, training_curve.png and training.json.
"""
import json
from pathlib import Path

from models import training
from utils import cli

CURVES = {"object_seen": "object, seen styles", "object_unseen": "object, unseen style",
          "background_color": "background colour"}


def get_args_parser():
    parser = cli.make_parser(__doc__)
    training.add_training_options(parser, Path(__file__).parent, "open_clip_config.json", steps=3200, batch_size=256,
                                  lr=2e-3, weight_decay=0.1, seed="of weights, scenes and captions")
    parser.add_argument("--warmup", type=cli.POSITIVE, default=150, help="steps of linear warm-up")
    parser.add_argument("--init", metavar="FILE.safetensors", help="start from these weights (default: at random)")
    return parser


def main(args) -> None:
    import numpy as np
    import open_clip
    import torch
    from open_clip.loss import ClipLoss
    from safetensors.torch import load_file
    from torch.nn.functional import normalize as unit
    from torchvision.transforms.functional import normalize

    from models.emojiclip.measure import attribute_prompts, naming_accuracy
    from utils.data.captions import templates
    from utils.data.scenes import UNSEEN_STYLE, concepts, draw, sample_scenes

    folder = Path(args.output_dir)
    config = json.loads((folder / "open_clip_config.json").read_text())
    preprocess = config["preprocess_cfg"]
    torch.manual_seed(args.seed)
    # open_clip's custom block has the default block's weights, and its attention can be computed as plain matrix
    # products.
    fast = {tower: config["model_cfg"][tower] | {"block_type": "custom"} for tower in ("vision_cfg", "text_cfg")}
    model = open_clip.CLIP(**config["model_cfg"] | fast)
    if args.init:
        model.load_state_dict(load_file(args.init))
    visual, loss_function = torch.compile(model.visual), ClipLoss()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    image_size = config["model_cfg"]["vision_cfg"]["image_size"]

    def pixels(scenes):
        return normalize(draw(scenes, image_size)[0].float() / 255, preprocess["mean"], preprocess["std"])

    def loss_of(scenes, captions):
        image_features = unit(visual(pixels(scenes)).float(), dim=-1)
        text_features = unit(model.encode_text(tokenizer(captions)).float(), dim=-1)
        with torch.autocast("cpu", enabled=False):
            return loss_function(image_features, text_features, model.logit_scale.exp())

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

    @torch.no_grad()
    def clamp() -> None:
        model.logit_scale.clamp_(0, np.log(100))

    held_out = {"seen": sample_scenes(1040, seed=90_001), "unseen": sample_scenes(520, seed=90_002, style=UNSEEN_STYLE)}
    names = [[template(concept["name"]) for template in templates("emoji")] for concept in concepts()]
    grounds = attribute_prompts()["color"]

    def evaluate() -> dict[str, float]:
        """Zero-shot accuracies on held-out scenes of full difficulty, in percent."""
        found = {}
        for name, scenes in held_out.items():
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                features = torch.cat([model.encode_image(pixels(scenes[i:i + 260]))
                                      for i in range(0, len(scenes), 260)])
            truth = [scene.object for scene in scenes]
            found[f"object_{name}"] = naming_accuracy(model, tokenizer, features, names, truth)
            if name == "seen":
                truth = [list(grounds).index(scene.color) for scene in scenes]
                found["background_color"] = naming_accuracy(model, tokenizer, features, list(grounds.values()), truth)
        return {name: round(value, 2) for name, value in found.items()}

    best, update = -1.0, [*(stepper.step for stepper in (*optimizers, *schedules)), clamp]
    for row in training.train(args, model, loss_of, update, evaluate,
                              ("contrastive loss", "zero-shot accuracy (%)", CURVES)):
        if row["object_seen"] > best:
            best = row["object_seen"]
            weights = {name: value for name, value in model.state_dict().items()
                       if value.is_floating_point() and not name.endswith("attn_mask")}
            training.save_half(weights, folder / "open_clip_model.safetensors")
            cli.save_result(folder / "training.json", {"settings": training.settings(args), "best": row})


if __name__ == "__main__":
    cli.run(main, get_args_parser())
