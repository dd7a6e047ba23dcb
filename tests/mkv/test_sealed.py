"""Sealing: what a server may have of MKVs, and that nobody can change it unnoticed."""

import dataclasses

import numpy as np
import pytest

from fedit_app.mkv import create, decode, encode, from_bytes, mkv_from_bytes, to_bytes
from fedit_app.mkv.federation_key import FederationKey
from fedit_app.mkv.same_key import SameFact, same_fact
from fedit_app.mkv.sealed import SKETCHES
from fedit_app.mkv.sealer import Sealer
from fedit_app.mkv.sketch import Sketcher
from fedit_app.pool import MKVPool, SelectionConfig
from fedit_app.support.errors import FedEditError

FINGERPRINT, PUBLIC, WIDTH = "model-a", "sealed-a", 64
KEY = FederationKey(bytes(range(32)))


@pytest.fixture
def sealer() -> Sealer:
    return Sealer(KEY, PUBLIC, FINGERPRINT, WIDTH)


@pytest.fixture
def mkvs(make_mkvs):
    return make_mkvs(5, d_ff=200, d_model=100)


def fields(mkv) -> tuple:
    return to_bytes(mkv), mkv.id, mkv.node, mkv.slot


def test_what_is_sealed_opens(sealer, mkvs):
    sealed = sealer.seal(mkvs)

    assert [fields(sealer.open(one)) for one in sealed] == [fields(mkv) for mkv in mkvs]
    assert sealer.seal([]) == []


def test_the_same_mkv_gives_the_same_bytes_on_every_node(sealer, mkvs):
    first = [to_bytes(one) for one in sealer.seal(mkvs)]
    other = Sealer(FederationKey(KEY.secret), PUBLIC, FINGERPRINT, WIDTH)

    assert [to_bytes(one) for one in other.seal(mkvs)] == first
    renamed = dataclasses.replace(mkvs[0], node="school")
    (again,) = sealer.seal([renamed])
    assert again.id == sealer.seal(mkvs)[0].id
    assert again.payload[:12] != sealer.seal(mkvs)[0].payload[:12], "another text, another nonce"


def test_ids_go_both_ways_and_say_nothing(sealer, mkvs):
    other = Sealer(FederationKey.new(), PUBLIC, FINGERPRINT, WIDTH)
    for mkv in mkvs:
        assert sealer.open_id(sealer.seal_id(mkv.id)) == mkv.id
        assert len({mkv.id, sealer.seal_id(mkv.id), other.seal_id(mkv.id)}) == 3
    with pytest.raises(FedEditError, match="32 hex digits"):
        sealer.open_id("../../etc/passwd")


def test_nothing_of_an_mkv_stands_in_its_sealed_form(sealer, mkvs):
    """Neither its vectors, in any of the forms in which they are ever written, nor its names."""
    everything = b"".join(to_bytes(one) for one in sealer.seal(mkvs))
    for mkv in mkvs:
        for vector in (*mkv.keys, *mkv.shifts, mkv.v_star, mkv.h0, mkv.delta):
            units = vector / np.linalg.norm(vector)
            numbers = np.rint(vector / np.abs(vector).max() * 127).astype(np.int8)
            forms = [v.astype(t) for v in (vector, units) for t in ("<f2", "<f4", "<f8")]
            assert not any(form.tobytes()[:8] in everything for form in [*forms, numbers])
        assert mkv.id.encode() not in everything
    assert FINGERPRINT.encode() not in everything
    plain = b"".join(to_bytes(mkv) for mkv in mkvs)
    numbers = np.rint(mkvs[0].v_star / np.abs(mkvs[0].v_star).max() * 127).astype(np.int8)
    assert numbers.tobytes()[:8] in plain, "the search finds what is there"


def swapped(one, other):
    return {"payload": other.payload}


TAMPERED = {
    "id": lambda one, other: {"id": other.id},
    "node": lambda one, other: {"node": "school"},
    "slot": lambda one, other: {"slot": one.slot + 1},
    "fingerprint": lambda one, other: {"fingerprint": "sealed-b"},
    "payload of another": swapped,
    "first byte": lambda one, other: {"payload": bytes([one.payload[0] ^ 1]) + one.payload[1:]},
    "last byte": lambda one, other: {"payload": one.payload[:-1] + bytes([one.payload[-1] ^ 1])},
    "cut off": lambda one, other: {"payload": one.payload[:-1]},
    "sketches": lambda one, other: {"sketches": other.sketches},
    **{
        f"sketch of {kind}": lambda one, other, kind=kind: {
            "sketches": {**one.sketches, kind: other.sketches[kind]}
        }
        for kind in SKETCHES
    },
}


@pytest.mark.parametrize("change", TAMPERED.values(), ids=TAMPERED)
def test_whatever_is_changed_is_noticed(sealer, mkvs, change):
    one, other, *_ = sealer.seal(mkvs)
    with pytest.raises(FedEditError, match=f"sealed MKV .* of node '{one.node}|school'"):
        sealer.open(dataclasses.replace(one, **change(one, other)))


