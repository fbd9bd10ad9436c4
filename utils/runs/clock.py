"""Where the time goes."""
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class Clock:
    """Seconds by what they went into. On a GPU, work is waited for where it is counted."""

    def __init__(self, device):
        self.device, self.seconds = device, defaultdict(float)

    @contextmanager
    def counting(self, what: str) -> Iterator[None]:
        """Count the time of a block."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            import torch
            torch.cuda.synchronize(self.device)
        self.seconds[what] += time.perf_counter() - start

    def over(self, items: Iterable, what: str) -> Iterator:
        """Items one by one; the time until each is there is counted."""
        iterator = iter(items)
        while True:
            with self.counting(what):
                item = next(iterator, None)
            if item is None:
                return
            yield item
