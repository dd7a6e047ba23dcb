"""What `examples/` shows works as it stands."""

import runpy
from pathlib import Path

import pytest
import tiny
from inprocess import federate
from ledger.test_editor import STRONG, folder  # noqa: F401 (a fixture)

from fedit_app import Editor, EditRequest
from fedit_app.editing import editors
from fedit_app.server import strategies

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_an_editor_of_ones_own_edits(folder, monkeypatch):  # noqa: F811
    monkeypatch.setattr(editors, "EDITORS", dict(editors.EDITORS))
    runpy.run_path(str(EXAMPLES / "own_editor.py"))
    editor = Editor.from_pretrained(folder, "direct", **STRONG)
    fact = EditRequest("1", "Reuters", "The head office of {}", "city")
    assert editor.edit([fact]).decoded == 1


def test_a_strategy_of_ones_own_decides_what_nodes_are_served(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(strategies, "STRATEGIES", dict(strategies.STRATEGIES))
    frugal = runpy.run_path(str(EXAMPLES / "own_strategy.py"))["Frugal"]
    monkeypatch.setattr(frugal, "most", 2)
    run = {
        **tiny.RUN_CONFIG,
        "model": str(tiny_folder),
        "strategy": "frugal",
        "num-slots": 1,
        "output-dir": str(tmp_path / "run"),
    }
    results, _ = federate(run, 2)
    offered = [node["offered"] for slot in results["slots"] for node in slot["nodes"].values()]
    assert offered and max(offered) == 2


@pytest.mark.integration
@pytest.mark.timeout(1800)  # on a fresh machine the model is downloaded first
def test_the_notebook_runs_and_shows_edits_that_hold(users_cache):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(EXAMPLES / "edit_one_model.ipynb", as_version=4)
    NotebookClient(notebook, timeout=1500, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs if output.get("name") == "stdout")
    assert "2 of 2 facts decoded" in text and "1 edit left" in text
    assert (
        text.rstrip()
        .splitlines()[-1]
        .startswith("The Lancet is published in the city of Edinburgh")
    )
