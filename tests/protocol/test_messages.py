"""Packing and unpacking: what was sent arrives, and what was not sent by us is refused."""

import io
import json
import math
import tracemalloc

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from fedit_app.mkv import DEFAULT_PRECISION, MKV, PRECISIONS, create
from fedit_app.protocol.messages import (
    arrays_record,
    content_bytes,
    note_cost,
    noted_memory,
    noted_seconds,
    pack,
    unpack_arrays,
    unpack_info,
    unpack_mkvs,
    with_values,
)
from fedit_app.protocol.schema import ComposeAnswer, ComposeAsk
from fedit_app.server.contests import Contest, Told
from fedit_app.support.errors import FedEditError

FINGERPRINT = "f" * 32


def mkvs(count: int = 3, precision: str = DEFAULT_PRECISION) -> list[MKV]:
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
            precision,
        )
        for number in range(count)
    ]


def travelled(content: RecordDict) -> RecordDict:
    wire = recorddict_to_proto(content).SerializeToString()
    return recorddict_from_proto(type(recorddict_to_proto(content)).FromString(wire))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_round_trip(precision):
    info = {"slot": 2, "reused": ["a"], "own": None, "text": 'ä "quoted"'}
    sent = mkvs(precision=precision)
    content = travelled(pack(info, sent))

    assert unpack_info(content) == info
    assert content["mkvs"]["keys"].dtype == precision
    arrived = unpack_mkvs(content, FINGERPRINT, precision)
    assert [(m.id, m.node, m.slot) for m in arrived] == [(m.id, m.node, m.slot) for m in sent]
    assert {m.precision for m in arrived} == {precision}
    for got, was in zip(arrived, sent, strict=True):
        assert all(
            np.array_equal(getattr(got, field), getattr(was, field))
            for field in ("keys", "shifts", "v_star", "h0")
        )


def test_a_message_without_mkvs_has_none():
    assert unpack_mkvs(travelled(pack({"slot": 1})), FINGERPRINT, DEFAULT_PRECISION) == []


def test_size_counts_the_arrays():
    for precision, bytes_an_element in (("int8", 1), ("float16", 2), ("float32", 4)):
        few, many = (content_bytes(pack({}, mkvs(count, precision))) for count in (10, 30))
        names = 20 * 60
        vectors = 20 * (bytes_an_element * (2 * 6 + 2 * 4 + 4 + 4) + 4 * (2 + 2 + 1 + 1))
        assert vectors + names * 0.8 < many - few < vectors + names * 1.2


def test_size_counts_what_flower_cannot():
    content = travelled(RecordDict({"info": ConfigRecord({"json": "", "ids": [], "x": [""]})}))
    with pytest.raises((ValueError, IndexError)):
        content["info"].count_bytes()
    assert 0 < content_bytes(content) < 200


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"info": ConfigRecord()}),
        RecordDict({"info": ConfigRecord({"json": "{"})}),
        RecordDict({"info": ConfigRecord({"json": 3})}),
        RecordDict({"info": ConfigRecord({"json": b"{}"})}),
        RecordDict({"info": ConfigRecord({"json": "[1]"})}),
        RecordDict({"info": ConfigRecord({"json": "[" * 100_000})}),
        RecordDict({"info": ConfigRecord({"json": '{"a":' * 100_000})}),
        RecordDict({"info": ConfigRecord({"json": "9" * 100_000})}),
        RecordDict({"info": ConfigRecord({"json": "{}" + " " * 2**24})}),
    ],
    ids=[
        *("no record", "no json", "cut off", "number", "bytes", "list", "nested lists"),
        *("nested objects", "long number", "too long"),
    ],
)
def test_damaged_info_is_refused(content):
    with pytest.raises(FedEditError, match="info"):
        unpack_info(content)


def test_mkvs_of_another_model_are_refused():
    with pytest.raises(FedEditError, match="fingerprint 'fff.*' sent, 'another' is expected"):
        unpack_mkvs(pack({}, mkvs()), "another", DEFAULT_PRECISION)


