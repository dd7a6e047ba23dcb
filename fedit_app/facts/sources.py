"""The sources of a run's requests: the demo, files in a known format, a hub data set."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from fedit_app.config.run_config import RunConfig
from fedit_app.facts.counterfact import read_counterfact
from fedit_app.facts.dealing import by_slot
from fedit_app.facts.jsonl import SUFFIXES, read_requests, suffix_of
from fedit_app.facts.knowedit import read_knowedit
from fedit_app.facts.mquake import read_mquake
from fedit_app.facts.overlap import Slots
from fedit_app.facts.question_sets import read_qaedit, read_wikibigedit
from fedit_app.facts.reading import Source, is_hub
from fedit_app.facts.request import EditRequest
from fedit_app.facts.rippleedits import read_rippleedits
from fedit_app.facts.zsre import read_zsre
from fedit_app.support.errors import FedEditError
from fedit_app.support.formats import listing


class Reader(Protocol):
    """Reads edit requests; `skip_bad` leaves out invalid ones and names them in the log."""

    def __call__(self, source: Source, *, skip_bad: bool = False) -> list[EditRequest]: ...


READERS: dict[str, Reader] = {
    "demo": read_requests,
    "jsonl": read_requests,
    "counterfact": read_counterfact,
    "zsre": read_zsre,
    "knowedit": read_knowedit,
    "rippleedits": read_rippleedits,
    "mquake": read_mquake,
    "wikibigedit": read_wikibigedit,
    "qaedit": read_qaedit,
}
"""`dataset` -> the reader of its files."""

_FORMATS = tuple(name for name in READERS if name != "demo")

_DEMO = Path(__file__).parent / "demo"
_PUBLISHED = tuple(name for name in _FORMATS if name != "jsonl")
_PUBLISHED_SUFFIXES = (".json", ".jsonl")


def load_requests(
    source: Source, dataset: str = "jsonl", *, skip_bad: bool = False
) -> list[EditRequest]:
    """Read and check edit requests.

    Args:
        source: a file, or a data set of the Hugging Face hub: "hub:DATASET[:CONFIG[:SPLIT]]".
        dataset: "jsonl" (the fields of `EditRequest` in one JSON object a line, or in a table if
            the file ends in .csv or .tsv), or "counterfact", "zsre", "knowedit",
            "rippleedits", "mquake", "wikibigedit" or "qaedit" in their published format.
        skip_bad: leave out invalid records, and name them in the log.

    Returns:
        The requests in the order of the file.

    Raises:
        FedEditError: the source cannot be read, or holds an invalid record; names the first five.

    Example:
        >>> requests = load_requests("facts.jsonl")
        >>> requests = load_requests("counterfact.json", "counterfact")
    """
    if dataset not in _FORMATS:
        raise FedEditError(f"dataset {dataset!r} is unknown; choose one of {', '.join(_FORMATS)}")
    return READERS[dataset](source, skip_bad=skip_bad)


def node_files(config: RunConfig, count: int | None = None) -> list[Path]:
    """The data files of `partition = file`, one per node, in the order of their names.

    Args:
        config: the run configuration.
        count: number of nodes; None for all files.

    Raises:
        FedEditError: the data path does not exist, has too few files, or two files name one node.
    """
    path = _DEMO if config.dataset == "demo" else _existing(config)
    suffixes = _PUBLISHED_SUFFIXES if config.dataset in _PUBLISHED else SUFFIXES
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if suffix_of(file) in suffixes)
    for one, other in itertools.pairwise(files):
        if node_of(one) == node_of(other):
            raise FedEditError(
                f"data-path: {one.name} and {other.name} give two nodes the same name; rename one"
            )
    if len(files) < (1 if count is None else count):
        kinds = listing([f"*{suffix}" for suffix in suffixes])
        raise FedEditError(
            f"data-path: {path} has {len(files)} {kinds} files, too few for {count or 1} nodes; "
            f"start {len(files)} nodes, or use another partition with one file"
        )
    return files[:count]


def node_of(file: Path) -> str:
    """The name of the node that a data file belongs to: the file's own without its suffixes."""
    name = file.name.removesuffix(file.suffix) if file.suffix.lower() == ".gz" else file.name
    return Path(name).stem


def read_data(config: RunConfig) -> list[EditRequest]:
    """All requests of the data set, or of all nodes' files.

    Raises:
        FedEditError: the data cannot be read, or is a folder where one file is needed.
    """
    if config.partition == "file":
        return [request for file in node_files(config) for request in read_of(config, file)]
    if config.data_path is not None and is_hub(config.data_path):
        return read_of(config, config.data_path)
    path = _existing(config)
    if path.is_dir():
        raise FedEditError(
            f"data-path: {path} is a folder; partition = {config.partition} needs one file"
        )
    return read_of(config, path)


def read_of(config: RunConfig, source: Source) -> list[EditRequest]:
    """The requests of one source in the format of the run configuration.

    Raises:
        FedEditError: the source cannot be read, or holds an invalid record that is not skipped.
    """
    return READERS[config.dataset](source, skip_bad=config.on_bad_request == "skip")


def in_slots(requests: Sequence[EditRequest], config: RunConfig) -> Slots:
    """A node's requests per time slot, as `by_slot` distributes them.

    Args:
        requests: a node's requests in their order.
        config: the run configuration.

    Raises:
        FedEditError: neither the run configuration nor the records say which slot a request is in.
    """
    if config.dataset in _PUBLISHED and not config.requests_per_slot:
        raise FedEditError(
            f"run config: dataset = {config.dataset} needs requests-per-slot; its records do not "
            "name a slot"
        )
    return by_slot(requests, config.num_slots, config.requests_per_slot)


def _existing(config: RunConfig) -> Path:
    path = Path(config.data_path or "").expanduser()
    if not path.exists():
        raise FedEditError(f"data-path: {path} does not exist")
    return path
