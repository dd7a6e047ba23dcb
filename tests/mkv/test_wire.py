import json

import numpy as np
import pytest
from safetensors.numpy import save

from fedit_app.errors import FedEditError
from fedit_app.mkv import MKV, decode, encode, from_bytes, to_bytes
from fedit_app.mkv.packing import PACKED_FIELDS, VECTOR_FIELDS, content_id

FINGERPRINT = "model-a"
JUNK = (None, 3, -1, 2.5, True, "x", "", "\ud800", b"x", [], [None], [[]], {}, 2**70, np.nan)
DTYPES = (np.float16, np.float32, np.float64, np.int32, np.uint8, ">f2", ">f4", bool, object, "U4")


def assert_same(found: MKV, expected: MKV) -> None:
    assert (found.id, found.fingerprint) == (expected.id, expected.fingerprint)
    for field in VECTOR_FIELDS:
        values, given = getattr(found, field), getattr(expected, field)
        assert values.dtype == np.float32 and values.shape == given.shape
        assert values.tobytes() == given.tobytes()


@pytest.fixture
def mkvs(make_mkvs) -> list[MKV]:
    return make_mkvs(3) + make_mkvs(2, seed=1, node="school", slot=4)


def test_decode_inverts_encode_bit_for_bit(mkvs):
    arrays, meta = encode(mkvs)
    for found, expected in zip(decode(arrays, meta, FINGERPRINT), mkvs, strict=True):
        assert_same(found, expected)
        assert (found.node, found.slot) == (expected.node, expected.slot)


def test_encode_inverts_decode_bit_for_bit(mkvs):
    arrays, meta = encode(mkvs)
    arrays_again, meta_again = encode(decode(arrays, meta, FINGERPRINT))
    assert meta_again == meta
    for name in PACKED_FIELDS:
        assert arrays_again[name].dtype == arrays[name].dtype
        assert arrays_again[name].tobytes() == arrays[name].tobytes()


def test_shapes_and_types_of_the_wire_form(mkvs):
    arrays, meta = encode(mkvs)
    found = {name: (array.shape, array.dtype.name) for name, array in arrays.items()}
    assert found == {
        "keys": ((5, 2, 12), "float16"),
        "keys_scale": ((5, 2), "float32"),
        "shifts": ((5, 2, 8), "float16"),
        "shifts_scale": ((5, 2), "float32"),
        "v_star": ((5, 8), "float16"),
        "v_star_scale": ((5,), "float32"),
        "h0": ((5, 8), "float16"),
        "h0_scale": ((5,), "float32"),
    }
    assert meta["nodes"] == ["clinic"] * 3 + ["school"] * 2
    assert meta["slots"] == [1] * 3 + [4] * 2


def test_no_mkvs():
    arrays, meta = encode([])
    assert decode(arrays, meta, FINGERPRINT) == []


def test_encode_refuses_a_mixture(make_mkvs):
    for other in (make_mkvs(1, fingerprint="model-b"), make_mkvs(1, d_ff=13)):
        with pytest.raises(FedEditError, match="cannot share"):
            encode(make_mkvs(1) + other)


def test_another_fingerprint_is_refused(mkvs):
    with pytest.raises(FedEditError, match="another model"):
        decode(*encode(mkvs), "model-b")


def test_the_same_id_twice_is_refused(mkvs):
    with pytest.raises(FedEditError, match="once"):
        decode(*encode([mkvs[0], mkvs[0]]), FINGERPRINT)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("keys_scale", np.inf),
        ("keys_scale", np.nan),
        ("keys_scale", -1.0),
        ("keys_scale", -0.0),
        ("keys_scale", 1e-30),
        ("keys_scale", 1e30),
        ("keys_scale", 0.0),
        ("keys", np.nan),
        ("keys", np.inf),
        ("keys", 2.0),
        ("keys", 0.5),
    ],
)
def test_values_no_sender_packs_are_refused_even_with_a_matching_id(mkvs, name, value):
    arrays, meta = encode(mkvs[:1])
    arrays[name][...] = value
    meta["ids"] = [content_id(FINGERPRINT, {field: arrays[field][0] for field in PACKED_FIELDS})]
    with pytest.raises(FedEditError, match="no sender packs"):
        decode(arrays, meta, FINGERPRINT)


def test_too_many_mkvs_are_refused(mkvs):
    arrays, meta = encode(mkvs[:1])
    n = 100_001
    arrays = {name: np.broadcast_to(array, (n, *array.shape[1:])) for name, array in arrays.items()}
    with pytest.raises(FedEditError, match="at most 100000"):
        decode(arrays, {name: values * n for name, values in meta.items()}, FINGERPRINT)


