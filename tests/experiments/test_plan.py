"""What the command line asks for, as runs; and what a folder was begun with."""

import json

import pytest

from fedit_app.experiments.baselines import BASELINES
from fedit_app.experiments.field import field
from fedit_app.experiments.plan import (
    Axis,
    joined,
    load_plan,
    locked,
    make_plan,
    parse_axis,
    save_plan,
)
from fedit_app.experiments.variants import Variant, parse_variants
from fedit_app.server.strategies import STRATEGIES
from fedit_app.support.errors import FedEditError


def plan(folder, values=None, nodes=4, strategies="fedit", editors="memit", seeds="1", axis=None):
    return make_plan(folder, values or {}, nodes, strategies, editors, seeds, axis)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fedit", [Variant("fedit", "fedit")]),
        (" fedit , local", [Variant("fedit", "fedit"), Variant("local", "local")]),
        (
            "fedit[selection=majority,centred=true],FedMedian",
            [
                Variant(
                    "fedit[selection=majority,centred=true]",
                    "fedit",
                    {"selection": "majority", "centred": True},
                ),
                Variant("FedMedian", "FedMedian"),
            ],
        ),
        ("memit[layers=1,2,top-k=3]", [Variant(..., "memit", {"layers": "1,2", "top-k": 3})]),
    ],
)
def test_variants(text, expected):
    found = parse_variants(text, "--strategies", ["seed"])
    assert [(v.name, v.changes) for v in found] == [(v.name, v.changes) for v in expected]
    assert [v.label for v in found if v.label in text] == [v.label for v in found]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not a list of names"),
        ("fedit,,local", "not a list of names"),
        ("fedit[selection=all", "not a list of names"),
        ("fedit]", "not a list of names"),
        ("fedit,fedit", "fedit is given twice"),
        ("fedit[selection]", r"write NAME\[KEY=VALUE"),
        ("fedit[]", r"write NAME\[KEY=VALUE"),
        ("fedit[seed=2]", "seed cannot be changed here"),
    ],
)
def test_lists_that_are_none(text, told):
    with pytest.raises(FedEditError, match=f"--strategies: .*{told}"):
        parse_variants(text, "--strategies", ["seed"])


def test_every_strategy_with_every_editor_and_seed(tmp_path):
    made = plan(
        tmp_path, {"num-slots": 2}, 4, "fedit[selection=majority],local", "memit,pmet", "1,3"
    )
    runs = made.runs
    assert [(r.seed, r.editor, r.strategy.partition("[")[0]) for r in runs] == [
        (seed, editor, strategy)
        for seed in (1, 3)
        for editor in ("memit", "pmet")
        for strategy in ("fedit", "local")
    ]
    assert runs[0].name == "fedit-selection-majority_memit_seed-1"
    first = runs[0].values
    assert (first["strategy"], first["selection"], first["seed"]) == ("fedit", "majority", 1)
    assert runs[1].values["selection"] == "all"
    assert first["output-dir"] == str(tmp_path / runs[0].name)
    assert {r.values["work-cache"] for r in runs} == {str(tmp_path / "work-cache")}
    assert {r.values["edit-batch"] for r in runs} == {1} and {r.nodes for r in runs} == {4}


def test_what_is_shared_can_be_chosen(tmp_path):
    made = plan(tmp_path, {"edit-batch": 8, "work-cache": ""})
    assert (made.config["edit-batch"], made.config["work-cache"]) == (8, "")


@pytest.mark.parametrize(
    ("axis", "nodes"),
    [("overlap=0,0.25", [4, 4]), ("nodes=2,8", [2, 8]), ("layers=1-2,2-3", [4, 4])],
)
def test_a_run_for_each_value_of_an_axis(tmp_path, axis, nodes):
    axis = parse_axis(axis)
    made = plan(tmp_path, nodes=None if axis.key == "nodes" else 4, axis=axis)
    assert [run.value for run in made.runs] == list(axis.values)
    assert [run.nodes for run in made.runs] == nodes
    if axis.key != "nodes":
        assert [run.values[axis.key] for run in made.runs] == list(axis.values)
    assert len({run.name for run in made.runs}) == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("overlap", "write KEY=VALUE,VALUE"),
        ("overlap=", "write KEY=VALUE,VALUE"),
        ("overlap=0,,1", "write KEY=VALUE,VALUE"),
        ("overlap=0,0", "twice"),
        ("seed=1,2", "cannot be an axis"),
        ("colour=1", "neither a run-config key nor nodes"),
        ("nodes=2,many", "numbers of nodes"),
        ("nodes=0", "numbers of nodes"),
    ],
)
def test_axes_that_are_none(text, told):
    with pytest.raises(FedEditError, match=f"--axis {text}: .*{told}"):
        parse_axis(text)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"seeds": "1,x"}, "--seeds: '1,x'"),
        ({"seeds": "1,1"}, "--seeds: .*twice"),
        ({"values": {"state-dir": "/srv"}}, "state-dir cannot be set here"),
        ({"values": {"clamp": -1}}, "clamp"),
        ({"strategies": "fedit[clamp=-1]"}, r"fedit\[clamp=-1\], memit, seed 1: .*clamp"),
        ({"strategies": "fedit[overlap=0.5]", "axis": Axis("overlap", (0,))}, "overlap cannot be"),
        ({"axis": Axis("nodes", (2,))}, "--nodes 4 cannot be given together"),
        ({"strategies": "fedit[clamp=0.5],fedit[clamp=0-5]"}, "clamp"),
    ],
)
def test_plans_that_are_refused(tmp_path, given, told):
    with pytest.raises(FedEditError, match=told):
        plan(tmp_path, **given)


