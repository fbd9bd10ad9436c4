"""What whole scripts take, run as a user starts them: until they say something, and with few and many images; and
what the page of explore.py takes to answer. The benchmarks `start`, `scale` and `page` of scripts/bench.py."""
TRAIN = 1000  # of scale: images of the train split, whatever that of test has


def start(args) -> None:
    """What scripts take until they say something: processor time, and its ratio to that of `import torch`.

    Each runs as a user starts it, on the embedded model and 40 pictures that are drawn beforehand; of its starts the
    fastest counts, as other work on the machine only ever adds time. An error is that of a path that is not there.
    """
    import math
    import tempfile
    from pathlib import Path

    roots = [Path(__file__).resolve().parent.parent, *([Path(args.beside).resolve()] if args.beside else [])]
    with tempfile.TemporaryDirectory() as folder:
        draw(f"{folder}/images/test", 40)
        commands = script_commands(f"{folder}/images", f"{folder}/o")
        for name in ("compute_prs", "compute_text_projection"):
            measured(commands[name])
        picture = next(Path(folder, "images").rglob("*.png"))
        heat = f"compute_heatmaps.py --model emojiclip --text 'a dog' --output {folder}/x.png --image"
        ways = {"import torch": "-c 'import torch'", "compute_ablations.py": commands["compute_ablations"],
                "compute_ablations.py, an error": f"{commands['compute_ablations']} --input_dir {folder}/nowhere",
                "compute_heatmaps.py": f"{heat} {picture}", "compute_heatmaps.py, an error": f"{heat} {folder}/nowhere"}
        found = {(name, root): (math.inf, math.inf) for name in ways for root in roots}
        for _ in range(args.repeats):
            for name, root in found:
                found[name, root] = tuple(map(min, found[name, root], processor_time(ways[name], root)))
    print("| | checkout | to the first line of results, s | ratio | in all, s | ratio |\n"
          "| --- | --- | --- | --- | --- | --- |")
    for (name, root), (first, whole) in found.items():
        plain = found["import torch", root][1]
        print(f"| {name} | {'this' if root == roots[0] else 'other'} | {first:.1f} | {first / plain:.2f} | "
              f"{whole:.1f} | {whole / plain:.2f} |")


def page(args) -> None:
    """What the page of explore.py takes to answer: a new picture with three new texts, then a bar and a word clicked.

    Calls the function that the page calls, with pictures that are drawn beforehand; the median of all answers but the
    first, which warms up. A model other than emojiclip has random weights where none are asked for.
    """
    import statistics
    import tempfile

    import torch

    from scripts.timing import turns
    from utils import processes
    from utils.explore import picture
    from utils.explore.session import open_session
    from utils.runs.files import Place

    pretrained = args.pretrained or (None if args.model == "emojiclip" else "none")
    with tempfile.TemporaryDirectory() as folder:
        draw(f"{folder}/images", args.repeats + 1)
        weights = f" --pretrained {pretrained}" if pretrained else ""
        measured(f"compute_prs.py --model {args.model}{weights} --seed {args.seed} --dataset imagefolder --data_path "
                 f"{folder}/images --output_dir {folder}/o --batch_size 4")
        session = open_session(Place(f"{folder}/o", "imagefolder", args.model), f"{folder}/images", "none", 1, folder,
                               pretrained, processes.pick_device(args.device), args.seed)
        asked = iter(range(args.repeats + 1))
        last = {}

        def ask() -> None:
            row = next(asked)
            last.update(query=str(row), texts=f"picture {row} of owls\na red apple of {row}\n{row} blue backgrounds")
            picture.view(session, **last, part="", contrast=False)

        def bar() -> None:
            picture.view(session, **last, part=str(session.run.heads[-1]), contrast=False)

        def word() -> None:
            picture.view(session, **last, part="", contrast=False, word=f"1 {last['texts'].splitlines()[0]}")

        found = turns({"a picture and three texts": ask, "a bar clicked": bar, "a word clicked": word}, args.repeats)
    print(f"{args.model}, {torch.get_num_threads()} threads\n| asked | seconds | of processor time |")
    print("| --- | --- | --- |")
    for name, seconds in found.items():
        wall, processor = map(statistics.median, zip(*seconds))
        print(f"| {name} | {wall:.2f} | {processor:.2f} |")


