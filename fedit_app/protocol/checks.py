"""What the JSON part of a message has to look like, before anybody uses it.

A node is not believed by the server, nor the server by a node: every field that is read has a type
and a range here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from fedit_app.mkv.record import MAX_NAME_LENGTH, MAX_SLOT
from fedit_app.protocol.messages import EDIT, EVALUATE, HELLO, REEDIT, TRAIN
from fedit_app.protocol.metrics import FIGURES
from fedit_app.support.errors import FedEditError, shown

Check = Callable[[Any], bool]

_MOST = 2**53
# Metrics that are no shares: differences of probabilities, bits.
_IN_RANGE: dict[str, Check] = {
    **{name: lambda value: number(value, -1, 1) for name in FIGURES if "magnitude" in name},
    "generation_entropy": lambda value: number(value, 0),
}


def text(value: Any) -> bool:
    """A printable text of at most the length of a name; it may be empty."""
    return isinstance(value, str) and len(value) <= MAX_NAME_LENGTH and value.isprintable()


def flag(value: Any) -> bool:
    """true or false."""
    return isinstance(value, bool)


def count(value: Any) -> bool:
    """A whole number from 0."""
    return type(value) is int and 0 <= value <= _MOST


def number(value: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    """A finite number, or null."""
    return value is None or (
        type(value) in (int, float) and math.isfinite(value) and least <= value <= most
    )


def share(value: Any) -> bool:
    """A number from 0 to 1, or null."""
    return number(value, 0, 1)


def listed(each: Check) -> Check:
    """A list of such values."""
    return lambda value: isinstance(value, list) and all(map(each, value))


def named(each: Check) -> Check:
    """An object from names to such values."""
    return lambda value: (
        isinstance(value, dict) and all(map(text, value)) and all(map(each, value.values()))
    )


def conflict(value: Any) -> bool:
    """The ids of the MKV that holds, and of the one that gave way."""
    fields = {"held", "gave_way"}
    return isinstance(value, dict) and set(value) == fields and all(map(text, value.values()))


def metrics(value: Any) -> bool:
    """A metric record of docs/results.md, or null."""
    if value is None:
        return True
    return (
        isinstance(value, dict)
        and set(value) == {*FIGURES, "count", "metric"}
        and all(_IN_RANGE.get(name, share)(value[name]) for name in FIGURES)
        and count(value["count"])
        and value["metric"] in ("likelihood", "tokens", "mixed")
    )


def neutral(value: Any) -> bool:
    """What was measured on neutral text (docs/results.md), or null."""
    fields = {"kl", "perplexity_before", "perplexity_after", "tokens", "top10_overlap"}
    return value is None or (
        isinstance(value, dict)
        and set(value) == fields
        and all(number(value[name]) and value[name] is not None for name in fields)
    )


def slot_up_to(last: int, first: int = 1) -> Check:
    """A slot of the run."""
    return lambda value: count(value) and first <= value <= min(last, MAX_SLOT)


ANSWERS: dict[str, dict[str, Check]] = {
    HELLO: {
        "node": lambda value: text(value) and bool(value),
        "simulated": flag,
        "components": named(text),
        "layers": listed(count),
        "d_model": count,
        "d_ff": count,
        "wants": listed(text),
        "holds": listed(text),
        "withdrawn": listed(text),
    },
    EDIT: {
        "requests": count,
        "optimised": count,
        "cached": count,
        "warm_started": count,
        "reused": listed(text),
        "again": listed(text),
        "quarantined": count,
        "conflicts": listed(conflict),
    },
    TRAIN: {"requests": count, "optimised": count, "cached": count},
    REEDIT: {
        "received_from": named(count),
        "rejections": named(count),
        "quarantined": count,
        "conflicts": listed(conflict),
    },
    EVALUATE: {
        "own": metrics,
        "received": metrics,
        "federation": metrics,
        "neutral": neutral,
    },
}
"""Message type -> the fields of a node's answer that the server reads."""


def require(info: Mapping[str, Any], fields: Mapping[str, Check], whose: str) -> None:
    """Check the JSON part of a message.

    Args:
        info: what it holds; further fields are left aside.
        fields: name -> check.
        whose: to begin the error with, such as "its answer".

    Raises:
        FedEditError: a field is missing, or of another kind.
    """
    missing = [name for name in fields if name not in info]
    if missing:
        raise FedEditError(f"{whose} lacks {', '.join(missing)}")
    for name, check in fields.items():
        if not check(info[name]):
            raise FedEditError(f"{whose} has an unfit {name}: {shown(info[name])} found")
