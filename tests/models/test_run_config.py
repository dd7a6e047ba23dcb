"""What the run config says of the model reaches it, before a run and in it."""

import json

import pytest
import tiny

from fedit_app.config.model import ModuleNames
from fedit_app.config.run_config import RunConfig
from fedit_app.editing.workbench import workbench_for
from fedit_app.experiments.preflight import check_simulation
from fedit_app.support.errors import FedEditError

KEYS = {
    "module-layers": "model.layers",
    "module-mlp-output": "mlp.down_proj",
    "module-final-norm": "model.norm",
}


@pytest.fixture(scope="module")
def unknown(tmp_path_factory):
    return tiny.make_model(tmp_path_factory.mktemp("models") / "granite", "granite")


def config(folder, **values):
    own = {"model": str(folder), "output-dir": f"{folder}-run", "layers": "1-3", "contexts": 0}
    return RunConfig.parse(own | values)


def test_the_names_of_the_run_config():
    found = RunConfig.parse({**KEYS, "module-post-norm": "norm"}).module_names
    assert found == ModuleNames("model.layers", "mlp.down_proj", "model.norm", post_norm="norm")
    assert RunConfig.parse({}).module_names.given() == {}


def test_an_unknown_family_runs_with_its_names(unknown):
    assert check_simulation(config(unknown, **KEYS), None) >= 1
    model = workbench_for(config(unknown, **KEYS)).model
    assert model.mlp_output(1) is model.model.model.layers[1].mlp.down_proj


@pytest.mark.parametrize("start", [lambda given: check_simulation(given, None), workbench_for])
def test_an_unknown_family_without_its_names_is_refused(unknown, start):
    with pytest.raises(FedEditError, match="'granite' is not known.*module-layers"):
        start(config(unknown))
    with pytest.raises(FedEditError, match="module-final-norm = 'norm' .*'model.norm'"):
        start(config(unknown, **KEYS | {"module-final-norm": "norm"}))


@pytest.mark.parametrize("start", [lambda given: check_simulation(given, None), workbench_for])
def test_a_wrong_device_map_is_refused(tiny_folder, start):
    with pytest.raises(FedEditError, match="device-map = 'no.json' is neither auto"):
        start(config(tiny_folder, **{"device-map": "no.json"}))
    with pytest.raises(FedEditError, match="device = 'cpu' and device-map = 'auto'"):
        start(config(tiny_folder, **{"device-map": "auto", "device": "cpu"}))


def test_an_edited_layer_that_is_not_in_memory_is_refused_before_the_run(tiny_folder, tmp_path):
    file = tmp_path / "devices.json"
    places = {f"model.layers.{layer}": "cpu" for layer in range(tiny.LAYERS)}
    others = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    file.write_text(json.dumps(places | others | {"lm_head": "cpu", "model.layers.2": "disk"}))
    with pytest.raises(FedEditError, match="layer 2 of model .* is offloaded"):
        workbench_for(config(tiny_folder, **{"device-map": str(file), "dtype": "float32"}))
    other = config(tiny_folder, **{"device-map": str(file), "dtype": "float32", "layers": "0-1"})
    assert workbench_for(other).model.weight(1).device.type == "cpu"
