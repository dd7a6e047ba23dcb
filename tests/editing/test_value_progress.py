"""Who waits for many values hears how far they are."""

from contextlib import closing

import pytest
import tiny
from editing.cases import EASY, SETTINGS, TEMPLATES

from fedit_app.editing import value_progress
from fedit_app.editing.editors import editor_named
from fedit_app.editing.optimise import optimise_values
from fedit_app.editing.value_progress import ValueProgress


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    now = [0.0]
    monkeypatch.setattr(value_progress.time, "monotonic", lambda: now[0])
    return now


def said(log):
    return [record.getMessage() for record in log.records]


def test_one_batch_of_many_values_tells_how_far_it_is_every_ten_seconds(clock, log):
    with closing(ValueProgress(50, 25)) as progress:
        progress.begin(32)
        for step, done in ((1, 0), (2, 0), (3, 4), (4, 5), (5, 31)):
            clock[0] += 4
            progress.at_step(step, done)
        progress.at_step(6, 32)
        progress.end()
        progress.begin(18)
        clock[0] += 10
        progress.at_step(1, 2)
    assert said(log) == [
        "v*: 4 of 50 values optimised; 28 more are at step 3 of 25",
        "v*: 32 of 50 values optimised",
        "v*: 34 of 50 values optimised; 16 more are at step 1 of 25",
    ]


def test_every_step_of_the_optimisation_is_heard(monkeypatch, log):
    monkeypatch.setattr(value_progress, "_PAUSE", 0)
    model = tiny.editable()
    site = editor_named("memit").site(model, SETTINGS)
    found = optimise_values(model, EASY, TEMPLATES, site, SETTINGS)
    assert int(found.steps.max()) == SETTINGS.steps
    lines = said(log)
    assert len(lines) == SETTINGS.steps and "more are at step 1 of 12" in lines[0]
    assert lines[-1] == "v*: 3 of 3 values optimised"
