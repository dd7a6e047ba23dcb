"""`fedit pool`: looking at a pool, checking it, taking MKVs out of it."""

import json
import shutil

import lancedb
import numpy as np
import pytest

from fedit_app.cli.main import main
from fedit_app.mkv import create, to_bytes
from fedit_app.mkv.federation_key import FederationKey
from fedit_app.mkv.sealer import Sealer
from fedit_app.pool import MKVPool
from fedit_app.pool.withdraw import confirm, withdraw

pytestmark = pytest.mark.long

WIDTH = 8
TABLE = "mkvs"


def mkv(subject: int, node: str, slot: int = 1, tilt: float = 0.0, fingerprint: str = "f"):
    """An MKV about a subject; tilted a little, another one for the same fact."""
    axes = np.eye(WIDTH)
    vector = axes[subject] + tilt * axes[-1]
    return create(node, slot, fingerprint, vector[None], vector[None], 2 * vector, vector / 2)


@pytest.fixture(scope="module")
def mkvs():
    """Five facts: subject 0 computed by three nodes, subject 1 by two alike."""
    return {
        "bank-0": mkv(0, "bank"),
        "court-0": mkv(0, "court", 2, tilt=0.01),
        "school-0": mkv(0, "school", 3, tilt=0.02),
        "bank-1": mkv(1, "bank"),
        "court-1": mkv(1, "court"),
        "court-2": mkv(2, "court", 2),
        "school-3": mkv(3, "school", 3),
        "old-4": mkv(4, "bank", fingerprint="another"),
    }


@pytest.fixture(scope="module")
def appended(tmp_path_factory, mkvs):
    """A pool of these, appended node by node."""
    folder = tmp_path_factory.mktemp("appended")
    pool = MKVPool(str(folder))
    for one in mkvs.values():
        pool.append([one])
    return folder


@pytest.fixture
def folder(appended, tmp_path):
    """A copy of the pool, to be changed."""
    return shutil.copytree(appended, tmp_path / "run" / "pool")


@pytest.fixture
def fedit(capsys):
    """Gives `fedit(*arguments)`: runs `fedit pool`; (status, output, errors)."""

    def fedit(*arguments) -> tuple[int, str, str]:
        status = main(["pool", *map(str, arguments)])
        said = capsys.readouterr()
        return status, said.out, said.err

    return fedit


