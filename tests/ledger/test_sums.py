"""A ledger of many MKVs is solved by sums that it keeps: a slot costs what comes and goes."""

import dataclasses
import shutil

import numpy as np
import pytest
import tiny
import torch
from editing.cases import EASY, SETTINGS, relative

from fedit_app.editing.covariance import CovarianceSource
from fedit_app.editing.kept_sums import pairs_of
from fedit_app.editing.solver import sums_are_cheaper
from fedit_app.editing.workbench import Workbench
from fedit_app.ledger.edited_model import LEDGER, write_edited_model
from fedit_app.ledger.ledger import Ledger
from fedit_app.ledger.mkv_files import MKVFiles
from fedit_app.ledger.verify import verify
from fedit_app.mkv import create

FAST = dataclasses.replace(SETTINGS, steps=3, layers=(1, 2), covariance_weight=0.5)
SOURCE = CovarianceSource(tokens=500)
SUMS = [f"layer-{i}" for i in range(len(FAST.layers))]


@pytest.fixture(scope="module")
def bench():
    return Workbench(tiny.editable("llama"), "memit", FAST, 2, SOURCE, 0)


@pytest.fixture(scope="module")
def many(bench):
    """Random MKVs of the workbench, so many that they are solved by sums."""
    random, model = np.random.default_rng(0), bench.model
    n, layers = 2 * model.d_ff, len(FAST.layers)
    assert sums_are_cheaper(n, model.d_ff, model.d_model)
    shapes = (layers, model.d_ff), (layers, model.d_model), model.d_model, model.d_model
    return [
        create("bank", 1, bench.fingerprint, *(0.1 * random.standard_normal(s) for s in shapes))
        for _ in range(n)
    ]


@pytest.fixture
def ledger(bench, many, tmp_path):
    """A ledger of many MKVs that has been solved once, opened anew."""
    Ledger.open(tmp_path / "ledger", bench.fingerprint).accept(many, 1)
    bench.deltas(Ledger.open(tmp_path / "ledger", bench.fingerprint))
    return Ledger.open(tmp_path / "ledger", bench.fingerprint)


@pytest.fixture
def read(monkeypatch):
    """Ids of the MKVs whose files are read."""
    plain, found = MKVFiles.read, []

    def counted(files, id_):
        found.append(id_)
        return plain(files, id_)

    monkeypatch.setattr(MKVFiles, "read", counted)
    return found


def fresh(bench, ledger):
    """Delta_l of a ledger, all of its MKVs read."""
    widths = bench.model.d_ff, bench.model.d_model
    return bench.solver.deltas(pairs_of(ledger.holding, *widths))


def assert_close(found, expected):
    assert all(relative(found[layer], expected[layer]) < 1e-9 for layer in expected)


def test_a_slot_on_top_of_many_mkvs_reads_none_of_them(bench, many, ledger, read):
    computed = bench.compute(EASY[:2], ledger.without(()), "clinic", 2)
    ledger.accept(computed, 2)
    found = bench.deltas(ledger)
    assert read == []
    reopened = Ledger.open(ledger.folder, bench.fingerprint)
    again = bench.deltas(reopened)
    assert read == [] and all(torch.equal(again[layer], found[layer]) for layer in found)
    assert_close(found, fresh(bench, ledger))
    without_sums = Ledger(bench.fingerprint)
    without_sums.accept(many, 1)
    expected = bench.compute(EASY[:2], without_sums, "clinic", 2)
    for one, other in zip(computed, expected, strict=True):
        assert np.allclose(one.shifts, other.shifts, rtol=0, atol=0.02 * np.abs(one.shifts).max())


def test_a_rollback_and_what_is_overruled_read_what_they_change(bench, many, ledger, read):
    ids, ledger = [mkv.id for mkv in many], Ledger.open(ledger.folder, bench.fingerprint)
    ledger.refuse(ids[:3], "rolled back")
    ledger.overrule({ids[4]: ids[5]})
    found = bench.deltas(ledger)
    gone = {*ids[:3], ids[4]}
    assert set(read) == gone
    assert_close(found, fresh(bench, ledger))
    ledger.drop([ids[5]])
    assert ids[4] in {mkv.id for mkv in ledger.holding}
    assert_close(bench.deltas(ledger), fresh(bench, ledger))


def test_without_its_sums_a_ledger_is_to_the_bit_one_that_never_had_what_it_dropped(
    bench, many, ledger, tmp_path
):
    ledger.drop([mkv.id for mkv in many[:3]])
    bench.deltas(ledger)
    shutil.rmtree(ledger.folder / "sums")
    never = Ledger.open(tmp_path / "never", bench.fingerprint)
    never.accept(many[3:], 1)
    found, expected = bench.deltas(ledger), bench.deltas(never)
    assert all(torch.equal(found[layer], expected[layer]) for layer in expected)


def test_a_change_that_reaches_no_disk_leaves_sums_that_are_put_right(bench, many, ledger):
    before = fresh(bench, ledger)
    with pytest.raises(RuntimeError), ledger.step():
        ledger.refuse([mkv.id for mkv in many[:3]], "rolled back")
        bench.deltas(ledger)
        raise RuntimeError
    assert_close(bench.deltas(Ledger.open(ledger.folder, bench.fingerprint)), before)


def test_few_mkvs_are_solved_as_ever_and_nothing_is_kept(bench, many, tmp_path):
    few = many[: bench.model.d_ff // 2]
    on_disk, in_memory = Ledger.open(tmp_path, bench.fingerprint), Ledger(bench.fingerprint)
    on_disk.accept(few, 1)
    in_memory.accept(few, 1)
    found, expected = bench.deltas(on_disk), bench.deltas(in_memory)
    assert all(torch.equal(found[layer], expected[layer]) for layer in expected)
    assert not (tmp_path / "sums").exists()


def test_verify_checks_the_sums_and_does_without_them(bench, ledger):
    folder = ledger.folder / "sums"
    assert sorted(file.name for file in folder.iterdir()) == SUMS
    assert verify(ledger.folder).damages == []
    file = folder / SUMS[1]
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    (damage,) = verify(ledger.folder).damages
    assert str(file) in damage
    shutil.rmtree(folder)
    assert verify(ledger.folder).damages == []
    assert_close(bench.deltas(ledger), fresh(bench, ledger))


def test_an_edited_model_is_handed_on_without_sums(bench, ledger, tmp_path):
    write_edited_model(bench, ledger, tmp_path / "model", "delta")
    names = {part.name for part in (tmp_path / "model" / LEDGER).iterdir()}
    assert {"index.json", "journal.jsonl", "mkvs"} <= names and "sums" not in names
