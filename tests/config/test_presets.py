"""Every preset runs: one slot on a tiny model of its architecture, with data of its format."""

import json
import re
import tomllib
from pathlib import Path

import inprocess
import pytest
import tiny
from published import counterfact

from fedit_app.config.overrides import read_run_config
from fedit_app.config.run_config import RunConfig
from fedit_app.editing.workbench import latest_workbench
from fedit_app.support.errors import FedEditError

CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = sorted(CONFIGS.glob("**/*.toml"))
# A preset with another model names its architecture here.
FAMILIES = {
    "smollm2-135m": "llama",
    "EleutherAI/gpt-j-6b": "gptj",
    "EleutherAI/gpt-neox-20b": "gpt_neox",
    "meta-llama/Meta-Llama-3-8B-Instruct": "llama",
    "Qwen/Qwen2.5-7B-Instruct": "qwen2",
}
# What makes a run of a tiny model short; all else is the preset's.
SMALL = {
    "num-slots": 1,
    **tiny.RUN_CONFIG,
    "value-steps": 2,
}
CITIES = ["Bern", "Rome", "Oslo", "Cardiff", "Toronto", "London"]

every_preset = pytest.mark.parametrize("preset", PRESETS, ids=lambda file: file.stem)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Gives the folder of a tiny model of a family."""
    folder = tmp_path_factory.mktemp("models")
    return lambda family: str(
        folder / family if (folder / family).exists() else tiny.make_model(folder / family, family)
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Dataset -> a file as published, with two relations and two kinds of questions."""
    folder = tmp_path_factory.mktemp("data")
    records = [
        counterfact(
            *(number, ["{} is in the city of", "The language of {} is"][number % 2]),
            *(f"The museum {number}", CITIES[number], CITIES[-number - 1]),
            relation=["P131", "P37"][number % 2],
            generation_prompts=[f"The museum {number} is known for"],
        )
        for number in range(6)
    ]
    zsre = [
        {
            "subject": f"The {kind} {city}",
            "src": f"{question} The {kind} {city}?",
            "pred": "",
            "rephrase": f"{question} that {kind} in {city}?",
            "alt": "Paris",
            "answers": [city],
            "loc": "nq question: who made the museum",
            "loc_ans": "Ann",
            "cond": "",
        }
        for kind, question in (("museum", "Where is"), ("newspaper", "Who has published first"))
        for city in CITIES[:3]
    ]
    for name, found in {"counterfact": records, "zsre": zsre}.items():
        (folder / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")
    return {name: str(folder / f"{name}.json") for name in ("counterfact", "zsre")}


@pytest.mark.parametrize(
    "preset",
    [
        pytest.param(file, marks=() if file.stem == "demo" else pytest.mark.slow, id=file.stem)
        for file in PRESETS
    ],
)
def test_runs_for_one_slot(preset, models, data, tmp_path):
    values = read_run_config(preset, [])
    small = SMALL | {
        "model": models(FAMILIES[values["model"]]),
        "output-dir": str(tmp_path / "run"),
    }
    if values["dataset"] in data:
        small |= {"data-path": data[values["dataset"]], "requests-per-slot": 2}
    values |= small
    try:
        results, _ = inprocess.federate(values, 2)
    finally:
        latest_workbench.cache_clear()

    assert results["status"] == "completed"
    assert results["failed_nodes"] == []
    kept = {key: value for key, value in values.items() if key not in small}
    assert kept.items() <= results["config"].items()
    assert len(results["nodes"]) == 2
    for node in results["nodes"].values():
        assert node["own"]["count"] >= 2 and node["own"]["score"] is not None


@every_preset
def test_a_misspelt_key_would_be_noticed(preset):
    values = tomllib.loads(preset.read_text(encoding="utf-8"))
    for key in values:
        misspelt = {name + "x" if name == key else name: value for name, value in values.items()}
        with pytest.raises(FedEditError, match=f"'{key}x'"):
            RunConfig.parse(misspelt | {"data-path": "/data"})


@every_preset
def test_says_what_it_is_for_and_how_to_run_it(preset):
    head = re.match(r"(#.*\n)+", preset.read_text(encoding="utf-8"))[0]
    assert f"fedit run --config configs/{preset.name}" in head
    assert re.search(r"Needs .*\d GB", head)
    known = RunConfig().as_dict().keys()
    assert set(re.findall(r"-c ([a-z0-9-]+)=", head)) <= known


@pytest.mark.parametrize("preset", [file for file in PRESETS if file.stem.startswith("paper-")])
def test_the_papers_presets_have_its_settings(preset):
    config = RunConfig.parse(read_run_config(preset, ["data-path=/data"]))
    assert (config.num_slots, config.selection, config.signature) == (10, "majority", "v_star")
    assert (config.similarity_threshold, config.centred) == (0.4, False)
    partitions = {"counterfact": "relation", "zsre": "cluster"}
    assert config.partition == partitions[config.dataset]
    assert (config.reuse_threshold, config.stop_after, config.mkv_precision) == (0, 0, "float32")
    assert config.subject_weight == 0
    own = (config.layers, config.covariance_weight, config.learning_rate, config.value_steps)
    assert own == (None, None, None, None), "the defaults of model and editor hold, also for PMET"


def test_there_are_the_papers_presets():
    names = {file.stem for file in PRESETS}
    assert {"demo", "smollm2-counterfact", "smollm2-zsre"} <= names
    assert {f"paper-{m}-{d}" for m in ("gptj", "neox") for d in ("counterfact", "zsre")} <= names
