"""How far do figures move where ours differ from the published code on purpose? Measured on the embedded model.

    python -m scripts.published_ways --input_dir output_dir/embedded/beyond_clip

Reads what compute_prs.py wrote to --input_dir for emojiclip on emoji and emoji_spurious, the classifiers of both, and
the pool emoji_descriptions. Prints, and writes to --output_dir as published_ways.json:

    textspan      ten texts a head, picked among 80 directions of which some are rounding noise; and the accuracy of
                  reconstructions whose rows are one row in memory, as the published code makes them on a CPU
    segmentation  figures of all images, and of the first of every batch of eight alone
    masks         masks squeezed to a square, and cropped like their images, on scenes cut to 64 x 48 pixels
    random        the best worst group of ten random sets of four heads, over twenty seeds
    score         rank correlation of component scores with those where the whole's deviation is over directions
"""
from utils import cli, processes

MODEL, POOL, LAST, TEXTS, RANK, BATCH = "emojiclip", "emoji_descriptions", 4, 10, 80, 8
FIGURES = ("pixel_accuracy", "mean_iou", "mean_ap")


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_input_dir(parser)
    cli.add_output_dir(parser, "the JSON goes", beside_input=True)
    return parser


def published_span(x, texts):
    """Texts of a head's terms x [b, d] by the published algorithm, in single precision: the picks, what they
    reconstruct [b, d], and the same added up in rows that are one row in memory."""
    import numpy as np
    import torch

    basis = np.linalg.svd(x, full_matrices=False)[2][:RANK]
    texts, mean, picks = texts @ basis.T @ basis, x.mean(axis=0), []
    left, rows, one_row = x - mean, np.repeat(mean[None], len(x), axis=0), torch.tensor(mean).expand(x.shape).numpy()
    for _ in range(TEXTS):
        picks.append(int((left @ texts.T).std(axis=0).argmax()))
        direction = texts[picks[-1]]
        size = direction @ direction
        part = np.outer(left @ direction / size, direction)
        left, texts = left - part, texts - np.outer(texts @ direction / size, direction)
        rows += part
        one_row += part
    return picks, rows, one_row


def textspan(run) -> dict:
    """Texts in common and accuracies, by our TextSpan and by the published one."""
    from pathlib import Path

    import numpy as np

    from utils.analysis import textspan, zeroshot

    pool, classifier = run.texts(POOL, zeroshot.read_texts(Path(f"text_descriptions/{POOL}.txt"))), run.classifier()
    spans = textspan.span_heads(run, {POOL: pool}, LAST, TEXTS, RANK)
    _, accuracies = textspan.accuracies(run, classifier, spans, [TEXTS])
    last = run.last(LAST)
    with_noise = run.rest(slice(None)) + run.means(slice(last.start)).sum(axis=0)
    in_one_row, common = with_noise.copy(), []
    for terms, span in zip(run.stack(slice(None), last).swapaxes(0, 1), spans[POOL].values()):
        picks, rows, one_row = published_span(np.ascontiguousarray(terms), pool)
        common.append(len({*picks} & {*span.picks}))
        with_noise, in_one_row = with_noise + rows, in_one_row + one_row
    found = {"texts_in_common": float(np.mean(common)), "accuracy": accuracies[POOL][0]}
    return found | {name: 100 * zeroshot.correct(part, classifier, run.labels) / len(run)
                    for name, part in (("with_noise", with_noise), ("in_one_row", in_one_row))}


