"""The run configuration: every key, its default, type, range and meaning, in this one place.

`pyproject.toml` repeats the defaults under `[tool.flwr.app.config]`, because Flower refuses to
override a key that does not stand there; a test keeps the two equal.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedit_app.config.keys import NAME_RULE, check_keys, is_name, key_name, key_range
from fedit_app.config.keys import key as _key
from fedit_app.models.architectures import ModuleNames
from fedit_app.support.errors import FedEditError
from fedit_app.support.hub import PREFIX as HUB
from fedit_app.support.tables import Table

ConfigValue = str | int | float | bool


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
        "demo (four organisations, shipped with the app), or what data-path holds: jsonl (edit "
        "requests as JSON lines or CSV), counterfact, zsre (as published)",
        choices=("demo", "jsonl", "counterfact", "zsre"),
    )
    data_path: str = _key(
        "",
        "a folder with one file per node, NAME.jsonl or NAME.csv (partition = file); for other "
        "partitions one file, or hub:DATASET[:CONFIG[:SPLIT]]; a real node's own node-config "
        "data-path wins",
    )
    partition: str = _key(
        "file",
        "simulation: file (one data file a node), or how one data set is dealt out: random, "
        "relation (one a node, the most frequent first), cluster (of similar texts, one a node), "
        "dirichlet (mixtures of relations, else of clusters)",
        choices=("file", "random", "relation", "cluster", "dirichlet"),
    )
    embedding_model: str = _key(
        "",
        "clusters: the model whose embeddings are clustered, a Hugging Face folder or hub id; "
        "empty: the edited model's own mean hidden states",
    )
    dirichlet_alpha: float = _key(
        0.5,
        "dirichlet: concentration; the smaller, the fewer relations a node has",
        at_least=0.001,
    )
    overlap: float = _key(
        0.0,
        "simulation: share of each node's facts that are given to other nodes as well, on top of "
        "their own",
        at_least=0,
        at_most=1,
    )
    overlap_clients: int = _key(
        1, "overlap: to how many other nodes such a fact is given", at_least=1
    )
    overlap_form: str = _key(
        "verbatim",
        "overlap: the same prompt, or one of the fact's paraphrase prompts in its place",
        choices=("verbatim", "paraphrase"),
    )
    overlap_slot: str = _key(
        "same",
        "overlap: in the slot of the original, or in a later one",
        choices=("same", "later"),
    )
    overlap_conflicts: float = _key(
        0.0, "overlap: share of the copies that want another target", at_least=0, at_most=1
    )
    num_slots: int = _key(3, "time slots T; each has an edit and a re-edit stage", at_least=1)
    requests_per_slot: int = _key(
        0,
        "own requests that a node edits per slot, in their order; 0: as the records' slot field "
        "says (counterfact and zsre have none)",
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
        0.8,
        "cosine of first-layer keys from which a node tries to reuse an MKV of the pool instead of "
        "computing its own: it does if the MKV's value says the node's own target; 0: never",
        at_least=0,
        at_most=1,
    )
    same_key_threshold: float = _key(
        0.98,
        "cosine of first-layer keys from which two keys count as one: two MKVs with it stand for "
        "one fact, or are a conflict if they want different targets",
        at_least=0.5,
        at_most=1,
    )
    conflict_policy: str = _key(
        "own-wins",
        "which of two MKVs about one subject that want different targets holds at a node: own-wins "
        "(the one for an own request), newest (of the later slot) or majority (the one that more "
        "nodes want)",
        choices=("own-wins", "newest", "majority"),
    )
    accept_quorum: int = _key(
        1,
        "organisations that must want a fact (that have uploaded near-equal MKVs, or reuse one) "
        "before it is served to others; until then it waits in the pool; own facts need no quorum",
        at_least=1,
    )
    max_uploads_per_slot: int = _key(
        10_000,
        "most MKVs that the server takes from one node in a slot; an upload of more is refused",
        at_least=1,
    )
    covariance_weight: float = _key(
        0.0, "lambda, the weight of the covariance in the solve; 0: the model's default", at_least=0
    )
    covariance_source: str = _key(
        "sample",
        "text behind the covariance: sample (from the model itself), a text file, "
        "hub:DATASET[:CONFIG[:SPLIT]] (column text, split train), or a .safetensors file of "
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
    mkv_precision: str = _key(
        "int8",
        "numbers to which MKVs are rounded when they are made, and in which they travel and are "
        "kept; int8, one byte an element, was measured to cost no score",
        choices=("int8", "float16", "float32"),
    )
    mkv_clip: float = _key(
        0.0,
        "largest norm of each vector of an MKV, in norms that are usual in the base model; 0: as "
        "it is",
        at_least=0,
    )
    mkv_noise: float = _key(
        0.0,
        "deviation of the Gaussian noise in each element of an MKV, in clip norms (needs "
        "mkv-clip); no lookup keys leave a node then; docs/security.md says what it costs",
        at_least=0,
    )
    contexts: int = _key(5, "sampled context prefixes beside the bare prompt", at_least=0)
    edit_batch: int = _key(
        0, "requests whose v* are optimised together; 0: as many as fit in memory", at_least=0
    )
    evaluate_every: int = _key(1, "evaluate after every so many slots; always last", at_least=1)
    metrics: str = _key(
        "basic",
        "basic (likelihoods and correct tokens), or full: before the first and after the last slot "
        "also what the model writes itself, and after the last one divergence and perplexity on "
        "neutral text",
        choices=("basic", "full"),
    )
    slot_timeout: float = _key(
        3600.0,
        "seconds to wait for the replies of one stage, in simulation for the next reply of one; "
        "the slow are left out",
        at_least=1,
    )
    output_dir: str = _key("", "run folder (absolute); empty: ~/fedit-runs/RUN-ID")
    resume: bool = _key(
        False, "go on with the unfinished run of output-dir; see fedit run --resume"
    )
    state_dir: str = _key(
        "", "folder of the nodes' ledgers (absolute); empty: nodes/ in the run folder"
    )
    federation: str = _key(
        "",
        "name of the folder under state-dir/NODE in which a node keeps its ledger; a run with the "
        "name of an earlier one goes on with its ledgers; `fedit run --superlink` makes up a new "
        "name per run; empty: state-dir/NODE itself",
    )
    pool_uri: str = _key("", "MKV pool: a folder or s3://...; empty: pool/ in the run folder")
    pool_index: str = _key(
        "none",
        "none (exact) or ivf: in a pool of 100,000 MKVs and more, reuse candidates and selection = "
        "top-k that is not centred come from an approximate index; majority and all stay exact",
        choices=("none", "ivf"),
    )
    work_cache: str = _key(
        "",
        "folder (absolute) in which optimised values v* and scores are kept and those of earlier "
        "runs found: exact, by hash, no text in it; a real node has its own or none; empty: none",
    )
    sealed: str = _key(
        "auto",
        "whether nodes seal what they send, so that the server can rank MKVs and not read them: "
        "auto (on real nodes, not in a simulation), on, off; nodes that average weights cannot",
        choices=("auto", "on", "off"),
    )
    sketch_width: int = _key(
        256,
        "sealed: numbers in the sketch by which the server compares vectors; more rank more "
        "exactly and tell more",
        at_least=16,
        at_most=4096,
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
        config = RunConfig(**check_keys(RunConfig, values, "run config"))
        config._check_together()
        return config

    def _check_together(self) -> None:
        if self.layers:
            parse_layers(self.layers)
        self._check_data()
        if self.mkv_noise and not self.mkv_clip:
            raise FedEditError(
                f"run config: mkv-noise = {self.mkv_noise:g} is counted in clip norms and needs "
                "mkv-clip, such as mkv-clip = 2.0"
            )
        if self.federation and not is_name(self.federation):
            raise FedEditError(f"run config: federation = {self.federation!r} must be {NAME_RULE}")
        if self.federation == "worker":
            raise FedEditError(
                "run config: federation = 'worker' is the folder of a node's resident process "
                "under state-dir/NODE; choose another name"
            )
        for key in ("output_dir", "state_dir", "data_path", "work_cache"):
            value = getattr(self, key)
            if key == "data_path" and value.startswith(HUB):
                continue
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

    def _check_data(self) -> None:
        if self.dataset != "demo" and not self.data_path:
            raise FedEditError(
                f"run config: dataset = {self.dataset} needs data-path: where the data is"
            )
        if self.dataset == "demo" and self.data_path:
            raise FedEditError(
                "run config: data-path is set, so dataset must be jsonl, counterfact or zsre"
            )
        if self.dataset == "demo" and self.partition != "file":
            raise FedEditError("run config: the demo data has one file a node: partition = file")
        if self.data_path.startswith(HUB) and self.partition == "file":
            raise FedEditError(
                "run config: partition = file needs a folder with one file a node, and data-path "
                f"= {self.data_path!r} is one data set; choose another partition"
            )
        if self.dataset == "zsre" and self.partition == "relation":
            raise FedEditError(
                "run config: partition = relation, but dataset = zsre names no relations; use "
                "partition = cluster"
            )

    @property
    def module_names(self) -> ModuleNames:
        """The module names that are given, for a model family that is not known."""
        fields = [field.name for field in dataclasses.fields(ModuleNames)]
        return ModuleNames(**{field: getattr(self, f"module_{field}") for field in fields})

    def as_dict(self) -> dict[str, ConfigValue]:
        """The configuration as key -> value, with every key."""
        return {key_name(field): getattr(self, field.name) for field in dataclasses.fields(self)}


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


def key_table() -> Table:
    """Every run-config key: key, default, type and range, meaning."""
    rows = []
    for field in dataclasses.fields(RunConfig):
        default = f'"{field.default}"' if isinstance(field.default, str) else str(field.default)
        if isinstance(field.default, bool):
            default = default.lower()
        rows.append((key_name(field), default, key_range(field), field.metadata["doc"]))
    return Table(("key", "default", "type, range", "meaning"), rows, code=("key", "default"))
