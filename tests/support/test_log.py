"""The log: nothing that others have sent does anything to a terminal."""

import logging

import pytest

from fedit_app.support.log import set_up_logging


@pytest.fixture
def log(capsys):
    """Gives `log(text)`: what the log shows of it."""

    def log(text: str, *arguments: object, **options) -> str:
        set_up_logging()
        logging.getLogger("fedit_app.server.grid").error(text, *arguments, **options)
        return capsys.readouterr().err

    return log


@pytest.mark.parametrize(
    "sent",
    ["\x1b]0;title\x07", "\x1b[2J\x1b[31m", "a\rslot 1: all is well", "\x9b5m", "\u202etxt.exe"],
)
def test_control_sequences_of_others_are_not_shown(log, sent):
    shown = log("node %s is missing: %s", "eve", sent)
    assert shown.startswith(("0", "1", "2")) and "node eve is missing:" in shown
    assert shown.removesuffix("\n").isprintable()


def test_lines_and_tracebacks_stay_lines(log):
    try:
        raise ValueError("of \x1b[31m")
    except ValueError:
        shown = log("first\nsecond", exc_info=True)
    lines = shown.splitlines()
    assert lines[0].endswith("first") and lines[1] == "second" and len(lines) > 4
    assert all(line.isprintable() for line in lines)
