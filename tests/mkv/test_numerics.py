"""No change of the arithmetic behind MKVs and scores goes unnoticed.

The numerics version says whether two nodes compute alike, and names what a work-cache may give
back. Recorded here is the code that each version stands for. `python -m tests.mkv.test_numerics`
records the code as it is now.
"""

import ast
import hashlib
import json
from pathlib import Path

import pytest

RECORD = Path(__file__).parents[1] / "data" / "numerics.json"
PACKAGE = Path(__file__).parents[2] / "fedit_app"
LOGS = {"debug", "info", "warning", "error", "exception"}


def arithmetic(source: str) -> str:
    """Hash of what a module computes: its syntax without prose, annotations and imports."""
    text = json.dumps(_plain(ast.parse(source)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(node: object) -> object:
    if isinstance(node, list):
        return [_plain(item) for item in node if not _says_nothing(item)]
    if isinstance(node, ast.Raise):
        return "raise"
    if isinstance(node, ast.AST):
        left_out = {"annotation", "returns", "kind", "type_comment", "type_params", "ctx"}
        fields = {name: value for name, value in ast.iter_fields(node) if name not in left_out}
        kept = {name: _plain(value) for name, value in fields.items() if value not in (None, [])}
        return [type(node).__name__, kept]
    return repr(node)


def _says_nothing(node: object) -> bool:
    """Whether a statement changes no number: a docstring, an import, a line of the log."""
    if isinstance(node, ast.Expr):
        called = node.value.func if isinstance(node.value, ast.Call) else None
        logs = isinstance(called, ast.Attribute) and called.attr in LOGS
        return logs or isinstance(node.value, ast.Constant)
    return isinstance(node, ast.Import | ast.ImportFrom)


def recorded() -> dict[str, dict[str, str]]:
    return json.loads(RECORD.read_text(encoding="utf-8"))


def now(name: str) -> str:
    return arithmetic((PACKAGE / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("version", recorded())
def test_a_version_stands_for_the_arithmetic_that_is_recorded(version):
    changed = [name for name, hash_ in recorded()[version].items() if now(name) != hash_]
    assert not changed, (
        f"{', '.join(changed)} changed: if a number that it computes may change, raise {version}; "
        "then record the code with `python -m tests.mkv.test_numerics`"
    )


def test_only_arithmetic_counts():
    plain = "def f(x):\n    return x + 1"
    worded = (
        '"""Says."""\nimport math\n\ndef f(x: int) -> int:\n    """Why."""\n'
        '    logger.info("at %d", x)  # log\n    return x + 1'
    )
    assert arithmetic(plain) == arithmetic(worded)
    assert arithmetic(plain) != arithmetic(plain.replace("1", "2"))


if __name__ == "__main__":
    found = {
        version: {name: now(name) for name in sorted(names)}
        for version, names in recorded().items()
    }
    RECORD.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
