"""What train.py needs around TRL's trainers: the prompts of a whole run, the reward function, the log.

Imported by train.py alone, since TRL takes a while to import.
"""
import csv
import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm
from transformers import TrainerCallback

from utils import cli
from utils.ex2 import descriptions
from utils.language import jsonl, loading

TOP = 10  # best-rewarded descriptions that are kept at every log step
COLUMNS = ("step", "reward", "reward_std", "kl", "entropy", "loss", "mean_words", "duplicates", "repeated_phrases",
           "copies", "shared_phrase", "unscored")


def prompts(concepts: list[str], questions: list[str], tokenizer, number: int, seed: int) -> list[dict]:
    """The prompts of a whole run in their order: `number` rows with prompt, query, concept (its index).

    Every pair of a concept and a question comes once before any comes again. A resumed run continues exactly only where
    the order does not depend on the trainer.
    """
    pairs = [(index, descriptions.fill(question, concept))
             for index, concept in enumerate(concepts) for question in questions]
    rng, rows = random.Random(seed), []
    while len(rows) < number:
        rng.shuffle(pairs)
        rows += [{"prompt": loading.prompt(tokenizer, query), "query": query, "concept": index}
                 for index, query in pairs]
    return rows[:number]


def reward_function(score: Callable[[list[str], list[int]], list], concepts: list[str], recent: list[dict]) -> Callable:
    """A reward function as TRL calls it, around `score(descriptions, concept indices)`.

    Every call logs the signs of collapse, and leaves its descriptions in `recent` for the log of the best.
    """
    def vlm_reward(completions, query, concept, log_metric, **_):
        said = [text if isinstance(text, str) else text[0]["content"] for text in completions]
        rewards = score(said, concept)
        for name, value in descriptions.measures(said, query).items():
            log_metric(name, value)
        log_metric("unscored", sum(reward is None for reward in rewards) / len(rewards))
        recent.extend({"concept": concepts[index], "question": question, "description": text.strip(), "reward": reward}
                      for index, question, text, reward in zip(concept, query, said, rewards))
        return rewards

    return vlm_reward


def complete_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run in their order. The trainer writes trainer_state.json last: one without it was
    cut off, and is removed."""
    found = []
    for path in folder.glob("checkpoint-*"):
        if not path.name.removeprefix("checkpoint-").isdigit():
            continue
        try:
            json.loads((path / "trainer_state.json").read_text())
            found.append(path)
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(path)
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


class Log(TrainerCallback):
    """One line on the screen and one row in log.csv at every log step, and the best descriptions since the last
    one in top_descriptions.jsonl. A step is one batch of fresh descriptions."""

    def __init__(self, folder: Path, recent: list[dict], epochs: int, write_csv: bool):
        self.folder, self.recent, self.epochs, self.write_csv = folder, recent, epochs, write_csv
        self.bar = None

    def on_train_begin(self, args, state, control, **_):
        done = state.global_step // self.epochs
        if not state.is_world_process_zero:
            return
        self.bar = tqdm(total=state.max_steps // self.epochs, initial=done, desc="steps", unit="step")
        for name in ("log.csv", "top_descriptions.jsonl"):  # rows after the checkpoint are made again
            path = self.folder / name
            if path.is_file():
                lines = path.read_bytes().decode(errors="replace").split("\n")[:-1]  # the last may have been cut off
                cli.write_text(path, "".join(line + "\n" for line in lines if (_step(line) or 0) <= done))

    def on_step_end(self, args, state, control, **_):
        if self.bar and state.global_step % self.epochs == 0:
            self.bar.update()

    def on_log(self, args, state, control, logs=None, **_):
        from accelerate.utils import gather_object

        if "reward" not in (logs or {}):
            return
        rows = gather_object(self.recent[:])
        self.recent.clear()
        if not state.is_world_process_zero:
            return
        row = {name: logs.get(name) for name in COLUMNS} | {"step": state.global_step // self.epochs}
        number = {name: row[name] if row[name] is not None else float("nan") for name in COLUMNS}
        tqdm.write("step {step:5d}  reward {reward:6.2f} +- {reward_std:5.2f}  KL {kl:7.4f}  words {mean_words:4.1f}  "
                   "duplicates {duplicates:4.0%}  repeats {repeated_phrases:4.0%}  copies {copies:4.0%}  "
                   "shared phrase {shared_phrase:4.0%}".format(**number), file=sys.stderr)
        if problem := descriptions.warning(number):
            tqdm.write(f"warning: {problem}; see top_descriptions.jsonl, raise --beta or lower --learning_rate",
                       file=sys.stderr)
        if self.write_csv:
            path = self.folder / "log.csv"
            new = not path.is_file()
            with path.open("a", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                if new:
                    writer.writeheader()
                writer.writerow(row)
        best = sorted((entry for entry in rows if entry["reward"] is not None), key=lambda entry: -entry["reward"])
        jsonl.append(self.folder / "top_descriptions.jsonl", [{"step": row["step"], **entry} for entry in best[:TOP]])

    def on_train_end(self, args, state, control, **_):
        if self.bar:
            self.bar.close()


def save_adapter(trainer, folder: Path) -> None:
    """Write the trained adapter; its weights have their name only when all else is there."""
    partial = folder / "final.partial"
    trainer.save_model(str(partial))
    if trainer.is_world_process_zero():
        for path in sorted(partial.iterdir(), key=lambda path: path.name == "adapter_model.safetensors"):
            path.replace(folder / path.name)
        partial.rmdir()


def draw_log(folder: Path, title: str) -> None:
    """reward_curve.png from log.csv, where there is one."""
    from utils.plots import charts

    if (folder / "log.csv").is_file():
        with (folder / "log.csv").open(newline="") as file:
            history = [{name: float(value) if value else float("nan") for name, value in row.items()}
                       for row in csv.DictReader(file)]
        charts.reward_curve(history, title, folder / "reward_curve.png")


def _step(line: str) -> int | None:
    """The step of a line of log.csv or top_descriptions.jsonl; None for the header."""
    if line.startswith("{"):
        return json.loads(line)["step"]
    first = line.split(",", 1)[0]
    return int(first) if first.isdigit() else None
