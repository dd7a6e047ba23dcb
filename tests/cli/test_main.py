"""The `fedit` command itself: its help, what it loads, how it refuses, and how it prints."""

import errno
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedit_app.cli.main import app, main
from fedit_app.cli.output import Format, write
from fedit_app.config.run_config import RunConfig
from fedit_app.support.tables import Change, Table

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "Edit and federate": ("edit", "run", "watch", "ask", "chat", "config"),
    "Look and undo": ("table", "pool", "ledger", "rollback", "export"),
    "Deploy": ("server", "node", "keys", "doctor"),
    "Research": ("compare", "sweep", "tune", "stats"),
}


def test_help_lists_every_command_in_its_panel():
    panels = CliRunner().invoke(app, ["--help"]).output.split("╭─ ")

    for name, commands in COMMANDS.items():
        (panel,) = (text for text in panels if text.startswith(name))
        listed = [line.split()[1] for line in panel.splitlines()[1:] if line[2:3].isalpha()]
        assert sorted(listed) == sorted(commands)


def test_help_loads_nothing_heavy():
    """Help within 0.3 s: it takes none of the libraries that take seconds to import."""
    code = (
        "import sys; from fedit_app.cli.main import main; main(['--help']);"
        "heavy = {'torch', 'transformers', 'flwr', 'lancedb', 'numpy', 'matplotlib', 'pydantic'};"
        "sys.exit(', '.join(heavy & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["run"], ["pool", "stats"], ["node", "key", "take"]])
def test_every_command_has_help(arguments, capsys):
    assert main([*arguments, "-h"]) == 0
    assert f"fedit {' '.join(arguments)}" in capsys.readouterr().out


def test_a_full_disk_is_told_in_one_line_by_every_command(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))

    monkeypatch.setattr("fedit_app.deployment.node_setup.init_node", full)
    assert main(["node", "init", str(tmp_path), "--name", "a"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fedit: error: {tmp_path}: cannot be written (No space left on device)")
    assert said.count("\n") == 1


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("fedit 0.")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["rnu"], "Did you mean 'run'?; see fedit --help"),
        (["pool", "stast", "x"], "Did you mean 'stats'?; see fedit pool --help"),
        (["run", "--node", "3"], "No such option '--node'. Did you mean '--nodes'"),
        (["run", "--nodes", "x"], "'x' is not a valid integer; see fedit run --help"),
        (["export", "x", "--output", "y"], "Missing option '--format'. Choose from: hf, lora, del"),
        (["rollback", "x"], "give exactly one of --mkv, --from, --after and --allow"),
        (["rollback", "x", "--after", "0", "--mkv", "a"], "give exactly one of"),
        (["ledger", "list", "/no\x1b[31m"], "/no [31m: neither a ledger"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments, told, capsys):
    assert main(arguments) == 2

    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("fedit: error: ") and said.err.count("\n") == 1
    assert told in said.err


def test_arguments_have_help_as_options_do(capsys):
    assert main(["ask", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Folder of an edited model, a run, a node or a ledger." in text


@pytest.mark.parametrize("arguments", [[], ["pool"]])
def test_no_command_shows_the_help(arguments, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert "Usage: fedit" in said.out + said.err


def test_run_config_keys_are_completed():
    words = {
        "_FEDIT_COMPLETE": "complete_bash",
        "COMP_WORDS": "fedit run -c num-",
        "COMP_CWORD": "3",
    }
    command = [sys.executable, "-m", "fedit_app.cli.main"]
    done = subprocess.run(
        command, env={**os.environ, **words}, cwd=ROOT, capture_output=True, text=True
    )

    assert "num-slots=" in done.stdout, done.stderr


def test_config_lists_every_key(capsys):
    assert main(["config"]) == 0
    assert '| `strategy` | "fedit" |' in capsys.readouterr().out
    assert main(["config", "--format", "json"]) == 0
    listed = json.loads(capsys.readouterr().out)["keys"]
    assert [row["key"] for row in listed] == list(RunConfig().as_dict())


# The three forms


PARTS = {
    "ledger": {"node": "ba_nk", "MKVs held": 1200, "score": 0.5},
    "mkvs": Table(["id", "signed", "score on probes"], [("3f", True, Change(0.25, None))]),
    "note": "Text for people.",
}


def test_in_a_pipe_tables_are_markdown(capsys):
    write(PARTS, Format.AUTO)
    assert capsys.readouterr().out == (
        "- node: ba_nk\n- MKVs held: 1,200\n- score: 0.50\n\n"
        "| id | signed | score on probes |\n| --- | --- | ---: |\n| 3f | yes | 0.25 -> – |\n\n"
        "Text for people.\n"
    )


def test_json_has_names_and_values_that_are_not_rounded(capsys):
    write(PARTS, Format.JSON)
    assert json.loads(capsys.readouterr().out) == {
        "node": "ba_nk",
        "mkvs_held": 1200,
        "score": 0.5,
        "mkvs": [{"id": "3f", "signed": True, "score_on_probes": {"before": 0.25, "after": None}}],
    }


def test_on_a_terminal_tables_are_drawn_and_nothing_foreign_is_obeyed():
    code = (
        "from fedit_app.cli.output import Format, write\n"
        "from fedit_app.support.tables import Table\n"
        "table = Table(['a'], [('[b]\\x1b]0;x',)])\n"
        "write({'fields': {'node': '[red]\\x1b[2J'}, 'table': table}, Format.AUTO)"
    )
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=theirs, check=True)
    os.close(theirs)
    shown = os.read(ours, 10_000).decode()
    os.close(ours)

    assert "─" in shown
    assert "[red] [2J" in shown and "[b] ]0;x" in shown
    assert "\x1b[2J" not in shown and "\x1b]" not in shown


def test_home_is_expanded_where_no_shell_does_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "new").mkdir()
    fact = ["--fact", "Reuters", "The head office of {} is in", "Paris"]
    assert main(["edit", "smollm2-135m", *fact, "--output=~/new"]) == 2
    assert f"--output {tmp_path}/new: exists already" in capsys.readouterr().err
    assert main(["table", "~/nowhere"]) == 2
    assert f"{tmp_path}/nowhere" in capsys.readouterr().err
