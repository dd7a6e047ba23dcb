"""The joint solve against the formula itself."""

import logging

import pytest
import torch
from editing import reference
from editing.cases import relative

from fedit_app.editing.solver import Solver
from fedit_app.errors import FedEditError

D_FF, D_MODEL = 24, 10


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def covariance(rank=5 * D_FF, seed=1):
    samples = random(rank, D_FF, seed=seed)
    return samples.T @ samples / rank


@pytest.mark.parametrize("n", [1, 2, 7, D_FF, 3 * D_FF])
@pytest.mark.parametrize("weight", [1e-2, 15000.0])
def test_equals_the_direct_solve(n, weight):
    keys, shifts, c = random(n, D_FF, seed=2), random(n, D_MODEL, seed=3), covariance()
    found = Solver({4: c}, weight).delta(4, keys, shifts)
    assert found.dtype == torch.float64
    assert relative(found, reference.solve(c, weight, keys, shifts)) < 1e-10


def test_no_mkv_changes_nothing():
    found = Solver({4: covariance()}, 1.0).delta(4, random(0, D_FF), random(0, D_MODEL))
    assert torch.equal(found, torch.zeros(D_MODEL, D_FF, dtype=torch.float64))


def test_every_layer_gets_its_own_keys_shifts_and_covariance():
    c = {7: covariance(seed=1), 2: covariance(seed=2)}
    keys, shifts = random(3, 2, D_FF, seed=4), random(3, 2, D_MODEL, seed=5)
    solver = Solver(c, 2.0)
    assert solver.layers == (2, 7)
    found = solver.deltas(keys, shifts)
    for i, layer in enumerate((2, 7)):
        expected = reference.solve(c[layer], 2.0, keys[:, i], shifts[:, i])
        assert relative(found[layer], expected) < 1e-10


def test_a_singular_covariance_gets_a_ridge_and_a_warning(caplog):
    singular = covariance(rank=D_FF // 2)
    keys, shifts = random(2, D_FF, seed=2), random(2, D_MODEL, seed=3)
    with caplog.at_level(logging.WARNING):
        solver = Solver({5: singular}, 10.0)
    assert "covariance of layer 5 is singular" in caplog.text
    assert "covariance-tokens" in caplog.text
    delta = solver.delta(5, keys, shifts)
    assert relative(delta @ keys.T, shifts.T) < 1e-3, "free directions cost nothing: it fits"


def test_equal_keys_are_solved_with_a_singular_covariance():
    keys = random(1, D_FF, seed=2).repeat(3, 1)
    shifts = random(1, D_MODEL, seed=3).repeat(3, 1)
    delta = Solver({5: covariance(rank=D_FF // 2)}, 10.0).delta(5, keys, shifts)
    assert relative(delta @ keys[0], shifts[0]) < 1e-3


def test_a_sound_covariance_gets_no_ridge(caplog):
    with caplog.at_level(logging.WARNING):
        Solver({5: covariance()}, 10.0)
    assert not caplog.records


def test_the_ridge_is_as_small_as_it_can_be(caplog):
    c = torch.eye(D_FF, dtype=torch.float64)
    c[0, 0] = -3e-9
    with caplog.at_level(logging.WARNING):
        Solver({5: c}, 1.0)
    assert "ridge of 1e-08" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_covariance_that_is_not_finite_is_refused(value):
    c = covariance()
    c[3, 3] = value
    with pytest.raises(FedEditError, match="covariance of layer 5 is not finite"):
        Solver({5: c}, 1.0)


def test_a_covariance_beyond_repair_is_refused():
    with pytest.raises(FedEditError, match="layer 5 is singular even with a ridge"):
        Solver({5: -torch.eye(D_FF, dtype=torch.float64)}, 1.0)
