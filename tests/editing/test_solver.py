"""The joint solves against the formulas themselves."""

import logging
import re

import pytest
import torch
from editing import reference
from editing.cases import relative

from benchmarks import solve as benchmark
from fedit_app.editing.alphaedit import NullSpaceSolver
from fedit_app.editing.betaedit import LeakageSolver
from fedit_app.editing.pairs import LayerPairs, Pairs
from fedit_app.editing.solver import SOLVER_MATRICES, Solver, sums_are_cheaper
from fedit_app.support.errors import FedEditError

D_FF, D_MODEL = 24, 10
EYE = torch.eye(D_FF, dtype=torch.float64)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def covariance(rank=5 * D_FF, seed=1):
    samples = random(rank, D_FF, seed=seed)
    return samples.T @ samples / rank


def with_eigenvalues(values):
    vectors = torch.linalg.qr(random(D_FF, D_FF, seed=6)).Q
    return (vectors * values) @ vectors.T


@pytest.mark.parametrize("n", [1, 2, 7, D_FF, 3 * D_FF])
@pytest.mark.parametrize("weight", [1e-2, 15000.0])
def test_equals_the_direct_solve(n, weight):
    keys, shifts, c = random(n, D_FF, seed=2), random(n, D_MODEL, seed=3), covariance()
    found = Solver({4: c}, weight).delta(4, LayerPairs(keys, shifts))
    assert found.dtype == torch.float64
    assert relative(found, reference.solve(c, weight, keys, shifts)) < 1e-10


