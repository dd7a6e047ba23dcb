"""Editing one model without a federation: what `import fedit_app` offers.

An `Editor` holds three things: a workbench (the model, the method, the settings), a run
configuration (where those settings come from), and a ledger (the facts edited so far). The model
that it speaks for is the base model and the ledger, solved together; nothing else is kept.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedit_app.config.run_config import ConfigValue, RunConfig
from fedit_app.editing.workbench import workbench_of
from fedit_app.evaluation.fit import that_fit, warn_of_long_targets
from fedit_app.evaluation.generation import answer_metrics
from fedit_app.evaluation.metrics import aggregate
from fedit_app.evaluation.neutral import neutral_scores, own_text
from fedit_app.evaluation.scores import score_requests, score_targets
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.conflicts import settle
from fedit_app.ledger.edit_report import EditedFact, EditReport, Measured
from fedit_app.ledger.edited_model import ledger_in, write_edited_model
from fedit_app.ledger.learning import learn, repeat
from fedit_app.ledger.ledger import Ledger
from fedit_app.ledger.origin import read_origin, write_origin
from fedit_app.ledger.request_texts import Texts, check_ids
from fedit_app.ledger.undo import take_out
from fedit_app.ledger.upkeep import uphold
from fedit_app.mkv.same_key import SameFact
from fedit_app.models.answers import Comparison, answer
from fedit_app.models.checkpoint import stored_dtype
from fedit_app.models.editable import EditableModel
from fedit_app.models.loading import (
    load_model,
    loaded_model,
    name_of,
    resolve_model,
)
from fedit_app.protocol.metrics import Metrics
from fedit_app.support.errors import FedEditError

logger = logging.getLogger(__name__)

_NODE = "local"
_MEMIT = "memit"

# Keys that change no MKV, such as where a model is computed.
_FREE = ("device", "dtype", "device-map", "on-bad-request")


class Editor:
    """A language model, a locate-then-edit method, and the ledger of the facts edited with it.

    The edited model is `W_l = W0_l + R_l K_l^T (lambda C_l + K_l K_l^T)^-1`, solved anew from all
    MKVs of the ledger (MEMIT, arXiv 2210.07229, equation 14): facts edited earlier are kept, their
    order changes nothing, and `rollback` undoes a fact exactly.

    Between calls the model in memory is bit for bit the base model; `edited` shows the other one.

    Args:
        model: a causal language model loaded with transformers and not edited yet. It is put in
            evaluation mode, and its parameters are frozen.
        tokenizer: its fast tokenizer.
        editor: the method: a value of the run config's `editor`.
        ledger: a folder that keeps the ledger, and the requests with which facts of one key are
            learned again; one that holds a ledger is continued. None keeps both as long as the
            editor; `save_pretrained` writes a copy.
        node: the name under which the MKVs are computed.
        settings: run-config keys with underscores, such as `layers="4-8"` or `value_steps=20`
            (`fedit config` lists them). Absent ones have the model's and the method's defaults.

    Attributes:
        ledger: the facts edited so far, as MKVs.
        bench: the model with the method and what it needs; `bench.fingerprint` is the ledger's.
        config: the run configuration that the settings make.
        node: the name under which the MKVs are computed.
        texts: the requests of the ledger, and those that later ones have replaced.

    Raises:
        FedEditError: the model's family is not known, a setting is invalid, or the ledger belongs
            to another model or other settings.

    Example:
        >>> from transformers import AutoModelForCausalLM, AutoTokenizer
        >>> model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-0.6B")
        >>> editor = Editor(model, AutoTokenizer.from_pretrained("Qwen/Qwen3-0.6B"))
        >>> print(editor.edit(load_requests("facts.jsonl")))
        >>> with editor.edited() as model:
        ...     model.generate(...)
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        editor: str = _MEMIT,
        *,
        ledger: Path | str | None = None,
        node: str = _NODE,
        **settings: ConfigValue,
    ) -> None:
        config = _config(editor, model=name_of(model), **settings)
        self._set_up(loaded_model(model, tokenizer, config.module_names), config, ledger, node)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        editor: str | None = None,
        *,
        ledger: Path | str | None = None,
        node: str | None = None,
        **settings: ConfigValue,
    ) -> Editor:
        """Load a model and make an editor of it.

        A folder that `save_pretrained` has written is continued: its base model is loaded, with a
        copy of its ledger and the settings with which that was made.

        Args:
            name: "smollm2-135m" (downloaded once), a Hugging Face folder, or a hub id.
            editor: see `Editor`, as all that follows; None: memit, or the folder's.
            ledger: a folder; None keeps the ledger as long as the editor.
            node: the name under which the MKVs are computed; None: local, or the folder's.
            settings: as for `Editor`; also `device`, `dtype` and `device_map`.

        Raises:
            FedEditError: the model cannot be loaded; or other settings are given than those of the
                folder's ledger; see also `Editor`.

        Example:
            >>> editor = Editor.from_pretrained("smollm2-135m", "alphaedit", device="cpu")
        """
        path = Path(name).expanduser()
        known = ledger_in(path)
        made = cls.__new__(cls)
        if known is None:
            full = str(path.absolute()) if path.is_dir() else str(name)
            config = _config(editor or _MEMIT, model=full, **settings)
        else:
            config, node = _recorded(path, known, editor, node, settings)
            if ledger is not None:
                raise FedEditError(f"{path}: has a ledger of its own; leave ledger out")
        model = load_model(
            config.model, config.device, config.dtype, config.module_names, config.device_map
        )
        made._set_up(model, config, ledger, node or _NODE, known)
        made._stored_dtype = stored_dtype(resolve_model(config.model))
        if known is not None:
            made._seen[path.resolve()] = made.ledger.head
        return made

    def _set_up(
        self,
        model: EditableModel,
        config: RunConfig,
        folder: Path | str | None,
        node: str,
        copied: Path | None = None,
    ) -> None:
        self.config, self.node = config, node
        self._stored_dtype = ""
        self._seen: dict[Path, str] = {}  # the heads of the edited models that it continues
        self.bench = workbench_of(model, config)
        if folder is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="fedit-ledger-")
            folder = Path(self._scratch.name) / "ledger"
            if copied is not None:
                shutil.copytree(copied, folder)
        self.ledger = Ledger.open(Path(folder).expanduser(), self.bench.fingerprint)
        self.texts = Texts.read(self._folder)

    @property
    def _folder(self) -> Path:
        """Where the ledger is."""
        if self.ledger.folder is None:
            raise ValueError("an editor's ledger always has a folder")
        return self.ledger.folder

    @property
    def requests(self) -> list[EditRequest]:
        """The requests that the ledger fulfils."""
        return list(self.texts.known.values())

    @torch.enable_grad()
    def edit(self, requests: Iterable[EditRequest]) -> EditReport:
        """Edit facts into the model, on top of those in the ledger.

        Facts with one key (the same subject and beginning of the prompt) share an MKV that says all
        of them; with a fact of an earlier call it is learned again. The same prompt with another
        target replaces the earlier fact.

        Args:
            requests: facts with ids of their own. An id of the ledger may come again with its
                fact, or with another target for the same prompt, which corrects it.

        Returns:
            The score of every target before and after.

        Raises:
            FedEditError: see `check`; or the model cannot learn a value.

        Example:
            >>> fact = EditRequest("1", "The Lancet", "{} is published in", "Edinburgh")
            >>> print(editor.edit([fact]))
            1 of 1 fact decoded
        """
        asked = self.check(list(requests))
        if asked:
            with self.ledger.step("edit", self._next_slot):
                texts = self._learn(asked, self.texts)
            self._keep(texts)
        pairs = [request.asked_new for request in asked]
        before = score_targets(self.bench.model, pairs)
        with self.bench.edited(self.ledger) as model:
            after = score_targets(model, pairs)
        fulfilled = self.ledger.fulfilled()
        mkvs = [fulfilled[request.id] for request in asked]
        return EditReport(tuple(map(EditedFact, asked, mkvs, before, after)))

    def check(self, requests: Sequence[EditRequest]) -> list[EditRequest]:
        """Check that requests can be edited together, and that the model can take them.

        Args:
            requests: see `edit`.

        Returns:
            The requests to edit. Of those that ask the same with different targets the later one
            counts; and with `on_bad_request="skip"` those that the model cannot take are left out.
            The log names what is left out.

        Raises:
            FedEditError: two have one id; an id names another fact of the ledger, see `check_ids`;
                or one does not fit the model, see `that_fit`.
        """
        ids = [request.id for request in requests]
        repeated = sorted(id_ for id_, count in Counter(ids).items() if count > 1)
        if repeated:
            raise FedEditError(f"requests: id {repeated[0]!r} is used more than once")
        check_ids(requests, self.texts, self.ledger.fulfilled())
        skip_bad = self.config.on_bad_request == "skip"
        kept = _that_count(that_fit(self.bench.model, requests, self.bench.templates, skip_bad))
        warn_of_long_targets(self.bench.model, kept)
        return kept

    @property
    def _next_slot(self) -> int:
        return 1 + max((entry.slot for entry in self.ledger.entries.values()), default=0)

    def _learn(self, requests: Sequence[EditRequest], texts: Texts) -> Texts:
        """Compute the MKVs of requests and accept them, inside a step of the ledger.

        Returns:
            The texts of the ledger that are known now, when these were known before.
        """
        ledger, same = self.ledger, SameFact(same_key=self.config.same_key_threshold)
        slot, held, old = self._next_slot, self.ledger.fulfilled(), texts.known
        known = {**old, **{request.id: request for request in requests}}
        repeat(requests, old.values(), ledger, slot)
        fulfilled = ledger.fulfilled()
        new = [r for r in requests if r.id not in fulfilled or old.get(r.id, r).fact != r.fact]
        found = learn(self.bench, ledger, new, known.values(), self.node, slot, {})
        if new and self.config.upkeep:
            found += uphold(self.bench, ledger, known.values(), self.node, slot, len(new))
        settle(ledger, [mkv.id for mkv in found], self.config.conflict_policy, same)
        return texts.after(held, ledger, requests)

    def _keep(self, texts: Texts) -> None:
        """Write the texts of the ledger's requests, and the settings, beside it."""
        write_origin(self._folder, self.node, False, self.config)
        texts.write(self._folder)
        self.texts = texts

    def measure(self, requests: Sequence[EditRequest] | None = None) -> Measured:
        """The metrics of requests, what the model answers, and what the edits do to ordinary text.

        Args:
            requests: one at least; None: all that the ledger fulfils.

        Raises:
            FedEditError: there is no request.

        Example:
            >>> editor.measure().after.other_relations
        """
        asked = self.requests if requests is None else list(requests)
        deltas = self.bench.deltas(self.ledger) if len(self.ledger) else {}

        def metrics() -> Metrics | None:
            model = self.bench.model
            answered = answer_metrics(model, {"asked": asked})["asked"]
            return aggregate(score_requests(model, asked), answered)

        before = metrics()
        with self.bench.model.edited(deltas):
            after = metrics()
        if before is None or after is None:
            raise FedEditError("measure: no request; edit a fact first")
        neutral = neutral_scores(self.bench.model, deltas, own_text(self.bench.model))
        return Measured(before, after, neutral)

    def ask(self, prompt: str, chat: bool = False) -> Comparison:
        """What the model says to a prompt before and after the edits; `print` it.

        Args:
            prompt: the text to be continued.
            chat: whether it is what the user of a chat model says.

        Raises:
            FedEditError: see `answer` and `reply`.

        Example:
            >>> print(editor.ask("The Lancet is published in"))
        """
        before = answer(self.bench.model, prompt, chat)
        with self.bench.edited(self.ledger) as model:
            return Comparison(prompt, before, answer(model, prompt, chat))

    @contextmanager
    def edited(self) -> Iterator[PreTrainedModel]:
        """The edited transformers model inside the block; afterwards it is the base model again.

        Example:
            >>> with editor.edited() as model:
            ...     pipeline("text-generation", model=model, tokenizer=editor.tokenizer)("Paris is")
        """
        with self.bench.edited(self.ledger) as model:
            yield model.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self.bench.model.tokenizer

    @torch.enable_grad()
    def rollback(self, ids: Iterable[str]) -> None:
        """Take facts out of the ledger: the model is then as if they had never been edited.

        What they replaced holds again. Facts that shared an MKV with them are learned again without
        them.

        Args:
            ids: of requests; or of MKVs, which go with all facts that they fulfil.

        Raises:
            FedEditError: the ledger has no such id.

        Example:
            >>> editor.rollback(["1"])
        """
        ledger, gone = self.ledger, set(ids)
        fulfilled = ledger.fulfilled()
        unknown = sorted(gone - fulfilled.keys() - ledger.entries.keys())
        if unknown:
            known = ", ".join(sorted(fulfilled)) or "none"
            raise FedEditError(f"id {unknown[0]!r}: not in the ledger; its requests are: {known}")
        requests = gone & fulfilled.keys()
        mkvs = gone - requests | {fulfilled[id_] for id_ in requests}
        beside = {id_ for mkv in mkvs for id_ in ledger.entries[mkv].requests} - requests
        beside -= {id_ for mkv in gone - requests for id_ in ledger.entries[mkv].requests}
        history, held, replaced = ledger.history(), fulfilled, self.texts.replaced_ids
        with ledger.step("rollback"):
            while mkvs:
                take_out(ledger, mkvs, history, self.config, replaced=replaced)
                fulfilled = ledger.fulfilled()
                mkvs = {fulfilled[id_] for id_ in requests & fulfilled.keys()}
            lost, old = sorted(beside - fulfilled.keys()), self.texts.known
            again = [old[id_] for id_ in lost if id_ in old]
            texts = self._learn(again, self.texts.after(held, ledger))
        self._keep(texts)

    def save_pretrained(
        self,
        folder: Path | str,
        form: str = "hf",
        rank: int | None = None,
        *,
        replace: bool = False,
    ) -> None:
        """Write the edited model, with a model card and its ledger.

        `from_pretrained` continues the folder. Its part `ledger` holds the texts of the requests:
        hand the folder on without it, or write another one with `fedit export`.

        Args:
            folder: the folder to make; complete or absent.
            form: hf, a folder that transformers loads, with weights of the type of the checkpoint;
                lora, an adapter that PEFT loads onto the base model; delta, the changes of the
                weights.
            rank: of the adapter; None: exact.
            replace: whether the folder takes the place of one that is there; other files in
                it are kept.

        Raises:
            FedEditError: the folder exists; or it is to be replaced, and another process has
                changed it since this editor has read or written it.

        Example:
            >>> editor.save_pretrained("edited")
            >>> AutoModelForCausalLM.from_pretrained("edited")
        """
        self._keep(self.texts)
        path = Path(folder).expanduser().resolve()
        write_edited_model(
            self.bench,
            self.ledger,
            Path(folder),
            form,
            rank,
            self._stored_dtype,
            replace,
            self._seen.get(path),
        )
        self._seen[path] = self.ledger.head


