"""A ledger of many MKVs writes at a step what the step changes, and is read as if it wrote all."""

import json
import shutil

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from ledger.test_ledger import assert_same_bits, make_mkvs

from benchmarks.power_cuts import PowerCuts, written
from fedit_app.ledger import index as module
from fedit_app.ledger.index import INDEX, JOURNAL, TIP, read_index, sign_ledger
from fedit_app.ledger.ledger import Ledger
from fedit_app.ledger.verify import verify
from fedit_app.mkv import to_bytes
from fedit_app.mkv.authorship import SigningKey
from fedit_app.support.errors import FedEditError

MANY = make_mkvs(40)


@pytest.fixture
def many(tmp_path, monkeypatch):
    """A ledger of 30 MKVs, which counts as many."""
    monkeypatch.setattr(module, "FEW", 3)
    monkeypatch.setattr(module, "_SHARE", 2)
    folder = tmp_path / "ledger"
    ledger = Ledger.open(folder, "model-a")
    ledger.accept(MANY[:30], 1, {MANY[0].id: ["fact-1"]})
    return ledger


def changed(ledger):
    """What can happen to a ledger, one step each."""
    ids = [mkv.id for mkv in MANY]
    ledger.accept(MANY[30:32], 2, {MANY[30].id: ["fact-2"]})
    yield
    ledger.overrule({ids[3]: ids[4]})
    yield
    ledger.refuse(ids[5:7], "rolled back")
    yield
    ledger.count_votes({ids[1]: 3})
    yield
    ledger.allow(ids[5:6])
    yield
    ledger.accept(MANY[5:6], 3, supersedes={ids[5]: ids[8:9]})
    yield


def state(ledger):
    return ({id_: e.row for id_, e in ledger.entries.items()}, dict(ledger.refused))


def test_a_step_leaves_the_index_alone_and_is_read_all_the_same(many):
    before = (many.folder / INDEX).read_bytes()
    for _ in changed(many):
        assert (many.folder / INDEX).read_bytes() == before
        opened = Ledger.open(many.folder, "model-a")
        assert state(opened) == state(many) and opened.head == many.head
        assert_same_bits(opened, many)
        assert verify(many.folder).damages == []
        assert read_index(many.folder)["journal"].hash == many.head


def test_the_index_is_written_anew_when_much_has_changed(many):
    before = (many.folder / INDEX).read_bytes()
    votes = {mkv.id: 5 for mkv in MANY[:20]}
    many.count_votes(votes)
    assert (many.folder / INDEX).read_bytes() != before
    assert not (many.folder / TIP).exists()
    many.accept(MANY[30:32], 2)
    assert (many.folder / TIP).exists()
    many.count_votes(dict.fromkeys(votes, 6))
    assert json.loads((many.folder / INDEX).read_bytes())["journal"]["hash"] == many.head
    assert state(Ledger.open(many.folder, "model-a")) == state(many), "the tip before is too old"


