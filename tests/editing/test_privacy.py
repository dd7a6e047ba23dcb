"""Clipping and noise of MKVs."""

import numpy as np
import pytest
import tiny
from editing.cases import EASY, SETTINGS

from fedit_app.editing.covariance import CovarianceSource
from fedit_app.editing.privacy import Privacy
from fedit_app.editing.workbench import Workbench
from fedit_app.ledger.ledger import Ledger

SHAPES = [(200, 2, 32), (200, 2, 16), (200, 16), (200, 16)]
USUAL = (np.array([2.0, 4.0]), np.array([1.0, 3.0]), np.array(5.0), np.array(7.0))


@pytest.fixture
def vectors():
    generator = np.random.default_rng(0)
    return tuple(10 * generator.standard_normal(shape) for shape in SHAPES)


def norms(vectors):
    keys, shifts, v_star, h0 = vectors
    return [np.linalg.norm(part, axis=-1) for part in (keys, shifts, v_star - h0, h0)]


def test_long_vectors_are_clipped_and_short_ones_left_alone(vectors):
    clipped = Privacy(clip=2.0).applied(vectors, USUAL)
    for found, usual in zip(norms(clipped), USUAL, strict=True):
        assert np.allclose(found, 2 * np.broadcast_to(usual, found.shape))
    short = tuple(part / 1000 for part in vectors)
    for part, same in zip(Privacy(clip=2.0).applied(short, USUAL), short, strict=True):
        assert np.allclose(part, same)


def test_the_noise_has_the_deviation_that_is_accounted_for(vectors):
    quiet = Privacy(clip=2.0).applied(vectors, USUAL)
    loud = Privacy(clip=2.0, noise=0.5).applied(vectors, USUAL)
    keys, shifts, _, h0 = (b - a for a, b in zip(quiet, loud, strict=True))
    change = (loud[2] - loud[3]) - (quiet[2] - quiet[3])

    assert keys.std(axis=(0, 2)) == pytest.approx(0.5 * 2 * USUAL[0], rel=0.05)
    assert shifts.std(axis=(0, 2)) == pytest.approx(0.5 * 2 * USUAL[1], rel=0.05)
    assert change.std() == pytest.approx(0.5 * 2 * 5.0, rel=0.05)
    assert h0.std() == pytest.approx(0.5 * 2 * 7.0, rel=0.05)
    assert abs(np.corrcoef(keys[0].ravel(), keys[1].ravel())[0, 1]) < 0.5


def test_nobody_can_draw_the_noise_again(vectors):
    privacy = Privacy(clip=2.0, noise=0.5)
    first, second = privacy.applied(vectors, USUAL), privacy.applied(vectors, USUAL)

    assert not np.allclose(first[0], second[0])


def test_a_workbench_clips_what_it_makes():
    source = CovarianceSource(tokens=500)
    model = tiny.editable("llama")
    exact = Workbench(model, "memit", SETTINGS, 2, source, 0, precision="float32")
    made = Workbench(
        model, "memit", SETTINGS, 2, source, 0, precision="float32", privacy=Privacy(clip=0.1)
    )
    before = exact.compute(EASY, Ledger(exact.fingerprint), "bank", 1)
    after = made.compute(EASY, Ledger(made.fingerprint), "bank", 1)
    keys, shifts, change, state = made.usual_norms

    assert made.fingerprint == exact.fingerprint
    assert (np.stack([np.linalg.norm(m.keys, axis=-1) for m in before]) > 0.1 * keys).all()
    for mkv in after:
        assert (np.linalg.norm(mkv.keys, axis=-1) <= 0.1001 * keys).all()
        assert (np.linalg.norm(mkv.shifts, axis=-1) <= 0.1001 * shifts).all()
        assert np.linalg.norm(mkv.delta) <= 0.101 * change
        assert np.linalg.norm(mkv.h0) <= 0.1001 * state
