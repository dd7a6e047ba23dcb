"""CONTRIBUTING.md tells the truth: a change touches the files that it names, and no others."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ledger.test_editor import STRONG, folder  # noqa: F401 (a fixture)

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
COPIED = ("fedit_app", "pyproject.toml", "docs")


def named_files(change: str) -> set[str]:
    """The files that the table of CONTRIBUTING names for a change."""
    rows = (ROOT / "CONTRIBUTING.md").read_text().splitlines()
    row = next(row for row in rows if row.startswith(f"| [{change}]"))
    return set(re.findall(r"`(fedit_app/[\w/.]+)`", row.split("|")[2]))


@pytest.fixture
def tree(tmp_path):
    """A copy of the tree."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    return tmp_path


def changed(tree: Path) -> set[str]:
    """The source files of a copy that are new or differ."""
    files = (path.relative_to(tree).as_posix() for path in tree.glob("fedit_app/**/*.py"))
    return {
        file
        for file in files
        if not (ROOT / file).exists() or (ROOT / file).read_bytes() != (tree / file).read_bytes()
    }


def edit_file(file: Path, before: str, after: str) -> None:
    text = file.read_text()
    assert text.count(before) == 1, f"{file}: no single {before!r}"
    file.write_text(text.replace(before, after))


def run(tree: Path, code: str, *arguments: str) -> str:
    """What a program prints that runs with the package of a copy."""
    paths = os.pathsep.join([str(tree), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.integration
def test_an_editor_is_one_file_and_one_line(tree, folder):  # noqa: F811
    example = (EXAMPLES / "own_editor.py").read_text()
    own = example.replace('EDITORS["direct"] =', "DIRECT =")
    own = re.sub(r"from fedit_app(\.editing\.editors)? import .*\n", "", own)
    (tree / "fedit_app" / "editing" / "direct.py").write_text(own.split("if __name__")[0])
    edit_file(
        tree / "fedit_app/editing/editors.py", '    "memit",\n', '    "memit",\n    "direct",\n'
    )
    code = (
        "import sys; from fedit_app import Editor, EditRequest\n"
        f"editor = Editor.from_pretrained(sys.argv[1], 'direct', **{STRONG!r})\n"
        "fact = EditRequest('1', 'Reuters', 'The head office of {}', 'city')\n"
        "print(editor.edit([fact]).decoded)"
    )
    assert run(tree, code, str(folder)) == "1"
    assert {file.replace("direct", "NAME") for file in changed(tree)} == named_files("editor")


@pytest.mark.integration
def test_a_strategy_is_one_file(tree, tiny_folder, tmp_path):
    example = (EXAMPLES / "own_strategy.py").read_text()
    (tree / "fedit_app" / "server" / "frugal.py").write_text(example.replace("= 5", "= 2"))
    code = (
        "import sys, tiny; from inprocess import federate\n"
        "config = {**tiny.RUN_CONFIG, 'model': sys.argv[1], 'output-dir': sys.argv[2]}\n"
        "config |= {'strategy': 'fedit_app.server.frugal:Frugal', 'num-slots': 1}\n"
        "results, _ = federate(config, 2)\n"
        "print(max(n['offered'] for s in results['slots'] for n in s['nodes'].values()))"
    )
    assert run(tree, code, str(tiny_folder), str(tmp_path / "run")) == "2"
    assert {file.replace("frugal", "NAME") for file in changed(tree)} == named_files(
        "Flower strategy"
    )


def test_a_run_config_key_is_one_field(tree):
    edit_file(
        tree / "fedit_app" / "config" / "run.py",
        'class EvaluationSettings(Settings):\n    """What a run measures, and when."""\n',
        'class EvaluationSettings(Settings):\n    """What a run measures, and when."""\n\n'
        '    own_key: int = key(7, "a key of one\'s own", ge=1)\n',
    )
    code = (
        "from fedit_app.config import documentation, run_config\n"
        "documentation.main()\n"
        "print(run_config.RunConfig.parse({'own-key': 9}).own_key)"
    )
    assert run(tree, code) == "9"
    assert "\nown-key = 7\n" in (tree / "pyproject.toml").read_text()
    assert "`own-key`" in (tree / "docs" / "run-config.md").read_text()
    assert changed(tree) == named_files("run-config key")
