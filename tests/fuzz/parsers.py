"""Every parser of bytes from outside, with inputs that are nearly right."""

import json
import logging
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from fuzz.inputs import JSON, altered, damaged, json_bytes
from fuzz.test_formats import (
    COUNTERFACT,
    CSV,
    FILES,
    KNOWEDIT,
    LIST,
    MKVS,
    MQUAKE,
    QAEDIT,
    REQUEST,
    RIPPLEEDITS,
    WIKIBIGEDIT,
    ZSRE,
)
from fuzz.test_messages import ANSWERED, ASKED
from fuzz.test_sealed import FILES as SEALED_FILES
from fuzz.test_sealed import SEALED, SEALER
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fedit_app.config.run_config import RunConfig
from fedit_app.deployment.node_folder import NODE_FILE, NodeFolder
from fedit_app.deployment.node_setup import init_node
from fedit_app.deployment.server_folder import SERVER_FILE, ServerFolder
from fedit_app.facts.counterfact import read_counterfact
from fedit_app.facts.jsonl import read_requests
from fedit_app.facts.knowedit import read_knowedit
from fedit_app.facts.mquake import read_mquake
from fedit_app.facts.question_sets import read_qaedit, read_wikibigedit
from fedit_app.facts.rippleedits import read_rippleedits
from fedit_app.facts.zsre import read_zsre
from fedit_app.ledger.index import INDEX, JOURNAL, TIP
from fedit_app.ledger.ledger import SUMS, Ledger
from fedit_app.ledger.origin import ORIGIN, read_origin
from fedit_app.ledger.verify import verify
from fedit_app.ledger.weights import FILE as WEIGHTS_RECORD
from fedit_app.ledger.weights import record_weights, weights_damages
from fedit_app.mkv import Form, from_bytes, mkv_from_bytes
from fedit_app.mkv.authorship import SigningKey
from fedit_app.mkv.federation_key import FederationKey
from fedit_app.mkv.node_key import make_node_key, read_private_key, read_public_key
from fedit_app.mkv.sealed import SealedMKV
from fedit_app.node.peers import read_peers
from fedit_app.node.quarantine import read_quarantine
from fedit_app.protocol.messages import (
    COMPOSE,
    EDIT,
    EVALUATE,
    HELLO,
    REEDIT,
    TRAIN,
    pack,
    unpack_arrays,
    unpack_info,
    unpack_lookup,
    unpack_mkvs,
    unpack_values,
)
from fedit_app.protocol.parcel import unwrap, wrap
from fedit_app.protocol.schema import (
    ANSWERS,
    ComposeAsk,
    EditAsk,
    EvaluateAsk,
    HelloAsk,
    ReeditAsk,
    RoundAsk,
)
from fedit_app.protocol.signed import Question, require_signature
from fedit_app.report import load_results
from fedit_app.server.uploads import check_average
from fedit_app.support.errors import FedEditError

ASKS = {HELLO: HelloAsk, EDIT: EditAsk, REEDIT: ReeditAsk, COMPOSE: ComposeAsk}
ASKS |= {EVALUATE: EvaluateAsk}
MOST_SECONDS, MOST_BYTES = 0.1, 100 * 10**6
FEW = 200  # so many are the same every time
TRIES = 5  # of an input that took long: the machine may have been busy

PAIR = make_node_key()
KEY = ec.generate_private_key(ec.SECP384R1())
FORM = Form(2, 6, 4, 16)


@dataclass(frozen=True)
class Parser:
    """Something that reads bytes from outside: `read` gets what `inputs` draws."""

    inputs: st.SearchStrategy
    read: Callable


def texts(value) -> st.SearchStrategy:
    """JSON texts that are nearly that of a value, and any other."""
    near = altered(value).map(json_bytes) | damaged(json_bytes(value))
    return near | JSON.map(json_bytes) | st.binary(max_size=60)


def told(data: bytes) -> RecordDict:
    """A message that says this, whatever it is."""
    return RecordDict({"info": ConfigRecord({"json": data.decode("utf-8", "replace")})})


def in_file(reader, name: str):
    """Reads bytes from a file of this name, in a folder that stays the same."""

    def read(data, folder: Path):
        (folder / name).write_bytes(data)
        return reader(folder / name)

    return read


