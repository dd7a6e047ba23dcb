"""The ledger on disk: what it keeps, that order does not matter, that dropping is exact."""

import dataclasses
import gc
import json
import os

import numpy as np
import pytest
import torch

from fedit_app.editing.kept_sums import pairs_of
from fedit_app.editing.solver import Solver
from fedit_app.ledger import ledger as module
from fedit_app.ledger import mkv_files
from fedit_app.ledger.index import read_index
from fedit_app.ledger.ledger import Ledger
from fedit_app.ledger.mkv_files import MKVFiles
from fedit_app.mkv import create, to_bytes
from fedit_app.support.errors import FedEditError

LAYERS, D_FF, D_MODEL = 2, 12, 8


def make_mkvs(n, seed=0):
    random = np.random.default_rng(seed)
    return [
        create(
            node="clinic",
            slot=1,
            fingerprint="model-a",
            keys=random.standard_normal((LAYERS, D_FF)),
            shifts=random.standard_normal((LAYERS, D_MODEL)),
            v_star=random.standard_normal(D_MODEL),
            h0=random.standard_normal(D_MODEL),
        )
        for _ in range(n)
    ]


def vectors(ledger):
    return pairs_of(ledger.holding, D_FF, D_MODEL)


def deltas(ledger):
    c = torch.eye(D_FF, dtype=torch.float64)
    return Solver({3: c, 4: 2 * c}, 1.5).deltas(vectors(ledger))


def assert_same_bits(one, other):
    a, b = vectors(one), vectors(other)
    for i in range(LAYERS):
        assert torch.equal(a.keys[:, i], b.keys[:, i])
        assert torch.equal(a.shifts[:, i], b.shifts[:, i])
    first, second = deltas(one), deltas(other)
    assert all(torch.equal(first[layer], second[layer]) for layer in (3, 4))


def test_a_reopened_ledger_is_the_same(tmp_path):
    folder = tmp_path / "state" / "node"
    mkvs = make_mkvs(5)
    ledger = Ledger.open(folder, "model-a")
    assert len(ledger) == 0
    ledger.accept(mkvs[:2], 1, {mkvs[0].id: ["fact-1"]})
    ledger.accept(mkvs[2:], 2, {mkvs[3].id: ["fact-2", "fact-3"]})
    reopened = Ledger.open(folder, "model-a")
    assert len(reopened) == 5
    assert reopened.fulfilled() == {
        "fact-1": mkvs[0].id,
        "fact-2": mkvs[3].id,
        "fact-3": mkvs[3].id,
    }
    for mkv in mkvs:
        entry = reopened.entries[mkv.id]
        assert entry.slot == (1 if mkv in mkvs[:2] else 2)
        assert entry.mkv.node == "clinic"
        for field in ("keys", "shifts", "v_star", "h0"):
            assert np.array_equal(getattr(entry.mkv, field), getattr(mkv, field))
    assert_same_bits(reopened, ledger)


def test_an_empty_ledger_changes_nothing():
    none = vectors(Ledger("model-a"))
    assert len(none) == len(none.shifts) == 0
    assert none.layer(1).widths == (D_FF, D_MODEL)
    assert not any(delta.any() for delta in deltas(Ledger("model-a")).values())


def test_the_order_of_arrival_changes_no_bit(tmp_path):
    mkvs = make_mkvs(9)
    at_once, one_by_one = Ledger("model-a"), Ledger.open(tmp_path, "model-a")
    at_once.accept(mkvs, 1)
    for slot, number in enumerate((4, 8, 0, 2, 6, 1, 7, 5, 3), start=1):
        one_by_one.accept([mkvs[number]], slot)
    assert_same_bits(at_once, one_by_one)
    assert_same_bits(at_once, Ledger.open(tmp_path, "model-a"))


def test_dropped_is_as_if_never_accepted(tmp_path):
    mkvs = make_mkvs(6)
    never = Ledger("model-a")
    never.accept(mkvs[:4], 1)
    dropped = Ledger.open(tmp_path, "model-a")
    dropped.accept(mkvs, 1)
    assert not torch.equal(deltas(dropped)[3], deltas(never)[3])
    dropped.drop([mkvs[4].id, mkvs[5].id])
    assert_same_bits(dropped, never)
    reopened = Ledger.open(tmp_path, "model-a")
    assert_same_bits(reopened, never)
    reopened.accept(mkvs[4:], 2)
    assert len(Ledger.open(tmp_path, "model-a")) == 6, "what was dropped can come back"


def test_known_mkvs_keep_their_entry_and_gain_requests(tmp_path):
    (mkv,) = make_mkvs(1)
    ledger = Ledger.open(tmp_path, "model-a")
    ledger.accept([mkv], 1)
    before = deltas(ledger)
    ledger.accept([mkv], 3, {mkv.id: ("fact-1",)})
    ledger.accept([mkv], 4, {mkv.id: ("fact-1", "fact-2")})
    for found in (ledger, Ledger.open(tmp_path, "model-a")):
        assert len(found) == 1
        assert found.entries[mkv.id].slot == 1
        assert found.entries[mkv.id].requests == ("fact-1", "fact-2")
        assert torch.equal(deltas(found)[3], before[3])


