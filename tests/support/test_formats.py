import shlex
from pathlib import Path

import pytest

from fedit_app.support import formats


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_960, "1.0 MB"),
        (1_234_567, "1.2 MB"),
        (5_000_000_000, "5.0 GB"),
        (7_400_000_000_000, "7.4 TB"),
    ],
)
def test_byte_size(count, text):
    assert formats.byte_size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.0, "0.0 s"),
        (59.96, "1 min 0 s"),
        (754.2, "12 min 34 s"),
        (3599.7, "1 h 0 min"),
        (7384, "2 h 3 min"),
    ],
)
def test_duration(seconds, text):
    assert formats.duration(seconds) == text


def test_words():
    assert formats.plural(1, "node") == "1 node"
    assert formats.plural(1200, "node") == "1,200 nodes"
    assert formats.listing([]) == ""
    assert formats.listing(["a", "b", "c"]) == "a, b and c"
    assert formats.percent(0.964) == "96 %"


def test_what_is_typed_in_a_shell():
    for name in ("plain", "my server", "l'hôpital", "$HOME"):
        assert shlex.split(f"fedit doctor {formats.typed(Path('/tmp', name))}")[2] == f"/tmp/{name}"
    assert formats.typed("plain") == "plain"


def test_foreign_text():
    assert formats.printable("a\x1b[31m\nb\u202ec") == "a [31m b c"
    assert formats.shorten("図書館の人", 6) == "図書…"
