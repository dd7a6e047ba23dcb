"""The sets of methods that a comparison can be made of: `fedit compare --preset NAME`."""

from __future__ import annotations

from fedit_app.editing.editors import EDITORS
from fedit_app.experiments.baselines.methods import BASELINES
from fedit_app.server.strategies import STRATEGIES

_APART = ("mend", "ft-fedprox", "lora-fedprox")
"""MEND's editor is trained for half an hour and more on a CPU, on records beyond those that are
edited; FedProx is FedAvg with one term more."""


def field() -> dict[str, str]:
    """Options of the command: every strategy, editor and baseline that has a name, but `_APART`.

    The first strategy, `fedit`, meets every editor, and the first editor, `memit`, every strategy.
    `metrics` is a run-config value, for whoever gives none.
    """
    return {
        "strategies": ",".join(STRATEGIES),
        "editors": ",".join(EDITORS),
        "baselines": ",".join(name for name in BASELINES if name not in _APART),
        "metrics": "answers",
    }


def paper() -> dict[str, str]:
    """Options of the command: the methods of FLEKE's tables (arXiv 2502.15677).

    FedMEMIT and FedPMET, which select by majority; MEMITAvg and PMETAvg; both without a federation;
    fine-tuning and MEND. Every strategy meets both editors.
    """
    return {
        "strategies": "fedit[selection=majority],fedavg,central",
        "editors": "memit,pmet",
        "baselines": "ft-m,mend",
        "metrics": "basic",
    }


PRESETS = {"field": field, "paper": paper}
