"""The approximate index, on pools far smaller than those that get one."""

import numpy as np
import pytest

from fedit_app.mkv import create
from fedit_app.mkv.similarity import cosines, unit_rows
from fedit_app.pool import Match, MKVPool, SelectionConfig, index
from fedit_app.support.errors import FedEditError

FINGERPRINT = "model-a"
WIDTH = 32


@pytest.fixture(autouse=True)
def _small_pools_get_an_index(monkeypatch):
    monkeypatch.setattr(index, "FEWEST_ROWS", 400)


@pytest.fixture
def built(monkeypatch) -> list[str]:
    """The signatures for which an index was built, in order."""
    built, build = [], index.SignatureIndex._build

    def recording(self, rows):
        built.append(self._kind)
        build(self, rows)

    monkeypatch.setattr(index.SignatureIndex, "_build", recording)
    return built


@pytest.fixture
def pool(pool_uri) -> MKVPool:
    return MKVPool(pool_uri, index="ivf")


@pytest.fixture(scope="module")
def mkvs():
    return clustered(600)


def clustered(n: int, seed: int = 0, node: str | None = None, fingerprint: str = FINGERPRINT):
    """MKVs whose keys and values lie in 12 clusters; of four nodes, or of `node`."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((12, WIDTH))
    return [
        create(
            node or f"node{i % 4}",
            1,
            fingerprint,
            keys=(centres[i % 12] + random.standard_normal(WIDTH))[None],
            shifts=random.standard_normal((1, WIDTH)),
            v_star=centres[i % 12] + random.standard_normal(WIDTH),
            h0=np.zeros(WIDTH),
        )
        for i in range(n)
    ]


def exact(pool_uri: str) -> MKVPool:
    return MKVPool(pool_uri)


def queries(*nodes: str) -> dict[str, np.ndarray]:
    return {
        node: np.stack([mkv.lookup_key for mkv in clustered(15, seed=7 + number)])
        for number, node in enumerate(nodes)
    }


def recall(found, truth) -> float:
    """The share of the true matches that were found, over all nodes and queries."""
    hits = [
        len({m.id for m in a} & {m.id for m in b}) / len(b)
        for node in truth
        for a, b in zip(found[node], truth[node], strict=True)
        if b
    ]
    return float(np.mean(hits))


def test_the_nearest_come_from_the_index_with_their_exact_cosines(pool, pool_uri, mkvs, built):
    pool.append(mkvs)
    asked = queries("node1", "elsewhere")
    held = {"elsewhere": {mkv.id for mkv in mkvs[:200]}}
    found = pool.nearest(asked, "key", FINGERPRINT, 0.3, 5, held)
    truth = exact(pool_uri).nearest(asked, "key", FINGERPRINT, 0.3, 5, held)
    assert built == ["key"]
    assert recall(found, truth) > 0.9
    by_id = {mkv.id: mkv for mkv in mkvs}
    for node, rows in asked.items():
        for query, matches in zip(rows, found[node], strict=True):
            assert len(matches) == len({match.id for match in matches}) == 5
            units = unit_rows(np.stack([by_id[match.id].lookup_key for match in matches]))
            values = cosines(unit_rows(query)[None], units)[0]
            assert [match.cosine for match in matches] == values.tolist()
            assert matches == sorted(matches, key=lambda match: (-match.cosine, match.id))
            assert not any(match.id in held.get(node, ()) for match in matches)


def test_what_was_appended_later_is_found(pool, pool_uri, mkvs, built):
    pool.append(mkvs)
    pool.nearest(queries("a"), "key", FINGERPRINT, 0.9, 1)
    later = clustered(30, seed=5, node="late")
    first = later[0]
    folded = create("l", 2, FINGERPRINT, first.keys, first.shifts, first.v_star, first.h0 + 0.01)
    pool.append([*later, *clustered(5, seed=6, fingerprint="model-b")])
    pool.append([folded])
    keys = {"a": np.stack([mkv.lookup_key for mkv in later])}
    found = pool.nearest(keys, "key", FINGERPRINT, 0.99, 3)["a"]
    assert [[match.id for match in row] for row in found] == [[mkv.id] for mkv in later]
    assert pool.facts([folded.id]) == {folded.id: first.id}
    assert built == ["key"], "a few more rows do not need another index"
    strangers = {"a": clustered(1, seed=6, fingerprint="model-b")[0].keys}
    assert pool.nearest(strangers, "key", FINGERPRINT, 0.99, 3)["a"] == [[]]


def test_an_outgrown_index_is_built_anew(pool, mkvs, built):
    pool.append(mkvs[:450])
    pool.nearest(queries("a"), "key", FINGERPRINT, 0.9, 1)
    pool.append(mkvs[450:])
    found = pool.nearest({"a": mkvs[-1].lookup_key[None]}, "key", FINGERPRINT, 0.99, 1)
    assert found == {"a": [[Match(mkvs[-1].id, found["a"][0][0].cosine)]]}
    assert built == ["key", "key"]


def test_small_pools_and_odd_widths_are_ranked_exactly(pool, pool_uri, mkvs, built, make_mkvs):
    pool.append(mkvs[:399])
    asked = queries("a")
    truth = exact(pool_uri).nearest(asked, "key", FINGERPRINT, 0.3, 5)
    assert pool.nearest(asked, "key", FINGERPRINT, 0.3, 5) == truth
    odd = MKVPool(pool_uri + "-odd", index="ivf")
    odd.append(make_mkvs(420))
    assert odd.nearest({"a": np.ones((1, 12))}, "key", FINGERPRINT, -1, 2)["a"][0]
    assert built == []


@pytest.mark.parametrize(
    ("policy", "centred", "used"),
    [("top-k", False, True), ("top-k", True, False), ("majority", False, False)],
)
def test_top_k_is_selected_with_the_index_and_the_rest_exactly(
    pool, pool_uri, mkvs, built, policy, centred, used
):
    pool.append(mkvs)
    config = SelectionConfig(policy, "v_star", centred, -0.2, 20)
    own = {
        node: np.stack([mkv.v_star for mkv in mkvs if mkv.node == node][:10])
        for node in ("node0", "node3")
    } | {"newcomer": np.zeros((0, WIDTH))}
    held = {"node0": {mkv.id for mkv in mkvs[:50]}}
    found = pool.select(own, FINGERPRINT, config, held)
    truth = exact(pool_uri).select(own, FINGERPRINT, config, held)
    assert built == (["v_star"] if used else [])
    assert truth["node0"] and truth["node3"]
    if not used:
        assert found == truth
        return
    assert found["newcomer"] == []
    scores = {node: {one.id: one.score for one in ranked} for node, ranked in truth.items()}
    for node in ("node0", "node3"):
        common = {one.id: one.score for one in found[node] if one.id in scores[node]}
        assert len(common) >= 19 and len(found[node]) == 20
        assert common.items() <= scores[node].items()


def test_appending_compares_exactly(pool, mkvs, built):
    pool.append(mkvs)
    pool.append(clustered(3, seed=8))
    assert built == []


def test_an_unknown_index_is_refused(pool_uri):
    with pytest.raises(FedEditError, match="'hnsw' found; it has to be one of none, ivf"):
        MKVPool(pool_uri, index="hnsw")
