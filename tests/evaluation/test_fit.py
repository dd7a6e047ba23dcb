"""What a model cannot take is said before any dear work, and never quietly half done."""

import pytest
import tiny
from editing.cases import ODD, REQUESTS, TEMPLATES

from fedit_app.evaluation.fit import LONGEST_TARGET, misfits, that_fit, warn_of_long_targets
from fedit_app.facts.request import EditRequest
from fedit_app.support.errors import FedEditError

POSITIONS = 256  # of the tiny models


def request(**changes):
    fields = {"id": "a", "subject": "Reuters", "prompt": "{} is in", "target_new": "London"}
    return EditRequest(**(fields | changes))


MISFITS = {
    "a target that is not learned whole": (
        {"target_new": "of " * LONGEST_TARGET + "London"},
        "target_new has ",
    ),
    "a prompt longer than the model reads": (
        {"prompt": "of " * POSITIONS + "{} is in"},
        f"this model reads {POSITIONS}",
    ),
    "a prompt too long with its contexts": (
        {"prompt": "of " * (POSITIONS - 8) + "{} is in"},
        "of contexts; this model reads",
    ),
    "a paraphrase": ({"paraphrase_prompts": ("of " * POSITIONS,)}, "paraphrase_prompts needs"),
    "a neighbour with its target": (
        {
            "neighborhood_prompts": ("of " * (POSITIONS - 1) + "of",),
            "neighborhood_targets": ("London",),
        },
        "neighborhood_prompts needs",
    ),
    "an implication": (
        {"portability_prompts": ("of " * POSITIONS,), "portability_targets": ("x",)},
        "portability_prompts needs",
    ),
    "the other way round": ({"reversed_prompt": "{}" + " of" * POSITIONS}, "reversed_prompt needs"),
    "a subject prompt": ({"subject_prompts": ("of " * POSITIONS,)}, "subject_prompts needs"),
    "no room for free text": (
        {"generation_prompts": ("of " * (POSITIONS - 50),)},
        "generation_prompts needs",
    ),
}


@pytest.mark.parametrize(("changes", "told"), MISFITS.values(), ids=MISFITS)
def test_what_does_not_fit_is_named_by_field_and_number(changes, told):
    model = tiny.editable("gpt2")
    (misfit,) = misfits(model, [request(), request(**changes)], TEMPLATES)
    assert told in misfit.reason
    assert "London" not in misfit.reason and "Reuters" not in misfit.reason


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom"])
def test_ordinary_requests_fit(family):
    assert not misfits(tiny.editable(family), REQUESTS + ODD, TEMPLATES)
    assert misfits(tiny.editable(family), [], TEMPLATES) == []


def test_targets_that_are_often_not_learned_whole_are_named(caplog):
    model = tiny.editable()
    long = [request(id=f"r{number}", target_new="of " * 14) for number in range(7)]
    warn_of_long_targets(model, [request(), *long])
    (line,) = caplog.messages
    assert line.startswith("7 targets have more than 12 tokens")
    assert line.endswith("r0, r1, r2, r3 and r4, ...")
    caplog.clear()
    warn_of_long_targets(model, [request()])
    assert not caplog.messages


def test_the_rest_goes_on_where_bad_ones_are_skipped(caplog):
    model = tiny.editable()
    good, bad = request(), request(id="b", target_new="of " * 99)
    assert that_fit(model, [good, bad], skip_bad=True) == [good]
    assert "request b: target_new has 99 tokens" in caplog.text
    with pytest.raises(FedEditError, match="1 request cannot be edited with this model, see the"):
        that_fit(model, [good, bad])
    with pytest.raises(FedEditError, match="cannot be edited"):
        that_fit(model, [bad], skip_bad=True)
