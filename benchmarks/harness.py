"""What every benchmark shares: options, clocks, tables and the file with the figures.

A benchmark is a module with a function that prints its tables and returns its figures:

    @benchmark(count("--records", 50, "scored in batches"))
    def run(options: argparse.Namespace) -> Figures:
        ...

    if __name__ == "__main__":
        main(run)

`run(arguments)` then parses a command line (None: the process's), and writes the figures with
`--json`.

Names of figures are paths whose last part is the quantity with its unit: `seconds_per_edit`,
`peak_mib`; for example `pool/576/n=10000/bytes_per_mkv`.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import functools
import gc
import math
import platform
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import psutil
import torch

from fedit_app.editing.covariance import CovarianceSource
from fedit_app.editing.settings import edit_settings
from fedit_app.editing.value_store import ValueStore
from fedit_app.editing.workbench import Workbench
from fedit_app.evaluation.metrics import aggregate
from fedit_app.evaluation.scores import score_requests
from fedit_app.facts.counterfact import read_counterfact
from fedit_app.facts.overlap import paraphrase_templates
from fedit_app.facts.request import EditRequest
from fedit_app.mkv import DEFAULT_PRECISION
from fedit_app.models.checkpoint import DTYPES
from fedit_app.models.editable import EditableModel
from fedit_app.models.embedded import EMBEDDED_MODEL
from fedit_app.models.loading import load_model, resolve_device
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import write_json_atomic
from fedit_app.support.log import set_up_logging
from fedit_app.support.processes import cores, interrupt_when_terminated
from fedit_app.support.tables import Shown, Table

COUNTERFACT = Path(__file__).parents[2] / "shared" / "data" / "counterfact_1500.json"
MIB = 2**20
CONTEXTS = 5
_SECONDS_BETWEEN_SAMPLES = 0.005
_FIGURES = (
    *("efficacy", "paraphrase", "neighborhood"),
    *("other_relations", "subject_fidelity", "score", "accuracy"),
    *("magnitude", "paraphrase_magnitude"),
)

T = TypeVar("T")
Cell = str | float | None
Figures = dict[str, float]
Run = Callable[[Sequence[str] | None], None]


@dataclass(frozen=True)
class Option:
    """An option of a benchmark, as `ArgumentParser.add_argument` takes it."""

    flag: str
    given: Mapping[str, Any]


def option(flag: str, help: str, **given: Any) -> Option:
    """An option of any kind."""
    return Option(flag, {"help": f"{help} (%(default)s)", **given})


def count(flag: str, default: int | None, help: str) -> Option:
    """An option that is one whole number from 1."""
    return option(flag, help, type=positive, default=default)


def counts(flag: str, default: Sequence[int], help: str) -> Option:
    """An option that is whole numbers from 1, separated by commas."""
    return option(flag, help, type=whole_numbers, default=list(default))


def text_file(flag: str, name: str, help: str) -> Option:
    """An option that is a file, by default the one of that name beside the CounterFact records."""
    return option(flag, help, type=Path, default=COUNTERFACT.with_name(name), metavar="FILE")


def benchmark(
    *options: Option, model: bool = True, data: bool = True
) -> Callable[[Callable[[argparse.Namespace], Figures]], Run]:
    """Make a benchmark of a function from options to figures.

    Args:
        options: its own, beside those that benchmarks have in common.
        model: whether it runs a language model (`--model`, `--dtype`).
        data: whether it reads CounterFact records (`--data`).
    """

    def decorated(function: Callable[[argparse.Namespace], Figures]) -> Run:
        @functools.wraps(function)
        def run(arguments: Sequence[str] | None = None) -> None:
            doc = sys.modules[function.__module__].__doc__ or ""
            known = parser(doc, model=model, data=data)
            for one in options:
                known.add_argument(one.flag, **one.given)
            chosen = known.parse_args(arguments)
            report(chosen, function(chosen))

        return run

    return decorated


def parser(doc: str, *, model: bool = True, data: bool = True) -> argparse.ArgumentParser:
    """The options that benchmarks have in common.

    Args:
        doc: the module's docstring; its first paragraph is shown by `--help`.
        model: whether the benchmark runs a language model (`--model`, `--dtype`).
        data: whether it reads CounterFact records (`--data`).
    """
    options = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{Path(sys.argv[0]).stem}", description=doc.split("\n\n")[0]
    )
    options.add_argument("--json", type=_new_file, metavar="FILE", help="write the figures there")
    options.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    if model:
        options.add_argument(
            "--model", default=EMBEDDED_MODEL, help="name, folder or hub id (%(default)s)"
        )
        options.add_argument("--dtype", default="auto", choices=["auto", *DTYPES])
    if data:
        options.add_argument(
            "--data",
            type=Path,
            default=COUNTERFACT,
            metavar="FILE",
            help="CounterFact records as published (%(default)s)",
        )
    return options


def whole_numbers(text: str) -> list[int]:
    """Option type: whole numbers from 1, separated by commas (`1,16,128`)."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: write whole numbers from 1, such as 1,16,128")
    return numbers


