from functools import partialmethod

import numpy as np
import pytest
from lancedb.query import LanceEmptyQueryBuilder

from fedit_app.mkv import SIGNATURES, create, to_bytes
from fedit_app.mkv.similarity import cosines, unit_rows
from fedit_app.pool import Match, MKVPool
from fedit_app.support.errors import FedEditError

FINGERPRINT = "model-a"


@pytest.fixture
def pool(pool_uri) -> MKVPool:
    return MKVPool(pool_uri)


def all_rows(pool: MKVPool, kind: str, **options) -> dict[str, np.ndarray]:
    return {
        id_: vector
        for block in pool.blocks(kind, FINGERPRINT, **options)
        for id_, vector in zip(block.ids, block.vectors, strict=True)
    }


def test_an_empty_pool(pool):
    assert len(pool) == 0
    assert pool.append([]) == []
    assert pool.fetch([]) == []
    assert list(pool.blocks("v_star", FINGERPRINT)) == []
    assert pool.nearest({"n": np.ones((2, 8))}, "v_star", FINGERPRINT, 0.0, 3) == {"n": [[], []]}
    with pytest.raises(FedEditError, match="no MKV with id x"):
        pool.fetch(["x"])


def test_append_is_idempotent(pool, make_mkvs):
    mkvs = make_mkvs(5)
    ids = [mkv.id for mkv in mkvs]
    assert pool.append([mkvs[1], mkvs[0], mkvs[1]]) == [ids[1], ids[0]]
    assert pool.append(mkvs) == ids[2:]
    assert pool.append(mkvs) == []
    assert len(pool) == 5


def test_the_first_sender_of_equal_content_stays_its_origin(pool, make_mkvs):
    first, second = make_mkvs(1, node="clinic"), make_mkvs(1, node="school")
    assert first[0].id == second[0].id
    pool.append(first + second)
    pool.append(second)
    assert [mkv.node for mkv in pool.fetch([first[0].id])] == ["clinic"]


def test_what_is_appended_is_there_after_reopening(pool, pool_uri, make_mkvs):
    mkvs = make_mkvs(4)
    pool.append(mkvs)
    reopened = MKVPool(pool_uri)
    assert len(reopened) == 4
    assert reopened.append(mkvs) == []
    found = reopened.fetch([mkv.id for mkv in mkvs])
    assert [to_bytes(mkv) for mkv in found] == [to_bytes(mkv) for mkv in mkvs]


def test_fetch_keeps_the_order_asked(pool, make_mkvs, monkeypatch):
    monkeypatch.setattr("fedit_app.pool.pool.IDS_PER_QUERY", 3)
    mkvs = make_mkvs(10)
    pool.append(mkvs)
    ids = [mkvs[i].id for i in (7, 2, 9, 2, 0, 5, 3)]
    assert [mkv.id for mkv in pool.fetch(ids)] == ids


def test_fetch_names_what_is_missing(pool, make_mkvs):
    mkvs = make_mkvs(1)
    pool.append(mkvs)
    with pytest.raises(FedEditError, match="no MKV with id it's, b$"):
        pool.fetch(["it's", mkvs[0].id, "b"])
    with pytest.raises(FedEditError, match="0, 1, 2, 3, 4 and 7 more"):
        pool.fetch([str(i) for i in range(12)])


def test_another_width_is_refused_and_nothing_added(pool, make_mkvs):
    for wrong, kind in (({"d_ff": 13}, "key"), ({"d_model": 9}, "v_star")):
        with pytest.raises(FedEditError, match=f"has a {kind} of width"):
            pool.append(make_mkvs(1) + make_mkvs(1, seed=1, **wrong))
        assert len(pool) == 0
    pool.append(make_mkvs(1))
    with pytest.raises(FedEditError, match="width 13, this pool holds width 12"):
        pool.append(make_mkvs(1, seed=1) + make_mkvs(1, seed=2, d_ff=13))
    assert len(pool) == 1


@pytest.mark.parametrize("kind", SIGNATURES)
def test_blocks_hold_the_unit_signatures(pool, make_mkvs, kind):
    mkvs = make_mkvs(6, node="clinic") + make_mkvs(5, seed=1, node="school", slot=2)
    pool.append(mkvs[:4])
    pool.append(mkvs[4:])
    expected = {mkv.id: mkv for mkv in mkvs}
    for block in pool.blocks(kind, FINGERPRINT):
        assert block.vectors.dtype == np.float16
        for i, id_ in enumerate(block.ids):
            mkv = expected.pop(id_)
            assert (block.nodes[i], block.slots[i]) == (mkv.node, mkv.slot)
            np.testing.assert_array_equal(block.vectors[i], unit_rows(mkv.signature(kind)))
    assert not expected


def test_rows_are_all_rows(pool, make_mkvs):
    assert list(pool.rows(["id"])) == []
    mkvs = make_mkvs(5, node="school", slot=3)
    pool.append(mkvs)
    rows = list(pool.rows(["slot", "id", "nodes"]))
    assert rows == [{"slot": 3, "id": mkv.id, "nodes": ["school"]} for mkv in mkvs]


def test_blocks_keep_to_their_size_and_cover_the_pool(pool, make_mkvs):
    pool.append(make_mkvs(23))
    sizes = [len(block.ids) for block in pool.blocks("key", FINGERPRINT, block_size=5)]
    assert max(sizes) <= 5 and sum(sizes) == 23
    whole, pieces = all_rows(pool, "key"), all_rows(pool, "key", block_size=5)
    assert whole.keys() == pieces.keys()
    assert all(np.array_equal(whole[id_], pieces[id_]) for id_ in whole)


