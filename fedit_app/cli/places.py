"""Finds the ledger that a command is about, and its model, settings, requests and probes."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedit_app.config.folders import ledger_folder, nodes_with_ledger
from fedit_app.config.node_config import node_run_config
from fedit_app.config.run_config import ConfigValue, RunConfig
from fedit_app.deployment.node_folder import NODE_FILE, NodeFolder
from fedit_app.editing.workbench import Workbench, workbench_for
from fedit_app.facts.partition import NodeData, data_in, finished_node
from fedit_app.ledger.edited_model import TEXTS, form_of, ledger_in, write_edited_model
from fedit_app.ledger.index import INDEX, read_index
from fedit_app.ledger.ledger import Ledger
from fedit_app.ledger.origin import Origin, read_origin
from fedit_app.ledger.request_texts import Texts
from fedit_app.mkv.authorship import SigningKey
from fedit_app.mkv.node_key import read_public_key
from fedit_app.models.checkpoint import stored_dtype
from fedit_app.models.loading import resolve_model
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import read_toml


@dataclass(frozen=True)
class Place:
    """A ledger with what is known about its node.

    Attributes:
        ledger: its folder.
        node: the name of its node; "" if it is not recorded.
        config: the run configuration with which it was last used; None if it is not recorded.
        simulated: whether the node is a virtual one.
        probes: the node's file of probes; None if it has none.
        model: the folder of the edited model to which the ledger belongs; None: of none.
        key: file of the key with which the node signs; None if it has none here.
        public_key: the public one; "" if it has none here.
    """

    ledger: Path
    node: str
    config: RunConfig | None
    simulated: bool = False
    probes: str | None = None
    model: Path | None = None
    key: Path | None = None
    public_key: str = ""

    def open(self) -> Ledger:
        """Read the ledger.

        Raises:
            FedEditError: see `Ledger.open`.
        """
        return Ledger.open(self.ledger, read_index(self.ledger)["fingerprint"])

    @contextmanager
    def changed(self) -> Iterator[Ledger]:
        """The ledger, to be changed inside the block; the files of an edited model follow it.

        Raises:
            FedEditError: see `open`, `workbench` and `write_edited_model`.
        """
        if self.model is None:
            key = SigningKey.read(self.key) if self.key else None
            ledger = Ledger.open(self.ledger, read_index(self.ledger)["fingerprint"], key)
            with _texts_follow(ledger, self.ledger):
                yield ledger
            return
        bench = self.workbench(self.open())
        with tempfile.TemporaryDirectory(prefix="fedit-ledger-") as scratch:
            copy = Path(shutil.copytree(self.ledger, Path(scratch) / self.ledger.name))
            ledger = dataclasses.replace(self, ledger=copy).open()
            seen = ledger.head
            with _texts_follow(ledger, copy):
                yield ledger
            dtype = stored_dtype(resolve_model(bench.model.name))
            form = form_of(self.model)
            write_edited_model(
                bench, ledger, self.model, form, dtype=dtype, replace=True, seen=seen
            )

    def workbench(self, ledger: Ledger) -> Workbench:
        """Load the model that a ledger of this place edits, with its tools.

        Args:
            ledger: the ledger.

        Raises:
            FedEditError: it is unknown, cannot be loaded, or is not the ledger's.
        """
        if self.config is None:
            raise FedEditError(
                f"ledger {self.ledger}: its model and settings are unknown, as no run used it; "
                "name the ledger of a run or a node"
            )
        bench = workbench_for(self.config)
        if bench.fingerprint != ledger.fingerprint:
            raise FedEditError(
                f"ledger {self.ledger}: made with fingerprint {ledger.fingerprint}; model "
                f"{self.config.model} and the recorded settings have {bench.fingerprint}"
            )
        return bench

    def data(self) -> NodeData | None:
        """Where the node's own requests are; None if that is unknown on this machine.

        Raises:
            FedEditError: the data path of the run no longer exists.
        """
        texts = self.ledger / TEXTS
        if texts.exists():  # of an edited model
            return NodeData(self.node, texts, "jsonl")
        if self.config is None:
            return None
        if self.simulated:
            return finished_node(self.config, Path(self.config.output_dir or ""), self.node)
        file = Path(self.config.data_path or "")
        return data_in(file, self.config, self.node) if file.is_file() else None


@contextmanager
def _texts_follow(ledger: Ledger, folder: Path) -> Iterator[None]:
    """Let the texts beside a ledger be those of what it fulfils after the block; if it has some."""
    texts, held = Texts.read(folder), ledger.fulfilled()
    yield
    if texts.known or texts.replaced:
        texts.after(held, ledger).write(folder)


def find_place(folder: Path, node: str = "", federation: str = "") -> Place:
    """Find the ledger that a command is about.

    Args:
        folder: of an edited model, a ledger, a node (its node.toml), or a run.
        node: whose ledger; required for the folder of a run, and not allowed otherwise.
        federation: which ledger of a node's folder; may be empty if there is only one.

    Raises:
        FedEditError: there is no such ledger; the message names those that exist.
    """
    if (folder / "config.toml").exists():
        return _of_run(folder, node, federation)
    if node:
        raise FedEditError(f"{folder}: not a run folder, it has no config.toml; leave --node out")
    if (folder / NODE_FILE).exists():
        return _of_node(NodeFolder.open(folder), federation)
    within = ledger_in(folder)
    ledger = within or folder
    if not (ledger / INDEX).exists():
        raise FedEditError(
            f"{folder}: neither a ledger ({INDEX}), nor the folder of an edited model, of a node "
            f"({NODE_FILE}) or of a run (config.toml)"
        )
    if federation:
        raise FedEditError(f"{folder}: has one ledger; leave --federation out")
    origin = read_origin(ledger)
    place = _place(ledger, origin, {} if origin is None else origin.run)
    return dataclasses.replace(place, model=folder if within else None)


def _of_run(folder: Path, node: str, federation: str) -> Place:
    values = read_toml(folder / "config.toml", str(folder / "config.toml"))
    here = {"output-dir": str(folder.absolute())}
    config = RunConfig.parse({**values, **here})
    if federation:
        raise FedEditError(f"{folder}: is a run of one federation; leave --federation out")
    ledger = ledger_folder(config, 0, node) if node else None
    if ledger is None or not ledger.is_dir():
        known = nodes_with_ledger(config, 0)
        have = f"nodes with one: {', '.join(known)}" if known else "this run kept no ledgers here"
        raise FedEditError(f"--node {node or 'NAME'}: no ledger in {folder}; {have}")
    origin = read_origin(ledger)
    noted = values if origin is None else origin.run
    return dataclasses.replace(_place(ledger, origin, {**noted, **here}), node=node, simulated=True)


def _of_node(found: NodeFolder, federation: str) -> Place:
    root = found.state_dir / found.settings.name
    known = {index.parent.parent.name: index.parent for index in root.glob(f"*/ledger/{INDEX}")}
    chosen = federation or (next(iter(known)) if len(known) == 1 else "")
    if chosen not in known:
        have = f"there are {', '.join(sorted(known))}" if known else "there is none"
        wanted = federation or "NAME"
        raise FedEditError(f"--federation {wanted}: no such ledger in {found.folder}; {have}")
    origin = read_origin(known[chosen])
    values = {} if origin is None else node_run_config(origin.run, found.node_config())
    place = _place(known[chosen], origin, values)
    public = read_public_key(found.public_key) if found.public_key.exists() else ""
    return dataclasses.replace(
        place,
        node=found.settings.name,
        probes=found.policy.probes,
        key=found.node_key if public else None,
        public_key=public,
    )


def _place(ledger: Path, origin: Origin | None, values: Mapping[str, ConfigValue]) -> Place:
    if origin is None:
        return Place(ledger, "", RunConfig.parse(values) if values else None)
    return Place(ledger, origin.node, RunConfig.parse(values), origin.simulated)
