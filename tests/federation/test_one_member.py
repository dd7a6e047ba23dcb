"""One member of three answers with nonsense, in every field of every message: only it is left out.

A sealed run is recorded once. Then the server runs again and again on the recorded answers, one of
which is spoilt; whatever it sends to the honest members goes through their own handlers, as far as
the stage itself, whose outcome is the recorded one.
"""

import itertools
import json
import logging
import math
import os
import zlib
from collections import Counter

import inprocess
import numpy as np
import pytest
import tiny
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from fedit_app.config.run_config import RunConfig
from fedit_app.mkv.record import MAX_NAME_LENGTH
from fedit_app.node.handlers import HANDLERS
from fedit_app.node.participant import Participant
from fedit_app.protocol.messages import COMPOSE, EDIT, EVALUATE, HELLO, REEDIT, TRAIN, pack
from fedit_app.protocol.parcel import unwrap
from fedit_app.protocol.schema import ANSWERS, ComposeAsk
from fedit_app.support.errors import FedEditError

pytestmark = pytest.mark.integration

NAMES = {101: "bank", 102: "court", 103: "museum"}
EVE = 101  # the first in every order, so that the others meet what it has left
HONEST = [name for id_, name in NAMES.items() if id_ != EVE]
TARGETS = {"bank": "city", "court": "London", "museum": "published"}
# Of what a parser takes one in so many is tried on a whole run: in `make test`, `make test-all`.
SHARES = [12, *tiny.later(int(os.environ.get("FEDIT_ATTACKS_SHARE", "8")))]

ID, OTHER = "f" * 32, "e" * 32
NONSENSE = [
    *(
        None,
        True,
        -1,
        0,
        2**53,
        2**70,
        10**400,
        0.5,
        math.nan,
        math.inf,
        1e308,
        -1e308,
        1e99,
        -1e99,
    ),
    *("", "x", "\x1b]0;x\x07", "../../x", "x" * MAX_NAME_LENGTH, ID, "0" * 31 + "g"),
    *([], [None], [7], ["x"], ["court"], [ID], [ID, ID], [[[[[]]]]], [2**53] * 3),
    *({}, {"x": None}, {"x": 7}, {"court": 2**53}, {"x": ["y"]}, {ID: [OTHER]}, {ID: [ID]}),
    *([{"held": "x", "gave_way": "y"}], [{"held": ID, "gave_way": OTHER}]),
]


class Taken(Exception):
    """A handler has read a whole message and begins its stage."""


def copied(content: RecordDict) -> RecordDict:
    wire = recorddict_to_proto(content).SerializeToString()
    return unwrap(recorddict_from_proto(ProtoRecordDict.FromString(wire)))


class Replay(inprocess.InProcessGrid):
    """The recorded answers, Eve's of one kind spoilt; the honest members read what they get."""

    def __init__(self, run_config, answers, participants, spoil):
        super().__init__(run_config, len(NAMES))
        self._answers, self._participants, self._spoil = answers, participants, spoil
        self._asked = Counter()
        self.stopped = []

    def get_nodes(self):
        return [NodeInfo(node_id=id_, name=name) for id_, name in NAMES.items()]

    def _answer(self, node_id, message):
        kind = message.metadata.message_type
        recorded = self._answers[node_id, kind]
        nth = min(self._asked[node_id, kind], len(recorded) - 1)
        self._asked[node_id, kind] += 1
        content = copied(recorded[nth])
        if node_id == EVE:
            if self._spoil[0] == kind and nth == 0:
                content = self._spoil[1](content)
        else:
            try:
                HANDLERS[kind](copied(message.content), self._participants[node_id])
            except Taken:
                pass
            except Exception as error:  # whatever it is, the member is stopped
                self.stopped.append((NAMES[node_id], kind, repr(error)))
            if kind == COMPOSE:
                content = fitting(content, ComposeAsk.read(unwrap(message.content)))
        return Message(content, reply_to=message)


def fitting(content, asked):
    """The recorded answer of a round, or none of the keys, if others are asked for."""
    said = json.loads(content["info"]["json"])
    if len(said["said"]) == len(asked.keys):
        return content
    return pack({**said, "said": ["declined"] * len(asked.keys), "leads": []})