def processor_time(command: str, root) -> tuple[float, float]:
    """Seconds of processor time of a command of Python in a checkout: until its first line on stdout (all, where there
    is none), and in all, with its processes."""
    import os
    import shlex
    import subprocess
    import sys
    from pathlib import Path

    process = subprocess.Popen([sys.executable, *shlex.split(command)], stdout=subprocess.PIPE, cwd=root,
                               stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    first = None
    if process.stdout.readline():
        ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        first = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    process.stdout.read()
    _, _, usage = os.wait4(process.pid, 0)
    whole = usage.ru_utime + usage.ru_stime
    return whole if first is None else first, whole


def scale(args) -> None:
    """Time and peak memory of every script against the number of images and of processes, as two tables.

    Each script runs as a user starts it, on the embedded model and on pictures that are drawn beforehand: half an hour
    as it stands. Peak memory is the resident memory of the largest of its processes, as the operating system counts it.
    Processes share the larger number of images; each has one thread, and so has the one that they are compared with.
    """
    import multiprocessing
    import tempfile

    few, many = args.images[0], args.images[-1]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        # In a process of its own: what starts a process lends it its own peak, and this one has to stay small.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            pool.starmap(draw, [(f"{folder}/{number}/{split}", images) for number in args.images
                                for split, images in (("test", number), ("train", TRAIN))])
        found: dict[int, dict] = {}
        for number in args.images if few != many else ():
            commands = script_commands(f"{folder}/{number}", f"{folder}/{number}/o")
            measured(commands["compute_prs"].replace("--split test", "--split train"))
            found[number] = {name: measured(command) for name, command in commands.items()}
        if found:
            print(f"| script | peak memory, {few} images (MiB) | {many} images (MiB) | ratio | seconds | seconds "
                  "| ratio |\n| --- | --- | --- | --- | --- | --- | --- |")
        for name in found.get(few, {}):
            (seconds, peak), (longer, larger) = found[few][name], found[many][name]
            print(f"| `{name}.py` | {peak:.0f} | {larger:.0f} | {larger / peak:.2f} | {seconds:.0f} | {longer:.0f} | "
                  f"{longer / seconds:.1f} |")
        print("\n| processes | seconds | images a second | ratio to one | peak memory (MiB) |\n"
              "| --- | --- | --- | --- | --- |")
        alone = None
        for number in args.processes:
            command = script_commands(f"{folder}/{many}", f"{folder}/p{number}")["compute_prs"]
            launcher = f"-m torch.distributed.run --standalone --nproc_per_node {number} " if number > 1 else ""
            seconds, peak = measured(f"{launcher}{command} --num_workers 0", threads="1")
            alone = alone or seconds
            print(f"| {number} | {seconds:.0f} | {many / seconds:.0f} | {alone / seconds:.2f} | {peak:.0f} |")


def script_commands(data: str, output: str) -> dict[str, str]:
    """The scripts with their options, in the order in which they need each other; `data` is a folder of images."""
    model, dataset = "--model emojiclip", "--dataset imagefolder"
    write, read = f"--output_dir {output}", f"--input_dir {output}"
    run, pool = f"{model} {dataset} --split test", "--text_descriptions emoji_descriptions --texts_per_head 5"
    images, features = f"{run} --data_path {data}", "--features configs/features_emoji.yaml"
    options = {
        "compute_prs": f"{images} --batch_size 32 {write}",
        "compute_text_projection": f"{model} {dataset} --data_path {data}/test {write}",
        "compute_text_set_projection": f"{model} --data_path text_descriptions/emoji_descriptions.txt {write}",
        "compute_ablations": f"{run} {read}",
        "compute_complete_text_set": f"{run} {pool} --num_of_last_layers 4 {read} {write}",
        "compute_use_specific_heads": f"{images} --heads 5.3,5.4 {read}",
        "compute_nearest_neighbors": f"{images} --index 5 --heads 5.3,5.4 {read} {write}",
        "compute_linear_probe": f"{run} {read} {write}",
        "compute_component_scores": f"{run} {features} {read} {write}",
        "compute_component_ablation": f"{run} {read} {write}",
        "compute_retrieval": f"{images} {features} --feature color --text 'a red background' {read} {write}",
        "compute_alignment": f"{model} --clip emojiclip {dataset} --split train --apply test --epochs 1 {read} "
                             f"--output_dir {output}/aligned",
        "make_report": f"{images} {pool} --heat_maps 0 {read}"}
    return {name: f"{name}.py {given}" for name, given in options.items()}


def measured(command: str, threads: str | None = None) -> tuple[float, float]:
    """Seconds, and peak memory in MiB, of a command of Python."""
    import os
    import shlex
    import subprocess
    import sys
    import time

    environment = {**os.environ, **({"OMP_NUM_THREADS": threads} if threads else {})}
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *shlex.split(command)], stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, env=environment)
    errors = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} failed:\n{errors[-2000:]}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def draw(root: str, number: int) -> None:
    """Draw pictures, by the colour of their background: few classes, all of them full."""
    from pathlib import Path

    from data.emoji.write import write_folders
    from utils.data import scenes

    drawn = scenes.sample_scenes(number, seed=20)
    write_folders(drawn, 64, [Path(root, scene.attributes()["color"], f"{i:06d}.png") for i, scene in enumerate(drawn)])
