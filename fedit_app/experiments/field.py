"""The methods that a comparison with the field is made of: `fedit compare --preset field`."""

from __future__ import annotations

from fedit_app.editing.editors import EDITORS
from fedit_app.experiments.baselines.methods import BASELINES
from fedit_app.server.strategies import STRATEGIES


def field() -> dict[str, str]:
    """Options of the command: every strategy, editor and baseline that has a name, but for `mend`.

    The first strategy, `fedit`, meets every editor, and the first editor, `memit`, every strategy.
    MEND's editor is trained for half an hour and more on a CPU, on records beyond those that are
    edited.
    """
    return {
        "strategies": ",".join(STRATEGIES),
        "editors": ",".join(EDITORS),
        "baselines": ",".join(name for name in BASELINES if name != "mend"),
    }
