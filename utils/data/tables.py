"""Files of official downloads: where they are, and what their lists and MATLAB files hold. What is missing, or not as
in the download, raises UserError with the file that was looked for and the archive it comes in."""
import os
from pathlib import Path

from utils.inputs import UserError, describe, read_text


def need(root: Path, folders: tuple[str, ...], name: str, archive: str) -> Path:
    """The file or folder of that name in the first of the folders that has it."""
    for folder in folders:
        if (root / folder / name).exists():
            return root / folder / name
    verb = "put" if archive.endswith(".mat") else "unpack"
    raise UserError(f"{root / folders[0] / name} does not exist; get {archive} from the data set's official page and "
                    f"{verb} it so that this path is there, or give the folder that has it")


def listed(name: str, source) -> str:
    """A name of a list as it is; one that leads out of the data set's folder is refused."""
    if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == "..":
        raise UserError(f"{source}: {name!r} leads out of the data set's folder; get the data set from its official "
                        "page")
    return name


def lines(path: Path, *kinds: type) -> list[tuple]:
    """The lines of a list, their first columns as these types; the last one takes the rest of the line."""
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        parts = line.strip().split(maxsplit=len(kinds) - 1)
        try:
            if parts:
                rows.append(tuple(kind(part) for kind, part in zip(kinds, parts, strict=True)))
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not as in the official download; unpack it again") from error
    return rows


def mat(path: Path, *names: str) -> list:
    """Variables of a MATLAB file as arrays of one axis."""
    import numpy as np
    from scipy.io import loadmat

    try:
        content = loadmat(path, squeeze_me=True)
        return [np.atleast_1d(content[name]) for name in names]
    except Exception as error:  # damage shows itself in many ways, and each ends the run
        raise UserError(f"{path}: expected a MATLAB file with {' and '.join(names)} ({describe(error)}); "
                        "download it again") from error
