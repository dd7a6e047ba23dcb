import subprocess
import sys

import numpy as np
import pytest

from fedit_app.errors import FedEditError
from fedit_app.mkv import create
from fedit_app.mkv.packing import LARGEST_SCALE, SMALLEST_SCALE, pack, unpack


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


def test_id_is_the_same_in_every_process_and_version():
    script = """
import numpy as np
from fedit_app.mkv import create
keys = np.arange(6).reshape(2, 3) - 2.5
shifts = np.arange(4).reshape(2, 2) / 1000
print(create("clinic", 1, "model-a", keys, shifts, np.array([1, 2]), np.array([0, 3])).id)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "b92559d20f906af9b4137a6f7f2113c2"


def test_id_depends_on_content_and_fingerprint_only():
    base = create(**arguments())
    assert create(**arguments(node="school", slot=7)).id == base.id
    assert create(**arguments(fingerprint="model-b")).id != base.id
    for field in ("keys", "shifts", "v_star", "h0"):
        assert create(**arguments(**{field: arguments()[field] * 2})).id != base.id


def test_vectors_are_rounded_once_and_close_to_what_was_given():
    given = arguments()
    once = create(**given)
    again = create(**{name: getattr(once, name) for name in given})
    assert again.id == once.id
    for field in ("keys", "shifts", "v_star", "h0"):
        values = getattr(once, field)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, getattr(again, field))
        np.testing.assert_allclose(values, given[field], rtol=2**-11, atol=1e-6)


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
    ],
)
def test_wrong_arguments_are_named(field, value):
    with pytest.raises(FedEditError, match=field):
        create(**arguments(**{field: value}))


@pytest.mark.parametrize("exponent", [-10, -8, -4, 0, 4, 8, 12])
def test_packing_is_idempotent_at_every_magnitude(exponent):
    random = np.random.default_rng(2)
    # Elements of one vector spread over ten decades reach fp16's subnormals and zero.
    spread = 10.0 ** random.uniform(-10, 0, (200, 33))
    signs = random.choice([-1, 1], spread.shape)
    values = (spread * signs * 10.0**exponent).astype(np.float32)
    vectors = dict.fromkeys(("keys", "shifts", "v_star", "h0"), values)
    once = pack(vectors)
    twice = pack(unpack(once))
    for name, array in once.items():
        assert array.tobytes() == twice[name].tobytes()
    largest = np.abs(values).max(axis=1, keepdims=True)
    assert np.all(np.abs(unpack(once)["keys"] - values) <= 2**-11 * largest)


def test_zero_and_negligible_vectors_become_zero():
    for values in (np.zeros(3), -np.zeros(3), np.full(3, SMALLEST_SCALE / 2)):
        packed = pack({"keys": values.astype(np.float32)})
        assert packed["keys_scale"] == 0
        assert packed["keys"].tobytes() == bytes(6)
