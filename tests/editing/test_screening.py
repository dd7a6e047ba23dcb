"""Which MKVs no honest node makes."""

import dataclasses

import numpy as np
import pytest
import tiny
import torch
from editing.cases import EASY, EVERY_EDITOR, REQUESTS, SETTINGS

from fedit_app.editing.covariance import CovarianceSource, covariance
from fedit_app.editing.pairs import LayerPairs
from fedit_app.editing.screening import BOUNDS, SHAPE
from fedit_app.editing.workbench import Workbench
from fedit_app.ledger.ledger import Ledger
from fedit_app.mkv import create

SOURCE = CovarianceSource(tokens=500)


def make_bench(editor: str = "memit", family: str = "llama") -> Workbench:
    model = tiny.editable(family)
    settings = SETTINGS
    if editor in ("alphaedit", "betaedit"):
        found = covariance(model, settings.layers, SOURCE)
        middle = torch.cat([torch.linalg.eigvalsh(c) for c in found.values()]).median()
        settings = dataclasses.replace(settings, null_space_threshold=float(middle))
    return Workbench(model, editor, settings, 2, SOURCE, seed=0)


@pytest.fixture(scope="module")
def bench():
    return make_bench()


@pytest.fixture(scope="module")
def honest(bench):
    return bench.compute([*REQUESTS, *EASY], Ledger(bench.fingerprint), "museum", 1)


@pytest.fixture(scope="module")
def common(bench):
    """The direction that the keys of each edited layer share most."""
    found = covariance(bench.model, bench.settings.layers, SOURCE)
    return np.stack([torch.linalg.eigh(c)[1][:, -1].float().numpy() for c in found.values()])


def changed(mkv, **vectors):
    """A copy of an MKV with other vectors."""
    kept = {name: getattr(mkv, name) for name in ("keys", "shifts", "v_star", "h0")} | vectors
    return create("eve", 1, mkv.fingerprint, *kept.values(), precision=mkv.precision)


@pytest.mark.parametrize("editor", EVERY_EDITOR)
def test_honest_mkvs_pass(editor):
    bench = make_bench(editor)
    mkvs = bench.compute([*REQUESTS, *EASY], Ledger(bench.fingerprint), "museum", 1)

    assert bench.screen.faults(mkvs) == {}


def test_what_is_measured_is_relative_to_the_base_model(bench, honest):
    scale = 1000.0
    found = covariance(bench.model, bench.settings.layers, SOURCE)
    measured = bench.screen.measure(honest)
    for number, mkv in enumerate(honest):
        norms = [
            np.linalg.norm(mkv.keys[i]) / float(c.trace()) ** 0.5
            for i, c in enumerate(found.values())
        ]
        distances = [
            float(
                torch.from_numpy(k).double() @ torch.linalg.solve(c, torch.from_numpy(k).double())
            )
            for k, c in zip(mkv.keys, found.values(), strict=True)
        ]
        assert measured["key norm"][number] == pytest.approx(max(norms), rel=1e-5)
        expected = max(distances) ** 0.5 / bench.model.d_ff**0.5
        assert measured["key distance"][number] == pytest.approx(expected, rel=1e-3)
    larger = bench.screen.measure([changed(mkv, shifts=mkv.shifts * scale) for mkv in honest])
    assert larger["shift norm"] == pytest.approx(measured["shift norm"] * scale, rel=1e-2)


def attacks(mkv):
    rng = np.random.default_rng(0)
    random_keys = rng.standard_normal(mkv.keys.shape).astype(np.float32)
    return {
        "key norm": changed(mkv, keys=mkv.keys * 100),
        "key distance": changed(mkv, keys=random_keys * np.abs(mkv.keys).max() * 3),
        "shift norm": changed(mkv, shifts=mkv.shifts * 100),
        "value norm": changed(mkv, v_star=mkv.h0 * (1 + 2 * SETTINGS.clamp)),
    }


def test_each_attack_is_found_and_named(bench, honest):
    made = attacks(honest[0])
    faults = bench.screen.faults([honest[1], *made.values()])

    assert set(faults) == {mkv.id for mkv in made.values()}
    for reason in ("shift norm", "value norm"):
        assert faults[made[reason].id].reason == reason
    assert faults[made["key norm"].id].reason in ("key norm", "key distance")
    assert all(fault.value > fault.bound for fault in faults.values())


def test_the_common_direction_is_named(bench, honest, common):
    screen = bench.screen
    along = changed(honest[0], keys=common)
    value = float(screen.measure([along])["common direction"][0])

    assert value > 1.5 * screen.measure(honest)["common direction"].max()
    # Only at widths of a real model does it exceed the bound: sqrt(d_ff) times its share.
    factor = value / BOUNDS["common direction"] * 0.99
    assert screen.faults([along], factor)[along.id].reason == "common direction"


def test_a_factor_widens_the_bounds_and_0_turns_them_off(bench, honest):
    large = changed(honest[0], shifts=honest[0].shifts * 20)
    value = bench.screen.faults([large])[large.id].value
    factor = value / BOUNDS["shift norm"]

    assert bench.screen.faults([large], factor * 1.01) == {}
    assert bench.screen.faults([large], factor * 0.99)[large.id].bound == pytest.approx(
        value * 0.99
    )
    assert bench.screen.faults([large], 0) == {}


def test_shapes_are_checked_whatever_the_factor(bench, honest):
    narrow = changed(honest[0], keys=honest[0].keys[:, :-1])
    shallow = changed(honest[0], keys=honest[0].keys[1:], shifts=honest[0].shifts[1:])
    for factor in (0, 1):
        faults = bench.screen.faults([narrow, *honest, shallow], factor)
        assert {id_: fault.reason for id_, fault in faults.items()} == {
            narrow.id: SHAPE,
            shallow.id: SHAPE,
        }


def test_zero_vectors_do_no_harm_and_cannot_be_divided_by(bench, honest):
    mkv = honest[0]
    nothing = changed(mkv, keys=mkv.keys * 0, shifts=mkv.shifts * 0)
    groundless = changed(mkv, h0=mkv.h0 * 0, v_star=mkv.delta)

    faults = bench.screen.faults([nothing, groundless])
    assert {id_: fault.reason for id_, fault in faults.items()} == {groundless.id: "value norm"}
    assert np.isfinite(faults[groundless.id].value)


def test_the_shifts_limit_what_any_keys_can_do_to_ordinary_text(bench, honest):
    """E|Delta x|^2 <= sum |r|^2 / lambda, for keys that are chosen to do harm."""
    found = covariance(bench.model, bench.settings.layers, SOURCE)
    for index, (layer, c) in enumerate(found.items()):
        shifts = torch.from_numpy(np.stack([m.shifts[index] for m in honest])).double()
        directions = torch.linalg.eigh(c)[1][:, -len(honest) :].T
        limit = float(shifts.square().sum()) / bench.settings.covariance_weight
        for size in (0.1, 1.0, 10.0, 100.0):
            delta = bench.solver.delta(layer, LayerPairs(directions * size, shifts))
            assert float(torch.trace(delta @ c @ delta.T)) <= limit