def test_two_runs_may_not_share_a_folder(tmp_path):
    with pytest.raises(FedEditError, match="two runs would have the folder"):
        plan(tmp_path, strategies="fedit[layers=1,3],fedit[layers=1-3]")


def test_a_plan_is_read_back(tmp_path):
    axis = Axis("overlap", (0, 0.25))
    made = plan(tmp_path, {}, 3, "fedit[selection=top-k,top-k=3],local", "memit", "1,2", axis)
    save_plan(made)
    assert load_plan(tmp_path) == made and load_plan(tmp_path).runs == made.runs


def test_a_comparison_may_grow(tmp_path):
    save_plan(plan(tmp_path, strategies="fedit,local", seeds="1"))
    grown = joined(plan(tmp_path, strategies="local,central", editors="pmet", seeds="2"))
    assert [variant.label for variant in grown.strategies] == ["fedit", "local", "central"]
    assert [variant.label for variant in grown.editors] == ["memit", "pmet"]
    assert grown.seeds == (1, 2)


def test_other_settings_are_named(tmp_path):
    save_plan(plan(tmp_path, {"clamp": 0.5, "device": "cpu"}, axis=Axis("overlap", (0, 1))))
    other = plan(tmp_path, {"clamp": 0.6, "layers": "4-8"}, axis=Axis("top-k", (1,)), nodes=2)
    with pytest.raises(FedEditError) as caught:
        joined(other)
    assert "clamp = 0.6 (begun with 0.5), layers = '4-8' (begun with '')" in str(caught.value)
    assert "--nodes 2 (begun with 4), --axis top-k (begun with overlap)" in str(caught.value)
    assert "device" not in str(caught.value)


def test_a_key_that_is_newer_than_the_folder(tmp_path):
    made = plan(tmp_path)
    older = {key: value for key, value in made.config.items() if key != "norm-guard"}
    save_plan(made.model_copy(update={"config": older}))
    assert joined(made).config == made.config
    with pytest.raises(FedEditError, match=r"norm-guard = 3.0 \(begun with 2.0\)"):
        joined(plan(tmp_path, {"norm-guard": 3.0}))


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("words")
    with pytest.raises(FedEditError, match="is not empty and holds no comparison"):
        joined(plan(tmp_path))
    with pytest.raises(FedEditError, match="plan.json: cannot be read"):
        load_plan(tmp_path)
    with pytest.raises(FedEditError, match="is a file"):
        joined(plan(tmp_path / "thesis.txt"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": 2}, "invalid version: 2 found; Input should be 1"),
        ({"seeds": [1, "x"]}, "invalid seeds.1: 'x' found"),
    ],
)
def test_a_plan_of_another_version_is_not_guessed_at(tmp_path, change, told):
    save_plan(plan(tmp_path))
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(FedEditError, match=f"plan.json: {told}"):
        load_plan(tmp_path)


def test_one_process_at_a_time(tmp_path):
    with locked(tmp_path / "all"):
        joined(plan(tmp_path / "all"))
        with pytest.raises(FedEditError, match="another process is working on"):
            with locked(tmp_path / "all"):
                pass
    with locked(tmp_path / "all"):
        pass
    with pytest.raises(OSError, match="within"):
        with locked(tmp_path / "all"):
            raise OSError("within")


def test_a_star_has_every_strategy_and_every_editor_once_with_the_first_of_the_other(tmp_path):
    plan = make_plan(
        tmp_path, {}, 2, "fedit,local", "memit,pmet", "1,2", baselines="ft-m,lora", star=True
    )
    methods = [(run.strategy, run.editor) for run in plan.runs if run.seed == 2]
    assert methods == [
        ("fedit", "memit"),
        ("local", "memit"),
        ("fedit", "pmet"),
        ("ft-m", ""),
        ("lora", ""),
    ]
    baseline = plan.runs[-1]
    assert baseline.is_baseline and baseline.title == "lora, seed 2"
    assert baseline.name == "lora_baseline_seed-2" and baseline.values["strategy"] == "lora"
    save_plan(plan)
    assert load_plan(tmp_path) == plan


def test_a_baseline_that_is_none_is_refused(tmp_path):
    with pytest.raises(FedEditError, match="'serac' must be one of ft-m, locft-bf, ft-fedavg"):
        make_plan(tmp_path, {}, 2, "fedit", "memit", "1", baselines="serac")


def test_the_field_is_compared_with_fedit_and_memit():
    found = {
        option: [variant.name for variant in parse_variants(text, option, ())]
        for option, text in field().items()
        if option != "metrics"
    }
    assert (found["strategies"][0], found["editors"][0]) == ("fedit", "memit")
    assert found["strategies"] == list(STRATEGIES)
    assert found["baselines"] == [
        name for name in BASELINES if name != "mend" and "fedprox" not in name
    ]
