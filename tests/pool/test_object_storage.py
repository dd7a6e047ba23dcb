"""A pool on object storage: S3's protocol, spoken by a server on this machine."""

import numpy as np
import pytest

from fedit_app.cli.main import main
from fedit_app.mkv import to_bytes
from fedit_app.pool import MKVPool, SelectionConfig
from fedit_app.support.errors import FedEditError

pytestmark = pytest.mark.integration

FINGERPRINT = "model-a"


@pytest.fixture
def uri(bucket) -> str:
    return f"{bucket}/pools/pool"


def test_what_is_appended_is_there_once(uri, make_mkvs):
    mkvs = make_mkvs(5)
    pool = MKVPool(uri)
    assert not pool.exists
    assert pool.append(mkvs[:3]) == [mkv.id for mkv in mkvs[:3]]

    reopened = MKVPool(uri)
    assert reopened.append(mkvs) == [mkv.id for mkv in mkvs[3:]]
    assert len(MKVPool(uri)) == 5
    found = MKVPool(uri).fetch([mkv.id for mkv in mkvs])
    assert list(map(to_bytes, found)) == list(map(to_bytes, mkvs))


def test_it_ranks_as_a_pool_on_disk(uri, tmp_path, make_mkvs):
    mkvs = make_mkvs(12)
    own = {"clinic": np.array([mkv.signature("v_star") for mkv in make_mkvs(2, node="clinic")])}
    selection = SelectionConfig("top-k", "v_star", False, 0.4, 5)
    answers = []
    for place in (uri, str(tmp_path / "pool")):
        pool = MKVPool(place)
        pool.append(mkvs)
        ranked = pool.select(own, FINGERPRINT, selection, {"clinic": set()})
        near = pool.nearest(own, "v_star", FINGERPRINT, -1.0, 3)
        answers.append((ranked, near))
    assert answers[0] == answers[1]
    assert answers[0][0]["clinic"]


def test_fedit_pool_looks_after_it(uri, make_mkvs, capsys):
    mkvs = make_mkvs(5)
    MKVPool(uri).append(mkvs)

    assert main(["pool", "stats", uri]) == main(["pool", "verify", uri]) == 0
    said = capsys.readouterr().out
    assert "- MKVs: 5\n- facts: 5\n" in said and "kB\n" in said
    assert main(["pool", "prune", uri, "--id", mkvs[0].id, "--id", mkvs[1].id]) == 0
    assert "2 of 5 MKVs taken out" in capsys.readouterr().out
    assert [len(MKVPool(uri)), main(["pool", "verify", uri])] == [3, 0]


def test_a_bucket_that_does_not_exist_is_named(bucket):
    with pytest.raises(FedEditError, match="pool s3://nobodys/pool: cannot be opened .*404"):
        MKVPool("s3://nobodys/pool")


@pytest.mark.slow
def test_storage_that_cannot_be_reached_is_named(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FedEditError, match=f"pool {bucket}/pool: cannot be opened") as raised:
        MKVPool(f"{bucket}/pool")
    assert len(str(raised.value)) < 600
    assert "backtrace" not in str(raised.value)
