"""Sealing MKVs, so that a server can rank, fold and pass them on, but not read them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedit_app.mkv.federation_key import FederationKey
from fedit_app.mkv.record import MKV, Form, check_form, is_id
from fedit_app.mkv.sealed import SKETCHES, SealedMKV
from fedit_app.mkv.sketch import Sketcher
from fedit_app.mkv.wire import mkv_from_bytes, to_bytes
from fedit_app.support.errors import FedEditError, shown

_NONCE_BYTES = 12
# Two machines may round an element of a sketch differently by a unit of float16.
_SKETCH_ERROR = 2**-9


class Sealer:
    """Seals the MKVs of one federation and opens them again.

    Payloads are encrypted with AES-256-GCM. Id, node, slot and fingerprint are its associated
    data, so that a payload opens under its own names only. The nonce is a keyed hash of all that
    is encrypted and of the associated data (a synthetic nonce, as in RFC 5297): the same MKV gives
    the same bytes again, on every node, and no nonce is ever used for two different ones, even on
    a machine whose random numbers repeat. That two are equal is what their ids tell anyway.

    Args:
        key: the federation key; encryption, nonces, ids and sketches each use a key of their own
            that is derived from it.
        fingerprint: what sealed MKVs have outside.
        inner: the fingerprint of the MKVs inside.
        width: the number of elements of a sketch.
    """

    def __init__(self, key: FederationKey, fingerprint: str, inner: str, width: int) -> None:
        self._fingerprint, self._inner = fingerprint, inner
        self._aead = AESGCM(key.derive("payload"))
        self._value_aead = AESGCM(key.derive("value of a contested key"))
        self._nonce_key = key.derive("nonce")
        # One block of AES is a keyed permutation of all ids: nodes can go both ways.
        self._ids = Cipher(algorithms.AES(key.derive("id of an MKV")), modes.ECB())
        self._sketcher = Sketcher(key.derive(f"sketch {fingerprint}"), width)

    def seal(self, mkvs: Sequence[MKV]) -> list[SealedMKV]:
        """What a server may have of MKVs; the same for the same MKV."""
        sketches = self._sketches(mkvs)
        return [
            self._sealed(mkv, {kind: rows[i] for kind, rows in sketches.items()})
            for i, mkv in enumerate(mkvs)
        ]

    def open(self, sealed: SealedMKV, form: Form | None = None) -> MKV:
        """The MKV inside.

        Args:
            sealed: the sealed MKV.
            form: what the run's MKVs look like, which is checked before the sketches are made
                again: that takes memory for every element. None for what this machine has sealed.

        Raises:
            FedEditError: it was damaged, exchanged, renamed or sealed with another key; it is of
                another form; or what is inside is not what stands outside, the sketches included.
        """
        place = f"sealed MKV {sealed.id} of node {sealed.node!r}"
        nonce, rest = sealed.payload[:_NONCE_BYTES], sealed.payload[_NONCE_BYTES:]
        names = _names(sealed.id, sealed.node, sealed.slot, sealed.fingerprint)
        try:
            mkv = mkv_from_bytes(self._aead.decrypt(nonce, rest, names))
        except InvalidTag:
            raise FedEditError(
                f"{place}: does not open; it was damaged, exchanged, or sealed with another "
                "federation key"
            ) from None
        if form is not None:
            check_form(mkv.shapes, form)
        inside = (self.seal_id(mkv.id), mkv.node, mkv.slot, mkv.fingerprint)
        if inside != (sealed.id, sealed.node, sealed.slot, self._inner):
            raise FedEditError(f"{place}: names another MKV than it holds")
        for kind, (expected,) in self._sketches([mkv]).items():
            found = sealed.sketches[kind].astype(np.float64)
            if found.shape != expected.shape or np.abs(found - expected).max() > _SKETCH_ERROR:
                raise FedEditError(f"{place}: its sketch of {kind} is not that of what it holds")
        return mkv

    def lookup(self, keys: np.ndarray) -> np.ndarray:
        """The sketches `(n, m)` float16 of lookup keys `(n, d_ff)`."""
        return self._sketcher.sketch("key", keys)

    def seal_value(self, change: np.ndarray, place: Sequence[object]) -> np.ndarray:
        """A value of a round of composition as a server may have it: int8, `SEALING_BYTES` longer.

        Args:
            change: `(d_model,)` float16.
            place: what JSON can hold: run, slot, round, key and node. It opens there only.
        """
        content, bound = change.tobytes(), json.dumps(list(place)).encode()
        hashed = hashlib.blake2b(bound, key=self._nonce_key, digest_size=_NONCE_BYTES)
        hashed.update(content)
        nonce = hashed.digest()
        return np.frombuffer(nonce + self._value_aead.encrypt(nonce, content, bound), np.int8)

    def open_value(self, sealed: np.ndarray, place: Sequence[object]) -> np.ndarray:
        """The inverse of `seal_value`.

        Raises:
            FedEditError: it was damaged, or sealed with another key or for another place.
        """
        data, bound = sealed.tobytes(), json.dumps(list(place)).encode()
        try:
            content = self._value_aead.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], bound)
        except InvalidTag:
            raise FedEditError("a sealed value does not open") from None
        return np.frombuffer(content, "<f2")

    def seal_id(self, id_: str) -> str:
        """What a server calls an MKV."""
        return _one_block(self._ids.encryptor(), id_)

    def open_id(self, id_: str) -> str:
        """What nodes call an MKV; the inverse of `seal_id`.

        Raises:
            FedEditError: it is no id.
        """
        return _one_block(self._ids.decryptor(), id_)

    def _sketches(self, mkvs: Sequence[MKV]) -> dict[str, np.ndarray]:
        vectors = {
            kind: [mkv.shifts.ravel() if kind == "shifts" else mkv.signature(kind) for mkv in mkvs]
            for kind in SKETCHES
        }
        return {
            kind: self._sketcher.sketch(kind, np.stack(rows)) if rows else np.zeros((0, 0))
            for kind, rows in vectors.items()
        }

    def _sealed(self, mkv: MKV, sketches: dict[str, np.ndarray]) -> SealedMKV:
        if mkv.fingerprint != self._inner:
            raise FedEditError(
                f"MKV {mkv.id}: fingerprint {mkv.fingerprint} found, {self._inner} is to be sealed"
            )
        id_ = self.seal_id(mkv.id)
        names = _names(id_, mkv.node, mkv.slot, self._fingerprint)
        content = to_bytes(mkv)
        hashed = hashlib.blake2b(names, key=self._nonce_key, digest_size=_NONCE_BYTES)
        hashed.update(content)
        nonce = hashed.digest()
        payload = nonce + self._aead.encrypt(nonce, content, names)
        return SealedMKV(id_, mkv.node, mkv.slot, self._fingerprint, sketches, payload)


def _names(id_: str, node: str, slot: int, fingerprint: str) -> bytes:
    """What a payload is bound to. A JSON list says itself where it ends."""
    return json.dumps([id_, node, slot, fingerprint]).encode()


def _one_block(cipher: CipherContext, id_: str) -> str:
    if not is_id(id_):
        raise FedEditError(f"MKV id {shown(id_)} found; it has to be 32 hex digits")
    return (cipher.update(bytes.fromhex(id_)) + cipher.finalize()).hex()
