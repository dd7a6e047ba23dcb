"""What release 0.1.0 has written opens, verifies and can be changed: run folders, ledgers, pools.

The archive holds two runs, `open` and `sealed`, of two nodes over two slots with a tiny model, as
0.1.0 left them in /tmp/fedit-0.1.0.
"""

import shutil
import tarfile
from pathlib import Path

import pytest

from fedit_app.cli.main import main
from fedit_app.config.overrides import read_run_config
from fedit_app.config.run_config import RunConfig
from fedit_app.report import load_results
from fedit_app.server.record import resumable_results
from fedit_app.support.errors import FedEditError

ARCHIVE = Path(__file__).parents[1] / "data" / "fedit-0.1.0.tar.xz"
WRITTEN_IN = "/tmp/fedit-0.1.0"
RUNS = ("open", "sealed")
NODES = ("bank", "museum")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The archive in another folder than the one it was written in."""
    root = tmp_path_factory.mktemp("fedit-0.1.0")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(root, filter="data")
    return root


@pytest.fixture(params=RUNS)
def run(request, unpacked) -> Path:
    return unpacked / request.param


@pytest.fixture
def fedit(capsys):
    """Gives `fedit(*arguments)`: what the command prints; it must succeed."""

    def fedit(*arguments: object) -> str:
        status = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert status == 0, said.err
        return said.out

    return fedit


def test_results_are_read(run):
    results = load_results(run / "results.json")
    assert results.status == "completed"
    assert len(results.slots) == 2
    assert sorted(results.nodes) == list(NODES)


def test_the_table_has_a_row_for_each_run(unpacked, fedit):
    printed = fedit("table", *(unpacked / name for name in RUNS))
    assert all(name in printed for name in RUNS)


@pytest.mark.parametrize("node", NODES)
def test_a_ledger_is_listed_shown_and_verified(run, node, fedit):
    ids = mkv_ids(run, node)
    listed = fedit("ledger", "list", run, "--node", node)
    assert ids and all(id_ in listed for id_ in ids)
    assert ids[0] in fedit("ledger", "show", run, ids[0], "--node", node)
    assert "the ledger is sound" in fedit("ledger", "verify", run, "--node", node)


def test_the_pool_is_counted_and_verified(run, fedit):
    count = str(len(mkv_ids(run, "bank")))
    assert count in fedit("pool", "stats", run)
    assert count in fedit("pool", "verify", run)


@pytest.fixture
def moved(run, unpacked, tmp_path) -> Path:
    """A copy of a run that may be changed, whose configuration says where the model is now."""
    copy = Path(shutil.copytree(run, tmp_path / run.name))
    for file in copy.rglob("*.toml"):
        file.write_text(file.read_text().replace(WRITTEN_IN, str(unpacked)))
    return copy


def test_an_mkv_is_rolled_back_and_the_model_answers_without_it(moved, fedit):
    question = ("The head office of Reuters is located in", "--node", "bank")
    first, *others = mkv_ids(moved, "bank")
    before = fedit("ask", moved, *question)
    printed = fedit("rollback", moved, "--node", "bank", "--mkv", first)
    assert f"1 of {len(others) + 1} MKVs taken out" in printed
    assert "the ledger is sound" in fedit("ledger", "verify", moved, "--node", "bank")
    assert fedit("ask", moved, *question) != before


def test_its_configuration_can_be_run_again_and_resumed(run):
    values = read_run_config(run / "config.toml", [])
    again = RunConfig.parse(values)
    assert (again.layers, again.clamp, again.requests_per_slot) == ((1, 2), None, None)

    more = again.model_copy(update={"resume": True, "num_slots": 3})
    assert len(resumable_results(more, run).slots) == 2
    with pytest.raises(FedEditError, match="cannot be resumed with another seed = 5"):
        resumable_results(more.model_copy(update={"seed": 5}), run)


def mkv_ids(run: Path, node: str) -> list[str]:
    return sorted(file.stem for file in (run / "nodes" / node / "ledger" / "mkvs").iterdir())
