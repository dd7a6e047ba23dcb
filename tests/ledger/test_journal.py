"""The journal of a ledger: what it says, that its chain holds, and what a crash leaves."""

import json
import os

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from ledger.test_ledger import make_mkvs

from fedit_app.ledger import journal
from fedit_app.ledger import ledger as module
from fedit_app.ledger.index import read_index
from fedit_app.ledger.ledger import Ledger
from fedit_app.mkv.authorship import SigningKey
from fedit_app.support.errors import FedEditError


def told(ledger):
    """(change, id, slot, reason) of every record."""
    return [(r["change"], r["mkv"], r["slot"], r["reason"]) for r in ledger.history()]


def rows(folder):
    """What the index says of entries and refusals, by id."""
    index = read_index(folder)
    return tuple({row["id"]: row for row in index[part]} for part in ("entries", "refused"))


@pytest.fixture
def mkvs():
    return sorted(make_mkvs(4), key=lambda mkv: mkv.id)


@pytest.fixture
def ledger(tmp_path, mkvs):
    """A ledger in which everything has happened once."""
    ledger = Ledger.open(tmp_path / "ledger", "model-a")
    one, two, three, four = mkvs
    with ledger.step("edit", 1):
        ledger.accept([one, two], 1, {one.id: ["fact-1"]})
    with ledger.step("re-edit", 2) as step:
        ledger.accept([three, four], 2)
        ledger.overrule({two.id: three.id})
        ledger.count_votes({one.id: 3})
        ledger.hand_over(one.id, four.id)
        step.probes = {"before": {"score": 0.5}, "after": {"score": 0.25}}
    with ledger.step("rolled back"):
        ledger.refuse([three.id], "wrong")
    ledger.allow([three.id])
    return ledger


def test_every_change_is_a_record(ledger, mkvs):
    one, two, three, four = (mkv.id for mkv in mkvs)
    assert told(ledger) == [
        ("accepted", one, 1, "edit"),
        ("accepted", two, 1, "edit"),
        ("requests", one, 2, "re-edit"),
        ("votes", one, 2, "re-edit"),
        ("overruled", two, 2, "re-edit"),
        ("accepted", three, 2, "re-edit"),
        ("accepted", four, 2, "re-edit"),
        ("dropped", three, 2, "rolled back"),
        ("refused", three, 0, "rolled back"),
        ("holds", two, 1, "rolled back"),
        ("allowed", three, 0, ""),
    ]
    records = ledger.history()
    assert [record["sequence"] for record in records] == list(range(1, 12))
    assert {record["node"] for record in records} == {"clinic"}
    assert all(record["time"].endswith("Z") for record in records)
    measured = {"before": {"score": 0.5}, "after": {"score": 0.25}}
    assert [record["probes"] for record in records] == [None] * 5 + [measured] * 2 + [None] * 4
    assert records[-1]["hash"] == ledger.head


def test_the_journal_leads_to_the_index(ledger):
    assert journal.replay(ledger.history()) == rows(ledger.folder)
    assert len(rows(ledger.folder)[0]) == 3


def test_a_signature_is_kept_as_it_came(tmp_path, mkvs):
    signed = SigningKey(ec.generate_private_key(ec.SECP384R1())).sign(mkvs[1])
    Ledger.open(tmp_path, "model-a").accept([mkvs[0], signed], 1)
    reopened = Ledger.open(tmp_path, "model-a")
    assert [reopened.entries[mkv.id].mkv.author for mkv in mkvs[:2]] == [None, signed.author]
    assert reopened.history()[1]["set"]["signature"] == vars(signed.author)


def test_what_changes_nothing_leaves_no_record(ledger, mkvs):
    before = ledger.head, (ledger.folder / "index.json").stat().st_mtime_ns
    ledger.accept(mkvs[:2], 5)
    ledger.count_votes({mkvs[0].id: 3})
    with ledger.step("edit", 7):
        pass
    assert (ledger.head, (ledger.folder / "index.json").stat().st_mtime_ns) == before


def test_the_order_of_arrival_leaves_the_same_records(tmp_path, mkvs):
    one, other = (Ledger.open(tmp_path / name, "model-a") for name in ("one", "other"))
    one.accept(mkvs, 1)
    other.accept(mkvs[::-1], 1)
    assert told(one) == told(other)


def test_refused_mkvs_and_their_requests(tmp_path, mkvs):
    ledger = Ledger.open(tmp_path, "model-a")
    ledger.accept(mkvs, 1, {mkvs[0].id: ["fact-1"], mkvs[1].id: ["fact-2"]})
    ledger.refuse([mkvs[0].id], "withdrawn", withdrawn=True)
    ledger.refuse([mkvs[1].id], "of no use")
    for found in (ledger, Ledger.open(tmp_path, "model-a")):
        assert found.set_aside == {"fact-1"}
        assert {id_: r.reason for id_, r in found.refused.items()} == {
            mkvs[0].id: "withdrawn",
            mkvs[1].id: "of no use",
        }
        assert not found.refused.keys() & found.entries.keys()
    ledger.allow([mkvs[0].id])
    assert Ledger.open(tmp_path, "model-a").set_aside == set()


