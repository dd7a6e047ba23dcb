"""Sealed MKVs that somebody has changed: never opened as anything but what was sealed."""

import numpy as np
from fuzz.inputs import altered, damaged
from fuzz.test_formats import MKVS, attempt
from hypothesis import given
from hypothesis import strategies as st

from fedit_app.mkv import decode, encode, from_bytes, to_bytes
from fedit_app.mkv.federation_key import FederationKey
from fedit_app.mkv.sealed import SealedMKV
from fedit_app.mkv.sealer import Sealer

SEALER = Sealer(FederationKey(bytes(range(32))), "e" * 32, "f" * 32, 16)
SEALED = SEALER.seal(MKVS)
FILES = [to_bytes(sealed) for sealed in SEALED]
KIND, ARRAYS, META = encode(SEALED[:2])


def opens_as_it_was_sealed(record) -> bool:
    """Whether a record is refused, or is one of the sealed MKVs in every byte."""
    if not isinstance(record, SealedMKV):
        return record is None
    mkv = attempt(SEALER.open, record)
    return mkv is None or to_bytes(mkv) in map(to_bytes, MKVS)


@given(st.binary(max_size=400) | st.sampled_from(FILES).flatmap(damaged))
def test_sealed_files(data):
    assert opens_as_it_was_sealed(attempt(from_bytes, data))


@given(altered(META), st.sampled_from(sorted(ARRAYS)), st.data())
def test_sealed_messages(meta, name, data):
    shape = data.draw(st.lists(st.integers(0, 6), max_size=3))
    dtype = data.draw(st.sampled_from(["i1", "<f2", "<f4", "U3", "O"]))
    changed = ARRAYS[name].copy()
    changed.reshape(-1).view("i1")[data.draw(st.integers(0, changed.nbytes - 1))] ^= 1
    for arrays, names in (
        (ARRAYS, meta),
        ({**ARRAYS, name: np.zeros(shape, dtype)}, META),
        ({**ARRAYS, name: changed}, META),
        ({key: value for key, value in ARRAYS.items() if key != name}, META),
    ):
        records = attempt(decode, KIND, arrays, names) or []
        assert all(map(opens_as_it_was_sealed, records))
