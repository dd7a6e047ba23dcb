import errno
import json
import os

import pytest

from fedit_app.report import Results, load_results, write_results
from fedit_app.report.results import Costs, NodeResult, SlotLine, append_line
from fedit_app.support.errors import FedEditError


def line(**values):
    empty = {"received_from": {}, "rejections": {}, "conflict_pairs": []}
    node = NodeResult(own=None, federation=None, **empty, **Costs.zero())
    return SlotLine(**{**dict(node), "time": "", "slot": 1, "node": "museum", **values})


def test_round_trip(any_results, tmp_path):
    path = tmp_path / "run" / "results.json"
    write_results(path, any_results)
    assert load_results(path) == any_results
    assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]


def test_every_key_of_the_file_is_kept(raw):
    found = Results.model_validate(raw("full")).as_json()

    def keys(record):
        return {key: keys(value) for key, value in record.items()} if type(record) is dict else 0

    def within(few, many):
        return all(key in many and within(few[key], many[key]) for key in few if few[key])

    assert within(keys(raw("full")), keys(found))


def test_keys_of_a_later_version_are_ignored(raw):
    found = raw("completed") | {"weather": "fine"}
    assert Results.model_validate(found) == Results.model_validate(raw("completed"))


def test_not_a_number_becomes_null(sample, tmp_path):
    results = sample("completed")
    results.slots[0].seconds.edit = float("inf")
    write_results(tmp_path / "results.json", results)
    assert load_results(tmp_path / "results.json").slots[0].seconds.edit is None


def test_failed_write_keeps_the_old_file(sample, tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_results(path, sample("local"))

    def full_disk(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_results(path, sample("central"))
    assert load_results(path).strategy == "local"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_line_on_a_full_disk_is_told_with_its_file(tmp_path, monkeypatch):
    def full_disk(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(FedEditError, match="metrics.jsonl: cannot be written .No space left"):
        append_line(tmp_path / "metrics.jsonl", line())


def test_lines_are_appended(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    append_line(path, line(node="図書館\n"))
    append_line(path, line(slot=2))
    found = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    assert [(entry["slot"], entry["node"]) for entry in found] == [(1, "図書館\n"), (2, "museum")]
    assert found[0]["own"] is None and found[0]["requests"] == 0


def test_a_line_after_a_torn_one_stands_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"slot": 1}\n{"slot": 2, "no')
    append_line(path, line(slot=3))
    *before, last = path.read_text().splitlines()
    assert before == ['{"slot": 1}', '{"slot": 2, "no']
    assert json.loads(last)["slot"] == 3


def spoil(results, place, value=None):
    *parents, last = place
    for key in parents:
        results = results[key]
    if value is None:
        del results[last]
    else:
        results[last] = value


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (["schema"], 1, r"schema is 1, this version of FedEdit reads 2"),
        (["schema"], None, r"schema is None"),
        (["slots"], None, r"lacks 'slots'"),
        (["slots"], {"1": 2}, r"'slots' is a dict: Input should be a valid array"),
        (["model", "fingerprint"], None, r"lacks 'model.fingerprint'"),
        (["summary", "before"], None, r"lacks 'summary.before'"),
        (["summary", "before", "own"], None, r"lacks 'summary.before.own'"),
        (["nodes", "museum", "own"], None, r"lacks 'nodes.museum.own'"),
        (["nodes", "museum", "before"], "x", r"'nodes.museum.before' is 'x': Input should be an"),
        (["nodes", "museum", "own", "score"], None, r"lacks 'nodes.museum.own.score'"),
        (["nodes", "museum", "own", "score"], 1.5, r"'nodes.museum.own.score' is 1.5: .* 1"),
        (["nodes", "museum", "own", "metric"], "x", r"own.metric' is 'x': .* 'likelihood', 'tok"),
        (["slots", 1, "bytes_up"], None, r"lacks 'slots\[1\].bytes_up'"),
        (["slots", 1, "seconds", "edit"], None, r"lacks 'slots\[1\].seconds.edit'"),
        (["slots", 0, "nodes", "museum"], 3, r"'slots\[0\].nodes.museum' is 3: Input should"),
        (["failed_nodes", 0, "reason"], None, r"lacks 'failed_nodes\[0\].reason'"),
    ],
)
def test_damaged_results_are_refused_with_the_place(raw, tmp_path, place, value, message):
    results = raw("completed")
    spoil(results, place, value)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    with pytest.raises(FedEditError, match=message) as caught:
        load_results(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '"results"', "\xff"])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(FedEditError, match="results.json"):
        load_results(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FedEditError, match="no such file"):
        load_results(tmp_path / "results.json")
    with pytest.raises(FedEditError, match="cannot be read"):
        load_results(tmp_path)
