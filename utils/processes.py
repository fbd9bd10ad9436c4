"""Several processes, on one machine or many, through accelerate. A script that is started alone is one process."""
import datetime
import os
import sys
from collections.abc import Iterator, Sequence

PATIENCE = datetime.timedelta(days=7)  # that a process waits for the others


def number() -> int:
    """How many processes the script was started as."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leads() -> bool:
    """Whether this is the process that writes what all have found."""
    return os.environ.get("RANK", "0") == "0"


def start(device: str | None):
    """This process among those that `accelerate launch` or torchrun started: accelerate's state, with num_processes,
    process_index, is_main_process and device. Several processes say how many they are.

    Raises UserError where the device cannot be used; several processes choose their own.
    """
    import torch
    from accelerate import PartialState

    from utils.cli import UserError, pick_device

    # Where there is no GPU, accelerate makes several processes one another's only when it is told so.
    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available(), timeout=PATIENCE)
    if state.num_processes > 1 and device not in (None, "cpu", "cuda"):
        raise UserError(f"--device {device}: each of {state.num_processes} processes takes a device of its own; leave it out")
    state.device = pick_device(device if state.num_processes == 1 else str(state.device))
    if state.num_processes > 1 and state.is_main_process:
        print(f"{state.num_processes} processes, on {state.device.type}", file=sys.stderr)
    return state


def share(numbers: Sequence[int], state) -> list[int]:
    """Which of the batches are this process's: with n processes, every n-th."""
    from accelerate.data_loader import BatchSamplerShard

    shard = BatchSamplerShard([[number] for number in numbers], state.num_processes, state.process_index, even_batches=False)
    return [number for number, in shard]


def gather(found: dict) -> dict:
    """What all processes found, by number of the batch, in order; every process has it."""
    from accelerate.utils import gather_object

    return dict(sorted(gather_object(list(found.items()))))


def in_rounds(numbers: Sequence[int], found: Iterator, total: int, state) -> Iterator:
    """What all processes find, in the order of `total` batches, as soon as each of them has done one more; every process
    has it. `found` is what this one finds, for the batches `numbers` of `share`."""
    mine = zip(numbers, found)
    for _ in range(-(-total // state.num_processes)):
        pair = next(mine, None)
        yield from gather(dict([pair] if pair else [])).values()
