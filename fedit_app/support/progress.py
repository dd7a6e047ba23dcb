"""How far a run is: a bar under the log on a terminal, the plain log elsewhere."""

from __future__ import annotations

import re
import sys
from types import TracebackType

from tqdm import tqdm

from fedit_app.config.run_config import RunConfig

_ANSWERED = re.compile(r"slot \d+ \w+: \S+ .*answered, \d+ of \d+$")
_STAGES = {"fedit": 2, "local": 1, "central": 1}


class Progress:
    """Shows a run's log lines and counts the nodes' answers in them.

    Args:
        config: the run configuration.
        nodes: number of virtual nodes.
    """

    def __init__(self, config: RunConfig, nodes: int) -> None:
        slots = range(1, config.num_slots + 1)
        evaluated = sum(slot % config.evaluate_every == 0 for slot in slots)
        evaluated += config.num_slots % config.evaluate_every != 0
        stages = _STAGES.get(config.strategy, 1) * config.num_slots + evaluated
        edits = nodes if config.strategy != "central" else 1
        total = nodes * (2 + evaluated) + edits * (stages - evaluated)
        self._bar = tqdm(
            total=total, unit="answer", dynamic_ncols=True, disable=None, file=sys.stderr
        )

    def line(self, text: str) -> None:
        """Show one line of the log and move the bar if a node has answered."""
        self._bar.write(text, file=sys.stdout)
        sys.stdout.flush()
        if _ANSWERED.search(text):
            self._bar.update()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()
