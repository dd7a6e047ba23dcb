"""Comparisons on a tiny model and eight facts, in this process."""

import json

import inprocess
import pytest
import tiny
from published import counterfact

from fedit_app.cli.main import main
from fedit_app.flower_compat import launch

FACTS = [
    ("{} is in", "Reuters", "Basel", "London"),
    ("{} is in", "Royal Mint", "London", "Wales"),
    ("{} is in", "Basler", "Wales", "Basel"),
    ("{} is in", "Channel 4", "Toronto", "London"),
    ("The museum of {} is in the", "Cardiff", "city of Zürich", "city"),
    ("The museum of {} is in the", "Toronto", "London", "city"),
    ("The museum of {} is in the", "Basel", "Paris", "city"),
    ("The museum of {} is in the", "Wales", "Leeds", "city"),
]


@pytest.fixture(scope="session")
def facts(tmp_path_factory):
    """A file of CounterFact records of two relations."""
    records = [
        counterfact(number, *fact, relation=f"P{len(fact[0])}") for number, fact in enumerate(FACTS)
    ]
    file = tmp_path_factory.mktemp("facts") / "counterfact.json"
    file.write_text(json.dumps(records))
    return file


@pytest.fixture(scope="session")
def values(tiny_folder, facts) -> dict:
    """Run-config values with which a run takes a second."""
    return {
        "model": str(tiny_folder),
        "device": "cpu",
        "dataset": "counterfact",
        "data-path": str(facts),
        "partition": "relation",
        "num-slots": 2,
        "requests-per-slot": 2,
        **tiny.RUN_CONFIG,
        "value-steps": 3,
    }


class Simulated(list):
    """The run configurations that were run, in this process."""

    broken = None

    def break_on(self, **wanted):
        """Make the run with these values fail."""
        self.broken = {key.replace("_", "-"): value for key, value in wanted.items()}

    def __call__(self, app, config, nodes, on_line, given_cores=None):
        self.append(dict(config))
        if self.broken and self.broken.items() <= config.items():
            on_line("RuntimeError: the machine is on fire")
            return "finished:failed"
        inprocess.federate(dict(config), nodes)
        return "finished:completed"


@pytest.fixture
def simulated(monkeypatch):
    """Runs happen in this process, and are listed."""
    calls = Simulated()
    monkeypatch.setattr(launch, "simulate", calls)
    return calls


def arguments(values, command, folder, *options):
    """Of the command line, with run-config values."""
    given = [f"-c={key}={value}" for key, value in values.items()]
    return [command, *given, "--output-dir", str(folder), *map(str, options)]


@pytest.fixture
def fedit(values, tmp_path, capsys):
    """Gives `fedit(command, *options)`: runs it into tmp_path/all; (exit status, what it said)."""

    def fedit(command, *options, folder="all", **changes):
        changed = {**values, **{key.replace("_", "-"): value for key, value in changes.items()}}
        status = main(arguments(changed, command, tmp_path / folder, *options))
        return status, capsys.readouterr()

    return fedit
