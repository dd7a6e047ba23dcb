"""A fingerprint is of the weights and the tokenizer, not of how they are stored."""

import json
import os
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedit_app.models import fingerprint as module
from fedit_app.models.fingerprint import model_fingerprint
from fedit_app.support.errors import FedEditError


@pytest.fixture
def copy(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "copy")


def save(model, folder, like, **options):
    model.save_pretrained(folder, **options)
    AutoTokenizer.from_pretrained(like).save_pretrained(folder)
    return folder


def test_another_folder_has_the_same(tiny_folder, copy):
    found = model_fingerprint(tiny_folder)
    assert len(found) == 32 and int(found, 16)
    assert model_fingerprint(copy) == found


def test_a_resharded_save_has_the_same(tiny_folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    folder = save(model, tmp_path / "shards", tiny_folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert model_fingerprint(folder) == model_fingerprint(tiny_folder)


def test_one_changed_number_makes_another(tiny_folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[3, 4] += 1e-6
    folder = save(model, tmp_path / "changed", tiny_folder)
    assert model_fingerprint(folder) != model_fingerprint(tiny_folder)


def change_json(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_another_tokenizer_makes_another(tiny_folder, copy):
    change_json(copy / "tokenizer.json", lambda content: content["model"]["merges"].pop())
    assert model_fingerprint(copy) != model_fingerprint(tiny_folder)


def test_only_settings_that_change_the_model_count(tiny_folder, copy):
    change_json(
        copy / "config.json",
        lambda content: content.update(transformers_version="9.9", dtype="bfloat16"),
    )
    assert model_fingerprint(copy) == model_fingerprint(tiny_folder)
    change_json(copy / "config.json", lambda content: content.update(rms_norm_eps=0.1))
    assert model_fingerprint(copy) != model_fingerprint(tiny_folder)


def test_it_is_remembered_until_a_file_changes(copy, tmp_path, monkeypatch):
    cache = tmp_path / "cache" / "fingerprints.json"
    found = model_fingerprint(copy, cache)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_hash_folder", None)
        assert model_fingerprint(copy, cache) == found
    change_json(copy / "tokenizer.json", lambda content: content["model"]["merges"].pop())
    changed = model_fingerprint(copy, cache)
    assert changed == model_fingerprint(copy) != found
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    os.utime(weights, ns=(1, 1))
    assert model_fingerprint(copy, cache) == model_fingerprint(copy) != changed


def test_weights_in_another_format_are_refused(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(FedEditError, match=f"{copy} has no .*safetensors.*save_pretrained"):
        model_fingerprint(copy)
