"""Arrays that several processes write batch by batch, and that survive a killed run.

While a run goes on, its arrays have other names, that end in `.partial`; beside them lie, for the manifest M.json:

    M@run.partial               what the run is made from
    M@lock.partial              locked by the process that leads the run, for as long as it lives
    M@journal.{mark}.partial    of each process: a line of JSON for each batch that is on the disk
    M@{array}.npy.partial

A batch has its place in every array from the start, so that it does not matter who writes it, or when. The journal is
behind the arrays, never before them: what it lists is there, whatever happens next.
"""
import contextlib
import fcntl
import glob
import io
import json
import os
import shutil
import socket
import sys
import time
from pathlib import Path

import numpy as np

from utils.cli import UserError, save_result
from utils.runs import files

EVERY = 1  # second from one time that what is written is forced to the disk, and listed in the journal, to the next
BLOCK = 1 << 24  # bytes that are copied at a time


def _beside(manifest: Path, what: str) -> Path:
    return manifest.with_name(f"{manifest.stem}@{what}.partial")


def read_begun(manifest: Path) -> dict | None:
    """What the run with this manifest is made from, where it was cut off or is complete; None where it is neither."""
    begun = _beside(manifest, "run")
    path = begun if begun.is_file() else manifest
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content if path == begun else content["identity"]
        return {**found, "options": dict(found.get("options", {}))}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: does not say what it was made from; leave --resume out to begin anew") from error


def check_same(path: Path, found: dict, wanted: dict) -> None:
    """Refuse to go on with a run of the file `path` that is made from something else than what is `wanted`: in one
    line, with every option that differs."""
    found, wanted = ({**identity, **(identity.get("options") or {}), "options": None} for identity in (found, wanted))
    changed = []
    for name, value in wanted.items():
        if found.get(name) != value:
            was, now = (some if len(str(some)) < 80 else "something else" for some in (found.get(name), value))
            changed.append(f"{name} was {was} and is {now}")
    if changed:
        raise UserError(f"{path}: --resume goes on with the same options and data alone, but {', '.join(changed)}; "
                        "give the same, or leave --resume out to begin anew")


