"""A model with everything that editing it needs, kept in memory from one call to the next."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedit_app.config.editing import EditingSettings, WorkbenchSettings
from fedit_app.editing.composition import LocalSteps, local_steps, step_size
from fedit_app.editing.contexts import Template, contexts_digest, sample_contexts
from fedit_app.editing.covariance import CovarianceSource, covariance
from fedit_app.editing.editors import editor_named
from fedit_app.editing.kept_sums import KeptSums, pairs_of
from fedit_app.editing.key_groups import key_groups
from fedit_app.editing.method import Kind
from fedit_app.editing.pairs import Pairs
from fedit_app.editing.screening import LayerScale, Screen, layer_scale
from fedit_app.editing.settings import EditSettings, run_settings
from fedit_app.editing.solver import Solver
from fedit_app.editing.subjects import lookup_keys
from fedit_app.editing.value_store import ValueStore
from fedit_app.editing.values import ValueProblem, Values, key_rows
from fedit_app.facts.request import EditRequest
from fedit_app.mkv import DEFAULT_PRECISION, MKV, create, precision_named
from fedit_app.mkv.fingerprint import fingerprint_of
from fedit_app.mkv.same_key import SAME_KEY
from fedit_app.models.chat import chat_form
from fedit_app.models.editable import EditableModel
from fedit_app.models.loading import load_model
from fedit_app.support.files import cache_dir, write_json_atomic

logger = logging.getLogger(__name__)

_PAIRS_PER_PASS = 16
_MORE_TRIES = 3


class Edits(Protocol):
    """Accepted edits, such as a ledger: what the workbench needs to know of them."""

    def __len__(self) -> int:
        """How many there are."""

    @property
    def holding(self) -> Sequence[MKV]:
        """Their MKVs, in an order that depends on nothing else."""

    @property
    def sums(self) -> KeptSums | None:
        """Where their sums are kept; None: nowhere."""


@dataclass(frozen=True)
class _Together:
    """Accepted edits and new MKVs on top of them; see `Edits`."""

    ledger: Edits
    mkvs: Sequence[MKV]

    def __len__(self) -> int:
        return len(self.ledger) + len(self.mkvs)

    @property
    def holding(self) -> Sequence[MKV]:
        return [*self.ledger.holding, *self.mkvs]

    @property
    def sums(self) -> KeptSums | None:
        return self.ledger.sums.of_variant() if self.ledger.sums else None


@dataclass(frozen=True)
class Patched:
    """What a value says when it is patched in.

    Attributes:
        decoded: whether every target token is the argmax in every context.
        nll: mean negative log-likelihood of the target's tokens over the contexts, in nats.
    """

    decoded: bool
    nll: float


class Workbench:
    """Edits one model with one editor and one group of settings.

    Args:
        model: the model.
        editor: name of the editor.
        settings: its hyperparameters.
        n_contexts: how many context prefixes to sample.
        n_chats: how many forms of a chat are contexts, where the tokenizer has a chat template.
        source: text behind the covariance.
        seed: seed of the contexts.
        precision: one of `mkv.PRECISIONS`, to which MKVs are rounded.
        same_key: least cosine of lookup keys from which two keys count as one.

    Raises:
        FedEditError: no editor or precision of that name.
    """

    def __init__(
        self,
        model: EditableModel,
        editor: str,
        settings: EditSettings,
        n_contexts: int,
        source: CovarianceSource,
        seed: int,
        precision: str = DEFAULT_PRECISION,
        same_key: float = SAME_KEY,
        n_chats: int = 0,
    ) -> None:
        self.editor = editor_named(editor)
        precision_named(precision)
        self.precision, self.same_key = precision, same_key
        self.model, self.settings, self.source = model, settings, source
        forms = chat_form(model) if n_chats else None
        self.templates: tuple[Template, ...] = (
            *_stored_contexts(model, n_contexts, seed),
            *(() if forms is None else (forms,)),
        )
        self.components = {
            "model": model.fingerprint,
            "editor": editor,
            "settings": settings.digest(),
            "contexts": contexts_digest(self.templates),
            "precision": precision,
        }

    @property
    def fingerprint(self) -> str:
        """Hash of all that an MKV's vectors depend on, see `components`."""
        return fingerprint_of(self.components)

    @property
    def kinds(self) -> int:
        """Of how many kinds of contexts an MKV has a pair: of texts, or of texts and chats."""
        return len({isinstance(one, str) for one in self.templates})

    @functools.cached_property
    def solver(self) -> Solver:
        """The joint solve; its covariances are computed on first use, or read from the cache."""
        found = covariance(self.model, self.settings.layers, self.source)
        return self.editor.solver(found, self.settings, self.model.device)

    @functools.cached_property
    def scales(self) -> dict[int, LayerScale]:
        """What is usual in the edited layers of the base model."""
        return {
            layer: layer_scale(
                covariance(self.model, [layer], self.source)[layer].to(self.solver.device),
                self.model.weight(layer),
            )
            for layer in self.settings.layers
        }

    @functools.cached_property
    def screen(self) -> Screen:
        """What tells MKVs that could not be honest ones; made on first use."""
        keys = len(self.settings.layers) * self.kinds
        shape = keys, self.model.d_ff, self.model.d_model
        return Screen(self.solver, self.scales, shape, self.settings.clamp)

    def pairs(self, ledger: Edits) -> Pairs:
        """The keys and shifts of a ledger."""
        shape = self.model.d_ff, self.model.d_model, self.kinds
        if ledger.sums is None:
            return pairs_of(ledger.holding, *shape)
        return ledger.sums.pairs(ledger.holding, *shape)

    def deltas(self, ledger: Edits) -> dict[int, Tensor]:
        """What a ledger adds to the weights: layer -> Delta_l (d_model, d_ff) float64."""
        return self.solver.deltas(self.pairs(ledger))

    @contextmanager
    def edited(self, ledger: Edits) -> Iterator[EditableModel]:
        """The model edited by a ledger inside the block, the base model again afterwards."""
        with self.model.edited(self.deltas(ledger) if len(ledger) else {}):
            yield self.model

    def compute(
        self,
        requests: Sequence[EditRequest],
        ledger: Edits,
        node: str,
        slot: int,
        starts: Sequence[MKV | None] | None = None,
        store: ValueStore | None = None,
    ) -> list[MKV]:
        """MKVs of new requests on top of a ledger.

        Requests with one key share an MKV: its value is optimised for all of them.

        Args:
            requests: n requests, of which no two ask the same with another target.
            ledger: what was accepted before.
            node: the node that computes.
            slot: the time slot.
            starts: for each request an MKV from whose value its own is optimised, or None to start
                from the unedited state; absent: None for all.
            store: where values are looked up before they are optimised, and kept afterwards.

        Returns:
            The MKV of each request; the ledger is not changed.
        """
        if not requests:
            return []
        groups = key_groups(self.lookup_keys(requests).numpy(), self.same_key)
        given = starts or [None] * len(requests)
        chosen = [next((given[i] for i in group if given[i]), None) for group in groups]
        begin = [None if mkv is None else torch.from_numpy(mkv.delta) for mkv in chosen]
        values = self.editor.values(
            self.model, requests, self.templates, self.settings, begin, store, groups
        )
        made = self._said(requests, groups, ledger, node, slot, values, store)
        of_request = {i: mkv for group, mkv in zip(groups, made, strict=True) for i in group}
        return [of_request[i] for i in range(len(requests))]

    def _said(
        self,
        requests: Sequence[EditRequest],
        groups: Sequence[Sequence[int]],
        ledger: Edits,
        node: str,
        slot: int,
        values: Values,
        store: ValueStore | None,
    ) -> list[MKV]:
        """MKVs of values; those that several facts share are learned on until the model says them.

        A value that says its facts when it is patched in may say one of them barely, and not once
        it is written into the weights.
        """
        all_facts = [[requests[i] for i in group] for group in groups]
        made = self._written(self._kinds(all_facts, values), ledger, node, slot)
        open_ = [number for number, group in enumerate(groups) if len(group) > 1]
        for _ in range(_MORE_TRIES if open_ else 0):
            leads = self.leads([all_facts[i] for i in open_], _Together(ledger, made))
            open_ = [number for number, lead in zip(open_, leads, strict=True) if lead <= 0]
            if not open_:
                break
            more = self.editor.values(
                self.model,
                requests,
                self.templates,
                self.settings,
                [(values.v_star - values.h0)[number, -1] for number in open_],
                store,
                [groups[number] for number in open_],
            )
            values = values.replaced(open_, more)
            made = self._written(self._kinds(all_facts, values), ledger, node, slot)
        return made

    def compose(
        self,
        groups: Sequence[Sequence[EditRequest]],
        changes: np.ndarray,
        steps: int,
        round_: int = 0,
    ) -> LocalSteps:
        """A holder's part of a round of composition; see `composition.local_steps`.

        Args:
            groups: the holder's own requests of n keys.
            changes: (n, d_model) the values from which it starts, as v - h0.
            steps: how many steps it takes; 0 only looks at the values.
            round_: how many rounds were before.
        """
        with_copy = self.settings.subject_weight > 0
        rows = [key_rows(self.model, group, self.templates, with_copy) for group in groups]
        site = self.editor.site(self.model, self.settings)
        start = torch.from_numpy(changes)
        objective, rate = self.editor.objective, step_size(self.settings.learning_rate, round_)
        return local_steps(self.model, rows, site, self.settings, objective, start, steps, rate)

    def leads(self, groups: Sequence[Sequence[EditRequest]], ledger: Edits) -> np.ndarray:
        """By how much the model edited by a ledger says the targets of requests.

        Args:
            groups: the requests of n keys.
            ledger: the ledger.

        Returns:
            (n,) the smallest lead of a target token in the clean prompts, see `values.Outcome`.
        """
        site = self.editor.site(self.model, self.settings)
        rows = [key_rows(self.model, group, self.templates[:1]) for group in groups]
        found = [np.zeros(0)]
        with self.edited(ledger), torch.no_grad():
            for begin in range(0, len(rows), _PAIRS_PER_PASS):
                problem = ValueProblem.of(self.model, rows[begin : begin + _PAIRS_PER_PASS], site)
                outcome = problem.evaluate(torch.zeros_like(problem.h0))
                found.append(outcome.lead.double().cpu().numpy())
        return np.concatenate(found)

    def write(
        self,
        groups: Sequence[Sequence[EditRequest]],
        v_star: np.ndarray,
        h0: np.ndarray,
        ledger: Edits,
        node: str,
        slot: int,
    ) -> list[MKV]:
        """MKVs of n values that are known already, on top of a ledger.

        Args:
            groups: requests of each of n keys.
            v_star: (n, d_model) the values.
            h0: (n, d_model) what stands there in the unedited model.
            ledger: what was accepted before.
            node: the node that writes.
            slot: the time slot.
        """
        values, states = (
            torch.from_numpy(part)[:, None].to(self.model.device) for part in (v_star, h0)
        )
        nothing = torch.zeros(len(groups))
        kinds = self._kinds(groups, Values(values, states, nothing, nothing))
        return self._written(kinds, ledger, node, slot)

    def renew(
        self,
        groups: Sequence[Sequence[EditRequest]],
        mkvs: Sequence[MKV],
        ledger: Edits,
        node: str,
        slot: int,
    ) -> list[MKV]:
        """Write the values of MKVs anew, so that their facts are said on top of a ledger.

        What an MKV wants of the subject's state is learned on the unedited model. Among many others
        the same state may not say the fact any more: here it is learned on, on the model that the
        ledger makes, and written. The new MKV keeps the value, and differs in what it takes.

        Args:
            groups: the requests of each of n keys.
            mkvs: their MKVs, which the ledger does not have.
            ledger: all others.
            node: the node that writes.
            slot: the time slot.

        Returns:
            The new MKV of each key.
        """
        requests = [request for group in groups for request in group]
        numbers = iter(range(len(requests)))
        of_key = [[next(numbers) for _ in group] for group in groups]
        starts = [torch.from_numpy(mkv.delta) for mkv in mkvs]
        with self.edited(ledger):
            goals = self.editor.values(
                self.model, requests, self.templates, self.settings, starts, None, of_key
            )
            kinds = self._kinds(groups, goals)
        return [
            create(
                node,
                slot,
                self.fingerprint,
                new.keys,
                new.shifts,
                old.v_star,
                old.h0,
                self.precision,
            )
            for new, old in zip(self._written(kinds, ledger, node, slot), mkvs, strict=True)
        ]

    def _kinds(self, groups: Sequence[Sequence[EditRequest]], values: Values) -> list[Kind]:
        """Where values that were learned on the model as it is now are written."""
        return self.editor.kinds(self.model, groups, self.templates, self.settings, values)

    def _written(self, kinds: Sequence[Kind], ledger: Edits, node: str, slot: int) -> list[MKV]:
        """MKVs of n values on top of a ledger."""
        found = self.editor.vectors(
            self.model, kinds, self.solver, self.pairs(ledger), self.settings
        )
        pairs = (part.flatten(1, 2) for part in (found.keys, found.shifts))
        parts = (*pairs, found.v_star, found.h0)
        keys, shifts, v_star, h0 = (part.float().cpu().numpy() for part in parts)
        return [
            create(node, slot, self.fingerprint, *one, self.precision)
            for one in zip(keys, shifts, v_star, h0, strict=True)
        ]

    def lookup_keys(self, requests: Sequence[EditRequest]) -> Tensor:
        """(n, d_ff) float64 keys at the first edited layer; see `subjects.lookup_keys`."""
        if not requests:
            return torch.zeros(0, self.model.d_ff, dtype=torch.float64)
        return lookup_keys(self.model, requests, self.templates, self.settings.layers[0]).cpu()

    def patched(self, pairs: Sequence[tuple[EditRequest, MKV | None]]) -> list[Patched]:
        """What the unedited model makes of requests' targets once an MKV's v* is patched in.

        Args:
            pairs: a request and an MKV of the same fingerprint; None patches nothing in.
        """
        site = self.editor.site(self.model, self.settings)
        found: list[Patched] = []
        for begin in range(0, len(pairs), _PAIRS_PER_PASS):
            chunk = pairs[begin : begin + _PAIRS_PER_PASS]
            rows = [key_rows(self.model, [request], self.templates) for request, _ in chunk]
            problem = ValueProblem.of(self.model, rows, site)
            changes = [
                torch.zeros(self.model.d_model) if mkv is None else torch.from_numpy(mkv.delta)
                for _, mkv in chunk
            ]
            outcome = problem.patched(torch.stack(changes))
            found += map(Patched, outcome.decoded.tolist(), outcome.nll.tolist())
        return found


