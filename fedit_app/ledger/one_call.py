"""One model in one call: what `fedit edit` does, and a question to the result."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from fedit_app.config.run_config import ConfigValue
from fedit_app.facts.request import EditRequest
from fedit_app.facts.sources import load_requests
from fedit_app.ledger.edit_report import EditReport
from fedit_app.ledger.edited_model import form_of, ledger_in
from fedit_app.ledger.editor import Editor
from fedit_app.ledger.export import check_export, check_space
from fedit_app.ledger.request_texts import check_new
from fedit_app.models.answers import Answer, answer
from fedit_app.models.loading import load_model
from fedit_app.support.errors import FedEditError


def edit(
    model: str | Path,
    requests: Path | str | Iterable[EditRequest],
    output: Path | str | None = None,
    editor: str | None = None,
    *,
    node: str | None = None,
    **settings: ConfigValue,
) -> EditReport:
    """Edit facts into a model and write the edited one as a Hugging Face folder.

    Args:
        model: "smollm2-135m", a Hugging Face folder, a hub id, or a folder that this has written,
            which is edited further.
        requests: the facts, or a file of them (see `load_requests`).
        output: the folder to make; None: the edited folder itself is replaced.
        editor: see `Editor.from_pretrained`, as all that follows.
        node: the name under which the MKVs are computed.
        settings: as for `Editor.from_pretrained`.

    Returns:
        What was achieved; `print` it.

    Raises:
        FedEditError: see `Editor`, `load_requests` and `Editor.save_pretrained`.

    Example:
        >>> print(edit("smollm2-135m", "facts.jsonl", "edited"))
    """
    target = output_of(model, output)
    if isinstance(requests, str | Path):
        skip_bad = settings.get("on_bad_request") == "skip"
        requests = load_requests(os.path.expanduser(requests), skip_bad=skip_bad)
    requests, known = list(requests), ledger_in(Path(model).expanduser())
    if known is not None:
        check_new(known, requests)
    made = Editor.from_pretrained(model, editor, ledger=None, node=node, **settings)
    form = "hf" if output is not None else form_of(target)
    check_space(form, target, made.bench.model.name)
    report = made.edit(requests)
    made.save_pretrained(target, form, replace=output is None)
    return report


def output_of(model: str | Path, output: Path | str | None) -> Path:
    """Where `edit` writes: the given folder, or the edited one that it continues.

    Raises:
        FedEditError: the given one exists, or none is given for a model that is not edited yet.
    """
    if output is not None:
        check_export("hf", Path(output).expanduser())
        return Path(output)
    if ledger_in(Path(model).expanduser()) is None:
        raise FedEditError(
            f"output: model {model} is not edited yet and stays as it is; name a folder to make"
        )
    return Path(model).expanduser()


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
