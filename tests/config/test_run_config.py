"""The run configuration: one list of keys, checked before anything else happens."""

import math
import tomllib
from pathlib import Path

import pytest

from fedit_app.config import documentation
from fedit_app.config.editing import layers_text, read_layers
from fedit_app.config.run_config import SUBJECTS, RunConfig
from fedit_app.config.settings import key_name, value_type
from fedit_app.support.errors import FedEditError

ROOT = Path(__file__).parents[2]
FIELDS = RunConfig.model_fields


def refusal(values: dict) -> str:
    with pytest.raises(FedEditError) as caught:
        RunConfig.parse(values)
    return str(caught.value)


# What repeats the classes


def test_pyproject_and_the_docs_are_written_from_the_classes():
    """After a change of a key: python -m fedit_app.config.documentation."""
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "run-config.md").read_text(encoding="utf-8")

    assert documentation.with_flower_defaults(pyproject) == pyproject
    assert page == documentation.run_config_page()


def test_flowers_defaults_are_the_defaults():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

    assert RunConfig.parse(pyproject["tool"]["flwr"]["app"]["config"]) == RunConfig()


def test_defaults_are_replaced_in_the_middle_of_a_file():
    text = "[a]\nb = 1\n\n[tool.flwr.app.config]\nold = 1\n\n[c]\nd = [\n  1,\n]\n"
    written = documentation.with_flower_defaults(text)

    parsed = tomllib.loads(written)
    assert parsed["tool"]["flwr"]["app"]["config"] == RunConfig().as_dict()
    assert (parsed["a"], parsed["c"]) == ({"b": 1}, {"d": [1]})


def test_every_key_is_documented_with_its_values():
    rows = documentation.key_table().rows

    assert sorted(str(row[0]) for row in rows) == sorted(map(key_name, FIELDS))
    assert all(len(str(cell)) > 0 for row in rows for cell in row)
    assert all(len(str(meaning)) > 10 for _, _, _, meaning in rows)


def test_every_subject_is_a_part_of_the_run_config():
    config = RunConfig(clamp=0.5, seed=3, top_k=7)
    for kind in SUBJECTS:
        part = config.part(kind)
        assert type(part) is kind
        assert {name: getattr(config, name) for name in kind.model_fields} == part.model_dump()


def test_the_configuration_survives_flower():
    values = {"layers": "4,6", "kl-weight": 0, "state-dir": "/s", "centred": True}
    config = RunConfig.parse(values)

    written = config.as_dict()
    assert RunConfig.parse(written) == config
    assert {type(value) for value in written.values()} <= {str, int, float, bool}
    assert written["layers"] == "4,6" and written["clamp"] == ""


# Values


def test_a_mistyped_key_is_refused_with_a_suggestion():
    assert "unknown key 'num-slot', did you mean 'num-slots'?" in refusal({"num-slot": 3})
    assert "unknown key 'num_slots', did you mean 'num-slots'?" in refusal({"num_slots": 3})


def test_every_problem_is_named_at_once():
    message = refusal({"frobnicate": 1, "top-k": 0, "device": True, "layers": "8-4"})

    assert all(key in message for key in ("frobnicate", "top-k", "device", "layers"))


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("num-slots", 3.5, "an integer >= 1"),
        ("num-slots", True, "an integer >= 1"),
        ("num-slots", 0, "an integer >= 1"),
        ("centred", "perhaps", "true or false"),
        ("centred", 2, "true or false"),
        ("clamp", True, "a number > 0"),
        ("clamp", "wide", "a number > 0"),
        ("model", True, "a string"),
        ("dataset", "imagenet", "one of demo, jsonl, counterfact, zsre, knowedit"),
        ("dirichlet-alpha", 0.0, "a number >= 0.001"),
        ("overlap", 1.5, "a number from 0 to 1"),
        ("seed", 2**31, "an integer from 0 to 2147483647"),
        ("norm-guard", -0.1, "a number >= 0"),
        ("slot-timeout", math.inf, "a number >= 1"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_right(key, value, told):
    assert f"{key} = {value!r} must be {told}" in refusal({key: value})


@pytest.mark.parametrize(
    "key",
    ["clamp", "learning-rate", "value-steps", "covariance-weight", "covariance-tokens", "l2"]
    + ["null-space-threshold", "edit-batch", "requests-per-slot"],
)
def test_zero_does_not_stand_for_the_default(key):
    assert f"{key} = 0 must be" in refusal({key: 0})
    assert "leave it out for" in refusal({key: 0})
    assert RunConfig.parse({key: ""}) == RunConfig()


@pytest.mark.parametrize("name", [n for n, f in FIELDS.items() if value_type(f) is float])
def test_no_number_may_be_nan(name):
    assert key_name(name) in refusal({key_name(name): math.nan})


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("slot-timeout", 20, 20.0),
        ("slot-timeout", "20", 20.0),
        ("num-slots", "4", 4),
        ("num-slots", 4.0, 4),
        ("centred", "True", True),
        ("centred", "false", False),
        ("federation", 2026, "2026"),
        ("layers", 4, (4,)),
        ("layers", "4", (4,)),
        ("layers", [4, 6], (4, 6)),
    ],
)
def test_a_value_of_another_type_counts_where_its_meaning_is_certain(key, value, meant):
    """Flower takes overrides of any type."""
    found = getattr(RunConfig.parse({key: value}), key.replace("-", "_"))
    assert found == meant and type(found) is type(meant)


@pytest.mark.parametrize(
    ("text", "layers"),
    [("4-8", (4, 5, 6, 7, 8)), ("4,6,8", (4, 6, 8)), (" 3 - 4 ", (3, 4)), ("5", (5,))],
)
def test_layers_syntax(text, layers):
    assert read_layers(text) == RunConfig.parse({"layers": text}).layers == layers
    assert read_layers(layers_text(layers)) == layers


@pytest.mark.parametrize(
    "text", ["8-4", "4,4", "6,4", "a", "4..8", "-1", "4-", "1-2,5", ",", True, 4.5, [6, 4]]
)
def test_layers_that_do_not_rise_are_refused(text):
    assert f"layers = {text!r} is not a range or list of rising layer numbers" in refusal(
        {"layers": text}
    )


@pytest.mark.parametrize("key", ["output-dir", "state-dir", "data-path", "work-cache", "pool-uri"])
def test_relative_paths_are_refused(key):
    values = {"dataset": "jsonl", "data-path": "/d", key: "runs/one"}
    assert f"{key} = 'runs/one' must be an absolute path" in refusal(values)


@pytest.mark.parametrize("uri", ["s3://bucket/pool", "/srv/pool"])
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


def test_settings_can_be_keys_of_a_cache():
    config = RunConfig(clamp=0.5)
    assert len({config, RunConfig.parse({"clamp": 0.5}), RunConfig()}) == 2
