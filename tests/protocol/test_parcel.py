"""Parcels: a message has three parts for Flower, and is unpacked to what was sent or refused."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedit_app.mkv import DEFAULT_PRECISION
from fedit_app.protocol.messages import (
    arrays_record,
    content_bytes,
    note_cost,
    noted_seconds,
    pack,
    unpack_info,
    unpack_lookup,
    unpack_mkvs,
    with_lookup,
)
from fedit_app.protocol.parcel import MOST_BYTES, unwrap, wrap
from fedit_app.protocol.signed import digest
from fedit_app.support.errors import FedEditError
from tests.protocol.test_messages import FINGERPRINT, mkvs


def answer() -> RecordDict:
    """MKVs, lookup keys, the seconds and a signature: all that a node's answer can have."""
    keys = np.arange(8, dtype=np.float16).reshape(2, 4)
    content = with_lookup(pack({"node": "bank", "reused": []}, mkvs()), keys)
    note_cost(content, 2.5, 3 << 30)
    content["signature"] = ConfigRecord({"signature": "0f"})
    return content


def through_flower(content: RecordDict) -> RecordDict:
    """Taken apart and put together as Flower does it."""
    objects = {id_: found.deflate() for id_, found in get_all_nested_objects(content).items()}
    return inflate_object_from_contents(content.object_id, objects)


def test_an_upload_has_one_part_more_than_an_empty_message():
    assert len(get_all_nested_objects(RecordDict())) == 1, "and the message itself"
    assert len(get_all_nested_objects(answer())) > 20
    assert len(get_all_nested_objects(wrap(answer()))) == 2


def test_what_arrives_is_what_was_sent_to_the_last_bit_of_the_signed_digest():
    sent = answer()
    arrived = unwrap(through_flower(wrap(sent)))
    assert list(arrived) != ["parcel"]
    assert digest(arrived) == digest(sent)
    assert unpack_info(arrived) == {"node": "bank", "reused": []}
    assert noted_seconds(arrived) == 2.5
    found = unpack_mkvs(arrived, FINGERPRINT, DEFAULT_PRECISION)
    assert [mkv.id for mkv in found] == [mkv.id for mkv in mkvs()]
    assert unpack_lookup(arrived, 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_parcel_takes_hardly_more_bytes():
    sent = answer()
    assert content_bytes(wrap(sent)) < content_bytes(sent) + 1000


def test_large_messages_and_those_of_flowers_strategies_travel_as_they_are():
    large = np.zeros(MOST_BYTES + 1, np.int8)
    weights = {"layer-1": np.zeros((4, 6), np.float32)}
    stock = {"arrays": arrays_record(weights), "config": ConfigRecord({"server-round": 1})}
    averaged = {**pack({"node": "bank"}), "arrays": arrays_record(weights)}
    averaged["metrics"] = MetricRecord({"num-examples": 1})
    for content in (
        {**pack({}), "values": arrays_record({"values": large})},
        stock,
        averaged,
        pack({"slot": 1}),
    ):
        content = RecordDict(content)
        assert wrap(content) is content
        assert unwrap(content) is content


WHOLE = np.zeros((1, 2), np.float16)
CLAIMS_MUCH = (
    b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999,), }"
)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"json": "{}"}, "RECORD/NAME"),
        ({"": "{}"}, "RECORD/NAME"),
        ({"info/json": "{}", "info/array": Array(WHOLE).data}, "arrays and fields"),
        ({"mkvs/keys": Array(WHOLE).data, "mkvs/json": "{}"}, "arrays and fields"),
        ({"mkvs/keys": b"no array"}, "numpy.save"),
        ({"mkvs/keys": b""}, "numpy.save"),
        ({"mkvs/keys": Array(np.array(["a"])).data}, "not U"),
        ({"mkvs/\x1b[2J": b""}, r"\\x1b"),
    ],
)
def test_a_parcel_that_is_none_of_ours_is_refused(entries, said):
    with pytest.raises(FedEditError, match=said):
        unwrap(RecordDict({"parcel": ConfigRecord(entries)}))


def test_records_beside_a_parcel_are_refused_as_they_could_contradict_it():
    content = wrap(answer())
    content["mkvs"] = ArrayRecord({"keys": Array(WHOLE)})
    with pytest.raises(FedEditError, match="beside"):
        unwrap(content)


def test_an_array_takes_no_more_memory_than_was_sent():
    header = CLAIMS_MUCH.ljust(127) + b"\n"
    content = unwrap(RecordDict({"parcel": ConfigRecord({"keys/lookup": header})}))
    assert len(content["keys"]["lookup"].data) == len(header)
    with pytest.raises(FedEditError, match="bytes found"):
        unpack_lookup(content, 4)
