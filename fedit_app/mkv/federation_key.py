"""The federation key: the one secret that the nodes share and the server never gets."""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedit_app.support.errors import FedEditError
from fedit_app.support.files import check_private, write_private

KEY_BYTES = 32
_ID_BYTES = 8
_HEX = re.compile(rf"[0-9a-f]{{{2 * KEY_BYTES}}}")


@dataclass(frozen=True)
class FederationKey:
    """32 random bytes from which everything else is derived (HKDF, RFC 5869).

    Attributes:
        secret: the bytes; they stand in no representation of the object.
    """

    secret: bytes = field(repr=False)

    @staticmethod
    def new() -> FederationKey:
        """A key that nobody else has."""
        return FederationKey(secrets.token_bytes(KEY_BYTES))

    @staticmethod
    def read(file: Path) -> FederationKey:
        """The key of a file.

        Raises:
            FedEditError: the file is missing, others may read it, or it holds no key.
        """
        if not file.is_file():
            raise FedEditError(
                f"federation key {file}: no such file; copy that of an organisation which has it "
                "(`fedit node key take DIR FILE`), or be the first to make one (`fedit node key "
                "new FILE`)"
            )
        check_private(file)
        try:
            text = file.read_text(encoding="ascii").strip()
        except OSError as error:
            raise FedEditError(
                f"federation key {file}: cannot be read ({error.strerror})"
            ) from None
        except UnicodeDecodeError:
            text = ""
        if not _HEX.fullmatch(text):
            raise FedEditError(
                f"federation key {file}: has to hold {2 * KEY_BYTES} hexadecimal digits; take the "
                "file that `fedit node key new` made at the first organisation"
            )
        return FederationKey(bytes.fromhex(text))

    @staticmethod
    def shared_by_all_at(file: Path) -> FederationKey:
        """The key of a file that the first process to ask makes."""
        if not file.exists():
            mine = file.with_name(f".{file.name}.{os.getpid()}.{secrets.token_hex(4)}")
            FederationKey.new().write(mine)
            try:
                os.link(mine, file)  # in one step, and only if there is none
            except FileExistsError:
                pass
            finally:
                mine.unlink()
        return FederationKey.read(file)

    def write(self, file: Path) -> None:
        """Write a file that only its owner can read.

        Raises:
            FedEditError: there is one already.
        """
        write_private(file, f"{self.secret.hex()}\n".encode())

    @property
    def id(self) -> str:
        """16 hex digits by which two people, or a server, know whether two keys are the same."""
        return self.derive("id", _ID_BYTES).hex()

    def derive(self, purpose: str, size: int = KEY_BYTES) -> bytes:
        """Bytes for one purpose, from which neither the key nor those of another one follow.

        Args:
            purpose: what they are for.
            size: how many.
        """
        info = f"FedEdit {purpose}".encode()
        return HKDF(hashes.SHA256(), size, salt=None, info=info).derive(self.secret)
