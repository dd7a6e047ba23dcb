"""Configurations that FedEdit 0.1.0 has written: the keys and special values it had."""

from __future__ import annotations

from collections.abc import Mapping

from fedit_app.support.errors import FedEditError

# Key -> the value at which it changed nothing, and what became of it.
_RETIRED: dict[str, tuple[object, str]] = {
    "mkv-clip": (0, "clipping was measured to hide nothing; seal MKVs instead (sealed = on)"),
    "mkv-noise": (
        0,
        "noise that hides a fact was measured to destroy the edit; seal MKVs instead (sealed = on)",
    ),
    "pool-index": ("none", "the pool is always searched exactly"),
}

# Key -> the value that stood for "not given". All configurations of 0.1.0 hold the retired keys.
_NOT_GIVEN = {
    "requests-per-slot": 0,
    "covariance-weight": 0,
    "covariance-tokens": 0,
    "learning-rate": 0,
    "value-steps": 0,
    "kl-weight": -1,
    "clamp": 0,
    "null-space-threshold": 0,
    "l2": 0,
    "edit-batch": 0,
}

# Keys that 0.1.0 did not have -> the value at which they change nothing.
_LATER = {"subject-weight": 0.0, "chat-contexts": 0}


def modernised(values: Mapping[str, object]) -> dict[str, object]:
    """A configuration without retired keys, which means what it did.

    One of 0.1.0 has "" where a value is not given, and what came later switched off.

    Args:
        values: key -> value.

    Raises:
        FedEditError: a retired key has a value that changed something.
    """
    retired = _RETIRED.keys() & values.keys()
    for key in sorted(retired):
        neutral, reason = _RETIRED[key]
        if values[key] != neutral:
            raise FedEditError(
                f"run config: {key} = {values[key]!r} is no longer supported: {reason}"
            )
    if not retired:
        return dict(values)
    return _LATER | {
        key: "" if key in _NOT_GIVEN and value == _NOT_GIVEN[key] else value
        for key, value in values.items()
        if key not in retired
    }
