"""Rows of a pool that somebody has changed: they are told of, and never served."""

import pyarrow as pa
from fuzz.conftest import EXAMPLES
from fuzz.inputs import damaged
from fuzz.test_formats import MKVS, attempt
from hypothesis import given, settings
from hypothesis import strategies as st

from fedit_app.mkv import to_bytes
from fedit_app.pool import MKVPool
from fedit_app.pool.check import check as damages

PAYLOADS = [to_bytes(mkv) for mkv in MKVS[:2]]
TEXTS = ("id", "node", "fingerprint", "fact")


def rewritten(pool: MKVPool, change) -> None:
    """Change the pool's rows by a function of all of them."""

    def batch_of(batch: pa.RecordBatch) -> pa.RecordBatch:
        return pa.RecordBatch.from_pylist(change(batch.to_pylist()), batch.schema)

    pool.rewrite(batch_of)


def test_pool_rows(tmp_path):
    pool = MKVPool(str(tmp_path / "pool"))
    pool.append(MKVS[:2])
    sound = list(pool.rows(["id", "node", "nodes", "slot", "fingerprint", "fact", "payload"]))

    @settings(max_examples=min(EXAMPLES, 1000) // 4)
    @given(st.sampled_from(["payload", *TEXTS]), damaged(PAYLOADS[0]), st.text())
    def check(column, data, text):
        value = data if column == "payload" else text
        rewritten(pool, lambda rows: [rows[0] | {column: value}, *rows[1:]])
        found = list(damages(pool))
        served = attempt(pool.fetch, [sound[0]["id"]])
        assert served is None or to_bytes(served[0]) in PAYLOADS
        assert found or value == sound[0][column]
        rewritten(pool, lambda rows: [rows[0] | {column: sound[0][column]}, *rows[1:]])
        assert not list(damages(pool))

    check()
