"""Images in WebDataset shards, and in data sets of Hugging Face's library. The only file that knows how they hold them.

webdataset: tar files in DIR/{split}, or in DIR itself. A sample is an image, KEY.jpg or another format's, and the
number of its class, KEY.cls; of several images, KEY.rgb.png and KEY.seg.png, one is chosen by what follows the key.
The names of the classes, one a line, are in classnames.txt beside the shards or one folder up.
huggingface: a folder of `save_to_disk`, or whatever `load_dataset` takes: a folder, or a name on the hub. The first
column of images counts, and the first of class labels, or else of whole numbers or texts called `label`; texts are
classes by their sorted names. Where no row has a label (none, or -1), all are of class -1.

Nothing is unpacked: names in an archive are never names on the disk.
"""
import io
import tarfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from PIL import Image

from utils.cli import UserError, describe
from utils.data import pictures
from utils.data.layouts import SUFFIXES, say_hidden
from utils.inputs import read_text


class ShardImages:
    """Images in tar files: (tar file, where in it, bytes, label), read where they lie."""

    def __init__(self, samples: list[tuple[str, int, int, int]], reading: str):
        self.samples, self.reading, self.labels = samples, reading, [label for *_, label in samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path, place, size, label = self.samples[index]
        with open(path, "rb") as file:
            file.seek(place)
            data = file.read(size)
        return pictures.read(io.BytesIO(data), self.reading), label


def open_shards(root: Path, split: str, reading: str,
                image_key: str | None = None) -> tuple[ShardImages, list[str], list[str], list[str]]:
    """The images of a split in order of shards and of their places there, class names, the name of each image, and the
    shards. `image_key` says which image of a sample counts, where it has several: rgb.png of 0001.rgb.png.

    Raises UserError for a shard that cannot be read, for an image without a class, and for a sample of several images.
    """
    folder = root / split if split else root
    shards, hidden = sorted(map(str, folder.glob("[!.]*.tar"))), [path.name for path in folder.glob(".*.tar")]
    if not shards:
        inside = sorted(path.name for path in root.iterdir() if path.is_dir() and list(path.glob("[!.]*.tar")))
        raise UserError(f"{folder}: no .tar files there" + (f"; --split may be {', '.join(inside)}" if inside else ""))
    samples, names = [], []
    for shard in shards:
        images, labels = [], {}
        try:
            with tarfile.open(shard, "r:") as archive:
                for member in archive:
                    if not member.isfile():
                        continue
                    if any(part.startswith(".") and part.strip(".") for part in member.name.split("/")):
                        hidden.append(f"{Path(shard).name}/{member.name}")
                    elif Path(member.name).suffix.lower() in SUFFIXES:
                        images.append((member.name, member.offset_data, member.size))
                    elif member.name.endswith(".cls"):
                        labels[member.name.removesuffix(".cls")] = int(archive.extractfile(member).read(32))
        except (tarfile.TarError, ValueError, OSError) as error:
            raise UserError(f"{shard}: cannot be read as a shard of images ({describe(error)}); fetch it "
                            "again") from error
        for name, place, size, label in _samples(shard, images, labels, image_key):
            samples.append((shard, place, size, label))
            names.append(f"{shard}/{name}")
    say_hidden(folder, hidden)
    if not samples:
        raise UserError(f"{folder}: no images in its shards" + (
            f" are called KEY.{image_key}; give another --image_key" if image_key else ""))
    listed = next((place / "classnames.txt" for place in (folder, folder.parent)
                   if (place / "classnames.txt").is_file()), None)
    labels = [label for *_, label in samples]
    classes = read_text(listed).splitlines() if listed else _numbered(labels, str(folder))
    if max(labels) >= len(classes):
        raise UserError(f"{listed}: names {len(classes)} classes, and an image is of class {max(labels)}")
    if min(labels) < 0 and set(labels) != {-1}:
        wrong = labels.index(min(labels))
        raise UserError(f"{names[wrong]}: is of class {labels[wrong]}; number the classes from 0, or all images -1")
    return ShardImages(samples, reading), classes, names, shards


def _numbered(labels: Collection[int], source: str) -> list[str]:
    """Names of classes that have none: their numbers. Raises UserError for numbers that are no classes'."""
    number = 1 + max(labels, default=-1)
    if number > 1000 + 100 * len(labels):
        raise UserError(f"{source}: {len(labels)} labels, and one of them is {number - 1}; number the classes from 0")
    return list(map(str, range(number)))


def _samples(shard: str, images: list[tuple[str, int, int]], labels: dict[str, int],
             image_key: str | None) -> Iterator[tuple[str, int, int, int]]:
    """Of each image that counts its name, place, size and class. The class of KEY.png is in KEY.cls; so is that of
    KEY.rgb.png, where there is no KEY.rgb.cls."""
    chosen: dict[str, str] = {}
    for name, place, size in images:
        folder, slash, last = name.rpartition("/")
        key, part = folder + slash + last.partition(".")[0], last.partition(".")[2]
        whole = name.rpartition(".")[0]
        if image_key:
            if part != image_key:
                continue
        elif whole in labels:
            key = whole
        elif chosen.setdefault(key, part) != part:
            raise UserError(f"{shard}: the sample {key} has several images ({chosen[key]}, {part}); choose with "
                            "--image_key")
        if key not in labels:
            raise UserError(f"{shard}: {name} has no class beside it, {whole if part.count('.') == 0 else key}.cls")
        yield name, place, size, labels[key]


class HubImages:
    """Images of a data set of Hugging Face's library, of columns `image`, not decoded, and `label`; `numbers` are those
    of labels that are texts. A row without an image, or without a label where others have one, cannot be read."""

    def __init__(self, rows, image: str, label: str, reading: str, numbers: dict[str, int] | None = None,
                 labelled: bool = True):
        self.rows, self.image, self.label, self.reading = rows, image, label, reading
        self.numbers, self.labelled = numbers, labelled

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self._read(self.rows[index])

    def _read(self, row: dict) -> tuple[Image.Image, int]:
        held, label = row[self.image], row[self.label]
        if held is None:
            raise ValueError(f"the row has no image in its column {self.image}")
        if self.labelled and label in (None, -1):
            raise ValueError(f"the row has no label in its column {self.label}")
        if held["bytes"] is not None:
            picture = pictures.read(io.BytesIO(held["bytes"]), self.reading)
        elif Path(held["path"]).is_file():
            picture = pictures.read(held["path"], self.reading)
        else:  # on the hub
            import datasets
            picture = pictures.to_rgb(datasets.Image().decode_example(held), self.reading)
        return picture, (-1 if label is None else self.numbers[label] if self.numbers else int(label))


class StreamedImages(HubImages):
    """Images of a stream, read on as long as indices rise; what lies between is passed over without being decoded."""

    def __init__(self, number: int, stream, *about):
        super().__init__(stream, *about)
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
    held = rows.cast_column(image, datasets.Image(decode=False))
    streamed = streaming and not hasattr(rows, "__len__")
    known = (rows.info.splits or {}).get(split) if streamed else None
    classes = getattr(columns[label], "names", None)
    if not streamed:
        labels, number = rows[label], len(rows)
    elif classes and known and known.num_examples:  # one more pass over a stream, where it must be
        labels, number = None, known.num_examples
    else:
        labels = [row[label] for row in rows.select_columns([label])]
        number = len(labels)
    classes, numbers, labelled = _classes(source, label, classes, labels)
    about = held, image, label, reading, numbers, labelled
    return StreamedImages(number, *about) if streamed else HubImages(*about), classes


def _classes(source: str, column: str, classes: list[str] | None,
             labels: Sequence | None) -> tuple[list[str], dict[str, int] | None, bool]:
    """The names of classes, the number of each label that is a text, and whether any image has a label; of what the
    column says of its `classes`, and its `labels`. Raises UserError for labels that are neither numbers nor texts, or
    of no class."""
    if labels is None:
        return list(classes), None, True
    given = {label for label in labels if label is not None and label != -1}
    if not all(isinstance(label, str) for label in given) and not all(type(label) in (int, bool) for label in given):
        raise UserError(f"--data_path {source}: the labels in column {column} are neither whole numbers nor texts; "
                        "give the column one kind of them")
    if given and isinstance(next(iter(given)), str):
        names = sorted(given)
        return names, {name: number for number, name in enumerate(names)}, True
    names = list(classes or _numbered(given, f"--data_path {source}"))
    wrong = next((index for index, label in enumerate(labels) if label in given and not 0 <= label < len(names)), None)
    if wrong is not None:
        raise UserError(f"--data_path {source}: row {wrong} has label {labels[wrong]}, and there are {len(names)} "
                        "classes; mend the labels")
    return names, None, bool(given)
