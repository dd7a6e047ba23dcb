"""From the name of a strategy in the run config to what makes it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg, Strategy

from fedit_app.config.run_config import RunConfig
from fedit_app.pool import MKVPool
from fedit_app.protocol.messages import arrays_record
from fedit_app.server.collabedit import CollabEdit
from fedit_app.server.fedit import Central, FedEdit, Local
from fedit_app.server.merging import TaskArithmetic, Ties
from fedit_app.support.errors import FedEditError

Factory = Callable[[RunConfig, MKVPool, str], Strategy]
"""Makes a strategy from run config, pool and fingerprint, as `FedEdit` itself does."""


def strategy_named(name: str) -> Factory:
    """What makes the strategy of a run config.

    Args:
        name: a key of `STRATEGIES`, the class name of a Flower strategy that needs no arguments,
            or MODULE:CLASS, a `FedEdit` or such a Flower strategy in a module of one's own, such
            as `fedit_app.server.frugal:Frugal`.

    Raises:
        FedEditError: there is none of that name, or it needs arguments.
    """
    if name in STRATEGIES:
        return STRATEGIES[name]
    module, colon, class_name = name.partition(":")
    found = _imported(name, module, class_name) if colon else getattr(flower, name, None)
    if not inspect.isclass(found) or not issubclass(found, Strategy) or inspect.isabstract(found):
        raise FedEditError(
            f"run config: strategy = {name!r} must be one of {', '.join(STRATEGIES)}, the class "
            "name of a Flower strategy, such as FedMedian, or MODULE:CLASS of your own"
        )
    return found if issubclass(found, FedEdit) else _stock(found)


def _imported(name: str, module: str, class_name: str) -> object:
    try:
        return getattr(importlib.import_module(module), class_name, None)
    except (ImportError, ValueError) as error:
        raise FedEditError(
            f"run config: strategy = {name!r}: cannot import {module!r} ({error}); put the file "
            "into fedit_app/server/, or install its package on the server"
        ) from None


def _stock(strategy: type[Strategy]) -> Factory:
    """What makes a strategy that averages weights, for however many nodes there are."""
    parameters = inspect.signature(strategy).parameters
    needed = [
        parameter.name
        for parameter in parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    if needed:
        raise FedEditError(
            f"run config: strategy = {strategy.__name__!r} needs arguments ({', '.join(needed)}); "
            "give them defaults in a subclass of your own, and name that as MODULE:CLASS"
        )
    wanted = ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes")
    at_least = {name: 1 for name in wanted if name in parameters}
    return lambda config, pool, fingerprint: strategy(**at_least)


STRATEGIES: dict[str, Factory] = {
    "fedit": FedEdit,
    "local": Local,
    "central": Central,
    "fedavg": _stock(FedAvg),
    "task-arithmetic": _stock(TaskArithmetic),
    "ties": _stock(Ties),
    "collabedit": _stock(CollabEdit),
}
"""The strategies that have a short name."""


def keeps_its_state(name: str) -> bool:
    """Whether a run of a strategy can be resumed: what it knows lies on disk, not in memory.

    Of one that only another app knows this is not known, so it cannot.
    """
    try:
        factory = strategy_named(name)
    except FedEditError:
        return False
    return inspect.isclass(factory) and issubclass(factory, FedEdit)


def no_change(layers: Sequence[int], d_model: int, d_ff: int) -> ArrayRecord:
    """The global model that stock strategies start from: no change to any edited layer."""
    return arrays_record(
        {f"layer-{layer}": np.zeros((d_model, d_ff), np.float32) for layer in layers}
    )
