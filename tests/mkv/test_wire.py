import itertools
import json

import numpy as np
import pytest
from safetensors.numpy import save

from fedit_app.mkv import MKV, PRECISIONS, mkv_from_bytes, to_bytes
from fedit_app.mkv.open_form import decode_open, encode_open
from fedit_app.mkv.packing import PACKED_FIELDS, VECTOR_FIELDS, content_id
from fedit_app.support.errors import FedEditError

FINGERPRINT = "model-a"
JUNK = (None, 3, -1, 2.5, True, "x", "", "\ud800", b"x", [], [None], [[]], {}, 2**70, np.nan)
DTYPES = (np.int8, np.float16, np.float32, np.float64, np.int32, np.uint8, ">f2", ">f4", bool)
DTYPES += (object, "U4")


def assert_same(found: MKV, expected: MKV) -> None:
    for name in ("id", "fingerprint", "precision"):
        assert getattr(found, name) == getattr(expected, name)
    for field in VECTOR_FIELDS:
        values, given = getattr(found, field), getattr(expected, field)
        assert values.dtype == np.float32 and values.shape == given.shape
        assert values.tobytes() == given.tobytes()


@pytest.fixture
def mkvs(make_mkvs, precision) -> list[MKV]:
    """Five of each precision in turn."""
    others = make_mkvs(2, seed=1, node="school", slot=4, precision=precision)
    return make_mkvs(3, precision=precision) + others


def test_decode_inverts_encode_bit_for_bit(mkvs):
    arrays, meta = encode_open(mkvs)
    for found, expected in zip(decode_open(arrays, meta), mkvs, strict=True):
        assert_same(found, expected)
        assert (found.node, found.slot) == (expected.node, expected.slot)


def test_encode_inverts_decode_bit_for_bit(mkvs):
    arrays, meta = encode_open(mkvs)
    arrays_again, meta_again = encode_open(decode_open(arrays, meta))
    assert meta_again == meta
    for name in PACKED_FIELDS:
        assert arrays_again[name].dtype == arrays[name].dtype
        assert arrays_again[name].tobytes() == arrays[name].tobytes()


def test_shapes_and_types_of_the_wire_form(mkvs, precision):
    arrays, meta = encode_open(mkvs)
    found = {name: (array.shape, array.dtype.name) for name, array in arrays.items()}
    assert found == {
        "keys": ((5, 2, 12), precision),
        "keys_scale": ((5, 2), "float32"),
        "shifts": ((5, 2, 8), precision),
        "shifts_scale": ((5, 2), "float32"),
        "v_star": ((5, 8), precision),
        "v_star_scale": ((5,), "float32"),
        "h0": ((5, 8), precision),
        "h0_scale": ((5,), "float32"),
    }
    assert (meta["fingerprint"], meta["precision"]) == (FINGERPRINT, precision)
    assert meta["nodes"] == ["clinic"] * 3 + ["school"] * 2
    assert meta["slots"] == [1] * 3 + [4] * 2


def test_an_element_takes_the_bytes_of_its_precision(mkvs, precision):
    arrays, _ = encode_open(mkvs[:1])
    elements = 2 * 12 + 2 * 8 + 8 + 8
    scales = 4 * (2 + 2 + 1 + 1)
    size = {"int8": 1, "float16": 2, "float32": 4}[precision]
    assert sum(array.nbytes for array in arrays.values()) == size * elements + scales


def test_no_mkvs_make_no_message(mkvs):
    with pytest.raises(FedEditError, match="holds 1 to"):
        encode_open([])
    arrays, meta = encode_open(mkvs)
    arrays = {name: array[:0] for name, array in arrays.items()}
    with pytest.raises(FedEditError, match="1 to"):
        decode_open(arrays, meta | {"ids": [], "nodes": [], "slots": []})


def test_encode_refuses_a_mixture(make_mkvs):
    others = {"fingerprint": "model-b"}, {"d_ff": 13}, {"precision": "float32"}
    for other in (make_mkvs(1, **changes) for changes in others):
        with pytest.raises(FedEditError, match="cannot share"):
            encode_open(make_mkvs(1) + other)


def test_another_fingerprint_is_refused(mkvs):
    arrays, meta = encode_open(mkvs)
    with pytest.raises(FedEditError, match="another model"):
        decode_open(arrays, meta | {"fingerprint": "model-b"})


def test_arrays_of_another_precision_are_refused(mkvs, precision):
    arrays, meta = encode_open(mkvs)
    for other in set(PRECISIONS) - {precision}:
        with pytest.raises(FedEditError, match=f"{precision} found; it has to be {other}"):
            decode_open(arrays, meta | {"precision": other})
    with pytest.raises(FedEditError, match="precision 'int4' must be one of int8, float16"):
        decode_open(arrays, meta | {"precision": "int4"})


def test_the_same_id_twice_is_refused(mkvs):
    with pytest.raises(FedEditError, match="once"):
        decode_open(*encode_open([mkvs[0], mkvs[0]]))


WRONG_SCALES = (np.inf, np.nan, -1.0, -0.0, 1e-30, 1e30, 3e38, 0.0)
WRONG_NUMBERS = {
    "int8": (0, 126, -128),
    "float16": (0, 0.5, 2, np.nan, np.inf),
    "float32": (0, 2e12, np.nan, -np.inf),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("precision", "name", "value"),
    [(precision, "keys_scale", scale) for precision in PRECISIONS for scale in WRONG_SCALES]
    + [(name, "keys", number) for name in PRECISIONS for number in WRONG_NUMBERS[name]],
)
def test_values_no_sender_packs_are_refused_even_with_a_matching_id(mkvs, name, value):
    arrays, meta = encode_open(mkvs[:1])
    arrays[name][...] = value
    meta["ids"] = [content_id(FINGERPRINT, {field: arrays[field][0] for field in PACKED_FIELDS})]
    with pytest.raises(FedEditError, match="`pack` does not write|must be finite"):
        decode_open(arrays, meta)