def in_folder(make, name: str, reader):
    """Reads a folder with one file damaged; `make(folder)` makes it sound, once."""

    def read(data, folder: Path):
        sound = folder / "sound"
        if not sound.exists():
            make(sound)
        (sound / name).write_bytes(data)
        return reader(sound)

    return read


def mkv_message(arrays, meta: bytes, kind: str) -> RecordDict:
    info = ConfigRecord({"json": "{}", "mkv-meta": meta.decode("utf-8", "replace")})
    return RecordDict({"info": info, kind: ArrayRecord(arrays)})


@st.composite
def parcels(draw):
    """The entries of a parcel with MKVs, one of them damaged or renamed."""
    entries = dict(wrap(pack({"slot": 1}, MKVS[:2]))["parcel"])
    path = draw(st.sampled_from(sorted(entries)))
    value = entries.pop(path)
    if draw(st.booleans()):
        data = draw(damaged(value if isinstance(value, bytes) else value.encode()))
        text = data.decode("utf-8", "replace")
        value = draw(st.sampled_from([data, text, 1.5, [3], [data]]))
    else:
        path = draw(damaged(path.encode())).decode("utf-8", "replace")
    return entries | {path: value}


def unwrapped(entries) -> None:
    content = unwrap(RecordDict({"parcel": ConfigRecord(entries)}))
    unpack_info(content)
    unpack_mkvs(content, "f" * 32, "int8", FORM)


def message_inputs(mkvs):
    """(arrays, meta) of a message with MKVs, one of the two damaged."""
    content = pack({}, mkvs)
    kind = next(iter(content.array_records))
    arrays, meta = dict(content[kind]), content["info"]["mkv-meta"].encode()

    @st.composite
    def inputs(draw):
        if draw(st.booleans()):
            return arrays, draw(texts(json.loads(meta))), kind
        name = draw(st.sampled_from(sorted(arrays)))
        old = arrays[name]
        new = Array(old.dtype, old.shape, old.stype, draw(damaged(old.data)))
        return arrays | {name: new}, meta, kind

    return inputs()


def npy() -> st.SearchStrategy:
    """Arrays as numpy.save writes them, damaged, with headers that claim other shapes."""
    sound = Array(np.arange(12, dtype=np.float32).reshape(3, 4))
    shape = st.lists(st.integers(-1, 2**62) | st.integers(0, 9), max_size=9).map(tuple)
    kind = st.sampled_from(["<f4", "<f8", "|i1", "|O", "<U9", "<f2"])

    def claiming(shape, kind):
        header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
        return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"x" * 48

    return damaged(sound.data) | st.builds(claiming, shape, kind) | st.binary(max_size=80)


def holding(data: bytes) -> RecordDict:
    """A message with lookup keys and values of these bytes."""
    array = Array("float32", (3, 4), "numpy.ndarray", data)
    named = {"keys": {"lookup": array}, "values": {"values": array}}
    return RecordDict({record: ArrayRecord(arrays) for record, arrays in named.items()})


def averaged(data: bytes):
    content = RecordDict({"arrays": ArrayRecord({"a": Array("f4", (1,), "numpy.ndarray", data)})})
    sent = RecordDict({"arrays": ArrayRecord({"a": Array(np.zeros((3, 4), np.float32))})})
    answer = ANSWERS[TRAIN].parse({"node": "bank", **ANSWERED[TRAIN]})
    return check_average(content, sent, answer)


def made_node(folder):
    data = folder.parent / "requests.jsonl"
    data.write_text("")
    return init_node(folder, "bank", "localhost:8000", data=data)


def node_toml() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        made = made_node(Path(folder) / "bank")
        return (made.folder / NODE_FILE).read_bytes()


SERVER_TOML = b"""\
hosts = ["localhost"]
bind = "127.0.0.1"
port = 8000
control-from = ["10.0.0.0/8"]
"""


def made_ledger(folder):
    ledger = Ledger.open(folder, "f" * 32, SigningKey(KEY))
    ledger.accept(MKVS[:2], 1, {MKVS[0].id: ["a-1"]})

    if ledger.sums is None:
        raise ValueError("a ledger with a folder keeps sums")
    shape = MKVS[0].keys.shape[1], MKVS[0].shifts.shape[1]
    ledger.sums.pairs(ledger.holding, *shape).layer(0).sums(torch.device("cpu"))


