"""The ServerApp: who takes part, the strategy's run, and the record of it."""

from __future__ import annotations

import logging
import random

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedit_app.config.folders import pool_location, run_folder
from fedit_app.config.run_config import RunConfig
from fedit_app.mkv.same_key import SameFact
from fedit_app.pool import MKVPool
from fedit_app.report import Results
from fedit_app.server.fedit import FedEdit, evaluation_messages
from fedit_app.server.greeting import Agreement, gather, welcome
from fedit_app.server.grid import RunGrid
from fedit_app.server.record import RunRecord
from fedit_app.server.strategies import no_change, strategy_named
from fedit_app.support.errors import FedEditError
from fedit_app.support.log import set_up_logging

logger = logging.getLogger(__name__)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation; see `run_federation`."""
    set_up_logging()
    run_federation(grid, context)


def run_federation(grid: Grid, context: Context) -> Results:
    """Run a strategy over all slots and write the run folder.

    Args:
        grid: Flower's grid.
        context: Flower's context with the run configuration and the run id.

    Returns:
        The run, as `results.json` holds it.

    Raises:
        FedEditError: wrong run configuration, or no node can take part or answers.
    """
    config = RunConfig.parse(context.run_config)
    factory = strategy_named(config.strategy)
    random.seed(config.seed)
    record = RunRecord(config, run_folder(config, context.run_id))
    run_grid = RunGrid(
        grid,
        context.run_id,
        record,
        config.slot_timeout,
        config.stage_share,
        lambda slot: slot % config.evaluate_every == 0 or slot == config.num_slots,
    )
    try:
        agreement = gather(run_grid, config)
        connected = len(run_grid.all_node_ids())
        name = agreement.model_name(config.model)
        record.met(agreement.fingerprint, connected, agreement.simulated, name)
        same = SameFact(same_key=config.same_key_threshold)
        pool = MKVPool(pool_location(config, context.run_id), same)
        strategy = factory(config, pool, agreement.fingerprint)
        if isinstance(strategy, FedEdit):
            strategy.first_slot, strategy.kinds = record.first_slot, agreement.kinds
        else:
            _check_stock(config, agreement, resumed=record.first_slot > 1)
        run_grid.send_and_receive(evaluation_messages(run_grid, 0))
        run_grid.newcomers = lambda slot: welcome(run_grid, slot, agreement)
        strategy.start(
            grid=run_grid,
            initial_arrays=no_change(agreement.layers, agreement.d_model, agreement.d_ff),
            num_rounds=config.num_slots,
            timeout=config.slot_timeout,
        )
    except BaseException:
        record.finish("failed")
        raise
    return record.finish("completed")


def _check_stock(config: RunConfig, agreement: Agreement, resumed: bool) -> None:
    """Raises FedEditError for a run that a strategy which averages weights cannot do."""
    if agreement.sealed:
        raise FedEditError(
            f"strategy {config.strategy}: averages weights, which the server has to read for "
            "that; choose sealed = off, and unsealed = true in the policy of every node"
        )
    if resumed:
        raise FedEditError(
            f"strategy {config.strategy}: it keeps its state in memory, so a run of it cannot be "
            "resumed; start a new run in another folder"
        )
