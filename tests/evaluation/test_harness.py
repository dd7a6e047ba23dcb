"""General ability by the lm-evaluation-harness, with a stand-in for it: it is no requirement."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import tiny
import torch

from fedit_app.evaluation.harness import Measure, ability, ability_table, require_harness
from fedit_app.support.errors import FedEditError


@pytest.fixture
def harness(monkeypatch):
    """The two modules of the harness that are used; its one task sums a weight."""
    package, evaluator = ModuleType("lm_eval"), ModuleType("lm_eval.evaluator")
    models, hf = ModuleType("lm_eval.models"), ModuleType("lm_eval.models.huggingface")
    asked = []

    def simple_evaluate(**given):
        asked.append(given)
        if "nonsense" in given["tasks"]:
            raise KeyError("Missing task: nonsense")
        found = float(sum(p.sum() for p in given["model"].pretrained.parameters()))
        figures = {"alias": "sums", "acc,none": found, "acc_stderr,none": 0.25, "sample_len": 5}
        figures |= {"exact_match,strict": 1, "exact_match_stderr,strict": "N/A"}
        return {"results": {"sums": figures}}

    evaluator.simple_evaluate = simple_evaluate
    hf.HFLM = lambda **given: SimpleNamespace(**given)
    for module in (package, evaluator, models, hf):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return asked


def test_the_model_is_measured_in_the_state_it_is_in(harness):
    model = tiny.editable()
    before = ability(model, ["sums"], 7)
    with model.edited({1: torch.ones_like(model.weight(1))}):
        after = ability(model, ["sums"])
    assert before.keys() == {("sums", "acc"), ("sums", "exact_match (strict)")}
    assert before["sums", "exact_match (strict)"] == Measure(1.0, None)
    added = after["sums", "acc"].value - before["sums", "acc"].value
    assert added == pytest.approx(model.weight(1).numel(), rel=1e-3)
    assert [given["limit"] for given in harness] == [7, None]
    assert harness[0]["model"].tokenizer is model.tokenizer
    (first, second) = ability_table(before, after).rows
    assert (first[0], first[1], first[4].value) == ("sums", "acc", 0.25)
    assert second[4].value is None


def test_a_task_that_does_not_exist_is_named(harness):
    with pytest.raises(FedEditError, match="--lm-eval: Missing task: nonsense; `lm_eval ls tasks`"):
        ability(tiny.editable(), ["nonsense"])


def test_without_the_harness_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(FedEditError, match=r"pip install 'fedit\[lm-eval\]'"):
        require_harness()
