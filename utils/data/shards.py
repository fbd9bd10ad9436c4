"""Images in WebDataset shards, and in data sets of Hugging Face's library. The only file that knows how they hold them.

webdataset: tar files in DIR/{split}, or in DIR itself. A sample is an image, KEY.jpg or another format's, and the
number of its class, KEY.cls; the names of the classes, one a line, are in classnames.txt beside the shards or one
folder up.
huggingface: a folder of `save_to_disk`, or whatever `load_dataset` takes: a folder, or a name on the hub. The first
column of images counts, and the first of class labels, or else of whole numbers called `label`.

Nothing is unpacked: names in an archive are never names on the disk.
"""
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from utils.cli import UserError, describe
from utils.data import pictures
from utils.data.layouts import SUFFIXES


class ShardImages:
    """Images in tar files: (tar file, where in it, bytes, label), read where they lie."""

    def __init__(self, samples: list[tuple[str, int, int, int]], reading: str):
        self.samples, self.reading = samples, reading

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path, place, size, label = self.samples[index]
        with open(path, "rb") as file:
            file.seek(place)
            data = file.read(size)
        return pictures.read(io.BytesIO(data), self.reading), label


def open_shards(root: Path, split: str, reading: str) -> tuple[ShardImages, list[str], list[str], list[str]]:
    """The images of a split in order of shards and of their places there, class names, the name of each image, and the
    shards.

    Raises UserError for a shard that cannot be read, and for an image without a class.
    """
    folder = root / split if split else root
    shards = sorted(map(str, folder.glob("*.tar")))
    if not shards:
        inside = sorted(path.name for path in root.iterdir() if path.is_dir() and list(path.glob("*.tar")))
        raise UserError(f"{folder}: no .tar files there" + (f"; --split may be {', '.join(inside)}" if inside else ""))
    samples, names = [], []
    for shard in shards:
        images, labels = {}, {}
        try:
            with tarfile.open(shard, "r:") as archive:
                for member in archive:
                    key, dot, suffix = member.name.rpartition(".")
                    if not member.isfile():
                        continue
                    if f"{dot}{suffix}".lower() in SUFFIXES:
                        images[key] = (member.name, member.offset_data, member.size)
                    elif suffix == "cls":
                        labels[key] = int(archive.extractfile(member).read(32))
        except (tarfile.TarError, ValueError, OSError) as error:
            raise UserError(f"{shard}: cannot be read as a shard of images ({describe(error)}); fetch it "
                            "again") from error
        for key, (name, place, size) in images.items():
            if key not in labels:
                raise UserError(f"{shard}: {name} has no class beside it, {key}.cls")
            samples.append((shard, place, size, labels[key]))
            names.append(f"{shard}/{name}")
    listed = next((place / "classnames.txt" for place in (folder, folder.parent)
                   if (place / "classnames.txt").is_file()), None)
    number = 1 + max((label for *_, label in samples), default=-1)
    classes = listed.read_text(encoding="utf-8").splitlines() if listed else list(map(str, range(number)))
    if number > len(classes):
        raise UserError(f"{listed}: names {len(classes)} classes, and an image is of class {number - 1}")
    return ShardImages(samples, reading), classes, names, shards


class HubImages:
    """Images of a data set of Hugging Face's library, of columns `image`, not decoded, and `label`."""

    def __init__(self, rows, image: str, label: str, reading: str):
        self.rows, self.image, self.label, self.reading = rows, image, label, reading

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self._read(self.rows[index])

    def _read(self, row: dict) -> tuple[Image.Image, int]:
        held = row[self.image]
        if held["bytes"] is not None:
            picture = pictures.read(io.BytesIO(held["bytes"]), self.reading)
        elif Path(held["path"]).is_file():
            picture = pictures.read(held["path"], self.reading)
        else:  # on the hub
            import datasets
            picture = pictures.to_rgb(datasets.Image().decode_example(held), self.reading)
        return picture, int(row[self.label])


class StreamedImages(HubImages):
    """Images of a stream, read on as long as indices rise; what lies between is passed over without being decoded."""

    def __init__(self, stream, image: str, label: str, reading: str, number: int):
        super().__init__(stream, image, label, reading)
        self.number, self.rest, self.at = number, None, 0

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if self.rest is None or index < self.at:
            self.rest, self.at = iter(self.rows.skip(index)), index
        while self.at <= index:
            row, self.at = next(self.rest), self.at + 1
        return self._read(row)


def open_hub(source: str, split: str, reading: str, streaming: bool) -> tuple[Sequence, list[str]]:
    """The images of a split and the names of their classes.

    Raises UserError for a data set that cannot be loaded, or has not such a split or columns.
    """
    import datasets

    try:
        if any((Path(source) / name).is_file() for name in ("dataset_dict.json", "dataset_info.json", "state.json")):
            found = datasets.load_from_disk(source)
            found = found if isinstance(found, datasets.DatasetDict) else {split: found}
        elif streaming:
            found = datasets.load_dataset(source, streaming=True)
        else:
            found = datasets.load_dataset(source)
    except Exception as error:  # folders, formats, the hub and the network fail in many ways
        raise UserError(f"--data_path {source}: datasets cannot load it ({describe(error)[:300]})") from error
    if split not in found:
        raise UserError(f"--data_path {source}: has no split {split!r}; choose --split from {', '.join(found)}")
    rows = found[split]
    columns = rows.features or {}
    image = next((name for name, kind in columns.items() if isinstance(kind, datasets.Image)), None)
    label = next((name for name, kind in columns.items() if isinstance(kind, datasets.ClassLabel)), None)
    label = label or next((name for name in columns if name == "label"), None)
    if image is None or label is None:
        raise UserError(f"--data_path {source}: needs a column of images and one of class labels, and has "
                        f"{', '.join(columns)}")
    names = getattr(columns[label], "names", None)
    held = rows.cast_column(image, datasets.Image(decode=False))
    if streaming and not hasattr(rows, "__len__"):
        told = (rows.info.splits or {}).get(split)
        number = told.num_examples if told and told.num_examples else sum(1 for _ in rows.select_columns([label]))
        if names is None:
            names = list(map(str, range(1 + max(int(row[label]) for row in rows.select_columns([label])))))
        return StreamedImages(held, image, label, reading, number), list(names)
    names = names or list(map(str, range(1 + max(rows[label], default=-1))))
    return HubImages(held, image, label, reading), list(names)
