"""Hyperparameters: given values win, then the editor's own, then the model's."""

import dataclasses

import pytest
import tiny

from fedit_app.config.run_config import RunConfig
from fedit_app.editing.settings import EditSettings, edit_settings, run_settings
from fedit_app.models.defaults import model_defaults
from fedit_app.support.errors import FedEditError

GPTJ = ("gptj", 28, 4096)
SMOLLM2 = ("llama", 30, 576)

OTHER_VALUES = {
    "layers": (1, 3),
    "covariance_weight": 1.5,
    "learning_rate": 0.125,
    "steps": 7,
    "stop_after": 9,
    "weight_decay": 0.75,
    "kl_weight": 0.25,
    "subject_weight": 0.875,
    "clamp": 0.375,
    "norm_guard": 3.5,
    "max_condition": 5e5,
    "null_space_threshold": 0.5,
    "l2": 4.5,
    "batch": 6,
}


def test_settings_take_the_defaults_of_the_model():
    known, settings = model_defaults(*SMOLLM2).values, edit_settings(*SMOLLM2, steps=9)
    for name in ("layers", "covariance_weight", "learning_rate", "clamp", "kl_weight"):
        assert getattr(settings, name) == getattr(known, name)
    assert settings.steps == 9
    unknown = edit_settings("gpt2", tiny.LAYERS, tiny.D_MODEL)
    assert unknown.layers[-1] <= tiny.LAYERS - 2


def test_an_editors_own_paper_wins_over_the_model():
    memit, pmet = edit_settings(*GPTJ), edit_settings(*GPTJ, "pmet")
    assert (memit.covariance_weight, memit.learning_rate, memit.steps) == (15000.0, 0.5, 25)
    assert (memit.kl_weight, memit.clamp) == (0.0625, 0.75)
    assert (pmet.covariance_weight, pmet.learning_rate, pmet.steps) == (6000.0, 0.2, 30)
    assert (pmet.kl_weight, pmet.clamp) == (1.0, 0.75)
    assert pmet.layers == memit.layers == (3, 4, 5, 6, 7, 8)
    alphaedit = edit_settings("llama", 32, 4096, "alphaedit")
    assert (alphaedit.null_space_threshold, alphaedit.l2) == (0.02, 10.0)


@pytest.mark.parametrize("editor", ["memit", "pmet"])
def test_what_is_given_wins(editor):
    assert edit_settings(*GPTJ, editor, **OTHER_VALUES) == EditSettings(**OTHER_VALUES)


def test_none_is_not_given():
    nothing = dict.fromkeys(OTHER_VALUES)
    assert edit_settings(*GPTJ, "pmet", **nothing) == edit_settings(*GPTJ, "pmet")


@pytest.mark.parametrize("editor", ["memit", "pmet"])
def test_a_run_config_without_values_takes_the_defaults(editor):
    config = RunConfig.parse({"editor": editor})
    assert run_settings(config, *GPTJ) == edit_settings(*GPTJ, editor)


def test_every_setting_can_be_given_in_the_run_config():
    values = {
        "value-steps" if name == "steps" else name.replace("_", "-"): value
        for name, value in OTHER_VALUES.items()
    }
    values |= {"layers": "1,3", "edit-batch": values.pop("batch"), "editor": "pmet"}
    assert run_settings(RunConfig.parse(values), *GPTJ) == EditSettings(**OTHER_VALUES)


def test_zeros_that_mean_something_are_kept():
    zeros = ("kl-weight", "subject-weight", "weight-decay", "norm-guard", "stop-after")
    settings = run_settings(RunConfig.parse({key: 0 for key in zeros}), *GPTJ)
    assert [settings.kl_weight, settings.subject_weight, settings.weight_decay] == [0, 0, 0]
    assert [settings.norm_guard, settings.stop_after] == [0, 0]


def test_the_digest_tells_settings_apart_but_not_the_batch_of_a_node():
    base = edit_settings(*SMOLLM2)
    fields = {field.name for field in dataclasses.fields(EditSettings)}
    assert fields == set(OTHER_VALUES)
    digests = {
        name: dataclasses.replace(base, **{name: value}).digest()
        for name, value in OTHER_VALUES.items()
    }
    assert digests.pop("batch") == base.digest() == edit_settings(*SMOLLM2).digest()
    assert len({base.digest(), *digests.values()}) == 1 + len(digests)


def test_the_digests_of_earlier_versions_hold():
    """An MKV's fingerprint rests on it: another digest locks ledgers and pools out.

    These had no term that keeps the subject's name.
    """
    assert edit_settings(*SMOLLM2, subject_weight=0.0).digest() == "1607ccbea87bbe7b"
    assert edit_settings(*GPTJ, "pmet", subject_weight=0.0).digest() == "47e98012ec19c285"


def test_a_layer_with_nothing_above_it_cannot_be_edited():
    with pytest.raises(FedEditError, match="layers: 4 is out of range, the model has 5 layers"):
        edit_settings("llama", 5, 16, layers=(3, 4))
    config = RunConfig.parse({"layers": "27"})
    with pytest.raises(FedEditError, match="layers: 27 is out of range"):
        run_settings(config, *GPTJ)
