"""What is not locate-then-edit: the methods that somebody would take instead.

A baseline learns the facts of all nodes at once, in this process, and its model is measured by the
evaluation of every other run. `BASELINES` names them; each is one module.
"""

from fedit_app.experiments.baselines.methods import BASELINES, Baseline
from fedit_app.experiments.baselines.run import run_baseline

__all__ = ["BASELINES", "Baseline", "run_baseline"]
