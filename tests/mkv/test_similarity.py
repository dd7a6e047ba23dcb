import numpy as np

from fedit_app.mkv.similarity import BestFirst, cosines, unit_rows


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


def test_best_first_equals_a_sort_of_everything():
    random = np.random.default_rng(0)
    ids = [f"{i:04d}" for i in random.permutation(500)]
    scores = random.integers(0, 20, 500) / 20  # many ties
    accepted = random.random(500) < 0.8
    rows = zip(ids, scores, accepted, strict=True)
    expected = sorted((-score, id_) for id_, score, use in rows if use)
    for limit in (1, 17, 1000, None):
        best = BestFirst(limit)
        for start in range(0, 500, 30):
            block = slice(start, start + 30)
            best.offer(ids[block], scores[block], accepted[block])
        assert best.ranking() == [(id_, -negated) for negated, id_ in expected[:limit]]
