"""`benchmarks.screening` on a run's ledgers."""

import json

import pytest

from benchmarks import screening
from fedit_app.cli.places import find_place
from fedit_app.editing.screening import BOUNDS
from fedit_app.support.errors import FedEditError

pytestmark = pytest.mark.slow


def test_every_mkv_of_a_run_is_measured_once(demo_run, tmp_path, capsys):
    results, _, folder = demo_run
    file = tmp_path / "figures.json"
    screening.run([str(folder), "--json", str(file), "--device", "cpu"])
    found = json.loads(file.read_text())["figures"]

    computed = sum(
        node["optimised"] for slot in results["slots"] for node in slot["nodes"].values()
    )
    assert f"{computed} MKVs" in capsys.readouterr().out
    place = find_place(folder, "bank")
    ledger = place.open()
    own = [entry.mkv for entry in ledger.entries.values() if entry.mkv.node == "bank"]
    measured = place.workbench(ledger).screen.measure(own)
    assert own
    for name in BOUNDS:
        rows = [found[f"screening/run/{name}/{column}"] for column in ("median", "99 %", "most")]
        assert rows == sorted(rows)
        assert rows[-1] >= measured[name].max() * (1 - 1e-9), "but for rounding"


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(FedEditError, match=r"no config\.toml"):
        screening.run([str(tmp_path)])
