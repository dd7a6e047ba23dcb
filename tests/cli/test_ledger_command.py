"""`fedit ledger`: what a ledger holds, how it came to, and that tampering is found."""

import dataclasses
import json
import re
import shutil

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fedit_app.cli.places import find_place
from fedit_app.deployment.node_setup import renew_key
from fedit_app.ledger.journal import _canonical, _hash
from fedit_app.ledger.ledger import Ledger
from fedit_app.ledger.mkv_files import MKVFiles
from fedit_app.mkv import to_bytes
from fedit_app.mkv.authorship import SigningKey
from fedit_app.mkv.node_key import key_fingerprint, read_public_key
from fedit_app.report.results import load_results


def test_list(fedit, after_a_run):
    status, out, _ = fedit("ledger", "list", after_a_run.root / "bank", "--format", "json")
    listed = json.loads(out)

    assert status == 0
    assert (listed["node"], listed["mkvs_held"], listed["holding"]) == ("bank", 6, 6)
    assert listed["head_of_the_journal"] == after_a_run.ledger("bank").head
    rows = {row["id"]: row for row in listed["mkvs"]}
    assert set(rows) == set(after_a_run.ledger("bank").entries)
    for id_ in after_a_run.of("bank", "hospital"):
        assert (rows[id_]["slot"], rows[id_]["origin"], rows[id_]["holds"]) == (
            1,
            "hospital",
            "yes",
        )
        assert rows[id_]["signed"] and rows[id_]["accepted"].startswith("20")
        assert set(rows[id_]["score_on_probes"]) == {"before", "after"}
    for id_ in after_a_run.of("bank", "bank"):
        assert rows[id_]["score_on_probes"] is None, "the edit stage measures no probes"
    table = fedit("ledger", "list", after_a_run.root / "bank")[1]
    assert "| slot | origin | id |" in table and all(
        f"| hospital | `{i}` |" in table for i in after_a_run.of("bank", "hospital")
    )


def test_show(fedit, after_a_run):
    (id_, _) = after_a_run.of("bank", "hospital")
    status, out, _ = fedit("ledger", "show", after_a_run.root / "bank", id_[:9])

    assert status == 0
    assert f"- id: {id_}\n- origin: hospital\n" in out
    assert "- here: it holds" in out
    assert re.search(
        r"\d \| 20\d\d-\d\d-\d\d \d\d:\d\d \| 1 \| accepted \| re-edit; fulfils no own request", out
    )
    assert "On the node's probes, by the re-edit of slot 1" in out
    status, _, err = fedit("ledger", "show", after_a_run.root / "bank", "nothing")
    assert status == 2 and "no MKV with an id that begins with 'nothing'" in err


@pytest.mark.parametrize("place", ["node", "ledger"])
def test_a_sound_ledger(fedit, after_a_run, place):
    folder = {"node": after_a_run.root / "bank", "ledger": after_a_run.folder("bank")}[place]
    status, out, _ = fedit("ledger", "verify", folder)

    assert status == 0
    head = after_a_run.ledger("bank").head
    key = key_fingerprint(read_public_key(after_a_run.node("bank").public_key))
    said = f"the ledger is sound\nMKVs: 6\nrecords: 6\nhead: {head}\nsigned with: {key}\n"
    assert out == said


def test_a_ledger_that_was_changed_without_the_nodes_key(fedit, sites):
    ledger = Ledger.open(sites.folder("bank"), sites.ledger("bank").fingerprint)
    ledger.refuse(sites.of("bank", "museum"), "wrong")
    status, out, _ = fedit("ledger", "verify", sites.root / "bank")
    assert status == 1 and "the head is not signed with this node's key" in out
    renew_key(sites.node("bank"))
    assert fedit("ledger", "verify", sites.root / "bank")[0] == 0


