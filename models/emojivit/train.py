"""Train the small supervised vision transformer that ships with the repository, on scenes drawn as it goes.

    python -m models.emojivit.train                   # about 12 minutes on 2 idle CPU cores
    python -m models.emojivit.train --steps 200       # a quick look

timm's model (config.json of --output_dir) and scenes of utils/data/scenes.py, with the curriculum and the bias of
models/training.py. The class token learns to tell the object, through the model's own classifier, and every other
attribute of the scene, each through a linear head that is not kept. Every --eval_every steps the accuracies on held-out
scenes are logged, and the weights so far kept as model.safetensors (fp16), beside training_log.csv and
training_curve.png. At the end the accuracies on the test scenes of `emoji` and `emoji_unseen_style` are written to
training.json and printed as a table (that of the model card).
"""
import time
from collections.abc import Sequence
from pathlib import Path

from models import training
from utils import cli
from utils.cli import UserError


def get_args_parser():
    parser = cli.make_parser(__doc__)
    training.add_training_options(parser, Path(__file__).parent, "config.json", steps=1300, batch_size=128, lr=5e-3,
                                  weight_decay=0.05, seed="of weights and scenes")
    parser.add_argument("--attribute_weight", type=cli.WEIGHT, default=0.3,
                        help="of each attribute's loss against the object's")
    parser.add_argument("--eval_scenes", type=cli.POSITIVE, default=2080, help="scenes of each held-out set, at most")
    return parser


def named() -> dict[str, Sequence]:
    """What the model learns to tell of a scene, and the values of each, in the order of its head's outputs."""
    from utils.data.scenes import COLORS, POSITIONS, SIZES, TEXTURES, concepts, styles

    return {"object": range(len(concepts())), "count": range(1, 5), "position": POSITIONS, "size": SIZES,
            "color": tuple(COLORS), "texture": TEXTURES, "style": styles()}


def main(args) -> None:
    import timm
    import torch
    from timm.data import resolve_model_data_config
    from timm.optim import create_optimizer_v2
    from torch.nn.functional import cross_entropy
    from torchvision.transforms.functional import normalize

    from utils.data.datasets import embedded_scenes
    from utils.data.scenes import draw

    folder = Path(args.output_dir)
    if not (folder / "config.json").is_file():
        raise UserError(f"--output_dir {folder}: no config.json there; copy that of models/emojivit, and change it at "
                        "will")
    torch.manual_seed(args.seed)
    model = timm.create_model(f"local-dir:{folder}")
    data = resolve_model_data_config(model)
    values = named()
    heads = torch.nn.ModuleDict({name: torch.nn.Linear(model.num_features, len(known))
                                 for name, known in values.items() if name != "object"})
    heads = torch.nn.ModuleDict({"object": model.head, **heads})
    learned = torch.nn.ModuleList([model, heads])

    def representation(images):
        return model.forward_head(model.forward_features(images), pre_logits=True)

    # Compiling takes half a minute and then saves a third of each step.
    forward = representation if args.steps < 100 else torch.compile(representation)

    def pixels(scenes):
        return normalize(draw(scenes, data["input_size"][-1])[0].float() / 255, data["mean"], data["std"])

    def truth(name: str, scenes):
        return torch.tensor([values[name].index(getattr(scene, name)) for scene in scenes])

    def loss_of(scenes, _):
        features = forward(pixels(scenes))
        losses = {name: cross_entropy(head(features).float(), truth(name, scenes)) for name, head in heads.items()}
        return losses.pop("object") + args.attribute_weight * sum(losses.values())

    @torch.inference_mode()
    def accuracies(dataset: str, split: str, names) -> dict[str, float]:
        """Top-1 accuracy of the heads of these names on embedded scenes, in percent."""
        scenes = embedded_scenes(dataset, split)[0][:args.eval_scenes]
        features = torch.cat([representation(pixels(scenes[i:i + 260])) for i in range(0, len(scenes), 260)])
        return {name: round(100 * (heads[name](features).argmax(dim=1) == truth(name, scenes)).float().mean().item(), 2)
                for name in names}

    # timm's Muon: orthogonalised steps for matrices, AdamW for the rest. It learns in far fewer steps.
    optimizer = create_optimizer_v2(learned, "nmuon", lr=args.lr, weight_decay=args.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.steps + 1, pct_start=0.1,
                                                   cycle_momentum=False)
    started = time.time()
    for _ in training.train(args, learned, loss_of, [optimizer.step, schedule.step],
                            lambda: accuracies("emoji", "val", values),
                            ("loss, all terms", "accuracy, held-out scenes (%)", dict(zip(values, values)))):
        training.save_half(model.state_dict(), folder / "model.safetensors")

    measured = {f"{name}, {dataset}": value
                for dataset, names in (("emoji", values), ("emoji_unseen_style", ("object",)))
                for name, value in accuracies(dataset, "test", names).items()}
    print("| what is named | top-1 (%) | chance (%) |\n| --- | --- | --- |")
    for name, value in measured.items():
        print(f"| {name} | {value:.1f} | {100 / len(values[name.split(',')[0]]):.1f} |")
    cli.save_result(folder / "training.json", {"settings": training.settings(args),
                                               "minutes": round((time.time() - started) / 60, 1), "measured": measured})


if __name__ == "__main__":
    cli.run(main, get_args_parser())