def ledger_file(name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        made_ledger(Path(folder))
        return (Path(folder) / name).read_bytes()


def made_weights(folder):
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    record_weights(folder, folder, "0" * 64)


def weights_record() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        made_weights(Path(folder))
        return (Path(folder) / WEIGHTS_RECORD).read_bytes()


TIP_JSON = {"version": 4, "journal": json.loads(ledger_file(INDEX))["journal"] | {"records": 9}}
STEP_FILE, SUMS_FILE = "mkvs/0000000001.mkvs", f"{SUMS}/layer-0"


ORIGIN_TOML = b'node = "bank"\nsimulated = false\n\n[run]\nnum-slots = 3\n'
QUESTION = Question(7, "m", EDIT, "bank", pack({"slot": 1}))


def signed(value):
    content = RecordDict({"info": ConfigRecord({"json": "{}"})})
    content["signature"] = ConfigRecord({"signature": value})
    return require_signature(content, QUESTION, SigningKey(KEY).public)


def private(data: bytes, folder: Path):
    file = folder / "federation.key"
    file.write_bytes(data)
    file.chmod(0o600)
    return FederationKey.read(file)


def message(sound: dict, reader) -> Parser:
    """Reads messages that are nearly sound."""
    return Parser(texts(sound), lambda data, _: reader.read(told(data)))


FOUND = {
    **{
        f"answer to {kind}": message({"node": "bank"} | said, ANSWERS[kind])
        for kind, said in ANSWERED.items()
    },
    **{f"{kind} at a node": message(ASKED[kind], ASKS[kind]) for kind in ASKS},
    "round": Parser(altered({"server-round": 3}), lambda v, _: RoundAsk.parse(_object(v))),
    "info": Parser(texts({}), lambda data, _: unpack_info(told(data))),
    "open MKVs": Parser(
        message_inputs(MKVS[:2]),
        lambda given, _: unpack_mkvs(mkv_message(*given), "f" * 32, "int8", FORM),
    ),
    "sealed MKVs": Parser(
        message_inputs(SEALED[:2]),
        lambda given, _: unpack_mkvs(mkv_message(*given), "e" * 32, "int8", FORM),
    ),
    "an MKV's bytes": Parser(
        st.sampled_from(FILES).flatmap(damaged), lambda data, _: mkv_from_bytes(data)
    ),
    "a sealed MKV": Parser(
        st.sampled_from(SEALED_FILES).flatmap(damaged), lambda data, _: opened(data)
    ),
    "a parcel": Parser(parcels(), lambda entries, _: unwrapped(entries)),
    "arrays": Parser(npy(), lambda data, _: unpack_arrays(holding(data), "keys")),
    "lookup keys": Parser(npy(), lambda data, _: unpack_lookup(holding(data), 4)),
    "values": Parser(npy(), lambda data, _: unpack_values(holding(data), 3, 4, False)),
    "weights": Parser(npy(), lambda data, _: averaged(data)),
    "a signature": Parser(
        st.text(max_size=90) | st.binary(max_size=9) | st.integers(-9, 9),
        lambda value, _: signed(value),
    ),
    "node.toml": Parser(damaged(node_toml()), in_folder(made_node, NODE_FILE, NodeFolder.open)),
    "server.toml": Parser(
        damaged(SERVER_TOML) | st.binary(max_size=60),
        in_folder(lambda folder: folder.mkdir(), SERVER_FILE, ServerFolder.open),
    ),
    "run config": Parser(
        altered(RunConfig().as_dict()), lambda value, _: RunConfig.parse(_object(value))
    ),
    "peers": Parser(
        damaged(PAIR.public.rstrip() + b" until=2027-01-31\n"),
        in_folder(lambda folder: folder.mkdir(), "court.pub", read_peers),
    ),
    "a public key": Parser(damaged(PAIR.public), in_file(read_public_key, "bank.pub")),
    "a private key": Parser(damaged(PAIR.private), in_file(read_private_key, "bank.key")),
    "a federation key": Parser(damaged(b"0f" * 32 + b"\n"), private),
    "requests": Parser(texts(REQUEST) | damaged(CSV), in_file(read_requests, "a.jsonl")),
    "a table of requests": Parser(damaged(CSV) | texts(REQUEST), in_file(read_requests, "a.csv")),
    "CounterFact": Parser(texts([COUNTERFACT]), in_file(read_counterfact, "a.json")),
    "zsRE": Parser(texts([ZSRE]), in_file(read_zsre, "a.json")),
    "KnowEdit": Parser(texts([KNOWEDIT]), in_file(read_knowedit, "a.json")),
    "RippleEdits": Parser(texts([RIPPLEEDITS]), in_file(read_rippleedits, "a.json")),
    "MQuAKE": Parser(texts([MQUAKE]), in_file(read_mquake, "a.json")),
    "WikiBigEdit": Parser(texts([WIKIBIGEDIT]), in_file(read_wikibigedit, "a.json")),
    "QAEdit": Parser(texts([QAEDIT]), in_file(read_qaedit, "a.json")),
    "a ledger's index": Parser(
        damaged(ledger_file(INDEX)) | altered(json.loads(ledger_file(INDEX))).map(json_bytes),
        in_folder(made_ledger, INDEX, verify),
    ),
    "a ledger's tip": Parser(
        damaged(json_bytes(TIP_JSON)) | altered(TIP_JSON).map(json_bytes),
        in_folder(made_ledger, TIP, verify),
    ),
    "the MKVs of a step": Parser(
        damaged(ledger_file(STEP_FILE)), in_folder(made_ledger, STEP_FILE, verify)
    ),
    "kept sums": Parser(damaged(ledger_file(SUMS_FILE)), in_folder(made_ledger, SUMS_FILE, verify)),
    "a record of weights": Parser(
        damaged(weights_record()) | altered(json.loads(weights_record())).map(json_bytes),
        in_folder(made_weights, WEIGHTS_RECORD, lambda at: [*weights_damages(at, at, "0" * 64)]),
    ),
    "a journal": Parser(damaged(ledger_file(JOURNAL)), in_folder(made_ledger, JOURNAL, verify)),
    "an origin": Parser(
        damaged(ORIGIN_TOML), in_folder(lambda folder: folder.mkdir(), ORIGIN, read_origin)
    ),
    "a quarantine": Parser(
        texts(LIST),
        in_folder(lambda folder: folder.mkdir(), "quarantine.json", read_quarantine),
    ),
    "results": Parser(texts({"schema": 1}), in_file(load_results, "results.json")),
}


def _object(value):
    return value if isinstance(value, dict) else {"value": value}


def opened(data: bytes):
    record = from_bytes(data)
    return SEALER.open(record) if isinstance(record, SealedMKV) else record


def attempt(read, given_, folder):
    try:
        read(given_, folder)
    except FedEditError:
        pass


def took(read, given_, folder) -> float:
    began = time.process_time()
    attempt(read, given_, folder)
    return time.process_time() - began


def tried(name: str, folder: Path, inputs: int) -> dict[str, float]:
    """Feed a parser: the inputs, those that took long or much memory, and the most that one took.

    Raises:
        Exception: any but a FedEditError that the parser raised.
    """
    found = {"inputs": 0, "slow": 0, "large": 0, "most_seconds": 0.0, "most_bytes": 0}
    read = FOUND[name].read

    @settings(
        max_examples=inputs,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        derandomize=inputs <= FEW,
        suppress_health_check=list(HealthCheck),
    )
    @given(FOUND[name].inputs)
    def check(drawn):
        seconds = took(read, drawn, folder)
        if seconds > MOST_SECONDS:
            seconds = min(took(read, drawn, folder) for _ in range(TRIES))
        tracemalloc.start()
        attempt(read, drawn, folder)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        found["inputs"] += 1
        found["slow"] += seconds > MOST_SECONDS
        found["large"] += peak > MOST_BYTES
        found["most_seconds"] = max(found["most_seconds"], seconds)
        found["most_bytes"] = max(found["most_bytes"], peak)

    logger = logging.getLogger("fedit_app")
    logger.setLevel(logging.CRITICAL)
    check()
    logger.setLevel(logging.NOTSET)
    return found