class RunWriter:
    """Writes the arrays of a run, batch by batch; used with `with`.

    `manifest` is the manifest's path, `identity` what the run is made from, `images` their number, in batches of
    `batch_size`; `state` is that of `start_processes` (None: one process). With `resume` a run that was cut off goes
    on, and one that is complete is `complete`; without, everything begins anew; None: what is cut off is removed.
    `left` are the batches that are not there yet, by number.

    Raises UserError where another process writes the same run, and where `resume` finds one that is made from something
    else.
    """

    def __init__(self, manifest: Path, identity: dict, images: int, batch_size: int, state=None,
                 resume: bool | None = None):
        self.manifest, self.images, self.batch_size = manifest, images, batch_size
        self.leads = state is None or state.is_main_process
        self.wait = state.wait_for_everyone if state else lambda: None
        self.batches, self.kept = range(-(-images // batch_size)), resume is not None
        self.identity = json.loads(json.dumps(identity))  # as it is read again
        self.begun = _beside(manifest, "run")
        self.files: dict[str, int] = {}
        self.layout: dict[str, dict] = {}  # of each array: shape of a row, type, bytes of the header
        self.waiting: list[dict] = []      # batches that are written, and not yet in the journal
        self.told = False                  # whether the journal has the layout
        self.journal, self.lock, self.synced = None, None, time.monotonic()
        manifest.parent.mkdir(parents=True, exist_ok=True)
        if self.leads:
            self._take_lock()
        goes_on = resume and self.begun.exists()
        self.complete = resume and not goes_on and self._is_complete()
        if goes_on:
            check_same(self.begun, read_begun(manifest), self.identity)
        elif self.leads and not self.complete:
            self._remove_partials()
            save_result(self.begun, self.identity)
        self.wait()
        done = self._done()
        self.left = [] if self.complete else [number for number in self.batches if number not in done]
        if done and self.leads:
            print(f"resuming at image {sum(map(self._size, done))} of {images}", file=sys.stderr)
        self.wait()  # nobody writes before all have read

    def __enter__(self) -> "RunWriter":
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(OSError):  # a full disk refuses once more
            self.sync()
        for file in self.files.values():
            os.close(file)
        if self.journal:
            self.journal.close()
        if self.lock:
            if not (self.kept and self._done()):  # nothing to go on with
                self._remove_partials()
            Path(self.lock.name).unlink(missing_ok=True)
            self.lock.close()

    def _take_lock(self) -> None:
        """A lock of this process alone: children that outlive it, killed, do not hold it."""
        lock = self._beside("lock").open("w")
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise UserError(f"{self.manifest.parent}: another run is writing {self.manifest.stem} there; wait for it, "
                            "or choose another --output_dir") from error
        self.lock = lock

    def _is_complete(self) -> bool:
        """Whether the run is there, with all its arrays."""
        if not self.manifest.is_file():
            return False
        check_same(self.manifest, read_begun(self.manifest), self.identity)
        found = files.read_manifest(self.manifest)
        return all((self.manifest.parent / entry["file"]).is_file() for entry in found["arrays"])

    def _done(self) -> dict[int, dict]:
        """What the journals say of the batches that are on the disk, by number. A line that was cut off does not
        count."""
        found = {}
        for path in self._all("journal.*"):
            for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
                entry = json.loads(line)
                self.layout |= entry["layout"]
                found[entry["batch"]] = entry
        return found

    def _beside(self, what: str) -> Path:
        """A file of this run alone; no model's or data set's name has an @."""
        return _beside(self.manifest, what)

    def _all(self, pattern: str) -> list[Path]:
        # A split may be called after any folder: val[1].
        return sorted(self.manifest.parent.glob(f"{glob.escape(self.manifest.stem)}@{pattern}.partial"))

    def _remove_partials(self) -> None:
        for path in [self.begun, *self._all("journal.*"), *self._all("*.npy")]:
            path.unlink(missing_ok=True)

    def _size(self, number: int) -> int:
        """Images in a batch."""
        return min(self.batch_size, self.images - number * self.batch_size)

    def _header(self, name: str, rows: int) -> bytes:
        """The beginning of a .npy file; numpy pads it so that its length does not depend on the number of rows."""
        buffer, layout = io.BytesIO(), self.layout[name]
        np.lib.format.write_array_header_1_0(buffer, {
            "descr": np.lib.format.dtype_to_descr(np.dtype(layout["dtype"])), "fortran_order": False,
            "shape": (rows, *layout["shape"])})
        return buffer.getvalue()

    def write(self, number: int, rows: int, values: dict[Path, tuple[np.ndarray, str]],
              skipped: list[tuple[int, str]]) -> None:
        """Write a batch: how many images it has, for each array their rows [b, ...] and the type to store them in, and
        the indices and errors of images that were left out."""
        for path, (batch, dtype) in values.items():
            batch, name = np.ascontiguousarray(batch, dtype), path.name
            if name not in self.files:
                self.layout[name] = {"shape": list(batch.shape[1:]), "dtype": batch.dtype.name}
                self.files[name] = os.open(self._beside(name), os.O_RDWR | os.O_CREAT, 0o644)
            data, place = memoryview(batch).cast("B"), self._place(name, number * self.batch_size)
            while data:
                written = os.pwrite(self.files[name], data, place)
                data, place = data[written:], place + written
        layout = {} if self.told else {name: self.layout[name] for name in self.files}
        self.told = bool(self.files)
        self.waiting.append({"batch": number, "rows": rows, "skipped": skipped, "layout": layout})
        if time.monotonic() - self.synced > EVERY:
            self.sync()

    def _place(self, name: str, row: int) -> int:
        """Where in a file a row begins, in bytes."""
        layout = self.layout[name]
        return len(self._header(name, 0)) + row * int(np.prod(layout["shape"])) * np.dtype(layout["dtype"]).itemsize

    def sync(self) -> None:
        """Force what is written to the disk, and list it in the journal."""
        self.synced = time.monotonic()
        if not self.waiting:
            return
        for file in self.files.values():
            os.fsync(file)
        if self.journal is None:
            mark = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
            self.journal = self._beside(f"journal.{mark}").open("a", encoding="utf-8")
        self.journal.write("".join(json.dumps(entry) + "\n" for entry in self.waiting))
        self.journal.flush()
        os.fsync(self.journal.fileno())
        self.waiting = []

    def finish(self, description: dict, whole: dict[Path, np.ndarray]) -> tuple[int, list]:
        """Give every array its final name, and write the manifest last, when all processes have written their batches.

        `whole` are arrays without images, which are written here. Returns the number of images, and of those left out
        the indices and errors. Raises UserError where none is left.
        """
        self.sync()
        self.wait()
        done = self._done()
        if len(done) < len(self.batches):
            raise UserError(f"{self.manifest.parent}: another process ended before its batches were done; go on with "
                            "--resume")
        entries = [done[number] for number in self.batches]
        count = sum(entry["rows"] for entry in entries)
        skipped = [tuple(pair) for entry in entries for pair in entry["skipped"]]
        if not count:
            raise UserError(f"none of the {self.images} images can be read; the first is {skipped[0][1]}")
        if self.leads:
            made = {"images": count, "skipped_images": [error for _, error in skipped],
                    "skipped_indices": [index for index, _ in skipped], "identity": self.identity}
            made = {key: value for key, value in made.items() if key not in description}  # a mapped run knows its own
            self._publish(entries, count, whole, {**description, **made})
        self.wait()
        return count, skipped

    def _publish(self, entries: list[dict], count: int, whole: dict[Path, np.ndarray], description: dict) -> None:
        ready = {}
        for path, values in whole.items():
            ready[path] = self._beside(path.name)
            with ready[path].open("wb") as file:
                np.save(file, values)
        for name in self.layout:
            partial, final = self._beside(name), self.manifest.with_name(name)
            if not partial.exists():  # a run that was cut off here had renamed it
                continue
            ready[final] = partial if count == self.images else self._packed(name, partial, entries)
            with ready[final].open("r+b") as file:
                file.write(self._header(name, count))
                os.fsync(file.fileno())
        described = [{"file": name, "shape": [count, *layout["shape"]], "dtype": layout["dtype"]}
                     for name, layout in self.layout.items()]
        described += [files.describe(path, values) for path, values in whole.items()]
        files.publish(self.manifest, description, described, ready)
        self._remove_partials()

    def _packed(self, name: str, partial: Path, entries: list[dict]) -> Path:
        """A copy of an array without the gaps that images left out leave at the end of their batches."""
        packed = self._beside(f"packed.{name}")
        with partial.open("rb") as source, packed.open("wb") as copy:
            copy.seek(self._place(name, 0))
            for entry in entries:
                first = entry["batch"] * self.batch_size
                source.seek(self._place(name, first))
                left = self._place(name, first + entry["rows"]) - source.tell()
                while left:
                    data = source.read(min(left, BLOCK))
                    copy.write(data)
                    left -= len(data)
        return packed

    def check_room(self) -> None:
        """Refuse, once the first batch has shown how large the arrays are, to fill a disk that is too small."""
        needed = sum(self._place(name, self.images) - os.stat(file).st_blocks * 512
                     for name, file in self.files.items())
        free = shutil.disk_usage(self.manifest.parent).free
        if needed > free:
            raise UserError(f"{self.manifest.parent}: the arrays need {needed / 1e9:.1f} GB more, and {free / 1e9:.1f} "
                            "GB are free; free some space, choose another --output_dir, or store less with "
                            "--save_dtype float16")