def test_a_scale_beside_zeros_is_refused(mkvs):
    arrays, meta = encode_open(mkvs[:1])
    arrays["h0"][...] = 0
    meta["ids"] = [content_id(FINGERPRINT, {field: arrays[field][0] for field in PACKED_FIELDS})]
    with pytest.raises(FedEditError, match="`h0_scale`: holds a vector that `pack` does not write"):
        decode_open(arrays, meta)
    arrays["h0_scale"][...] = 0
    meta["ids"] = [content_id(FINGERPRINT, {field: arrays[field][0] for field in PACKED_FIELDS})]
    assert not decode_open(arrays, meta)[0].h0.any()


def test_too_many_mkvs_are_refused(mkvs):
    arrays, meta = encode_open(mkvs[:1])
    n = 100_001
    arrays = {name: np.broadcast_to(array, (n, *array.shape[1:])) for name, array in arrays.items()}
    with pytest.raises(FedEditError, match="1 to 100000"):
        decode_open(arrays, meta | {name: meta[name] * n for name in ("ids", "nodes", "slots")})


def test_an_mkv_of_more_elements_than_any_model_needs_is_refused_unread(mkvs):
    arrays, meta = encode_open(mkvs[:1])
    for name, axis in (("keys", 2), ("shifts", 2), ("v_star", 1), ("h0", 1)):
        shape = list(arrays[name].shape)
        shape[axis] = 2**40
        arrays[name] = np.broadcast_to(arrays[name].reshape(-1)[0], shape)
    with pytest.raises(FedEditError, match="at most 4194304"):
        decode_open(arrays, meta)


def test_what_cannot_be_printed_is_refused(make_mkvs):
    arrays, meta = encode_open(make_mkvs(2))
    nested = []
    for _ in range(100_000):
        nested = [nested]
    for name, value in itertools.product(
        ["ids", "nodes", "slots", "fingerprint", "precision"], [10**5000, nested]
    ):
        changed = [value] * 2 if isinstance(meta[name], list) else value
        with pytest.raises(FedEditError):
            decode_open(arrays, meta | {name: changed})


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
            case 2 if isinstance(values, list):
                values[random.integers(len(values))] = JUNK[random.integers(len(JUNK))]
            case 3 if isinstance(values, list):
                values.pop()
            case 4:
                meta["other"] = values
            case _ if isinstance(values, list):
                values[0] = values[-1]
            case _:
                meta[name] = str(random.choice([*PRECISIONS, values[1:]]))
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
            value = random.choice([np.nan, np.inf, 0, 1e9, -128])
            array.reshape(-1)[random.integers(array.size)] = np.float64(value).astype(array.dtype)
        case 8:
            raw = array.reshape(-1).view(np.uint8)
            raw[random.integers(raw.size)] ^= 1 << random.integers(8)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered in cast")
def test_random_corruptions_of_a_message(mkvs):
    random = np.random.default_rng(0)
    originals = {mkv.id: mkv for mkv in mkvs}
    refused = 0
    for _ in range(2000):
        arrays, meta = encode_open(mkvs)
        corrupt_message(random, arrays, meta)
        try:
            found = decode_open(arrays, meta)
        except FedEditError:
            refused += 1
            continue
        for mkv in found:
            assert_same(mkv, originals[mkv.id])
    assert refused > 1500


@pytest.mark.parametrize("junk", [*JUNK, np.zeros(3)])
def test_junk_instead_of_a_message(mkvs, junk):
    arrays, meta = encode_open(mkvs)
    for wrong in ((junk, meta), (arrays, junk)):
        with pytest.raises(FedEditError):
            decode_open(*wrong)
    with pytest.raises(FedEditError):
        mkv_from_bytes(junk)


def test_bytes_round_trip(mkvs):
    for mkv in mkvs:
        data = to_bytes(mkv)
        found = mkv_from_bytes(data)
        assert_same(found, mkv)
        assert (found.node, found.slot) == (mkv.node, mkv.slot)
        assert to_bytes(found) == data


@pytest.mark.slow
def test_random_corruptions_of_bytes(mkvs):
    random = np.random.default_rng(0)
    data = to_bytes(mkvs[0])
    header = 8 + int.from_bytes(data[:8], "little")
    refused = 0
    for _ in range(2000):
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
            found = mkv_from_bytes(bytes(damaged))
        except FedEditError:
            refused += 1
            continue
        assert_same(found, mkvs[0])
    assert refused > 1500


def test_bytes_of_several_mkvs_are_refused(mkvs):
    arrays, meta = encode_open(mkvs[:2])
    with pytest.raises(FedEditError, match="it has to hold one"):
        mkv_from_bytes(save(arrays, metadata={"mkv": json.dumps(meta)}))


def test_a_header_larger_than_any_of_ours_is_not_parsed(mkvs, monkeypatch):
    arrays, meta = encode_open(mkvs[:1])
    monkeypatch.setattr("fedit_app.mkv.wire.load", None)
    for metadata in (
        {"mkv": json.dumps(meta), "more": "x" * 2**16},
        {str(i): "" for i in range(9999)},
    ):
        with pytest.raises(FedEditError, match="a header of .* bytes found"):
            mkv_from_bytes(save(arrays, metadata=metadata))


def test_the_longest_names_fit_into_the_header(make_mkvs):
    name = "\U0001f3e6" * 1024
    (mkv,) = make_mkvs(1, node=name, fingerprint=name)
    assert mkv_from_bytes(to_bytes(mkv)).node == name