def test_what_a_step_writes_does_not_grow_with_the_ledger(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FEW", 3)
    changed_files = []
    for n in (16, 32):
        ledger = Ledger.open(tmp_path / str(n), "model-a")
        ledger.accept(MANY[:n], 1)
        before = {file: file.read_bytes() for file in ledger.folder.rglob("*") if file.is_file()}
        ledger.accept(MANY[38:40], 2)
        after = {file: file.read_bytes() for file in ledger.folder.rglob("*") if file.is_file()}
        added = {
            file.name: len(content) - len(before.get(file, b""))
            for file, content in after.items()
            if before.get(file) != content
        }
        changed_files.append(added)
    few, many = changed_files
    assert few.keys() - {"0000000017.mkvs"} == {JOURNAL, TIP} == many.keys() - {"0000000033.mkvs"}
    assert sum(many.values()) <= sum(few.values()) + 9


def test_another_process_is_noticed_by_its_tip(many):
    late = Ledger.open(many.folder, "model-a")
    many.accept(MANY[30:31], 2)
    with pytest.raises(FedEditError, match="another process has changed it"):
        late.accept(MANY[31:32], 2)
    again = Ledger.open(many.folder, "model-a")
    again.accept(MANY[31:32], 2)
    assert len(Ledger.open(many.folder, "model-a")) == 32


def test_a_power_cut_at_every_write_loses_nothing(many, tmp_path):
    cuts, states = [], [state(many)]
    power = PowerCuts(many.folder, lambda cut: cuts.append((cut, len(states))))
    with power.watching():
        for _ in changed(many):
            states.append(state(many))
    assert len(cuts) > 15
    for cut, step in cuts:
        for image in cut.images:
            folder = written(image, tmp_path / "image")
            assert verify(folder).damages == [], cut.call
            found = state(Ledger.open(folder, "model-a"))
            assert found in states[step - 1 : step + 1], cut.call
            shutil.rmtree(folder)


@pytest.mark.parametrize("what", ["edited", "removed", "cut"])
def test_a_tampered_record_since_the_index_is_found(many, what):
    for _ in changed(many):
        pass
    file = many.folder / JOURNAL
    lines = file.read_bytes().splitlines(keepends=True)
    if what == "edited":
        lines[33] = lines[33].replace(b'"reason":"', b'"reason":"x', 1)[:-2] + b"\n"
    elif what == "removed":
        lines.append(lines.pop(32))
    else:
        lines.pop()
    file.write_bytes(b"".join(lines))
    with pytest.raises(FedEditError, match="ledger journal"):
        Ledger.open(many.folder, "model-a")
    assert any("ledger journal" in damage for damage in verify(many.folder).damages)


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 99}'])
def test_a_damaged_tip_is_named(many, text):
    many.accept(MANY[30:31], 2)
    (many.folder / TIP).write_text(text)
    with pytest.raises(FedEditError, match=f"ledger index {many.folder / TIP}: damaged"):
        Ledger.open(many.folder, "model-a")


def test_the_head_of_a_tip_is_signed(many, tmp_path):
    key = SigningKey(ec.generate_private_key(ec.SECP384R1()))
    signed = Ledger.open(many.folder, "model-a", key)
    signed.accept(MANY[30:31], 2)
    assert (many.folder / TIP).exists()
    assert verify(many.folder, public_key=key.public).damages == []
    tip = json.loads((many.folder / TIP).read_bytes())
    before = read_index(many.folder)
    sign_ledger(many.folder, key)
    assert read_index(many.folder)["entries"] == before["entries"]
    assert verify(many.folder, public_key=key.public).damages == []
    del tip["signature"]
    shutil.copy(many.folder / INDEX, tmp_path / "index")
    (many.folder / TIP).write_text(json.dumps(tip))
    assert verify(many.folder, public_key=key.public).damages == [], "the index is as late"
    Ledger.open(many.folder, "model-a").count_votes({MANY[1].id: 4})
    assert "not signed" in verify(many.folder, public_key=key.public).damages[0]


def as_version_3(folder):
    """Make of a ledger's folder what FedEdit 0.1 wrote: every MKV in a file of its own."""
    ledger = Ledger.open(folder, "model-a")
    content = {id_: to_bytes(entry.mkv) for id_, entry in ledger.entries.items()}
    shutil.rmtree(folder / "mkvs")
    (folder / "mkvs").mkdir()
    for id_, data in content.items():
        (folder / "mkvs" / f"{id_}.safetensors").write_bytes(data)
    index = json.loads((folder / INDEX).read_bytes())
    (folder / INDEX).write_text(json.dumps({**index, "version": 3}))


@pytest.mark.parametrize("few", [1, module.FEW])
def test_a_ledger_of_version_3_is_read_continued_and_keeps_its_files(tmp_path, monkeypatch, few):
    monkeypatch.setattr(module, "FEW", few)
    ledger = Ledger.open(tmp_path, "model-a")
    ledger.accept(MANY[:4], 1)
    as_version_3(tmp_path)
    old = {file.name: file.read_bytes() for file in (tmp_path / "mkvs").iterdir()}
    assert verify(tmp_path).damages == []
    opened = Ledger.open(tmp_path, "model-a")
    assert_same_bits(opened, ledger)
    opened.accept(MANY[4:6], 2)
    opened.drop([MANY[0].id])
    again = Ledger.open(tmp_path, "model-a")
    assert set(again.entries) == {mkv.id for mkv in MANY[1:6]}
    assert_same_bits(again, opened)
    assert verify(tmp_path).damages == []
    written = json.loads((tmp_path / INDEX).read_bytes())
    assert written["version"] == 4, "an older FedEdit, which sees no tip, refuses it"
    kept = {file.name: file.read_bytes() for file in (tmp_path / "mkvs").iterdir()}
    assert old.items() < kept.items() and len(kept) == len(old) + 1
