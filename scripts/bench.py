"""What things cost, each beside a plain way of doing it, in the same run, so that a machine that slows down slows both.

    python -m scripts.bench prs                                     # compute_prs.py's loop, beside encode_image
    python -m scripts.bench coverage                                # which models are decomposed exactly
    python -m scripts.bench components --models vit_base_patch14_dinov2 --batch_size 2 --threads 1
    python -m scripts.bench segmentation --model emojiclip --batch_size 64
    python -m scripts.bench inside --model ViT-B-16                 # neurons beside images, terms of texts beside texts
    python -m scripts.bench page --model ViT-B-16                   # answers of the page of explore.py
    python -m scripts.bench textspan
    python -m scripts.bench names --input_dir output_dir/beyond_clip  # names of heads, every method
    python -m scripts.bench start                                   # until a script says something
    python -m scripts.bench scale --images 200 1000                 # every script, few and many images; a quick look

`python -m scripts.bench prs --help` tells what each of them measures.
"""
from functools import partial

from scripts.bench_scripts import page, scale, start
from scripts.timing import turns
from utils import cli, processes

MODELS = ["vit_small_patch16_224", "deit_small_distilled_patch16_224", "vit_small_patch14_reg4_dinov2",
          "vit_base_patch16_siglip_224", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256",
          "maxvit_tiny_rw_224"]


def get_args_parser():
    parser = cli.make_parser(__doc__)
    commands = parser.add_subparsers(required=True, metavar="BENCHMARK", help="what is measured")
    commands.type = str  # what follows the benchmark's name is its own parser's to judge

    def add(function, **numbers):
        """The parser of a benchmark; `numbers` are its options that are whole numbers: default, and help."""
        first, text = function.__doc__.partition("\n")[0], function.__doc__.replace("\n    ", "\n").rstrip()
        command = cli.make_parser(text, partial(commands.add_parser, function.__name__, help=first))
        command.set_defaults(function=function)
        for name, (default, what) in numbers.items():
            command.add_argument(f"--{name}", type=cli.SIZE if name == "batch_size" else cli.POSITIVE, default=default,
                                 help=what)
        return command

    for function, more in ((prs, {"images": (96, "images each loop reads")}),
                           (segmentation, {"repeats": (10, "batches each of the two takes")}),
                           (inside, {"repeats": (10, "batches each takes")})):
        cli.add_model_options(add(function, batch_size=(8, "images a forward pass"), **more), "ViT-B-16")
    command = add(components, batch_size=(4, "images a forward pass"), repeats=(4, "turns"), threads=(2, "of torch"))
    command.add_argument("--models", nargs="+", default=MODELS, metavar="NAME", help="names of timm models")
    add(textspan, images=(5000, "images, the rows of the head's terms"), width=(768, "dimensions of the joint space"),
        texts=(3498, "texts in the pool"), texts_per_head=(20, "texts picked"),
        rank=(60, "singular directions at most"))
    command = add(coverage, batch_size=(1, "images a forward pass"), repeats=(2, "turns"))
    command.add_argument("--only", nargs="+", metavar="TEXT",
                         help="models whose names hold one of these (default: all)")
    command = add(names, draws=(3, "draws of object texts, of the coverage"))
    command.add_argument("--models", nargs="+", default=["emojiclip", "emojivit-as-emojiclip"], metavar="NAME",
                         help="of runs on the data set emoji")
    command.add_argument("--methods", nargs="+", metavar="NAME", help="ways of naming (default: all)")
    cli.add_input_dir(command)
    cli.add_output_dir(command, "the leaderboard, CSV and JSON, goes")
    cli.add_model_options(add(page, repeats=(5, "pictures that are asked about")), "ViT-B-16")
    command = add(start, repeats=(3, "starts of each, of which the fastest counts"))
    command.add_argument("--beside", metavar="FOLDER", help="another checkout, whose scripts take turns with these")
    command = add(scale)
    command.add_argument("--images", type=cli.POSITIVE, nargs="+", default=[2000, 20000], metavar="N",
                         help="few, and many; one number is of processes alone (default: 2000 20000)")
    command.add_argument("--processes", type=cli.POSITIVE, nargs="+", default=[1, 2, 3], metavar="N",
                         help="of compute_prs.py (default: 1 2 3)")
    command.add_argument("--folder", metavar="FOLDER", help="for pictures and results (default: a temporary one)")
    return parser


def main(args) -> None:
    args.function(args)