def positive(text: str) -> int:
    """Option type: one whole number from 1."""
    numbers = whole_numbers(text)
    if len(numbers) > 1:
        raise argparse.ArgumentTypeError(f"{text!r}: write one whole number")
    return numbers[0]


def _new_file(text: str) -> Path:
    file = Path(text).expanduser()
    if file.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder; name a file")
    return file


def records(options: argparse.Namespace, count: int) -> list[EditRequest]:
    """The first CounterFact records of `--data`.

    Args:
        options: of a `parser(..., data=True)`.
        count: how many.

    Raises:
        FedEditError: the file is not there, cannot be read, or has fewer records.
    """
    if not options.data.is_file():
        raise FedEditError(
            f"--data: {options.data} does not exist; name a copy of CounterFact's "
            "counterfact.json or multi_counterfact.json (https://rome.baulab.info/data)"
        )
    found = read_counterfact(options.data, count)
    if len(found) < count:
        raise FedEditError(
            f"--data: {options.data} has {len(found)} records, {count} are asked for; "
            "ask for fewer or give a larger file"
        )
    return found


def different_subjects(options: argparse.Namespace, count: int) -> list[EditRequest]:
    """The first CounterFact record of each subject.

    Args:
        options: as for `records`.
        count: how many.
    """
    first: dict[str, EditRequest] = {}
    asked = count
    while len(first) < count:
        for request in records(options, asked):
            first.setdefault(request.subject, request)
        asked += count - len(first)
    return list(first.values())[:count]


SPREAD = (
    option("--layers", "see the run config; None: the model's", default=None),
    option(
        "--covariance-weight", "see the run config; None: the editor's", type=float, default=None
    ),
    option("--covariance-source", "see the run config", default=CovarianceSource.name),
    count("--covariance-tokens", None, "see the run config; None: 10 d_ff"),
    option("--work-cache", "folder for values; None: they are not kept", type=Path),
)
"""Options that leave the values v* as they are: how they are spread over layers, and kept."""


def spread(options: argparse.Namespace) -> dict[str, Any]:
    """What `SPREAD` says, for `workbench`."""
    return {
        "layers": options.layers,
        "covariance_weight": options.covariance_weight,
        "source": CovarianceSource(options.covariance_source, options.covariance_tokens),
    }


def value_store(options: argparse.Namespace) -> ValueStore | None:
    """Where `SPREAD` says that values are kept."""
    return ValueStore(options.work_cache) if options.work_cache else None


def paraphrase(request: EditRequest) -> EditRequest | None:
    """The request in the words of its first paraphrase prompt that holds the subject, if any."""
    templates = paraphrase_templates(request)
    if not templates:
        return None
    prompt = next(iter(templates.values()))
    return dataclasses.replace(request, id=f"{request.id}~", prompt=prompt)


def counterfact_metrics(model: EditableModel, requests: Sequence[EditRequest]) -> dict[str, float]:
    """CounterFact's metrics of a model as it is, as far as the records have the prompts for them.

    Args:
        model: edited or not.
        requests: the records.

    Returns:
        Shares such as `efficacy`, `score` and `accuracy`, and how far the new target leads after
        the prompt (`magnitude`) and after paraphrases, by their names in `Metrics`.
    """
    found = aggregate(score_requests(model, requests))
    values = {name: found.value(name) for name in _FIGURES}
    return {name: value for name, value in values.items() if value is not None}


def loaded(options: argparse.Namespace) -> EditableModel:
    """The model of `--model`, on `--device` in `--dtype`."""
    return load_model(options.model, options.device, options.dtype)


def workbench(
    model: EditableModel,
    editor: str = "memit",
    precision: str = DEFAULT_PRECISION,
    contexts: int = CONTEXTS,
    chats: int = 0,
    source: CovarianceSource | None = None,
    **given: float | str | None,
) -> Workbench:
    """A model with an editor's own settings and as many context prefixes as a run has by default.

    Args:
        model: the model.
        editor: name of the editor.
        precision: of the MKVs.
        contexts: number of context prefixes.
        chats: number of chats among the contexts.
        source: text of the covariance; None for a run's default.
        given: settings that are not the editor's own, see `EditSettings`.
    """
    kind = model.model.config.model_type
    settings = edit_settings(kind, model.n_layers, model.d_model, editor, **given)
    text = source or CovarianceSource()
    return Workbench(
        model, editor, settings, contexts, text, seed=0, precision=precision, n_chats=chats
    )


