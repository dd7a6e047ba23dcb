"""The bar of a run follows the log of the server, and hides no line of it."""

import io

from rich.console import Console

from fedit_app.support.progress import Progress

LOG = """\
12:00:00 fedit I node bank: 3 requests in slot 1
12:00:01 fedit I slot 1 edit: bank answered, 1 of 2
12:00:02 fedit I slot 1 edit: court has answered, 2 of 2
12:00:09 fedit I slot 2 reedit: bank answered, 1 of 2
"""


def test_every_line_of_the_log_is_shown(capsys):
    with Progress(2) as progress:
        for line in LOG.splitlines():
            progress.line(line)

    said = capsys.readouterr()
    assert (said.out, said.err) == (LOG, ""), "no bar where there is no terminal"


def test_the_bar_names_slot_and_stage(capsys):
    terminal = io.StringIO()
    with Progress(3, Console(file=terminal, force_terminal=True, width=100)) as progress:
        for line in LOG.splitlines():
            progress.line(line)

    assert "slot 2 of 3, reedit: 1 of 2 nodes" in terminal.getvalue()
    assert capsys.readouterr().out == LOG
