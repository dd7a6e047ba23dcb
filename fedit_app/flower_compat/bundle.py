"""App bundles: the code that a run brings with it, and their hashes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fedit_app.flower_compat.contract import require
from fedit_app.support.errors import FedEditError

with require("building an app bundle"):
    from flwr.cli.build import build_fab_from_disk

PREFIX = "sha256:"


def app_hash(content: bytes) -> str:
    """What names an app bundle: "sha256:" and 64 hex digits."""
    return f"{PREFIX}{hashlib.sha256(content).hexdigest()}"


def read_bundle(place: Path) -> bytes:
    """An app bundle.

    Args:
        place: a .fab file, as `flwr build` writes it, or a folder with an app, such as a checkout
            of FedEdit, of which a run would bring the same bytes.

    Raises:
        FedEditError: there is none.
    """
    place = place.expanduser()
    try:
        if place.is_dir():
            return build_fab_from_disk(place)
        return place.read_bytes()
    except (OSError, ValueError) as error:
        raise FedEditError(
            f"{place}: no app bundle ({error}); name a file of `flwr build`, or an app's folder"
        ) from None
