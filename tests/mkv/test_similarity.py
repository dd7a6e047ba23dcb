import numpy as np
import pytest

from fedit_app.mkv.similarity import BestFirst, Sieve, cosines, unit_rows


def test_cosines_are_close_to_the_unrounded_ones():
    random = np.random.default_rng(0)
    own, candidates = random.standard_normal((5, 300)) * 1e5, random.standard_normal((9, 300))
    norms = np.outer(np.linalg.norm(own, axis=1), np.linalg.norm(candidates, axis=1))
    found = cosines(unit_rows(own), unit_rows(candidates))
    np.testing.assert_allclose(found, own @ candidates.T / norms, atol=1e-4)


def test_cosines_are_exact_whatever_the_order_of_rows_and_columns():
    random = np.random.default_rng(0)
    own, candidates = unit_rows(random.standard_normal((2, 7, 1000)))
    expected = cosines(own, candidates)
    columns = random.permutation(1000)
    np.testing.assert_array_equal(cosines(own[:, columns], candidates[:, columns]), expected)
    for i in range(7):
        np.testing.assert_array_equal(cosines(own, candidates[i : i + 1])[:, 0], expected[:, i])


def test_a_zero_vector_is_similar_to_nothing():
    np.testing.assert_array_equal(cosines(unit_rows(np.zeros((1, 3))), np.eye(3)), 0)


def in_a_cone(random, n: int, width: int, spread: float) -> np.ndarray:
    """Unit rows around one direction, with a few columns much larger than the others."""
    scale = np.where(np.arange(width) % 7 == 0, 10.0, 1.0)
    common = random.standard_normal(width)
    return unit_rows((common + spread * random.standard_normal((n, width))) * scale)


def bounds_of(sieve: Sieve, candidates: np.ndarray) -> np.ndarray:
    seen = []
    sieve.kept(candidates, lambda upper: seen.append(upper) or np.zeros(len(candidates), bool))
    return seen[0]


@pytest.mark.parametrize("part", [1, 8])
@pytest.mark.parametrize("width", [1, 5, 64, 1000])
def test_a_sieve_keeps_whatever_may_matter(part, width):
    random = np.random.default_rng(width)
    for spread in (1e-3, 0.1, 10.0):
        rows = in_a_cone(random, 60, width, spread)
        own, candidates = rows[:10], rows[10:]
        candidates[3] = 0
        bounds = bounds_of(Sieve(own, part), candidates)
        exact = cosines(own, candidates)
        assert (bounds >= exact).all()
        if part == 1:
            assert (bounds - exact).max() < width * 1e-6 + 1e-6


@pytest.mark.parametrize("part", [1, 8])
def test_a_sieve_leaves_out_the_rest(part):
    random = np.random.default_rng(0)
    own, others = unit_rows(random.standard_normal((2, 20, 800)))
    near = unit_rows(own[:3] + 0.002 * random.standard_normal((3, 800)))
    candidates = np.concatenate([others, near])
    kept = Sieve(own, part).kept(candidates, lambda upper: (upper >= 0.98).any(axis=0))
    np.testing.assert_array_equal(kept, [20, 21, 22])


def test_a_sieve_rests_when_it_leaves_out_too_few():
    rows = unit_rows(np.random.default_rng(0).standard_normal((8, 20)))
    sieve, asked = Sieve(rows), []

    def keep(share):
        def matters(upper):
            asked.append(upper.shape)
            return np.arange(8) < share * 8

        return len(sieve.kept(rows, matters))

    assert [keep(1) for _ in range(6)] == [8] * 6
    assert len(asked) == 2, "of the 1st block, and after a rest of the 3rd; now it rests"
    assert [keep(0.25) for _ in range(3)] == [2, 2, 2]


def test_best_first_equals_a_sort_of_everything():
    random = np.random.default_rng(0)
    ids = [f"{i:04d}" for i in random.permutation(500)]
    scores = random.integers(0, 20, 500) / 20  # many ties
    expected = sorted(zip(-scores, ids, strict=True))
    for limit in (1, 17, 1000, None):
        best = BestFirst(limit)
        assert best.ranking() == []
        for start in range(0, 500, 30):
            block = slice(start, start + 30)
            best.offer(ids[block], scores[block])
        assert best.ranking() == [(id_, -negated) for negated, id_ in expected[:limit]]
        if limit in (1, 17):
            assert best.floor == -expected[limit - 1][0]
        else:
            assert best.floor == -np.inf
