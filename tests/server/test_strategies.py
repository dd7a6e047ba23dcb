"""Which strategy a name in the run config stands for."""

import pytest
from flwr.serverapp.strategy import FedMedian

from fedit_app.server.strategies import (
    STRATEGIES,
    FedEdit,
    Local,
    keeps_its_state,
    strategy_named,
)
from fedit_app.support.errors import FedEditError

STOCK = """
from flwr.serverapp.strategy import FedAvg, QFedAvg


class Mine(FedAvg):
    def __init__(self, min_train_nodes=2):
        super().__init__(min_train_nodes=min_train_nodes)


FUNCTION = print
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "own_strategies.py").write_text(STOCK, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)


def test_short_names_flowers_names_and_classes_of_ones_own(mine):
    assert strategy_named("fedit") is STRATEGIES["fedit"] is FedEdit
    assert strategy_named("fedit_app.server.strategies:Local") is Local
    assert isinstance(strategy_named("FedMedian")(None, None, ""), FedMedian)
    assert strategy_named("own_strategies:Mine")(None, None, "").min_train_nodes == 1


def test_only_a_strategy_with_its_state_on_disk_can_be_resumed(mine):
    names = ["fedit", "local", "FedMedian", "own_strategies:Mine", "of_another_app:Mine"]
    assert [keeps_its_state(name) for name in names] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "FedBest",
            "'FedBest' must be one of fedit, local, .*, fedavg, .*, ties, .*FedMedian.*MODULE:",
        ),
        ("Strategy", "'Strategy' must be one of"),
        ("own_strategies:Absent", "must be one of"),
        ("own_strategies:FUNCTION", "must be one of"),
        ("own_strategies:QFedAvg", "QFedAvg.*needs arguments.*client_learning_rate"),
        ("absent_module:Mine", "cannot import 'absent_module'"),
        (":Mine", "cannot import ''"),
    ],
)
def test_what_is_no_strategy_is_refused_with_what_would_be_one(mine, name, told):
    with pytest.raises(FedEditError, match=told):
        strategy_named(name)
