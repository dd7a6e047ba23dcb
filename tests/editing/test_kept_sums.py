"""Sums that are kept: as good as fresh ones, read in their place, and never believed blindly."""

import dataclasses
import json
import os

import numpy as np
import pytest
import torch
from editing.cases import EVERY_EDITOR, SETTINGS, relative

from fedit_app.editing import kept_sums
from fedit_app.editing.editors import EDITORS
from fedit_app.editing.kept_sums import KeptSums, pairs_of
from fedit_app.editing.pairs import LayerPairs, Sums
from fedit_app.mkv import create
from fedit_app.support.errors import FedEditError

LAYERS, D_FF, D_MODEL = (1, 2), 24, 10
CPU = torch.device("cpu")


def make_mkvs(n, seed=0):
    random = np.random.default_rng(seed)
    shapes = ((len(LAYERS), D_FF), (len(LAYERS), D_MODEL), D_MODEL, D_MODEL)
    return [
        create("node", 1, "model-a", *(random.standard_normal(shape) for shape in shapes))
        for _ in range(n)
    ]


MANY = make_mkvs(300)


class Kept:
    """The kept sums of a folder, for MKVs of `MANY`; `gone` are those that were asked for by id."""

    def __init__(self, folder):
        self.gone = []
        self.sums = KeptSums(folder, self._mkv)

    def _mkv(self, id_):
        self.gone.append(id_)
        return next(mkv for mkv in MANY if mkv.id == id_)

    def pairs(self, mkvs):
        return self.sums.pairs(mkvs, D_FF, D_MODEL)

    def of(self, mkvs, i=0):
        return self.pairs(mkvs).layer(i).sums(CPU)

    def damages(self):
        return list(self.sums.damages())


def fresh(mkvs, i=0):
    return pairs_of(mkvs, D_FF, D_MODEL).layer(i).sums(CPU)


