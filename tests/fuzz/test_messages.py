"""Messages from anybody: a node answers each, and a ledger changes by none that it refuses."""

import json
import logging

import inprocess
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from fuzz.inputs import JSON, altered, damaged
from hypothesis import given
from hypothesis import strategies as st

from fedit_app.config.run_config import RunConfig
from fedit_app.mkv import create
from fedit_app.mkv.numerics import NUMERICS_VERSION
from fedit_app.node import handlers
from fedit_app.node.handlers import answer
from fedit_app.node.participant import Participant
from fedit_app.protocol.messages import (
    COMPOSE,
    EDIT,
    EVALUATE,
    HELLO,
    REEDIT,
    TRAIN,
    VERSION,
    Call,
    content_bytes,
    pack,
    unpack_arrays,
    unpack_info,
    unpack_lookup,
    unpack_mkvs,
)
from fedit_app.protocol.metrics import FIGURES
from fedit_app.protocol.schema import ANSWERS
from fedit_app.server.grid import Member, RunGrid
from fedit_app.server.record import RunRecord
from fedit_app.support.errors import FedEditError

ASKED = {
    HELLO: {"version": VERSION, "numerics": NUMERICS_VERSION, "first_slot": 1},
    EDIT: {"slot": 1, "central": False, "upload": True, "missing": ["0" * 32]}
    | {"withdrawn": {"1" * 32: ["eve"]}},
    REEDIT: {"slot": 1, "votes": {"0" * 32: 2}, "supersedes": {"2" * 32: ["0" * 32]}},
    COMPOSE: {"slot": 1, "supersedes": {"2" * 32: ["0" * 32]}}
    | {"keys": [{"ids": ["0" * 32, "1" * 32], "round": 1, "holders": [], "settled": False}]},
    EVALUATE: {"slot": 1, "central": False},
    TRAIN: {},
}
METRICS = dict.fromkeys(FIGURES, 0.5) | {"count": 3, "metric": "likelihood"}
CONFLICT = {"held": "0" * 32, "gave_way": "1" * 32}
TRAINED = {"requests": 3, "optimised": 2, "cached": 0}
RECEIVED = {"head": "a" * 64, "quarantined": 0, "conflicts": [CONFLICT]}
ACCEPTED = {"received_from": {"bank": 1}, "rejections": {"shape": 1}}
SUPERSEDES = {"supersedes": {"2" * 32: ["0" * 32]}}
ANSWERED = {
    HELLO: {"simulated": True, "components": {"model": "x"}, "layers": [1, 2]}
    | {"kinds": 1, "d_model": 16, "d_ff": 32, "wants": [], "holds": [], "withdrawn": []},
    EDIT: TRAINED
    | RECEIVED
    | SUPERSEDES
    | {"warm_started": 0, "renewed": 0, "reused": ["0" * 32], "again": []}
    | {"gone": ["1" * 32]},
    REEDIT: RECEIVED | ACCEPTED | {"contested": [CONFLICT], "agreed": ["0" * 32]},
    COMPOSE: RECEIVED
    | ACCEPTED
    | SUPERSEDES
    | {"said": ["holds", "not yet", "declined"], "leads": [1.5, -0.5]},
    EVALUATE: {"own": METRICS, "received": None, "federation": None, "neutral": None},
    TRAIN: TRAINED,
}


@pytest.fixture(scope="module")
def node(small, tmp_path_factory):
    """A node with a ledger, what it is asked with, and the files that must not change."""
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    run_config = {**small, "output-dir": str(folder)}
    given = {"partition-id": 0, "num-partitions": 4}
    museum = Participant(
        RunConfig.parse(run_config), {**given, "partition-id": 2}, inprocess.RUN_ID
    )
    mkvs = museum.edit(1, []).new
    bank = Participant(RunConfig.parse(run_config), given, inprocess.RUN_ID)
    bank.edit(1, [])
    ledger = bank.ledger().folder

    def ask(kind: str, content: RecordDict):
        return answer(Call(kind, run_config, given, inprocess.RUN_ID), content)

    def files() -> dict:
        return {path: path.read_bytes() for path in sorted(ledger.rglob("*")) if path.is_file()}

    logging.getLogger("fedit_app").setLevel(logging.CRITICAL)
    yield ask, files, mkvs
    logging.getLogger("fedit_app").setLevel(logging.NOTSET)


@st.composite
def contents(draw, info: dict, mkvs) -> RecordDict:
    """A message's content that is nearly right."""
    content = pack(info, mkvs if draw(st.booleans()) else ())
    what = draw(st.sampled_from(["json", "text", "meta", "array", "gone", "arrays"]))
    if what == "json":
        content["info"]["json"] = json.dumps(draw(altered(info)))
    elif what == "text":
        text = draw(damaged(json.dumps(info).encode()))
        content["info"]["json"] = text.decode("utf-8", "replace")
    elif what == "gone":
        content["info"] = ConfigRecord()
    elif what == "arrays":
        content["arrays"] = ArrayRecord({draw(st.text(max_size=8)): Array(np.ones((2, 3)))})
        content["config"] = ConfigRecord({"server-round": draw(st.integers(-3, 9))})
    elif "mkvs" in content:
        if what == "meta":
            meta = json.loads(content["info"]["mkv-meta"])
            content["info"]["mkv-meta"] = json.dumps(draw(altered(meta)))
        else:
            name = draw(st.sampled_from(sorted(content["mkvs"])))
            array = content["mkvs"][name]
            data = draw(damaged(array.data))
            content["mkvs"][name] = Array(array.dtype, array.shape, array.stype, data)
    return content


