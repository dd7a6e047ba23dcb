"""Packing and unpacking: what was sent arrives, and what was not sent by us is refused."""

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from fedit_app.errors import FedEditError
from fedit_app.federation.protocol import (
    arrays_record,
    code_fingerprint,
    content_bytes,
    pack,
    unpack_arrays,
    unpack_info,
    unpack_mkvs,
)
from fedit_app.mkv import MKV, create

FINGERPRINT = "f" * 32


def mkvs(count: int = 3) -> list[MKV]:
    random = np.random.default_rng(0)
    return [
        create(
            f"node-{number}",
            number + 1,
            FINGERPRINT,
            random.standard_normal((2, 6)),
            random.standard_normal((2, 4)),
            random.standard_normal(4),
            random.standard_normal(4),
        )
        for number in range(count)
    ]


def travelled(content: RecordDict) -> RecordDict:
    wire = recorddict_to_proto(content).SerializeToString()
    return recorddict_from_proto(type(recorddict_to_proto(content)).FromString(wire))


def test_round_trip():
    info = {"slot": 2, "reused": ["a"], "own": None, "text": 'ä "quoted"'}
    sent = mkvs()
    content = travelled(pack(info, sent))

    assert unpack_info(content) == info
    arrived = unpack_mkvs(content, FINGERPRINT)
    assert [(m.id, m.node, m.slot) for m in arrived] == [(m.id, m.node, m.slot) for m in sent]
    for got, was in zip(arrived, sent, strict=True):
        assert all(
            np.array_equal(getattr(got, field), getattr(was, field))
            for field in ("keys", "shifts", "v_star", "h0")
        )


def test_a_message_without_mkvs_has_none():
    assert unpack_mkvs(travelled(pack({"slot": 1})), FINGERPRINT) == []


def test_size_counts_the_arrays():
    grown = content_bytes(pack({}, mkvs(30))) - content_bytes(pack({}, mkvs(10)))

    assert grown > 20 * 2 * (2 * 6 + 2 * 4 + 4 + 4)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"info": ConfigRecord()}),
        RecordDict({"info": ConfigRecord({"json": "{"})}),
        RecordDict({"info": ConfigRecord({"json": 3})}),
        RecordDict({"info": ConfigRecord({"json": "[1]"})}),
    ],
    ids=["no record", "no json", "cut off", "number", "list"],
)
def test_damaged_info_is_refused(content):
    with pytest.raises(FedEditError, match="info"):
        unpack_info(content)


def test_mkvs_of_another_model_are_refused():
    with pytest.raises(FedEditError, match="another"):
        unpack_mkvs(pack({}, mkvs()), "another")


@pytest.mark.parametrize(
    "meta",
    [None, "{", "[]", json.dumps({"fingerprint": FINGERPRINT}), json.dumps({"ids": []})],
)
def test_damaged_mkv_names_are_refused(meta):
    content = pack({}, mkvs())
    content["info"]["mkv-meta"] = meta if meta is not None else 3
    with pytest.raises(FedEditError):
        unpack_mkvs(content, FINGERPRINT)


@pytest.mark.parametrize("name", ["keys", "shifts", "v_star", "h0"])
def test_flipped_bytes_are_noticed(name):
    content = pack({}, mkvs())
    array = content["mkvs"][name]
    data = bytearray(array.data)
    data[-1] ^= 1
    content["mkvs"][name] = Array(array.dtype, array.shape, array.stype, bytes(data))
    with pytest.raises(FedEditError, match="MKV"):
        unpack_mkvs(content, FINGERPRINT)


def test_cut_off_and_missing_arrays_are_refused():
    content = pack({}, mkvs())
    array = content["mkvs"]["keys"]
    content["mkvs"]["keys"] = Array(array.dtype, array.shape, array.stype, array.data[:-8])
    with pytest.raises(FedEditError):
        unpack_mkvs(content, FINGERPRINT)

    content = pack({}, mkvs())
    del content["mkvs"]["keys"]
    with pytest.raises(FedEditError):
        unpack_mkvs(content, FINGERPRINT)


def test_arrays_round_trip_and_errors():
    arrays = {"lookup": np.arange(6, dtype=np.float32).reshape(2, 3)}
    content = travelled(RecordDict({"keys": arrays_record(arrays)}))
    assert np.array_equal(unpack_arrays(content, "keys")["lookup"], arrays["lookup"])

    with pytest.raises(FedEditError, match="keys"):
        unpack_arrays(RecordDict(), "keys")
    broken = RecordDict({"keys": ArrayRecord({"lookup": Array("float32", (2, 3), "x", b"123")})})
    with pytest.raises(FedEditError, match="keys"):
        unpack_arrays(broken, "keys")


def test_the_code_fingerprint_is_stable():
    assert code_fingerprint() == code_fingerprint()
    assert len(code_fingerprint()) == 16