def workbench_for(config: WorkbenchSettings) -> Workbench:
    """The model and editor of a run configuration.

    The latest one stays in memory under what it depends on: a run that differs from the last one
    in other keys, such as `output-dir`, gets the same one with its covariances factorised.

    Args:
        config: the run configuration, of which only the settings of model and editing count.

    Raises:
        FedEditError: the model cannot be loaded, or its layers cannot be edited.
    """
    return latest_workbench(config.part(WorkbenchSettings))


@functools.lru_cache(maxsize=1)
def latest_workbench(config: WorkbenchSettings) -> Workbench:
    """See `workbench_for`; the cache key is these settings."""
    model = load_model(
        config.model, config.device, config.dtype, config.module_names, config.device_map
    )
    return workbench_of(model, config)


def workbench_of(model: EditableModel, config: EditingSettings) -> Workbench:
    """A loaded model with the editor and the settings of a run configuration.

    Args:
        model: the model, unedited.
        config: the run configuration, or its part about editing.

    Raises:
        FedEditError: the layers that it names cannot be edited.
    """
    settings = run_settings(config, model.model.config.model_type, model.n_layers, model.d_model)
    model.require_editable(settings.layers)
    source = CovarianceSource(config.covariance_source, config.covariance_tokens, config.seed)
    return Workbench(
        model,
        config.editor,
        settings,
        config.contexts,
        source,
        config.seed,
        config.mkv_precision,
        config.same_key_threshold,
        config.chat_contexts,
    )


def _stored_contexts(model: EditableModel, count: int, seed: int) -> tuple[str, ...]:
    """The context templates of a model, sampled once and kept."""
    file: Path = cache_dir() / "contexts" / f"{model.fingerprint[:16]}-{count}-{seed}.json"
    if not file.exists():
        write_json_atomic(file, sample_contexts(model, count, seed))
    return tuple(json.loads(file.read_text(encoding="utf-8")))