def test_another_key_opens_nothing(sealer, mkvs):
    (sealed,) = sealer.seal(mkvs[:1])
    with pytest.raises(FedEditError, match="another federation key"):
        Sealer(FederationKey.new(), PUBLIC, FINGERPRINT, WIDTH).open(sealed)


def test_what_a_fellow_node_sealed_wrongly_is_noticed(sealer, mkvs):
    """A node has the key; what it says outside has to be true of what is inside."""
    other_model = Sealer(KEY, PUBLIC, "model-b", WIDTH)
    with pytest.raises(FedEditError, match="names another MKV than it holds"):
        other_model.open(sealer.seal(mkvs[:1])[0])
    with pytest.raises(FedEditError, match="model-a found, model-b is to be sealed"):
        other_model.seal(mkvs)


def test_wire_and_bytes_round_trip(sealer, mkvs):
    sealed = sealer.seal(mkvs)
    kind, arrays, meta = encode(sealed)
    arrived = decode(kind, arrays, meta)

    assert kind == "sealed-mkv"
    assert [fields(sealer.open(one)) for one in arrived] == [fields(mkv) for mkv in mkvs]
    for one in sealed:
        assert to_bytes(from_bytes(to_bytes(one))) == to_bytes(one)
    with pytest.raises(FedEditError, match="sealed; only a node"):
        mkv_from_bytes(to_bytes(sealed[0]))
    with pytest.raises(FedEditError, match="open and sealed"):
        encode([mkvs[0], sealed[0]])


def nan(array):
    array = array.copy()
    array.flat[0] = np.nan
    return array


WRONG = {
    "a sketch less": lambda a, m: a.pop("key"),
    "a sketch too long": lambda a, m: a.update(key=np.hstack([a["key"], a["key"]])),
    "sketches too narrow": lambda a, m: a.update({k: a[k][:, :8] for k in SKETCHES}),
    "other numbers": lambda a, m: a.update(key=a["key"].astype(np.float32)),
    "longer than 1": lambda a, m: a.update(key=a["key"] * np.float16(1.1)),
    "no number": lambda a, m: a.update(key=nan(a["key"])),
    "payload cut off": lambda a, m: a.update(payload=a["payload"][:-1]),
    "sizes that do not add up": lambda a, m: m["sizes"].__setitem__(0, m["sizes"][0] + 1),
    "negative size": lambda a, m: m["sizes"].__setitem__(0, -m["sizes"][0]),
    "size is a text": lambda a, m: m["sizes"].__setitem__(0, "300"),
    "id twice": lambda a, m: m["ids"].__setitem__(0, m["ids"][1]),
    "no id": lambda a, m: m["ids"].__setitem__(0, "x" * 32),
    "no slot": lambda a, m: m["slots"].__setitem__(0, 0),
    "no name": lambda a, m: m["nodes"].__setitem__(0, ""),
    "a name less": lambda a, m: m["nodes"].pop(),
    "one thing more": lambda a, m: m.update(text="x"),
    "no lists": lambda a, m: m.update(ids="x"),
    "none": lambda a, m: [m[name].clear() for name in ("ids", "nodes", "slots", "sizes")],
}


@pytest.mark.parametrize("spoil", WRONG.values(), ids=WRONG)
def test_a_wrong_message_is_refused(sealer, mkvs, spoil):
    kind, arrays, meta = encode(sealer.seal(mkvs))
    spoil(arrays, meta)
    with pytest.raises(FedEditError):
        decode(kind, arrays, meta)


def test_corrupt_bytes_never_do_more_than_be_refused(sealer, mkvs):
    random = np.random.default_rng(0)
    data = to_bytes(sealer.seal(mkvs[:1])[0])
    for _ in range(500):
        damaged = bytearray(data)
        damaged[random.integers(len(data))] = random.integers(256)
        try:
            found = sealer.open(from_bytes(bytes(damaged)))
        except FedEditError:
            continue
        assert fields(found) == fields(mkvs[0])


# Sketches


def test_sketches_keep_cosines(make_mkvs):
    random = np.random.default_rng(0)
    vectors = random.standard_normal((40, 500)) + random.standard_normal(500)
    vectors[1] = vectors[0] + 0.05 * random.standard_normal(500)
    exact = unit(vectors) @ unit(vectors).T
    for width in (64, 1024):
        sketches = Sketcher(b"seed", width).sketch("key", vectors).astype(float)
        error = np.abs(sketches @ sketches.T - exact)
        assert error.max() < 5 * (1 - exact.min() ** 2) / width**0.5
        assert error[0, 1] < 5 * (1 - exact[0, 1] ** 2) / width**0.5 + 1e-3 < 0.01


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_sketch_depends_on_secret_and_kind_and_nothing_else():
    vectors = np.random.default_rng(0).standard_normal((3, 500))
    base = Sketcher(b"seed", 64).sketch("key", vectors)

    assert np.array_equal(Sketcher(b"seed", 64).sketch("key", 7 * vectors), base)
    assert np.array_equal(Sketcher(b"seed", 64).sketch("key", vectors[1:2])[0], base[1])
    for other in (
        Sketcher(b"deed", 64).sketch("key", vectors),
        Sketcher(b"seed", 64).sketch("delta", vectors),
    ):
        assert np.abs((other.astype(float) * base.astype(float)).sum(axis=1)).max() < 0.6
    assert not Sketcher(b"seed", 64).sketch("key", np.zeros((1, 500))).any()


