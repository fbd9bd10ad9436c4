"""The reward of a description: how close a VLM finds it to the images of its concept (EX2, section 3)."""
import numpy as np
import torch

from utils.cli import UserError
from utils.data import datasets, loader
from utils.models.model import Model
from utils.models.names import file_name
from utils.runs import files

TEXT_BATCH = 256  # descriptions a pass of the text encoder


def image_means(vlm: Model, images: datasets.Images, batch_size: int = 64,
                num_workers: int | None = None) -> np.ndarray:
    """Mean unit embedding [concepts, d] of each concept's images, float32; labels number the concepts.

    It is all that the reward needs of the images: the mean of the cosines with a description is its product with the
    mean of the unit embeddings. Raises UserError for an embedding that is not finite.
    """
    from tqdm import tqdm

    images.draw_at(vlm.image_size[0])
    sums, counts = None, np.zeros(len(images.classes), dtype=int)
    batches = loader.batches(images, vlm.preprocess, batch_size, num_workers)
    with tqdm(total=len(images.samples), desc="images of the concepts", unit="image", delay=1) as progress:
        for pixels, labels, _ in batches:
            embeddings = vlm.embed_images(pixels).cpu().double().numpy()
            finite = np.isfinite(embeddings).all(axis=1)
            if not finite.all():
                concept = images.classes[labels[~finite][0]]
                raise UserError(f"{vlm.name} gives an embedding that is not finite for an image of {concept!r}; "
                                "try --vlm_16bit False")
            sums = np.zeros((len(counts), embeddings.shape[1])) if sums is None else sums
            np.add.at(sums, labels, embeddings)
            np.add.at(counts, labels, 1)
            progress.update(len(labels))
    return (sums / counts[:, None]).astype(np.float32)


def kept_image_means(folder: str, dataset: str, vlm: Model, images: datasets.Images, description: dict) -> np.ndarray:
    """`image_means` [concepts, d], computed once and kept in `folder` with a manifest that says of what; `description`
    is what else they depend on."""
    name = file_name(vlm.name)
    path = files.term_path(folder, dataset, "image_means", name)
    manifest = files.manifest_path(folder, dataset, "image_means", name)
    shown = datasets.fingerprint(images) if images.paths else files.texts_hash([str(scene) for scene in images.scenes])
    description = {"vlm_name": vlm.name, "weights_sha256": vlm.weights_hash, "dataset": dataset,
                   "concepts": images.classes, "images": len(images.samples),
                   "images_sha256": shown, **description}
    if manifest.is_file() and description.items() <= files.read_manifest(manifest, ("arrays",)).items():
        return np.load(path)
    means = image_means(vlm, images)
    files.write_arrays(manifest, {path: means}, description)
    return means


def score(vlm: Model, means: np.ndarray, descriptions: list[str], concepts: list[int]) -> list[float | None]:
    """Rewards of descriptions of the concepts with these numbers, rows of `means` [concepts, d] (EX2, section 3).

    A reward is the mean over the concept's images of the cosine between image and description, times the VLM's logit
    scale; a description without a word is scored like any other. None where the VLM's embedding is not finite (16 bits
    can overflow).
    """
    rewards: list[float | None] = []
    columns = torch.from_numpy(means)
    for start in range(0, len(descriptions), TEXT_BATCH):
        batch = slice(start, start + TEXT_BATCH)
        embeddings = vlm.embed_texts([description.strip() for description in descriptions[batch]]).cpu()
        cosines = (embeddings * columns[concepts[batch]]).sum(dim=1).tolist()
        rewards += [cosine * vlm.logit_scale if np.isfinite(cosine) else None for cosine in cosines]
    return rewards