@dataclass(frozen=True)
class Measured(Generic[T]):
    """What a function returned and what that took.

    Attributes:
        result: the function's return value.
        seconds: wall time.
        peak_mib: peak memory above the level at the start.
    """

    result: T
    seconds: float
    peak_mib: float


def measure(function: Callable[[], T], device: torch.device | str) -> Measured[T]:
    """Run a function once and take its wall time and its peak memory.

    On a CUDA device memory is what torch allocates there, and the clock waits for the device.
    Elsewhere it is the resident memory of the process without mapped files and shared pages
    (weights that are read from a mapped file for the first time are not the function's), sampled
    every 5 ms by a thread: a shorter peak can be missed. Memory that the process freed before is
    given back to the system first, as it would hide new memory.

    Args:
        function: what to measure.
        device: where it computes.
    """
    device = torch.device(device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        started = time.perf_counter()
        result = function()
        torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
        peak = torch.cuda.max_memory_allocated(device) - before
    else:
        _trim_heap()
        with _ResidentMemory() as memory:
            started = time.perf_counter()
            result = function()
            seconds = time.perf_counter() - started
        peak = memory.peak_bytes
    return Measured(result, seconds, peak / MIB)


def _trim_heap() -> None:
    """Give freed memory back to the system where the C library can (glibc)."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


class _ResidentMemory:
    """Samples the process's own resident memory while the block runs."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._before = self._most = 0

    @property
    def peak_bytes(self) -> int:
        """The most that was seen above the level at the start."""
        return self._most - self._before

    def __enter__(self) -> _ResidentMemory:
        self._before = self._most = self._now()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._most = max(self._most, self._now())

    def _watch(self) -> None:
        while not self._stop.wait(_SECONDS_BETWEEN_SAMPLES):
            self._most = max(self._most, self._now())

    def _now(self) -> int:
        memory = self._process.memory_info()
        return memory.rss - getattr(memory, "shared", 0)


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A Markdown table without a trailing line break.

    Numbers get three significant digits, whole numbers all of theirs; None is a dash.
    """
    return Table(columns, [[_cell(value) for value in row] for row in rows]).markdown()


def print_figures(
    heading: str, columns: Mapping[str, str], figures: Figures, lines: Mapping[str, str]
) -> None:
    """Print a table of figures; what was not measured is a dash.

    Args:
        heading: of the lines' names.
        columns: heading -> last part of the figures' names.
        figures: by name.
        lines: name of the line -> first part of its figures' names.
    """
    rows: list[list[Cell]] = [
        [name, *(figures.get(f"{path}/{part}") for part in columns.values())]
        for name, path in lines.items()
    ]
    print(table([heading, *columns], rows))


def _cell(value: Cell) -> Cell | Shown:
    if not isinstance(value, float):
        return value
    if value == 0 or not math.isfinite(value):
        return Shown(value, f"{value:g}")
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -3:
        return Shown(value, f"{value:.1e}")
    return Shown(value, f"{value:,.{max(0, 2 - magnitude)}f}")


def report(options: argparse.Namespace, figures: Mapping[str, float]) -> None:
    """Say on which device the figures were taken, and write both with `--json`.

    Args:
        options: of a `parser`.
        figures: name -> value; finite numbers.
    """
    device = device_in_words(resolve_device(options.device))
    print(f"\ndevice: {device}")
    if options.json is not None:
        write_json_atomic(options.json, {"device": device, "figures": dict(figures)})
        print(f"figures: {options.json}")


def device_in_words(device: torch.device) -> str:
    """The GPU's name, or the CPU's with the cores and threads that this process may use."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} (CUDA)"
    return f"{_cpu_name()}, {cores()} cores, {torch.get_num_threads()} torch threads"


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def main(run: Run) -> None:
    """Run a benchmark from the command line; a `FedEditError` is one line and exit status 2.

    Args:
        run: the benchmark; None stands for the arguments of the command line.
    """
    set_up_logging()
    interrupt_when_terminated()
    try:
        run(None)
    except FedEditError as error:
        sys.stderr.write(f"{Path(sys.argv[0]).stem}: {error}\n")
        sys.exit(2)