@pytest.mark.parametrize("name", ["ids", "nodes", "slots"])
def test_an_integer_too_long_to_print_is_refused(mkvs, name):
    arrays, meta = encode(mkvs)
    meta[name][0] = 10**5000
    with pytest.raises(FedEditError):
        decode(arrays, meta, FINGERPRINT)


def corrupt_message(random: np.random.Generator, arrays: dict, meta: dict) -> None:
    """Changes one thing of a message in place."""
    if random.random() < 0.3:
        name = str(random.choice(list(meta)))
        values = meta[name]
        match random.integers(6):
            case 0:
                del meta[name]
            case 1:
                meta[name] = JUNK[random.integers(len(JUNK))]
            case 2:
                values[random.integers(len(values))] = JUNK[random.integers(len(JUNK))]
            case 3:
                values.pop()
            case 4:
                meta["other"] = values
            case 5:
                values[0] = values[-1]
        return
    name = str(random.choice(list(arrays)))
    array = arrays[name]
    match random.integers(9):
        case 0:
            del arrays[name]
        case 1:
            arrays[name] = JUNK[random.integers(len(JUNK))]
        case 2:
            arrays[name] = array.astype(DTYPES[random.integers(len(DTYPES))])
        case 3:
            arrays[name] = array.T
        case 4:
            arrays[name] = array[tuple(slice(random.integers(2), None) for _ in array.shape)]
        case 5:
            arrays[name] = array.reshape(-1) if random.random() < 0.5 else array[None]
        case 6:
            arrays[str(random.choice(list(arrays)))] = array
        case 7:
            array.reshape(-1)[random.integers(array.size)] = random.choice([np.nan, np.inf, 0, 1e9])
        case 8:
            raw = array.reshape(-1).view(np.uint8)
            raw[random.integers(raw.size)] ^= 1 << random.integers(8)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_random_corruptions_of_a_message(mkvs):
    random = np.random.default_rng(0)
    originals = {mkv.id: mkv for mkv in mkvs}
    refused = 0
    for _ in range(4000):
        arrays, meta = encode(mkvs)
        corrupt_message(random, arrays, meta)
        fingerprint = FINGERPRINT if random.random() < 0.95 else JUNK[random.integers(len(JUNK))]
        try:
            found = decode(arrays, meta, fingerprint)
        except FedEditError:
            refused += 1
            continue
        for mkv in found:
            assert_same(mkv, originals[mkv.id])
    assert refused > 3000


@pytest.mark.parametrize("junk", [*JUNK, np.zeros(3)])
def test_junk_instead_of_a_message(mkvs, junk):
    arrays, meta = encode(mkvs)
    for wrong in ((junk, meta, FINGERPRINT), (arrays, junk, FINGERPRINT), (arrays, meta, junk)):
        with pytest.raises(FedEditError):
            decode(*wrong)
    with pytest.raises(FedEditError):
        from_bytes(junk)


def test_bytes_round_trip(mkvs):
    for mkv in mkvs:
        data = to_bytes(mkv)
        found = from_bytes(data)
        assert_same(found, mkv)
        assert (found.node, found.slot) == (mkv.node, mkv.slot)
        assert to_bytes(found) == data


def test_random_corruptions_of_bytes(mkvs):
    random = np.random.default_rng(0)
    data = to_bytes(mkvs[0])
    header = 8 + int.from_bytes(data[:8], "little")
    refused = 0
    for _ in range(4000):
        damaged = bytearray(data)
        match random.integers(5):
            case 0:
                del damaged[random.integers(len(data)) :]
            case 1:
                damaged[random.integers(len(data))] ^= 1 << random.integers(8)
            case 2:
                damaged[random.integers(header)] = random.integers(256)
            case 3:
                start = random.integers(header)
                damaged[start:start] = random.bytes(random.integers(1, 9))
            case 4:
                damaged[:8] = int(random.integers(2**63)).to_bytes(8, "little")
        try:
            found = from_bytes(bytes(damaged))
        except FedEditError:
            refused += 1
            continue
        assert_same(found, mkvs[0])
    assert refused > 3000


def test_bytes_of_several_mkvs_or_none_are_refused(mkvs):
    for some in ([], mkvs[:2]):
        arrays, meta = encode(some)
        text = json.dumps({"fingerprint": FINGERPRINT, **meta})
        with pytest.raises(FedEditError, match="it has to hold one"):
            from_bytes(save(arrays, metadata={"mkv": text}))
