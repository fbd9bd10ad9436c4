"""Train emojiclip further, so that each head of its last two layers carries one attribute: names to be found again.

    python -m models.emojiclip_planted.train                  # half an hour on busy CPU cores
    python -m models.emojiclip_planted.train --seed 1 --output_dir output_dir/emojiclip_planted_1   # other heads

Two heads are drawn by --seed for each of object, colour, count, size, style and texture. The loss has four parts: the
contrastive one, on captions; for each planted head, the share of the variance of what it writes (its direct
contribution to the representation, over a batch) that its own attribute leaves unexplained, and the share that others
explain; and a cross-entropy against the mean caption of each value of an attribute, of the answers that a planted
head's own contribution gives, and of those that the representation gives, which keeps attributes readable by text. The
text tower and the first layers stay emojiclip's. A batch shows a few objects several times, from a pool of scenes whose
attributes do not depend on each other.

Writes what differs from emojiclip (fp16) as open_clip_model.safetensors, open_clip_config.json that names its base,
training_log.csv, training_curve.png, and training.json with the planted heads and their shares on held-out scenes. Load
the model with --model models/emojiclip_planted.
"""
import json
from pathlib import Path

from models import training
from utils import cli
from utils.cli import UserError

PLANTED, EACH, LAYERS = ("object", "color", "count", "size", "style", "texture"), 2, 2
SHARP = 10  # of answers that a head's own contribution gives, whose length is 1 on average
HELD_OUT = 2  # scenes of each object
OWN, OTHER = 0.6, 0.1  # what a planted head should reach of its own attribute, and at most of any other
CURVES = {"own": "own share, smallest", "own_mean": "own share, mean", "other": "another's share, largest",
          "object": "objects read by text", "texture": "textures read by text"}


def get_args_parser():
    parser = cli.make_parser(__doc__)
    training.add_training_options(parser, Path(__file__).parent, "the model", steps=500, batch_size=96, lr=3e-3,
                                  weight_decay=0.05, seed="of the planted heads and of scenes", curriculum=False)
    parser.add_argument("--scenes", type=cli.POSITIVE, default=40, help="of each object, in the pool")
    parser.add_argument("--objects", type=cli.Number(int, 2), default=12, help="objects of a batch")
    parser.add_argument("--frozen", type=cli.Number(int, 0, 4), default=3, help="first layers that stay as they are")
    parser.add_argument("--plant_weight", type=cli.WEIGHT, default=0.3, help="of each head's unexplained share")
    parser.add_argument("--other_weight", type=cli.WEIGHT, default=1.0, help="of what others explain, against that")
    parser.add_argument("--head_weight", type=cli.WEIGHT, default=0.2, help="of each head's cross-entropy")
    parser.add_argument("--attribute_weight", type=cli.WEIGHT, default=0.3, help="of each attribute's cross-entropy")
    parser.add_argument("--init", metavar="FILE.safetensors", help="start from these weights (default: emojiclip's)")
    return parser


