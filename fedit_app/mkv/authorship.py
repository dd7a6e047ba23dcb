"""Signatures of nodes: which node made an MKV, regardless of who passed it on.

An MKV's signature covers fingerprint, id, node and slot; the id is the hash of all vectors. In a
sealed MKV the signature is sealed as well, because it would let the server confirm a guess.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Collection
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fedit_app.mkv.node_key import load_public_key, openssh_line, read_private_key
from fedit_app.mkv.record import MKV, Authorship
from fedit_app.support.files import check_private


class SigningKey:
    """The private key with which a node signs and authenticates itself to the server.

    Args:
        key: an elliptic-curve key.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.public = openssh_line(key.public_key())

    @staticmethod
    def read(file: Path) -> SigningKey:
        """Read the key from a file in OpenSSH's format.

        Raises:
            FedEditError: the file is missing, is readable for other users, or holds no such key.
        """
        check_private(file)
        return SigningKey(read_private_key(file))

    def signature(self, statement: bytes) -> str:
        """The signature of a statement, base64; deterministic (RFC 6979)."""
        algorithm = ec.ECDSA(hashes.SHA384(), deterministic_signing=True)
        return base64.b64encode(self._key.sign(statement, algorithm)).decode()

    def sign(self, mkv: MKV) -> MKV:
        """The MKV with a signature."""
        author = Authorship(self.public, self.signature(_statement(mkv)))
        return dataclasses.replace(mkv, author=author)


def is_signed_by(mkv: MKV, keys: Collection[str]) -> bool:
    """Whether an MKV has a valid signature by one of some keys.

    Args:
        mkv: with or without a signature.
        keys: public keys, as `openssh_line` writes them.
    """
    if mkv.author is None or mkv.author.public_key not in keys:
        return False
    return is_signature_of(_statement(mkv), mkv.author.signature, mkv.author.public_key)


def is_signature_of(statement: bytes, signature: str, public_key: str) -> bool:
    """Whether a signature is that of a statement by a key.

    Args:
        statement: what was signed.
        signature: as `SigningKey.signature` makes it, or anything else.
        public_key: as `openssh_line` writes it.
    """
    try:
        key = load_public_key(public_key)
        key.verify(base64.b64decode(signature, validate=True), statement, ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, ValueError):
        return False
    return True


def _statement(mkv: MKV) -> bytes:
    return b"FedEdit MKV " + json.dumps([mkv.fingerprint, mkv.id, mkv.node, mkv.slot]).encode()
