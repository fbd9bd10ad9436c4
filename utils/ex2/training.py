"""What train.py needs around TRL's trainers: the prompts of a run, the reward function, the weight of the KL, the log.

Imported by train.py alone, since transformers' trainer takes a while to import.
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
from utils.language.replies import without_thoughts

TOP = 10  # best-rewarded descriptions that are kept at every log step
COLUMNS = ("step", "reward", "reward_std", "kl", "beta", "clipped", "entropy", "loss", "mean_words", "duplicates",
           "repeated_phrases", "copies", "shared_phrase", "empty", "cut", "unscored")
CLIPPED = "clip_ratio/region_mean"  # TRL's name of the share of clipped ratios
MOSTLY_CLIPPED = 0.5  # a share of clipped ratios above which most of an update is lost
KL_TARGET, KL_HORIZON, KL_STEP = 10.0, 10_000, 0.2  # as published: nats a description, descriptions, most error


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


def reward_function(score: Callable[[list[str], list[int]], list], cut: Callable[[list[str]], list[int]],
                    concepts: list[str], recent: list[dict]) -> Callable:
    """A reward function as TRL calls it, around `score(descriptions, concept indices)`.

    Every call logs the signs of collapse and the share of descriptions that the VLM does not read to their end, of
    which `cut` gives the indices, and leaves its descriptions in `recent` for the log of the best.
    """
    def vlm_reward(completions, query, concept, log_metric, **_):
        said = [without_thoughts(text if isinstance(text, str) else text[0]["content"]) for text in completions]
        rewards = score(said, concept)
        for name, value in descriptions.measures(said, query).items():
            log_metric(name, value)
        log_metric("cut", len(cut([text.strip() for text in said])) / len(said))
        log_metric("unscored", sum(reward is None for reward in rewards) / len(rewards))
        recent.extend({"concept": concepts[index], "question": question, "description": text.strip(), "reward": reward}
                      for index, question, text, reward in zip(concept, query, said, rewards))
        return rewards

    return vlm_reward


def make_trainer(algorithm: str, model, tokenizer, rows: list[dict], reward: Callable, lora: dict, callbacks: list,
                 epochs: int, minibatches: int, passes: int, normalize_advantages: bool, vllm: dict, **settings):
    """TRL's trainer of "rloo" or "grpo", its adapter in float32.

    `rows` are those of `prompts`, `lora` the adapter's r, lora_alpha and lora_dropout. A batch of fresh descriptions is
    gone over `epochs` times, in `minibatches` updates, of `passes` forward and backward passes each. `vllm` is TRL's
    own settings of vLLM, `settings` more of TRL's.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    if algorithm == "rloo":
        make, config = RLOOTrainer, RLOOConfig
        settings |= {"normalize_advantages": normalize_advantages}
    else:  # PPO's loss: a ratio and a clip for each token, the mean over the tokens of a minibatch
        make, config = GRPOTrainer, GRPOConfig
        settings |= {"scale_rewards": "batch" if normalize_advantages else "none", "loss_type": "bnpo",
                     "importance_sampling_level": "token"}
    trainer = make(
        model=model, processing_class=tokenizer, train_dataset=Dataset.from_list(rows), reward_funcs=reward,
        peft_config=LoraConfig(**lora, task_type="CAUSAL_LM"), callbacks=callbacks,
        args=config(num_iterations=epochs, steps_per_generation=minibatches * passes,
                    gradient_accumulation_steps=passes, temperature=1.0, top_p=1.0, top_k=0,
                    lr_scheduler_type="constant", shuffle_dataset=False, disable_tqdm=True, use_vllm=bool(vllm),
                    **vllm, **settings))
    # TRL makes the adapter of a quantised model one of bfloat16, in which updates of the published size are lost.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    return trainer