def test_mkvs_of_another_precision_are_refused():
    with pytest.raises(FedEditError, match="precision 'float32' sent, 'int8' is expected"):
        unpack_mkvs(pack({}, mkvs(precision="float32")), FINGERPRINT, "int8")
    content = pack({}, mkvs(precision="float32"))
    content["info"]["mkv-meta"] = content["info"]["mkv-meta"].replace("float32", "int8")
    with pytest.raises(FedEditError, match="float32 found; it has to be int8"):
        unpack_mkvs(content, FINGERPRINT, "int8")


@pytest.mark.parametrize(
    "meta",
    [
        None,
        "{",
        "[]",
        "[" * 100_000,
        json.dumps({"fingerprint": [[FINGERPRINT]]}),
        json.dumps({"fingerprint": FINGERPRINT}),
        json.dumps({"fingerprint": FINGERPRINT, "precision": DEFAULT_PRECISION}),
        json.dumps({"ids": []}),
    ],
)
def test_damaged_mkv_names_are_refused(meta):
    content = pack({}, mkvs())
    content["info"]["mkv-meta"] = meta if meta is not None else 3
    with pytest.raises(FedEditError):
        unpack_mkvs(content, FINGERPRINT, DEFAULT_PRECISION)


@pytest.mark.parametrize("name", ["keys", "shifts", "v_star", "h0"])
def test_flipped_bytes_are_noticed(name):
    content = pack({}, mkvs())
    array = content["mkvs"][name]
    data = bytearray(array.data)
    data[-1] ^= 2
    content["mkvs"][name] = Array(array.dtype, array.shape, array.stype, bytes(data))
    with pytest.raises(FedEditError, match="MKV"):
        unpack_mkvs(content, FINGERPRINT, DEFAULT_PRECISION)


def test_cut_off_and_missing_arrays_are_refused():
    content = pack({}, mkvs())
    array = content["mkvs"]["keys"]
    content["mkvs"]["keys"] = Array(array.dtype, array.shape, array.stype, array.data[:-8])
    with pytest.raises(FedEditError):
        unpack_mkvs(content, FINGERPRINT, DEFAULT_PRECISION)

    content = pack({}, mkvs())
    del content["mkvs"]["keys"]
    with pytest.raises(FedEditError):
        unpack_mkvs(content, FINGERPRINT, DEFAULT_PRECISION)


def test_arrays_round_trip_and_errors():
    arrays = {"lookup": np.arange(6, dtype=np.float32).reshape(2, 3)}
    content = travelled(RecordDict({"keys": arrays_record(arrays)}))
    assert np.array_equal(unpack_arrays(content, "keys")["lookup"], arrays["lookup"])

    sorted_by_column = {"lookup": np.asfortranarray(arrays["lookup"])}
    content = travelled(RecordDict({"keys": arrays_record(sorted_by_column)}))
    assert np.array_equal(unpack_arrays(content, "keys")["lookup"], arrays["lookup"])

    with pytest.raises(FedEditError, match="keys"):
        unpack_arrays(RecordDict(), "keys")
    broken = RecordDict({"keys": ArrayRecord({"lookup": Array("float32", (2, 3), "x", b"123")})})
    with pytest.raises(FedEditError, match="keys"):
        unpack_arrays(broken, "keys")


def saved(array: np.ndarray, pickled: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=pickled)
    return file.getvalue()


def claiming(shape: tuple[int, ...]) -> bytes:
    """Six elements behind a header that says otherwise."""
    file = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + bytes(24)


SAVED = saved(np.ones((2, 3), np.float32))


