"""Editing one model without a federation: what `import fedit_app` offers.

An `Editor` holds three things: a workbench (the model, the method, the settings), a run
configuration (where those settings come from), and a ledger (the facts edited so far). The model
that it speaks for is the base model and the ledger, solved together; nothing else is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedit_app.config.run_config import ConfigValue, RunConfig
from fedit_app.editing.workbench import workbench_of
from fedit_app.evaluation.scores import TargetScore, score_targets
from fedit_app.facts.jsonl import read_requests, write_requests
from fedit_app.facts.request import EditRequest
from fedit_app.facts.sources import load_requests
from fedit_app.ledger.conflicts import settle
from fedit_app.ledger.export import write_export
from fedit_app.ledger.learning import learn, repeat
from fedit_app.ledger.ledger import Ledger
from fedit_app.ledger.origin import write_origin
from fedit_app.ledger.undo import take_out
from fedit_app.mkv.same_key import SameFact
from fedit_app.models.answers import Answer, Comparison, answer
from fedit_app.models.editable import EditableModel
from fedit_app.models.loading import load_model, loaded_model, name_of
from fedit_app.support.errors import FedEditError
from fedit_app.support.formats import plural
from fedit_app.support.tables import Shown, Table

_NODE = "local"
_TEXTS = "requests.jsonl"


@dataclass(frozen=True)
class EditedFact:
    """One request and what has become of it.

    Attributes:
        request: the request.
        mkv: id of the MKV in the ledger that fulfils it.
        before: the target's score on the unedited model: `probability`, and `decoded`, whether
            every token of the target is the likeliest one after the prompt.
        after: the same on the edited model.
    """

    request: EditRequest
    mkv: str
    before: TargetScore
    after: TargetScore


@dataclass(frozen=True)
class EditReport:
    """What `Editor.edit` has achieved. `print` shows it as a table.

    Attributes:
        facts: one per request, in their order.
    """

    facts: tuple[EditedFact, ...]

    @property
    def decoded(self) -> int:
        """How many of the targets the edited model says now."""
        return sum(fact.after.decoded for fact in self.facts)

    def __str__(self) -> str:
        columns = ("request", "target", "before", "after", "decoded")
        rows = [
            (
                fact.request.id,
                fact.request.target_new,
                Shown(fact.before.probability, f"{fact.before.probability:.1%}"),
                Shown(fact.after.probability, f"{fact.after.probability:.1%}"),
                fact.after.decoded,
            )
            for fact in self.facts
        ]
        head = f"{self.decoded} of {plural(len(self.facts), 'fact')} decoded"
        return f"{head}\n\n{Table(columns, rows).text()}"


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
        editor: the method: memit, pmet, alphaedit, memit-fe.
        ledger: a folder that keeps the ledger, and the requests with which facts of one key are
            learned again; one that holds a ledger is continued. None keeps both in memory.
        node: the name under which the MKVs are computed.
        settings: run-config keys with underscores, such as `layers="4-8"` or `value_steps=20`
            (`fedit config` lists them). Absent ones have the model's and the method's defaults.

    Attributes:
        ledger: the facts edited so far, as MKVs.
        bench: the model with the method and what it needs; `bench.fingerprint` is the ledger's.
        config: the run configuration that the settings make.
        node: the name under which the MKVs are computed.

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
        editor: str = "memit",
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
        editor: str = "memit",
        *,
        ledger: Path | str | None = None,
        node: str = _NODE,
        **settings: ConfigValue,
    ) -> Editor:
        """Load a model and make an editor of it.

        Args:
            name: "smollm2-135m" (downloaded once), a Hugging Face folder, or a hub id.
            editor: see `Editor`, as all that follows.
            ledger: a folder; None keeps the ledger in memory.
            node: the name under which the MKVs are computed.
            settings: as for `Editor`; also `device`, `dtype` and `device_map`.

        Raises:
            FedEditError: the model cannot be loaded; see also `Editor`.

        Example:
            >>> editor = Editor.from_pretrained("smollm2-135m", "alphaedit", device="cpu")
        """
        config = _config(editor, model=str(name), **settings)
        model = load_model(
            config.model, config.device, config.dtype, config.module_names, config.device_map
        )
        made = cls.__new__(cls)
        made._set_up(model, config, ledger, node)
        return made

    def _set_up(
        self, model: EditableModel, config: RunConfig, folder: Path | str | None, node: str
    ) -> None:
        self.config, self.node = config, node
        self.bench = workbench_of(model, config)
        if folder is None:
            self.ledger = Ledger(self.bench.fingerprint)
        else:
            self.ledger = Ledger.open(Path(folder).expanduser(), self.bench.fingerprint)
        texts = self.ledger.folder / _TEXTS if self.ledger.folder else None
        known = read_requests(texts) if texts and texts.exists() else []
        self._texts = {request.id: request for request in known}

    def edit(self, requests: Iterable[EditRequest]) -> EditReport:
        """Edit facts into the model, on top of those in the ledger.

        Facts with one key (the same subject and beginning of the prompt) share an MKV that says all
        of them; with a fact of an earlier call it is learned again. The same prompt with another
        target replaces the earlier fact.

        Args:
            requests: facts with ids of their own. An id that was used before names the new fact
                from now on.

        Returns:
            The score of every target before and after.

        Raises:
            FedEditError: two requests have one id, or ask the same with different targets; or the
                model cannot learn a value.

        Example:
            >>> fact = EditRequest("1", "The Lancet", "{} is published in", "Edinburgh")
            >>> print(editor.edit([fact]))
            1 of 1 fact decoded
        """
        asked = list(requests)
        ids = [request.id for request in asked]
        repeated = {id_ for id_ in ids if ids.count(id_) > 1}
        if repeated:
            raise FedEditError(f"requests: id {sorted(repeated)[0]!r} is used more than once")
        targets = {(request.subject, request.prompt): request for request in asked}
        for request in asked:
            last = targets[request.subject, request.prompt]
            if last.target_new != request.target_new:
                raise FedEditError(
                    f"requests {request.id!r} and {last.id!r}: the same prompt with different "
                    "targets"
                )
        if asked:
            self._learn(asked)
        pairs = [(request.text, request.target_new) for request in asked]
        before = score_targets(self.bench.model, pairs)
        with self.bench.edited(self.ledger) as model:
            after = score_targets(model, pairs)
        fulfilled = self.ledger.fulfilled()
        mkvs = [fulfilled[id_] for id_ in ids]
        return EditReport(tuple(map(EditedFact, asked, mkvs, before, after)))

    def _learn(self, requests: Sequence[EditRequest]) -> None:
        """Compute the MKVs of requests, and accept them as one step of the ledger."""
        ledger, same = self.ledger, SameFact(same_key=self.config.same_key_threshold)
        slot = 1 + max((entry.slot for entry in ledger.entries.values()), default=0)
        texts = self._texts | {request.id: request for request in requests}
        with ledger.step("edit", slot):
            ledger.release(r.id for r in requests if self._texts.get(r.id, r).fact != r.fact)
            repeat(requests, self._texts.values(), ledger, slot)
            new = [request for request in requests if request.id not in ledger.fulfilled()]
            found = learn(self.bench, ledger, new, texts.values(), self.node, slot, {})
            settle(ledger, [mkv.id for mkv in found], self.config.conflict_policy, same)
        fulfilled = ledger.fulfilled()
        self._texts = {id_: request for id_, request in texts.items() if id_ in fulfilled}
        if ledger.folder is not None:
            write_origin(ledger.folder, self.node, False, self.config)
            write_requests(ledger.folder / _TEXTS, list(self._texts.values()))

    def ask(self, prompt: str) -> Comparison:
        """What the model says to a prompt before and after the edits; `print` it.

        Args:
            prompt: the text to be continued.

        Example:
            >>> print(editor.ask("The Lancet is published in"))
        """
        before = answer(self.bench.model, prompt)
        with self.bench.edited(self.ledger) as model:
            return Comparison(prompt, before, answer(model, prompt))

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

    def rollback(self, ids: Iterable[str]) -> None:
        """Take facts out of the ledger: the model is then as if they had never been edited.

        What they replaced holds again. Facts that share an MKV are taken out together.

        Args:
            ids: of requests, or of MKVs.

        Raises:
            FedEditError: the ledger has no such id.

        Example:
            >>> editor.rollback(["1"])
        """
        fulfilled = self.ledger.fulfilled()
        mkvs = {fulfilled.get(id_, id_) for id_ in ids}
        unknown = sorted(mkvs - self.ledger.entries.keys())
        if unknown:
            known = ", ".join(sorted(fulfilled)) or "none"
            raise FedEditError(f"id {unknown[0]!r}: not in the ledger; its requests are: {known}")
        history = self.ledger.history()
        with self.ledger.step("rollback"):
            take_out(self.ledger, mkvs, history, self.config)

    def save_pretrained(
        self, folder: Path | str, form: str = "hf", rank: int | None = None
    ) -> None:
        """Write the edited model, with a model card; the folder is complete or absent.

        Args:
            folder: the folder to make.
            form: hf, a folder that transformers loads; lora, an adapter that PEFT loads onto the
                base model; delta, the changes of the weights.
            rank: of the adapter; None: exact.

        Raises:
            FedEditError: the folder exists, or there is no edit.

        Example:
            >>> editor.save_pretrained("edited")
            >>> AutoModelForCausalLM.from_pretrained("edited")
        """
        write_export(self.bench, self.ledger, form, Path(folder), rank)


def edit(
    model: str | Path,
    requests: Path | str | Iterable[EditRequest],
    output: Path | str,
    editor: str = "memit",
    *,
    ledger: Path | str | None = None,
    node: str = _NODE,
    **settings: ConfigValue,
) -> EditReport:
    """Edit facts into a model and write the edited one as a Hugging Face folder.

    Args:
        model: "smollm2-135m", a Hugging Face folder, or a hub id.
        requests: the facts, or a file of them (see `load_requests`).
        output: the folder to make.
        editor: see `Editor`, as all that follows.
        ledger: a folder; None keeps the ledger in memory.
        node: the name under which the MKVs are computed.
        settings: as for `Editor.from_pretrained`.

    Returns:
        What was achieved; `print` it.

    Raises:
        FedEditError: see `Editor`, `load_requests` and `Editor.save_pretrained`.

    Example:
        >>> print(edit("smollm2-135m", "facts.jsonl", "edited"))
    """
    if Path(output).exists():
        raise FedEditError(f"output {output}: exists already; name a folder that does not")
    facts = load_requests(requests) if isinstance(requests, str | Path) else requests
    made = Editor.from_pretrained(model, editor, ledger=ledger, node=node, **settings)
    report = made.edit(facts)
    made.save_pretrained(output)
    return report


def ask(model: str | Path, prompt: str, device: str = "auto") -> Answer:
    """What a model says to a prompt: its greedy continuation and the likeliest next tokens.

    Args:
        model: "smollm2-135m", a Hugging Face folder such as `edit` writes, or a hub id.
        prompt: the text to be continued.
        device: auto, cpu, cuda or cuda:N.

    Example:
        >>> print(ask("edited", "The Lancet is published in"))
    """
    return answer(load_model(str(model), device), prompt)


def _config(editor: str, **values: ConfigValue) -> RunConfig:
    """The run configuration of an editor; errors name the keys as `fedit config` does."""
    given = {name.replace("_", "-"): value for name, value in values.items()}
    return RunConfig.parse({"editor": editor, **given})