def test_only_the_asked_fingerprint_is_seen(pool, make_mkvs):
    strange = 'it\'s "quoted" % _ \\'
    pool.append(make_mkvs(3) + make_mkvs(2, seed=1, fingerprint=strange))
    assert sum(len(block.ids) for block in pool.blocks("key", FINGERPRINT)) == 3
    assert sum(len(block.ids) for block in pool.blocks("key", strange)) == 2
    assert list(pool.blocks("key", "model-z")) == []


def test_ranking_reads_no_payload(pool, make_mkvs, monkeypatch):
    mkvs = make_mkvs(3)
    pool.append(mkvs)
    read = []
    select = LanceEmptyQueryBuilder.select

    def recording_select(self, columns):
        read.append(columns)
        return select(self, columns)

    monkeypatch.setattr(LanceEmptyQueryBuilder, "select", recording_select)
    monkeypatch.setattr("fedit_app.pool.pool.from_bytes", None)
    assert len(list(pool.blocks("delta", FINGERPRINT))) == 1
    pool.nearest({"n": mkvs[0].lookup_key[None]}, "key", FINGERPRINT, 0.5, 1)
    assert read == [["id", "node", "slot", "delta"], ["id", "node", "slot", "key"]]


def test_an_unknown_signature_is_refused(pool):
    with pytest.raises(FedEditError, match="signature 'keys'"):
        list(pool.blocks("keys", FINGERPRINT))


@pytest.mark.parametrize(("block_size", "bytes_"), [(1, 2**20), (4, 2**20), (1000, 150)])
def test_nearest_equals_brute_force(pool, make_mkvs, monkeypatch, block_size, bytes_):
    monkeypatch.setattr("fedit_app.pool.blocks._COSINE_BYTES", bytes_)
    monkeypatch.setattr(MKVPool, "blocks", partialmethod(MKVPool.blocks, block_size=block_size))
    mkvs = make_mkvs(20, node="clinic") + make_mkvs(15, seed=1, node="school")
    pool.append(mkvs)
    random = np.random.default_rng(3)
    queries = {
        node: random.standard_normal((m, 8)) * 7 + 3 for node, m in (("school", 4), ("x", 2))
    }
    held = {"x": {mkv.id for mkv in mkvs[5:25]}}
    for threshold, limit in ((-1, 50), (0.6, 3), (0.5, 4)):
        found = pool.nearest(queries, "v_star", FINGERPRINT, threshold, limit, held)
        for node, rows in queries.items():
            used = [mkv for mkv in mkvs if mkv.id not in held.get(node, ())]
            units = unit_rows(np.stack([mkv.v_star for mkv in used]))
            expected = []
            for row in cosines(unit_rows(rows), units):
                ranked = sorted((-value, mkv.id) for value, mkv in zip(row, used, strict=True))
                matches = [Match(id_, -value) for value, id_ in ranked if -value >= threshold]
                expected.append(matches[:limit])
            assert found[node] == expected


def test_nearest_orders_ties_by_id(pool, make_mkvs):
    base, *others = make_mkvs(10)
    twins = [
        create("clinic", 1, FINGERPRINT, other.keys, other.shifts, base.v_star, base.h0)
        for other in others
    ]
    pool.append(twins)
    (matches,) = pool.nearest({"n": base.v_star[None] * 3}, "v_star", FINGERPRINT, 0.99, 5)["n"]
    assert [match.id for match in matches] == sorted(mkv.id for mkv in twins)[:5]
    assert len({match.cosine for match in matches}) == 1


def test_nearest_refuses_wrong_queries(pool, make_mkvs):
    pool.append(make_mkvs(2))
    with pytest.raises(FedEditError, match=r"\(1, 9\) found"):
        pool.nearest({"n": np.ones((1, 9))}, "v_star", FINGERPRINT, 0.5, 1)
    with pytest.raises(FedEditError, match=r"\(1, 9\) found"):
        pool.nearest({"a": np.ones((1, 8)), "b": np.ones((1, 9))}, "v_star", FINGERPRINT, 0.5, 1)
    with pytest.raises(FedEditError, match="limit 0"):
        pool.nearest({"n": np.ones((1, 8))}, "v_star", FINGERPRINT, 0.5, 0)
    assert pool.nearest({"n": np.ones((0, 8))}, "v_star", FINGERPRINT, 0.5, 1) == {"n": []}


def test_the_disk_is_told_where_there_is_one(tmp_path, make_mkvs):
    folder = tmp_path / "with a space & 100%"
    pool = MKVPool(str(folder))
    assert pool.disk_bytes() == 0
    pool.append(make_mkvs(5))
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert pool.disk_bytes() == sum(file.stat().st_size for file in files) > 1000


def test_storage_that_is_no_folder(make_mkvs):
    pool, mkvs = MKVPool("memory://"), make_mkvs(6)
    assert pool.disk_bytes() is None
    assert len(pool.append(mkvs)) == 6
    pool.rewrite(lambda batch: batch.slice(1))
    ids = [mkv.id for mkv in mkvs[1:]]
    assert [mkv.id for mkv in pool.fetch(ids)] == ids
    query = {"n": mkvs[0].lookup_key[None]}
    assert len(pool.nearest(query, "key", FINGERPRINT, -1, 9)["n"][0]) == 5
