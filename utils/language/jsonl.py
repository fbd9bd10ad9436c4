"""JSONL files that are written a line at a time, and gone on with after a run that was cut off.

The first line is {"header": {...}}: what made the others. A last line without its end was cut off, and does not count.
"""
import fcntl
import json
from pathlib import Path

from utils.cli import UserError


def read(path: Path) -> tuple[dict, list]:
    """The header of such a file, and what its other lines hold; the header is {} where the first line is none.

    Raises UserError for a line that is damaged.
    """
    first, *lines = path.read_bytes().split(b"\n")[:-1] or [b""]
    try:
        header = dict(json.loads(first)["header"])
    except (ValueError, KeyError, TypeError):
        return {}, []
    values = []
    for number, line in enumerate(lines, 2):
        try:
            values.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{path}, line {number}: damaged; delete it and the lines after it") from error
    return header, values


def check(path: Path, header: dict, expected: dict) -> None:
    """Refuse a file whose header is not the one expected. Raises UserError, which names the first difference."""
    if not header:
        raise UserError(f"{path} is a file of another kind; name another --output_filepath")
    for name in {**expected, **header}:
        before, now = header.get(name), expected.get(name)
        if before != now:
            short = not name.endswith("sha256") and isinstance(now, str | int | float)
            values = f" ({before}, now {now})" if short else ""
            raise UserError(f"{path} was made with another {name}{values}; go on with the same options, delete it, or "
                            "name another --output_filepath")


def append(path: Path, values: list) -> None:
    """Append values, each of which JSON can hold, to a file, as a line each."""
    with path.open("ab") as file:
        file.write(b"".join(map(_line, values)))


class Record:
    """A JSONL file that is being written: every line is on disk as soon as it is there. Used with `with`.

    `lines` is what an earlier run with the same `header` had written. A file without any line is removed in the end.
    Raises UserError for a file with another header, with a damaged line, or that another process writes to.
    """

    def __init__(self, path: Path, header: dict):
        self.path, self.header, self.lines = path, header, []
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("ab")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
            if path.stat().st_size:
                self._go_on()
        except BaseException as error:
            self.file.close()
            if isinstance(error, BlockingIOError):
                raise UserError(f"{path}: another run writes to it; wait, or name another --output_filepath") from error
            raise

    def _go_on(self) -> None:
        content, whole = self.path.read_bytes(), 0
        if not _line({"header": self.header}).startswith(content):  # else it was cut off in its first line
            header, self.lines = read(self.path)
            check(self.path, header, self.header)
            whole = content.rindex(b"\n") + 1
        self.file.truncate(whole)

    def append(self, *values) -> None:
        """Write values, each of which JSON can hold, as a line each."""
        if not self.path.stat().st_size:
            values = ({"header": self.header}, *values)
        self.file.write(b"".join(map(_line, values)))
        self.file.flush()

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, *_) -> None:
        self.file.close()
        if not self.path.stat().st_size:
            self.path.unlink()


def _line(value) -> bytes:
    # Half a character, which a model may well end with, has no UTF-8, but its escape is valid JSON.
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
