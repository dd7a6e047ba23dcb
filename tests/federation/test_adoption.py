"""An organisation that has edited its model alone joins a federation with what it has."""

import inprocess
import pytest
import tiny
from editing.cases import EASY, ODD

from fedit_app import Editor
from fedit_app.cli.main import main
from fedit_app.deployment.node_folder import NodeFolder
from fedit_app.facts.jsonl import write_requests
from fedit_app.ledger.index import read_index

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def edited(tiny_folder, tmp_path_factory):
    """A folder of the tiny model with two facts, and the ids of their MKVs."""
    folder = tmp_path_factory.mktemp("edited") / "model"
    settings = {key.replace("-", "_"): value for key, value in tiny.RUN_CONFIG.items()}
    editor = Editor.from_pretrained(tiny_folder, **settings)
    report = editor.edit(EASY[:2])
    editor.save_pretrained(folder)
    return folder, [fact.mkv for fact in report.facts]


@pytest.fixture
def run(settings, tmp_path, edited):
    """Gives `run(**changes)`: results and the index of the first node, which has a fact more."""

    def run(edited=edited[0], **changes):
        write_requests(tmp_path / "bank.jsonl", EASY)
        write_requests(tmp_path / "court.jsonl", ODD[:1])

        def node(number: int) -> dict:
            name = ("bank", "court")[number]
            known = inprocess.real_node(name, tmp_path / f"{name}.jsonl")
            return known | ({"ledger": str(edited)} if name == "bank" else {})

        config = settings(num_slots=1, state_dir=str(tmp_path / "state"), **changes)
        results, _ = inprocess.federate(config, 2, node_config=node)
        found = [*tmp_path.glob("**/bank/**/ledger/index.json")]
        return results, [read_index(file.parent) for file in found]

    return run


def test_its_facts_are_not_computed_again_and_others_learn_from_them(run, edited):
    results, (index,) = run()
    bank = results["slots"][0]["nodes"]["bank"]
    assert (bank["requests"], bank["cached"], bank["uploaded"]) == (3, 2, 3)
    assert results["slots"][0]["nodes"]["court"]["received_from"] == {"bank": 3}
    rows = {row["id"]: row for row in index["entries"]}
    for id_, request in zip(edited[1], EASY, strict=False):
        assert (rows[id_]["node"], rows[id_]["requests"]) == ("bank", [request.id])


def test_other_settings_make_them_be_computed(run, capsys):
    results, _ = run(value_steps=4)
    assert results["slots"][0]["nodes"]["bank"]["cached"] == 0
    assert "are computed again: its fingerprint is" in capsys.readouterr().err


def test_what_is_no_edited_model_fails_the_node_with_a_reason(run, tiny_folder):
    results, _ = run(edited=tiny_folder)
    (failure,) = results["failed_nodes"]
    assert failure["node"] == "bank" and "no edited model with its ledger" in failure["reason"]


def test_a_node_is_set_up_with_it(edited, tmp_path, capsys):
    folder = tmp_path / "node"
    options = ["--name", "bank", "--superlink", "127.0.0.1:1", "--ledger", str(edited[0])]
    assert main(["node", "init", str(folder), *options]) == 0
    node = NodeFolder.open(folder)
    assert node.node_config()["ledger"] == str(edited[0])
    assert node.data_path.parent == folder and node.data_path.stat().st_mode & 0o77 == 0
    main(["doctor", str(folder)])
    assert "2 of its 2 facts are in the data and are used as they are" in capsys.readouterr().out


def test_a_folder_without_ledger_is_refused_before_a_node_is_made(tiny_folder, tmp_path, capsys):
    folder = tmp_path / "node"
    options = ["--name", "bank", "--ledger", str(tiny_folder)]
    assert main(["node", "init", str(folder), *options]) == 2
    assert "--ledger" in capsys.readouterr().err and not folder.exists()
