"""Configurations of FedEdit 0.1.0: old run folders stay readable."""

import pytest

from fedit_app.config.retired import modernised
from fedit_app.config.run_config import RunConfig
from fedit_app.support.errors import FedEditError

# What 0.1.0 wrote into every config.toml and origin.toml, of what has changed since.
OLD = {
    "requests-per-slot": 0,
    "covariance-weight": 0.0,
    "covariance-tokens": 0,
    "layers": "",
    "learning-rate": 0.0,
    "value-steps": 0,
    "kl-weight": -1.0,
    "clamp": 0.0,
    "null-space-threshold": 0.0,
    "l2": 0.0,
    "edit-batch": 0,
    "mkv-clip": 0.0,
    "mkv-noise": 0.0,
    "pool-index": "none",
}


def test_what_stood_for_the_default_is_the_default():
    assert RunConfig.parse(OLD) == RunConfig(subject_weight=0.0, chat_contexts=0)


def test_what_was_given_is_kept():
    given = {"layers": "1-2", "kl-weight": 0.0, "clamp": 0.5, "stop-after": 0}
    later = {"subject-weight": 0.0, "chat-contexts": 0}
    assert RunConfig.parse(OLD | given) == RunConfig.parse(later | given)


def test_a_term_that_came_later_is_off_and_can_be_switched_on():
    """Else the ledgers of 0.1.0 would have another fingerprint."""
    assert RunConfig.parse(OLD).subject_weight == 0
    assert RunConfig.parse(OLD | {"subject-weight": 2.0}).subject_weight == 2


@pytest.mark.parametrize(
    ("key", "value"), [("mkv-clip", 2.0), ("mkv-noise", 0.1), ("pool-index", "ivf")]
)
def test_a_retired_key_that_changed_something_is_refused(key, value):
    with pytest.raises(FedEditError, match=f"{key} = {value!r} is no longer supported: "):
        RunConfig.parse(OLD | {key: value})


def test_a_new_configuration_is_left_alone():
    values = {"clamp": 0, "kl-weight": -1}
    assert modernised(values) == values
