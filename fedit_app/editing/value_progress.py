"""How far the optimisation of values is: a bar on a terminal, lines of the log elsewhere."""

from __future__ import annotations

import logging
import time

from tqdm import tqdm

logger = logging.getLogger(__name__)

_PAUSE = 10
"""Seconds between two lines of one batch."""


class ValueProgress:
    """Says how many of some values are optimised, also while a batch of them is.

    Args:
        total: how many there are.
        steps: how many passes one takes at most.
    """

    def __init__(self, total: int, steps: int) -> None:
        self._total, self._steps = total, steps
        self._complete, self._batch = 0, 0
        self._bar = tqdm(total=total, desc="v*", unit="edit", leave=False, disable=None)
        self._told = time.monotonic()

    def begin(self, size: int) -> None:
        """A batch of so many values begins, perhaps again."""
        self._batch = size

    def at_step(self, step: int, done: int) -> None:
        """A pass of the batch is made, and so many of its values are done."""
        now = self._complete + done
        self._bar.set_postfix_str(f"step {step} of {self._steps}", refresh=False)
        self._draw(now)
        left = self._batch - done
        if self._bar.disable and left and time.monotonic() - self._told >= _PAUSE:
            self._told = time.monotonic()
            logger.info(
                "v*: %d of %d values optimised; %d more are at step %d of %d",
                *(now, self._total, left, step, self._steps),
            )

    def end(self) -> None:
        """All values of the batch are done."""
        self._complete += self._batch
        self._draw(self._complete)
        if self._bar.disable:
            self._told = time.monotonic()
            logger.info("v*: %d of %d values optimised", self._complete, self._total)

    def _draw(self, done: int) -> None:
        self._bar.n = done
        self._bar.refresh()

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()
