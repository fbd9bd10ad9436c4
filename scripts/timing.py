"""How benchmarks take times, so that a machine that slows down slows all ways of doing a thing alike."""
import time


def turns(ways: dict, number: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds by the clock, and of processor time, of each turn of each of several ways of doing something; the ways
    take turns, and the first turn, which warms up, does not count."""
    found = {name: [] for name in ways}
    for _ in range(number + 1):
        for name, way in ways.items():
            start = time.perf_counter(), time.process_time()
            way()
            found[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return {name: seconds[1:] for name, seconds in found.items()}
