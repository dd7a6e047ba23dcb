import json
import os

import pytest

from fedit_app.report import append_jsonl, load_results, write_results
from fedit_app.support.errors import FedEditError


def test_round_trip(any_results, tmp_path):
    path = tmp_path / "run" / "results.json"
    write_results(path, any_results)
    assert load_results(path) == any_results
    assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]


def test_not_a_number_becomes_null(sample, tmp_path):
    results = sample("completed")
    results["summary"]["own"]["score"] = float("nan")
    results["slots"][0]["seconds"]["edit"] = float("inf")
    write_results(tmp_path / "results.json", results)
    loaded = load_results(tmp_path / "results.json")
    assert loaded["summary"]["own"]["score"] is None
    assert loaded["slots"][0]["seconds"]["edit"] is None


def test_failed_write_keeps_the_old_file(sample, tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_results(path, sample("local"))

    def full_disk(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_results(path, sample("central"))
    assert load_results(path)["strategy"] == "local"
    assert len(list(tmp_path.iterdir())) == 1


def test_append_jsonl(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    append_jsonl(path, {"slot": 1, "node": "図書館\n", "own": None})
    append_jsonl(path, {"slot": 2, "score": float("nan")})
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"slot": 1, "node": "図書館\n", "own": None},
        {"slot": 2, "score": None},
    ]


def test_append_jsonl_after_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"slot": 1}\n{"slot": 2, "no')
    append_jsonl(path, {"slot": 3})
    assert path.read_text().splitlines() == ['{"slot": 1}', '{"slot": 2, "no', '{"slot": 3}']


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
        (["slots"], {"1": 2}, r"'slots' is of type dict, expected list"),
        (["model", "fingerprint"], None, r"lacks 'model.fingerprint'"),
        (["summary", "before"], None, r"lacks 'summary.before'"),
        (["summary", "before", "own"], None, r"lacks 'summary.before.own'"),
        (["nodes", "museum", "own"], None, r"lacks 'nodes.museum.own'"),
        (["nodes", "museum", "before"], "x", r"'nodes.museum.before' is of type str"),
        (["nodes", "museum", "own", "score"], None, r"lacks 'nodes.museum.own.score'"),
        (
            ["nodes", "museum", "own", "metric"],
            "x",
            r"'nodes.museum.own.metric' is 'x', known: like",
        ),
        (["slots", 1, "bytes_up"], None, r"lacks 'slots\[1\].bytes_up'"),
        (["slots", 1, "seconds", "edit"], None, r"lacks 'slots\[1\].seconds.edit'"),
        (["slots", 0, "nodes", "museum"], 3, r"'slots\[0\].nodes.museum' is of type int"),
        (["failed_nodes", 0, "reason"], None, r"lacks 'failed_nodes\[0\].reason'"),
    ],
)
def test_incomplete_results_are_refused(sample, tmp_path, place, value, message):
    results = sample("completed")
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
