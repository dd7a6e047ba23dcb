import subprocess
import sys
from typing import get_args

import numpy as np
import pytest

from fedit_app.config.run_config import RunConfig
from fedit_app.mkv import DEFAULT_PRECISION, PRECISIONS, create
from fedit_app.mkv.packing import LARGEST_SCALE, SMALLEST_SCALE, VECTOR_FIELDS, pack, unpack
from fedit_app.support.errors import FedEditError

# By how much an element may be off, as a share of the vector's largest.
ERRORS = {"int8": 0.5001 / 127, "float16": 2**-11, "float32": 0}


def arguments(**changes) -> dict:
    random = np.random.default_rng(1)
    valid = {
        "node": "clinic",
        "slot": 1,
        "fingerprint": "model-a",
        "keys": random.standard_normal((2, 6)),
        "shifts": random.standard_normal((2, 4)),
        "v_star": random.standard_normal(4),
        "h0": random.standard_normal(4),
    }
    return valid | changes


def test_the_run_config_has_the_same_precisions():
    field = RunConfig.model_fields["mkv_precision"]
    assert get_args(field.annotation) == tuple(PRECISIONS)
    assert field.default == DEFAULT_PRECISION


IDS = {
    "int8": "7ed2bb4cd4be0bfd920ffa494f9c66c4",
    "float16": "34163de9e877dffaf2852a39ea3c851d",
    "float32": "a666e0968c07f78cc238510095565f72",
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_id_is_the_same_in_every_process_and_version(precision):
    script = f"""
import numpy as np
from fedit_app.mkv import create
keys = np.arange(6).reshape(2, 3) - 2.5
shifts = np.arange(4).reshape(2, 2) / 1000
values = keys, shifts, np.array([1, 2]), np.array([0, 3])
print(create("clinic", 1, "model-a", *values, precision="{precision}").id)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == IDS[precision]


def test_id_depends_on_content_and_fingerprint_only():
    base = create(**arguments())
    assert create(**arguments(node="school", slot=7)).id == base.id
    assert create(**arguments(fingerprint="model-b")).id != base.id
    for field in ("keys", "shifts", "v_star", "h0"):
        assert create(**arguments(**{field: arguments()[field] * 2})).id != base.id


def test_id_depends_on_the_precision():
    given = arguments(**dict.fromkeys(("v_star", "h0"), np.array([127, 0, -127, 0]) / 8))
    given |= {"keys": np.full((2, 6), 127 / 8), "shifts": np.full((2, 4), -127 / 8)}
    found = [create(**given, precision=precision) for precision in PRECISIONS]
    assert all(np.array_equal(mkv.keys, found[0].keys) for mkv in found), "none is rounded"
    assert [mkv.precision for mkv in found] == list(PRECISIONS)
    assert len({mkv.id for mkv in found}) == len(found)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_vectors_are_rounded_once_and_close_to_what_was_given(precision):
    given = arguments(precision=precision)
    once = create(**given)
    assert once.precision == precision
    again = create(**{name: getattr(once, name) for name in given})
    assert again.id == once.id
    for field in ("keys", "shifts", "v_star", "h0"):
        values = getattr(once, field)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, getattr(again, field))
        wanted = given[field].astype(np.float32)
        largest = np.abs(wanted).max(axis=-1, keepdims=True)
        assert np.all(np.abs(values - wanted) <= ERRORS[precision] * largest)


def test_signatures():
    mkv = create(**arguments())
    np.testing.assert_array_equal(mkv.signature("v_star"), mkv.v_star)
    np.testing.assert_array_equal(mkv.signature("delta"), mkv.v_star - mkv.h0)
    np.testing.assert_array_equal(mkv.signature("key"), mkv.keys[0])
    with pytest.raises(FedEditError, match="keys"):
        mkv.signature("keys")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("node", ""),
        ("node", 3),
        ("node", "a\nb"),
        ("node", "a" * 2000),
        ("slot", 0),
        ("slot", 1.0),
        ("slot", True),
        ("slot", 2**31),
        ("fingerprint", None),
        ("fingerprint", "\ud800"),
        ("keys", np.zeros(6)),
        ("keys", np.zeros((3, 6))),
        ("keys", np.zeros((2, 0))),
        ("shifts", np.zeros((2, 5))),
        ("v_star", np.zeros(5)),
        ("h0", [[1.0], [1.0, 2.0]]),
        ("h0", "text"),
        ("v_star", np.array([0, 0, 0, np.nan])),
        ("shifts", np.full((2, 4), np.inf)),
        ("keys", np.full((2, 6), 1e300)),
        ("keys", np.full((2, 6), 2 * LARGEST_SCALE)),
        ("precision", "int4"),
        ("precision", ["int8"]),
        ("precision", None),
    ],
)
def test_wrong_arguments_are_named(field, value):
    with pytest.raises(FedEditError, match=field):
        create(**arguments(**{field: value}))


def test_more_elements_than_any_model_needs_are_refused():
    with pytest.raises(FedEditError, match="4194320 elements; at most 4194304"):
        create(**arguments(keys=np.broadcast_to(np.float32(1), (2, 2**21))))


def named(vectors):
    return dict(zip(VECTOR_FIELDS, vectors, strict=True))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("exponent", [-10, -8, -4, 0, 4, 8, 12])
def test_packing_is_idempotent_at_every_magnitude(exponent, precision):
    random = np.random.default_rng(2)
    # Elements of one vector spread over ten decades reach fp16's subnormals and zero.
    spread = 10.0 ** random.uniform(-10, 0, (200, 33))
    signs = random.choice([-1, 1], spread.shape)
    values = (spread * signs * 10.0**exponent).astype(np.float32)
    vectors = dict.fromkeys(("keys", "shifts", "v_star", "h0"), values)
    once = pack(vectors, precision)
    twice = pack(named(unpack(once, precision)), precision)
    for name, array in once.items():
        assert array.tobytes() == twice[name].tobytes()
    largest = np.abs(values).max(axis=1, keepdims=True)
    errors = np.abs(unpack(once, precision)[0] - values)
    assert np.all(errors <= ERRORS[precision] * largest)


def test_int8_uses_its_whole_range():
    random = np.random.default_rng(3)
    values = random.standard_normal((500, 30)).astype(np.float32)
    packed = pack({"keys": values}, "int8")
    assert packed["keys"].dtype == np.int8
    assert np.all(np.abs(packed["keys"].astype(int)).max(axis=-1) == 127)
    assert np.array_equal(packed["keys_scale"], np.abs(values).max(axis=-1))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_number_of_a_precision_is_kept(precision):
    """The largest magnitude decides the scale; beside it any number must come back."""
    form = PRECISIONS[precision]
    bits = np.arange(256 ** min(form.dtype.itemsize, 2)).astype(f"u{form.dtype.itemsize}")
    if precision == "float32":
        bits = bits << 16
    numbers = bits.view(form.dtype)
    numbers = numbers[np.isfinite(numbers) & (numbers <= form.one) & (numbers >= -form.one)]
    rows = np.stack([np.full_like(numbers, form.one), numbers], axis=-1)
    random = np.random.default_rng(4)
    scales = (10 ** random.uniform(-12, 12, len(rows))).astype(np.float32)
    scales = np.clip(scales, np.float32(SMALLEST_SCALE), np.float32(LARGEST_SCALE))
    scales = scales if precision != "float32" else np.ones_like(scales)
    fields = ("keys", "shifts", "v_star", "h0")
    packed = {field: rows for field in fields} | {f"{field}_scale": scales for field in fields}
    again = pack(named(unpack(packed, precision)), precision)
    assert again["keys"].tobytes() == rows.tobytes()
    assert again["keys_scale"].tobytes() == scales.tobytes()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_zero_and_negligible_vectors_become_zero(precision):
    for values in (np.zeros(3), -np.zeros(3), np.full(3, SMALLEST_SCALE / 2)):
        packed = pack({"keys": values.astype(np.float32)}, precision)
        assert packed["keys_scale"].tobytes() == bytes(4)
        assert packed["keys"].tobytes() == bytes(3 * PRECISIONS[precision].dtype.itemsize)
