"""A run of a baseline: its folder is that of a run of any strategy."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedit_app.config.folders import run_folder, scores_file
from fedit_app.config.run_config import RunConfig
from fedit_app.evaluation.fit import that_fit
from fedit_app.evaluation.generation import WRITTEN
from fedit_app.evaluation.memory import AnswerMemory, ScoreMemory, write_scores
from fedit_app.evaluation.metrics import RequestScore, aggregate
from fedit_app.evaluation.scores import Before, nothing, score_requests
from fedit_app.experiments.baselines.methods import BASELINES
from fedit_app.experiments.baselines.training import Lesson
from fedit_app.facts.federation_facts import (
    apart_from,
    drawn,
    facts_for,
    that_must_stay,
    that_share_a_subject,
)
from fedit_app.facts.partition import simulated_nodes
from fedit_app.facts.request import EditRequest
from fedit_app.facts.sources import read_data
from fedit_app.models.editable import EditableModel
from fedit_app.models.embedding import embed
from fedit_app.models.loading import load_model
from fedit_app.report.results import Results
from fedit_app.server.record import RunRecord

_SCOPES = ("own", "federation")


def run_baseline(values: Mapping[str, Any], nodes: int) -> Results:
    """Learn the facts of all nodes and slots at once; measure each node's and everybody's.

    Args:
        values: the run configuration; `strategy` is a name of `BASELINES`.
        nodes: number of virtual nodes.

    Returns:
        The results, as they are written into the run folder.

    Raises:
        FedEditError: model or data cannot be read, or the method needs what is missing.
    """
    config = RunConfig.parse(values)
    model = load_model(
        config.model, config.device, config.dtype, config.module_names, config.device_map
    )
    record = RunRecord(config, run_folder(config, 0))
    try:
        asked = _Asked(config, nodes, record)
        everybody = asked.everybody(model)
        record.met(model.fingerprint, nodes, simulated=True, model=config.model)
        asked.measure(0, model, everybody, nothing)
        lesson = Lesson([*everybody.values()], config.seed, lambda: asked.spare(everybody))
        last, began = config.num_slots, time.perf_counter()
        with BASELINES[config.strategy](model, lesson) as before:
            record.took(last, "edit", time.perf_counter() - began)
            for name, own in everybody.items():
                record.count(last, name, requests=len(own))
            asked.measure(last, model, everybody, before)
        for slot in range(1, last + 1):
            record.close_slot(slot)
    except BaseException:
        record.finish("failed")
        raise
    return record.finish("completed")


class _Asked:
    """The facts of a run, and what the nodes of a simulation would measure of a common model."""

    def __init__(self, config: RunConfig, nodes: int, record: RunRecord) -> None:
        self._config, self._record = config, record
        self._data = simulated_nodes(config, nodes, record.folder, embed)

    def everybody(self, model: EditableModel) -> dict[str, list[EditRequest]]:
        """Name -> the node's facts of all slots that the model can take."""
        skip_bad = self._config.on_bad_request == "skip"
        found = {}
        for data in self._data:
            own = [request for slot in data.slots(self._config) for request in slot]
            found[data.name] = that_fit(model, own, skip_bad=skip_bad)
        return dict(sorted(found.items()))

    def spare(self, everybody: Mapping[str, Sequence[EditRequest]]) -> list[EditRequest]:
        """The records of the data that have nothing to do with what the nodes edit."""
        edited = [request for own in everybody.values() for request in own]
        return apart_from(read_data(self._config), edited)

    def measure(
        self,
        slot: int,
        model: EditableModel,
        everybody: Mapping[str, Sequence[EditRequest]],
        before: Before,
    ) -> None:
        """Record every node's metrics of the model as it is now; slot 0: it is unedited."""
        edited = [request for own in everybody.values() for request in own]
        stay = dict(zip(edited, that_must_stay(edited, edited), strict=True))
        every, most = {}, self._config.evaluate_sample
        for name, own in everybody.items():
            every[name] = dict(zip(_SCOPES, (own, facts_for(name, everybody)), strict=True))
        samples = {
            name: {scope: drawn(asked, most) for scope, asked in scopes.items()}
            for name, scopes in every.items()
        }
        asked = [r for scopes in samples.values() for part in scopes.values() for r in part]
        unique = list(dict.fromkeys(stay[request] for request in asked))
        root = self._config.work_cache
        folder = Path(root).expanduser() / "scores" if root else None
        if before is nothing:  # found again by the state of the weights, in any run
            scores = ScoreMemory().score(model, unique, folder)
        else:
            scores = dict(zip(unique, score_requests(model, unique, before), strict=True))

        written: dict[str, dict[str, float | None]] = {}
        if self._config.metrics in WRITTEN:
            groups = {f"{n} {s}": part for n, parts in samples.items() for s, part in parts.items()}
            written = WRITTEN[self._config.metrics](
                model, groups, before, AnswerMemory().ask(folder)
            )

        def of(requests: Sequence[EditRequest]) -> list[RequestScore]:
            return [scores[stay[request]] for request in requests]

        for name, scopes in samples.items():
            found = {
                scope: aggregate(
                    of(part),
                    written.get(f"{name} {scope}"),
                    of(that_share_a_subject(part, edited)),
                    len(every[name][scope]),
                )
                for scope, part in scopes.items()
            }
            self._record.measured(slot, name, found)
            if slot:
                by_fact = {stay[fact]: scores[stay[fact]] for fact in scopes["federation"]}
                write_scores(scores_file(self._record.folder, name), by_fact)
