"""Whether the weights in the folder of an edited model are those that were written of its ledger.

`weights.json` in the ledger says of which head of the journal the weights were made, and the hash
of each of their files. It is not signed: it tells what was exchanged or has lagged behind, not who
did it.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from fedit_app.ledger.entries import AS_WRITTEN
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import write_file

WEIGHTS = (
    *("model*.safetensors", "model.safetensors.index.json"),
    *("adapter_model.safetensors", "deltas.safetensors"),
)
"""Names of the files of weights, in whatever form a model is written."""

FILE = "weights.json"


@with_config(AS_WRITTEN)
class Written(TypedDict):
    """The content of `weights.json`: the head of the journal, and file -> SHA-256."""

    version: Literal[1]
    journal: str
    files: dict[str, str]


_WRITTEN = TypeAdapter(Written)


def record_weights(model: Path, ledger: Path, head: str) -> None:
    """Note in a ledger which weights were made of it.

    Args:
        model: the folder with the weights.
        ledger: the folder of the ledger.
        head: hash of the last record of its journal.
    """
    files = {name: _hash(file) for name, file in _weights(model).items()}
    written: Written = {"version": 1, "journal": head, "files": files}
    write_file(ledger / FILE, _WRITTEN.dump_json(written, indent=2))


def weights_damages(model: Path, ledger: Path, head: str) -> Iterator[str]:
    """A sentence for all by which weights differ from those that were made of a ledger.

    Args:
        model, ledger: see `record_weights`.
        head: as it is now.
    """
    try:
        written = _WRITTEN.validate_json((ledger / FILE).read_bytes())
    except FileNotFoundError:
        yield (
            f"weights of {model}: cannot be compared, as {FILE} is missing in the ledger; the next "
            "`fedit edit` or `fedit rollback` of the folder writes it"
        )
        return
    except (OSError, ValidationError):
        yield f"weights of {model}: cannot be compared, as {ledger / FILE} is damaged"
        return
    if written["journal"] != head:
        yield (
            f"weights of {model}: are not those that the ledger makes, which has changed since "
            f"they were written (head {written['journal'][:12]} then, {head[:12]} now)"
        )
    found, expected = _weights(model), written["files"]
    for name in sorted(found.keys() | expected.keys()):
        if name not in found:
            yield f"weights of {model}: {name} is missing"
        elif name not in expected:
            yield f"weights of {model}: {name} was not written with the others"
        elif _hash(found[name]) != expected[name]:
            yield f"weights of {model}: {name} is not the file that was written of the ledger"


def _weights(model: Path) -> dict[str, Path]:
    return {
        file.name: file
        for file in model.iterdir()
        if file.is_file() and any(fnmatch.fnmatch(file.name, name) for name in WEIGHTS)
    }


def _hash(file: Path) -> str:
    """SHA-256 of a file.

    Raises:
        FedEditError: it cannot be read.
    """
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise FedEditError(f"weights {file}: cannot be read ({error.strerror})") from None