def test_a_ledger_of_another_fingerprint_is_refused(tmp_path):
    Ledger.open(tmp_path, "model-a").accept(make_mkvs(1), 1)
    with pytest.raises(FedEditError, match="model-a, this run has model-b"):
        Ledger.open(tmp_path, "model-b")


def truncate(file):
    file.write_bytes(file.read_bytes()[:-9])


def flip_a_bit(file):
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "harm", [truncate, flip_a_bit, lambda file: file.unlink(), lambda file: file.write_bytes(b"")]
)
def test_a_damaged_file_is_named(tmp_path, harm):
    mkvs = make_mkvs(3)
    Ledger.open(tmp_path, "model-a").accept(mkvs, 1)
    (file,) = (tmp_path / "mkvs").iterdir()
    harm(file)
    with pytest.raises(FedEditError, match=f"ledger file.? {tmp_path / 'mkvs'}"):
        deltas(Ledger.open(tmp_path, "model-a"))


def test_a_missing_file_is_named_when_a_ledger_is_opened(tmp_path):
    mkvs = make_mkvs(3)
    for mkv in mkvs:
        Ledger.open(tmp_path, "model-a").accept([mkv], 1)
    (tmp_path / "mkvs" / "0000000002.mkvs").unlink()
    with pytest.raises(FedEditError, match=f"{tmp_path / 'mkvs'}: none holds MKV {mkvs[1].id}"):
        Ledger.open(tmp_path, "model-a")


def test_a_file_is_read_when_its_vectors_are_asked_for_and_not_before(tmp_path, monkeypatch):
    mkvs = make_mkvs(9)
    Ledger.open(tmp_path, "model-a").accept(mkvs, 1, {mkvs[0].id: ["fact-1"]})
    plain, read = MKVFiles.read, []

    def counted(files, id_):
        read.append(id_)
        return plain(files, id_)

    monkeypatch.setattr(MKVFiles, "read", counted)
    ledger = Ledger.open(tmp_path, "model-a")
    assert {mkv.id for mkv in ledger.holding} == {mkv.id for mkv in mkvs} and ledger.fulfilled()
    assert read == []
    found = deltas(ledger)
    assert len(read) == 9
    monkeypatch.setattr(mkv_files, "BYTES_IN_MEMORY", 1)
    few = deltas(Ledger.open(tmp_path, "model-a"))
    assert len(read) > 18, "more is read anew when less is kept"
    assert all(torch.equal(few[layer], found[layer]) for layer in few)


def test_a_stored_mkv_is_the_one_that_was_accepted(tmp_path):
    (mkv,) = make_mkvs(1)
    Ledger.open(tmp_path, "model-a").accept([mkv], 3)
    (stored,) = Ledger.open(tmp_path, "model-a").holding
    assert to_bytes(stored) == to_bytes(mkv)
    renamed = dataclasses.replace(stored, node="bank")
    assert (renamed.node, renamed.id, renamed.slot) == ("bank", mkv.id, mkv.slot)
    assert np.array_equal(renamed.keys, mkv.keys)
    with pytest.raises(AttributeError, match="has no attribute 'text'"):
        _ = stored.text


def test_a_file_that_holds_another_mkv_is_named(tmp_path):
    mkvs = make_mkvs(2)
    for mkv in mkvs:
        Ledger.open(tmp_path, "model-a").accept([mkv], 1)
    one, other = sorted((tmp_path / "mkvs").iterdir())
    one.write_bytes(other.read_bytes().replace(mkvs[1].id.encode(), mkvs[0].id.encode()))
    with pytest.raises(FedEditError, match=f"ledger file {one}: damaged .*{mkvs[1].id}"):
        deltas(Ledger.open(tmp_path, "model-a"))


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 99, "fingerprint": "model-a"}'])
def test_a_damaged_index_is_named(tmp_path, text):
    Ledger.open(tmp_path, "model-a").accept(make_mkvs(1), 1)
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(FedEditError, match=f"ledger index {tmp_path / 'index.json'}"):
        Ledger.open(tmp_path, "model-a")


def test_a_missing_ledger_cannot_be_read(tmp_path):
    with pytest.raises(FedEditError, match="not found"):
        read_index(tmp_path)


def test_a_crash_before_the_index_leaves_the_old_ledger(tmp_path, monkeypatch):
    mkvs = make_mkvs(4)
    old = Ledger.open(tmp_path, "model-a")
    old.accept(mkvs[:2], 1)

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_index", crash)
        with pytest.raises(KeyboardInterrupt):
            Ledger.open(tmp_path, "model-a").accept(mkvs[2:], 2)
    assert len(list((tmp_path / "mkvs").iterdir())) == 2
    after = Ledger.open(tmp_path, "model-a")
    assert_same_bits(after, old)
    after.accept(mkvs[2:], 2)
    assert len(Ledger.open(tmp_path, "model-a")) == 4


