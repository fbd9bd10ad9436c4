"""The concepts that EX2 describes, with their images: the classes of a data set, by name."""
from pathlib import Path

from utils.cli import UserError
from utils.data import datasets, layouts
from utils.data.layouts import SPLITS

# Nothing here needs torch until images are drawn: names are also read where there is only an engine that generates.

NAMES = tuple(name for name, known in datasets.REGISTRY.items() if known.concept)
EMOJI_SEEDS = {"train": 11, "val": 12, "test": 13}  # others than those of the data sets


def concept_names(name: str, data_root: str | None, split: str, num_concepts: int | None) -> list[str]:
    """Names of `num_concepts` concepts of a data set (None: all), evenly spaced over its classes.

    Names are those of the classes; aircraft get " aircraft", and dogs without "dog" in the name " dog".
    Raises UserError for missing files, an unknown split, more concepts than there are, and two of the same name.
    """
    _, names = _read(name, data_root, split)
    return [names[k] for k in _spaced_evenly(num_concepts, len(names))]


def load_concepts(name: str, data_root: str | None, split: str, num_concepts: int | None, num_images: int,
                  image_size: int = 224) -> datasets.Images:
    """The concepts of `concept_names` as classes, each with its first `num_images` images, sorted by file name.

    Images of `emoji` are scenes drawn at `image_size`, others for each split.
    Raises UserError as `concept_names` does, and for a concept without images.
    """
    files, names = _read(name, data_root, split)
    chosen = _spaced_evenly(num_concepts, len(names))
    concepts = [names[k] for k in chosen]
    if name == "emoji":
        drawn = [scene for k in chosen for scene in _scenes(k, EMOJI_SEEDS[split], num_images)]
        labels = [label for label in range(len(chosen)) for _ in range(num_images)]
        return datasets.Images(datasets.SceneImages(drawn, labels, image_size), concepts, scenes=drawn)
    paths_of: dict[int, list[str]] = {k: [] for k in range(len(names))}
    for path, k in files:
        paths_of[k].append(path)
    samples = []
    for label, k in enumerate(chosen):
        paths = sorted(paths_of[k], key=lambda path: (Path(path).name, path))[:num_images]
        if not paths:
            raise UserError(f"{data_root}: no images of {names[k]!r} in the split {split!r}; choose another --split")
        samples += [(path, label) for path in paths]
    reading = datasets.REGISTRY[name].reading
    return datasets.Images(datasets.ImageFiles(samples, reading), concepts, [path for path, _ in samples])


def _read(name: str, data_root: str | None, split: str) -> tuple[list[tuple[str, int]], list[str]]:
    """Image files with labels (none for emoji), and the name of every concept."""
    known = datasets.REGISTRY[name]
    if name == "emoji":
        layouts.check_split(name, split, SPLITS)
        files, classes = [], known.classes()
    elif data_root is None:
        raise UserError(f"the data set {name} needs --data_root, the folder of its images")
    elif not Path(data_root).is_dir():
        raise UserError(f"--data_root {data_root}: no such folder")
    else:
        files, classes = known.read(Path(data_root), split)
    names = list(map(known.concept, classes))
    twice = sorted({concept for concept in names if names.count(concept) > 1})
    if twice:
        raise UserError(f"two classes of {name} are both called {twice[0]!r}; rename one of them")
    return files, names


def _spaced_evenly(number: int | None, total: int) -> list[int]:
    """`number` indices of `total`, the first among them; None is all."""
    if number is None:
        return list(range(total))
    if not 1 <= number <= total:
        raise UserError(f"--num_concepts {number}: there are {total} concepts; choose from 1 to {total}")
    return [i * total // number for i in range(number)]


def _scenes(concept: int, seed: int, number: int) -> list:
    """Scenes of one drawing; scene i depends on the split's seed, the concept and i alone."""
    import numpy as np

    from utils.data import scenes

    return [scenes.sample_scene(np.random.default_rng((seed, concept, i)), object=concept) for i in range(number)]
