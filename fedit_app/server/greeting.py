"""Who takes part: nodes introduce themselves at the start, and newcomers before every slot."""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict

from fedit_app.config.run_config import RunConfig
from fedit_app.mkv.fingerprint import fingerprint_of
from fedit_app.mkv.numerics import NUMERICS_VERSION
from fedit_app.protocol.messages import (
    FEDERATION_KEY,
    HELLO,
    VERSION,
    pack,
    unpack_arrays,
    unpack_info,
)
from fedit_app.server.grid import Member, RunGrid
from fedit_app.support.errors import FedEditError

logger = logging.getLogger(__name__)


def gather(grid: RunGrid, config: RunConfig) -> dict[str, Any]:
    """Say hello to every node and let those with the commonest fingerprint take part.

    Args:
        grid: the grid; its members are set.
        config: the run configuration.

    Returns:
        The introduction of one member: components, layers, d_model, d_ff; and lookup_width.

    Raises:
        FedEditError: no node can take part.
    """
    replies = _greet(grid, _wait_for_nodes(grid, config.slot_timeout), grid.record.first_slot)
    if not replies:
        raise FedEditError("no node can take part; see the reasons above")
    infos = {name: unpack_info(reply.content) for name, reply in replies.items()}
    measures = {name: _measures(info) for name, info in infos.items()}
    counts = Counter(measures[name] for name in sorted(measures))
    chosen = counts.most_common(1)[0][0]
    reference = infos[min(name for name, found in measures.items() if found == chosen)]
    if config.strategy == "central" and not reference["simulated"]:
        raise FedEditError("strategy = central needs everybody's data and runs in simulation only")
    sealed = FEDERATION_KEY in reference["components"]
    reference["lookup_width"] = config.sketch_width if sealed else reference["d_ff"]
    _admit(grid, replies, reference)
    logger.info("%d nodes take part: %s", len(grid.members), ", ".join(sorted(grid.members)))
    return reference


def welcome(grid: RunGrid, slot: int, reference: dict[str, Any]) -> list[str]:
    """Let nodes join that were not there before, or could not take part.

    Whatever kept a node out may have been mended meanwhile. A member that failed in the slot before
    says hello again, too: it may have done its part without being heard. Until it does it is left
    out, so that it is waited for once a slot.

    Args:
        grid: the grid; newcomers become members.
        slot: the slot with which they begin.
        reference: the introduction that all members agree with, see `gather`.

    Returns:
        Their names.
    """
    for name in grid.silent:
        grid.members.pop(name, None)
    present = set(grid.all_node_ids())
    ids = sorted(present - {member.node_id for member in grid.members.values()})
    names = _admit(grid, _greet(grid, ids, slot), reference) if ids else []
    if names:
        logger.info("slot %d: joined by %s", slot, ", ".join(names))
    for name, member in sorted(grid.silent.items()):
        if name in names:
            del grid.silent[name]
        else:
            there = "did not introduce itself again" if member.node_id in present else "is gone"
            grid.record.failed(name, slot, "hello", f"it failed before, and {there}")
    return names


def lookup_of(content: RecordDict, width: int) -> np.ndarray:
    """(n, width) lookup keys, or sketches of them, of an answer; none if there are none.

    Raises:
        FedEditError: what came is something else.
    """
    if "keys" not in content.array_records:
        return np.zeros((0, width), np.float32)
    found = unpack_arrays(content, "keys").get("lookup", np.zeros(0))
    if found.ndim != 2 or found.shape[1] != width:
        raise FedEditError(
            f"lookup keys of shape {found.shape} found; they have to be (n, {width})"
        )
    return found


def _greet(grid: RunGrid, ids: list[int], slot: int) -> dict[str, Message]:
    """The answers of nodes by their names; of several with one name the first by id."""
    asked = {"version": VERSION, "numerics": NUMERICS_VERSION, "first_slot": slot}
    messages = [Message(pack(asked), message_type=HELLO, dst_node_id=id_) for id_ in ids]
    present, registered = set(grid.all_node_ids()), grid.registered_names()
    replies: dict[str, Message] = {}
    for reply in sorted(grid.send_and_receive(messages), key=lambda r: r.metadata.src_node_id):
        info = unpack_info(reply.content)
        name, known = info["node"], registered.get(reply.metadata.src_node_id)
        if known and known != name and not info["simulated"]:
            grid.record.failed(known, 0, "hello", _misnamed(name, known))
            continue
        taken = name in replies or (name in grid.members and grid.members[name].node_id in present)
        if taken:
            grid.record.failed(name, 0, "hello", f"two nodes are named {name!r}; rename one")
        else:
            replies[name] = reply
    return replies


def _misnamed(name: str, known: str) -> str:
    return (
        f"it calls itself {name!r}, but its key is registered as {known!r}; write that name into "
        "its node.toml, or register a new key under the other one"
    )


def _admit(grid: RunGrid, replies: dict[str, Message], reference: dict[str, Any]) -> list[str]:
    """Make members of those who agree with the reference."""
    names = []
    for name, reply in sorted(replies.items()):
        info = unpack_info(reply.content)
        if info["components"] != reference["components"]:
            grid.record.failed(name, 0, "hello", _difference(info, reference))
            continue
        try:
            lookup = lookup_of(reply.content, reference["lookup_width"])
        except FedEditError as error:
            grid.record.failed(name, 0, "hello", str(error))
            continue
        grid.members[name] = Member(
            name,
            reply.metadata.src_node_id,
            lookup,
            set(info["wants"]),
            set(info["holds"]),
            set(info["withdrawn"]),
        )
        names.append(name)
    return names


def _wait_for_nodes(grid: RunGrid, timeout: float) -> list[int]:
    started = time.monotonic()
    while not (ids := sorted(grid.all_node_ids())):
        if time.monotonic() - started > timeout:
            raise FedEditError(f"no node connected within {timeout:g} s (slot-timeout)")
        time.sleep(0.5)
    return ids


def _measures(info: dict[str, Any]) -> tuple[object, ...]:
    """What MKVs are measured on, as a node says it."""
    shapes = (tuple(info["layers"]), info["d_model"], info["d_ff"])
    return fingerprint_of(info["components"]), *shapes


def _difference(found: dict[str, Any], reference: dict[str, Any]) -> str:
    parts = [
        f"{part} {found['components'].get(part)} (the federation has {value})"
        for part, value in reference["components"].items()
        if found["components"].get(part) != value
    ]
    remedy = "use the federation's model, editor settings and seed"
    if found["components"].get(FEDERATION_KEY) != reference["components"].get(FEDERATION_KEY):
        remedy = (
            "get the key file from an organisation whose key has that id (`fedit node key show "
            "DIR`), then `fedit node key take DIR FILE`"
        )
    return f"fingerprint differs in {', '.join(parts)}; {remedy}"
