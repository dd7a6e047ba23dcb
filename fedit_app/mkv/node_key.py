"""The key pair by which a server knows a node, and with which the node signs its MKVs.

Keys are elliptic, P-384, in OpenSSH's form: what Flower asks of a SuperNode.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedit_app.support.errors import FedEditError

_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_REMEDY = "make a new key pair with `fedit keys rotate DIR`, and have it registered"


@dataclass(frozen=True)
class Pair:
    """A certificate or public key with its private key.

    Attributes:
        public: PEM certificate, or public key in OpenSSH's form.
        private: PEM.
    """

    public: bytes
    private: bytes


def make_node_key() -> Pair:
    """A new key pair, both in OpenSSH's form."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    return Pair(openssh_line(key.public_key()).encode() + b"\n", private)


def read_private_key(file: Path) -> ec.EllipticCurvePrivateKey:
    """The private key of a node.

    Raises:
        FedEditError: the file cannot be read, or holds no key that Flower takes.
    """
    try:
        key = serialization.load_ssh_private_key(file.read_bytes(), None)
    except OSError as error:
        raise FedEditError(
            f"node key {file}: cannot be read ({error.strerror}); {_REMEDY}"
        ) from None
    except (ValueError, TypeError, UnsupportedAlgorithm, NotImplementedError) as error:
        raise FedEditError(f"node key {file}: not a private key ({error}); {_REMEDY}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise FedEditError(
            f"node key {file}: must be an elliptic curve key (NIST P-384); {_REMEDY}"
        )
    return key


def read_public_key(file: Path) -> str:
    """The public key of a node, one line in OpenSSH's form without a comment.

    Raises:
        FedEditError: the file cannot be read, or holds no key that Flower takes.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise FedEditError(f"node key {file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        text = ""
    if "PRIVATE KEY" in text:
        raise FedEditError(
            f"node key {file}: this is a private key, which must not leave its node; use the .pub "
            "file beside it"
        )
    try:
        return openssh_line(load_public_key(text))
    except ValueError as error:
        raise FedEditError(
            f"node key {file}: {error}; use the NAME.pub file of `fedit node init`"
        ) from None


def load_public_key(text: str) -> ec.EllipticCurvePublicKey:
    """A public key in OpenSSH's form.

    Raises:
        ValueError: it is none, or not of a kind that Flower takes.
    """
    try:
        key = serialization.load_ssh_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm, NotImplementedError):  # the last: a short point
        raise ValueError("holds no public key") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        raise ValueError("must be an elliptic curve key (NIST P-384)")
    return key


def openssh_line(key: ec.EllipticCurvePublicKey) -> str:
    """A public key in OpenSSH's form, one line without a comment."""
    encoded = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return encoded.decode()


def key_fingerprint(public: str) -> str:
    """What two people compare to know that they hold the same public key: SHA256:...

    It is what `ssh-keygen -l` prints.

    Args:
        public: the key in OpenSSH's form.
    """
    digest = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")
