"""Where a script runs: its device, and the processes that share its work, on one machine or many, through accelerate.
A script that is started alone is one process."""
import contextlib
import datetime
import fcntl
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from utils.inputs import UserError

PATIENCE = datetime.timedelta(days=7)  # that a process waits for the others


def pick_device(name: str | None):
    """The torch device of that name, or the best there is. Raises UserError where it cannot be used."""
    import torch

    # TF32 would miss the 1e-5 asked of terms. Convolutions have a setting of their own, which some versions keep.
    torch.backends.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    if name is None:
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # which the device meta has not
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used here ({str(error).splitlines()[0]}); "
                        f"leave --device out to take the best there is") from error
    return device


def process_count() -> int:
    """How many processes the script was started as."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this is the process that writes what all have computed."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def alone(folder: str) -> Iterator[None]:
    """Keep other runs out of a folder, which is made, for as long as this one lives; it is removed where nothing was
    written. Raises UserError where another run is there."""
    if not is_main_process():
        yield
        return
    made = [place for place in (Path(folder), *Path(folder).parents) if not place.exists()]
    Path(folder).mkdir(parents=True, exist_ok=True)
    place = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems have no locks
            try:
                fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"{folder}: another run writes there; wait for it, or name another "
                                "--output_dir") from error
        yield
    finally:
        os.close(place)
        with contextlib.suppress(OSError):  # some of them are not empty
            for place in made:
                place.rmdir()


def start_processes(device: str | None):
    """This process among those that `accelerate launch` or torchrun started: accelerate's state, with num_processes,
    process_index, is_main_process and device. Several processes say how many they are.

    Raises UserError where the device cannot be used; several processes choose their own.
    """
    import torch
    from accelerate import PartialState

    # Where there is no GPU, accelerate makes several processes one another's only when it is told so.
    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available(), timeout=PATIENCE)
    if state.num_processes > 1 and device not in (None, "cpu", "cuda"):
        raise UserError(f"--device {device}: each of {state.num_processes} processes takes a device of its own; "
                        "leave it out")
    state.device = pick_device(device if state.num_processes == 1 else str(state.device))
    if state.num_processes > 1 and state.is_main_process:
        print(f"{state.num_processes} processes, on {state.device.type}", file=sys.stderr)
    return state


def own_batches(numbers: Sequence[int], state) -> list[int]:
    """Which of the batches are this process's: with n processes, every n-th."""
    from accelerate.data_loader import BatchSamplerShard

    batches = [[number] for number in numbers]
    shard = BatchSamplerShard(batches, state.num_processes, state.process_index, even_batches=False)
    return [number for number, in shard]


def gather(results: dict) -> dict:
    """What all processes computed, by number of the batch, in order; every process has it."""
    from accelerate.utils import gather_object

    return dict(sorted(gather_object(list(results.items()))))


def gather_in_order(numbers: Sequence[int], results: Iterator, total: int, state) -> Iterator:
    """What all processes compute, in the order of `total` batches, as soon as each of them has done one more; every
    process has it. `results` are this one's, for the batches `numbers` of `own_batches`."""
    mine = zip(numbers, results)
    for _ in range(-(-total // state.num_processes)):
        pair = next(mine, None)
        yield from gather(dict([pair] if pair else [])).values()