@pytest.mark.parametrize("kind", [HELLO, EDIT, REEDIT, COMPOSE, EVALUATE, TRAIN])
def test_a_node_answers_everything_and_what_it_refuses_changes_nothing(node, monkeypatch, kind):
    ask, files, mkvs = node
    for name in ("edit", "reedit", "compose", "evaluate", "train"):  # what is sound costs seconds
        monkeypatch.setattr(Participant, name, _accepted)
    monkeypatch.setattr(Participant, "lookup_keys", lambda self, slot: np.zeros((0, 32)))
    before = files()

    @given(contents(ASKED[kind], mkvs))
    def check(content):
        found = ask(kind, content)
        assert found.sound, unpack_info(found.content)

    check()
    assert files() == before


def _accepted(self, *_, **__):
    raise FedEditError("taken")


def test_mkvs_of_any_content_are_screened_or_accepted(node):
    """The whole of the re-edit, with vectors that the wire form lets through."""
    ask, files, mkvs = node
    like, before = mkvs[0], files()
    largest = st.floats(-1e11, 1e11)

    @given(st.sampled_from([1e-30, 1e-3, 1.0, 1e3, 1e11]), largest, st.booleans())
    def check(scale, value, zero):
        keys = like.keys * (0 if zero else scale)
        shifts = np.full_like(like.shifts, value)
        mkv = create("eve", 1, like.fingerprint, keys, shifts, like.v_star, like.h0)
        found = ask(REEDIT, pack(ASKED[REEDIT], [mkv]))
        assert found.sound
        info = unpack_info(found.content)
        assert "error" not in info
        if info["quarantined"]:
            kept = {path: data for path, data in files().items() if "quarantine" not in path.name}
            assert kept.keys() - before.keys() == accepted

        accepted.update(p for p in files().keys() - before.keys() if "quarantine" not in p.name)

    accepted: set = set()
    check()


@pytest.fixture
def grid(tmp_path):
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = inprocess.RUN_ID, 1, 1
    record = RunRecord(RunConfig.parse({}), tmp_path / "run")
    made = RunGrid(None, inprocess.RUN_ID, record, 1.0, 1.0, lambda slot: True)
    made.members["bank"] = Member("bank", 101, np.zeros((0, 32), np.float32))
    return made


@pytest.mark.parametrize("kind", list(ANSWERS))
def test_the_server_reads_every_answer(grid, kind):
    message = Message(content=pack(ASKED[kind]), message_type=kind, dst_node_id=101)
    message.metadata.__dict__["_message_id"] = "1"

    sound = {"node": "bank", **ANSWERED[kind]}
    assert grid._read(1, Message(pack(sound), reply_to=message)).node == "bank"

    @given(contents(sound, ()))
    def check(content):
        try:
            answer = grid._read(1, Message(content, reply_to=message))
        except FedEditError:
            return
        assert isinstance(answer, ANSWERS[kind])
        if kind != HELLO:
            grid._note(1, "bank", answer)
            grid.record.results("running")

    check()
    error = Message(Error(code=2, reason="x"), reply_to=message)
    with pytest.raises(FedEditError, match="error code 2: the app failed"):
        grid._read(1, error)


@given(st.data())
def test_arrays_of_any_bytes(data):
    array = Array(np.arange(12, dtype=np.float32).reshape(3, 4))
    changed = Array(array.dtype, array.shape, array.stype, data.draw(damaged(array.data)))
    content = RecordDict({"keys": ArrayRecord({"lookup": changed})})
    for read in (lambda: unpack_arrays(content, "keys"), lambda: unpack_lookup(content, 4)):
        try:
            read()
        except FedEditError:
            pass
    assert content_bytes(content) > 0


@given(JSON, st.text(max_size=40))
def test_info_of_any_kind(value, text):
    for written in (json.dumps(value), text):
        content = RecordDict({"info": ConfigRecord({"json": written, "mkv-meta": written})})
        content["mkvs"] = ArrayRecord({"keys": Array(np.zeros((1, 2)))})
        for read in (
            lambda c=content: unpack_info(c),
            lambda c=content: unpack_mkvs(c, "f", "int8"),
        ):
            try:
                assert isinstance(read(), dict | list)
            except FedEditError:
                pass


def test_every_handler_is_tried():
    assert set(ASKED) == set(handlers.HANDLERS) == set(ANSWERS)