# Crashes


class Crash(BaseException):
    """The process ends here."""


def crash(*_):
    raise Crash


def half_written(plain):
    """Let the journal get half of what is to be written."""

    def extend(file, head, records):
        plain(file, head, records)
        with file.open("r+b") as stream:
            stream.truncate((head.bytes + file.stat().st_size) // 2)
        raise Crash

    return extend


def left_over(folder) -> int:
    return journal.surplus(folder / "journal.jsonl", read_index(folder)["journal"])


@pytest.mark.parametrize("where", ["mkv", "journal", "index"])
def test_a_crash_between_two_writes(ledger, mkvs, monkeypatch, where):
    before, records = rows(ledger.folder), ledger.history()
    with monkeypatch.context() as patch:
        if where == "mkv":
            patch.setattr(os, "fsync", crash)
        elif where == "journal":
            patch.setattr(journal, "extend", half_written(journal.extend))
        else:
            patch.setattr(module, "write_index", crash)
        with pytest.raises(Crash):
            ledger.accept([mkvs[2]], 4)
    after = Ledger.open(ledger.folder, "model-a")
    assert (rows(ledger.folder), after.history()) == (before, records)
    assert bool(
        journal.surplus(ledger.folder / "journal.jsonl", read_index(ledger.folder)["journal"])
    ) == (where != "mkv")

    with after.step("once more"):
        after.accept([mkvs[2]], 5)
    assert told(Ledger.open(ledger.folder, "model-a"))[-1] == (
        "accepted",
        mkvs[2].id,
        5,
        "once more",
    )
    assert (
        journal.surplus(ledger.folder / "journal.jsonl", read_index(ledger.folder)["journal"]) == 0
    )
    assert journal.replay(after.history()) == rows(ledger.folder)


def test_two_processes_do_not_overwrite_each_other(ledger, mkvs):
    stale = Ledger.open(ledger.folder, "model-a")
    ledger.refuse([mkvs[0].id], "wrong")
    with pytest.raises(FedEditError, match="another process has changed it"):
        stale.accept([mkvs[2]], 3)
    assert mkvs[0].id in Ledger.open(ledger.folder, "model-a").refused


# Damage


def edit(lines, number, **changes):
    record = json.loads(lines[number])
    lines[number] = json.dumps({**record, **changes})


DAMAGES = {
    "edited": lambda lines: edit(lines, 3, set={"votes": 9}),
    "edited with a new hash": lambda lines: edit(lines, 3, hash="0" * 64),
    "removed": lambda lines: lines.pop(2),
    "exchanged": lambda lines: lines.insert(2, lines.pop(3)),
    "doubled": lambda lines: lines.insert(2, lines[2]),
    "no json": lambda lines: lines.__setitem__(4, "{"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found(ledger, name):
    file = ledger.folder / "journal.jsonl"
    lines = file.read_text().splitlines()
    DAMAGES[name](lines)
    text = "\n".join(lines)
    # As long as before, so that only the chain can tell.
    file.write_text(text.ljust(file.stat().st_size - 1) + "\n")
    head = read_index(ledger.folder)["journal"]
    found = [f for f in journal.examined(file, head, "model-a") if isinstance(f, str)]
    assert found and all(f"ledger journal {file}" in text for text in found)
    with pytest.raises(FedEditError, match="ledger journal"):
        journal.read(file, head, "model-a")


def test_a_truncated_journal_is_not_opened(ledger):
    file = ledger.folder / "journal.jsonl"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FedEditError, match="shorter than the"):
        Ledger.open(ledger.folder, "model-a")
    file.unlink()
    with pytest.raises(FedEditError, match="cannot be read"):
        Ledger.open(ledger.folder, "model-a")


def test_a_journal_of_another_index_is_not_opened(ledger, tmp_path, mkvs):
    other = Ledger.open(tmp_path / "other", "model-a")
    with other.step("edit", 1):
        other.accept(mkvs, 1, {mkvs[0].id: ["fact-1"]})
    for slot in range(2, 20):
        other.accept([mkvs[0]], slot, {mkvs[0].id: [f"fact-{slot}"]})
    (ledger.folder / "journal.jsonl").write_bytes((other.folder / "journal.jsonl").read_bytes())
    with pytest.raises(FedEditError, match="is not the one that the index names"):
        Ledger.open(ledger.folder, "model-a")


@pytest.mark.parametrize(
    "harm",
    [
        lambda index: index.pop("journal"),
        lambda index: index["journal"].update(bytes="many"),
        lambda index: index["entries"][0].pop("votes"),
        lambda index: index["entries"][0].update(id="../../secret"),
        lambda index: index["entries"][0].update(signature={"public_key": 1}),
        lambda index: index.update(refused=[{}]),
    ],
)
def test_an_index_with_other_fields_is_damaged(ledger, harm):
    file = ledger.folder / "index.json"
    index = json.loads(file.read_text())
    harm(index)
    file.write_text(json.dumps(index))
    with pytest.raises(FedEditError, match=f"ledger index {file}: damaged"):
        Ledger.open(ledger.folder, "model-a")