def test_a_new_key_signs_the_ledgers_and_a_rollback_signs_again(fedit, sites):
    renew_key(sites.node("bank"))
    assert fedit("ledger", "verify", sites.root / "bank")[0] == 0
    fedit("rollback", sites.root / "bank", "--from", "museum", "--no-metrics")
    status, out, _ = fedit("ledger", "verify", sites.root / "bank")
    key = key_fingerprint(read_public_key(sites.node("bank").public_key))
    assert status == 0 and f"signed with: {key}" in out


def test_an_earlier_head_is_still_there(fedit, sites):
    earlier = sites.ledger("bank").head
    ledger = sites.ledger("bank")
    ledger.refuse(sites.of("bank", "museum"), "wrong")

    assert fedit("ledger", "verify", sites.root / "bank", "--head", earlier)[0] == 0
    status, out, _ = fedit("ledger", "verify", sites.root / "bank", "--head", "0" * 64)
    assert status == 1 and f"--head: head {'0' * 64} is not in the journal" in out


def test_heads_that_the_server_has_noted(fedit, sites, tmp_path):
    """An old copy of the whole ledger is sound by itself; the run's record knows better."""
    record, ledger = sites.root / "first" / "results.json", sites.folder("bank")
    noted = load_results(record).ledger_heads("bank")
    assert noted == {1: sites.ledger("bank").head}
    sites.ledger("bank").refuse(sites.of("bank", "museum"), "wrong")
    asked = ("ledger", "verify", sites.root / "bank", "--record", record)
    status, out, _ = fedit(*asked)
    assert status == 0 and "heads noted by the server: 1\n" in out

    full = sites.ledger("bank")
    shorter = Ledger.open(tmp_path / "ledger", full.fingerprint, full.key)
    shorter.accept([full.entries[id_].mkv for id_ in sites.of("bank", "bank")], 1)
    shutil.rmtree(ledger)
    shutil.copytree(shorter.folder, ledger)
    assert fedit("ledger", "verify", sites.root / "bank")[0] == 0
    status, out, _ = fedit(*asked)
    assert status == 1 and f"{record}, slot 1: head {noted[1]} is not in the journal" in out
    museum = ("ledger", "verify", sites.root / "museum", "--record", record)
    assert fedit(*museum)[0] == 0
    written = json.loads(record.read_text(encoding="utf-8"))
    del written["slots"][0]["nodes"]["bank"]
    record.write_text(json.dumps(written), encoding="utf-8")
    status, _, err = fedit(*asked)
    assert status == 2 and "names no head of a ledger of node 'bank'" in err
    status, _, err = fedit(*asked[:-1], tmp_path / "none.json")
    assert status == 2 and "none.json" in err


# Tampering


def journal_lines(ledger, change):
    file = ledger.folder / "journal.jsonl"
    lines = file.read_bytes().splitlines()
    change(lines)
    file.write_bytes(b"".join(line + b"\n" for line in lines))


def edited(lines):
    lines[3] = lines[3].replace(b'"slot":1', b'"slot":2')


def removed(lines):
    del lines[2]


def truncated(lines):
    del lines[4:]


def forged(lines):
    """A record is changed and gets the hash that it should have; the next one tells."""
    record = json.loads(lines[3])
    del record["hash"]
    record["set"]["votes"] = 7
    lines[3] = _canonical({**record, "hash": _hash(record)})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (edited, "record 4 was changed"),
        (removed, "shorter than"),
        (truncated, "shorter than"),
        (forged, "record 5 does not follow"),
    ],
)
def test_a_journal_that_was_tampered_with(fedit, sites, change, told):
    journal_lines(sites.ledger("bank"), change)
    status, out, _ = fedit("ledger", "verify", sites.root / "bank")

    assert status == 1
    assert told in out and "the ledger is damaged" in out


def index_with(change):
    def harm(ledger, ids):
        file = ledger.folder / "index.json"
        index = json.loads(file.read_text())
        change(index)
        file.write_text(json.dumps(index))

    return harm


