"""`fedit rollback`: exact, for good, and heard by the others if it is one's own."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from fedit_app.cli.places import Place, find_place
from fedit_app.cli.rollback import _changes
from fedit_app.ledger.entries import LedgerEntry
from fedit_app.ledger.ledger import Ledger
from fedit_app.ledger.rollback import Rollback
from fedit_app.mkv import create
from fedit_app.pool.withdraw import receipts


def without_origin(sites, name, origin):
    """A ledger that never had the MKVs of a node."""
    ledger = sites.ledger(name)
    never = Ledger(ledger.fingerprint)
    for entry in ledger.entries.values():
        if entry.mkv.node != origin:
            never.accept([entry.mkv], entry.slot)
    return never


def deltas(sites, name, ledger):
    bench = find_place(sites.root / name).workbench(ledger)
    return bench.deltas(ledger)


def reasons(sites, name, id_):
    """(change, reason) of one MKV's records."""
    records = sites.ledger(name).history()
    return [(r["change"], r["reason"]) for r in records if r["mkv"] == id_]


def test_weights_are_those_of_a_ledger_that_never_had_them(fedit, sites):
    gone, never = sites.of("bank", "hospital"), without_origin(sites, "bank", "hospital")
    before = deltas(sites, "bank", sites.ledger("bank"))
    status, out, _ = fedit("rollback", sites.root / "bank", "--from", "hospital")

    assert status == 0
    assert "2 of 6 MKVs taken out; 6 held before, 4 hold now" in out
    assert all(id_ in out for id_ in gone)
    assert "| own requests | 2 | " in out and "| probes | 2 | " in out
    after = deltas(sites, "bank", sites.ledger("bank"))
    expected = deltas(sites, "bank", never)
    assert all(torch.equal(after[layer], expected[layer]) for layer in expected)
    assert not any(torch.equal(after[layer], before[layer]) for layer in expected)
    assert reasons(sites, "bank", gone[0])[1:] == [("dropped", "rollback"), ("refused", "rollback")]
    assert fedit("ledger", "verify", sites.root / "bank")[0] == 0
    listed = fedit("ledger", "list", sites.root / "bank")[1]
    assert "Not accepted again" in listed and listed.count("rolled back") == 2


def test_a_dry_run_measures_and_changes_nothing(fedit, sites):
    before = (sites.folder("bank") / "index.json").read_bytes()
    status, out, _ = fedit("rollback", sites.root / "bank", "--after", 0, "--dry-run")

    assert status == 0
    assert "6 of 6 MKVs taken out; 6 held before, 0 hold now" in out
    assert "dry run: nothing was changed" in out and "own requests" in out
    assert (sites.folder("bank") / "index.json").read_bytes() == before


@pytest.mark.parametrize(
    ("removed", "restored", "told"),
    [
        ("a", "", ["It is not accepted again, until"]),
        ("a", "x", ["It is not accepted", "It overruled x, which holds again."]),
        ("a", "xyz", ["It is not accepted", "It overruled x, y and z, which hold again."]),
        ("ab", "x", ["None of them is accepted", "They overruled x, which holds again."]),
        ("ab", "xy", ["None of them is accepted", "They overruled x and y, which hold again."]),
    ],
)
def test_one_and_several_are_told_apart(removed, restored, told):
    one = LedgerEntry(create("bank", 1, "f", *np.ones((2, 1, 3)), *np.ones((2, 3))), 1)
    ledger = Ledger("f", entries=dict.fromkeys(removed, one))
    plan = Rollback([*removed], Ledger("f"), [*restored], [], [], [], [])
    said = _changes(ledger, plan, Place(Path("ledger"), "court", None))["consequences"]
    lines = said.splitlines()
    assert len(lines) == len(told)
    assert all(line.startswith(beginning) for line, beginning in zip(lines, told, strict=True))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--from", "court"], "--from court: no such MKV in the ledger; it has MKVs of bank, "),
        (["--after", "1"], "--after 1: no such MKV in the ledger; its last slot is 1"),
        (["--mkv", "xyz"], "no MKV with an id that begins with 'xyz'"),
        (["--allow", "abc"], "no MKV with an id that begins with 'abc'"),
    ],
)
def test_what_is_not_there_cannot_be_taken_out(fedit, after_a_run, arguments, told):
    status, _, err = fedit("rollback", after_a_run.root / "bank", *arguments)
    assert status == 2 and told in err


