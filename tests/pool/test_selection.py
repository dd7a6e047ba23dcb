from functools import partial

import numpy as np
import pytest

from fedit_app.mkv import SIGNATURES, create
from fedit_app.pool import POLICIES, MKVPool, SelectionConfig, select
from fedit_app.support.errors import FedEditError

FINGERPRINT = "model-a"


def config(policy="majority", signature="v_star", centred=False, threshold=0.6, k=4):
    return SelectionConfig(policy, signature, centred, threshold, k)


def own_signatures(mkvs, kind="v_star") -> np.ndarray:
    return np.stack([mkv.signature(kind) for mkv in mkvs])


@pytest.fixture(scope="module")
def mkvs(make_mkvs):
    """Three nodes; the first six MKVs are the own ones of the node `clinic`."""
    return [
        mkv
        for seed, node in enumerate(("clinic", "school", "court"))
        for mkv in make_mkvs(6 + 9 * seed, seed=seed, node=node)
    ]


@pytest.fixture(scope="module")
def pool(tmp_path_factory, mkvs) -> MKVPool:
    """A pool of these, to be read."""
    pool = MKVPool(str(tmp_path_factory.mktemp("pool")))
    pool.append(mkvs)
    return pool


def brute_force(own, candidates, chosen: SelectionConfig, everyone) -> dict[str, float]:
    """Score by accepted id, from the definitions, in float64 without any rounding."""

    def unit(vector):
        return vector.astype(float) / np.linalg.norm(vector.astype(float))

    pool_units = [unit(mkv.signature(chosen.signature)) for mkv in everyone]
    mean = np.mean(pool_units, axis=0) if chosen.centred else 0.0
    own_units = [unit(unit(row) - mean) for row in own]
    scores = {}
    for mkv in candidates:
        candidate = unit(unit(mkv.signature(chosen.signature)) - mean)
        values = [float(row @ candidate) for row in own_units]
        if chosen.policy == "majority":
            if sum(value > chosen.threshold for value in values) >= len(values) / 2:
                scores[mkv.id] = sum(values) / len(values)
        elif chosen.policy == "top-k":
            scores[mkv.id] = max(values)
        elif chosen.policy == "all":
            scores[mkv.id] = sum(values) / len(values)
    if chosen.policy == "top-k":
        scores = dict(sorted(scores.items(), key=lambda item: -item[1])[: chosen.k])
    return scores


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("signature", SIGNATURES)
@pytest.mark.parametrize("policy", POLICIES)
def test_policies_equal_brute_force(pool, mkvs, policy, signature, centred):
    chosen = config(policy, signature, centred, threshold=0.0 if centred else 0.3)
    own = own_signatures(mkvs[:6], signature)
    blocks = partial(pool.blocks, signature, FINGERPRINT, block_size=7)
    held = {"clinic": {mkv.id for mkv in mkvs[:6]}}
    ranked = select({"clinic": own}, blocks, chosen, held)["clinic"]
    expected = brute_force(own, mkvs[6:], chosen, mkvs)
    assert {one.id for one in ranked} == expected.keys()
    np.testing.assert_allclose(
        [one.score for one in ranked], sorted(expected.values(), reverse=True), atol=2e-3
    )
    assert ranked == sorted(ranked, key=lambda one: (-one.score, one.id))


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("policy", ["majority", "top-k", "all"])
def test_neither_order_nor_block_size_changes_the_ranking(tmp_path, mkvs, policy, centred):
    chosen = config(policy, centred=centred, threshold=0.1)
    own = own_signatures(mkvs[:6])
    rankings = []
    for seed, block_size in enumerate((1, 4, 1000)):
        pool = MKVPool(str(tmp_path / str(seed)))
        order = np.random.default_rng(seed).permutation(len(mkvs))
        pool.append([mkvs[i] for i in order[:11]])
        pool.append([mkvs[i] for i in order[11:]])
        blocks = partial(pool.blocks, "v_star", FINGERPRINT, block_size=block_size)
        rankings.append(select({"x": own, "clinic": own[:3]}, blocks, chosen))
    assert all(rankings[0].values())
    assert rankings[0] == rankings[1] == rankings[2]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_node_gets_beside_others_what_it_gets_alone(pool, mkvs, monkeypatch, policy):
    blocks = partial(pool.blocks, "v_star", FINGERPRINT, block_size=7)
    sizes = {"clinic": slice(0, 6), "school": slice(6, 8), "court": slice(30, 39)}
    own = {node: own_signatures(mkvs[part]) for node, part in sizes.items()}
    held = {"school": {mkv.id for mkv in mkvs[:3]}}
    chosen = config(policy, threshold=0.3)
    together = select(own, blocks, chosen, held)
    monkeypatch.setattr("fedit_app.pool.blocks._COSINE_BYTES", 500)
    for node, rows in own.items():
        assert select({node: rows}, blocks, chosen, held) == {node: together[node]}
    assert any(together.values()) == (policy != "none")


