"""Bytes from anywhere: MKVs, data files, ledgers, quarantine lists. Nothing but a FedEditError."""

import contextlib
import json
import tempfile
from pathlib import Path

import numpy as np
from fuzz.inputs import JSON, altered, damaged, json_bytes
from hypothesis import given
from hypothesis import strategies as st

from fedit_app.facts.counterfact import read_counterfact
from fedit_app.facts.jsonl import read_requests
from fedit_app.facts.zsre import read_zsre
from fedit_app.ledger.ledger import Ledger
from fedit_app.mkv import create, mkv_from_bytes, to_bytes
from fedit_app.mkv.open_form import decode_open, encode_open
from fedit_app.node.quarantine import read_quarantine
from fedit_app.support.errors import FedEditError

RNG = np.random.default_rng(0)
MKVS = [
    create(
        f"node-{number}",
        1,
        "f" * 32,
        RNG.standard_normal((2, 6)),
        RNG.standard_normal((2, 4)),
        RNG.standard_normal(4),
        RNG.standard_normal(4),
        precision,
    )
    for number, precision in enumerate(["int8", "int8", "float16", "float32"])
]
FILES = [to_bytes(mkv) for mkv in MKVS]
ARRAYS, META = encode_open(MKVS[:2])

REQUEST = {
    "id": "a-1",
    "subject": "Reuters",
    "prompt": "The head office of {} is in",
    "target_new": "Toronto",
    "target_true": "London",
    "paraphrase_prompts": ["Reuters sits in"],
    "neighborhood_prompts": ["The BBC sits in"],
    "subject_prompts": ["Reuters is a"],
    "portability_prompts": ["The town of Reuters is in"],
    "portability_targets": ["Canada"],
    "reversed_prompt": "{} is the town of",
    "slot": 1,
}
COUNTERFACT = {
    "case_id": 3,
    "requested_rewrite": {
        "prompt": "{} is in",
        "relation_id": "P17",
        "subject": "Reuters",
        "target_new": {"str": "Toronto"},
        "target_true": {"str": "London"},
    },
    "paraphrase_prompts": ["Reuters sits in"],
    "neighborhood_prompts": ["The BBC sits in"],
}
KNOWEDIT = {
    "subject": "Reuters",
    "prompt": "The head office of Reuters is in",
    "target_new": "Toronto",
    "ground_truth": ["London"],
    "portability": {"Subject_Aliasing": [{"prompt": "It is in", "ground_truth": [["Toronto"]]}]},
    "locality": {"Relation_Specificity": [{"prompt": "Reuters makes", "ground_truth": [["news"]]}]},
}
RIPPLEEDITS = {
    "edit": {"prompt": "The city of Reuters is Toronto.", "subject_id": "Q1", "relation": "CITY"},
    "Relation_Specifity": [
        {
            "test_queries": [
                {
                    "prompt": "The owner of Reuters is",
                    "answers": [{"value": "Thomson"}],
                    "subject_id": "Q1",
                }
            ]
        }
    ],
}
MQUAKE = {
    "case_id": 1,
    "requested_rewrite": [COUNTERFACT["requested_rewrite"]],
    "questions": ["In which country is Reuters?"],
    "new_answer": "Canada",
}
WIKIBIGEDIT = {
    "subject": "Reuters",
    "update": "Where is Reuters?",
    "ans": "London",
    "rephrase": "In which city is Reuters?",
    "loc": "Where is the BBC?",
    "loc_ans": "London",
    "mhop": "In which country is Reuters?",
    "mhop_ans": "England",
}
QAEDIT = {
    "subject": "Reuters",
    "prompt": "Where is Reuters?",
    "target": "London",
    "locality": [{"loc": "Where is the BBC?", "loc_ans": "London"}],
}
ZSRE = {
    "subject": "Reuters",
    "src": "Where is Reuters?",
    "pred": "London",
    "rephrase": "In which city is Reuters?",
    "alt": "Toronto",
    "answers": ["London"],
    "loc": "nq question: where is the BBC?",
    "loc_ans": "London",
    "cond": "London >> Toronto || Where is Reuters?",
}
CSV = b"id,subject,prompt,target_new\r\na-1,Reuters,The office of {} is in,Toronto\r\n"


def attempt(function, *arguments):
    """What a function makes of its input; None where it refuses it."""
    with contextlib.suppress(FedEditError):
        return function(*arguments)
    return None


def read_file(reader, data: bytes, name: str):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_bytes(data)
        return attempt(reader, file)


@given(st.binary(max_size=400) | st.sampled_from(FILES).flatmap(damaged))
def test_mkv_files(data):
    mkv = attempt(mkv_from_bytes, data)
    assert mkv is None or any(to_bytes(mkv) == to_bytes(known) for known in MKVS) or mkv.id


@given(altered(META), st.sampled_from(sorted(ARRAYS)), st.data())
def test_mkv_messages(meta, name, data):
    arrays = dict(ARRAYS)
    shape = data.draw(st.lists(st.integers(0, 6), max_size=4))
    dtype = data.draw(st.sampled_from(["i1", "<f2", "<f4", "<f8", "<i8", "U3", "O", "?"]))
    arrays[name] = np.zeros(shape, dtype)
    attempt(decode_open, arrays, META)
    attempt(decode_open, ARRAYS, meta)
    attempt(decode_open, {key: value for key, value in ARRAYS.items() if key != name}, META)


@given(
    st.binary(max_size=200)
    | damaged(json_bytes(REQUEST))
    | altered(REQUEST).map(json_bytes)
    | damaged(CSV),
    st.sampled_from(["a.jsonl", "a.csv"]),
)
def test_edit_requests(data, name):
    read_file(read_requests, data, name)


@given(damaged(json_bytes([COUNTERFACT])) | altered([COUNTERFACT]).map(json_bytes))
def test_counterfact(data):
    read_file(read_counterfact, data, "a.json")


@given(damaged(json_bytes([ZSRE])) | altered([ZSRE]).map(json_bytes))
def test_zsre(data):
    read_file(read_zsre, data, "a.json")


def make_ledger(folder: Path) -> Ledger:
    ledger = Ledger.open(folder, "f" * 32)
    ledger.accept(MKVS[:2], 1, {MKVS[0].id: ["a-1"]})
    return ledger


@given(st.data())
def test_ledgers(data):
    """A ledger with a damaged file is refused, or gives whole MKVs; opening it writes nothing."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_ledger(root)
        files = sorted(file for file in root.rglob("*") if file.is_file())
        file = data.draw(st.sampled_from(files))
        before = file.read_bytes()
        if file.name == "index.json" and data.draw(st.booleans()):
            file.write_bytes(json_bytes(data.draw(altered(json.loads(before)))))
        else:
            file.write_bytes(data.draw(damaged(before)))
        left = {path: path.read_bytes() for path in files}
        ledger = attempt(Ledger.open, root, "f" * 32)
        if ledger is not None:
            attempt(lambda: [(mkv.keys, mkv.shifts, mkv.v_star) for mkv in ledger.holding])
            assert set(ledger.entries) <= {mkv.id for mkv in MKVS}
        assert {path: path.read_bytes() for path in files} == left


LIST = {"version": 1, "mkvs": [{"id": "0" * 32, "node": "eve", "slot": 1, "reason": "shape"}]}


@given(damaged(json_bytes(LIST)) | altered(LIST).map(json_bytes) | JSON.map(json_bytes))
def test_quarantine_lists(data):
    read_file(lambda file: read_quarantine(file.parent), data, "quarantine.json")