def rewrite_mkvs(ledger, change):
    """Write all MKVs to one file, after `change` has changed them, id -> bytes."""
    files = MKVFiles(ledger.folder)
    content = {id_: to_bytes(files.read(id_)) for id_ in ledger.entries}
    change(content)
    for file in (ledger.folder / "mkvs").iterdir():
        file.unlink()
    line = json.dumps([[id_, len(part)] for id_, part in content.items()]).encode()
    (ledger.folder / "mkvs" / "0000000001.mkvs").write_bytes(
        b"\n".join([line, b"".join(content.values())])
    )


def exchanged(ledger, ids):
    rewrite_mkvs(ledger, lambda content: content.update({ids[1]: content[ids[0]]}))


def deleted(ledger, ids):
    rewrite_mkvs(ledger, lambda content: content.pop(ids[1]))


def signed_by_another(ledger, ids):
    """The file says that somebody else has signed; his signature is a right one, but of another."""
    key = SigningKey(ec.generate_private_key(ec.SECP384R1()))
    other, one = (ledger.entries[id_].mkv for id_ in ids[:2])
    forged = dataclasses.replace(one, author=key.sign(other).author)
    rewrite_mkvs(ledger, lambda content: content.update({one.id: to_bytes(forged)}))


def signed_afterwards(index):
    index["entries"][1]["signature"] = {"public_key": "ab", "signature": "cd"}


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (exchanged, "it holds MKV"),
        (deleted, "none holds MKV"),
        (signed_by_another, "its file has another signature than the index"),
        (signed_by_another, "is not a signature of this MKV"),
        (index_with(lambda index: index["entries"].pop(1)), "by the journal in the index"),
        (
            index_with(lambda index: index["entries"][1].update(slot=2)),
            "the index has another slot than the journal",
        ),
        (
            index_with(lambda index: index["entries"][1].update(node="court")),
            "the index has another node than the journal",
        ),
        (index_with(signed_afterwards), "the index has another signature than the journal"),
    ],
)
def test_files_that_were_tampered_with(fedit, sites, harm, told):
    ledger = sites.ledger("bank")
    ids = sorted(ledger.entries)
    harm(ledger, ids)
    status, out, _ = fedit("ledger", "verify", sites.folder("bank"))

    assert status == 1
    assert f"MKV {ids[1]}: " in out and told in out


def test_an_index_from_before_is_noted(fedit, sites):
    before = (sites.folder("bank") / "index.json").read_bytes()
    sites.ledger("bank").refuse(sites.of("bank", "museum"), "wrong")
    (sites.folder("bank") / "index.json").write_bytes(before)
    status, out, _ = fedit("ledger", "verify", sites.root / "bank")

    assert status == 0
    assert "lie after the head that the index names" in out


# Which ledger


def test_a_node_with_several_ledgers(fedit, sites):
    shutil.copytree(sites.folder("bank").parent, sites.folder("bank").parents[1] / "other")
    status, _, err = fedit("ledger", "list", sites.root / "bank")
    assert status == 2 and "there are other, sites" in err
    assert fedit("ledger", "list", sites.root / "bank", "--federation", "other")[0] == 0


def test_places_that_are_none(fedit, sites):
    for arguments, told in (
        ([sites.root], "neither a ledger"),
        ([sites.root / "first", "--node", "bank"], "this run kept no ledgers here"),
        ([sites.root / "bank", "--node", "bank"], "leave --node out"),
        ([sites.folder("bank"), "--federation", "x"], "leave --federation out"),
    ):
        status, _, err = fedit("ledger", "list", *arguments)
        assert status == 2 and told in err, arguments


def test_a_ledger_that_no_run_made(fedit, tmp_path, after_a_run):
    ledger = Ledger.open(tmp_path, "f")
    ledger.accept([], 1)
    assert fedit("ledger", "verify", tmp_path)[0] == 0
    assert find_place(tmp_path).config is None
    ledger.accept([entry.mkv for entry in after_a_run.ledger("bank").entries.values()], 1)
    output = tmp_path / "out"
    status, _, err = fedit("export", tmp_path, "--format", "delta", "--output", output)
    assert status == 2 and "its model and settings are unknown" in err