def test_a_crash_while_an_mkv_is_written_leaves_the_old_ledger(tmp_path, monkeypatch):
    mkvs = make_mkvs(2)
    Ledger.open(tmp_path, "model-a").accept(mkvs[:1], 1)

    def crash(_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", crash)
        with pytest.raises(OSError, match="no space"):
            Ledger.open(tmp_path, "model-a").accept(mkvs[1:], 2)
    assert [file.name for file in (tmp_path / "mkvs").iterdir()] == ["0000000001.mkvs"]
    assert list(Ledger.open(tmp_path, "model-a").entries) == [mkvs[0].id]


def test_the_index_names_no_text(tmp_path):
    mkvs = make_mkvs(1)
    Ledger.open(tmp_path, "model-a").accept(mkvs, 1, {mkvs[0].id: ["fact-1"]})
    (row,) = json.loads((tmp_path / "index.json").read_text())["entries"]
    assert row == {
        "id": mkvs[0].id,
        "node": "clinic",
        "slot": 1,
        "requests": ["fact-1"],
        "overruled_by": "",
        "votes": 1,
        "signature": None,
        "warm_started": False,
    }


def test_what_is_overruled_does_not_count_until_the_other_is_dropped(tmp_path):
    mkvs = make_mkvs(4)
    without = Ledger("model-a")
    without.accept(mkvs[:3], 1)
    ledger = Ledger.open(tmp_path, "model-a")
    ledger.accept(mkvs, 1)
    ledger.overrule({mkvs[3].id: mkvs[0].id})
    for found in (ledger, Ledger.open(tmp_path, "model-a")):
        assert len(found) == 3 and len(found.entries) == 4
        assert_same_bits(found, without)
    ledger.drop([mkvs[0].id])
    assert {mkv.id for mkv in Ledger.open(tmp_path, "model-a").holding} == {
        mkv.id for mkv in mkvs[1:]
    }


def test_votes_are_kept(tmp_path):
    mkvs = make_mkvs(2)
    ledger = Ledger.open(tmp_path, "model-a")
    ledger.accept(mkvs, 1)
    ledger.count_votes({mkvs[1].id: 3, "not in it": 2})
    entries = Ledger.open(tmp_path, "model-a").entries
    assert [entries[mkv.id].votes for mkv in mkvs] == [1, 3]


def test_a_released_request_is_open_again(tmp_path):
    mkvs = make_mkvs(1)
    ledger = Ledger.open(tmp_path, "model-a")
    ledger.accept(mkvs, 1, {mkvs[0].id: ["fact-1", "fact-2"]})
    ledger.release(["fact-1", "not in it"])
    reopened = Ledger.open(tmp_path, "model-a")
    assert reopened.fulfilled() == {"fact-2": mkvs[0].id}
    assert len(reopened) == 1


def test_a_step_reaches_the_disk_whole_or_not_at_all(tmp_path):
    mkvs = make_mkvs(3)
    Ledger.open(tmp_path, "model-a").accept(mkvs[:1], 1)
    broken = Ledger.open(tmp_path, "model-a")
    with pytest.raises(RuntimeError), broken.step():
        broken.accept(mkvs[1:2], 2)
        raise RuntimeError
    assert list(Ledger.open(tmp_path, "model-a").entries) == [mkvs[0].id]
    assert list(broken.entries) == [mkvs[0].id], "in memory it is as before the step, too"
    broken.accept(mkvs[2:], 2)
    broken.drop([mkvs[2].id])
    ledger = Ledger.open(tmp_path, "model-a")
    with ledger.step():
        ledger.accept(mkvs[1:], 2)
        ledger.overrule({mkvs[1].id: mkvs[2].id})
        assert len(Ledger.open(tmp_path, "model-a").entries) == 1
    assert len(Ledger.open(tmp_path, "model-a")) == 2


def test_a_ledger_without_some(tmp_path):
    mkvs = make_mkvs(3)
    ledger = Ledger.open(tmp_path, "model-a")
    ledger.accept(mkvs, 1)
    fewer = ledger.without({mkvs[0].id})
    fewer.drop([mkvs[1].id])
    assert [mkv.id for mkv in fewer.holding] == [mkvs[2].id]
    assert len(Ledger.open(tmp_path, "model-a")) == 3


def test_the_collector_runs_again_after_a_ledger_is_read_or_written(tmp_path):
    for collecting in (True, False):
        (gc.enable if collecting else gc.disable)()
        try:
            Ledger.open(tmp_path, "model-a").accept(make_mkvs(2), 1)
            assert gc.isenabled() == collecting
        finally:
            gc.enable()


def test_a_change_rewrites_what_the_index_says_of_an_mkv(tmp_path):
    mkvs = make_mkvs(2)
    Ledger.open(tmp_path, "model-a").accept(mkvs, 1)
    ledger = Ledger.open(tmp_path, "model-a")
    ledger.count_votes({mkvs[0].id: 3})
    votes = {row["id"]: row["votes"] for row in read_index(tmp_path)["entries"]}
    assert votes == {mkvs[0].id: 3, mkvs[1].id: 1}
