"""The ServerApp: who takes part, the strategy's run, and the record of it."""

from __future__ import annotations

import logging
import random
import time
from collections import Counter
from typing import Any

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from fedit_app.config import RunConfig
from fedit_app.editing.editors import editor_named
from fedit_app.editing.workbench import fingerprint_of
from fedit_app.errors import FedEditError
from fedit_app.federation.grid import Member, RunGrid
from fedit_app.federation.paths import pool_location, run_folder
from fedit_app.federation.protocol import HELLO, VERSION, code_fingerprint, pack, unpack_info
from fedit_app.federation.record import RunRecord
from fedit_app.federation.strategies import (
    evaluation_messages,
    lookup_of,
    no_change,
    strategy_named,
)
from fedit_app.log import set_up_logging
from fedit_app.mkv import MKVPool, SameFact

logger = logging.getLogger(__name__)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation; see `run_federation`."""
    set_up_logging()
    run_federation(grid, context)


def run_federation(grid: Grid, context: Context) -> dict[str, Any]:
    """Run a strategy over all slots and write the run folder.

    Args:
        grid: Flower's grid.
        context: Flower's context with the run configuration and the run id.

    Returns:
        The results, as `results.json` holds them.

    Raises:
        FedEditError: wrong run configuration, or no node can take part or answers.
    """
    config = RunConfig.parse(context.run_config)
    editor_named(config.editor)
    factory = strategy_named(config.strategy)
    random.seed(config.seed)
    record = RunRecord(config, run_folder(config, context.run_id))
    run_grid = RunGrid(
        grid,
        record,
        config.slot_timeout,
        lambda slot: slot % config.evaluate_every == 0 or slot == config.num_slots,
    )
    try:
        reference = gather(run_grid, config)
        fingerprint = fingerprint_of(reference["components"])
        record.met(fingerprint, len(run_grid.all_node_ids()))
        run_grid.send_and_receive(evaluation_messages(run_grid, 0))
        same_fact = SameFact(same_key=config.reuse_threshold)
        pool = MKVPool(pool_location(config, context.run_id), same_fact, config.pool_index)
        strategy = factory(config, pool, fingerprint)
        start = no_change(reference["layers"], reference["d_model"], reference["d_ff"])
        strategy.start(
            grid=run_grid,
            initial_arrays=start,
            num_rounds=config.num_slots,
            timeout=config.slot_timeout,
        )
    except BaseException:
        record.finish("failed")
        raise
    return record.finish("completed")


def gather(grid: RunGrid, config: RunConfig) -> dict[str, Any]:
    """Say hello to every node and let those with the commonest fingerprint take part.

    Args:
        grid: the grid; its members are set.
        config: the run configuration.

    Returns:
        The introduction of one member: components, layers, d_model, d_ff.

    Raises:
        FedEditError: no node can take part, or two have the same name.
    """
    ids = _wait_for_nodes(grid, config.slot_timeout)
    content = pack({"version": VERSION, "code": code_fingerprint()})
    replies = grid.send_and_receive(
        [Message(content=content, message_type=HELLO, dst_node_id=node_id) for node_id in ids]
    )
    by_name: dict[str, Message] = {}
    infos: dict[str, dict[str, Any]] = {}
    for reply in replies:
        info = unpack_info(reply.content)
        name = info["node"]
        if name in by_name:
            grid.record.failed(name, 0, "hello", f"two nodes are named {name!r}; rename one")
            continue
        by_name[name], infos[name] = reply, info
    if not by_name:
        raise FedEditError("no node can take part; see the reasons above")
    fingerprints = {name: fingerprint_of(info["components"]) for name, info in infos.items()}
    counts = Counter(fingerprints[name] for name in sorted(fingerprints))
    chosen = counts.most_common(1)[0][0]
    members = sorted(name for name, found in fingerprints.items() if found == chosen)
    reference = infos[members[0]]
    for name in sorted(set(by_name) - set(members)):
        grid.record.failed(name, 0, "hello", _difference(infos[name], reference))
    if config.strategy == "central" and not reference["simulated"]:
        raise FedEditError("strategy = central needs everybody's data and runs in simulation only")
    grid.members = {
        name: Member(name, reply.metadata.src_node_id, lookup_of(reply.content))
        for name, reply in sorted(by_name.items())
        if name in members
    }
    logger.info("%d nodes take part: %s", len(members), ", ".join(members))
    return reference


def _wait_for_nodes(grid: RunGrid, timeout: float) -> list[int]:
    started = time.monotonic()
    while not (ids := sorted(grid.all_node_ids())):
        if time.monotonic() - started > timeout:
            raise FedEditError(f"no node connected within {timeout:g} s (slot-timeout)")
        time.sleep(0.5)
    return ids


def _difference(found: dict[str, Any], reference: dict[str, Any]) -> str:
    parts = [
        f"{part} {found['components'].get(part)} (the federation has {value})"
        for part, value in reference["components"].items()
        if found["components"].get(part) != value
    ]
    return (
        "fingerprint differs in "
        + ", ".join(parts)
        + "; use the federation's model, editor settings and seed"
    )
