"""The public keys of other nodes that a node trusts: a file NAME.pub for each, one key a line.

A line is a key in OpenSSH's form. `until=2027-01-31` after it says on which day it counts last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from fedit_app.support.errors import FedEditError
from fedit_app.support.files import write_file

_UNTIL = "until="


@dataclass(frozen=True)
class PeerKey:
    """A key that another node may sign with.

    Attributes:
        public: in OpenSSH's form.
        until: the last day (UTC) on which it counts; None: it counts until it is revoked.
    """

    public: str
    until: date | None = None

    @property
    def counts(self) -> bool:
        """Whether signatures of it are accepted today."""
        return self.until is None or datetime.now(UTC).date() <= self.until


def read_peer(file: Path) -> list[PeerKey]:
    """The keys of a file.

    Raises:
        FedEditError: it cannot be read, or a line is no public key with at most a day after it.
    """
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        raise FedEditError(f"peer {file}: cannot be read; take the node's NAME.pub") from None
    try:
        keys = [_key(line) for line in lines if line.strip()]
    except ValueError as error:
        raise FedEditError(f"peer {file}: {error}") from None
    if not keys or not all(key.public.startswith("ecdsa-sha2-nistp") for key in keys):
        raise FedEditError(
            f"peer {file}: has to hold public keys as in NAME.pub of `fedit node init`, one a line"
        )
    return keys


def write_peer(file: Path, keys: Sequence[PeerKey]) -> None:
    """Write the keys of a file; without any the file is removed."""
    lines = [f"{key.public} {_UNTIL}{key.until}" if key.until else key.public for key in keys]
    if lines:
        write_file(file, "".join(f"{line}\n" for line in lines))
    else:
        file.unlink(missing_ok=True)


def read_peers(folder: Path) -> dict[str, frozenset[str]]:
    """The public keys of a folder that count today: node -> its keys.

    Raises:
        FedEditError: see `read_peer`.
    """
    return {
        file.stem: frozenset(key.public for key in read_peer(file) if key.counts)
        for file in sorted(folder.glob("*.pub"))
    }


def _key(line: str) -> PeerKey:
    words = line.split()
    days = [word.removeprefix(_UNTIL) for word in words[2:] if word.startswith(_UNTIL)]
    until = date.fromisoformat(days[0]) if days else None
    return PeerKey(" ".join(words[:2]), until)