def segmentation(folder: str) -> tuple[dict, dict]:
    """Figures of the decomposition: of all scenes and of the first of every batch; and of oblong scenes by both ways of
    resizing masks."""
    import torch
    from torchvision.transforms.functional import pil_to_tensor

    from utils.analysis.segmentation import figures, methods
    from utils.data import datasets, masks
    from utils.models.loading import load

    model = load(MODEL, None, torch.device("cpu"), 0)
    classifier, _ = methods.load_classifier(folder, "emoji", MODEL, model, None)
    explainer = methods.Explainer(model, classifier)
    prepare, side = methods.transform(model, explainer.patch_size, None)
    data = datasets.load_masks("emoji_seg")
    data.draw_at(side)
    scores = {name: figures.Scores(0.0, model.device) for name in ("all", "first", "published", "aligned")}
    ways = {name: masks.mask_transform(prepare, side, name) for name in ("published", "aligned")}
    for start in range(0, len(data.names), BATCH):
        samples = data.samples.__getitems__(list(range(start, min(start + BATCH, len(data.names)))))
        oblong = [tuple(part.crop((0, 0, side, side * 3 // 4)) for part in sample) for sample in samples]
        for shown, names in ((samples, ("all", "first")), (oblong, ("published", "aligned"))):
            patches = explainer.explain(torch.stack([prepare(image) for image, _ in shown]))["decomposition"]
            heat = figures.heat_maps(patches, side)
            for name in names:
                number = 1 if name == "first" else len(shown)
                covers = torch.stack([ways[name](mask) if name in ways else pil_to_tensor(mask)[0] > 0
                                      for _, mask in shown])
                scores[name].update(start, heat[:number], covers[:number])
    found = {name: {key: 100 * score.figures()[key] for key in FIGURES} for name, score in scores.items()}
    return ({name: found[name] for name in ("all", "first")}, {name: found[name] for name in ("published", "aligned")})


def random_heads(run) -> dict:
    """The best worst group of ten random sets, over twenty seeds, as compute_use_specific_heads.py draws them."""
    from utils.analysis import ablation, groups, selection

    classifier, group, names = run.classifier(), groups.of_images(run, None), groups.names("emoji_spurious")
    kept, means, best = range(len(run.heads))[run.last(LAST)], run.means(), []
    recipe = ablation.all_but(run, LAST, False)
    for seed in range(20):
        trials = selection.random_sets(kept, 4, 10, seed)
        answers = [*ablation.right(run, means, classifier, 0, [()]),
                   *ablation.right(run, means, classifier, 0, [(), trials[0], *trials], recipe)]
        found, _ = groups.compare(answers, group, names, dict.fromkeys(
            ("baseline", "no_heads", "heads_ablated", "random_best", "random_mean")))
        best.append(found["random_best"]["worst_group"])
    return {"lowest": min(best), "mean": sum(best) / len(best), "highest": max(best)}


def score(run) -> dict:
    """Rank correlations over components between our scores and those with one deviation over directions."""
    import numpy as np
    from scipy.stats import spearmanr

    from utils.analysis import component_scores

    features = component_scores.read("configs/features_emoji.yaml")
    embeddings = component_scores.embed(run.manifest, list(features.values()), run.width, MODEL, None,
                                        processes.pick_device("cpu"), 0)
    ours, found = component_scores.feature_scores(run.stacks("scores"), embeddings), {}
    terms = run.stack(slice(None)).astype(np.float64)
    for name, texts, own in zip(features, embeddings, ours):
        parts = terms @ np.linalg.qr(np.asarray(texts, np.float64).T)[0]     # [b, c, r]
        whole = parts.sum(axis=1)
        product = (parts * whole[:, None]).mean(axis=0) - parts.mean(axis=0) * whole.mean(axis=0)
        spread = np.maximum(parts.std(axis=0), 1e-12)
        theirs = (product / spread).mean(axis=1) / whole.std(axis=1).mean()  # over directions, averaged over images
        kept = own != 0
        found[name] = float(spearmanr(own[kept], theirs[kept]).statistic)
    return found


def main(args) -> None:
    from pathlib import Path

    from utils.runs.run import Run

    run, spurious = (Run.open(args.input_dir, name, MODEL, needs="components") for name in ("emoji", "emoji_spurious"))
    images, masks = segmentation(args.input_dir)
    found = {"textspan": textspan(run), "segmentation": images, "masks": masks, "random": random_heads(spurious),
             "score": score(run)}
    for name, figures in found.items():
        print(f"{name}: {figures}")
    path = Path(args.output_dir or args.input_dir) / "published_ways.json"
    cli.save_result(path, found | {"model": MODEL, "images": len(run)})
    print(f"-> {path}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
