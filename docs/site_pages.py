"""What the documentation site takes from outside `docs/`: pages of the root, and API pages.

Documents link to each other, and to source files, as a forge resolves it. On the site a link to a
page leads to the page; one to another file of the repository becomes its text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ROOT_PAGES = {
    "README.md": "index.md",
    **{name: name for name in ("EXPERIMENTS.md", "CONTRIBUTING.md", "CHANGELOG.md")},
    "SECURITY.md": "reporting-a-vulnerability.md",  # docs/ has a security.md
    "benchmarks/README.md": "benchmarks/README.md",
}
ROOMS = ("facts", "models", "editing", "ledger", "evaluation", "mkv", "pool", "protocol", "node")
ROOMS += ("server", "report", "config")
PUBLIC_PAGE = "api.md"
_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_SOURCES = {page: source for source, page in ROOT_PAGES.items()}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root and the API pages."""
    for source, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    for room in ROOMS:
        files.append(File.generated(config, f"api/{room}.md", content=_api_page(room)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Resolve the links of a page from its place in the repository to that on the site."""
    uri = page.file.src_uri
    source = _SOURCES.get(uri, f"docs/{uri}")

    def resolved(found: re.Match[str]) -> str:
        text, target = found[1], found[2]
        path, mark, anchor = target.partition("#")
        if not path or ":" in path:
            return found[0]
        in_repository = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        on_site = ROOT_PAGES.get(in_repository)
        if on_site is None and in_repository.startswith("docs/"):
            on_site = in_repository.removeprefix("docs/")
        if on_site is None:
            # What is missing is left to MkDocs, which names it and fails.
            return text if (ROOT / in_repository).exists() else found[0]
        start = posixpath.dirname(uri) or "."
        return f"[{text}]({posixpath.relpath(on_site, start)}{mark}{anchor})"

    return _LINK.sub(resolved, markdown)


def _api_page(room: str) -> str:
    """The modules of a room, each with its public names, but those that have their own page."""
    modules = sorted(path.stem for path in (ROOT / "fedit_app" / room).glob("[!_]*.py"))
    elsewhere = (ROOT / "docs" / PUBLIC_PAGE).read_text("utf-8").split()
    names = [f"fedit_app.{room}.{module}" for module in modules]
    names = [name for name in names if name not in elsewhere]
    return f"# fedit_app.{room}\n\n" + "\n\n".join(f"::: {name}" for name in names) + "\n"
