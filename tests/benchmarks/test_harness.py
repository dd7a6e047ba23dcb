"""Options, tables, clocks and the figures' file of the benchmarks."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from published import counterfact

from benchmarks.harness import (
    MIB,
    device_in_words,
    measure,
    parser,
    positive,
    records,
    report,
    table,
    whole_numbers,
)
from fedit_app.support.errors import FedEditError

ROOT = Path(__file__).parents[2]
FACTS = [counterfact(number, "{} is in", "Reuters", "Basel", "London") for number in range(3)]


def test_the_common_options():
    options = parser("What it does.\n\nMore.").parse_args([])
    assert (options.model, options.device, options.dtype) == ("smollm2-135m", "auto", "auto")
    assert options.data == ROOT.parent / "shared" / "data" / "counterfact_1500.json"
    assert options.json is None
    bare = vars(parser("Doc.", model=False, data=False).parse_args(["--json", "figures.json"]))
    assert bare == {"json": Path("figures.json"), "device": "auto"}


def test_a_folder_is_refused_before_the_work(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        parser("Doc.").parse_args(["--json", str(tmp_path)])
    assert caught.value.code == 2
    assert "is a folder" in capsys.readouterr().err


def test_whole_numbers():
    assert whole_numbers("1,16,128") == [1, 16, 128]
    assert positive("7") == 7
    for text in ("", "1,", "0", "1,x", "1.5", "-3"):
        with pytest.raises(argparse.ArgumentTypeError, match="whole numbers from 1"):
            whole_numbers(text)
    with pytest.raises(argparse.ArgumentTypeError, match="one whole number"):
        positive("1,2")


def test_records_of_the_data_file(tmp_path):
    file = tmp_path / "counterfact.json"
    file.write_text(json.dumps(FACTS))
    options = parser("Doc.").parse_args(["--data", str(file)])
    assert [request.id for request in records(options, 2)] == ["0", "1"]
    with pytest.raises(FedEditError, match="has 3 records, 4 are asked for"):
        records(options, 4)


def test_a_missing_data_file_is_one_line_and_status_2(tmp_path):
    missing = tmp_path / "absent.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.editors", "--data", str(missing)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"editors: --data: {missing} does not exist; name a copy")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (2.5e-7, "2.5e-07"),
        (0.00123, "0.00123"),
        (-1.5, "-1.50"),
        (999.4, "999"),
        (12345.6, "12,346"),
        (1024, "1,024"),
        (float("inf"), "inf"),
        (None, "–"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert table(["n"], [[value]]).splitlines()[-1] == f"| {text} |"


def test_memory_above_the_start_is_seen():
    kept = torch.ones(48 * MIB, dtype=torch.uint8)

    def work():
        passing = torch.ones(64 * MIB, dtype=torch.uint8)
        time.sleep(0.5)
        return int(passing[0]) + int(kept[0])

    for _ in range(2):  # freed memory must not hide the second time
        found = measure(work, "cpu")
        assert found.result == 2
        assert 62 < found.peak_mib < 80
        assert 0.5 <= found.seconds < 30


@pytest.mark.skipif(sys.platform != "linux", reason="memory is given back with glibc only")
def test_freed_memory_does_not_hide_new_memory():
    def pieces():
        return [b"x" * (100_000 + number) for number in range(320)]

    def work():
        found = pieces()
        time.sleep(0.5)
        return len(found)

    freed, behind = pieces(), b"x" * 100_000
    del freed  # stays with the process as long as `behind` lies above it
    assert 28 < measure(work, "cpu").peak_mib < 45
    assert len(behind) == 100_000


@pytest.mark.gpu
def test_memory_of_a_gpu_is_exact():
    def work():
        return float(torch.ones(64 * MIB, dtype=torch.uint8, device="cuda")[0])

    found = measure(work, "cuda")
    assert found.result == 1.0
    assert 64 <= found.peak_mib < 66


def test_an_error_of_the_function_is_passed_on():
    def fail():
        raise FedEditError("no room")

    with pytest.raises(FedEditError, match="no room"):
        measure(fail, "cpu")


def test_figures_are_written_with_the_device(tmp_path, capsys):
    file = tmp_path / "out" / "figures.json"
    options = parser("Doc.").parse_args(["--json", str(file), "--device", "cpu"])
    report(options, {"pool/576/n=1000/bytes": 25.5})
    device = device_in_words(torch.device("cpu"))
    assert json.loads(file.read_text()) == {
        "device": device,
        "figures": {"pool/576/n=1000/bytes": 25.5},
    }
    assert f"device: {device}" in capsys.readouterr().out
    assert f"{torch.get_num_threads()} torch threads" in device
