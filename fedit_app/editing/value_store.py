"""Optimised values on this machine's disk, found again by all that they were computed from.

A file is named by the hash of the model and its state, the token rows of a batch, where their
optimisation begins, the hyperparameters of the value and the numerics version. It holds no text,
and a value that is found is bit for bit the one that would be computed. A batch is found as a
whole, because the sums of another batch are rounded otherwise.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedit_app.editing.settings import EditSettings
from fedit_app.editing.sites import Site
from fedit_app.editing.values import KeyRows, Values
from fedit_app.mkv.numerics import NUMERICS_VERSION
from fedit_app.models.editable import EditableModel
from fedit_app.support.files import replace_file

logger = logging.getLogger(__name__)

# Settings that say nothing of a value: those of the solve, the layers (the site names the one that
# counts), and the batch (the rows say it).
_NOT_OF_VALUES = (
    "layers",
    "covariance_weight",
    "max_condition",
    "null_space_threshold",
    "l2",
    "batch",
)
_PARTS = tuple(field.name for field in dataclasses.fields(Values))


class ValueStore:
    """Batches of values in a folder. Several processes may use it at once.

    Args:
        folder: where they are kept; made when the first one is.

    Attributes:
        found: how many values have been found so far.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.found = 0

    def load(self, key: str, device: torch.device) -> Values | None:
        """The values of a batch; None if they have not been computed yet.

        Args:
            key: see `batch_key`.
            device: where the tensors are wanted.
        """
        file = self._file(key)
        try:
            kept = load_file(file)
            values = Values(*(kept[name].to(device) for name in _PARTS))
        except FileNotFoundError:
            return None
        except (SafetensorError, KeyError, OSError) as error:
            logger.warning("work-cache: %s cannot be read (%s); computing it again", file, error)
            return None
        self.found += len(values.steps)
        return values

    def save(self, key: str, values: Values) -> None:
        """Keep the values of a batch.

        Args:
            key: see `batch_key`.
            values: the values.
        """
        tensors = {name: getattr(values, name).cpu().contiguous() for name in _PARTS}
        with replace_file(self._file(key)) as temporary:
            save_file(tensors, temporary)

    def _file(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.safetensors"


def batch_key(
    model: EditableModel,
    rows: Sequence[KeyRows],
    site: Site,
    settings: EditSettings,
    objective: Callable[..., object],
    starts: Sequence[Tensor | None],
) -> str:
    """Hash of everything that the values of a batch are computed from: 64 hex digits.

    Args:
        model: the model as it is now, edited or not.
        rows: the batch, in its order; contexts and targets are in it as tokens.
        site: where delta is added.
        settings: hyperparameters; those of the solve are left out.
        objective: what is minimised, a function.
        starts: for each key where delta begins, None for zero.
    """
    chosen = dataclasses.asdict(settings)
    for name in _NOT_OF_VALUES:
        del chosen[name]
    made_from = {
        "numerics": NUMERICS_VERSION,
        "torch": torch.__version__,
        "model": [model.fingerprint, model.edits_hash()],
        "dtype": str(model.model.dtype),
        "device": model.device.type,
        "settings": chosen,
        "site": [type(site).__module__, type(site).__qualname__, site.first, site.parts],
        "objective": [objective.__module__, objective.__qualname__],
        "rows": [dataclasses.astuple(row) for row in rows],
        "starts": [None if start is None else start.tolist() for start in starts],
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
