"""`fedit compare` and `fedit sweep`: many runs of one experiment, and their tables."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedit_app.cli.options import App, ConfigFile, DryRun, Overrides, run_config
from fedit_app.cli.output import Format, FormatOption, Part, write
from fedit_app.support.errors import FedEditError
from fedit_app.support.tables import Table

if TYPE_CHECKING:
    from fedit_app.config.run_config import ConfigValue
    from fedit_app.experiments.plan import Plan

Nodes = Annotated[int | None, typer.Option(metavar="N", help="Virtual nodes, as in fedit run.")]
_STRATEGIES = typer.Option(
    metavar="LIST",
    help=r"Such as fedit,fedit\[selection=majority],fedavg; in brackets run-config keys in "
    "which this one differs from the rest.",
)
Editors = Annotated[
    str | None, typer.Option(metavar="LIST", help="Written alike; default: the run config's.")
]
Seeds = Annotated[
    str | None, typer.Option(metavar="LIST", help="Such as 1,2,3; default: the run config's.")
]
OutputDir = Annotated[Path, typer.Option(metavar="DIR", help="The comparison's folder.")]
Metrics = Annotated[
    str | None,
    typer.Option(metavar="LIST", help="Columns of the tables; any that results.json has."),
]
ReportOnly = Annotated[
    bool, typer.Option("--report-only", help="Only write the tables of the finished runs.")
]
Jobs = Annotated[
    int,
    typer.Option(
        min=1, metavar="N", help="Runs executed at a time; they share cores, memory and GPU."
    ),
]


class Preset(StrEnum):
    """Sets of methods."""

    FIELD = "field"
    PAPER = "paper"


def compare(
    output_dir: OutputDir,
    config: ConfigFile = None,
    overrides: Overrides = None,
    nodes: Nodes = None,
    strategies: Annotated[str | None, _STRATEGIES] = None,
    editors: Editors = None,
    baselines: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="What is no editor: ft-m, locft-bf, ft-fedavg, ft-fedprox, lora, lora-fedavg, "
            "lora-fedprox, grace, in-context, mend.",
        ),
    ] = None,
    preset: Annotated[
        Preset | None,
        typer.Option(
            help="field: all strategies with memit, all editors with fedit, all baselines but "
            "mend and those of FedProx; paper: the methods of FLEKE's tables."
        ),
    ] = None,
    seeds: Seeds = None,
    metrics: Metrics = None,
    dry_run: DryRun = False,
    report_only: ReportOnly = False,
    jobs: Jobs = 1,
    app: App = None,
    form: FormatOption = Format.AUTO,
) -> int:
    """Run strategies, editors and seeds in simulation, compare them in tables."""
    folder = output_dir.absolute()
    plan = None
    if not report_only:
        values = run_config(config, overrides)
        given = {"strategies": strategies, "editors": editors, "baselines": baselines}
        chosen = {**_set_of(preset), **{k: v for k, v in given.items() if v is not None}}
        if preset:
            values.setdefault("metrics", chosen["metrics"])
        plan = _plan(
            folder,
            values,
            nodes,
            chosen.get("strategies", "fedit,fedavg,local,central"),
            chosen.get("editors"),
            seeds,
            baselines=chosen.get("baselines", ""),
            star=preset is Preset.FIELD,
        )
    return _compare(plan, folder, metrics, dry_run, jobs, app, form)


def sweep(
    output_dir: OutputDir,
    axis: Annotated[
        str | None,
        typer.Option(
            metavar="KEY=VALUE,VALUE,...",
            help="What is varied: a run-config key, or nodes; needed unless --report-only.",
        ),
    ] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    nodes: Nodes = None,
    strategies: Annotated[str, _STRATEGIES] = "fedit",
    editors: Editors = None,
    seeds: Seeds = None,
    metrics: Metrics = None,
    dry_run: DryRun = False,
    report_only: ReportOnly = False,
    jobs: Jobs = 1,
    app: App = None,
    form: FormatOption = Format.AUTO,
) -> int:
    """Do the same over the values of one run-config key."""
    folder = output_dir.absolute()
    plan = None
    if not report_only:
        if axis is None:
            raise FedEditError("--axis is missing; write, for example, --axis overlap=0,0.25,0.5")
        values = run_config(config, overrides)
        plan = _plan(folder, values, nodes, strategies, editors, seeds, axis)
    return _compare(plan, folder, metrics, dry_run, jobs, app, form)


def _set_of(preset: Preset | None) -> dict[str, str]:
    from fedit_app.experiments.field import PRESETS

    return PRESETS[preset]() if preset else {}


def _plan(
    folder: Path,
    values: dict[str, ConfigValue],
    nodes: int | None,
    strategies: str,
    editors: str | None,
    seeds: str | None,
    axis: str | None = None,
    baselines: str = "",
    star: bool = False,
) -> Plan:
    from fedit_app.config.run_config import RunConfig
    from fedit_app.experiments.plan import joined, make_plan, parse_axis

    default = RunConfig()
    return joined(
        make_plan(
            folder,
            values,
            nodes,
            strategies,
            editors or str(values.get("editor", default.editor)),
            seeds or str(values.get("seed", default.seed)),
            parse_axis(axis) if axis else None,
            baselines,
            star,
        )
    )


def _compare(
    plan: Plan | None,
    folder: Path,
    metrics: str | None,
    dry_run: bool,
    jobs: int,
    app: Path | None,
    form: Format,
) -> int:
    """Do the runs of a plan that are not done yet and compare all; None: those of the folder."""
    from fedit_app.experiments.evidence import gather, intervals_table
    from fedit_app.experiments.plan import load_plan
    from fedit_app.experiments.runner import prepare
    from fedit_app.experiments.summary import ahead_text, summarise, write_comparison
    from fedit_app.flower_compat.launch import find_app, with_other_code
    from fedit_app.report.figures import check_figures
    from fedit_app.report.tables import METRICS, methods_table

    columns = metrics.split(",") if metrics else METRICS
    check_figures(columns, "--metrics")
    failures: dict[str, str] = {}
    if plan is None:
        plan = load_plan(folder)
    elif dry_run:
        steps = prepare(plan, with_other_code(find_app(app)))
        rows = [(step.run.title, step.todo.value, step.run.name) for step in steps]
        write({"runs": Table(("Run", "State", "Folder"), rows)}, form)
        return 0
    else:
        failures = _execute(plan, jobs, app)
    comparison = summarise(plan, failures)
    evidence = gather(plan)
    files = write_comparison(comparison, folder, columns, evidence)
    parts: dict[str, Part] = {}
    if evidence and evidence.findings:
        parts["ahead"] = ahead_text(comparison, evidence)
    parts["methods"] = methods_table(comparison, columns)
    if evidence and evidence.findings:
        parts["intervals"] = intervals_table(evidence)
    failed = [(run.name, run.reason) for run in comparison.failed]
    if failed:
        parts["failed"] = Table(("Failed run", "Reason"), failed)
    parts["files"] = "\n".join(map(str, files))
    write(parts, form)
    return 1 if failures else 0


def _execute(plan: Plan, jobs: int, app: Path | None) -> dict[str, str]:
    """Do the runs of a plan; names of those that failed, and why."""
    from fedit_app.experiments.plan import locked, save_plan
    from fedit_app.experiments.runner import execute, prepare
    from fedit_app.experiments.side_by_side import cores_of
    from fedit_app.flower_compat.launch import find_app, simulate, with_other_code
    from fedit_app.support.processes import interrupt_when_terminated

    checkout = find_app(app)
    interrupt_when_terminated()
    with locked(plan.folder):
        steps = prepare(plan, with_other_code(checkout))
        save_plan(plan)
        return execute(steps, partial(simulate, checkout, given_cores=cores_of(jobs)), jobs)
