"""Time and peak memory of every script against the number of images and of processes, as two tables.

    bash scripts/bench_scale.sh                             # 2,000 and 20,000 drawn images, 1 to 3 processes; half an hour
    python -m scripts.bench_scale --images 6000             # processes alone
    python -m scripts.bench_scale --images 200 1000         # a quick look

Each script runs as a user starts it, on the embedded model and on pictures that are drawn beforehand. Peak memory is the
resident memory of the largest of its processes, as the operating system counts it. Processes share the larger number of
images; each has one thread, and so has the one that they are compared with.
"""
from utils import cli

MODEL = "emojiclip"
TRAIN = 1000  # images of the train split, whatever that of test has


def get_args_parser():
    parser = cli.make_parser(__doc__)
    parser.add_argument("--images", type=cli.POSITIVE, nargs="+", default=[2000, 20000], metavar="N",
                        help="few, and many; one number is of processes alone (default: 2000 20000)")
    parser.add_argument("--processes", type=cli.POSITIVE, nargs="*", default=[1, 2, 3], metavar="N",
                        help="of compute_prs.py (default: 1 2 3)")
    parser.add_argument("--folder", metavar="FOLDER", help="for pictures and results (default: a temporary one)")
    return parser


def measured(command: list[str], threads: str | None = None) -> tuple[float, float]:
    """Seconds, and peak memory in MiB, of a command."""
    import os
    import subprocess
    import sys
    import time

    environment = {**os.environ, **({"OMP_NUM_THREADS": threads} if threads else {})}
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    errors = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors[-2000:]}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def steps(data: list[str], output: str) -> dict[str, list[str]]:
    """The scripts with their options, in the order in which they need each other."""
    model, write, read = ["--model", MODEL], ["--output_dir", output], ["--input_dir", output]
    pool, test = ["--text_descriptions", "emoji_descriptions", "--texts_per_head", "5"], ["--split", "test"]
    return {
        "compute_prs": [*model, *data, *test, "--batch_size", "32", *write],
        "compute_text_projection": [*model, *data[:3], f"{data[3]}/test", *write],
        "compute_text_set_projection": [*model, "--data_path", "text_descriptions/emoji_descriptions.txt", *write],
        "compute_ablations": [*model, *data[:2], *test, *read],
        "compute_complete_text_set": [*model, *data[:2], *test, *pool, "--num_of_last_layers", "4", *read, *write],
        "compute_use_specific_heads": [*model, *data, *test, "--heads", "5.3,5.4", *read],
        "compute_nearest_neighbors": [*model, *data, *test, "--index", "5", "--heads", "5.3,5.4", *read, *write],
        "compute_linear_probe": [*model, *data[:2], *test, *read, *write],
        "compute_component_scores": [*model, *data[:2], *test, "--features", "configs/features_emoji.yaml", *read, *write],
        "compute_component_ablation": [*model, *data[:2], *test, *read, *write],
        "compute_retrieval": [*model, *data, *test, "--features", "configs/features_emoji.yaml", "--feature", "color", "--text",
                              "a red background", *read, *write],
        "compute_alignment": [*model, "--clip", MODEL, *data[:2], "--split", "train", "--apply", "test", "--epochs", "1", *read,
                              "--output_dir", f"{output}/aligned"],
        "make_report": [*model, *data, *test, *pool, "--heat_maps", "0", *read]}


def draw(root: str, number: int) -> None:
    """Draw pictures, by the colour of their background: few classes, all of them full."""
    from pathlib import Path

    from scripts.write_emoji import write_folders
    from utils.data import scenes

    drawn = scenes.sample_scenes(number, seed=20)
    write_folders(drawn, 64, [Path(root) / scene.attributes()["color"] / f"{i:06d}.png" for i, scene in enumerate(drawn)])


def main(args) -> None:
    import multiprocessing
    import os
    import tempfile
    from pathlib import Path

    few, many = args.images[0], args.images[-1]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        root = Path(folder)
        # In a process of its own: what starts a process lends it its own peak, and this one has to stay small.
        drawing = multiprocessing.get_context("spawn").Process(target=draw, args=(f"{root}/drawn", max(many, TRAIN)))
        drawing.start()
        drawing.join()
        drawn = sorted((root / "drawn").glob("*/*.png"), key=lambda path: path.name)
        found: dict[int, dict] = {}
        for number in args.images:
            data = root / str(number)
            for split, some in (("test", drawn[:number]), ("train", drawn[:TRAIN])):
                for path in some:
                    place = data / split / path.relative_to(root / "drawn")
                    place.parent.mkdir(parents=True, exist_ok=True)
                    os.link(path, place)
            if few == many:
                break
            chosen = ["--dataset", "imagefolder", "--data_path", str(data)]
            measured(["compute_prs.py", "--model", MODEL, *chosen, "--split", "train", "--batch_size", "32", "--output_dir",
                      f"{data}/o"])
            found[number] = {name: measured([f"{name}.py", *options]) for name, options in steps(chosen, f"{data}/o").items()}
        if found:
            print(f"| script | peak memory, {few} images (MiB) | {many} images (MiB) | ratio | seconds | seconds | ratio |\n"
                  "| --- | --- | --- | --- | --- | --- | --- |")
        for name in found.get(few, {}):
            (seconds, peak), (longer, larger) = found[few][name], found[many][name]
            print(f"| `{name}.py` | {peak:.0f} | {larger:.0f} | {larger / peak:.2f} | {seconds:.0f} | {longer:.0f} | "
                  f"{longer / seconds:.1f} |")
        print("\n| processes | seconds | images a second | ratio to one | peak memory (MiB) |\n| --- | --- | --- | --- | --- |")
        alone = None
        for number in args.processes:
            data = ["--dataset", "imagefolder", "--data_path", f"{root}/{many}"]
            options = steps(data, f"{root}/p{number}")["compute_prs"]
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(number)] if number > 1 else []
            seconds, peak = measured([*launcher, "compute_prs.py", *options, "--num_workers", "0"], threads="1")
            alone = alone or seconds
            print(f"| {number} | {seconds:.0f} | {many / seconds:.0f} | {alone / seconds:.2f} | {peak:.0f} |")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
