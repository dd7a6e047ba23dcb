"""An editor of one's own, as the README shows it, is one file and one line."""

import re
from pathlib import Path

import tiny
import torch
from editing.cases import EASY
from editing.test_workbench import STRONG

from fedit_app.editing import editors
from fedit_app.editing.covariance import CovarianceSource
from fedit_app.editing.workbench import Workbench
from fedit_app.evaluation.scores import score_targets
from fedit_app.ledger.ledger import Ledger

README = Path(__file__).parents[2] / "README.md"


def test_the_readmes_editor_edits(monkeypatch):
    block = re.search(
        r"# fedit_app/editing/direct.py\n(.*?)# fedit_app/editing/editors.py",
        README.read_text(),
        re.S,
    )
    module = {}
    exec(block[1], module)
    monkeypatch.setitem(editors.EDITORS, "direct", module["DIRECT"])
    bench = Workbench(tiny.editable(), "direct", STRONG, 2, CovarianceSource(tokens=500), 0)
    ledger = Ledger(bench.fingerprint)
    ledger.accept(bench.compute(EASY[:2], ledger, "clinic", 1), 1)
    pairs = [(request.text, request.target_new) for request in EASY[:2]]
    before = score_targets(bench.model, pairs)
    with bench.edited(ledger) as edited:
        after = score_targets(edited, pairs)
    assert all(a.nll < b.nll - 3 for a, b in zip(after, before, strict=True))
    assert torch.equal(bench.model.weight(1), tiny.editable().weight(1))
