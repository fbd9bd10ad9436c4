"""Measure what the embedded CLIP can name in the embedded scenes, zero-shot.

    python -m models.emojiclip.measure

Top-1 accuracy, in percent, at naming the object (of all concepts), in seen styles and in the style that
training never showed, and at naming every other attribute of the scenes of `emoji`. Chance is what
guessing would reach. Prints a table (that of models/emojiclip/README.md), and writes JSON with --json FILE.
"""
from utils import cli, processes


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_model_options(parser, "emojiclip")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too (default: nowhere)")
    return parser


def attribute_prompts() -> dict[str, dict]:
    """For every attribute but the object: prompts of each of its values."""
    from utils.data.captions import NUMBERS, STYLE_WORDS, with_article
    from utils.data.scenes import COLORS, POSITIONS, SIZES, TEXTURES, styles

    return {
        "count": {number: [f"{word} things" if number > 1 else "one thing", f"a picture of {word} objects"]
                  for number, word in NUMBERS.items()},
        "position": {place: [f"a thing in the {place}", f"a picture of objects at the {place}"] for place in POSITIONS},
        "size": {size: [f"a {size} thing", f"a picture of {size} objects"] for size in SIZES},
        "color": {color: [f"a thing on {with_article(color)} background", f"{color} background: things"]
                  for color in COLORS},
        "texture": {texture: [f"a thing on a {texture} background", f"{texture} background: things"]
                    for texture in TEXTURES},
        "style": {style: [f"a thing in {with_article(STYLE_WORDS[style])} style", f"{STYLE_WORDS[style]} objects"]
                  for style in styles()},
    }


def naming_accuracy(model, tokenizer, features, prompts: list[list[str]], truth: list[int]) -> float:
    """Top-1 accuracy, in percent, of image features [b, d] against classes, each the mean of its prompts' unit
    embeddings."""
    import torch
    from torch.nn.functional import normalize

    device = features.device
    with torch.inference_mode():
        classes = torch.stack([model.encode_text(tokenizer(texts).to(device), normalize=True).float().mean(0)
                               for texts in prompts])
    guess = (features.float() @ normalize(classes, dim=-1).T).argmax(dim=1).cpu()
    return 100 * (guess == torch.tensor(truth)).float().mean().item()


def main(args) -> None:
    from pathlib import Path

    import torch

    from utils.data import captions, datasets, loader, scenes
    from utils.models.loading import load

    clip = load(args.model, args.pretrained, processes.pick_device(args.device), args.seed, text_side=True)
    names = [[template(concept["name"]) for template in captions.templates("emoji")] for concept in scenes.concepts()]
    rows = {}
    for dataset in ("emoji", "emoji_unseen_style"):
        images = datasets.load_images(dataset, None, clip.image_size[0])
        with torch.inference_mode():
            features = torch.cat([clip.encode_image(pixels.to(clip.device))
                                  for pixels, *_ in loader.batches(images, clip.preprocess, 64, num_workers=0)])
        truth = [scene.object for scene in images.scenes]
        rows[f"object, {dataset}"] = (naming_accuracy(clip.network, clip.tokenizer, features, names, truth), len(names))
        if dataset == "emoji":
            for attribute, prompts in attribute_prompts().items():
                truth = [list(prompts).index(getattr(scene, attribute)) for scene in images.scenes]
                found = naming_accuracy(clip.network, clip.tokenizer, features, list(prompts.values()), truth)
                rows[f"{attribute}, {dataset}"] = (found, len(prompts))
    print("| what is named | top-1 (%) | chance (%) |\n| --- | --- | --- |")
    for name, (accuracy, classes) in rows.items():
        print(f"| {name} | {accuracy:.1f} | {100 / classes:.1f} |")
    if args.json:
        cli.save_result(Path(args.json), {name: accuracy for name, (accuracy, _) in rows.items()})


if __name__ == "__main__":
    cli.run(main, get_args_parser())
