"""Folders as people have them: each is edited rightly, or refused in one line that names the file.

What is refused is refused within seconds, before a weight is read.
"""

import json
import shutil
import sys
import time
import warnings

import pytest
import tiny
import torch
from editing.cases import EASY
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedit_app import Editor
from fedit_app.cli.main import main
from fedit_app.models.checkpoint import check_checkpoint
from fedit_app.models.fingerprint import model_fingerprint
from fedit_app.models.loading import load_model, loaded_model
from fedit_app.support.errors import FedEditError

SECONDS = 5
PROJECTION = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "model")


def set_config(folder, **changes):
    file = folder / "config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | changes))


def change_weights(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def cut(file, share=0.5):
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])


def shards(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    return sorted(folder.glob("*.safetensors"))


def adapter(folder):
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    wanted = LoraConfig(target_modules=["down_proj"], task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT's use of transformers
        get_peft_model(base, wanted).save_pretrained(folder)


def only_an_adapter(folder):
    adapter(folder)
    (folder / "config.json").unlink()


def half_a_download(folder):
    shards(folder)[1].unlink()


def a_cut_shard(folder):
    cut(shards(folder)[1], 0.9)


def a_pointer(folder):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (folder / "model.safetensors").write_text(text)


def nan_in_a_weight(folder):
    change_weights(folder, lambda tensors: tensors[PROJECTION].fill_(float("nan")))


def infinity_in_a_norm(folder):
    change_weights(folder, lambda tensors: tensors["model.norm.weight"][3:].fill_(float("inf")))


def pickled(folder):
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def other_sizes(folder):
    set_config(folder, intermediate_size=48)


REFUSED = {
    "an adapter beside the weights": (adapter, "adapter_config.json.*[Mm]erge"),
    "only an adapter": (only_an_adapter, "holds an adapter of .*name the base model"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json; name"),
    "an empty config": (
        lambda f: (f / "config.json").write_text(""),
        "config.json cannot be read .it is empty.; download",
    ),
    "a config cut off": (lambda f: cut(f / "config.json"), "config.json cannot be read .*download"),
    "a config of another thing": (
        lambda f: (f / "config.json").write_text("{}"),
        "config.json names no model_type; download",
    ),
    "an impossible size": (
        lambda f: set_config(f, num_hidden_layers="many"),
        "config.json cannot be used .*num_hidden_layers",
    ),
    "code of its own": (
        lambda f: set_config(f, model_type="mine", auto_map={"AutoConfig": "mine.Config"}),
        r"config.json wants code .*auto_map.*use a model",
    ),
    "a mixture of experts": (
        lambda f: set_config(f, model_type="mixtral"),
        "config.json: family 'mixtral' is a mixture of experts .*Use a dense model",
    ),
    "an unknown family": (
        lambda f: set_config(f, model_type="falcon_mamba"),
        "config.json: family 'falcon_mamba' is not known .*module-layers",
    ),
    "quantised at every pass": (
        lambda f: set_config(
            f,
            quantization_config={
                **{"quant_method": "bitsandbytes", "load_in_8bit": True},
                "llm_int8_has_fp16_weight": True,
            },
        ),
        "config.json: the weights are quantised .bitsandbytes.*LoRA adapter.*de-quantise",
    ),
    "quantised by GPTQ": (
        lambda f: set_config(f, quantization_config={"quant_method": "gptq", "bits": 4}),
        "config.json: the weights are quantised .gptq.*LoRA adapter.*de-quantise",
    ),
    "quantised by AWQ": (
        lambda f: set_config(f, quantization_config={"quant_method": "awq", "bits": 4}),
        "config.json: the weights are quantised .awq.*LoRA adapter.*de-quantise",
    ),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        "has no model.safetensors and no model.safetensors.index.json; convert",
    ),
    "pickled weights": (pickled, "has no model.safetensors .*save_pretrained"),
    "weights cut off": (
        lambda f: cut(f / "model.safetensors"),
        "model.safetensors is damaged or not complete .*download it again",
    ),
    "empty weights": (
        lambda f: (f / "model.safetensors").write_bytes(b""),
        "model.safetensors is damaged or not complete .*download it again",
    ),
    "a pointer instead of weights": (a_pointer, "model.safetensors is not the weights.*git lfs"),
    "a missing shard": (half_a_download, "index.json names .* files, of which model-00002.*rest"),
    "a shard cut off": (a_cut_shard, "model-00002-of-.* is damaged or not complete.*download"),
    "an empty index": (
        lambda f: [shards(f), (f / "model.safetensors.index.json").write_text("{}")],
        "index.json holds no weight_map; download",
    ),
    "a missing weight": (
        lambda f: change_weights(f, lambda tensors: tensors.pop(PROJECTION)),
        f"lacks 1 weight .{PROJECTION}., which would be random numbers; download",
    ),
    "weights of other sizes": (other_sizes, r"files hold .* of shape .* config.json asks for"),
    "NaN in a weight": (nan_in_a_weight, f"{PROJECTION} in .*model.safetensors holds.*NaN"),
    "infinity in a norm": (infinity_in_a_norm, "model.norm.weight in .*model.safetensors holds"),
    "no tokenizer": (
        lambda f: [file.unlink() for file in f.glob("tokenizer*")],
        "has no tokenizer.json; copy",
    ),
    "a tokenizer cut off": (
        lambda f: cut(f / "tokenizer.json"),
        "tokenizer.json cannot be read .*download it again",
    ),
}


# PEFT, which writes adapters, takes seconds to import.
FAULTS = [
    pytest.param(fault, marks=pytest.mark.long) if "an adapter" in fault else fault
    for fault in REFUSED
]


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_edited_is_refused_with_file_and_remedy(fault, folder):
    spoil, told = REFUSED[fault]
    spoil(folder)
    began = time.perf_counter()
    with pytest.raises(FedEditError, match=told) as caught:
        load_model(str(folder), "cpu")
    assert time.perf_counter() - began < SECONDS
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_run_is_refused_before_flower_starts(folder, tmp_path, capsys):
    half_a_download(folder)
    began = time.perf_counter()
    run = ["run", "-c", f"model={folder}", "--output-dir", str(tmp_path / "run")]
    assert main(run) == 2
    assert time.perf_counter() - began < SECONDS
    assert "model-00002" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_command_says_it_in_one_line(folder, tmp_path, capsys):
    a_cut_shard(folder)
    fact = ["--fact", "Reuters", "The head office of {} is in", "Paris"]
    assert main(["edit", str(folder), *fact, "--output", str(tmp_path / "new")]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "model-00002-of-" in told and "download it again" in told
    assert not (tmp_path / "new").exists()


def test_a_quantised_base_without_its_library_names_the_extra(folder, monkeypatch):
    bits = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    set_config(folder, quantization_config=bits)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(FedEditError, match=r"config.json: .* pip install 'fedit\[quantised\]'"):
        load_model(str(folder), "cpu")


def stray_weights(folder):
    save_file({"lm_head.weight": torch.ones(3)}, folder / "consolidated.safetensors")


def sharded(folder):
    shards(folder)


def sharded_and_stray(folder):
    shards(folder)
    stray_weights(folder)


def more_than_the_family_has(folder):
    change_weights(folder, lambda tensors: tensors.update({"vision.weight": torch.ones(3)}))


def without_what_is_tied(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()


USED = {
    "as it is": lambda _: None,
    "tied weights": without_what_is_tied,
    "in shards": sharded,
    "a stray file beside it": stray_weights,
    "a stray file beside shards": sharded_and_stray,
    "no dtype in the config": lambda f: set_config(f, dtype=None),
    "more weights than the family has": more_than_the_family_has,
}


STRONG = {
    "layers": "1-3",
    "covariance_tokens": 500,
    "covariance_weight": 0.02,
    "contexts": 2,
    "clamp": 20.0,
    "kl_weight": 0.01,
    "weight_decay": 0.1,
    "learning_rate": 0.5,
}


@pytest.mark.integration
@pytest.mark.parametrize("kind", [*USED, "in bfloat16", "with a short window"])
def test_an_edited_folder_says_the_target_in_plain_transformers(kind, tmp_path):
    """As other software loads it: `generate` on the saved folder, without FedEdit."""
    base, edited, request = tmp_path / "base", tmp_path / "edited", EASY[0]
    tiny_model = tiny.editable("mistral-window" if "window" in kind else "llama")
    half = kind == "in bfloat16"
    model = tiny.in_bfloat16(tiny_model.model) if half else tiny_model.model
    model.save_pretrained(base)
    tiny_model.tokenizer.save_pretrained(base)
    USED.get(kind, lambda _: None)(base)
    editor = Editor.from_pretrained(base, device="cpu", **STRONG)
    editor.edit([request])
    editor.save_pretrained(edited)

    tokenizer = AutoTokenizer.from_pretrained(edited)
    plain = AutoModelForCausalLM.from_pretrained(edited).eval()
    assert plain.dtype == (torch.bfloat16 if half else torch.float32)
    asked = tokenizer(request.text, return_tensors="pt")
    said = plain.generate(**asked, max_new_tokens=8, do_sample=False)
    answer = tokenizer.decode(said[0, asked["input_ids"].shape[1] :])
    assert answer.strip().startswith(request.target_new)


@pytest.mark.parametrize("kind", USED)
def test_what_can_be_edited_computes_as_transformers_does(kind, folder, log):
    USED[kind](folder)
    model = load_model(str(folder), "cpu")
    ids = torch.tensor([[5, 6, 7]])
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(model.model(ids).logits, plain(ids).logits)
    assert ("1 weight of its files is not used" in log.text) == (kind.startswith("more"))


@pytest.mark.parametrize("kind", [kind for kind in USED if "stray" in kind or "shards" in kind])
def test_a_stray_file_does_not_make_another_fingerprint(kind, folder, tiny_folder):
    USED[kind](folder)
    assert model_fingerprint(folder) == model_fingerprint(tiny_folder)


def test_the_check_needs_no_weights_in_memory(folder):
    """A file with room for two gigabytes is checked as quickly as a small one."""
    names = {}
    with safe_open(folder / "model.safetensors", "pt") as file:
        for name in file.keys():
            names[name] = file.get_slice(name).get_shape()
    offset, header = 0, {}
    for name, shape in names.items():
        shape = [1 << 25, *shape[1:]] if "embed" in name else shape
        size = 4 * int(torch.tensor(shape, dtype=torch.float64).prod())
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)  # sparse
    set_config(folder, vocab_size=1 << 25)
    began = time.perf_counter()
    assert check_checkpoint(folder).n_layers == tiny.LAYERS
    assert time.perf_counter() - began < SECONDS


def test_nan_in_a_model_in_memory_is_refused(folder):
    nan_in_a_weight(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with pytest.raises(FedEditError, match=f"{PROJECTION} holds numbers that are NaN"):
        loaded_model(model, AutoTokenizer.from_pretrained(folder))


def test_weights_that_float16_cannot_hold_are_refused(folder):
    change_weights(folder, lambda tensors: tensors[PROJECTION].fill_(1e6))
    load_model(str(folder), "cpu", "float32")
    with pytest.raises(FedEditError, match=f"{PROJECTION}.*in float16; use dtype = bfloat16"):
        load_model(str(folder), "cpu", "float16")


def test_a_file_instead_of_a_folder_is_said(folder):
    with pytest.raises(FedEditError, match="model.safetensors is a file; name a Hugging"):
        load_model(str(folder / "model.safetensors"), "cpu")
