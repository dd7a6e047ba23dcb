"""The run configuration: one list of keys, checked before anything else happens."""

import dataclasses
import math
import tomllib
from pathlib import Path

import pytest

from fedit_app.config.keys import key_name
from fedit_app.config.run_config import RunConfig, key_table, parse_layers
from fedit_app.support.errors import FedEditError

ROOT = Path(__file__).parents[2]
FIELDS = dataclasses.fields(RunConfig)


def refusal(values: dict) -> str:
    with pytest.raises(FedEditError) as caught:
        RunConfig.parse(values)
    return str(caught.value)


def test_pyproject_repeats_every_default():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    written = project["tool"]["flwr"]["app"]["config"]

    expected = RunConfig().as_dict()
    assert written == expected
    assert {k: type(v) for k, v in written.items()} == {k: type(v) for k, v in expected.items()}
    assert RunConfig.parse(written) == RunConfig()


def test_defaults_pass_their_own_checks():
    assert RunConfig.parse({}) == RunConfig.parse(RunConfig().as_dict()) == RunConfig()


def test_every_key_is_described():
    rows = {str(row[0]): " ".join(map(str, row)) for row in key_table().rows}

    assert list(rows) == [key_name(field) for field in FIELDS]
    for field in FIELDS:
        assert len(field.metadata["doc"]) > 10
        assert field.metadata["doc"] in rows[key_name(field)]
        assert all(choice in rows[key_name(field)] for choice in field.metadata["choices"])


def test_a_mistyped_key_is_refused_with_a_suggestion():
    message = refusal({"num-slot": 3})

    assert "'num-slot'" in message
    assert "'num-slots'" in message


def test_every_problem_is_named_at_once():
    message = refusal({"frobnicate": 1, "top-k": 0, "device": 3})

    assert all(key in message for key in ("frobnicate", "top-k", "device"))


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("num-slots", "3", "int"),
        ("num-slots", 3.0, "int"),
        ("num-slots", True, "int"),
        ("centred", 1, "bool"),
        ("clamp", "0.5", "float"),
        ("clamp", True, "float"),
        ("model", 7, "str"),
        ("dataset", "imagenet", "demo, jsonl, counterfact, zsre"),
        ("partition", "iid", "file, random, relation, cluster, dirichlet"),
        ("dirichlet-alpha", 0.0, "at least 0.001"),
        ("overlap", 1.5, "at most 1"),
        ("overlap", -0.1, "at least 0"),
        ("overlap-clients", 0, "at least 1"),
        ("overlap-form", "copy", "verbatim, paraphrase"),
        ("overlap-slot", "next", "same, later"),
        ("overlap-conflicts", 2, "at most 1"),
        ("selection", "best", "majority, top-k, all, none"),
        ("signature", "value", "v_star, delta, key"),
        ("dtype", "int8", "float32"),
        ("num-slots", 0, "at least 1"),
        ("seed", -1, "at least 0"),
        ("seed", 2**31, "at most"),
        ("reuse-threshold", 1.01, "at most 1"),
        ("similarity-threshold", -1.5, "at least -1"),
        ("value-steps", 1001, "at most 1000"),
        ("kl-weight", -1.5, "at least -1"),
        ("norm-guard", -0.1, "at least 0"),
        ("null-space-threshold", -0.1, "at least 0"),
        ("l2", -1, "at least 0"),
        ("max-condition", 999, "at least 1000"),
        ("slot-timeout", 0.5, "at least 1"),
        ("evaluate-every", 0, "at least 1"),
        ("clamp", math.nan, "finite"),
        ("similarity-threshold", math.nan, "finite"),
        ("learning-rate", math.inf, "finite"),
    ],
)
def test_a_wrong_value_is_refused_by_name(key, value, told):
    message = refusal({key: value})

    assert key in message
    assert told in message


@pytest.mark.parametrize("field", FIELDS, ids=key_name)
def test_no_number_may_be_nan(field):
    if field.type == "float":
        assert key_name(field) in refusal({key_name(field): math.nan})


def test_a_whole_number_serves_as_a_float():
    config = RunConfig.parse({"slot-timeout": 20})

    assert config.slot_timeout == 20.0
    assert type(config.slot_timeout) is float


@pytest.mark.parametrize(
    ("text", "layers"),
    [("4-8", (4, 5, 6, 7, 8)), ("4,6,8", (4, 6, 8)), (" 3 - 4 ", (3, 4)), ("5", (5,))],
)
def test_layers_syntax(text, layers):
    assert parse_layers(text) == layers
    assert RunConfig.parse({"layers": text}).layers == text


@pytest.mark.parametrize("text", ["8-4", "4,4", "6,4", "a", "4..8", "-1", "4-", "1-2,5", ","])
def test_layers_that_do_not_rise_are_refused(text):
    message = refusal({"layers": text})

    assert "layers" in message
    assert repr(text) in message


@pytest.mark.parametrize("key", ["output-dir", "state-dir", "data-path", "pool-uri"])
def test_relative_paths_are_refused(key):
    message = refusal({key: "runs/one", "dataset": "jsonl"} | {"data-path": "/d", key: "runs/one"})

    assert key in message
    assert "absolute" in message


@pytest.mark.parametrize("uri", ["s3://bucket/pool", "/srv/pool", ""])
def test_a_pool_may_be_a_folder_or_object_storage(uri):
    assert RunConfig.parse({"pool-uri": uri}).pool_uri == uri


def test_data_may_be_on_the_hub():
    values = {"dataset": "zsre", "data-path": "hub:owner/name", "partition": "cluster"}
    assert RunConfig.parse(values).data_path == "hub:owner/name"


@pytest.mark.parametrize(
    "values",
    [
        {"dataset": "jsonl"},
        {"dataset": "demo", "data-path": "/data"},
        {"dataset": "demo", "partition": "random"},
        {"dataset": "counterfact"},
        {"dataset": "jsonl", "data-path": "hub:owner/name"},
        {"dataset": "zsre", "data-path": "/d", "partition": "relation"},
    ],
)
def test_data_settings_that_contradict_each_other_are_refused(values):
    message = refusal(values)

    assert any(word in message for word in ("dataset", "demo", "data set"))
    assert "data-path" in message or "partition" in message