def solver_of(editor):
    """A solver whose covariances leave some directions to the editors that ask for free ones."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(200, D_FF, dtype=torch.float64, generator=generator)
    c = (
        rows.T
        @ rows
        / 200
        * torch.logspace(0, -1.5, D_FF, dtype=torch.float64).outer(
            torch.logspace(0, -1.5, D_FF, dtype=torch.float64)
        )
    )
    threshold = float(torch.linalg.eigvalsh(c).median())
    settings = dataclasses.replace(SETTINGS, layers=LAYERS, null_space_threshold=threshold)
    return EDITORS[editor].solver({LAYERS[0]: c, LAYERS[1]: 2 * c}, settings, CPU)


@pytest.mark.parametrize("editor", EVERY_EDITOR)
def test_after_many_additions_and_removals_every_editor_solves_the_same(editor, tmp_path):
    solver, kept, random = solver_of(editor), Kept(tmp_path), np.random.default_rng(1)
    held = set(range(100))
    for _ in range(60):
        held ^= set(random.choice(len(MANY), 8, replace=False).tolist())
        mkvs = [MANY[i] for i in sorted(held)]
        found = solver.deltas(kept.pairs(mkvs))
    assert len(kept.gone) > 100, "nothing was taken out"
    for i, layer in enumerate(LAYERS):
        plain = LayerPairs(*(part[:] for part in rows_of(mkvs, i)))
        assert relative(found[layer], solver._by_pairs(layer, plain)) < 1e-9
        assert relative(found[layer], solver._by_sums(layer, plain)) < 1e-9


def rows_of(mkvs, i):
    layer = pairs_of(mkvs, D_FF, D_MODEL).layer(i)
    return layer.keys, layer.shifts


@pytest.mark.parametrize("editor", EVERY_EDITOR)
def test_new_pairs_are_solved_on_top_of_kept_sums_as_with_all_rows(editor, tmp_path):
    solver, kept = solver_of(editor), Kept(tmp_path)
    kept.of(MANY[:100], 1)
    pairs = kept.pairs(MANY[:100]).layer(1)
    keys, shifts = (part[:] for part in rows_of(MANY[100:120], 1))
    found = solver.delta(LAYERS[1], pairs.with_more(keys, shifts))
    expected = solver._by_pairs(LAYERS[1], LayerPairs(*(p[:] for p in rows_of(MANY[:120], 1))))
    assert relative(found, expected) < 1e-9


class Unread:
    """An MKV of whose vectors nobody may ask."""

    def __init__(self, mkv):
        self.id = mkv.id


def test_what_was_summed_before_is_not_read_again(tmp_path):
    before = Kept(tmp_path).of(MANY[:100])
    known = [Unread(mkv) for mkv in MANY[:100]]
    assert torch.equal(Kept(tmp_path).of(known).keys, before.keys)
    kept = Kept(tmp_path)
    changed = kept.of([*known[5:], *MANY[100:110]])
    assert sorted(kept.gone) == sorted(mkv.id for mkv in MANY[:5]), "what went, and no other"
    expected = fresh(MANY[5:110])
    assert relative(changed.keys, expected.keys) < 1e-13
    assert relative(changed.cross, expected.cross) < 1e-13


def test_the_same_history_gives_the_same_bits(tmp_path):
    found = []
    for name in ("one", "other"):
        kept = Kept(tmp_path / name)
        for mkvs in (MANY[:60], MANY[:90], MANY[3:90], MANY[1:100]):
            sums = kept.of(mkvs)
        found.append(sums)
    assert torch.equal(found[0].keys, found[1].keys)
    assert torch.equal(found[0].cross, found[1].cross)


def test_a_fresh_sum_is_due_when_rounding_has_added_too_much(tmp_path, monkeypatch):
    kept = Kept(tmp_path)
    kept.of(MANY[:100])
    added = kept.of(MANY[:110])
    assert 0 < added.drift < 1e-14
    monkeypatch.setattr(kept_sums, "MAX_DRIFT", added.drift * 1.5)
    again = kept.of(MANY[:120])
    assert torch.equal(again.keys, fresh(MANY[:120]).keys) and again.drift == 0


def test_the_bound_on_the_drift_holds(tmp_path):
    """What cancels has been rounded at its full size: large keys that came and went again."""
    large = [dataclasses.replace(m, keys=1000 * m.keys) for m in MANY[100:150]]
    sums, one = Sums.of_none(D_FF, D_MODEL, CPU), pairs_of(MANY[:100], D_FF, D_MODEL).layer(0)
    sums.add(one.keys, one.shifts)
    for times in (1, -1) * 5:
        more = pairs_of(large, D_FF, D_MODEL).layer(0)
        sums.add(more.keys, more.shifts, times)
    expected = fresh(MANY[:100])
    wrong = float((sums.keys - expected.keys).norm() / expected.keys.trace())
    assert 1e-14 < wrong < sums.drift < 1e-8


def test_a_kill_while_sums_are_written_leaves_those_before(tmp_path, monkeypatch):
    Kept(tmp_path).of(MANY[:100])
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def killed(*_):
        raise KeyboardInterrupt

    for call in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, killed)
            with pytest.raises(KeyboardInterrupt):
                Kept(tmp_path).of(MANY[:120])
        assert {f.name: f.read_bytes() for f in tmp_path.iterdir() if f.suffix != ".tmp"} == before
    assert relative(Kept(tmp_path).of(MANY[:120]).keys, fresh(MANY[:120]).keys) < 1e-13


def truncated(content):
    return content[:-8]


def flipped(content):
    return content[:-20] + bytes([content[-20] ^ 1]) + content[-19:]


def with_an_id_changed(content):
    line, rest = content.split(b"\n", 1)
    return line + b"\n" + bytes([rest[0] ^ 1]) + rest[1:]


def of_another_version(content):
    line, rest = content.split(b"\n", 1)
    return json.dumps({**json.loads(line), "version": 0}).encode() + b"\n" + rest


def said_to_be_huge(content):
    line, rest = content.split(b"\n", 1)
    return json.dumps({**json.loads(line), "d_ff": 10**9}).encode() + b"\n" + rest


@pytest.mark.parametrize(
    "harm",
    [truncated, flipped, with_an_id_changed, of_another_version, said_to_be_huge, lambda _: b""],
)
def test_damaged_sums_are_made_anew_and_named_by_the_check(tmp_path, harm):
    kept = Kept(tmp_path)
    kept.of(MANY[:100])
    assert kept.damages() == []
    (file,) = tmp_path.iterdir()
    file.write_bytes(harm(file.read_bytes()))
    (damage,) = kept.damages()
    assert str(file) in damage and "damaged" in damage
    assert torch.equal(kept.of(MANY[:100]).keys, fresh(MANY[:100]).keys)
    assert kept.damages() == []


def test_mkvs_with_a_pair_for_chats_are_read_and_summed_pair_by_pair(tmp_path):
    """Here each MKV has two pairs of one layer in the place of one pair of two."""
    kept, shape = Kept(tmp_path), (D_FF, D_MODEL, 2)
    layer = pairs_of(MANY, *shape).layer(0)
    keys = torch.from_numpy(np.concatenate([mkv.keys for mkv in MANY])).double()
    shifts = torch.from_numpy(np.concatenate([mkv.shifts for mkv in MANY])).double()
    assert len(layer) == len(keys) == 600 and layer.widths == (D_FF, D_MODEL)
    for rows in (slice(None), slice(3, 8), slice(4, 7), slice(599, 600), slice(5, 5)):
        assert torch.equal(layer.keys[rows], keys[rows])
        assert torch.equal(layer.shifts[rows], shifts[rows])
    for mkvs in (MANY[:100], MANY[20:130]):
        found = kept.sums.pairs(mkvs, *shape).layer(0).sums(CPU)
        expected = pairs_of(mkvs, *shape).layer(0).sums(CPU)
        assert relative(found.keys, expected.keys) < 1e-13
        assert relative(found.cross, expected.cross) < 1e-13
    assert len(kept.gone) == 20, "the second sums were not made from the first"
    assert kept.damages() == []
    assert torch.equal(kept.of(MANY[20:130]).keys, fresh(MANY[20:130]).keys)


@pytest.mark.parametrize("part", ["keys", "cross"])
def test_sums_of_other_mkvs_than_they_name_are_found_by_the_check(tmp_path, part):
    kept = Kept(tmp_path)
    sums = kept.of(MANY[:100])
    getattr(sums, part)[3, 4] += 1e-3
    ids = bytes.fromhex("".join(sorted(mkv.id for mkv in MANY[:100])))
    kept_sums._keep(tmp_path / "layer-0", ids, sums, 1)
    (damage,) = kept.damages()
    assert "not those of the MKVs that it names" in damage


def test_sums_of_another_width_are_made_anew(tmp_path):
    kept = Kept(tmp_path)
    kept_sums._keep(tmp_path / "layer-0", bytes(16), Sums.of_none(D_FF, D_MODEL + 1, CPU), 1)
    assert torch.equal(kept.of(MANY[:100]).cross, fresh(MANY[:100]).cross)


def test_what_went_and_is_lost_is_no_obstacle(tmp_path):
    Kept(tmp_path).of(MANY[:100])

    def lost(id_):
        raise FedEditError(f"{id_}: no such file")

    found = KeptSums(tmp_path, lost).pairs(MANY[1:100], D_FF, D_MODEL).layer(0).sums(CPU)
    assert torch.equal(found.keys, fresh(MANY[1:100]).keys)


def test_a_variant_of_the_ledger_writes_only_what_saves_more_than_it_costs(tmp_path):
    kept = Kept(tmp_path)
    kept.of(MANY[:100])
    (file,) = tmp_path.iterdir()
    before, variant = file.read_bytes(), kept.sums.of_variant()
    few = variant.pairs(MANY[1:102], D_FF, D_MODEL).layer(0).sums(CPU)
    assert relative(few.keys, fresh(MANY[1:102]).keys) < 1e-13
    assert file.read_bytes() == before
    variant.pairs(MANY[:110], D_FF, D_MODEL).layer(0).sums(CPU)
    assert file.read_bytes() != before


def test_a_disk_that_takes_no_sums_is_no_obstacle(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        found = Kept(tmp_path).of(MANY[:100])
    assert torch.equal(found.keys, fresh(MANY[:100]).keys)
    assert list(tmp_path.iterdir()) == []
