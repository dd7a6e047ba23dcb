"""From names to models and devices, and what is said when that fails."""

import json
import shutil

import pytest
import tiny
import torch

from fedit_app.errors import FedEditError
from fedit_app.models.fingerprint import model_fingerprint
from fedit_app.models.loading import load_model, resolve_device, resolve_model


def test_a_folder_is_itself(tiny_folder):
    assert resolve_model(str(tiny_folder)) == tiny_folder


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(FedEditError, match=f"{tmp_path} has no config.json"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere/model", "~/nowhere/model"])
def test_a_missing_folder_is_named_and_not_asked_of_the_hub(name, monkeypatch):
    monkeypatch.setattr("fedit_app.models.loading.snapshot_download", None)
    with pytest.raises(FedEditError, match=f"{name} does not exist; use 'smollm2-135m'"):
        resolve_model(name)


@pytest.mark.parametrize("name", ["a/b/c", "not a name"])
def test_what_the_hub_cannot_have_is_named(name):
    with pytest.raises(FedEditError, match=f"cannot get '{name}' from the hub.*smollm2-135m"):
        resolve_model(name)


def test_a_hub_that_cannot_be_reached_is_said(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("network is unreachable\nmany more lines")

    monkeypatch.setattr("fedit_app.models.loading.snapshot_download", unreachable)
    with pytest.raises(FedEditError) as caught:
        resolve_model("somebody/model")
    assert "'somebody/model' from the hub (network is unreachable)" in str(caught.value)


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device("auto") == torch.device(expected)


def test_a_device_that_is_none_is_named():
    with pytest.raises(FedEditError, match="device: 'gpu' is not one; use auto, cpu or cuda:N"):
        resolve_device("gpu")


def test_a_gpu_that_is_not_there_is_named():
    count = torch.cuda.device_count()
    with pytest.raises(FedEditError, match=f"'cuda:{count}' asked for, but {count} CUDA devices"):
        resolve_device(f"cuda:{count}")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_loads_from_its_folder(family, tmp_path):
    folder = tiny.make_model(tmp_path / family, family)
    model = load_model(str(folder), "cpu")
    assert model.name == str(folder)
    assert model.model.dtype == torch.float32
    assert model.fingerprint == model_fingerprint(folder)
    assert load_model(str(folder), "cpu") is model


def test_the_dtype_in_memory_does_not_change_the_fingerprint(tiny_folder):
    half = load_model(str(tiny_folder), "cpu", "bfloat16")
    assert half.model.dtype == torch.bfloat16
    assert half.fingerprint == model_fingerprint(tiny_folder)


def broken(tiny_folder, tmp_path, **changes):
    folder = shutil.copytree(tiny_folder, tmp_path / "broken")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_a_family_that_transformers_does_not_know_is_said(tiny_folder, tmp_path):
    folder = broken(tiny_folder, tmp_path, model_type="no-such-family")
    with pytest.raises(FedEditError, match="config.json cannot be used"):
        load_model(str(folder), "cpu")


def test_a_family_that_fedit_does_not_know_is_refused_before_loading(tiny_folder, tmp_path):
    folder = broken(tiny_folder, tmp_path, model_type="opt")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FedEditError, match="family 'opt' is not known"):
        load_model(str(folder), "cpu")
