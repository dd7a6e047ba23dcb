"""From names to models and devices, and what is said when that fails."""

import dataclasses
import json
import shutil

import pytest
import tiny
import torch

from fedit_app.config.model import ModuleNames
from fedit_app.models.checkpoint import ModelShape, model_shape
from fedit_app.models.fingerprint import model_fingerprint
from fedit_app.models.loading import (
    load_model,
    read_device_map,
    resolve_device,
    resolve_model,
)
from fedit_app.models.partial import projection_inputs, trace
from fedit_app.support.errors import FedEditError

NAMES = ModuleNames("model.layers", "mlp.down_proj", "model.norm")


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


@pytest.mark.parametrize("family", tiny.every(*tiny.FAMILIES))
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


def without_weights(tiny_folder, tmp_path, model_type):
    folder = broken(tiny_folder, tmp_path, model_type=model_type)
    (folder / "model.safetensors").unlink()
    return folder


def test_a_family_that_fedit_does_not_know_is_refused_before_loading(tiny_folder, tmp_path):
    folder = without_weights(tiny_folder, tmp_path, "granite")
    with pytest.raises(FedEditError, match="family 'granite' is not known"):
        load_model(str(folder), "cpu")


def test_a_wrong_name_is_refused_before_loading(tiny_folder, tmp_path):
    folder = without_weights(tiny_folder, tmp_path, "granite")
    names = dataclasses.replace(NAMES, mlp_output="mlp.down_pro")
    with pytest.raises(FedEditError, match="module-mlp-output = 'mlp.down_pro'.*'mlp.down_proj'"):
        load_model(str(folder), "cpu", names=names)


def test_what_is_no_language_model_is_refused_before_loading(tiny_folder, tmp_path):
    folder = without_weights(tiny_folder, tmp_path, "vit")
    with pytest.raises(FedEditError, match="is not a causal language model"):
        load_model(str(folder), "cpu", names=NAMES)


def test_an_unknown_family_is_loaded_with_its_names(tmp_path):
    folder = tiny.make_model(tmp_path, "granite")
    assert model_shape(folder, NAMES) == ModelShape("granite", tiny.LAYERS, tiny.D_MODEL)
    model = load_model(str(folder), "cpu", names=NAMES)
    assert model.mlp_output(2) is model.model.model.layers[2].mlp.down_proj


def test_names_are_verified(tmp_path):
    folder = tiny.make_model(tmp_path, "hyperclovax")
    with pytest.raises(FedEditError, match="module-post-norm"):
        load_model(str(folder), "cpu", names=NAMES)


def test_other_names_make_another_fingerprint(tiny_folder):
    known = load_model(str(tiny_folder), "cpu").fingerprint
    assert load_model(str(tiny_folder), "cpu", names=NAMES).fingerprint == known
    other = dataclasses.replace(NAMES, attention_output="self_attn.q_proj")
    found = load_model(str(tiny_folder), "cpu", names=other).fingerprint
    assert found != known and len(found) == 32 and int(found, 16)


@pytest.mark.parametrize("family", tiny.every(*tiny.FAMILIES))
def test_the_shape_is_known_without_the_weights(family, tmp_path):
    folder = tiny.make_model(tmp_path, family)
    (folder / "model.safetensors").unlink()
    assert model_shape(folder) == ModelShape(family, tiny.LAYERS, tiny.D_MODEL)


@pytest.fixture
def device_map(tmp_path):
    """Returns `write(content)`: the path of a JSON file with a device map."""

    def write(content):
        file = tmp_path / "devices.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(file)

    return write


def test_device_maps(device_map):
    assert read_device_map(None) is None
    assert read_device_map("balanced") == "balanced"
    content = {"model.layers.0": 1, "model.layers": "cpu"}
    assert read_device_map(device_map(content)) == content


@pytest.mark.parametrize("name", ["even", "devices.json", "/nowhere/devices.json"])
def test_a_device_map_that_is_none_is_named(name):
    with pytest.raises(FedEditError, match=f"device-map = '{name}' is neither auto.*JSON file"):
        read_device_map(name)


