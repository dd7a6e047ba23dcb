"""Matrices that wait on disk until they are needed, so that one of them is in memory at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import IO

import numpy as np
import torch
from torch import Tensor

from fedit_app.support.errors import FedEditError
from fedit_app.support.files import cache_dir


class Scratch:
    """A float64 matrix of each layer, in files without a name: they end with the process.

    Args:
        device: where a matrix is read to. On the CPU it is mapped, and not to be written to.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._files: dict[int, tuple[IO[bytes], tuple[int, int]]] = {}

    def __iter__(self) -> Iterator[int]:
        return iter(self._files)

    def __setitem__(self, layer: int, matrix: Tensor) -> None:
        """Keep a matrix (d, m).

        Raises:
            FedEditError: the disk is full.
        """
        folder = cache_dir()
        columns = matrix.mT.cpu().contiguous()  # no copy of what LAPACK returns
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            file.write(columns.numpy().data)
            file.flush()
        except OSError as error:
            raise FedEditError(
                f"{folder}: cannot keep the factors of covariances ({error.strerror}); free some "
                "space, or set FEDIT_CACHE to a folder on another disk"
            ) from error
        self._files[layer] = file, (columns.shape[0], columns.shape[1])

    def __getitem__(self, layer: int) -> Tensor:
        """The matrix (d, m) of a layer."""
        file, shape = self._files[layer]
        if 0 in shape:  # nothing to map: where a null space has all directions, none is left
            return torch.zeros(shape, dtype=torch.float64, device=self._device).mT
        columns = np.memmap(file, np.float64, "c", shape=shape)
        return torch.from_numpy(columns).to(self._device).mT

    def width(self, layer: int) -> int:
        """d, the number of rows of a layer's matrix."""
        return self._files[layer][1][1]