@pytest.mark.parametrize("dtype", ["i1", "<f2", "<f4", "<f8"])
@pytest.mark.parametrize("shape", [(), (1,), (40,), (2, 3), (1, 2, 3, 4, 5, 6, 7, 8)])
def test_arrays_are_read_as_numpy_reads_them(dtype, shape):
    expected = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    content = RecordDict({"keys": arrays_record({"lookup": expected})})
    found = unpack_arrays(travelled(content), "keys")["lookup"]
    assert found.dtype == expected.dtype and found.shape == shape
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        SAVED[:40],
        SAVED[:-1],
        SAVED + b"x",
        claiming((2, 4)),
        claiming((2, -3)),
        claiming((10**6, 10**3)),
        claiming((10**18, 10**18)),
        claiming((1,) * 9 + (6,)),
        claiming((0, 6)),
        SAVED.replace(b"'<f4'", b"'>f4'"),
        SAVED.replace(b"'<f4'", b"'<U4'"),
        SAVED.replace(b"\x93NUMPY\x01", b"\x93NUMPY\x02"),
        SAVED.replace(b"NUMPY", b"numpy"),
        saved(np.ones(3, np.int64)),
        saved(np.ones(0, np.float32)),
        saved(np.zeros(3, [("a", "<f4")])),
        saved(np.array([{}], object), pickled=True),
        b"PK\x03\x04" + bytes(100),
    ],
)
def test_arrays_that_we_do_not_send_are_refused_before_they_take_memory(data):
    content = RecordDict(
        {"keys": ArrayRecord({"x": Array("float32", (2, 3), "numpy.ndarray", data)})}
    )
    tracemalloc.start()
    try:
        with pytest.raises(FedEditError, match="message, 'keys' array 'x': "):
            unpack_arrays(content, "keys")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_random_corruptions_of_an_array():
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(3000):
        data = bytearray(SAVED)
        place = random.integers(128)
        match random.integers(3):
            case 0:
                data[place] = random.integers(256)
            case 1:
                data[place:place] = random.bytes(random.integers(1, 9))
            case 2:
                del data[place : place + random.integers(1, 9)]
        array = Array("float32", (2, 3), "numpy.ndarray", bytes(data))
        try:
            found = unpack_arrays(RecordDict({"keys": ArrayRecord({"x": array})}), "keys")["x"]
        except FedEditError:
            refused += 1
            continue
        assert found.nbytes == 24 and found.dtype == np.float32
    assert refused > 1500


def test_an_answer_says_how_long_it_took_and_how_much_memory():
    content = pack({"node": "a"})
    assert noted_seconds(travelled(content)) == noted_memory(travelled(content)) == 0
    note_cost(content, 2.5, 3 << 30)
    assert noted_seconds(travelled(content)) == 2.5
    assert noted_memory(travelled(content)) == 3 << 30
    assert unpack_info(content) == {"node": "a"}


@pytest.mark.parametrize("seconds", [-1.0, math.inf, math.nan, "2", [1.0]])
def test_seconds_that_cannot_be_are_none(seconds):
    content = pack({"node": "a"})
    content["info"]["seconds"] = seconds
    assert noted_seconds(content) == 0
    assert noted_seconds(RecordDict()) == 0


@pytest.mark.parametrize("memory", [-1, 1 << 60, 2.5, "2", [1]])
def test_memory_that_cannot_be_is_none(memory):
    content = pack({"node": "a"})
    content["info"]["memory"] = memory
    assert noted_memory(content) == 0


@pytest.mark.parametrize("sealed", [False, True])
def test_a_contested_key_costs_each_holder_few_bytes(sealed):
    """Four rounds of two holders, and the look at the end, cost less than ten float32 values."""
    d_model, rounds, names = 576, 4, ["bank", "court"]
    value = np.zeros(2 * d_model + 28, np.int8) if sealed else np.zeros(d_model, np.float16)

    def both_ways(keys: int) -> int:
        """Bytes that a holder gets and sends over all rounds, and the one that only looks."""
        contests = [Contest((f"{i:032x}", f"{i:032x}"), names) for i in range(keys)]
        total = 0
        for _ in range(rounds + 1):
            asked = [contest.key() for contest in contests]
            ask = ComposeAsk(slot=1, keys=[key for key, _ in asked], supersedes={}).packed()
            values = [value for _, found in asked for value in found]
            if values:
                with_values(ask, np.stack(values))
            answer = ComposeAnswer(
                node="bank",
                said=["not yet"] * keys,
                leads=[-12.5] * keys,
                received_from={},
                rejections={},
                head="a" * 64,
                quarantined=0,
                conflicts=[],
                supersedes={},
            ).packed()
            with_values(answer, np.stack([value] * keys))
            total += content_bytes(ask) + content_bytes(answer)
            for contest in contests:
                contest.close_round(dict.fromkeys(names, Told(False, 1.0, value)), rounds + 1)
        return total

    assert (both_ways(30) - both_ways(10)) / 20 <= 10 * d_model * 4
