"""How far a run is: a bar under the log on a terminal, the plain log elsewhere."""

from __future__ import annotations

import re
import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

_ANSWERED = re.compile(r"slot (\d+) (\w+): .*answered, (\d+) of (\d+)$")


class Progress:
    """Shows a run's log lines, and in a bar the slot and stage that they tell of.

    Args:
        slots: number of slots of the run.
        console: where the bar is drawn; default: the terminal behind standard error, if there is
            one.
    """

    def __init__(self, slots: int, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._slots = slots
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            # In a pipe or file, standard output holds the log and nothing else.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task = self._bar.add_task("start", total=slots)

    def line(self, text: str) -> None:
        """Show one line of the log and move the bar if a node has answered."""
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
        found = _ANSWERED.search(text)
        if found:
            slot, stage, count, nodes = int(found[1]), found[2], found[3], found[4]
            where = f"slot {slot} of {self._slots}, " if slot else ""
            description = f"{where}{stage}: {count} of {nodes} nodes"
            self._bar.update(self._task, completed=max(0, slot - 1), description=description)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self._bar.update(self._task, completed=self._slots)
        self._bar.stop()
