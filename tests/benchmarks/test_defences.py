"""The table of defences: its counts are those of the tests, and a failing test shows."""

import json
from xml.etree import ElementTree

import pytest
from published import counterfact

from benchmarks import defences
from benchmarks.defences import ATTACKS, attempted, counted

REPORT = """<testsuites><testsuite>
<testcase name="a"><properties><property name="inputs" value="3"/>
<property name="most_bytes" value="7.0"/></properties></testcase>
<testcase name="b"><properties><property name="inputs" value="4"/>
<property name="most_bytes" value="5"/></properties><failure message="x"/></testcase>
<testcase name="c"><error message="x"/></testcase>
</testsuite></testsuites>"""


def test_figures_are_summed_and_failures_counted():
    found = counted(ElementTree.ElementTree(ElementTree.fromstring(REPORT)))
    assert found == {"tests": 3, "failed": 2, "inputs": 7, "most_bytes": 7}


def test_the_tests_of_an_attack_run():
    found = attempted(ATTACKS["limits"])
    assert found["failed"] == 0 and found["keys"] > 60
    assert ATTACKS["limits"].told(found) == f"0, of {found['keys']:.0f}"


def test_every_test_that_is_named_is_there():
    for attack in ATTACKS.values():
        for test in attack.tests:
            file, _, name = test.partition("::")
            assert not name or f"def {name}(" in (defences._ROOT / file).read_text()


@pytest.fixture
def data(tmp_path):
    facts = [("{} is in", name, "Basel", "London") for name in ("Reuters", "Cardiff", "Basler")]
    found = [counterfact(number, *fact) for number, fact in enumerate(facts)]
    (tmp_path / "counterfact.json").write_text(json.dumps(found))
    (tmp_path / "subjects.jsonl").write_text("\n".join(map(json.dumps, found)))
    files = {"--data": "counterfact.json", "--subjects": "subjects.jsonl"}
    return [part for flag, name in files.items() for part in (flag, str(tmp_path / name))]


def test_a_table(tiny_folder, data, tmp_path, capsys):
    file = tmp_path / "figures.json"
    given = ["--records", "3", "--candidates", "5", "--attacks", "quorum", "--json", str(file)]
    defences.run([*given, *data, "--model", str(tiny_folder), "--device", "cpu"])
    found = json.loads(file.read_text())["figures"]
    assert found["defences/quorum/served"] == found["defences/quorum/failed"] == 0
    assert 0 <= found["defences/server/subject 1"] <= 1
    printed = capsys.readouterr().out
    assert "| false facts served from q - 1" in printed and "it sees no value" in printed