def _that_count(requests: Sequence[EditRequest]) -> list[EditRequest]:
    """The requests without those that a later one asks with another target, which are logged."""
    last = {(request.subject, request.prompt): request for request in requests}
    kept = []
    for request in requests:
        counts = last[request.subject, request.prompt]
        if counts.target_new == request.target_new:
            kept.append(request)
        else:
            logger.warning(
                "request %s is left out: %s asks the same with another target, and the later one "
                "counts",
                *(request.id, counts.id),
            )
    return kept


def _recorded(
    path: Path, ledger: Path, editor: str | None, node: str | None, given: Mapping[str, ConfigValue]
) -> tuple[RunConfig, str]:
    """The settings and the node with which an edited model was made.

    Raises:
        FedEditError: they are not recorded, or others are given that would make other MKVs.
    """
    origin = read_origin(ledger)
    if origin is None:
        raise FedEditError(f"{path}: its ledger does not say its settings; edit the base model")
    settings = dict(given) if editor is None else {"editor": editor, **given}
    config = RunConfig.parse({**origin.run, **_keys(settings)})
    changed = [
        key
        for key, value in _keys(settings).items()
        if key not in _FREE and config.as_dict()[key] != RunConfig.parse(origin.run).as_dict()[key]
    ]
    if changed or node not in (None, origin.node):
        what = ", ".join(changed) or "node"
        raise FedEditError(
            f"{path}: was edited with another {what}; leave that out, or edit the base model, "
            f"{config.model}, into another folder"
        )
    return config, origin.node


def _keys(settings: Mapping[str, ConfigValue]) -> dict[str, ConfigValue]:
    return {name.replace("_", "-"): value for name, value in settings.items()}


def _config(editor: str, **values: ConfigValue) -> RunConfig:
    """The run configuration of an editor; errors name the keys as `fedit config` does."""
    return RunConfig.parse({"editor": editor, **_keys(values)})