def config_of(small, folder, **changes):
    """A run of three nodes with one fact each about one subject, and one of their own."""
    data = folder / "data"
    data.mkdir(exist_ok=True)
    for name, target in TARGETS.items():
        fact = {"id": name, "subject": "Royal Mint", "prompt": "{}", "target_new": target}
        other = {"id": f"{name}-2", "subject": name, "prompt": "The {} of", "target_new": "a"}
        (data / f"{name}.jsonl").write_text(f"{json.dumps(fact)}\n{json.dumps(other)}")
    given = {"data-path": str(data), "dataset": "jsonl", "num-slots": 2, "requests-per-slot": 1}
    given |= {"value-steps": 25, "clamp": 20.0, "kl-weight": 0.01, "compose-rounds": 2}
    return {**small, **given, "contexts": 0, "output-dir": str(folder / "run"), **changes}


class Recording(inprocess.InProcessGrid):
    """Keeps every answer."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.answers = {}

    def _answer(self, node_id, message):
        reply = super()._answer(node_id, message)
        kind = message.metadata.message_type
        self.answers.setdefault((node_id, kind), []).append(copied(reply.content))
        return reply


def recorded(small, folder, **changes):
    config = config_of(small, folder, **changes)
    grid = Recording(config, len(NAMES))
    results = inprocess.federate_on(grid, config)
    assert results["failed_nodes"] == []
    participants = {
        id_: Participant(
            RunConfig.parse(config),
            {"partition-id": id_ - 101, "num-partitions": len(NAMES)},
            inprocess.RUN_ID,
        )
        for id_ in NAMES
    }
    return config, grid.answers, participants


def replayed(run, tmp_path, kind, spoil):
    """The results of a run in which Eve's first answer of a kind is spoilt."""
    config, answers, participants = run
    config = {**config, "output-dir": str(tmp_path / "run")}
    grid = Replay(config, answers, participants, (kind, spoil))
    return inprocess.federate_on(grid, config), grid


@pytest.fixture(scope="module", params=["on", *tiny.later("off")], ids=["sealed", "open"])
def run(request, small, tmp_path_factory):
    """Run config, (node id, kind) -> answers, and the nodes, of a sealed and of an open run."""
    folder = tmp_path_factory.mktemp("one-member")
    return recorded(small, folder, sealed=request.param)


@pytest.fixture(scope="module")
def averaged(small, tmp_path_factory):
    """The same of a run that averages weights."""
    folder = tmp_path_factory.mktemp("averaged")
    return recorded(small, folder, sealed="off", strategy="fedavg")


@pytest.fixture(autouse=True)
def only_the_reading(monkeypatch):
    """Stages are not done again; everything before them is."""

    def begins(self, *_, **__):
        raise Taken

    for name in ("hello", "edit", "reedit", "compose", "evaluate", "train"):
        monkeypatch.setattr(Participant, name, begins)
    logger = logging.getLogger("fedit_app")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


def check(run, tmp_path, kind, spoil, told=False):
    """Only Eve may fail. Returns why it did."""
    results, grid = replayed(run, tmp_path, kind, spoil)
    assert grid.stopped == []
    assert results["status"] == "completed"
    failed = [(f["node"], f["reason"]) for f in results["failed_nodes"]]
    assert {name for name, _ in failed} <= {NAMES[EVE]}, failed
    assert all(reason.isprintable() for _, reason in failed)
    for slot, name in itertools.product(results["slots"], HONEST):
        assert slot["nodes"][name]["requests"] == 1
    assert failed or not told
    return failed


def paths(value, path=()):
    """Where something stands in a JSON value: every field, and the first of every list."""
    if isinstance(value, dict):
        inside = value.items()
    elif isinstance(value, list):
        inside = list(enumerate(value))[:1]
    else:
        inside = ()
    for key, part in inside:
        yield (*path, key)
        yield from paths(part, (*path, key))


def changed(value, path, found):
    """A JSON value with another part at a path."""
    value = json.loads(json.dumps(value))
    place = value
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = found
    return value


def without(value, path):
    value = json.loads(json.dumps(value))
    place = value
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    return value


def spoilt(told):
    """(how, JSON value) with every field of a message taken out or exchanged."""
    for path in paths(told):
        yield f"{path} gone", without(told, path)
        for number, found in enumerate(NONSENSE):
            yield f"{path}: {number}", changed(told, path, found)


