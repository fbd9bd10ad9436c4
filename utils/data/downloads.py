"""Data sets below one folder, in the layouts of their downloads: which are there, and what to get for those that are
missing (configs/datasets.yaml)."""
from pathlib import Path

from utils.data.datasets import REGISTRY
from utils.inputs import UserError, read_yaml

LIST = Path(__file__).resolve().parents[2] / "configs" / "datasets.yaml"


def find(root: str | None, needed: dict[str, list[str]]) -> tuple[dict[str, str], list[str]]:
    """The path of each data set that is `needed`, by name, with its splits, as scripts take it in --data_path; and what
    to do for all that is missing, a line each. A data set is there where its reader reads it."""
    known, found, missing = read_yaml(str(LIST)), {}, []
    for name, splits in needed.items():
        for split in splits:
            path, reason = _look(name, known[name], root, split)
            found[name] = found.get(name) or path
            if path:
                continue
            part, goal = known[name]["splits"][split], Path(root or "DATA_ROOT", known[name]["folders"][0])
            line = (f"{name}: get {part['get']} ({part['gb']:g} GB) from {known[name]['page']}, and put into {goal}: "
                    f"{part['put']}{reason}")
            missing += [line] if line not in missing else []
    return {name: path for name, path in found.items() if path}, missing


def _look(name: str, about: dict, root: str | None, split: str) -> tuple[str | None, str]:
    """The path of a split, or None and why the folder that is there will not do."""
    reason = ""
    for place in [Path(root, folder) for folder in (*about["folders"], "")] if root else []:
        if not place.is_dir():
            continue
        try:
            return str(_read(name, about, place, split)), ""
        except UserError as error:
            reason = reason or (f" ({error})" if place != Path(root) else "")
    return None, reason


def _read(name: str, about: dict, place: Path, split: str) -> Path:
    """The path of a data set at this place. Raises UserError where it cannot be read."""
    path = place / about.get("file", "")
    if "archive" in about:  # torchvision would download what is missing
        if not any((place / archive).exists() for archive in about["archive"]):
            raise UserError(f"{place}: no {about['archive'][0]} there")
    elif REGISTRY[name].masks:
        REGISTRY[name].masks(str(path))
    elif not REGISTRY[name].read(path, split)[0]:
        raise UserError(f"{place}: no images there")
    return path
