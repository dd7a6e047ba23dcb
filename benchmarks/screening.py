"""The MKVs of finished runs against the bounds of the screening.

Every node's ledger of every run folder is read, so that the MKVs were made under the conditions of
a federation: slot after slot, on top of ledgers that hold others' MKVs. All of a run's nodes are
taken to be honest; "refused" are MKVs that another node's screening would put in quarantine.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.harness import Cell, Figures, main, parser, report, table
from fedit_app.cli.places import find_place
from fedit_app.config.folders import nodes_with_ledger
from fedit_app.config.run_config import RunConfig
from fedit_app.editing.screening import BOUNDS, Screen
from fedit_app.mkv import MKV
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import read_toml

_COLUMNS = ("median", "99 %", "most", "bound")


def run(arguments: Sequence[str] | None = None) -> None:
    """Print a table for every run folder.

    Args:
        arguments: of the command line; None for those of the process.

    Raises:
        FedEditError: a folder is not of a run, or keeps no ledger.
    """
    options = _options(arguments)
    figures: dict[str, float] = {}
    for folder in options.runs:
        screen, mkvs = _honest(folder)
        figures |= distribution(f"screening/{folder.name}", screen, mkvs)
    report(options, figures)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    options = parser(__doc__, model=False, data=False)
    options.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="finished runs")
    return options.parse_args(arguments)


def _honest(folder: Path) -> tuple[Screen, list[MKV]]:
    """What screens a run's MKVs, and all that its nodes have computed."""
    file = folder / "config.toml"
    if not file.is_file():
        raise FedEditError(f"{folder}: not a run folder, it has no config.toml")
    values = {**read_toml(file, str(file)), "output-dir": str(folder.absolute())}
    names = nodes_with_ledger(RunConfig.parse(values), 0)
    if not names:
        raise FedEditError(f"{folder}: this run kept no ledgers here")
    places = [find_place(folder, name) for name in names]
    ledgers = [place.open() for place in places]
    mkvs = {id_: entry.mkv for ledger in ledgers for id_, entry in ledger.entries.items()}
    return places[0].workbench(ledgers[0]).screen, [mkvs[id_] for id_ in sorted(mkvs)]


def distribution(name: str, screen: Screen, mkvs: Sequence[MKV]) -> dict[str, float]:
    """Print how far honest MKVs are from the bounds.

    Args:
        name: begins the figures' names.
        screen: measures them.
        mkvs: n >= 1 MKVs of its fingerprint.

    Returns:
        The figures.
    """
    figures: Figures = {}
    rows: list[list[Cell]] = []
    for quantity, values in screen.measure(mkvs).items():
        found = (*map(float, np.quantile(values, (0.5, 0.99, 1.0))), BOUNDS[quantity])
        for column, value in zip(_COLUMNS, found, strict=True):
            figures[f"{name}/{quantity}/{column}"] = value
        rows.append([quantity, *found])
    refused = len(screen.faults(mkvs)) / len(mkvs)
    figures[f"{name}/false_rejections"] = refused
    print(table([f"{name}: {len(mkvs)} MKVs", *_COLUMNS], rows))
    print(f"\nfalse rejections: {refused:.2%}\n")
    return figures


if __name__ == "__main__":
    main(run)