def cells(text: str, first: str) -> list[str]:
    """The cells of the row that begins with `first`."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split(" | ")][1:]


def fields(text: str) -> dict[str, str]:
    """The fields above the tables."""
    found = (line[2:].split(": ", 1) for line in text.splitlines() if line.startswith("- "))
    return dict(found)


# stats


def test_stats(fedit, folder):
    status, out, _ = fedit("stats", folder)

    assert status == 0
    assert "- MKVs: 7\n- facts: 5\n- folded under another MKV of the same fact: 2\n" in out
    assert "- uploaded by several nodes alike: 1\n- on disk: " in out
    assert cells(out, "node") == ["MKVs", "facts", "slot 1", "slot 2", "slot 3"]
    assert cells(out, "bank") == ["3", "3", "3", "0", "0"]
    assert cells(out, "court") == ["2", "1", "0", "2", "0"]
    assert cells(out, "school") == ["2", "1", "0", "0", "2"]
    assert cells(out, "all") == ["7", "5", "3", "2", "2"]
    assert cells(out, "`f`") == ["6", "4"]
    assert cells(out, "`another`") == ["1", "1"]
    assert "Cosines between facts (all 4 of fingerprint f)" in out
    # The four subjects of this fingerprint are orthogonal.
    assert cells(out, "+0.0 to +0.1")[0].startswith("100.0% #####")


def test_stats_of_many_slots_adds_up_the_earlier_ones(fedit, tmp_path):
    MKVPool(str(tmp_path)).append([mkv(i % 7, "bank", slot=i + 1, tilt=i / 2) for i in range(11)])
    _, out, _ = fedit("stats", tmp_path)

    assert cells(out, "node")[:5] == ["MKVs", "facts", "earlier slots", "slot 4", "slot 5"]
    assert cells(out, "bank")[2:] == ["3", *["1"] * 8]


def test_similarities_of_a_large_pool_are_those_of_a_sample(fedit, folder, monkeypatch):
    monkeypatch.setattr("fedit_app.pool.overview._SAMPLE", 3)
    said = [fedit("stats", folder, "--seed", seed)[1] for seed in (5, 5, 6)]

    assert "3 of 4, drawn with seed 5, of fingerprint f" in said[0]
    assert said[0] == said[1] != said[2]


# Which pool


def test_a_run_folder_names_its_pool(fedit, folder, tmp_path):
    (folder.parent / "config.toml").write_text('pool-uri = ""\n')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "config.toml").write_text(f'pool-uri = "{folder}"\n')

    said = [fedit("stats", source) for source in (folder, folder.parent, elsewhere)]
    assert said[0] == said[1] == said[2]


def test_without_a_pool_there_is_an_error_and_no_new_folder(fedit, tmp_path):
    for source in (tmp_path / "nothing", tmp_path):
        status, _, err = fedit("stats", source)
        assert status == 2
        assert "name a pool" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("action", ["stats", "list", "verify", "prune"])
def test_a_pool_of_another_version_is_refused(fedit, tmp_path, action):
    lancedb.connect(str(tmp_path)).create_table(TABLE, [{"id": "a", "node": "n", "v": 1}])
    status, _, err = fedit(action, tmp_path)

    assert status == 2
    assert "has no column nodes" in err and "unknown column v" in err


# list and show


def test_list(fedit, folder, mkvs):
    rows = json.loads(fedit("list", folder, "--format", "json")[1])["mkvs"]

    assert [row["slot"] for row in rows] == [1, 1, 1, 2, 2, 3, 3]
    assert [row["node"] for row in rows] == ["bank"] * 3 + ["court"] * 2 + ["school"] * 2
    by_id = {row["id"]: row for row in rows}
    assert by_id[mkvs["court-0"].id]["stands_for_its_fact"] == mkvs["bank-0"].id
    assert by_id[mkvs["court-2"].id]["stands_for_its_fact"] == "itself"
    assert by_id[mkvs["bank-1"].id]["uploaded_by_too"] == "court"
    assert fedit("list", folder)[1].endswith("|\n\n7 MKVs\n")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--node", "bank"], ["bank-0", "bank-1", "old-4"]),
        (["--node", "court", "--node", "school", "--slot", 2], ["court-0", "court-2"]),
        (["--before-slot", 2, "--fingerprint", "f"], ["bank-0", "bank-1"]),
        (["--slot", 3, "--slot", 2, "--node", "school"], ["school-0", "school-3"]),
        (["--slot", 9], []),
    ],
)
def test_list_shows_what_meets_all_criteria(fedit, folder, mkvs, options, names):
    _, out, _ = fedit("list", folder, *options)

    assert {one for one in mkvs.values() if f"| `{one.id}` |" in out} >= {
        mkvs[name] for name in names
    }
    assert f"{len(names)} MKV" in out


def test_list_is_limited(fedit, folder):
    _, out, _ = fedit("list", folder, "--limit", 2)

    assert len(out.splitlines()) == 2 + 2 + 2
    assert "7 MKVs; the first 2 are shown" in out


def test_show(fedit, folder, mkvs):
    one = mkvs["court-0"]
    _, out, _ = fedit("show", folder, one.id[:12])

    shown = fields(out)
    assert (shown["id"], shown["node"]) == (one.id, "court")
    assert shown["fact"] == mkvs["bank-0"].id
    assert set(shown["same fact"].split(", ")) == {mkvs["bank-0"].id, mkvs["school-0"].id}
    assert cells(out, r"v\* - h0") == ["8", f"{np.linalg.norm(one.delta):.3f}"]
    similar = [line.split("`")[1] for line in out.splitlines() if line.startswith("| delta |")]
    assert similar[0] == mkvs["bank-0"].id and len(similar) == 4, "the facts of its fingerprint"


@pytest.mark.parametrize("beginning", ["zz", ""])
def test_show_asks_for_one_mkv(fedit, folder, beginning):
    status, _, err = fedit("show", folder, beginning)

    assert status == 2
    assert "no MKV with an id that begins with" in err


# verify


def test_a_sound_pool(fedit, folder):
    assert fedit("verify", folder) == (0, "the pool is sound\nMKVs: 7\n", "")


def damage(folder, change) -> None:
    change(lancedb.connect(str(folder)).open_table(TABLE))


def double(table) -> None:
    table.add(table.search().limit(1).to_arrow())


def other_vector(kind):
    vector = [1.0] + [0.0] * (WIDTH - 1)
    return lambda table: table.update(where="node = 'school' AND slot = 3", values={kind: vector})


def spoil_payload(table) -> None:
    row = table.search().where("node = 'school'").limit(1).to_list()[0]
    payload = bytearray(row["payload"])
    payload[-1] ^= 1
    table.update(where=f"id = '{row['id']}'", values={"payload": bytes(payload)})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (double, "is in the pool twice"),
        (spoil_payload, "damaged payload: MKV 0 from node 'school': id"),
        (other_vector("key"), "column key is not the signature of its payload"),
        (other_vector("v_star"), "column v_star is not the signature"),
        (other_vector("delta"), "column delta is not the signature"),
        (lambda t: t.update(where="slot = 3", values={"slot": 4}), "column slot is 4, the payload"),
        (lambda t: t.update(where="slot = 3", values={"node": "x"}), "column node is 'x'"),
        (lambda t: t.update(where="slot = 3", values={"nodes": ["x"]}), "column nodes is ['x']"),
        (lambda t: t.delete("slot = 1"), "is not a canonical MKV"),
        (lambda t: t.update(where="node = 'bank'", values={"fingerprint": "g"}), "fingerprint is"),
    ],
)
def test_verify_names_damage(fedit, folder, change, told):
    damage(folder, change)
    status, out, _ = fedit("verify", folder)

    assert status == 1
    assert told in out
    assert "the pool is damaged" in out


def test_verify_names_a_damaged_file(fedit, folder):
    for file in (folder / "mkvs.lance" / "data").iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    status, out, _ = fedit("verify", folder)

    assert status == 1
    assert "the rest of the table cannot be read" in out


def test_verify_names_a_few_of_many(fedit, folder, monkeypatch):
    monkeypatch.setattr("fedit_app.cli.output._MOST_FINDINGS", 2)
    damage(folder, lambda table: table.update(values={"slot": 9}))
    _, out, _ = fedit("verify", folder)

    assert out.count("column slot is 9") == 2
    assert "... and 5 more" in out and "7 findings" in out


def test_a_lost_manifest_is_an_error(fedit, folder):
    for file in (folder / "mkvs.lance" / "_versions").iterdir():
        file.write_bytes(b"")
    status, _, err = fedit("verify", folder)

    assert status == 2
    assert "cannot be opened" in err


# prune


def rows(folder) -> dict[str, dict]:
    return {row["id"]: row for row in MKVPool(str(folder)).rows(["id", "node", "nodes", "fact"])}


def test_pruning_elects_another_mkv_for_a_fact(fedit, folder, mkvs):
    status, out, _ = fedit("prune", folder, "--id", mkvs["bank-0"].id)

    assert status == 0
    assert "1 of 7 MKVs taken out, 0 facts lost with them" in out
    assert "1 fact another MKV stands for now" in out
    left = rows(folder)
    assert set(left) == {one.id for one in mkvs.values()} - {mkvs["bank-0"].id}
    assert left[mkvs["court-0"].id]["fact"] == mkvs["court-0"].id
    assert left[mkvs["school-0"].id]["fact"] == mkvs["court-0"].id
    assert fedit("verify", folder)[0] == 0
    pool = MKVPool(str(folder))
    assert mkvs["court-0"].id in {id_ for block in pool.blocks("key", "f") for id_ in block.ids}


def test_a_withdrawn_node_leaves_what_others_uploaded_too(fedit, folder, mkvs):
    _, out, _ = fedit("prune", folder, "--node", "bank")

    assert "2 of 7 MKVs taken out, 1 fact lost" in out
    assert "1 MKV kept for other nodes" in out
    left = rows(folder)
    assert not {mkvs["bank-0"].id, mkvs["old-4"].id} & set(left)
    assert left[mkvs["bank-1"].id]["node"] == "court"
    assert left[mkvs["bank-1"].id]["nodes"] == ["court"]
    (kept,) = MKVPool(str(folder)).fetch([mkvs["bank-1"].id])
    assert to_bytes(kept) == to_bytes(mkvs["court-1"])
    assert fedit("verify", folder)[0] == 0


def test_pruning_frees_the_disk(fedit, tmp_path):
    folder = tmp_path / "pool"
    pool = MKVPool(str(folder))
    secret = create("leaver", 1, "f", *(np.arange(1.0, 4001).reshape(s) for s in ((1, -1),) * 2),
                    np.arange(4000.0), np.ones(4000))  # fmt: skip
    for one in [secret] + [
        create("stayer", 1, "f", *np.random.default_rng(i).standard_normal((2, 1, 4000)),
               *np.random.default_rng(-i - 1 + 100).standard_normal((2, 4000)))
        for i in range(30)
    ]:  # fmt: skip
        pool.append([one])
    trace = to_bytes(secret)[-3000:]

    def found() -> bool:
        return any(trace in file.read_bytes() for file in folder.rglob("*") if file.is_file())

    def size() -> int:
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

    assert found()
    before = size()
    _, out, _ = fedit("prune", folder, "--node", "leaver")
    assert "on disk:" in out
    assert not found() and size() < before
    assert fedit("verify", folder)[0] == 0


def test_a_dry_run_changes_nothing(fedit, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "before")
    _, out, _ = fedit("prune", folder, "--node", "bank", "--dry-run")

    assert "2 of 7 MKVs taken out" in out and "dry run" in out
    names = {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.lance")
             if file.is_file()}  # fmt: skip
    assert names == {
        file.relative_to(tmp_path / "before"): file.read_bytes()
        for file in (tmp_path / "before").rglob("*.lance")
        if file.is_file()
    }
    assert len(rows(folder)) == 7


def test_pruning_without_criteria_only_frees_the_disk(fedit, folder):
    before = rows(folder)
    files = sum(file.is_file() for file in folder.rglob("*"))
    _, out, _ = fedit("prune", folder)

    assert "0 of 7 MKVs taken out" in out
    assert rows(folder) == before
    assert sum(file.is_file() for file in folder.rglob("*")) < files


def test_everything_can_go(fedit, folder, mkvs):
    fedit("prune", folder, "--before-slot", 9)

    assert rows(folder) == {}
    assert fedit("verify", folder)[0] == fedit("stats", folder)[0] == 0
    assert MKVPool(str(folder)).append([mkvs["bank-0"]]) == [mkvs["bank-0"].id]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--node", "bnak"], "no MKV with node 'bnak'"),
        (["--id", "x", "--node", "bank"], "no MKV with id 'x'"),
        (["--fingerprint", "g"], "no MKV with fingerprint 'g'"),
    ],
)
def test_pruning_refuses_names_that_do_not_occur(fedit, folder, options, told):
    status, _, err = fedit("prune", folder, *options)

    assert status == 2
    assert told in err
    assert len(rows(folder)) == 7


def test_pruning_notices_a_writer(fedit, folder, monkeypatch):
    batches = MKVPool.batches

    def slow(self, columns, *size):
        for batch in batches(self, columns, *size):
            if "payload" in columns:
                MKVPool(str(folder)).append([mkv(6, "late")])
            yield batch

    monkeypatch.setattr(MKVPool, "batches", slow)
    status, _, err = fedit("prune", folder, "--node", "bank")
    monkeypatch.undo()

    assert status == 2
    assert "wrote to it at the same time" in err
    assert len(rows(folder)) == 8
    assert fedit("verify", folder)[0] == 0


# Sealed pools


@pytest.fixture
def sealed(tmp_path, mkvs):
    """The same pool, sealed: (folder, name -> sealed MKV)."""
    sealer = Sealer(FederationKey.new(), "sealed-f", "f", 256)
    names = [name for name, one in mkvs.items() if one.fingerprint == "f"]
    found = dict(zip(names, sealer.seal([mkvs[name] for name in names]), strict=True))
    folder = tmp_path / "sealed" / "pool"
    for one in found.values():
        MKVPool(str(folder)).append([one])
    return folder, found


def test_a_sealed_pool_is_looked_at_like_an_open_one(fedit, sealed):
    folder, found = sealed
    _, out, _ = fedit("stats", folder)
    assert "- MKVs: 6\n- facts: 4\n- folded under another MKV of the same fact: 2\n" in out
    assert "of sketches, which err by up to 0.06:" in out
    assert cells(out, "court") == ["2", "1", "0", "2", "0"]

    _, out, _ = fedit("list", folder, "--node", "school")
    assert found["school-3"].id in out and "2 MKVs" in out
    _, out, _ = fedit("show", folder, found["school-0"].id[:12])
    assert "that only nodes with the federation key can open, and sketches of 256" in out
    assert fields(out)["fact"] == found["bank-0"].id


def test_what_can_be_checked_of_a_sealed_pool(fedit, sealed):
    folder, found = sealed
    status, out, _ = fedit("verify", folder)
    assert status == 0
    assert "the pool is sound\nMKVs: 6\nsealed: 6 MKVs, whose payloads" in out

    table = lancedb.connect(str(folder)).open_table(TABLE)
    table.update(where=f"id = '{found['bank-0'].id}'", values={"slot": 9})
    status, out, _ = fedit("verify", folder)
    assert status == 1
    assert f"MKV {found['bank-0'].id}: column slot is 9, the payload has 1" in out


def test_what_is_sealed_goes_with_the_node_that_sealed_it(fedit, sealed):
    """bank-1 was uploaded by the court as well, but names the bank."""
    folder, found = sealed
    status, out, _ = fedit("prune", folder, "--node", "bank")

    assert status == 0
    assert "2 of 6 MKVs taken out, 1 fact lost" in out
    assert "0 MKVs kept for other nodes" in out
    left = rows(folder)
    assert not {found["bank-0"].id, found["bank-1"].id} & set(left)
    assert left[found["school-0"].id]["fact"] == found["court-0"].id
    assert fedit("verify", folder)[0] == 0


def test_what_is_sealed_by_a_node_that_stays_stays(fedit, sealed):
    folder, found = sealed
    _, out, _ = fedit("prune", folder, "--node", "court")

    assert "1 MKV kept for other nodes" in out
    assert rows(folder)[found["bank-1"].id]["nodes"] == ["bank"]
    assert fedit("verify", folder)[0] == 0


def test_withdrawals_are_listed_with_who_has_confirmed_them(fedit, folder, mkvs):
    assert fedit("withdrawals", folder) == (0, "nothing was withdrawn\n", "")
    pool, id_ = MKVPool(str(folder)), mkvs["bank-0"].id
    withdraw(pool, "bank", {id_})
    confirm(pool, "court", {id_})
    status, out, _ = fedit("withdrawals", folder, "--format", "json")
    assert status == 0
    (row,) = json.loads(out)["withdrawals"]
    assert list(row.values()) == [id_, "bank", "no", "court"]


def test_the_pool_of_an_earlier_run_keeps_a_withdrawn_mkv_until_it_is_taken_out(
    fedit, folder, mkvs, tmp_path
):
    (folder.parent / "config.toml").write_text('pool-uri = ""\n')
    later = MKVPool(str(tmp_path / "later" / "pool"))
    one = mkvs["old-4"]
    later.append([one])
    withdraw(later, "bank", {one.id})
    status, out, _ = fedit("withdrawals", tmp_path / "later" / "pool")
    said = " ".join(out.split())
    assert status == 0 and "fedit pool prune RUN --node NAME --id ID" in said

    def stays(run):
        payload = to_bytes(one)
        return any(payload in file.read_bytes() for file in run.rglob("*") if file.is_file())

    assert stays(folder.parent) and not stays(tmp_path / "later")
    options = ("--node", "bank", "--id", one.id)
    assert "1 of 7 MKVs taken out" in fedit("prune", folder.parent, *options)[1]
    assert not stays(folder.parent)
