"""What documents say can be typed and followed: links lead somewhere, commands exist."""

import re
import shlex
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks" / "README.md"])
_CODE = re.compile(r"^ *```.*?^ *```", re.M | re.S)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(document: Path) -> str:
    return _CODE.sub("", document.read_text(encoding="utf-8"))


def anchors(document: Path) -> set[str]:
    """The anchors that a forge makes of headings."""
    headings = re.findall(r"^#+ +(.*)$", prose(document), re.M)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_to_a_heading_in_it(document):
    for target in _LINK.findall(prose(document)):
        path, _, anchor = target.partition("#")
        if ":" in path:
            continue
        found = (document.parent / path).resolve() if path else document
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def test_documents_that_sources_name_are_there():
    named = re.compile(r"\b(?:docs|benchmarks)/[\w./-]+\.md\b")
    sources = [*ROOT.glob("fedit_app/**/*.py"), *ROOT.glob("benchmarks/*.py")]
    sources += ROOT.glob("configs/*.toml")
    found = {name for file in sources for name in named.findall(file.read_text(encoding="utf-8"))}
    assert found and not [name for name in sorted(found) if not (ROOT / name).exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_of_prose_fit_on_a_screen(document):
    lines = prose(document).splitlines()
    assert not [line for line in lines if len(line) > 120 and not line.startswith("|")]


def commands() -> list[tuple[str, ...]]:
    """Every `fedit` command that a document shows, as words."""
    found = {}
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for block in re.findall(r"^ *```sh\n(.*?)^ *```", text, re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words and Path(words[0]).name == "fedit":
                    found[tuple(words[1:])] = None
    return list(found)


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_the_command_line_takes_every_command_that_a_document_shows(words):
    from fedit_app.cli.main import whole_command

    command, rest = whole_command(), list(words)
    # A command remembers its help option as it first sees it, and it is one for all tests.
    root = click.Context(command, **command.context_settings)
    while isinstance(command, click.Group):
        name = rest.pop(0)
        assert name in command.commands, name
        command = command.commands[name]
    command.make_parser(click.Context(command, root)).parse_args(rest)


def test_every_test_that_a_promise_names_is_there():
    """A promise whose test was renamed or deleted is one that nobody keeps."""
    promises = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    promises += (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    code = "\n".join(file.read_text("utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    names = set(re.findall(r"`(test_\w+)`", promises))
    places = set(re.findall(r"`(tests/[\w/]+(?:\.py)?)`", promises))
    assert len(names) > 5 and len(places) > 5
    assert not [name for name in names if f"def {name}(" not in code]
    assert not [place for place in places if not (ROOT / place).exists()]
