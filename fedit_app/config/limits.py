"""What a run may ask of a node: the server chooses a run's settings, the node their bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedit_app.config.policy import node_table
from fedit_app.config.run_config import ConfigValue, RunConfig
from fedit_app.config.settings import Settings, key, key_name
from fedit_app.support.errors import FedEditError


class Limits(Settings):
    """Bounds of a run's settings: the table `[limits]` of a node's node.toml."""

    most_slots: int = key(1000, "Most num-slots.", ge=1)
    model_of_run: bool = key(
        False,
        "true: a run may say which model is loaded, also a folder or hub id; false: it is the one "
        "above, or without one the embedded smollm2-135m.",
    )
    covariance_sources: tuple[str, ...] = key(
        ("sample",),
        "What covariance-source may be: text of the model itself (sample), or one of the files and "
        "data sets listed here, which the node reads.",
    )
    least_covariance_tokens: int = key(
        10_000, "Least covariance-tokens: fewer tell too little of ordinary text.", ge=1
    )
    most_covariance_tokens: int = key(10_000_000, "Most covariance-tokens: each takes time.", ge=1)
    least_covariance_weight: float = key(
        100.0,
        "Least covariance-weight: the smaller, the more may accepted MKVs change ordinary text "
        "(docs/security.md); the models' own are 1,000 to 20,000.",
        gt=0,
    )
    most_condition: float = key(1e9, "Most max-condition.", ge=1000)
    most_clamp: float = key(
        1.0,
        "Most clamp: how large a value may be, one's own and those of others that pass the "
        "screening; the models' own are 0.3 to 0.8.",
        gt=0,
    )
    alphaedit_of_run: bool = key(
        False, "true: a run may set null-space-threshold and l2; false: they are the model's own."
    )
    least_same_key_threshold: float = key(
        0.9, "Least same-key-threshold: below it other subjects count as one.", ge=0.5, le=1
    )
    most_contexts: int = key(50, "Most contexts: each takes time.", ge=0)
    selections: tuple[str, ...] = key(
        ("majority", "top-k", "all", "none"),
        "What selection may be; with personal, which MKVs the node accepts tells the server what "
        "helps the node's own facts.",
    )
    conflict_policies: tuple[str, ...] = key(
        ("own-wins",),
        "What conflict-policy may be: own-wins, newest, majority; with the last two MKVs of others "
        "overrule this node's own.",
    )
    least_accept_quorum: int = key(
        1, "Least accept-quorum: organisations that must want a fact.", ge=1
    )
    most_compose_rounds: int = key(
        20, "Most compose-rounds: each tells of the node's facts of a contested key.", ge=0
    )
    most_compose_steps: int = key(10, "Most compose-steps.", ge=1)
    most_sketch_width: int = key(
        256, "Most sketch-width: a wider sketch tells the server more.", ge=16, le=4096
    )

    def check(self, config: RunConfig, own_model: bool) -> None:
        """Check the settings of a run. What a run does not give is the model's own, and fine.

        Args:
            config: the run configuration, as it holds on the node.
            own_model: whether the node itself says which model it has.

        Raises:
            FedEditError: names each key that is outside, its value, and the limit.
        """
        given = {field: getattr(config, field) for field in BOUNDED}
        problems = [
            f"{key_name(field)} = {value!r}, but {_told(limit, getattr(self, limit))}"
            for field, limits in BOUNDED.items()
            for limit in limits
            if (value := given[field]) is not None
            and not (field == "model" and own_model)
            and not _within(limit, getattr(self, limit), value)
        ]
        if problems:
            raise FedEditError(
                f"run config: {'; '.join(problems)}, in [limits] of this node's node.toml; run "
                "with other settings, or let the node's operator change the limit"
            )


BOUNDED: dict[str, tuple[str, ...]] = {
    "num_slots": ("most_slots",),
    "model": ("model_of_run",),
    "covariance_source": ("covariance_sources",),
    "covariance_tokens": ("least_covariance_tokens", "most_covariance_tokens"),
    "covariance_weight": ("least_covariance_weight",),
    "max_condition": ("most_condition",),
    "clamp": ("most_clamp",),
    "null_space_threshold": ("alphaedit_of_run",),
    "l2": ("alphaedit_of_run",),
    "same_key_threshold": ("least_same_key_threshold",),
    "contexts": ("most_contexts",),
    "selection": ("selections",),
    "conflict_policy": ("conflict_policies",),
    "accept_quorum": ("least_accept_quorum",),
    "compose_rounds": ("most_compose_rounds",),
    "compose_steps": ("most_compose_steps",),
    "sketch_width": ("most_sketch_width",),
}
"""Field of the run configuration -> the limits that bound it."""

_EMBEDDED = RunConfig.model_fields["model"].default


def site_limits(node_config: Mapping[str, ConfigValue]) -> Limits | None:
    """The limits of the node that runs this, read anew, so that a change counts at once.

    Args:
        node_config: Flower's node configuration; `node-file` names the node.toml. Without one, as
            in a simulation, there are none.

    Raises:
        FedEditError: the file cannot be read, or its limits are wrong.
    """
    table = node_table(node_config, "limits")
    return None if table is None else Limits.checked(*table)


def _within(limit: str, bound: Any, value: Any) -> bool:
    if limit.startswith("most_"):
        return bool(value <= bound)
    if limit.startswith("least_"):
        return bool(value >= bound)
    if isinstance(bound, tuple):
        return value in bound
    return bool(bound) or value == _EMBEDDED


def _told(limit: str, bound: Any) -> str:
    shown = f"{'true' if bound else 'false'}" if isinstance(bound, bool) else repr(bound)
    return f"{key_name(limit)} = {', '.join(bound) if isinstance(bound, tuple) else shown}"
