"""The parsers' fuzz tests once more, driven by what their code does with an input (atheris).

    python -m tests.fuzz.guided TEST [RUNS]

TEST is one of `TESTS`; without any, their names are printed. Hypothesis takes the bytes that
atheris makes up for its own choices, and atheris keeps those that reach lines of `fedit_app` which
none before has reached. The process ends with a trace and the input at the first that fails.
"""

import sys
from pathlib import Path

_RUNS = 20_000
TESTS = {
    "test_formats": ("mkv_files", "mkv_messages", "edit_requests", "counterfact", "zsre")
    + ("ledgers", "quarantine_lists"),
    "test_messages": ("arrays_of_any_bytes", "info_of_any_kind"),
    "test_sealed": ("sealed_files", "sealed_messages"),
}
"""Module -> its tests that need no fixture, without `test_`."""


def main() -> int:
    """Run one test with as many inputs as asked for."""
    names = {name: module for module, tests in TESTS.items() for name in tests}
    if len(sys.argv) < 2:
        print("\n".join(names))
        return 0
    if sys.argv[1] not in names:
        print(f"{sys.argv[1]}: no such test; without an argument their names are printed")
        return 2
    name, runs = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else _RUNS
    sys.path.insert(0, str(Path(__file__).parents[1]))

    import atheris

    with atheris.instrument_imports(include=["fedit_app"]):
        from importlib import import_module

        module = import_module(f"fuzz.{names[name]}")
    test = getattr(module, f"test_{name}").hypothesis.fuzz_one_input
    atheris.Setup([sys.argv[0], f"-runs={runs}", "-len_control=0", "-print_final_stats=1"], test)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
