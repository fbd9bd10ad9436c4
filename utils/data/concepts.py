"""The concepts that EX2 describes: classes of a data set by the names that it gives them, each with its images."""
from pathlib import Path

from utils.cli import UserError
from utils.data import layouts
from utils.data.datasets import DRAWN, REGISTRY, ImageFiles, Images, SceneImages
from utils.inputs import read_texts

FIXED_IMAGES = 64  # of each concept of emoji_fixed, in a split


def concept_names(name: str, data_root: str | None, split: str, num_concepts: int | None,
                  class_names: str | None = None) -> list[str]:
    """Names of `num_concepts` concepts that EX2 describes (None: all), evenly spaced over a data set's classes.

    Names are those of the file `class_names`, one a line or a JSON list, else the published ones, of DataSet.concepts.
    Raises UserError for missing files, an unknown split, more concepts than there are, and two of the same name.
    """
    _, names = _concepts(name, data_root, split, class_names)
    return [names[k] for k in _spaced_evenly(num_concepts, len(names))]


def load_concepts(name: str, data_root: str | None, split: str, num_concepts: int | None, num_images: int,
                  image_size: int = 224, class_names: str | None = None) -> Images:
    """The concepts of `concept_names` as classes, each with its first `num_images` images, sorted by file name.

    Images of `emoji` and `emoji_fixed` are scenes drawn at `image_size`, others for each split. The concepts of
    emoji_fixed share an attribute each (`scenes.fixed_concepts`), and have 64 images.
    Raises UserError as `concept_names` does, and for a concept without images.
    """
    files, names = _concepts(name, data_root, split, class_names)
    chosen = _spaced_evenly(num_concepts, len(names))
    concepts = [names[k] for k in chosen]
    if name in DRAWN:
        import numpy as np

        from utils.data.scenes import fixed_concepts, sample_scene

        # Scene i of a concept depends on the split's seed, the concept and i alone.
        seed, shown = DRAWN[name][split], [{"object": k} for k in chosen]
        if name == "emoji_fixed":
            num_images, known = min(num_images, FIXED_IMAGES), fixed_concepts()
            shown = [{"object": known[k][0]} | ({known[k][1]: known[k][2]} if known[k][1] else {}) for k in chosen]
        drawn = [sample_scene(np.random.default_rng((seed, scene["object"], i)), **scene)
                 for scene in shown for i in range(num_images)]
        labels = [label for label in range(len(chosen)) for _ in range(num_images)]
        return Images(SceneImages(drawn, labels, image_size), concepts, scenes=drawn)
    paths_of: dict[int, list[str]] = {k: [] for k in range(len(names))}
    for path, k in files:
        paths_of[k].append(path)
    samples = []
    for label, k in enumerate(chosen):
        paths = sorted(paths_of[k], key=lambda path: (Path(path).name, path))[:num_images]
        if not paths:
            raise UserError(f"{data_root}: no images of {names[k]!r} in the split {split!r}; choose another --split")
        samples += [(path, label) for path in paths]
    return Images(ImageFiles(samples, REGISTRY[name].reading), concepts, [path for path, _ in samples])


def _concepts(name: str, data_root: str | None, split: str,
              class_names: str | None = None) -> tuple[list[tuple[str, int]], list[str]]:
    """Image files with labels (none for those of DRAWN), and the name of every concept."""
    known = REGISTRY[name]
    if name in DRAWN:
        layouts.check_split(name, split, DRAWN[name])
        files, classes = [], known.classes()
    elif data_root is None:
        raise UserError(f"the data set {name} needs --data_root, the folder of its images")
    elif not Path(data_root).is_dir():
        raise UserError(f"--data_root {data_root}: no such folder")
    else:
        files, classes = known.read(Path(data_root), split)
    names = known.concepts(classes, data_root and Path(data_root))
    if class_names:
        names = read_texts(class_names, "--class_names", "name")
        if len(names) != len(classes):
            raise UserError(f"--class_names {class_names} holds {len(names)} names, and {name} has {len(classes)} "
                            "classes; write one a line")
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
