"""What a person supplies in files, read and checked where it enters; and the error that says what is wrong with it."""
import json
import os
import re
from pathlib import Path


class UserError(Exception):
    """Something the user can mend. The message says what is wrong and what to do."""


def describe(error: Exception) -> str:
    """An error in one line, without a terminal's codes; those of the operating system with the file they are about."""
    if isinstance(error, OSError) and error.strerror:
        place = f"{os.fspath(error.filename)}: " if error.filename else ""
        return f"{place}{error.strerror}; free some space or choose another --output_dir" \
            if error.errno in (28, 122) else f"{place}{error.strerror}"
    return " ".join(re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(error)).split())


def no_room(error: Exception) -> str | None:
    """What to do where memory or a disk is full, whichever library says so and however, in one line; None for any other
    error."""
    said = f"{type(error).__name__}: {describe(error)}"
    if re.search("MemoryError|can't allocate memory", said):
        return f"the memory is full ({said[:200]}); give a smaller --batch_size, or take a machine with more"
    if re.search("No space left on device|inline_container", said):  # the latter is torch's, which gives no reason
        return f"a file could not be written to its end ({said[:200]}); free some space or choose another --output_dir"
    return None


def read_text(path: str | Path) -> str:
    """A text file, with or without a byte order mark. Raises UserError, with the line, for one that is not UTF-8."""
    data = Path(path).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[:error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: is not UTF-8 (byte 0x{data[error.start]:02x}); save the file as "
                        "UTF-8") from error


def read_texts(path: str | Path, option: str, what: str) -> list[str]:
    """The texts of a file, without blank ones: one a line, or a JSON list. `option` is the one that names the file, and
    `what` the texts are, for the messages of the UserError."""
    text = read_text(path)
    try:
        texts = json.loads(text) if text.lstrip().startswith("[") else text.splitlines()
        return [line.strip() for line in texts if line.strip()]
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{option} {path} is not a JSON list of {what}s ({describe(error)}); write one {what} a "
                        "line") from error


def read_json(path: str | Path, kind: type, what: str):
    """The content of a JSON file, of that kind (dict or list). `what` says what it should be, and what to do; it ends
    the message of the UserError for a file that is something else."""
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON ({describe(error)}); {what}") from error
    if not isinstance(content, kind):
        names = {dict: "an object", list: "a list", str: "a text", type(None): "null", bool: "true or false"}
        raise UserError(f"{path}: holds {names.get(type(content), 'a number')}, and should hold {names[kind]}; {what}")
    return content


def read_yaml(path: str) -> dict:
    """A YAML file that holds a mapping."""
    import yaml

    try:
        content = yaml.safe_load(read_text(path)) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: should hold 'option: value' lines")
    return content
