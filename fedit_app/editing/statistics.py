"""Files of covariances: some layers of one model, with their origin.

The cache has one file per layer; `fedit stats --save` writes one with several layers, for others.
A file holds `layer-N` (d_ff, d_ff) float32 and, as safetensors metadata, an `Origin` and the number
of counted tokens per layer.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedit_app.support.errors import FedEditError
from fedit_app.support.files import replace_file

SUFFIX = ".safetensors"
DELETE = "delete it, and it is computed again"
MAKE = f"make one for this model with `fedit stats --save NAME{SUFFIX}`"
_FORMAT = "fedit-covariance-1"


@dataclass(frozen=True)
class Origin:
    """Everything that a covariance depends on except the layer.

    Attributes:
        model: fingerprint of the model.
        source: the text, see `CovarianceSource.label`.
        tokens: requested number of tokens.
        seed: seed of the sampling; 0 if the text is not sampled.
    """

    model: str
    source: str
    tokens: int
    seed: int


@dataclass(frozen=True)
class StatisticsFile:
    """A file of covariances, of which only the header has been read.

    Attributes:
        path: the file.
        origin: origin of the covariances.
        counted: layer -> number of counted tokens.
        d_ff: width of the matrices.
        remedy: what the user can do if the file is unusable, for errors.
    """

    path: Path
    origin: Origin
    counted: Mapping[int, int]
    d_ff: int
    remedy: str

    def require_model(self, fingerprint: str, d_ff: int) -> None:
        """Raise FedEditError if the file is of another model or width."""
        if self.origin.model != fingerprint:
            raise FedEditError(
                f"{self.path}: statistics of another model (fingerprint "
                f"{self.origin.model[:12]}, this model has {fingerprint[:12]}); {self.remedy}"
            )
        if self.d_ff != d_ff:
            raise FedEditError(
                f"{self.path}: its d_ff is {self.d_ff}, the model's is {d_ff}; {self.remedy}"
            )

    def require_layers(self, layers: Iterable[int]) -> None:
        """Raise FedEditError if a layer is not in the file."""
        absent = [layer for layer in layers if layer not in self.counted]
        if absent:
            raise FedEditError(
                f"{self.path}: has the layers {_listed(self.counted)}, not {_listed(absent)}; "
                f"{self.remedy}"
            )

    def read(self, layer: int) -> Tensor:
        """C_l (d_ff, d_ff) float32 of a layer; raises FedEditError if the file is damaged."""
        try:
            with safe_open(self.path, "pt") as tensors:
                found: Tensor = tensors.get_tensor(_name(layer))
        except (OSError, SafetensorError) as error:
            raise FedEditError(f"{self.path}: damaged ({error}); {self.remedy}") from None
        if not found.isfinite().all():
            raise FedEditError(f"{self.path}: layer {layer} is not finite; {self.remedy}")
        return found


def is_statistics_name(name: str) -> bool:
    """Whether a `covariance-source` means a statistics file and not text."""
    return name.endswith(SUFFIX) and not name.startswith("hub:")


def open_statistics(path: Path, remedy: str = MAKE) -> StatisticsFile:
    """Read the header of a statistics file.

    Args:
        path: the file.
        remedy: what the user can do if the file is unusable, for errors.

    Raises:
        FedEditError: the file cannot be read, is damaged, or is not a statistics file.
    """
    try:
        with safe_open(path, "pt") as tensors:
            metadata = tensors.metadata() or {}
            parts = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            kinds = {(part.get_dtype(), *part.get_shape()) for part in parts.values()}
        if metadata.get("format") != _FORMAT:
            raise ValueError("it has no header of covariances")
        counted = {int(layer): int(n) for layer, n in json.loads(metadata["counted"]).items()}
        if set(parts) != {_name(layer) for layer in counted}:
            raise ValueError("its layers are not those of its header")
        if len(kinds) != 1:
            raise ValueError("its layers differ in type or width")
        ((dtype, *shape),) = kinds
        if dtype != "F32" or len(shape) != 2 or shape[0] != shape[1]:
            raise ValueError(f"{dtype} {shape} where F32 [d_ff, d_ff] is expected")
        numbers = {key: int(metadata[key]) for key in ("tokens", "seed")}
        origin = Origin(metadata["model"], metadata["source"], **numbers)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise FedEditError(f"{path}: not a complete statistics file ({error}); {remedy}") from None
    return StatisticsFile(path, origin, counted, shape[0], remedy)


def write_statistics(
    path: Path, origin: Origin, counted: Mapping[int, int], covariances: Mapping[int, Tensor]
) -> None:
    """Write a statistics file in one atomic step.

    Args:
        path: the file to create or replace.
        origin: origin of the covariances.
        counted: layer -> number of counted tokens.
        covariances: layer -> C_l (d_ff, d_ff); stored as float32.
    """
    metadata = {key: str(value) for key, value in dataclasses.asdict(origin).items()}
    metadata |= {"format": _FORMAT, "counted": json.dumps({str(n): counted[n] for n in counted})}
    tensors = {_name(layer): c.to(torch.float32) for layer, c in covariances.items()}
    write_tensors(path, tensors, metadata)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file in one atomic step, with the permissions of any new file."""
    with replace_file(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(dict(tensors), temporary, dict(metadata))
        temporary.chmod(mode)  # safetensors makes a file that only its owner can read


def _name(layer: int) -> str:
    return f"layer-{layer}"


def _listed(layers: Iterable[int]) -> str:
    return ",".join(map(str, sorted(layers)))
