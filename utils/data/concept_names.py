"""What EX2 calls the classes of each data set, as published: functions of the class names and the data set's folder."""
import re
from pathlib import Path

from utils.data.tables import lines, need
from utils.inputs import UserError


def as_classes(classes: list[str], root: Path | None) -> list[str]:
    """The names of the classes as they are."""
    return list(classes)


def with_hyphens(classes: list[str], root: Path | None) -> list[str]:
    """Birds with hyphens between all words but before the last: "Black-footed Albatross", "Cape-May Warbler"."""
    return ["".join((first.replace(" ", "-"), blank, last))
            for first, blank, last in (name.rpartition(" ") for name in classes)]


def with_maker(classes: list[str], root: Path) -> list[str]:
    """Aircraft with their maker, once: "Boeing 707-320 aircraft", "Boeing 717 aircraft"."""
    data = next((root / place for place in ("fgvc-aircraft-2013b/data", "data", "")
                 if (root / place / "variants.txt").exists()), root)
    maker_of = {}
    for split in ("train", "val", "test"):
        variants, makers = (dict(lines(need(data, ("",), f"images_{kind}_{split}.txt", "fgvc-aircraft-2013b.tar.gz"),
                                       str, str)) for kind in ("variant", "manufacturer"))
        maker_of |= {variant: makers[i] for i, variant in variants.items() if i in makers}
    missing = [name for name in classes if name not in maker_of]
    if missing:
        raise UserError(f"{data}: no image tells the maker of {missing[0]!r}; unpack fgvc-aircraft-2013b.tar.gz again")
    return [(name if name.startswith(f"{maker_of[name]} ") else f"{maker_of[name]} {name}") + " aircraft"
            for name in classes]


def year_first(classes: list[str], root: Path | None) -> list[str]:
    """Cars with their year first: "2000 AM General Hummer SUV"."""
    return [re.sub(r"^(.*) (\d{4})$", r"\2 \1", name) for name in classes]


def without_question_marks(classes: list[str], root: Path | None) -> list[str]:
    """Flowers, of which one has a question mark in its name."""
    return [name.replace("?", "") for name in classes]


def called_dogs(classes: list[str], root: Path | None) -> list[str]:
    """Dogs, those without "dog" in their name with it."""
    return [name if "dog" in name.lower() else f"{name} dog" for name in classes]
