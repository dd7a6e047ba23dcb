"""What an edit of one model would take: which facts share a key, how long, how much memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch

from fedit_app.editing.corpus import sampling_seconds
from fedit_app.editing.covariance import missing_layers, origin_of
from fedit_app.editing.key_groups import key_groups
from fedit_app.editing.optimise import batch_that_fits, bytes_per_fact
from fedit_app.editing.solver import SOLVER_MATRICES
from fedit_app.editing.values import ValueProblem, key_rows
from fedit_app.editing.workbench import Workbench
from fedit_app.facts.request import EditRequest

# Passes that a value takes on average, of the at most `value-steps` (SmolLM2-135M, CounterFact).
_USUAL_PASSES = 11
_TIMED_FACTS = 4
_FLOAT64 = 8


@dataclass(frozen=True)
class EditPlan:
    """What an edit would take.

    Attributes:
        groups: ids of the requests of each key that several share.
        keys: number of keys, each of which gets an MKV.
        seconds: about how long the values take on this machine.
        covariance_seconds: about how long the covariances take, which are computed once a model;
            0 if they are in the cache.
        bytes_on_device: about how much of the device's memory is needed, the model included.
    """

    groups: list[list[str]]
    keys: int
    seconds: float
    covariance_seconds: float
    bytes_on_device: int


def plan_edit(
    bench: Workbench, requests: Sequence[EditRequest], held: Sequence[EditRequest] = ()
) -> EditPlan:
    """Estimate an edit from the keys of the requests and one timed step.

    Args:
        bench: the model and its tools.
        requests: one at least.
        held: those that the ledger fulfils, which are learned again where they share a key.
    """
    known = [*requests, *held]
    found = key_groups(bench.lookup_keys(known).numpy(), bench.same_key)
    groups = [[known[i] for i in group] for group in found if group[0] < len(requests)]
    requests = [request for group in groups for request in group]
    model, layers = bench.model, bench.settings.layers
    missing = missing_layers(model, layers, bench.source)
    tokens = origin_of(model, bench.source).tokens
    with_copy = bench.settings.subject_weight > 0
    rows = [key_rows(model, [request], bench.templates, with_copy) for request in requests]
    site = bench.editor.site(model, bench.settings)
    batch = bench.settings.batch or batch_that_fits(model, rows, site.first)
    at_once = min(batch, len(rows)) * bytes_per_fact(model, rows, site.first)
    weights = sum(weight.numel() * weight.element_size() for weight in model.model.parameters())
    deltas = len(layers) * model.d_ff * model.d_model * _FLOAT64
    solver = SOLVER_MATRICES * model.d_ff**2 * _FLOAT64 + deltas
    timed = sorted(rows, key=lambda row: row.width)[len(rows) // 2 :][:_TIMED_FACTS]
    problem = ValueProblem.of(model, timed, site)
    began = time.perf_counter()
    delta = torch.zeros_like(problem.h0, requires_grad=True)
    outcome = problem.evaluate(delta)
    (outcome.nll + outcome.subject_kl).sum().backward()
    per_fact = (time.perf_counter() - began) / len(timed)
    return EditPlan(
        groups=[[request.id for request in group] for group in groups if len(group) > 1],
        keys=len(groups),
        seconds=per_fact * min(_USUAL_PASSES, bench.settings.steps) * len(rows),
        covariance_seconds=sampling_seconds(model, tokens) if missing else 0.0,
        bytes_on_device=weights + max(at_once, solver),
    )


def memory_free(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