def test_ties_are_ordered_by_id(pool_uri, make_mkvs):
    base, *others = make_mkvs(9)
    twins = [
        create("school", 1, FINGERPRINT, other.keys, other.shifts, base.v_star, base.h0)
        for other in others
    ]
    pool = MKVPool(pool_uri)
    pool.append(twins)
    blocks = partial(pool.blocks, "v_star", FINGERPRINT, block_size=3)
    for policy, kept in (("majority", 8), ("all", 8), ("top-k", 4)):
        ranked = select({"x": base.v_star[None]}, blocks, config(policy))["x"]
        assert [one.id for one in ranked] == sorted(mkv.id for mkv in twins)[:kept]


def test_half_of_the_own_mkvs_is_a_majority():
    majority = POLICIES["majority"]
    cosine = np.array([[0.9, 0.9, 0.5], [0.1, 0.9, 0.5]])
    np.testing.assert_array_equal(majority(cosine, 0.5), [0.5, 0.9, -np.inf])
    three = np.vstack([cosine, [[0.1, 0.1, 0.5]]])
    assert np.isneginf(majority(three, 0.5)).tolist() == [True, False, True]


def test_what_is_excluded_is_left_out(pool, mkvs):
    blocks = partial(pool.blocks, "v_star", FINGERPRINT)
    own = own_signatures(mkvs[:6])
    some = {mkv.id for mkv in mkvs[8:12]}
    owns = {"clinic": own, "school": own}
    ranked = select(owns, blocks, config("all"), {"clinic": some})
    assert {one.id for one in ranked["clinic"]} == {mkv.id for mkv in mkvs} - some
    assert {one.id for one in ranked["school"]} == {mkv.id for mkv in mkvs}


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("shape", [(0, 8), (0, 0), (0,)])
def test_a_node_without_own_mkvs_receives_all_or_nothing(pool, mkvs, shape, centred):
    blocks = partial(pool.blocks, "v_star", FINGERPRINT)
    for policy in ("majority", "top-k", "none"):
        ranked = select({"x": np.zeros(shape)}, blocks, config(policy, centred=centred))
        assert ranked == {"x": []}
    ranked = select({"x": np.zeros(shape)}, blocks, config("all", centred=centred))["x"]
    assert [one.id for one in ranked] == sorted(mkv.id for mkv in mkvs)
    assert {one.score for one in ranked} == {0.0}


@pytest.mark.parametrize("centred", [False, True])
def test_an_empty_pool_gives_nothing(pool_uri, centred):
    pool = MKVPool(pool_uri)
    blocks = partial(pool.blocks, "v_star", FINGERPRINT)
    ranked = select({"x": np.ones((2, 8))}, blocks, config("all", centred=centred))
    assert ranked == {"x": []}


@pytest.mark.parametrize("centred", [False, True])
def test_another_width_is_refused(pool, centred):
    blocks = partial(pool.blocks, "v_star", FINGERPRINT)
    with pytest.raises(FedEditError, match=r"\(2, 9\) found"):
        select({"x": np.ones((2, 9))}, blocks, config(centred=centred))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"policy": "best"}, "majority, top-k, all, none"),
        ({"signature": "keys"}, "v_star, delta, key"),
        ({"threshold": 1.5}, "1.5"),
        ({"threshold": float("nan")}, "nan"),
        ({"k": 0}, "k 0"),
    ],
)
def test_a_wrong_config_is_refused(changes, match):
    with pytest.raises(FedEditError, match=match):
        config(**changes)
