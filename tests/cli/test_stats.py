"""`fedit stats`: covariances made, shown, given away and taken over."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from fedit_app.cli.main import main
from fedit_app.config.run_config import RunConfig
from fedit_app.editing import corpus
from fedit_app.editing.covariance import CovarianceSource, covariance
from fedit_app.editing.statistics import open_statistics
from fedit_app.experiments import preflight
from fedit_app.support.errors import FedEditError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(corpus, "_SAMPLED_LENGTH", 30)  # a token is a pass of the model


@pytest.fixture
def stats(capsys, tiny_folder):
    """Gives `stats(*arguments)`: runs it on the tiny model; (status, output, errors)."""

    def stats(*arguments: str) -> tuple[int, str, str]:
        common = ["-c", f"model={tiny_folder}", "-c", "device=cpu", "-c", "covariance-tokens=400"]
        status = main(["stats", *common, *arguments])
        said = capsys.readouterr()
        return status, said.out, said.err

    return stats


def rows_of(table: str) -> dict[int, list[str]]:
    """layer -> cells of its line."""
    cells = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")]
    return {int(line[0]): [cell.strip(" `") for cell in line] for line in cells[2:]}


def cached_layers(folder: Path) -> set[str]:
    return {file.name for file in folder.glob("cache/covariance/*/layer-*.safetensors")}


def test_the_table_describes_every_layer(stats, tiny_model):
    status, out, err = stats("--layers", "1-3")

    assert status == 0
    assert "stored in" in err
    rows = rows_of(out)
    assert list(rows) == [1, 2, 3]
    found = covariance(tiny_model, (1, 2, 3), CovarianceSource(tokens=400))
    for layer, (_, tokens, d_ff, mean, largest, smallest, condition, file) in rows.items():
        values = torch.linalg.eigvalsh(found[layer])
        assert (int(tokens), int(d_ff)) == (420, tiny.D_FF)
        assert float(mean) == pytest.approx(float(found[layer].trace()) / tiny.D_FF, rel=1e-3)
        assert float(largest) == pytest.approx(float(values[-1]), rel=1e-3)
        assert float(smallest) == pytest.approx(float(values[0]), rel=1e-3)
        assert float(condition) == pytest.approx(float(values[-1] / values[0]), rel=1e-2)
        assert Path(file).name == f"layer-{layer}.safetensors" and Path(file).is_file()


def test_fewer_tokens_than_dimensions_are_singular(stats, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The head office is in the city.\n")
    status, out, _ = stats(
        "--layers", "1", "-c", f"covariance-source={text}", "-c", "covariance-tokens=4"
    )

    assert status == 0
    assert rows_of(out)[1][1] != "400"
    assert float(rows_of(out)[1][6].replace("singular", "inf")) > 1e5


def test_without_layers_the_models_own_are_taken(stats, tmp_path):
    preset = tmp_path / "preset.toml"
    preset.write_text('layers = "0-1"\n')
    assert set(rows_of(stats("--config", str(preset))[1])) == {0, 1}
    assert set(rows_of(stats()[1])) <= set(range(tiny.LAYERS - 1))


def test_given_away_and_taken_over(stats, tmp_path, monkeypatch, tiny_model):
    file = tmp_path / "given" / "tiny.safetensors"
    status, out, _ = stats("--layers", "1-3", "--save", str(file))
    assert status == 0
    assert out.endswith(f"\n- saved: {file}\n")
    assert set(open_statistics(file).counted) == {1, 2, 3}
    made = covariance(tiny_model, (1, 2, 3), CovarianceSource(tokens=400))

    monkeypatch.setenv("FEDIT_CACHE", str(tmp_path / "theirs" / "cache"))
    seen = []
    handle = tiny_model.model.register_forward_pre_hook(lambda *_: seen.append(1))
    status, taken, err = stats("--load", str(file))
    assert status == 0
    assert "will not use it" not in err
    figures = {layer: row[:-1] for layer, row in rows_of(out).items()}
    assert {layer: row[:-1] for layer, row in rows_of(taken).items()} == figures
    assert cached_layers(tmp_path / "theirs") == {f"layer-{n}.safetensors" for n in (1, 2, 3)}

    again = tmp_path / "again.safetensors"
    assert stats("--layers", "1-3", "--save", str(again))[0] == 0
    found = covariance(tiny_model, (1, 2, 3), CovarianceSource(tokens=400))
    handle.remove()
    assert seen == []
    first, second = open_statistics(file), open_statistics(again)
    assert (first.origin, first.counted) == (second.origin, second.counted)
    for layer in (1, 2, 3):
        assert torch.equal(first.read(layer), second.read(layer))
        assert torch.equal(found[layer], made[layer])


def test_a_given_file_as_the_source(stats, tmp_path):
    file = tmp_path / "tiny.safetensors"
    stats("--layers", "1-3", "--save", str(file))
    status, out, err = stats("--layers", "2", "-c", f"covariance-source={file}")

    assert status == 0
    assert f"read from {file}" in err
    assert rows_of(out)[2][-1] == str(file)


def test_a_file_that_runs_would_not_use_is_taken_with_a_warning(stats, tmp_path):
    file = tmp_path / "tiny.safetensors"
    stats("--layers", "1", "--save", str(file), "-c", "seed=4")
    status, out, err = stats("--load", str(file))

    assert status == 0
    assert list(rows_of(out)) == [1]
    assert "is of sample, 400 tokens, seed 4, and the run config asks for other" in err


def test_only_some_layers_of_a_file_are_shown_but_all_are_taken(stats, tmp_path, monkeypatch):
    file = tmp_path / "tiny.safetensors"
    stats("--layers", "1-3", "--save", str(file))
    monkeypatch.setenv("FEDIT_CACHE", str(tmp_path / "theirs" / "cache"))

    assert list(rows_of(stats("--layers", "2", "--load", str(file))[1])) == [2]
    assert len(cached_layers(tmp_path / "theirs")) == 3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--layers", "3-4"], "layers: 4 is out of range, the model has 5 layers"),
        (["--layers", "x"], "layers = 'x'"),
        (["--save", "file.pt"], "--save file.pt: name a file that ends in .safetensors"),
        (["--load", "/no/file.safetensors"], "/no/file.safetensors: not a complete statistics"),
        (["-c", "covariance-source=/no/text"], "covariance-source: '/no/text'"),
        (["-c", "covariance-token=3"], "did you mean 'covariance-tokens'"),
        (["-c", "model=/no/model"], "/no/model does not exist"),
    ],
)
def test_bad_input(stats, tmp_path, arguments, told):
    status, out, err = stats(*arguments)

    assert status == 2
    assert out == ""
    assert err.splitlines()[-1].startswith("fedit: error: ")
    assert told in err.splitlines()[-1]
    assert cached_layers(tmp_path) == set()


def test_a_run_with_a_file_that_lacks_a_layer_is_refused(stats, tmp_path, tiny_folder):
    file = tmp_path / "tiny.safetensors"
    stats("--layers", "1-2", "--save", str(file))
    values = {
        "model": str(tiny_folder),
        "covariance-source": str(file),
        "output-dir": str(tmp_path / "run"),
    }
    assert preflight.check_simulation(RunConfig.parse({**values, "layers": "1-2"}), 4) == 4
    with pytest.raises(FedEditError, match="tiny.safetensors: has the layers 1,2, not 3"):
        preflight.check_simulation(RunConfig.parse({**values, "layers": "1-3"}), 4)


@pytest.mark.slow
def test_two_processes_at_once(tmp_path, tiny_folder):
    command = [sys.executable, "-m", "fedit_app.cli.main", "stats", "--layers", "1-3"]
    command += ["-c", f"model={tiny_folder}", "-c", "device=cpu", "-c", "covariance-tokens=2000"]
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    (first, first_log), (second, second_log) = (process.communicate() for process in processes)

    assert [process.returncode for process in processes] == [0, 0], first_log + second_log
    assert first == second
    assert set(rows_of(first)) == {1, 2, 3}
    assert len(re.findall(r"covariance: computed in", first_log + second_log)) == 1
    files = list(tmp_path.glob("cache/covariance/*/*"))
    assert not [file for file in files if file.suffix == ".tmp"]
    assert {layer for f in files if "layer" in f.name for layer in open_statistics(f).counted} == {
        1,
        2,
        3,
    }
