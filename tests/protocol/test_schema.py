"""What a message may say: the limits of its fields, and what a user reads about a wrong one."""

import re
import time

import pytest

from fedit_app.mkv.record import MAX_NAME_LENGTH
from fedit_app.protocol.messages import unpack_info
from fedit_app.protocol.metrics import FIGURES
from fedit_app.protocol.schema import (
    EditAsk,
    EvaluateAnswer,
    HelloAnswer,
    ReeditAsk,
    RoundAsk,
)
from fedit_app.support.errors import FedEditError

EDIT = {"slot": 1, "central": False, "upload": True, "missing": [], "withdrawn": {}}
METRICS = dict.fromkeys(FIGURES, 0.5) | {"count": 3, "metric": "tokens"}
SHARED = {"count": 4, "hold": 3, "efficacy": 0.5, "accuracy": 0.75}


def test_what_is_packed_is_read_again():
    asked = EditAsk(**EDIT | {"missing": ["a" * 32], "withdrawn": {"b" * 32: ["bank"]}})
    assert EditAsk.read(asked.packed()) == asked
    asked = {"server-round": 3, "key-sums": True, "prior-from": "bank"}
    assert unpack_info(RoundAsk.parse(asked).packed()) == asked


def test_fields_of_a_later_version_are_dropped():
    assert EditAsk.parse({**EDIT, "more": 1}) == EditAsk(**EDIT)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("slot", value) for value in (0, -1, 2**31, 1.0, True, "1", None, 10**400)],
        *[("central", value) for value in (0, "true", None)],
        *[("missing", value) for value in ("abc", {"a": 1}, [1], ["\n"], [None], ["\ud800"])],
        *[
            ("missing", [id_])
            for id_ in ("a" * 31, "A" * 32, "a" * 33, "x" * (MAX_NAME_LENGTH + 1))
        ],
        *[("withdrawn", value) for value in ([], {"a": "b"}, {"a": [1]}, {"\x00": []}, None)],
    ],
)
def test_an_invalid_field_is_named_with_its_value(field, value):
    with pytest.raises(
        FedEditError, match=f"^the server's message has an invalid {field}: .*found"
    ):
        EditAsk.parse({**EDIT, field: value})


@pytest.mark.parametrize("field", EDIT)
def test_a_missing_field_is_named(field):
    with pytest.raises(FedEditError, match=f"^the server's message lacks {field}$"):
        EditAsk.parse({name: value for name, value in EDIT.items() if name != field})


@pytest.mark.parametrize(
    "changed",
    [
        {"score": 1.1},
        {"score": float("nan")},
        {"generation_entropy": float("inf")},
        {"magnitude": -1.01},
        {"efficacy": True},
        {"count": 1.0},
        {"metric": "made up"},
        {"shared_subject": SHARED | {"hold": 5}},
        {"shared_subject": SHARED | {"count": 0, "hold": 0}},
        {"drawn_from": 0},
    ],
)
def test_metrics_out_of_their_range_are_refused(changed):
    answered = {"node": "bank", "received": None, "federation": None, "neutral": None}
    whole, sample = {"shared_subject": None, "drawn_from": None}, {"drawn_from": 90}
    for sound in (METRICS | whole, METRICS | {"shared_subject": SHARED} | sample):
        assert EvaluateAnswer.parse({**answered, "own": sound}).own.model_dump() == sound
    assert EvaluateAnswer.parse({**answered, "own": METRICS}).own.shared_subject is None
    (name,) = changed
    with pytest.raises(FedEditError, match=re.escape(f"its answer has an invalid own.{name}")):
        EvaluateAnswer.parse({**answered, "own": METRICS | changed})


def test_a_node_has_a_name():
    with pytest.raises(FedEditError, match="its answer has an invalid node: '' found"):
        HelloAnswer.parse({"node": ""})


def test_millions_of_wrong_items_are_refused_at_the_first():
    """A validation error that listed them all would take the receiver's memory."""
    many = 10**6
    started = time.perf_counter()
    for values in (
        EDIT | {"missing": [1] * many},
        EDIT | {"withdrawn": dict.fromkeys(range(many))},
    ):
        with pytest.raises(FedEditError, match="1 found|0 found"):
            EditAsk.parse(values)
    with pytest.raises(FedEditError, match="votes: 'x' found"):
        ReeditAsk.parse({"slot": 1, "votes": {f"{number:032x}": "x" for number in range(many)}})
    assert time.perf_counter() - started < 20
