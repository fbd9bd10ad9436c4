"""How terms are stored. Private to this folder: nobody else asks which way it is.

Compact: a head writes its output y [k], before the output projection, through a matrix that is the same for every
image. Three numbers more make it its term in the joint space: with the final norm's standard deviation sigma and mean
mu, and the representation's length r, they are 1 / (sigma r), mu / (sigma r) and 1 / r. So a term is z N: z holds y /
(sigma r) and the three numbers, and the head's readout N [k + 3, d] is the same for every image.
"""
import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from utils.cli import UserError
from utils.runs.files import blocks

if TYPE_CHECKING:
    from torch import Tensor

Rows = slice | np.ndarray


class FullTerms:
    """Terms as they are: [b, l, h, d], or [b, c, d]."""

    def __init__(self, terms: np.ndarray):
        self.layout, self.dtype = terms.shape[1:], terms.dtype
        self.terms = terms.reshape(len(terms), math.prod(terms.shape[1:-1]), terms.shape[-1])

    def read(self, rows: Rows, columns: Rows) -> np.ndarray:
        """Terms [b, c, d], float32."""
        if np.ndim(rows) and np.ndim(columns):  # numpy would pair them
            rows, columns = np.ix_(rows, columns)
        return self.terms[rows, columns].astype(np.float32, copy=False)

    def inner(self, rows: Rows, columns: Rows) -> np.ndarray:
        """Coordinates [b, c, k] with the inner products of terms, float32."""
        return self.read(rows, columns)

    def moments(self, columns: Rows) -> tuple["Tensor", "Tensor"]:
        """Mean [c, d] and uncentred second moment [c, d, d] over images, float64."""
        import torch

        columns_and_width = self.terms[:0, columns].shape[1:]
        total = torch.zeros(columns_and_width, dtype=torch.float64)
        second = torch.zeros(*columns_and_width, columns_and_width[-1], dtype=torch.float64)
        for block in blocks(len(self.terms)):
            x = torch.from_numpy(self.read(block, columns).astype(np.float64)).transpose(0, 1)  # [c, b, d]
            total += x.sum(dim=1)
            second.baddbmm_(x.transpose(1, 2), x)
        return total / len(self.terms), second / len(self.terms)


class CompactHeads(FullTerms):
    """Terms kept as y / (sigma r), `outputs` [b, l, h, k], and the three numbers of each image, `scalars` [b, 3], with
    the `readout` [l, h, k + 3, d]."""

    def __init__(self, outputs: np.ndarray, scalars: np.ndarray, readout: np.ndarray):
        super().__init__(outputs)
        self.layout, self.scalars = (*outputs.shape[1:3], readout.shape[-1]), scalars
        self.readout = np.asarray(readout, np.float32).reshape(-1, *readout.shape[2:])

    def coordinates(self, rows: Rows, columns: Rows) -> np.ndarray:
        """z [c, b, k + 3], float32."""
        outputs, scalars = super().read(rows, columns).swapaxes(0, 1), self.scalars[rows].astype(np.float32)
        return np.concatenate([outputs, np.broadcast_to(scalars, (len(outputs), *scalars.shape))], axis=2)

    def read(self, rows: Rows, columns: Rows) -> np.ndarray:
        """As of `FullTerms`."""
        return (self.coordinates(rows, columns) @ self.readout[columns]).swapaxes(0, 1)

    def inner(self, rows: Rows, columns: Rows) -> np.ndarray:
        """As of `FullTerms`."""
        return (self.coordinates(rows, columns) @ self._roots[columns]).swapaxes(0, 1)

    @functools.cached_property
    def _roots(self) -> np.ndarray:
        """For each readout N a matrix L [k + 3, k + 3] with L L' = N N', so that z L has the inner products of z N."""
        readout = self.readout.astype(np.float64)
        values, vectors = np.linalg.eigh(readout @ readout.swapaxes(1, 2))
        return vectors * np.sqrt(np.maximum(values, 0))[:, None]

    def moments(self, columns: Rows) -> tuple["Tensor", "Tensor"]:
        """As of `FullTerms`; from those of z."""
        import torch

        mean, second = 0, 0
        for block in blocks(len(self.terms)):
            z = torch.from_numpy(self.coordinates(block, columns)).double()
            mean, second = mean + z.sum(dim=1), second + z.transpose(1, 2) @ z
        return _project(mean / len(self.terms), second / len(self.terms), self.readout[columns])


class MomentHeads:
    """Mean [l, h, k + 3] and second moments [l, h, k + 3, k + 3] of z over images, with the readout; no image of its
    own."""

    def __init__(self, mean: np.ndarray, second: np.ndarray, readout: np.ndarray):
        self.layout, self.dtype = (*readout.shape[:2], readout.shape[-1]), np.dtype(np.float32)
        self.parts = [np.asarray(part, np.float64).reshape(-1, *part.shape[2:]) for part in (mean, second, readout)]

    def read(self, rows: Rows, columns: Rows) -> np.ndarray:
        """Refuses."""
        raise UserError("these arrays were made with --moments_only, and this step needs what heads wrote for single "
                        "images; make them with compute_prs.py --compact")

    def moments(self, columns: Rows) -> tuple["Tensor", "Tensor"]:
        """As of `FullTerms`."""
        import torch

        mean, second, readout = (part[columns] for part in self.parts)
        return _project(torch.from_numpy(mean), torch.from_numpy(second), readout)


def _project(mean: "Tensor", second: "Tensor", readout: np.ndarray) -> tuple["Tensor", "Tensor"]:
    """Mean [c, d] and second moment [c, d, d] of z N from those of z."""
    import torch

    readout = torch.from_numpy(readout).double()
    return (torch.einsum("cz,czd->cd", mean, readout),
            torch.einsum("czd,czy,cye->cde", readout, second, readout))


class MomentSums:
    """Mean and second moments of z, summed up in float64 as images come."""

    def __init__(self):
        self.images, self.mean, self.second = 0, 0, 0

    def add(self, outputs: "Tensor", scalars: "Tensor") -> None:
        """Count a batch of outputs [b, l, h, k] and scalars [b, 3], as of `CompactHeads`."""
        import torch

        wide = scalars[:, None, None].expand(*outputs.shape[:3], -1)
        z = torch.cat([outputs, wide], dim=3).double().permute(1, 2, 0, 3)  # [l, h, b, k + 3]
        self.images += len(outputs)
        self.mean = self.mean + z.sum(dim=2)
        self.second = self.second + z.transpose(2, 3) @ z

    def arrays(self) -> dict[str, np.ndarray]:
        """What is kept: "mean" [l, h, k + 3] and "second" [l, h, k + 3, k + 3], float64."""
        return {"mean": (self.mean / self.images).cpu().numpy(), "second": (self.second / self.images).cpu().numpy()}