def main(args) -> None:
    import numpy as np
    import open_clip
    import torch
    from open_clip.loss import ClipLoss
    from torch.nn.functional import cross_entropy
    from torch.nn.functional import normalize as unit
    from torchvision.transforms.functional import normalize

    from models.emojiclip_planted import planting
    from utils.data.captions import caption
    from utils.data.scenes import concepts, draw
    from utils.models import names, weights

    each = -(-args.batch_size // args.objects)
    if args.scenes < each:
        raise UserError(f"--scenes {args.scenes}: a batch of {args.batch_size} takes {each} scenes of each of "
                        f"{args.objects} objects")

    # The model: emojiclip, of which the layers after the first --frozen learn.
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((names.EMOJICLIP / "open_clip_config.json").read_text())
    preprocess, size = config["preprocess_cfg"], config["model_cfg"]["vision_cfg"]["image_size"]
    model = open_clip.CLIP(**config["model_cfg"])
    for file in (names.EMOJICLIP / "open_clip_model.safetensors", args.init):
        if file:
            model.load_state_dict(weights.read(str(file)), strict=False)
    visual, tokenizer = model.visual, open_clip.get_tokenizer(f"local-dir:{names.EMOJICLIP}")
    layers = visual.transformer.resblocks
    learned = torch.nn.ModuleList([*layers[args.frozen:], visual.ln_post])
    model.requires_grad_(False)
    learned.requires_grad_(True), visual.proj.requires_grad_(True)
    learned.register_parameter("projection", visual.proj)

    # The planted heads, by their place among those of the layers that learn.
    heads = [(layer, head) for layer in range(args.frozen, len(layers)) for head in range(layers[0].attn.num_heads)]
    last = [place for place, (layer, _) in enumerate(heads) if layer >= len(layers) - LAYERS]
    planted = {last[place]: name for place, name in planting.assign(PLANTED, EACH, last, args.seed).items()}
    print("planted: " + ", ".join("{}.{} {}".format(*heads[place], name) for place, name in planted.items()))

    @torch.no_grad()
    def texts(captions):
        return torch.cat([unit(model.encode_text(tokenizer(captions[i:i + 256])).float(), dim=-1)
                          for i in range(0, len(captions), 256)])

    @torch.no_grad()
    def tokens(scenes):
        """What the layers that learn are given [n, tokens, width]; float16, for all scenes to fit in memory."""
        return torch.cat([planting.first_layers(visual, normalize(
            draw(scenes[i:i + 130], size)[0].float() / 255, preprocess["mean"], preprocess["std"]), args.frozen).half()
            for i in range(0, len(scenes), 130)])

    # The pool of scenes, those that are held out, and the mean caption of each value of each attribute.
    number = len(concepts())
    pool, held_out = planting.sample(args.scenes, 91_000 + args.seed), planting.sample(HELD_OUT, 90_003)
    given, given_held_out = tokens(pool), tokens(held_out)
    groups, groups_held_out = planting.codes(pool), planting.codes(held_out)
    rng = np.random.default_rng((args.seed, 2))
    means = planting.class_means(texts([caption(scene, rng, detail=1.0) for scene in pool[:20 * number]]),
                                 {name: group[:20 * number] for name, group in groups.items()})
    scale = model.logit_scale.exp().item()

    def batch(rng, _):
        """Indices of scenes of a few objects, and captions of them."""
        some = rng.choice(number, args.objects, replace=False)
        rows = [rng.permutation(args.scenes)[:each] * number + one for one in some]
        rows = np.concatenate(rows)[:args.batch_size]
        return rows, [caption(pool[i], rng, detail=float(rng.choice([0.0, 0.45, 0.7]))) for i in rows]

    def loss_of(rows, captions):
        features, terms = planting.last_layers(visual, given[rows].float(), args.frozen)
        features, terms = features.float(), terms.float()
        with torch.autocast("cpu", enabled=False):
            loss = ClipLoss()(features, texts(captions), scale)
            shares = {name: planting.shares(terms, group[rows]) for name, group in groups.items()}
            for place, own in planted.items():
                others = sum(share[place] for name, share in shares.items() if name != own)
                loss = loss + args.plant_weight * (1 - shares[own][place] + args.other_weight * others)
                written = terms[:, place] - terms[:, place].mean(dim=0)
                written = written / written.square().sum(dim=-1).mean().sqrt()
                loss = loss + args.head_weight * cross_entropy(SHARP * written @ means[own].T, groups[own][rows])
            for name in PLANTED:
                scores = scale / 2 * features @ means[name].T
                loss = loss + args.attribute_weight * cross_entropy(scores, groups[name][rows])
        return loss

    @torch.inference_mode()
    def shares_held_out():
        """Of each planted head, the share of each attribute; and of each attribute how often it is read, in
        percent."""
        found = [planting.last_layers(visual, given_held_out[i:i + 130].float(), args.frozen)
                 for i in range(0, len(held_out), 130)]
        features, terms = (torch.cat(part) for part in zip(*found))
        shares = {name: planting.shares(terms[:, list(planted)], group) for name, group in groups_held_out.items()}
        read = {name: 100 * (features @ means[name].T).argmax(1).eq(groups_held_out[name]).float().mean().item()
                for name in PLANTED}
        return [{name: float(share[i]) for name, share in shares.items()} for i in range(len(planted))], read

    def evaluate():
        nonlocal measured
        measured, read = shares_held_out()
        own = [shares[name] for shares, name in zip(measured, planted.values())]
        other = [max(share for one, share in shares.items() if one != name)
                 for shares, name in zip(measured, planted.values())]
        held = sum(a >= OWN and b <= OTHER for a, b in zip(own, other))
        return {"held": held, **{name: round(float(value), 2) for name, value in {
            "own": 100 * min(own), "own_mean": 100 * np.mean(own), "other": 100 * max(other), **read}.items()}}

    inside = [p for name, p in learned.named_parameters() if p.ndim == 2 and name != "projection"]
    members, measured = set(map(id, inside)), []
    rest = [p for p in learned.parameters() if id(p) not in members]
    optimizers = [torch.optim.Muon(inside, lr=args.lr, weight_decay=args.weight_decay, adjust_lr_fn="match_rms_adamw"),
                  torch.optim.AdamW(rest, lr=args.lr, weight_decay=0.0, betas=(0.9, 0.98), fused=True)]
    schedules = [torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.steps + 1, pct_start=0.05,
                                                     cycle_momentum=False) for optimizer in optimizers]
    update = [stepper.step for stepper in (*optimizers, *schedules)]
    differs = tuple(f"transformer.resblocks.{layer}." for layer in range(args.frozen, len(layers)))
    for row in training.train(args, learned, loss_of, update, evaluate, ("loss, all terms", "%", CURVES), batch):
        training.save_half({f"visual.{name}": value for name, value in visual.state_dict().items()
                            if name.startswith((*differs, "ln_post.", "proj"))}, folder / "open_clip_model.safetensors")
        cli.save_result(folder / "training.json", {
            "settings": training.settings(args), "last": row,
            "planted": [{"layer": heads[place][0], "head": heads[place][1], "attribute": name, "shares": shares}
                        for (place, name), shares in zip(planted.items(), measured)]})
    cli.save_result(folder / "open_clip_config.json", {"base": "emojiclip", **config})


if __name__ == "__main__":
    cli.run(main, get_args_parser())
