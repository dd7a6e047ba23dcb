"""A process that is killed while it writes leaves a pool that is sound and has lost nothing."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pool.pool_writer import batch

from fedit_app.pool import MKVPool
from fedit_app.pool.check import check
from fedit_app.support.errors import FedEditError

WRITER = Path(__file__).with_name("pool_writer.py")
# An append takes about 30 ms, the first one longer: it makes the table.
DELAYS = (0, 0.02, 0.04, 0.06, 0.09, 0.12, 1.0)


@pytest.fixture
def killed():
    """Gives `killed(delay, *arguments)`: what a writer confirmed before it was killed.

    It is killed `delay` seconds after it has opened the pool.
    """

    def killed(delay: float, *arguments: object) -> list[list[str]]:
        process = subprocess.Popen(
            [sys.executable, WRITER, *map(str, arguments)], stdout=subprocess.PIPE, text=True
        )
        with process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(delay)
            process.kill()
            lines = process.stdout.readlines()
        assert process.returncode == -9, "it ended by itself; its error is above"
        return [line.split()[1:] for line in lines if line.endswith("\n")]

    return killed


def rows(uri: str) -> dict[str, dict]:
    pool = MKVPool(uri)
    assert list(check(pool)) == []
    return {row["id"]: row for row in pool.rows(["id", "node", "nodes", "fact"])}


@pytest.mark.parametrize("left", [[], ["_transactions/0-made.txn"], ["_versions/.tmp_1.manifest"]])
def test_killed_while_it_made_the_table(pool_uri, left):
    """What LanceDB leaves then is no pool yet; it lists the folder and cannot open it."""
    table = Path(pool_uri, "mkvs.lance")
    table.mkdir(parents=True)
    for name in left:
        (table / name).parent.mkdir()
        (table / name).write_bytes(b"")
    assert not MKVPool(pool_uri).exists
    assert len(MKVPool(pool_uri).append(batch(0))) == 4
    assert len(rows(pool_uri)) == 4


def test_a_pool_whose_versions_are_lost_is_not_an_empty_one(pool_uri):
    MKVPool(pool_uri).append(batch(0))
    shutil.rmtree(Path(pool_uri, "mkvs.lance", "_versions"))
    with pytest.raises(FedEditError, match="cannot be opened"):
        MKVPool(pool_uri)


@pytest.mark.slow
def test_killed_while_appending(pool_uri, killed):
    confirmed, number, left = set(), 0, {}
    for delay in DELAYS:
        for ids in killed(delay, "append", pool_uri, number):
            confirmed.update(ids)
            number += 1
        before, left = left, rows(pool_uri)
        assert confirmed <= left.keys(), "what was confirmed is lost"
        assert all(left[id_]["fact"] == row["fact"] for id_, row in before.items())
        # A batch is in the pool as a whole or not at all; the next writer begins with it again.
        in_flight = {mkv.id for mkv in batch(number)} - confirmed
        assert in_flight <= left.keys() or not in_flight & left.keys()
        assert left.keys() <= confirmed | in_flight
    assert number > 0
    for step in range(number - 1):
        first, second, near, _ = batch(step)
        assert left[first.id]["nodes"] == ["bank", "school"]
        assert len({left[id_]["fact"] for id_ in (first.id, near.id)}) == 1
        assert left[second.id]["fact"] == second.id


@pytest.mark.slow
def test_killed_while_writing_anew(pool_uri, killed):
    pool = MKVPool(pool_uri)
    for number in range(40):
        pool.append(batch(number))
    expected = rows(pool_uri)
    for delay in (0.06, 0.12, 0.18):
        killed(delay, "rewrite", pool_uri)
        assert rows(pool_uri) == expected
    assert MKVPool(pool_uri).append(batch(40))