def is_tried(share: int, how: str) -> bool:
    """Whether something is among the `share`-th part that is tried on a whole run."""
    return zlib.crc32(how.encode()) % share == 0


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", [HELLO, EDIT, REEDIT, COMPOSE, EVALUATE])
def test_whatever_a_member_says_costs_only_that_member(run, tmp_path, kind, share, record_property):
    _, answers, _ = run
    told = json.loads(answers[EVE, kind][0]["info"]["json"])
    assert set(told) == {
        field.alias or name for name, field in ANSWERS[kind].model_fields.items()
    }, "every field is tried"
    taken = refused = runs = 0
    for how, said in spoilt(told):
        try:
            ANSWERS[kind].parse(json.loads(json.dumps(said)))
        except FedEditError as error:
            assert str(error).isprintable() and len(str(error)) < 1000
            refused += 1
            continue
        taken += 1
        if is_tried(share, how):
            runs += 1

            def spoil(content, said=said):
                content["info"]["json"] = json.dumps(said)
                return content

            try:
                check(run, tmp_path / str(taken), kind, spoil)
            except Exception as error:
                raise AssertionError(f"{how}: {error!r}") from error
    assert refused > taken > 0
    record_property("inputs", taken + refused)
    record_property("runs", runs)


def rewritten(array, change):
    """An array with other elements."""
    return Array(change(array.numpy()))


def with_other_bytes(array, change):
    return Array(array.dtype, array.shape, array.stype, change(bytearray(array.data)))


def _flipped(data):
    data[-7] ^= 0x55
    return bytes(data)


def _claiming(data):
    """The header says that the array has millions of rows."""
    return bytes(data).replace(b"(", b"(9999999, ", 1)


ARRAYS = {
    "flipped": lambda a: with_other_bytes(a, _flipped),
    "cut off": lambda a: with_other_bytes(a, lambda data: bytes(data[:-1])),
    "no header": lambda a: with_other_bytes(a, lambda data: b"rubbish"),
    "nothing": lambda a: with_other_bytes(a, lambda data: b""),
    "a false header": lambda a: with_other_bytes(a, _claiming),
    "of another kind": lambda a: Array(a.dtype, a.shape, "pickle", a.data),
    "a row more": lambda a: rewritten(a, lambda x: np.concatenate([x, x[:1]])),
    "a row less": lambda a: rewritten(a, lambda x: x[:-1]),
    "wider": lambda a: rewritten(a, lambda x: np.concatenate([x, x], axis=-1)),
    "an axis more": lambda a: rewritten(a, lambda x: x[None]),
    "of another type": lambda a: rewritten(a, lambda x: x.astype(np.float64)),
    "of objects": lambda a: rewritten(a, lambda x: x.astype("U8")),
    "zero": lambda a: rewritten(a, np.zeros_like),
    "large": lambda a: rewritten(a, lambda x: np.full_like(x, np.finfo(np.float16).max / 520)),
    "infinite": lambda a: rewritten(a, lambda x: _filled(x, np.inf)),
    "not a number": lambda a: rewritten(a, lambda x: _filled(x, np.nan)),
}


def _filled(x, value):
    return np.full_like(x, value if x.dtype.kind == "f" else -128)


