"""Organisations whose facts are about one subject: each keeps its own, and has the others'."""

import json

import inprocess
import pytest
import tiny

pytestmark = pytest.mark.usefixtures("users_cache")

FACTS = {
    "bank": [("Andreas Ivanschitz", "{} professionally plays the sport", "football")],
    "court": [("Andreas Ivanschitz", "{} was born in the city of", "Lisbon")],
    "museum": [("The Lancet", "{} is published in", "Edinburgh")],
}
WORDS = [word.encode() for facts in FACTS.values() for fact in facts for word in (fact[0], fact[2])]


@pytest.fixture
def federate(tmp_path):
    """Gives `federate(sealed, **options)`: results, grid and run folder of one slot."""

    def federate(facts=FACTS, sealed="off", tamper=lambda node_id, message: None, **changes):
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        for name, own in facts.items():
            lines = [
                {"id": f"{name}-{i}", "subject": s, "prompt": p, "target_new": t, "slot": 1}
                for i, (s, p, t) in enumerate(own)
            ]
            (data / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        folder = tmp_path / f"run-{sealed}"
        given = {key.replace("_", "-"): value for key, value in changes.items()}
        config = {
            **{"model": "smollm2-135m", "dataset": "jsonl", "data-path": str(data)},
            **{"num-slots": 1, "sealed": sealed, "output-dir": str(folder), "selection": "all"},
            **given,
        }
        results, grid = inprocess.federate(config, len(facts), tamper=tamper)
        return results, grid, folder

    return federate


def composed(results) -> dict[str, int]:
    return {name: node["composed"] for name, node in results["slots"][0]["nodes"].items()}


@pytest.mark.parametrize("sealed", ["on", *tiny.later("off")])
def test_two_organisations_learn_one_value_that_a_third_receives(federate, sealed):
    results, grid, folder = federate(sealed=sealed)
    assert composed(results) == {"bank": 1, "court": 1, "museum": 0}
    assert results["slots"][0]["conflicts"] == 0
    for node in results["nodes"].values():
        assert node["federation"]["accuracy"] == 1.0
    for message in [*grid.sent, *grid.received]:
        assert not any(word in message for word in WORDS)