@pytest.mark.parametrize("content", [[0], {}, {"model": 1.5}, {"model": True}, {"model": ""}, "1"])
def test_a_device_map_of_another_form_is_refused(device_map, content):
    with pytest.raises(FedEditError, match="devices.json must hold an object from module paths"):
        read_device_map(device_map(content))


def test_a_device_map_that_is_no_json_is_refused(device_map):
    with pytest.raises(FedEditError, match="devices.json is not JSON .*line 1"):
        read_device_map(device_map("model: 0"))


def test_a_device_and_a_device_map_are_refused(tiny_folder):
    with pytest.raises(FedEditError, match="device = 'cpu' and device-map = 'auto' are both set"):
        load_model(str(tiny_folder), "cpu", device_map="auto")


def test_a_device_that_a_map_names_but_is_not_there_is_said(tiny_folder, device_map):
    with pytest.raises(FedEditError, match="device-map: transformers cannot place the model"):
        load_model(str(tiny_folder), device_map=device_map({"": torch.cuda.device_count() + 5}))


def test_a_model_is_loaded_by_a_device_map(tiny_folder, device_map):
    model = load_model(str(tiny_folder), dtype="float32", device_map=device_map({"": "cpu"}))
    assert {parameter.device.type for parameter in model.model.parameters()} == {"cpu"}
    assert model.fingerprint == model_fingerprint(tiny_folder)
    with pytest.raises(FedEditError, match="cannot place"):  # the content counts, not the path
        load_model(str(tiny_folder), dtype="float32", device_map=device_map({"": 99}))


def spread(offloaded):
    """All on the CPU but these modules, which stay on the disk."""
    modules = ["model.embed_tokens", "lm_head", "model.norm", "model.rotary_emb"]
    modules += [f"model.layers.{layer}" for layer in range(tiny.LAYERS)]
    return {module: "disk" if module in offloaded else "cpu" for module in modules}


@torch.no_grad()
def test_layers_that_are_not_in_memory_are_not_edited(tiny_folder, device_map):
    path = device_map(spread(["model.layers.3"]))
    model = load_model(str(tiny_folder), dtype="float32", device_map=path)
    model.require_editable([0, 1, 2])
    with pytest.raises(FedEditError, match="device-map: layer 3 of model .* is offloaded"):
        model.require_editable([1, 2, 3])
    with pytest.raises(FedEditError, match="layer 3"), model.edited({3: torch.zeros(())}):
        pass
    ids = torch.tensor([[5, 6, 7]])
    traced = trace(model, 2, 4, {"input_ids": ids})
    found = model.logits(traced.run(traced.hidden, 2, 4))
    expected = load_model(str(tiny_folder), "cpu", "float32").model(ids).logits
    assert torch.allclose(found, expected, atol=1e-5)


def test_embeddings_that_are_not_in_memory_are_refused(tiny_folder, device_map):
    path = device_map(spread(["model.embed_tokens", "lm_head"]))
    with pytest.raises(FedEditError, match="device-map: the input embeddings are offloaded"):
        load_model(str(tiny_folder), dtype="float32", device_map=path)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@torch.no_grad()
def test_a_model_on_two_devices_computes_as_on_one(tmp_path, device_map):
    folder = tiny.make_model(tmp_path / "model", "qwen2")
    places = {module: int("layers.3" in module) for module in spread([])}
    places |= {"model.layers.4": 1, "model.norm": 1, "lm_head": 1}
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    results = []
    for arguments in ({"device": "cpu"}, {"device_map": device_map(places)}):
        model = load_model(str(folder), dtype="float32", **arguments)
        assert model.weight(3).device != model.weight(2).device or "device" in arguments
        traced = trace(model, 1, 4, {"input_ids": ids.to(model.device)})
        part = traced.select(torch.tensor([1], device=model.device))
        with projection_inputs(model, [2, 3]) as keys, model.edited({3: torch.ones(16, 32)}):
            final = part.run(part.hidden, 1, 4)
        tensors = [final, model.logits(final), keys[2], keys[3]]
        assert {tensor.device for tensor in tensors} == {model.device}
        results.append([tensor.cpu() for tensor in tensors])
    for on_one, on_two in zip(*results, strict=True):
        assert torch.allclose(on_one, on_two, atol=1e-4)
