"""The head of a node's ledger is signed: who changes its files without the key is noticed."""

import json
import shutil

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from ledger.test_ledger import make_mkvs

from fedit_app.ledger.index import INDEX, JOURNAL, read_index, sign_ledger
from fedit_app.ledger.ledger import Ledger
from fedit_app.ledger.verify import verify
from fedit_app.mkv.authorship import SigningKey
from fedit_app.support.errors import FedEditError

KEY = SigningKey(ec.generate_private_key(ec.SECP384R1()))
OTHER = SigningKey(ec.generate_private_key(ec.SECP384R1()))


@pytest.fixture
def folder(tmp_path):
    """A signed ledger with two steps, and its state after the first one in `earlier`."""
    folder = tmp_path / "ledger"
    ledger = Ledger.open(folder, "model-a", KEY)
    one, two = make_mkvs(2)
    ledger.accept([one], 1)
    shutil.copytree(folder, tmp_path / "earlier")
    ledger.accept([two], 2)
    return folder


def damages(folder, key=KEY):
    return verify(folder, public_key=key.public).damages


def test_every_step_is_signed(folder, tmp_path):
    for found, count in ((folder, 2), (tmp_path / "earlier", 1)):
        assert damages(found) == []
        assert verify(found).signed_by == KEY.public
        assert len(Ledger.open(found, "model-a")) == count
    assert damages(folder, OTHER) != []


def test_an_end_that_was_cut_off_is_noticed(folder):
    """Index and journal of one step less are made to fit: only the signature does not."""
    index = read_index(folder)
    lines = (folder / JOURNAL).read_bytes().splitlines(keepends=True)
    first, last = json.loads(lines[0]), json.loads(lines[1])
    (folder / JOURNAL).write_bytes(lines[0])
    index["journal"] = {"records": 1, "bytes": len(lines[0]), "hash": first["hash"]}
    index["entries"] = [row for row in index["entries"] if row["id"] != last["mkv"]]
    (folder / INDEX).write_text(json.dumps(index))
    (problem,) = damages(folder)
    assert "not one of this head" in problem
    assert verify(folder).damages == [problem]
    with pytest.raises(FedEditError, match="not one of this head; restore a backup"):
        Ledger.open(folder, "model-a", KEY)
    with pytest.raises(FedEditError, match="not one of this head"):
        sign_ledger(folder, OTHER)


def test_a_signature_taken_away_or_made_with_another_key_is_noticed(folder):
    index = json.loads((folder / INDEX).read_bytes())
    (folder / INDEX).write_text(json.dumps(index | {"signature": None} | {}))
    with pytest.raises(FedEditError, match="damaged"):
        Ledger.open(folder, "model-a", KEY)
    del index["signature"]
    (folder / INDEX).write_text(json.dumps(index))
    assert "not signed with this node's key" in damages(folder)[0]
    sign_ledger(folder, OTHER)
    assert "this node's is SHA256:" in damages(folder)[0]
    sign_ledger(folder, KEY)
    assert damages(folder) == []


def test_without_a_key_nothing_is_signed(tmp_path):
    ledger = Ledger.open(tmp_path / "ledger", "model-a")
    ledger.accept(make_mkvs(1), 1)
    assert "signature" not in read_index(tmp_path / "ledger")
    assert verify(tmp_path / "ledger").signed_by == ""
    assert damages(tmp_path / "ledger") != []
