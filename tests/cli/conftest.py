"""Three organisations with folders of their own, after a run: their ledgers, and the command."""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import inprocess
import pytest
import tiny

from fedit_app.cli.main import main
from fedit_app.deployment.node_folder import NodeFolder
from fedit_app.deployment.node_setup import init_node
from fedit_app.ledger.index import read_index
from fedit_app.ledger.ledger import Ledger
from fedit_app.mkv.authorship import SigningKey
from fedit_app.pool import MKVPool

NAMES = ("bank", "hospital", "museum")
FEDERATION = "sites"


@dataclass(frozen=True)
class Sites:
    """The organisations under one folder."""

    root: Path
    config: dict

    def node(self, name: str) -> NodeFolder:
        return NodeFolder.open(self.root / name)

    def folder(self, name: str) -> Path:
        """Of a ledger."""
        return self.root / name / "state" / name / FEDERATION / "ledger"

    def ledger(self, name: str) -> Ledger:
        folder, key = self.folder(name), SigningKey.read(self.node(name).node_key)
        return Ledger.open(folder, read_index(folder)["fingerprint"], key)

    def of(self, name: str, origin: str) -> list[str]:
        """Ids of a ledger's MKVs that a node has computed."""
        entries = self.ledger(name).entries
        return sorted(id_ for id_, entry in entries.items() if entry.mkv.node == origin)

    @property
    def pool(self) -> MKVPool:
        return MKVPool(str(self.root / "pool"))

    def run(self, folder: str, *names: str) -> dict:
        """A run with some of them."""
        config = {
            **self.config,
            "output-dir": str(self.root / folder),
            "pool-uri": str(self.root / "pool"),
        }

        def node_config(number: int) -> dict:
            return {**self.node(names[number]).node_config(), "worker-idle-seconds": 0.0}

        results, _ = inprocess.federate(config, len(names), node_config=node_config)
        return results


@pytest.fixture(scope="session")
def after_a_run(tiny_folder, tmp_path_factory) -> Sites:
    root = tmp_path_factory.mktemp("sites")
    for name in NAMES:
        lines = (tiny.DEMO / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[1:3]
        records = [{**json.loads(line), "slot": 1} for line in lines]
        data = root / "data" / f"{name}.jsonl"
        data.parent.mkdir(exist_ok=True)
        data.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
        init_node(
            *(root / name, name, "localhost:8000"),
            data=data,
            model=str(tiny_folder),
            federation_key=Path(inprocess.federation_key()),
        )
        written = root / name / "node.toml"
        text = written.read_text(encoding="utf-8")
        text = text.replace("least-covariance-weight = 100.0", "least-covariance-weight = 0.05")
        text = text.replace("least-covariance-tokens = 10000", "least-covariance-tokens = 400")
        written.write_text(text, encoding="utf-8")
    toml = root / "bank" / "node.toml"
    text = toml.read_text(encoding="utf-8")
    text = text.replace('probes = ""', f'probes = "{root}/data/museum.jsonl"')
    toml.write_text(text.replace("probe-budget = 0.0", "probe-budget = 1.0"), encoding="utf-8")
    config = {
        "layers": "1-2",
        "contexts": 1,
        "value-steps": 5,
        "covariance-tokens": 400,
        "covariance-weight": 0.05,
        "num-slots": 1,
        "federation": FEDERATION,
    }
    sites = Sites(root, config)
    sites.run("first", *NAMES)
    return sites


@pytest.fixture
def sites(after_a_run, tmp_path) -> Sites:
    """A copy, to be changed."""
    root = shutil.copytree(after_a_run.root, tmp_path / "sites")
    return dataclasses.replace(after_a_run, root=root)


@pytest.fixture
def fedit(capsys):
    """Gives `fedit(*arguments)`: runs the command; (status, output, errors)."""

    def fedit(*arguments) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return status, said.out, said.err

    return fedit
