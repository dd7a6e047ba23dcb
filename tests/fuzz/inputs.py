"""Inputs that are nearly right: what is valid with something changed, and plain nonsense."""

import json

from hypothesis import strategies as st

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from([10**400, -1, 2**63, "", "int8", "\x00", "../../x"]),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@st.composite
def damaged(draw, data: bytes) -> bytes:
    """Valid bytes with some of them changed, cut out, put in twice or cut off."""
    result = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(result) - 1)))
        kind = draw(st.sampled_from(["flip", "set", "cut", "end", "insert", "double"]))
        if kind == "flip" and result:
            result[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and result:
            result[at] = draw(st.sampled_from([0, 9, 34, 44, 91, 123, 125, 255]))
        elif kind == "cut":
            del result[at : at + draw(st.integers(1, 16))]
        elif kind == "end":
            del result[at:]
        elif kind == "insert":
            result[at:at] = draw(st.binary(max_size=12))
        else:
            result[at:at] = result[at : at + 16]
    return bytes(result)


@st.composite
def altered(draw, value):
    """A JSON value with one part taken out, exchanged or added, at any depth."""
    if isinstance(value, dict) and value and draw(st.integers(0, 3)):
        name = draw(st.sampled_from(sorted(value)))
        kind = draw(st.sampled_from(["inside", "inside", "inside", "out", "more"]))
        rest = {key: part for key, part in value.items() if key != name}
        if kind == "out":
            return rest
        if kind == "more":
            return value | {draw(st.text(max_size=8)): draw(JSON)}
        return rest | {name: draw(altered(value[name]))}
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        at = draw(st.integers(0, len(value) - 1))
        kind = draw(st.sampled_from(["inside", "inside", "out", "twice"]))
        if kind == "out":
            return value[:at] + value[at + 1 :]
        if kind == "twice":
            return [*value, value[at]]
        return [*value[:at], draw(altered(value[at])), *value[at + 1 :]]
    return draw(JSON)


def json_bytes(value) -> bytes:
    """JSON as a file has it; NaN and numbers of any length included."""
    return json.dumps(value).encode("utf-8", "surrogatepass")
