"""The terms of heads in coordinates of the heads' own width, from which they are made again as they are read.

A head writes its output y [k], before the output projection, through a matrix that is the same for every image. Three
numbers more make it its term in the joint space: with the final norm's standard deviation sigma and mean mu, and the
representation's length r, they are 1 / (sigma r), mu / (sigma r) and 1 / r. So a term is z N: z holds y / (sigma r) and
the three numbers, and the head's readout N [k + 3, d] is the same for every image.
"""
import numpy as np
import torch
from torch import Tensor

from utils.cli import UserError
from utils.runs.stored import blocks
from utils.runs.terms import HeadTerms


class CompactTerms(HeadTerms):
    """What the heads of a run wrote, read like `HeadTerms` [b, c, d], in float32; kept as y / (sigma r), `outputs`
    [b, l, h, k], and the three numbers of each image, `scalars` [b, 3], with the `readout` [l, h, k + 3, d]."""

    def __init__(self, outputs, scalars, readout):
        super().__init__(outputs)
        self.scalars, self.readout = scalars, np.asarray(readout, np.float32).reshape(len(self.heads), -1, readout.shape[-1])
        self.layout, self.shape = (*outputs.shape[1:3], readout.shape[-1]), (*self.array.shape[:2], readout.shape[-1])

    def coordinates(self, rows: slice | np.ndarray, columns: slice | np.ndarray) -> np.ndarray:
        """z [b, c, k + 3], float32."""
        outputs = super().__getitem__((rows, columns)).astype(np.float32, copy=False)
        scalars = self.scalars[rows].astype(np.float32)[:, None]
        return np.concatenate([outputs, np.broadcast_to(scalars, (*outputs.shape[:2], 3))], axis=2)

    def __getitem__(self, key) -> np.ndarray:
        rows, columns = key if isinstance(key, tuple) else (key, slice(None))
        single = (*((0,) if isinstance(rows, int | np.integer) else ()), *((1,) if isinstance(columns, int | np.integer) else ()))
        rows, columns = ([index] if isinstance(index, int | np.integer) else index for index in (rows, columns))
        z, readout = torch.from_numpy(self.coordinates(rows, columns)), torch.from_numpy(self.readout[columns])
        return torch.einsum("bcz,czd->bcd", z, readout).numpy().squeeze(single)

    def moments(self, columns: slice) -> tuple[Tensor, Tensor]:
        """As of `HeadTerms`; from those of z."""
        readout = torch.from_numpy(self.readout[columns]).double()
        mean, second = 0, 0
        for block in blocks(len(self)):
            z = torch.from_numpy(self.coordinates(block, columns)).double().transpose(0, 1)  # [c, b, k + 3]
            mean, second = mean + z.sum(dim=1), second + z.transpose(1, 2) @ z
        return through(readout, mean / len(self), second / len(self))


class Moments:
    """Mean and second moments of z, summed up in float64 as images come."""

    def __init__(self):
        self.images, self.mean, self.second = 0, 0, 0

    def add(self, outputs: Tensor, scalars: Tensor) -> None:
        """Count a batch of outputs [b, l, h, k] and scalars [b, 3], as of `CompactTerms`."""
        wide = scalars[:, None, None].expand(*outputs.shape[:3], -1)
        z = torch.cat([outputs, wide], dim=3).double().permute(1, 2, 0, 3)  # [l, h, b, k + 3]
        self.images += len(outputs)
        self.mean = self.mean + z.sum(dim=2)
        self.second = self.second + z.transpose(2, 3) @ z

    def means(self) -> dict[str, np.ndarray]:
        """What is kept: "mean" [l, h, k + 3] and "second" [l, h, k + 3, k + 3], float64."""
        return {"mean": (self.mean / self.images).cpu().numpy(), "second": (self.second / self.images).cpu().numpy()}


class MomentTerms(HeadTerms):
    """Mean [l, h, k + 3] and second moments [l, h, k + 3, k + 3] of z over the images of a run, with the readout; no image of
    its own."""

    def __init__(self, images: int, mean, second, readout):
        layers, heads, _, width = readout.shape
        self.heads = [(layer, head) for layer in range(layers) for head in range(heads)]
        self.layout, self.shape, self.dtype = (layers, heads, width), (images, layers * heads, width), np.dtype(np.float32)
        self.mean, self.second, self.readout = (torch.from_numpy(np.asarray(part, np.float64)).flatten(0, 1)
                                                for part in (mean, second, readout))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key) -> np.ndarray:
        raise UserError("these arrays were made with --moments_only, and this step needs what heads wrote for single images; "
                        "make them with compute_prs.py --compact")

    def moments(self, columns: slice) -> tuple[Tensor, Tensor]:
        """As of `HeadTerms`."""
        return through(self.readout[columns], self.mean[columns], self.second[columns])


def through(readout: Tensor, mean: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [c, d] and second moment [c, d, d] of z N from those of z."""
    return (torch.einsum("cz,czd->cd", mean, readout),
            torch.einsum("czd,czy,cye->cde", readout, second, readout))
