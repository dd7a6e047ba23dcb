"""What a message declares is checked before memory is taken for it."""

import tracemalloc

import numpy as np
import pytest
from flwr.app import RecordDict

from fedit_app.mkv import Form, create
from fedit_app.mkv.federation_key import FederationKey
from fedit_app.mkv.record import MAX_ELEMENTS
from fedit_app.mkv.sealer import Sealer
from fedit_app.protocol.messages import pack, unpack_mkvs
from fedit_app.support.errors import FedEditError

KEY, PUBLIC, INNER, WIDTH = FederationKey(bytes(32)), "e" * 32, "f" * 32, 256
FORM = Form(n_layers=2, d_ff=1536, d_model=576, sketch_width=WIDTH)
MOST_BYTES = 64 * 2**20


class Eve(Sealer):
    """A member seals what it likes; its sketches need not be those of what it seals."""

    def _sketches(self, mkvs):
        return {kind: np.zeros((len(mkvs), WIDTH), np.float16) for kind in super()._sketches([])}


def mkv(n_layers: int, d_ff: int, d_model: int, fingerprint: str = INNER):
    keys, shifts = np.ones((n_layers, d_ff)), np.ones((n_layers, d_model))
    return create("eve", 1, fingerprint, keys, shifts, np.ones(d_model), np.ones(d_model))


def peak(use) -> int:
    """The most bytes that a use takes at a time."""
    tracemalloc.start()
    try:
        use()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def refused(content: RecordDict, fingerprint: str) -> None:
    sealer = Sealer(KEY, PUBLIC, INNER, WIDTH)
    with pytest.raises(FedEditError):
        for record in unpack_mkvs(content, fingerprint, "int8", FORM):
            sealer.open(record, FORM)


# The shifts of one MKV, flattened, times the width of a sketch: 8 GiB of signs.
BOMBS = {"wide values": (1, 1, MAX_ELEMENTS // 4), "wide keys": (1, MAX_ELEMENTS - 9, 1)}


@pytest.mark.parametrize("shape", BOMBS.values(), ids=BOMBS)
def test_a_sealed_mkv_of_another_form_takes_no_memory(shape):
    sealed = Eve(KEY, PUBLIC, INNER, WIDTH).seal([mkv(*shape)])
    content = pack({}, sealed)
    assert peak(lambda: refused(content, PUBLIC)) < MOST_BYTES


def test_a_sealed_mkv_that_is_a_little_different_takes_no_memory_either():
    """Its bytes are as many as those of the run; it is opened, and its shapes are found inside."""
    layers = FORM.most_bytes // (4 * 3)
    sealed = Eve(KEY, PUBLIC, INNER, WIDTH).seal([mkv(1, layers, 1)])
    content = pack({}, sealed)
    assert len(unpack_mkvs(content, PUBLIC, "int8", FORM)) == 1
    assert peak(lambda: refused(content, PUBLIC)) < MOST_BYTES


def test_open_mkvs_of_another_form_are_not_decoded():
    content = pack({}, [mkv(1, MAX_ELEMENTS // 2, 1, PUBLIC)])
    assert peak(lambda: refused(content, PUBLIC)) < MOST_BYTES


def test_more_mkvs_than_are_expected_are_not_decoded():
    content = pack({}, [mkv(2, 1536, 576, PUBLIC)])
    with pytest.raises(FedEditError, match="1 MKVs sent; at most 0"):
        unpack_mkvs(content, PUBLIC, "int8", FORM, most=0)