@pytest.mark.parametrize("n", [1, D_FF // 2, D_FF, 30 * D_FF])
@pytest.mark.parametrize("null_space", [False, True])
def test_both_forms_of_the_solve_agree(n, null_space):
    keys, shifts, c = random(n, D_FF, seed=2), random(n, D_MODEL, seed=3), covariance()
    solver = NullSpaceSolver({4: c}, 0.7, 0.1) if null_space else Solver({4: c}, 10.0)
    pairs = LayerPairs(keys, shifts)
    by_pairs, by_sums = (form(4, pairs) for form in (solver._by_pairs, solver._by_sums))
    assert relative(by_sums, by_pairs) < 1e-9
    chosen = by_sums if n >= D_FF else by_pairs
    assert torch.equal(solver.delta(4, LayerPairs(keys, shifts)), chosen), "the cheaper one"


@pytest.mark.parametrize(("d_ff", "d_model"), [(1536, 576), (14336, 4096), (24, 10)])
def test_few_mkvs_are_solved_by_pairs_and_many_by_sums(d_ff, d_model):
    assert not sums_are_cheaper(0, d_ff, d_model)
    assert not sums_are_cheaper(d_ff // 2, d_ff, d_model)
    assert sums_are_cheaper(d_ff, d_ff, d_model) and sums_are_cheaper(10**6, d_ff, d_model)


@pytest.fixture(scope="module")
def wide_covariance(tmp_path_factory):
    """Of a layer so wide that a matrix (50 MiB) is more than what else a process takes."""
    file, d_ff = tmp_path_factory.mktemp("wide") / "covariance.safetensors", 2560
    benchmark._write_covariance(file, d_ff)
    return file, d_ff


@pytest.mark.integration
@pytest.mark.parametrize("n", [1000, 5000])
def test_a_solve_takes_three_matrices_of_memory_whatever_the_number_of_mkvs(n, wide_covariance):
    file, d_ff = wide_covariance
    found = benchmark.in_process(file, n, d_ff, d_ff // 4, "delta")
    assert 1 < found["peak_matrices"] <= SOLVER_MATRICES


def test_a_null_space_may_have_all_directions():
    keys, shifts = random(7, D_FF, seed=2), random(7, D_MODEL, seed=3)
    found = NullSpaceSolver({4: covariance()}, 1e9, 0.1).delta(4, LayerPairs(keys, shifts))
    free = reference.solve(torch.eye(D_FF).double(), 0.1, keys, shifts)
    assert relative(found, free) < 1e-9


def test_no_mkv_changes_nothing():
    found = Solver({4: covariance()}, 1.0).delta(4, LayerPairs(random(0, D_FF), random(0, D_MODEL)))
    assert torch.equal(found, torch.zeros(D_MODEL, D_FF, dtype=torch.float64))


def test_every_layer_gets_its_own_keys_shifts_and_covariance():
    c = {7: covariance(seed=1), 2: covariance(seed=2)}
    keys, shifts = random(3, 2, D_FF, seed=4), random(3, 2, D_MODEL, seed=5)
    solver = Solver(c, 2.0)
    assert solver.layers == (2, 7)
    found = solver.deltas(Pairs(keys, shifts))
    for i, layer in enumerate((2, 7)):
        expected = reference.solve(c[layer], 2.0, keys[:, i], shifts[:, i])
        assert relative(found[layer], expected) < 1e-10


def test_a_singular_covariance_gets_a_ridge_and_a_warning(log):
    singular = covariance(rank=D_FF // 2)
    keys, shifts = random(2, D_FF, seed=2), random(2, D_MODEL, seed=3)
    solver = Solver({5: singular}, 10.0)
    assert "covariance of layer 5 has a condition number of" in log.text
    assert "max-condition" in log.text and "covariance-tokens" in log.text
    delta = solver.delta(5, LayerPairs(keys, shifts))
    assert relative(delta @ keys.T, shifts.T) < 1e-3, "free directions cost nothing: it fits"


def test_equal_keys_are_solved_with_a_singular_covariance():
    keys = random(1, D_FF, seed=2).repeat(3, 1)
    shifts = random(1, D_MODEL, seed=3).repeat(3, 1)
    delta = Solver({5: covariance(rank=D_FF // 2)}, 10.0).delta(5, LayerPairs(keys, shifts))
    assert relative(delta @ keys[0], shifts[0]) < 1e-3


def test_a_sound_covariance_gets_no_ridge(log):
    c = covariance()
    solver = Solver({5: c}, 10.0)
    assert not log.records
    expected = torch.cholesky_solve(EYE, torch.linalg.cholesky(10.0 * c))
    assert torch.equal(solver.inverse_times(5, EYE), expected), "not to the bit as it is"


@pytest.mark.parametrize(("smallest", "ridge"), [(-3e-10, "1e-07"), (-3e-7, "1e-06")])
def test_the_ridge_is_as_small_as_it_can_be(log, smallest, ridge):
    c = EYE.clone()
    c[0, 0] = smallest
    Solver({5: c}, 1.0)
    assert f"ridge of {ridge}" in log.text


@pytest.mark.parametrize("max_condition", [1e4, 1e7])
def test_the_condition_number_is_brought_down_to_the_largest_allowed(log, max_condition):
    ill = with_eigenvalues(torch.logspace(0, -12, D_FF, dtype=torch.float64))
    solver = Solver({5: ill}, 7.0, max_condition=max_condition)
    found = float(torch.linalg.cond(solver.inverse_times(5, EYE)))
    assert found == pytest.approx(max_condition, rel=0.05)
    (record,) = log.records
    assert record.levelno == logging.WARNING
    assert "covariance of layer 5" in record.message
    assert f"max-condition = {max_condition:.0e}" in record.message


@pytest.mark.parametrize("seed", range(5))
def test_the_condition_number_that_is_named_is_about_right(log, seed):
    c = covariance(rank=D_FF, seed=seed)
    eigenvalues = torch.linalg.eigvalsh(c)
    true = float(eigenvalues[-1] / eigenvalues[0])
    Solver({5: c}, 3.0, max_condition=true / 4)
    named = float(re.search(r"condition number of ([\d.e+]+),", log.text)[1])
    assert true / 2 <= named <= 1.05 * true, "a power iteration comes from below"


def test_the_largest_condition_number_is_a_setting(log):
    c = with_eigenvalues(torch.logspace(0, -5, D_FF, dtype=torch.float64))
    Solver({5: c}, 1.0, max_condition=1e6)
    assert not log.records
    Solver({5: c}, 1.0, max_condition=1e4)
    assert len(log.records) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_covariance_that_is_not_finite_is_refused(value):
    c = covariance()
    c[3, 3] = value
    with pytest.raises(FedEditError, match="covariance of layer 5 is not finite"):
        Solver({5: c}, 1.0)


@pytest.mark.parametrize("factor", [-1.0, 0.0])
def test_a_covariance_beyond_repair_is_refused(factor):
    with pytest.raises(FedEditError, match="layer 5 is singular even with a ridge"):
        Solver({5: factor * EYE}, 1.0)


SPLIT = torch.cat([torch.linspace(5.0, 0.1, 9), torch.linspace(0.01, 1e-9, D_FF - 9)]).double()


@pytest.mark.parametrize("n", [1, 2, 7, D_FF, 3 * D_FF])
@pytest.mark.parametrize("l2", [1e-2, 10.0])
def test_the_null_space_solve_equals_the_papers_formula(n, l2):
    keys, shifts, c = random(n, D_FF, seed=2), random(n, D_MODEL, seed=3), with_eigenvalues(SPLIT)
    found = NullSpaceSolver({4: c}, 0.02, l2).delta(4, LayerPairs(keys, shifts))
    assert found.dtype == torch.float64
    assert relative(found, reference.solve_in_null_space(c, 0.02, l2, keys, shifts)) < 1e-9


@pytest.mark.parametrize("n", [2, 3 * D_FF])
def test_betaedit_without_leakage_is_alphaedit(n):
    """One keeps the eigenvectors that text uses, the other one those that it does not."""
    keys, shifts, c = random(n, D_FF, seed=2), random(n, D_MODEL, seed=3), with_eigenvalues(SPLIT)
    pairs = LayerPairs(keys, shifts)
    alpha = NullSpaceSolver({4: c}, 0.02, 0.1)
    beta, leaking = (LeakageSolver({4: c}, 0.02, 0.1, weight) for weight in (0.0, 100.0))
    assert relative(beta.delta(4, pairs), alpha.delta(4, pairs)) < 1e-9
    assert beta.usual_leverage(4) == pytest.approx(alpha.usual_leverage(4))
    assert relative(leaking.delta(4, pairs), alpha.delta(4, pairs)) > 1e-3


def test_what_ordinary_text_uses_is_left_alone():
    keys, shifts, c = random(3, D_FF, seed=2), random(3, D_MODEL, seed=3), with_eigenvalues(SPLIT)
    delta = NullSpaceSolver({4: c}, 0.02, 0.01).delta(4, LayerPairs(keys, shifts))
    used = torch.linalg.eigh(c).eigenvectors[:, -9:]
    assert float((delta @ used).norm()) < 1e-10 * float(delta.norm())
    assert relative(delta @ keys.T, shifts.T) < 0.05, "the rest of the keys carries the edits"


def test_null_space_solves_of_several_layers():
    c = {7: with_eigenvalues(SPLIT), 2: with_eigenvalues(2 * SPLIT)}
    keys, shifts = random(3, 2, D_FF, seed=4), random(3, 2, D_MODEL, seed=5)
    solver = NullSpaceSolver(c, 0.05, 10.0)
    assert solver.layers == (2, 7) and solver.device.type == "cpu"
    for i, layer in enumerate((2, 7)):
        expected = reference.solve_in_null_space(c[layer], 0.05, 10.0, keys[:, i], shifts[:, i])
        assert relative(solver.deltas(Pairs(keys, shifts))[layer], expected) < 1e-9
    none = solver.delta(2, LayerPairs(random(0, D_FF), random(0, D_MODEL)))
    assert torch.equal(none, torch.zeros(D_MODEL, D_FF, dtype=torch.float64))


def test_a_covariance_without_null_space_is_refused():
    c = with_eigenvalues(torch.linspace(5.0, 0.25, D_FF, dtype=torch.float64))
    with pytest.raises(FedEditError, match="null-space-threshold: no .* layer 6.* 0.02.* 2.5e-01"):
        NullSpaceSolver({6: c}, 0.02, 10.0)


def test_a_null_space_needs_a_finite_covariance():
    with pytest.raises(FedEditError, match="covariance of layer 5 is not finite"):
        NullSpaceSolver({5: EYE / 0}, 0.02, 10.0)
