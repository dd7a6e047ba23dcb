"""The keys of a node: which it has and trusts, what each of them opens, and taking trust back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from fedit_app.deployment.certificates import expires
from fedit_app.deployment.node_folder import NodeFolder
from fedit_app.mkv.federation_key import FederationKey
from fedit_app.mkv.node_key import (
    key_fingerprint,
    openssh_line,
    read_private_key,
)
from fedit_app.node.peers import PeerKey, read_peer, write_peer
from fedit_app.support.errors import FedEditError
from fedit_app.support.formats import typed

_NODE = "the server lets the node in; signs its MKVs, answers and ledgers"
_FORMER_NODE = "earlier MKVs, where others list it; nothing at the server once it is unregistered"
_FEDERATION = "MKVs and values of runs with this key"
_FORMER_FEDERATION = "what was sealed with it, where it still lies in a pool"
_AUTHORITY = "whose certificate a server has to have"


@dataclass(frozen=True)
class Key:
    """A key that a node has, or trusts.

    Attributes:
        kind: node, federation, peer or authority.
        whose: the node's name, or the file.
        fingerprint: what two people compare.
        until: the last day on which it counts; "" if it does not end by itself.
        opens: what whoever has it can do.
    """

    kind: str
    whose: str
    fingerprint: str
    until: str
    opens: str


def keys_of(node: NodeFolder) -> list[Key]:
    """The keys of a node, former ones included.

    Raises:
        FedEditError: one of them cannot be read.
    """
    return list(_keys(node))


def check_peer(node: NodeFolder, name: str, public: str) -> None:
    """Check that a key can be another node's: it is not the node's own, nor listed for a third.

    Args:
        node: the node that is to trust the key.
        name: the other node's.
        public: the key.

    Raises:
        FedEditError: it cannot, or one of the keys that are there cannot be read.
    """
    found = key_fingerprint(public)
    if any(key.fingerprint == found for key in _own_keys(node)):
        raise FedEditError(
            f"{found}: is a key of this node itself, which can sign for nobody else; ask the "
            f"operator of {name} for its {name}.pub"
        )
    for key in _peer_keys(node):
        if key.fingerprint == found and key.whose != name:
            raise FedEditError(
                f"{found}: is listed as a key of {key.whose}, and cannot be of {name} as well; "
                f"if {key.whose} is not its name: fedit keys revoke {typed(node.folder)} "
                f"{key.whose} --key {found}"
            )


def _keys(node: NodeFolder) -> Iterator[Key]:
    yield from _own_keys(node)
    shared = node.federation_key
    if shared is not None:
        former = shared.with_suffix(".key.old")
        for file, opens in ((shared, _FEDERATION), (former, _FORMER_FEDERATION)):
            if file.exists():
                yield Key("federation", file.name, FederationKey.read(file).id, "", opens)
    yield from _peer_keys(node)
    if node.ca_cert is not None and node.ca_cert.exists():
        until = f"{expires(node.ca_cert):%Y-%m-%d}"
        yield Key("authority", node.ca_cert.name, "", until, _AUTHORITY)


def _own_keys(node: NodeFolder) -> Iterator[Key]:
    former = node.node_key.with_suffix(".key.old")
    for file, opens in ((node.node_key, _NODE), (former, _FORMER_NODE)):
        if file.exists():
            public = openssh_line(read_private_key(file).public_key())
            yield Key("node", file.name, key_fingerprint(public), "", opens)


def _peer_keys(node: NodeFolder) -> Iterator[Key]:
    for file in sorted(node.peers.glob("*.pub")):
        for key in read_peer(file):
            until = str(key.until or "")
            opens = f"MKVs of {file.stem} are accepted here" if key.counts else "nothing: expired"
            yield Key("peer", file.stem, key_fingerprint(key.public), until, opens)


def revoke_peer(node: NodeFolder, name: str, fingerprint: str = "") -> int:
    """Accept the signatures of another node's keys no more.

    Args:
        node: the node that trusted them.
        name: the other node's.
        fingerprint: the beginning of that of the one key that is meant; "": all are.

    Returns:
        How many keys there were.

    Raises:
        FedEditError: there is no such key, or more than one.
    """
    file, chosen = _peer(node, name, fingerprint)
    write_peer(file, [key for key in read_peer(file) if key not in chosen])
    return len(chosen)


def expire_peer(node: NodeFolder, name: str, until: date, fingerprint: str = "") -> int:
    """Let another node's keys count up to a day.

    Args:
        node: the node that trusts them.
        name: the other node's.
        until: the last day (UTC).
        fingerprint: see `revoke_peer`, as what is returned and raised.
    """
    file, chosen = _peer(node, name, fingerprint)
    keys = read_peer(file)
    changed = [dataclasses.replace(key, until=until) if key in chosen else key for key in keys]
    write_peer(file, changed)
    return len(chosen)


def _peer(node: NodeFolder, name: str, fingerprint: str) -> tuple[Path, list[PeerKey]]:
    file = node.peers / f"{name}.pub"
    if not file.exists():
        known = ", ".join(sorted(other.stem for other in node.peers.glob("*.pub"))) or "none"
        raise FedEditError(f"{name}: no key of it is listed in {node.peers}; listed: {known}")
    keys = read_peer(file)
    chosen = [key for key in keys if key_fingerprint(key.public).startswith(fingerprint)]
    if not chosen:
        known = ", ".join(key_fingerprint(key.public) for key in keys)
        raise FedEditError(f"--key {fingerprint}: {name} has no such key here; it has {known}")
    if fingerprint and len(chosen) > 1:
        raise FedEditError(f"--key {fingerprint}: {len(chosen)} keys of {name} begin so; give more")
    return file, chosen