def test_without_model_or_wish_nothing_is_measured(fedit, sites):
    id_, other = sites.of("bank", "museum")
    toml = sites.root / "bank" / "node.toml"
    text = re.sub(r'^model = ".*"', 'model = "/no/model"', toml.read_text(), flags=re.MULTILINE)
    toml.write_text(text)
    status, out, _ = fedit("rollback", sites.root / "bank", "--mkv", id_)
    assert status == 0 and "Metrics: not measured (model: folder /no/model does not exist" in out
    _, out, _ = fedit("rollback", sites.root / "bank", "--mkv", other, "--no-metrics")
    assert "etrics" not in out and "own requests" not in out
    assert sites.of("bank", "museum") == []


@pytest.mark.integration
def test_what_was_rolled_back_does_not_come_back_until_it_is_allowed(fedit, sites):
    gone = sites.of("bank", "hospital")
    fedit("rollback", sites.root / "bank", "--from", "hospital", "--no-metrics")
    results = sites.run("second", "bank", "hospital", "museum")

    assert results["failed_nodes"] == []
    assert sites.of("bank", "hospital") == []
    assert sites.of("museum", "hospital") == sites.of("hospital", "hospital") == gone
    status, out, _ = fedit("rollback", sites.root / "bank", "--allow", gone[0])
    assert status == 0 and "come with the next run" in out
    sites.run("third", "bank", "hospital", "museum")
    assert sites.of("bank", "hospital") == gone[:1]
    assert [change for change, _ in reasons(sites, "bank", gone[0])] == [
        *("accepted", "dropped", "refused", "allowed", "accepted")
    ]


@pytest.mark.integration
def test_a_withdrawal_reaches_the_others_in_the_next_run(fedit, sites):
    mine, kept = sites.of("bank", "bank")
    request = sites.ledger("bank").entries[mine].requests[0]
    status, out, _ = fedit("rollback", sites.root / "bank", "--mkv", mine[:10], "--no-metrics")
    assert status == 0
    assert "1 MKV of this node's own: withdrawn" in out and request in out
    assert "fedit pool prune RUN --node bank --id ID" in out
    results = sites.run("second", "bank", "hospital")

    assert results["failed_nodes"] == []
    assert sites.of("hospital", "bank") == sites.of("bank", "bank") == [kept]
    assert reasons(sites, "hospital", mine)[-1] == ("dropped", "withdrawn by bank")
    assert [row["node"] for row in sites.pool.rows(["node"])].count("bank") == 1, "of two"
    assert request not in sites.ledger("bank").fulfilled(), "it is set aside"
    assert list(receipts(sites.pool).values()) == [["bank", "hospital"]]
    # Who was not there hears of it later, also when the author is not.
    assert mine in sites.of("museum", "bank")
    sites.run("third", "museum", "hospital")
    assert sites.of("museum", "bank") == [kept]
    assert list(receipts(sites.pool).values()) == [["bank", "hospital", "museum"]]
    assert fedit("ledger", "verify", sites.root / "museum")[0] == 0


@pytest.mark.integration
def test_a_withdrawal_can_be_taken_back(fedit, sites):
    mine = sites.of("bank", "bank")[0]
    fedit("rollback", sites.root / "bank", "--mkv", mine, "--no-metrics")
    sites.run("second", "bank", "hospital")
    fedit("rollback", sites.root / "bank", "--allow", mine)
    sites.run("third", "bank", "hospital")

    assert len(sites.ledger("bank").fulfilled()) == 2
    assert len(sites.of("bank", "bank")) == len(sites.of("hospital", "bank")) == 2
