"""Reproduce tables of the papers: published figures, ours, and the difference, on one page.

    bash scripts/reproduce.sh --list                                       # tables, data, disk, time
    bash scripts/reproduce.sh ablation segmentation --data_root DIR
    bash scripts/reproduce.sh --embedded                                   # the same on the embedded images and models

A table is a file in configs/experiments, with its steps: commands of this repository. A step that was done is not
repeated, and tables share steps. --data_root holds the data sets as they are downloaded; all that is missing is said
before anything is computed. A step that fails ends its variant of the table, and the rest goes on.

Writes to --output_dir: {table}.json; index.html and index.md, one page with all tables that were made there, where a
figure outside its tolerance is red and names the step to look at; steps/, what each step printed, when it was done and
how long it took. With --embedded also results.md and results.json, to --docs. LAUNCH in the environment starts the
steps that several processes can share (see scripts/reproduce.sh). INSPECTOR holds options of inspect.py, such as
"--base_url URL --model NAME".
"""
import contextlib
import hashlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

from utils import cli
from utils.cli import UserError

SHARED = ("compute_prs.py", "compute_segmentations.py", "compute_text_set_projection.py", "inference.py", "train.py")


def get_args_parser():
    parser = cli.make_parser(__doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE",
                        help="names of tables, or all (with --embedded: all by default)")
    parser.add_argument("--list", action="store_true", help="show the tables, and what each needs")
    parser.add_argument("--data_root", metavar="DIR", help="folder of the data sets (default: none)")
    parser.add_argument("--embedded", action="store_true",
                        help="on the embedded images and models (default: on the papers')")
    parser.add_argument("--experiments", default="configs/experiments", metavar="FOLDER", help="where the tables are")
    parser.add_argument("--output_dir", metavar="FOLDER",
                        help="where everything goes (default: ./reproduction; with --embedded ./output_dir/embedded)")
    parser.add_argument("--docs", default="docs", metavar="FOLDER", help="where results.md and results.json go")
    return parser


def words_of(step: str) -> list[str]:
    """A step as a command line; a training that was begun goes on."""
    words = shlex.split(step)
    if words[0] == "train.py" and Path(words[words.index("--output_dir") + 1], "train.json").is_file():
        words.append("--resume")
    return words


def work(words: list[str], log: str) -> None:
    """Run a script in this process, its output in a file."""
    import multiprocessing
    import runpy

    multiprocessing.set_start_method(None, force=True)  # the platform's own, as in a process that is started afresh
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    module = words[0] == "-m"
    sys.argv = words[module:]
    (runpy.run_module if module else runpy.run_path)(sys.argv[0], run_name="__main__")


def start(words: list[str], log: str) -> int:
    """Run a step in a process of its own, and return its exit code. The large libraries are imported once for all."""
    import multiprocessing

    if os.environ.get("LAUNCH") and words[0] in SHARED:
        with open(log, "ab") as file:
            return subprocess.run([*shlex.split(os.environ["LAUNCH"]), *words], stdout=file, stderr=file).returncode
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "open_clip"])
    process = context.Process(target=work, args=(words, log))
    process.start()
    try:
        process.join()
    except KeyboardInterrupt:
        process.terminate()
        process.join()
        raise
    return process.exitcode


def run_step(step: str, folder: Path, failed: dict[str, str]) -> dict:
    """Do a step unless it was done before, or failed; what is known of it. `failed` keeps why steps failed."""
    import json
    import time

    path = folder / f"{hashlib.sha256(step.encode()).hexdigest()[:12]}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    if step not in failed:
        print(f"+ python {step}", file=sys.stderr, flush=True)
        log, begin = path.with_suffix(".log"), time.perf_counter()
        code = start(words_of(step), str(log))
        if code == 0:
            found = {"step": step, "seconds": time.perf_counter() - begin, "finished": time.strftime("%F %T")}
            cli.save_result(path, found)
            return found
        lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines() or [""]
        failed[step] = f"{next((line for line in reversed(lines) if line.startswith('error: ')), lines[-1])} ({log})"
        print(f"failed: {failed[step]}", file=sys.stderr, flush=True)
    return {"step": step, "failed": failed[step]}


def main(args) -> None:
    from utils.report import experiments, tables

    every = experiments.names(args.experiments)
    chosen = every if args.tables == ["all"] or (args.embedded or args.list) and not args.tables else args.tables
    if not chosen:
        raise UserError(f"name tables, or all; there are {', '.join(every)}")
    loaded = {name: experiments.read(name, args.experiments) for name in chosen}
    world = "embedded" if args.embedded else "variants"
    loaded = {name: experiment for name, experiment in loaded.items() if args.list or experiment.get(world)}
    if args.list:
        print(tables.listing(loaded))
        return

    # The data, all at once.
    output = Path(args.output_dir or ("output_dir/embedded" if args.embedded else "reproduction"))
    values = {"out": shlex.quote(str(output)), "inspector": os.environ.get("INSPECTOR", "")}
    if not args.embedded:
        paths, missing = experiments.find_data(loaded, args.data_root, values["inspector"])
        if missing:
            print(*missing, sep="\n")
            raise UserError(f"{len(missing)} things are missing for these tables; the lines above say what to get")
        values |= {name: shlex.quote(path) for name, path in paths.items()}

    # Steps, table by table; each table's page as soon as it is complete.
    failed: dict[str, str] = {}
    (output / "steps").mkdir(parents=True, exist_ok=True)
    for name, experiment in loaded.items():
        done = {}
        for variant, own in experiments.variants(experiment, args.embedded, values).items():
            done[variant] = []
            with contextlib.suppress(StopIteration):
                for step in experiments.steps(experiment, own):
                    done[variant].append(run_step(step, output / "steps", failed))
                    if "failed" in done[variant][-1]:
                        raise StopIteration
        cli.save_result(output / f"{name}.json", tables.collect(name, experiment, args.embedded, values, done))
        tables.write(output, every)
        if args.embedded:
            tables.write_results(output, every, Path(args.docs))
    if failed:
        raise UserError(f"{len(failed)} steps failed, such as {next(iter(failed))}: {next(iter(failed.values()))}")
    print(f"-> {output / 'index.html'}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