def load(args):
    """The CLIP of --model, with random weights where none are asked for, and its Decomposer."""
    from utils.decompose.decomposer import Decomposer
    from utils.models.loading import load as load_model

    pretrained = args.pretrained or (None if args.model == "emojiclip" else "none")
    clip = load_model(args.model, pretrained, processes.pick_device(args.device), args.seed)
    return clip, Decomposer(clip)


def compare(title: str, seconds: dict[str, float], images: int) -> None:
    """Print what two ways cost an image, and the ratio of the second to the first."""
    import torch

    plain, other = seconds.values()
    print(f"{title}, {torch.get_num_threads()} threads")
    for name, value in seconds.items():
        print(f"  {name:<14}{1000 * value / images:9.2f} ms an image")
    print(f"  {'ratio':<14}{other / plain:9.3f}")


def prs(args) -> None:
    """What the decomposition costs: compute_prs.py's loop beside a plain loop of encode_image.

    Both loops read the same images from the same loader (drawn beforehand and kept as PNG files). The plain loop only
    encodes; the other decomposes and streams every array to disk. They take turns over a batch at a time; the ratio of
    the medians is printed.
    """
    import statistics
    import tempfile
    from pathlib import Path

    import torch

    from data.emoji.write import write_folders
    from utils.data import datasets, loader, scenes
    from utils.runs.writer import RunWriter

    if args.images <= args.batch_size:
        raise cli.UserError(f"--images {args.images}: give more than --batch_size, as the first batch warms up")
    clip, decomposer = load(args)
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder, "images")
        write_folders(scenes.sample_scenes(args.images, seed=args.seed), clip.image_size[0],
                      [pictures / "scene" / f"{i:05d}.png" for i in range(args.images)])
        images = datasets.load_images("imagefolder", str(pictures), clip.image_size[0])

        def every():
            return loader.batches(images, clip.preprocess, args.batch_size, num_workers=0)

        def plain():
            for pixels, *_ in every():
                with torch.inference_mode():
                    clip.encode_image(pixels.to(clip.device)).cpu()
                yield

        def decomposed():
            with RunWriter(Path(folder, "manifest.json"), {}, args.images, args.batch_size) as writer:
                for number, (pixels, labels, _) in enumerate(every()):
                    arrays = {Path(folder, f"{what}.npy"): (values.cpu().numpy(), "float32")
                              for what, values in decomposer.terms(pixels.to(clip.device)).arrays().items()}
                    writer.write(number, len(labels), {**arrays, Path(folder, "labels.npy"): (labels, "int64")}, [])
                    yield
                writer.finish({}, {})

        ways = {"encode_image": partial(next, plain()), "compute_prs": partial(next, decomposed())}
        found = turns(ways, -(-args.images // args.batch_size) - 1)
    medians = {name: statistics.median(clock for clock, _ in seconds) for name, seconds in found.items()}
    title = f"{args.model}, {args.images} images in batches of {args.batch_size}, {clip.device}"
    compare(title, medians, args.batch_size)
    noise = torch.randn(2, 3, *clip.image_size, device=clip.device)
    print(f"  largest error {decomposer.check(noise, 1)['error']:9.1e}")


def components(args) -> None:
    """Time and exactness of the decomposition of timm models by heads, beside a plain forward pass.

    Random weights. The two take turns; the ratio of the fastest of each is printed, by the clock and by processor time
    (which other programs on the machine disturb less).
    """
    import torch

    from utils.decompose.decomposer import Decomposer
    from utils.models.loading import load as load_model

    torch.set_num_threads(args.threads)
    print(f"{'model':<36}{'components':>12}{'plain, s':>10}{'clock':>8}{'processor':>11}{'error':>9}")
    for name in args.models:
        model = load_model(f"timm:{name}", "none", torch.device("cpu"))
        decomposer, images = Decomposer(model), torch.randn(args.batch_size, 3, *model.image_size)
        with torch.no_grad():
            ways = {"plain": partial(model.encode_image, images), "ours": partial(decomposer.terms, images)}
            found = turns(ways, args.repeats)
        plain, ours = ([min(times) for times in zip(*found[way])] for way in ("plain", "ours"))
        print(f"{name:<36}{len(decomposer.components):>12}{plain[0]:>10.2f}{ours[0] / plain[0]:>8.2f}"
              f"{ours[1] / plain[1]:>11.2f}{decomposer.check(images, 1)['error']:>9.0e}", flush=True)


def coverage(args) -> None:
    """Which models are decomposed exactly, at what cost, and why others are refused.

    Every model that open_clip lists, and families of timm and transformers (scripts/coverage.py), with random weights
    and two blocks, or one a stage. Models whose image towers differ in image size, output width or the kind of GELU
    alone share a line. Exact: the terms sum to the model's own output within 1e-5, and each block has a term.
    """
    from collections import Counter
    from itertools import chain

    import torch

    from scripts import coverage as models
    from utils.decompose.decomposer import Decomposer

    device, towers, models_of = processes.pick_device("cpu"), Counter(), Counter()

    def count(library: str, outcome: str, why: str, names: list[str]) -> None:
        towers[library, outcome, why] += 1
        models_of[library, outcome, why] += len(names)

    print(f"{'library':<14}{'terms':>6}{'error':>9}{'cost':>7}  models")
    for library, names, make in chain(models.of_open_clip(), models.of_timm(), models.of_transformers()):
        if args.only and not any(text in name for text in args.only for name in names):
            continue
        try:
            model = make(device)
            decomposer, images = Decomposer(model), torch.randn(args.batch_size, 3, *model.image_size)
            checked = decomposer.check(images, args.repeats)
        except cli.UserError as error:
            why = str(error).removeprefix("this model cannot be decomposed: ")
            count(library, "refused", why.partition(" in ")[0].partition(" stands ")[0], names)
            print(f"{library:<14}{'refused':>22}  {', '.join(names)}: {why}", flush=True)
            continue
        except Exception as error:  # a library that is built otherwise must not end the table
            count(library, "failed", type(error).__name__, names)
            print(f"{library:<14}{'failed':>22}  {', '.join(names)}: {cli.describe(error)[:200]}", flush=True)
            continue
        exact = "exact" if checked["error"] < 1e-5 else "not exact"
        count(library, exact, "", names)
        print(f"{library:<14}{len(decomposer.components):>6}{checked['error']:>9.0e}{checked['cost']:>7.2f}  "
              f"{', '.join(names)}{'' if exact == 'exact' else ': not exact'}", flush=True)
    for key, number in towers.items():
        library, outcome, why = key
        print(f"{library}: {number} towers of {models_of[key]} models {outcome}{': ' * bool(why)}{why}")


def segmentation(args) -> None:
    """What a heat map costs: decomposition by patches and the map of the predicted class, beside a plain encode_image.

    Both take the same batch of random images and a random classifier of 1,000 classes, in turns. Of each the fastest
    repeat counts, as other work on the machine only ever adds time; the ratio is printed.
    """
    import torch

    from utils.analysis.segmentation import figures
    from utils.analysis.segmentation.methods import Explainer

    clip, _ = load(args)
    generator = torch.Generator().manual_seed(args.seed)
    images = torch.randn(args.batch_size, 3, *clip.image_size, generator=generator).to(clip.device)
    columns = torch.randn(clip.tower.output_dim, 1000, generator=generator).to(clip.device)
    explainer = Explainer(clip, torch.nn.functional.normalize(columns, dim=0))

    def plain() -> torch.Tensor:
        return clip.encode_image(images).cpu()  # ends on the CPU, so that a GPU has finished

    def heat() -> torch.Tensor:
        return figures.heat_maps(explainer.explain(images)["decomposition"], clip.image_size[0]).cpu()

    with torch.inference_mode():
        found = turns({"encode_image": plain, "heat maps": heat}, args.repeats)
    fastest = {name: min(clock for clock, _ in seconds) for name, seconds in found.items()}
    compare(f"{args.model}, batches of {args.batch_size}, {clip.device}", fastest, args.batch_size)


def inside(args) -> None:
    """What effects of neurons of three layers cost beside encode_image, and terms of texts beside encode_text.

    Second-order effects of all neurons of the three layers before the last one, as coefficients of every later head. A
    batch of random images, and of as many texts of the general pool. The fastest repeat of each counts, as other work
    on the machine only ever adds time.
    """
    from pathlib import Path

    import torch

    from utils.decompose.neurons import Neurons
    from utils.decompose.texts import TextDecomposer

    clip, _ = load(args)
    layers = len(clip.tower.transformer.resblocks)
    neurons, texts = Neurons(clip, list(range(max(layers - 4, 0), layers - 1))), TextDecomposer(clip)
    images = torch.randn(args.batch_size, 3, *clip.image_size, generator=torch.Generator().manual_seed(args.seed)).to(
        clip.device)
    pool = Path(__file__).resolve().parent.parent / "text_descriptions" / "image_descriptions_general.txt"
    lines = pool.read_text(encoding="utf-8").splitlines()[:args.batch_size]
    ways = {"encode_image": lambda: clip.encode_image(images).cpu(),
            "neurons": lambda: neurons.effects(images).representation.cpu(),
            "encode_text": lambda: clip.encode_text(lines).cpu(),
            "terms of texts": lambda: texts.terms(lines).values.cpu()}
    with torch.inference_mode():
        found = {name: min(clock for clock, _ in seconds) for name, seconds in turns(ways, args.repeats).items()}
    of_layers = ", ".join(map(str, neurons.layers))
    for title, names in ((f"all neurons of layers {of_layers}", ("encode_image", "neurons")),
                         ("texts", ("encode_text", "terms of texts"))):
        compare(f"{args.model}, {title}, batches of {args.batch_size}, {clip.device}",
                {name: found[name] for name in names}, args.batch_size)


def textspan(args) -> None:
    """TextSpan from covariances beside the literal algorithm, on the paper's sizes.

    One head: 5,000 images x 768 dimensions x 3,498 texts x 20 texts a head. The literal algorithm (that of the tests)
    projects every image on every text anew for each pick.
    """
    import sys
    import time
    from pathlib import Path

    import numpy as np
    import torch

    from utils.analysis import textspan
    from utils.runs.storage import FullTerms

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    import literal

    rng = np.random.default_rng(0)
    x = (rng.normal(size=(args.images, 64)) * np.linspace(1, 0.1, 64)) @ rng.normal(size=(64, args.width)) / 500
    x = (x + rng.normal(size=args.width) / 500).astype(np.float32)
    pool = rng.normal(size=(args.texts, args.width))
    pool = (pool / np.linalg.norm(pool, axis=1, keepdims=True)).astype(np.float32)
    eps = np.finfo(np.float32).eps

    start = time.perf_counter()
    means, seconds = FullTerms(x[:, None]).moments(slice(None))
    texts = torch.from_numpy(pool).double()
    span = textspan.text_span(means[0], seconds[0], texts, args.texts_per_head, args.rank, eps)
    fast = time.perf_counter() - start
    start = time.perf_counter()
    picks, reconstruction, *_ = literal.text_span(x, pool, args.texts_per_head, args.rank, eps)
    slow = time.perf_counter() - start
    mean, directions = span.mean.numpy(), span.directions.numpy()
    error = np.abs(mean + (x - mean) @ directions.T @ directions - reconstruction).max()
    print(f"literal {slow:.2f} s, from covariances {fast:.2f} s, ratio {slow / fast:.1f}")
    print(f"same texts in the same order: {span.picks == picks}; "
          f"largest difference of the reconstructions: {error:.1e}")


def names(args) -> None:
    """Which way of naming heads is right how often: a leaderboard against three truths.

    Needs the arrays of --models on the data set emoji in --input_dir: of emojiclip, and of emojivit mapped to it
    (compute_alignment.py). The truths are the variance that each attribute explains, how far a head moves when an
    attribute alone is changed in a scene, and the accuracy that is lost with the head ablated. Pools: the attributes'
    texts, the descriptions of compute_head_truth.py, whole and balanced, common words, and fewer texts about objects.
    The held-out part are scenes of a seed that nothing else uses.
    """
    from pathlib import Path

    from scripts import bench_names
    from utils.analysis.names import METHODS, attributes
    from utils.data import datasets
    from utils.runs.run import Run

    texts, rows, methods = attributes.read(bench_names.ATTRIBUTES), [], args.methods or METHODS
    print("| model | images | pool | method | right | kappa | interval | macro-F1 | cosine | Spearman | "
          "interventions | ablations |\n" + "| --- " * 12 + "|")
    for model in args.models:
        run = Run.open(args.input_dir, "emoji", model)
        images = datasets.load_images("emoji")
        drawn = [images.scenes[i] for i in run.indices(images)]
        embedded = bench_names.pools(run, texts, processes.pick_device(None))
        fresh, others, moved = bench_names.held_out(run, bench_names.SEED) or (None, None, None)
        for pool in embedded:
            own = methods if pool in bench_names.WHOLE else [name for name in methods if name not in bench_names.SLOW]
            bench_names.judge(run, drawn, embedded, list(texts), own, moved, f"{model}, all", pool, rows)
        if fresh is not None:
            bench_names.judge(fresh, others, embedded, list(texts), methods, moved, f"{model}, held out", "attributes",
                              rows)
        some = [name for name in methods if name in bench_names.COVERED]
        bench_names.coverage(run, drawn, embedded, list(texts), some, args.draws, rows)
    path = Path(args.output_dir) / "names_leaderboard.json"
    cli.save_result(path, {"rows": rows})
    bench_names.write(rows, path.with_suffix(".csv"))
    print(f"-> {path.with_suffix('.csv')}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
