"""The attacks end to end on a tiny model, and their parts where the answer is known."""

import json
import math

import numpy as np
import pytest

from benchmarks import attacks
from benchmarks.attacks_poisoning import Node, poison
from benchmarks.attacks_reading import DEFENCES, Reader, Seen, distinct_subjects
from fedit_app.editing.covariance import CovarianceSource
from fedit_app.editing.settings import edit_settings
from fedit_app.editing.workbench import Workbench
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.ledger import Ledger
from fedit_app.support.errors import FedEditError

SUBJECTS = ["Reuters", "Cardiff", "Basler", "Zürich", "Boeing", "The Lancet"]


@pytest.fixture
def data(tmp_path):
    records = [
        {
            "case_id": number,
            "requested_rewrite": {
                "prompt": "{} is in",
                "subject": subject,
                "target_new": {"str": "Basel"},
                "target_true": {"str": "London"},
            },
            "paraphrase_prompts": [f"Everybody knows that {subject} is in"],
            "neighborhood_prompts": ["The head office is in"],
        }
        for number, subject in enumerate(SUBJECTS)
    ]
    file = tmp_path / "counterfact.json"
    file.write_text(json.dumps(records), encoding="utf-8")
    lines = tmp_path / "subjects.jsonl"
    lines.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    text = tmp_path / "text.txt"
    text.write_text("The museum of Cardiff is in the city. " * 40, encoding="utf-8")
    return ["--data", str(file), "--subjects", str(lines), "--text", str(text)]


@pytest.fixture(scope="module")
def bench(tiny_model):
    settings = edit_settings("llama", tiny_model.n_layers, tiny_model.d_model)
    source = CovarianceSource(tokens=400)
    return Workbench(tiny_model, "memit", settings, 1, source, 0, precision="float32")


REQUESTS = [
    EditRequest(
        name, name, "{} is in", "Basel", "London", neighborhood_prompts=("The head office is in",)
    )
    for name in SUBJECTS[:4]
]


@pytest.fixture(scope="module")
def mkvs(bench):
    return bench.compute(REQUESTS, Ledger(bench.fingerprint), "honest", 1)


def test_attacks(tiny_folder, data, tmp_path, capsys):
    file = tmp_path / "figures.json"
    sizes = {"records": 3, "edited": 2, "chosen": 2, "probes": 1, "candidates": 5}
    sizes |= {"searched": 1, "search-steps": 2, "text-rows": 1}
    given = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    attacks.run(
        [*given, *data, "--model", str(tiny_folder), "--json", str(file), "--device", "cpu"]
    )
    found = json.loads(file.read_text())["figures"]

    assert all(map(math.isfinite, found.values()))
    assert found["attacks/screening/false_rejections"] == 0
    for name in [name for name in DEFENCES if not name.startswith("sealed")]:
        assert 0 <= found[f"attacks/reading/{name}/target 1"] <= 1
        assert (
            found[f"attacks/reading/{name}/target 10"] >= found[f"attacks/reading/{name}/target 1"]
        )
        assert f"attacks/reading/{name}/score" in found
    assert found["attacks/poisoning/huge shifts/accepted"] == 2
    assert found["attacks/poisoning/huge shifts, screening/accepted"] == 0
    assert found["attacks/poisoning/wrong answers, quorum of 2/offered"] == 0
    assert found["attacks/poisoning/replays, screening/kl"] == pytest.approx(
        found["attacks/poisoning/nothing/kl"]
    )
    with pytest.raises(FedEditError, match="--subjects"):
        attacks.run([*given, *data, "--subjects", "nowhere", "--model", str(tiny_folder)])


def test_subjects_are_found_by_their_keys_and_not_without(bench, mkvs):
    reader = Reader(bench, REQUESTS, SUBJECTS, searched=1, steps=1)
    seen = [Seen(mkv.v_star, mkv.lookup_key) for mkv in mkvs]
    blind = reader.read([Seen(None, None) for _ in mkvs])

    assert reader.read(seen)["subject 1"] == 1.0, "the prompts begin with their subjects"
    assert set(blind.values()) == {None}
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((64, 32)))[0].astype("f4")
    turned = [
        Seen(None, rotation @ mkv.lookup_key, lambda keys: keys @ keys.new_tensor(rotation.T))
        for mkv in mkvs
    ]
    assert reader.read(turned)["subject 1"] == 1.0, "a projection that is known hides nothing"


def test_a_sketch_hides_the_subject_from_who_has_not_its_key(bench, mkvs):
    reader = Reader(bench, REQUESTS, SUBJECTS, searched=1, steps=1)
    server, betrayed = (
        reader.read([DEFENCES[name].seen(mkv) for mkv in mkvs])
        for name in ("sealed", "sealed, key betrayed")
    )

    assert server["target 10"] is betrayed["target 10"] is None
    assert betrayed["subject 1"] == 1.0
    assert server["subject 1"] < 1.0


def test_candidates_hold_the_subjects_themselves_once():
    listed = ["b", "a", " c ", "", "d", "e"]
    assert distinct_subjects(["a", "x"], listed, 4) == ["a", "x", "b", "c"]


def test_a_replay_changes_nothing_but_is_a_vote(bench, mkvs):
    node = Node(
        bench=bench,
        honest=mkvs,
        requests=REQUESTS,
        chosen=[EditRequest("c", "Boeing", "{} is in", "Cardiff", "London")],
        probes=REQUESTS[:1],
        text=[tuple(range(20, 60))],
    )
    before = poison(node, "nothing")[""]
    replayed = poison(node, "replays")
    assert all(found["kl"] == before["kl"] for found in replayed.values())
    assert replayed["quorum of 2"]["offered"] > 0, "a replay is a vote"