def array_attacks(content):
    """(how, what spoils a message) for every array that it has, and for those that it has not."""
    for record, arrays in content.array_records.items():
        yield f"{record} gone", lambda c, r=record: c.pop(r)
        yield f"{record} twice", lambda c, r=record: c.update({f"{r}s": c[r]})
        for name in arrays:
            yield f"{record} {name} gone", lambda c, r=record, n=name: c[r].pop(n)
            for how, change in ARRAYS.items():

                def spoil(c, record=record, name=name, change=change):
                    c[record][name] = change(c[record][name])

                yield f"{record} {name} {how}", spoil
    for record in ("mkvs", "sealed-mkvs", "keys", "values", "arrays"):
        more = ArrayRecord({"lookup": Array(np.ones((2, 3))), "values": Array(np.ones(2))})
        yield f"{record} foreign", lambda c, r=record, m=more: c.update({r: m})
    yield "no info", lambda c: c.pop("info")
    yield "empty info", lambda c: c.update({"info": ConfigRecord()})
    for text in ("", "{", "[]", "7", "[" * 99999, '{"node": "bank"', '"' + "x" * 17 * 2**20):
        yield f"info {text[:9]}", lambda c, t=text: c["info"].update({"json": t})
        yield f"meta {text[:9]}", lambda c, t=text: c["info"].update({"mkv-meta": t})
    for value in (7, [7], b"x", ["x"], 1e308, -1.0, math.nan):
        yield f"info {value!r}", lambda c, v=value: c["info"].update({"json": v})
        yield f"seconds {value!r}", lambda c, v=value: c["info"].update({"seconds": v})
    for said in ("", "\x1b[31mred\x1b[0m\r\nlie", "x" * 10**5, 7, None, [], {}):
        error = json.dumps({"node": "court", "error": said})
        yield f"error {said!r:.9}", lambda c, e=error: c["info"].update({"json": e})


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", [HELLO, EDIT, REEDIT, COMPOSE, EVALUATE])
def test_whatever_a_member_sends_costs_only_that_member(
    run, tmp_path, kind, share, record_property
):
    _, answers, _ = run
    content = answers[EVE, kind][0]
    attacks = dict(array_attacks(content))
    if "mkv-meta" in content["info"]:
        for how, said in spoilt(json.loads(content["info"]["mkv-meta"])):
            text = json.dumps(said)
            attacks[f"meta {how}"] = lambda c, t=text: c["info"].update({"mkv-meta": t})
    tried = {how: spoil for how, spoil in attacks.items() if is_tried(share, how)}
    record_property("inputs", len(tried))
    record_property("runs", len(tried))
    for number, (how, spoil) in enumerate(tried.items()):

        def spoilt_content(content, spoil=spoil):
            spoil(content)
            return content

        try:
            check(run, tmp_path / str(number), kind, spoilt_content)
        except Exception as error:
            raise AssertionError(f"{how}: {error!r}") from error


def test_withdrawals_of_what_nobody_has_do_not_fill_the_messages_to_all(run, tmp_path):
    """The list is as long as an answer may be; told to everybody, it would be too long to read."""
    ids = [f"{number:032x}" for number in range(400_000)]

    def spoil(content):
        told = json.loads(content["info"]["json"])
        content["info"]["json"] = json.dumps(told | {"withdrawn": ids})
        return content

    check(run, tmp_path, HELLO, spoil)


def weighted(**metrics):
    return lambda c: c.update({"metrics": MetricRecord(metrics)})


def with_weights(change):
    def spoil(c):
        name = next(iter(c["arrays"]))
        c["arrays"][name] = change(c["arrays"][name])

    return spoil


WEIGHTS = {
    **{f"weights {how}": with_weights(change) for how, change in ARRAYS.items()},
    "no weights": lambda c: c.pop("arrays"),
    "no layer": lambda c: c["arrays"].pop(next(iter(c["arrays"]))),
    "another layer": lambda c: c["arrays"].update({"layer-9": next(iter(c["arrays"].values()))}),
    "more arrays": lambda c: c.update({"more": c["arrays"]}),
    "no metrics": lambda c: c.pop("metrics"),
    "more metrics": lambda c: c.update({"more": c["metrics"]}),
    "nameless": weighted(),
    "unweighted": weighted(loss=1.0),
    "one more": weighted(**{"num-examples": 1.0, "loss": 1.0}),
    **{
        f"weight {value}": weighted(**{"num-examples": value})
        for value in (0.0, -1.0, 1e300, 1000.0, math.nan, math.inf, [1.0], [])
    },
}
HARMLESS = ("weights flipped", "weights zero", "weights large", "weights of another type")


QUICK = ("weights not a number", "weights a row more", "no weights", "no metrics", "weight nan")


@pytest.mark.parametrize(
    "how", [*QUICK, *tiny.later(*(how for how in WEIGHTS if how not in QUICK))]
)
def test_weights_that_do_not_fit_cost_only_that_member(averaged, tmp_path, how):
    def spoil(content):
        WEIGHTS[how](content)
        return content

    check(averaged, tmp_path, TRAIN, spoil, told=how not in HARMLESS)


METRICS = [how for how in WEIGHTS if "metrics" in how or "weight " in how]


@pytest.mark.parametrize("how", [*METRICS[:2], *tiny.later(*METRICS[2:])])
def test_weights_of_metrics_that_do_not_fit_cost_only_that_member(averaged, tmp_path, how):
    def spoil(content):
        WEIGHTS[how](content)
        return content

    check(averaged, tmp_path, EVALUATE, spoil)
