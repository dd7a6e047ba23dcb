"""A server's and a node's folder, fresh for each test."""

from pathlib import Path

import pytest
import tiny

from fedit_app.cli.main import main
from fedit_app.deployment.node_folder import NodeFolder
from fedit_app.deployment.node_setup import init_node
from fedit_app.deployment.server_folder import ServerFolder
from fedit_app.deployment.server_setup import init_server


def edit(place: ServerFolder | NodeFolder, old: str, new: str) -> None:
    """Replace text in server.toml or node.toml."""
    file = next(file for file in place.folder.glob("*.toml"))
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture
def server(tmp_path) -> ServerFolder:
    """A server that nodes reach as fedit.example.org and 192.0.2.7."""
    return init_server(tmp_path / "server", ["fedit.example.org", "192.0.2.7"], 8700)


@pytest.fixture
def node(tmp_path, server) -> NodeFolder:
    """The node hospital-a with the demo's data."""
    data = tmp_path / "requests.jsonl"
    data.write_bytes((tiny.DEMO / "hospital.jsonl").read_bytes())
    return init_node(
        tmp_path / "node", "hospital-a", "fedit.example.org:8700", server.ca_cert, data
    )


@pytest.fixture
def fedit(capsys):
    """Gives `fedit(*arguments)`: runs the command; (status, output, errors)."""

    def fedit(*arguments: str | Path) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return status, said.out, said.err

    return fedit
