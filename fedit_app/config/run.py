"""Settings of a run as a whole: how it proceeds, what it measures, where it keeps its files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator

from fedit_app.config.settings import NAME_RULE, AbsolutePath, Settings, is_name, key


class Seeded(Settings):
    """The seed that data, contexts and covariances share."""

    seed: int = key(0, "seed of everything that is drawn", ge=0, le=2**31 - 1)


class RunSettings(Seeded):
    """How a run proceeds."""

    strategy: str = key(
        "fedit",
        "fedit, local (no exchange), central (one ledger with everybody's requests; simulation "
        "only), fedavg, task-arithmetic, ties, collabedit, the class name of a Flower strategy "
        "such as FedMedian, or MODULE:CLASS of your own",
    )
    num_slots: int = key(3, "time slots T; each has an edit and a re-edit stage", ge=1)
    slot_timeout: float = key(
        3600.0,
        "time to wait for the replies of one stage, in simulation for the next reply of one; the "
        "slow are left out",
        ge=1,
        unit="seconds",
    )
    stage_share: float = key(
        1.0,
        "share of the nodes that were asked whose answers end a stage; the others are left out of "
        "the slot, and what they have done counts in a later one",
        gt=0,
        le=1,
    )
    resume: bool = key(
        False,
        "continue the unfinished run of output-dir, if it holds one, see `fedit run --resume`",
    )


class EvaluationSettings(Settings):
    """What a run measures, and when."""

    evaluate_every: int = key(1, "evaluate after every so many slots; always after the last", ge=1)
    evaluate_sample: int = key(
        0,
        "most facts of each scope (docs/results.md) that an evaluation asks, a sample that depends "
        "on the facts alone; 0: all",
        ge=0,
    )
    metrics: Literal["basic", "answers", "full"] = key(
        "basic",
        "basic (likelihoods and correct tokens), answers (before the first and after the last slot "
        "also what the model answers itself), or full: besides, how varied its free text is, and "
        "after the last slot divergence and perplexity on neutral text",
    )


def _federation(name: str) -> str:
    if not is_name(name):
        raise ValueError(f"must be {NAME_RULE}")
    if name == "worker":
        raise ValueError(
            "is the folder of a node's resident process under state-dir/NODE; choose another name"
        )
    return name


def _pool_uri(uri: str) -> str:
    if "://" not in uri and not Path(uri).is_absolute():
        raise ValueError(
            "must be an absolute path or a URI such as s3://BUCKET/PATH (Flower runs the app in a "
            "folder of its own)"
        )
    return uri


class StorageSettings(Settings):
    """Where a run keeps what it writes."""

    output_dir: AbsolutePath | None = key(
        None, "run folder (absolute)", absent="~/fedit-runs/RUN-ID", path="always"
    )
    state_dir: AbsolutePath | None = key(
        None,
        "folder of the nodes' ledgers (absolute)",
        absent="nodes/ in the run folder",
        path="always",
    )
    federation: Annotated[str, AfterValidator(_federation)] | None = key(
        None,
        "name of the folder under state-dir/NODE in which a node keeps its ledger; a run with the "
        "name of an earlier one continues its ledgers; `fedit run --superlink` makes up a new name "
        "per run",
        absent="state-dir/NODE itself",
    )
    pool_uri: Annotated[str, AfterValidator(_pool_uri)] | None = key(
        None, "MKV pool: a folder or s3://...", absent="pool/ in the run folder", path="always"
    )
    work_cache: AbsolutePath | None = key(
        None,
        "folder (absolute) that keeps optimised values v* and scores for later runs: exact, by "
        "hash, without text; a real node has its own or none",
        absent="no cache",
        path="always",
    )