class KLWeight(TrainerCallback):
    """Sets the trainer's weight of the KL divergence, `beta` in units of the reward, after every step that is logged.

    `adaptive` moves beta so that a description's divergence is KL_TARGET nats, as PPO did: by at most KL_STEP for every
    KL_HORIZON descriptions. `scaled` is for advantages that are divided by the standard deviation of a batch's rewards
    beside a divergence that is not (GRPO's loss): beta is divided by the last batch's. The first batch, which begins
    without a divergence, has beta itself.
    """

    def __init__(self, beta: float, batch_size: int, updates: int, adaptive: bool, scaled: bool):
        self.beta, self.batch_size, self.updates, self.adaptive, self.scaled = (
            beta, batch_size, updates, adaptive, scaled)
        self.seen, self.trainer = 0, None

    def follow(self, logs: dict, step: int) -> None:
        """Set the weight by what was logged at that update."""
        number, self.seen = (step // self.updates - self.seen) * self.batch_size, step // self.updates
        if self.adaptive:
            error = logs["kl"] * logs["completions/mean_length"] / KL_TARGET - 1
            self.beta *= 1 + min(max(error, -KL_STEP), KL_STEP) * number / KL_HORIZON
        self.trainer.beta = self.beta / (logs["reward_std"] or 1.0) if self.scaled else self.beta

    def on_train_begin(self, args, state, control, **_):
        for logs in state.log_history:  # of a run that is resumed
            if "kl" in logs:
                self.follow(logs, logs["step"])

    def on_log(self, args, state, control, logs=None, **_):
        if "kl" in (logs or {}):
            self.follow(logs, state.global_step)


class StepNames(TrainerCallback):
    """Gives a checkpoint the number of the step it was made after, where the trainer counts updates."""

    def __init__(self, folder: Path, updates: int):
        self.folder, self.updates = folder, updates

    def on_save(self, args, state, control, **_):
        from accelerate import PartialState

        PartialState().wait_for_everyone()  # each process writes a file of its own into the checkpoint
        if state.is_world_process_zero:
            rename_checkpoint(self.folder / f"checkpoint-{state.global_step}", self.updates)
        PartialState().wait_for_everyone()


def rename_checkpoint(path: Path, updates: int) -> Path:
    """The checkpoint with the trainer's name by the number of its step. Returns where it is now."""
    step = path.with_name(f"checkpoint-{int(path.name.split('-')[1]) // updates}")
    if step != path:
        shutil.rmtree(step, ignore_errors=True)
        path.replace(step)
    return step


def complete_checkpoints(folder: Path, updates: int) -> list[Path]:
    """Checkpoints of a run of so many updates a step, in their order. The trainer writes trainer_state.json last: one
    without it was cut off, and is removed; one that was cut off before it had its step's number gets it."""
    found = set()
    for path in sorted(folder.glob("checkpoint-*")):
        if not path.name.removeprefix("checkpoint-").isdigit():
            continue
        try:
            done = json.loads((path / "trainer_state.json").read_text())["global_step"]
        except (OSError, json.JSONDecodeError, KeyError):
            shutil.rmtree(path)
            continue
        found.add(rename_checkpoint(path, updates) if path.name == f"checkpoint-{done}" else path)
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


class Log(TrainerCallback):
    """One line on the screen and one row in log.csv at every log step, and the best descriptions since the last
    one in top_descriptions.jsonl. A step is one batch of fresh descriptions, in so many `updates`."""

    def __init__(self, folder: Path, recent: list[dict], updates: int, write_csv: bool):
        self.folder, self.recent, self.updates, self.write_csv = folder, recent, updates, write_csv
        self.bar = self.trainer = None

    def on_train_begin(self, args, state, control, **_):
        done = state.global_step // self.updates
        if not state.is_world_process_zero:
            return
        self.bar = tqdm(total=state.max_steps // self.updates, initial=done, desc="steps", unit="step")
        for name in ("log.csv", "top_descriptions.jsonl"):  # rows after the checkpoint are made again
            path = self.folder / name
            if path.is_file():
                lines = path.read_bytes().decode(errors="replace").split("\n")[:-1]  # the last may have been cut off
                cli.write_text(path, "".join(line + "\n" for line in lines if (_step(line) or 0) <= done))

    def on_step_end(self, args, state, control, **_):
        if self.bar and state.global_step % self.updates == 0:
            self.bar.update()

    def on_log(self, args, state, control, logs=None, **_):
        from accelerate.utils import gather_object

        if "reward" not in (logs or {}):
            return
        rows = gather_object(self.recent[:])
        self.recent.clear()
        if not state.is_world_process_zero:
            return
        row = {name: logs.get(name) for name in COLUMNS} | {
            "step": state.global_step // self.updates, "clipped": logs.get(CLIPPED),
            "beta": getattr(self.trainer, "beta", None)}
        number = {name: row[name] if row[name] is not None else float("nan") for name in COLUMNS}
        tqdm.write("step {step:5d}  reward {reward:6.2f} +- {reward_std:5.2f}  KL {kl:7.4f}  clipped {clipped:4.0%}  "
                   "words {mean_words:4.1f}  "
                   "duplicates {duplicates:4.0%}  repeats {repeated_phrases:4.0%}  copies {copies:4.0%}  "
                   "shared phrase {shared_phrase:4.0%}".format(**number), file=sys.stderr)
        if problem := descriptions.warning(number):
            tqdm.write(f"warning: {problem}; see top_descriptions.jsonl, raise --beta or lower --learning_rate",
                       file=sys.stderr)
        if number["clipped"] > MOSTLY_CLIPPED:
            tqdm.write(f"warning: {number['clipped']:.0%} of the ratios were clipped, so that most of the update was "
                       "lost; lower --learning_rate, or take fewer updates of a batch", file=sys.stderr)
        if number["cut"] > 0:
            tqdm.write(f"note: {number['cut']:.0%} of the descriptions have more tokens than the VLM reads; what comes "
                       "after these does not count", file=sys.stderr)
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
    from utils.plots import ex2

    if (folder / "log.csv").is_file():
        with (folder / "log.csv").open(newline="") as file:
            history = [{name: float(value) if value else float("nan") for name, value in row.items()}
                       for row in csv.DictReader(file)]
        ex2.reward_curve(history, title, folder / "reward_curve.png")


def _step(line: str) -> int | None:
    """The step of a line of log.csv or top_descriptions.jsonl; None for the header."""
    if line.startswith("{"):
        return json.loads(line)["step"]
    first = line.split(",", 1)[0]
    return int(first) if first.isdigit() else None
