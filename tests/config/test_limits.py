"""A server chooses a run's settings, and cannot loosen a node's limits by any of them."""

import inprocess
import pytest
import tiny

from fedit_app.config.limits import BOUNDED, Limits, site_limits
from fedit_app.config.node_config import node_run_config
from fedit_app.config.run_config import RunConfig, field_names
from fedit_app.config.settings import key_name
from fedit_app.node.participant import Participant
from fedit_app.support.errors import FedEditError

SIMULATION = "harmless: deals out data in a simulation"
OWN = "node.toml: the node's own value holds"
SERVER = "harmless: what the server does by itself"
COST = "harmless: the time of own edits, which other keys bound"
OWN_VALUES = "harmless: how own values are learned; the clamp bounds them"
POLICY = "policy: unsealed"
MODULES = "harmless: where in the node's own model its modules are; it is tried when it is loaded"
FOLDER = "harmless: a name, no path; the ledger of each is a folder of its own"

# Key -> why it cannot loosen anything at a node; those with limits are in `OUTSIDE`.
KEYS = {
    "seed": "harmless: a number",
    "strategy": POLICY,
    "slot-timeout": SERVER,
    "stage-share": SERVER,
    "resume": SERVER,
    **dict.fromkeys(("device", "dtype", "device-map"), OWN),
    **{f"module-{name}": MODULES for name in ("layers", "mlp-output", "final-norm")},
    **{f"module-{name}": MODULES for name in ("attention-output", "post-norm")},
    **dict.fromkeys(("dataset", "data-path", "partition"), OWN),
    "on-bad-request": "harmless: what is left out of own requests",
    "requests-per-slot": COST,
    "embedding-model": SIMULATION,
    "dirichlet-alpha": SIMULATION,
    "overlap": SIMULATION,
    "similar-share": SIMULATION,
    **{f"overlap-{name}": SIMULATION for name in ("clients", "form", "slot", "conflicts")},
    "editor": "harmless: one of those installed on the node",
    "layers": "harmless: layers of the node's own model; the screening is in units of each",
    **dict.fromkeys(("learning-rate", "value-steps", "stop-after", "weight-decay"), OWN_VALUES),
    **dict.fromkeys(("kl-weight", "subject-weight", "norm-guard"), OWN_VALUES),
    "mkv-precision": "harmless: how MKVs are rounded",
    "chat-contexts": COST,
    "upkeep": COST,
    "edit-batch": COST,
    **dict.fromkeys(("similarity-threshold", "signature", "centred"), SERVER),
    **dict.fromkeys(("top-k", "max-uploads-per-slot", "evaluate-every", "pool-uri"), SERVER),
    "reuse-threshold": "harmless: an MKV fulfils a request only if it says its target",
    "combination": "harmless: mean, or median, which is the stricter one",
    "sealed": POLICY,
    **dict.fromkeys(("metrics", "evaluate-sample"), "harmless: what is measured"),
    "output-dir": SERVER,
    "state-dir": OWN,
    "federation": FOLDER,
    "work-cache": OWN,
}
# Field -> values outside the limits of a new node.
OUTSIDE = {
    "num_slots": [1001],
    "model": ["/etc/model", "hub/model"],
    "covariance_source": ["/etc/passwd", "hub:some/data"],
    "covariance_tokens": [9999, 10**8],
    "covariance_weight": [1e-9, 99.0],
    "max_condition": [1e10],
    "clamp": [1.1, 1e9],
    "null_space_threshold": [1e9],
    "l2": [1e-9],
    "same_key_threshold": [0.5],
    "contexts": [51],
    "selection": ["personal"],
    "conflict_policy": ["newest", "majority"],
    "accept_quorum": [1],
    "compose_rounds": [100],
    "compose_steps": [100],
    "sketch_width": [512],
}


def test_every_key_of_a_run_is_harmless_or_bounded(record_property):
    """Whoever adds a key says here why a server cannot loosen a node's limits by it."""
    bounded = {key_name(field) for field in BOUNDED}
    assert KEYS.keys() | bounded == {key_name(field) for field in field_names()}
    record_property("keys", len(field_names()))
    assert not KEYS.keys() & bounded
    limits = {limit for names in BOUNDED.values() for limit in names}
    assert limits == set(Limits.model_fields) and OUTSIDE.keys() == BOUNDED.keys()


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in OUTSIDE.items() for value in values]
)
def test_a_run_outside_the_limits_is_refused_by_the_keys_name(field, value):
    limits = Limits(least_accept_quorum=2)
    inside = RunConfig(accept_quorum=2)
    limits.check(inside, own_model=False)
    with pytest.raises(FedEditError) as refused:
        limits.check(inside.model_copy(update={field: value}), own_model=False)
    told = str(refused.value)
    assert f"{key_name(field)} = " in told and "[limits]" in told
    assert any(key_name(limit) in told for limit in BOUNDED[field])


def test_the_defaults_of_a_run_are_within_those_of_a_node():
    Limits().check(RunConfig(), own_model=False)


def test_a_model_of_the_nodes_own_is_no_affair_of_the_run():
    Limits().check(RunConfig(model="/models/mine"), own_model=True)


def test_what_a_node_allows_is_allowed():
    allowed = Limits(conflict_policies=("own-wins", "newest"), model_of_run=True, most_clamp=4.0)
    run = RunConfig(conflict_policy="newest", model="hub/model", clamp=4.0)
    allowed.check(run, own_model=False)


def test_the_values_of_the_nodes_own_hold_whatever_the_run_says():
    own = {"name": "a", "data-path": "/own/a.jsonl", "state-dir": "/own", "model": "/own/model"}
    own |= {"device": "cpu", "dtype": "float32"}
    run = {"dataset": "counterfact", "data-path": "/etc", "state-dir": "/etc", "device": "cuda"}
    run |= {"dtype": "float16", "device-map": "auto", "work-cache": "/etc", "partition": "random"}
    found = node_run_config(RunConfig().as_dict() | run, own)
    assert found["data-path"] == "/own/a.jsonl" and found["state-dir"] == "/own"
    assert (found["dataset"], found["partition"]) == ("jsonl", "file")
    assert (found["device"], found["dtype"]) == ("cpu", "float32")
    assert found["device-map"] == found["work-cache"] == ""


def test_a_node_refuses_before_it_loads_anything(tmp_path):
    file = tmp_path / "node.toml"
    file.write_text("[limits]\nleast-covariance-weight = 50.0\n")
    node = inprocess.real_node("bank", tiny.DEMO / "bank.jsonl") | {"node-file": str(file)}
    config = RunConfig(covariance_weight=1.0, model="/nowhere", conflict_policy="newest")
    with pytest.raises(FedEditError) as refused:
        Participant(config, node, inprocess.RUN_ID)
    told = str(refused.value)
    assert "covariance-weight = 1.0, but least-covariance-weight = 50.0" in told
    assert "model = '/nowhere', but model-of-run = false" in told
    assert "conflict-policy = 'newest', but conflict-policies = own-wins" in told


@pytest.mark.parametrize(
    ("text", "told"),
    [("limits = 3\n", "limits must be a table"), ("[limits]\nmost-slot = 3\n", "most-slots")],
)
def test_wrong_limits_are_refused(tmp_path, text, told):
    file = tmp_path / "node.toml"
    file.write_text(text)
    with pytest.raises(FedEditError, match=told):
        site_limits({"node-file": str(file)})
    assert site_limits({}) is None
