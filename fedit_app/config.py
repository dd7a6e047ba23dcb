"""The run configuration: every key, its default, type, range and meaning, in this one place.

`pyproject.toml` repeats the defaults under `[tool.flwr.app.config]`, because Flower refuses to
override a key that does not stand there; a test keeps the two equal.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedit_app.errors import FedEditError
from fedit_app.models.architectures import ModuleNames

ConfigValue = str | int | float | bool


def _key(
    default: ConfigValue,
    doc: str,
    *,
    choices: tuple[str, ...] = (),
    at_least: float | None = None,
    at_most: float | None = None,
) -> Any:
    metadata = {"doc": doc, "choices": choices, "at_least": at_least, "at_most": at_most}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class RunConfig:
    """One run of the federation. Field `a_b` is the run-config key `a-b`."""

    strategy: str = _key(
        "fedit",
        "fedit, local (no exchange), central (one ledger with everybody's requests; simulation "
        "only), fedavg, or the class name of a Flower strategy such as FedMedian",
    )
    editor: str = _key(
        "memit",
        "locate-then-edit method that computes the MKVs: memit, pmet, alphaedit or memit-fe",
    )
    model: str = _key("smollm2-135m", "smollm2-135m (embedded), a Hugging Face folder, or a hub id")
    dataset: str = _key(
        "demo",
        "demo (four organisations, shipped with the app) or jsonl (edit requests at data-path)",
        choices=("demo", "jsonl"),
    )
    data_path: str = _key(
        "",
        "jsonl: a folder with one NAME.jsonl per node (partition = file) or one file (partition "
        "= random); a real node's own node-config data-path wins",
    )
    partition: str = _key(
        "file",
        "simulation: file (one data file a node) or random (one file dealt out to the nodes)",
        choices=("file", "random"),
    )
    num_slots: int = _key(3, "time slots T; each has an edit and a re-edit stage", at_least=1)
    requests_per_slot: int = _key(
        0,
        "requests a node edits per slot, in file order; 0: as the records' slot field says",
        at_least=0,
    )
    selection: str = _key(
        "all",
        "which MKVs of others a node is served: majority (the paper's), top-k, all, none",
        choices=("majority", "top-k", "all", "none"),
    )
    similarity_threshold: float = _key(
        0.4, "majority: cosine that counts as similar", at_least=-1, at_most=1
    )
    signature: str = _key(
        "v_star",
        "vector compared for similarity: v_star (the paper's), delta = v* - h0, or key",
        choices=("v_star", "delta", "key"),
    )
    centred: bool = _key(False, "subtract the pool's mean signature before comparing")
    top_k: int = _key(20, "top-k: how many MKVs a node is served per slot", at_least=1)
    reuse_threshold: float = _key(
        0.98,
        "cosine of first-layer keys above which two MKVs are about the same subject: a node tries "
        "to reuse such an MKV instead of computing its own, and a served one that wants another "
        "target is a conflict",
        at_least=0.5,
        at_most=1,
    )
    covariance_weight: float = _key(
        0.0, "lambda, the weight of the covariance in the solve; 0: the model's default", at_least=0
    )
    covariance_source: str = _key(
        "sample",
        "text behind the covariance: sample (from the model itself), a text file, "
        "hub:DATASET[:CONFIG] (its train split, column text), or a .safetensors file of "
        "`fedit stats --save`",
    )
    covariance_tokens: int = _key(0, "tokens behind the covariance; 0: 10 x d_ff", at_least=0)
    layers: str = _key("", 'edited layers, such as "4-8" or "4,6,8"; empty: the model\'s default')
    learning_rate: float = _key(
        0.0, "Adam's step size for v*; 0: the model's default", at_least=0, at_most=10
    )
    value_steps: int = _key(
        0,
        "most steps of the v* optimisation; 0: the model's and editor's default",
        at_least=0,
        at_most=1000,
    )
    stop_after: int = _key(
        2,
        "stop a v* after its target was the argmax in every context for so many steps; 0: never",
        at_least=0,
    )
    weight_decay: float = _key(0.5, "weight of the norm of v* - h0 in the loss", at_least=0)
    kl_weight: float = _key(
        -1.0,
        "weight of the KL term that keeps the essence; -1: the model's and editor's default",
        at_least=-1,
    )
    clamp: float = _key(
        0.0,
        "largest norm of v* - h0, in norms of h0; 0: the model's and editor's default",
        at_least=0,
    )
    norm_guard: float = _key(
        2.0,
        "for the clamp, the norm of h0 counts at most as so many times its median over the "
        "contexts (a subject at the very start of a text has an outlier); 0: no limit",
        at_least=0,
    )
    max_condition: float = _key(
        1e7, "largest condition number of lambda C; above it a ridge is added", at_least=1000
    )
    null_space_threshold: float = _key(
        0.0,
        "alphaedit: eigenvalues of C below it belong to the null space; 0: the model's default",
        at_least=0,
    )
    l2: float = _key(0.0, "alphaedit: weight of |Delta|^2; 0: the model's default", at_least=0)
    contexts: int = _key(5, "sampled context prefixes beside the bare prompt", at_least=0)
    edit_batch: int = _key(
        0, "requests whose v* are optimised together; 0: as many as fit in memory", at_least=0
    )
    evaluate_every: int = _key(1, "evaluate after every so many slots; always last", at_least=1)
    slot_timeout: float = _key(
        3600.0, "seconds to wait for the replies of one stage; the slow are left out", at_least=1
    )
    output_dir: str = _key("", "run folder (absolute); empty: ~/fedit-runs/RUN-ID")
    state_dir: str = _key(
        "", "folder of the nodes' ledgers (absolute); empty: nodes/ in the run folder"
    )
    pool_uri: str = _key("", "MKV pool: a folder or s3://...; empty: pool/ in the run folder")
    pool_index: str = _key(
        "none",
        "none (exact) or ivf: in a pool of 100,000 MKVs and more, reuse candidates and selection = "
        "top-k that is not centred come from an approximate index; majority and all stay exact",
        choices=("none", "ivf"),
    )
    device: str = _key("auto", "auto (CUDA if there is one), cpu, cuda or cuda:N")
    dtype: str = _key(
        "auto",
        "weights in memory; auto: float32 on a CPU, else as in the checkpoint",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    device_map: str = _key(
        "",
        "spreads a model over several GPUs: auto, balanced, sequential, or a JSON file (absolute) "
        "from module paths to devices; empty: all of it on device",
    )
    module_layers: str = _key(
        "",
        "path of the list of decoder layers, such as model.layers; the module-... keys are for "
        "model families that FedEdit does not know, and win over what it knows",
    )
    module_mlp_output: str = _key(
        "", "path of the MLP's output projection in a layer, such as mlp.down_proj"
    )
    module_final_norm: str = _key("", "path of the norm before the output head, such as model.norm")
    module_attention_output: str = _key(
        "",
        "path of the attention's output projection in a layer, such as self_attn.o_proj; only the "
        "editor pmet needs it",
    )
    module_post_norm: str = _key(
        "",
        "path of the RMS norm behind the MLP's output projection in a layer, in the families that "
        "have one, such as post_feedforward_layernorm",
    )
    seed: int = _key(0, "seed of everything that is drawn", at_least=0, at_most=2**31 - 1)

    @staticmethod
    def parse(values: Mapping[str, ConfigValue]) -> RunConfig:
        """Check a run configuration as Flower hands it over.

        Args:
            values: key -> value; keys that are absent take their default.

        Raises:
            FedEditError: naming every unknown key, wrong type, wrong choice or value out of range.
        """
        fields = {key_name(field): field for field in dataclasses.fields(RunConfig)}
        problems = [_unknown(key, list(fields)) for key in values if key not in fields]
        checked = {}
        for key, field in fields.items():
            if key in values:
                value, problem = _check(key, field, values[key])
                checked[field.name] = value
                problems += [problem] if problem else []
        if problems:
            raise FedEditError("run config: " + "; ".join(problems))
        config = RunConfig(**checked)
        config._check_together()
        return config

    def _check_together(self) -> None:
        if self.layers:
            parse_layers(self.layers)
        if self.dataset == "jsonl" and not self.data_path:
            raise FedEditError(
                "run config: dataset = jsonl needs data-path, the folder or file of edit requests"
            )
        if self.dataset == "demo" and self.data_path:
            raise FedEditError("run config: data-path is set, so dataset must be jsonl, not demo")
        if self.dataset == "demo" and self.partition != "file":
            raise FedEditError("run config: the demo data has one file a node: partition = file")
        for key in ("output_dir", "state_dir", "data_path"):
            value = getattr(self, key)
            if value and not Path(value).expanduser().is_absolute():
                raise FedEditError(
                    f"run config: {key.replace('_', '-')} = {value!r} must be an absolute path "
                    "(Flower runs the app in a folder of its own)"
                )
        if self.pool_uri and "://" not in self.pool_uri and not Path(self.pool_uri).is_absolute():
            raise FedEditError(
                f"run config: pool-uri = {self.pool_uri!r} must be an absolute path or a URI such "
                "as s3://BUCKET/PATH (Flower runs the app in a folder of its own)"
            )

    @property
    def module_names(self) -> ModuleNames:
        """The module names that are given, for a model family that is not known."""
        fields = [field.name for field in dataclasses.fields(ModuleNames)]
        return ModuleNames(**{field: getattr(self, f"module_{field}") for field in fields})

    def as_dict(self) -> dict[str, ConfigValue]:
        """The configuration as key -> value, with every key."""
        return {key_name(field): getattr(self, field.name) for field in dataclasses.fields(self)}


def key_name(field: dataclasses.Field[Any]) -> str:
    """The run-config key of a field of `RunConfig`."""
    return field.name.replace("_", "-")


def parse_layers(text: str) -> tuple[int, ...]:
    """Layer numbers of "4-8" (inclusive) or "4,6,8".

    Raises:
        FedEditError: anything else, or numbers that do not rise.
    """
    error = FedEditError(
        f"run config: layers = {text!r} is not a range or list of rising layer numbers; "
        'write "4-8" or "4,6,8"'
    )
    bounds = re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", text)
    if bounds:
        layers = tuple(range(int(bounds[1]), int(bounds[2]) + 1))
    elif re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", text):
        layers = tuple(int(part) for part in text.split(","))
    else:
        raise error
    if not layers or any(a >= b for a, b in zip(layers, layers[1:], strict=False)):
        raise error
    return layers


def describe_keys() -> str:
    """Every run-config key as a Markdown table: key, default, type and range, meaning."""
    rows = ["| key | default | type, range | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(RunConfig):
        default = f'"{field.default}"' if isinstance(field.default, str) else field.default
        if isinstance(default, bool):
            default = str(default).lower()
        rows.append(
            f"| `{key_name(field)}` | `{default}` | {_range(field)} | {field.metadata['doc']} |"
        )
    return "\n".join(rows)


def _range(field: dataclasses.Field[Any]) -> str:
    if field.metadata["choices"]:
        return " \\| ".join(field.metadata["choices"])
    low, high = field.metadata["at_least"], field.metadata["at_most"]
    bounds = [f">= {low}"] if low is not None else []
    bounds += [f"<= {high}"] if high is not None else []
    return ", ".join([field.type, *bounds])


def _unknown(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"unknown key {key!r}" + (f", did you mean {close[0]!r}?" if close else "")


def _check(key: str, field: dataclasses.Field[Any], value: Any) -> tuple[Any, str | None]:
    expected = type(field.default)
    if expected is float and type(value) is int:
        value = float(value)
    if type(value) is not expected:
        return value, f"{key} = {value!r} must be {_article(expected.__name__)}"
    if expected is float and not math.isfinite(value):
        return value, f"{key} = {value} must be a finite number"
    choices = field.metadata["choices"]
    if choices and value not in choices:
        return value, f"{key} = {value!r} must be one of {', '.join(choices)}"
    low, high = field.metadata["at_least"], field.metadata["at_most"]
    if low is not None and not value >= low:
        return value, f"{key} = {value} must be at least {low}"
    if high is not None and not value <= high:
        return value, f"{key} = {value} must be at most {high}"
    return value, None


def _article(type_name: str) -> str:
    return f"an {type_name}" if type_name[0] in "aeiou" else f"a {type_name}"