def test_the_projection_is_that_of_every_version():
    """Sketches of a pool have to stay comparable: these are the bits of SHAKE-256."""
    sketch = Sketcher(b"seed", 16).sketch("key", np.eye(4)[:1])
    assert (sketch[0] > 0).astype(int).tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 1, 1, 0]


# A pool of them


def test_a_pool_of_sealed_mkvs_does_what_an_open_one_does(tmp_path, sealer, make_mkvs):
    mkvs = make_mkvs(12, d_ff=200, d_model=100)
    twin = create(
        "school",
        2,
        FINGERPRINT,
        mkvs[0].keys + 1e-3,
        mkvs[0].shifts * 1.01,
        mkvs[0].v_star,
        mkvs[0].h0,
    )
    assert same_fact(twin, mkvs[0], SameFact())
    everything = [*mkvs, twin]
    wide = Sealer(KEY, PUBLIC, FINGERPRINT, 2048)
    sealed = wide.seal(everything)
    plain, pool = MKVPool(str(tmp_path / "plain")), MKVPool(str(tmp_path / "sealed"))
    plain.append(everything)

    assert pool.append(sealed) == [one.id for one in sealed]
    assert MKVPool(str(tmp_path / "sealed")).append(wide.seal(everything)) == []
    assert [wide.open(one).id for one in pool.fetch([one.id for one in sealed])] == [
        mkv.id for mkv in everything
    ]
    facts = {wide.open_id(id_): wide.open_id(fact) for id_, fact in
             pool.facts([one.id for one in sealed]).items()}  # fmt: skip
    assert facts == plain.facts([mkv.id for mkv in everything])

    keys = np.stack([mkv.lookup_key for mkv in mkvs[3:6]])
    expected = plain.nearest({"a": keys}, "key", FINGERPRINT, 0.9, 3)["a"]
    found = pool.nearest({"a": wide.lookup(keys)}, "key", PUBLIC, 0.9, 3)["a"]
    assert [[wide.open_id(m.id) for m in row] for row in found] == [
        [m.id for m in row] for row in expected
    ]
    for kind, centred in (("v_star", False), ("delta", True)):
        config = SelectionConfig("top-k", kind, centred, 0.4, 4)
        own = {"a": np.stack([mkv.signature(kind) for mkv in mkvs[:2]])}
        sketches = {"a": np.stack([one.signature(kind) for one in sealed[:2]])}
        exact = [one.id for one in plain.select(own, FINGERPRINT, config)["a"]]
        ranked = [wide.open_id(one.id) for one in pool.select(sketches, PUBLIC, config)["a"]]
        assert len(set(exact) & set(ranked)) >= 3


def test_sealed_and_open_mkvs_share_no_pool(tmp_path, sealer, mkvs):
    pool = MKVPool(str(tmp_path / "pool"))
    pool.append(mkvs)
    with pytest.raises(FedEditError, match="another for sealed MKVs"):
        pool.append(sealer.seal(mkvs))


# The key


def test_a_key_file_is_private_and_kept(tmp_path):
    file = tmp_path / "federation.key"
    key = FederationKey.new()
    key.write(file)

    assert file.stat().st_mode & 0o777 == 0o600
    assert FederationKey.read(file) == key
    assert key.secret.hex() not in repr(key)
    with pytest.raises(FedEditError, match="never overwritten"):
        FederationKey.new().write(file)
    file.chmod(0o644)
    with pytest.raises(FedEditError, match="chmod 600"):
        FederationKey.read(file)


@pytest.mark.parametrize("content", [b"", b"ab\n", b"x" * 64, b"AB" * 32, b"\xff" * 64])
def test_a_file_that_holds_no_key(tmp_path, content):
    file = tmp_path / "federation.key"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(FedEditError, match="64 hexadecimal digits.*fedit node key new"):
        FederationKey.read(file)


def test_the_first_to_ask_makes_the_key_of_a_simulation(tmp_path):
    file = tmp_path / "federation.key"
    first = FederationKey.shared_by_all_at(file)
    assert FederationKey.shared_by_all_at(file) == first
    assert [path.name for path in tmp_path.iterdir()] == ["federation.key"]


def test_what_is_derived_from_a_key():
    assert KEY.id == FederationKey(KEY.secret).id and len(KEY.id) == 16
    derived = {KEY.derive(purpose) for purpose in ("id", "payload", "nonce")}
    assert len(derived | {FederationKey.new().derive("id")}) == 4
    assert not any(KEY.id in part.hex()[16:] for part in derived)
