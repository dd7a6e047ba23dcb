"""What `examples/` shows works as it stands."""

import re
import runpy
from pathlib import Path

import pytest
import tiny
from inprocess import federate
from ledger.test_editor import STRONG, folder  # noqa: F401 (a fixture)

from fedit_app import Editor, EditRequest
from fedit_app.editing import editors

EXAMPLES = Path(__file__).parents[1] / "examples"
MODEL = '"smollm2-135m"'


def test_an_editor_of_ones_own_edits(folder, monkeypatch):  # noqa: F811
    monkeypatch.setattr(editors, "EDITORS", dict(editors.EDITORS))
    runpy.run_path(str(EXAMPLES / "own_editor.py"))
    editor = Editor.from_pretrained(folder, "direct", **STRONG)
    fact = EditRequest("1", "Reuters", "The head office of {}", "city")
    assert editor.edit([fact]).decoded == 1


@pytest.mark.integration
def test_a_strategy_of_ones_own_is_one_file_and_decides_what_nodes_are_served(
    tiny_folder, tmp_path, monkeypatch
):
    shown = (EXAMPLES / "own_strategy.py").read_text()
    (tmp_path / "my_strategy.py").write_text(shown.replace("most = 5", "most = 2"))
    monkeypatch.syspath_prepend(tmp_path)
    run = {
        **tiny.RUN_CONFIG,
        "model": str(tiny_folder),
        "strategy": "my_strategy:Frugal",
        "num-slots": 1,
        "output-dir": str(tmp_path / "run"),
    }
    results, _ = federate(run, 2)
    offered = [node["offered"] for slot in results["slots"] for node in slot["nodes"].values()]
    assert offered and max(offered) == 2


@pytest.mark.integration
def test_the_notebook_runs_from_top_to_bottom(folder):  # noqa: F811
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(EXAMPLES / "edit_one_model.ipynb", as_version=4)
    _on_a_tiny_model(notebook.cells[1], folder)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs if output.get("name") == "stdout")
    assert "of 2 facts decoded" in text and "1 edit left" in text
    assert re.search(r"^1 +Edinburgh", text, re.M), "no table"


def test_the_readmes_first_lines_of_python_run(folder, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    readme = (EXAMPLES.parent / "README.md").read_text()
    code = next(block for block in re.findall(r"```python\n(.*?)```", readme, re.S))
    assert MODEL in code
    exec(code.replace(MODEL, f'"{folder}"'), {})
    assert (tmp_path / "edited" / "config.json").exists()


def test_the_readme_shows_the_examples():
    readme = (EXAMPLES.parent / "README.md").read_text()
    editor, strategy = (
        block for block in re.findall(r"```python\n(.*?)```", readme, re.S) if MODEL not in block
    )
    for line in editor.replace("DIRECT =", 'EDITORS["direct"] =').splitlines():
        assert line in (EXAMPLES / "own_editor.py").read_text()
    assert strategy.splitlines()[0] in (EXAMPLES / "own_strategy.py").read_text()


def _on_a_tiny_model(cell, path):
    assert MODEL in cell.source
    cell.source = cell.source.replace(MODEL, f'"{path}"')
