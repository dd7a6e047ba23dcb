"""The signature under a ledger's head: whoever has the node's key has written this state.

The head names the last record of the journal, whose hash covers all records before it, so the
signature covers the ledger's whole history. An end that was cut off, or another history, has
another head.
"""

from __future__ import annotations

import json

from fedit_app.ledger.entries import SignatureFields
from fedit_app.ledger.journal import Head
from fedit_app.mkv.authorship import SigningKey, is_signature_of
from fedit_app.mkv.node_key import key_fingerprint


def sign_head(head: Head, fingerprint: str, key: SigningKey) -> SignatureFields:
    """Sign a head.

    Args:
        head: of a ledger's journal.
        fingerprint: the ledger's.
        key: the node's.
    """
    return {"public_key": key.public, "signature": key.signature(_statement(head, fingerprint))}


def head_problem(
    head: Head, fingerprint: str, found: SignatureFields | None, public_key: str = ""
) -> str:
    """What is wrong with the signature under a head; "" if nothing is.

    Args:
        head: of a ledger's journal.
        fingerprint: the ledger's.
        found: the signature that stands under it; None if there is none.
        public_key: whose it has to be; "": of any key, and there may be none.
    """
    if found is None:
        if not public_key:
            return ""
        return (
            "the head is not signed with this node's key: something else wrote the ledger, or an "
            "older version of FedEdit; the node's next change signs it"
        )
    statement = _statement(head, fingerprint)
    if not is_signature_of(statement, found["signature"], found["public_key"]):
        return "the signature under the head is not one of this head; restore a backup"
    if public_key not in ("", found["public_key"]):
        signed = key_fingerprint(found["public_key"])
        return f"the head is signed with key {signed}, this node's is {key_fingerprint(public_key)}"
    return ""


def _statement(head: Head, fingerprint: str) -> bytes:
    said = [fingerprint, head.records, head.bytes, head.hash]
    return b"FedEdit ledger head " + json.dumps(said).encode()
