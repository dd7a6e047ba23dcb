"""The ServerApp: who takes part, the strategy's run, and the record of it."""

from __future__ import annotations

import logging
import random
import time
from collections import Counter
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedit_app.config import RunConfig
from fedit_app.editing.editors import editor_named
from fedit_app.editing.workbench import fingerprint_of
from fedit_app.errors import FedEditError
from fedit_app.federation.grid import Member, Reply, RunGrid
from fedit_app.federation.paths import pool_location, run_folder
from fedit_app.federation.protocol import HELLO, VERSION, code_fingerprint, pack
from fedit_app.federation.record import RunRecord
from fedit_app.federation.strategies import evaluate, lookup_of, no_change, strategy_named
from fedit_app.log import set_up_logging
from fedit_app.mkv import MKVPool

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
        record.met(fingerprint)
        evaluate(run_grid, 0)
        pool = MKVPool(pool_location(config, context.run_id))
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
    replies = grid.ask(
        0, "hello", HELLO, dict.fromkeys(ids, content), {id_: f"node id {id_}" for id_ in ids}
    )
    by_name: dict[str, Reply] = {}
    for reply in replies.values():
        name = reply.info["node"]
        if name in by_name:
            grid.record.failed(name, 0, "hello", f"two nodes are named {name!r}; rename one")
            continue
        by_name[name] = reply
    if not by_name:
        raise FedEditError("no node can take part; see the reasons above")
    fingerprints = {name: fingerprint_of(r.info["components"]) for name, r in by_name.items()}
    counts = Counter(fingerprints[name] for name in sorted(fingerprints))
    chosen = counts.most_common(1)[0][0]
    members = sorted(name for name, found in fingerprints.items() if found == chosen)
    reference = by_name[members[0]].info
    for name in sorted(set(by_name) - set(members)):
        grid.record.failed(name, 0, "hello", _difference(by_name[name].info, reference))
    if config.strategy == "central" and not reference["simulated"]:
        raise FedEditError("strategy = central needs everybody's data and runs in simulation only")
    grid.members = {
        name: Member(
            name,
            by_name[name].message.metadata.src_node_id,
            by_name[name].info["requests"],
            lookup_of(by_name[name]),
        )
        for name in members
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
