"""Do words point to what they mean? Pairs of patches and words on scenes with known masks.

    python compute_pairs_truth.py --model emojiclip
    python compute_pairs_truth.py --model emojiclip --scenes 100 --baseline_scenes 20

Each scene of emoji_seg gets a caption that says its count, size, style, object, texture and colour. The map of a word
is its column of compute_pairs.py's pairs. Words for colour and texture should point to the ground, the others to the
copies: the pointing game asks whether a map's highest point lies there, average precision how well its pixels are
ranked; chance is the area. Beside it, on the first --baseline_scenes, a baseline by gradients: integrated Jacobians
(arXiv 2408.14153), and what each costs.

Writes emoji_seg_pairs_truth_{model}.json to --output_dir.
"""
from utils import cli, processes
from utils.cli import UserError


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_model_options(parser, "emojiclip")
    parser.add_argument("--scenes", type=cli.POSITIVE, default=520, metavar="N",
                        help="scenes, the first of the data set")
    parser.add_argument("--baseline_scenes", type=cli.NATURAL, default=20, metavar="N",
                        help="how many of these for the baseline, which costs far more")
    parser.add_argument("--steps", type=cli.POSITIVE, default=10, help="steps of the baseline's integrals")
    cli.add_output_dir(parser, "the result goes")
    return parser


def main(args) -> None:
    import time
    from functools import partial

    import torch
    from PIL import Image

    from utils.analysis import pairs_truth
    from utils.data import datasets, scenes
    from utils.decompose.decomposer import Decomposer
    from utils.decompose.texts import TextDecomposer
    from utils.models.loading import load
    from utils.runs import files

    drawn = datasets.embedded_scenes("emoji_seg")[0][:args.scenes]
    if args.baseline_scenes > len(drawn):
        raise UserError(f"--baseline_scenes {args.baseline_scenes}: there are {len(drawn)} scenes; give at most these")
    model = load(args.model, args.pretrained, processes.pick_device(args.device), args.seed, text_side=True)
    ways = {"decomposition": partial(pairs_truth.decomposed, Decomposer(model), TextDecomposer(model))}
    if args.baseline_scenes:
        ways["integrated Jacobians"] = pairs_truth.IntegratedJacobians(model, args.steps)

    # The scenes, and every word's map by each way.
    pictures, masks = scenes.draw(drawn, model.image_size[0])
    images = torch.stack([model.preprocess(Image.fromarray(one.permute(1, 2, 0).numpy())) for one in pictures])
    found, few = {}, args.baseline_scenes
    for name, way in ways.items():
        start = time.process_time()
        rows = pairs_truth.score(way, drawn[:few], images[:few].to(model.device), masks[:few]) if few else []
        seconds = time.process_time() - start
        if name == "decomposition":
            found["decomposition, all scenes"] = {"kinds": pairs_truth.summarize(rows + pairs_truth.score(
                way, drawn[few:], images[few:].to(model.device), masks[few:]))}
        if few:
            found[f"{name}, first {few} scenes"] = {"kinds": pairs_truth.summarize(rows),
                                                    "seconds_a_scene": seconds / few}
    for name, entry in found.items():
        print(f"\n{name}" + (f": {entry['seconds_a_scene']:.3f} s of processor time a scene"
                             if "seconds_a_scene" in entry else ""))
        print(f"{'words for':<10} {'point to':<8} {'scenes':>6} {'pointing game':>14} {'average precision':>18} "
              f"{'chance':>7}")
        for kind, row in entry["kinds"].items():
            print(f"{kind:<10} {row['points_to']:<8} {row['scenes']:>6} {row['hit']:>14.1f} {row['precision']:>18.1f} "
                  f"{row['chance']:>7.1f}")

    path = files.term_path(args.output_dir, "emoji_seg", "pairs_truth", model.name).with_suffix(".json")
    cli.save_result(path, {"model": args.model, "scenes": len(drawn), "results": found,
                           "command": cli.command(__file__, get_args_parser(), args)})
    print(f"-> {path}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
