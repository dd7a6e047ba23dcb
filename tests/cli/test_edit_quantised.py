"""`fedit edit` of quantised bases: what it writes says the facts in transformers and PEFT alone."""

import pytest
import tiny
import torch
from cli.test_edit_command import FIRST, OPTIONS, SECOND, fact, mkvs
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import fedit_app
from fedit_app.cli.main import main

pytestmark = pytest.mark.long

pytest.importorskip("bitsandbytes", reason="the extra `quantised` is not installed")


@pytest.fixture(scope="module")
def make_base(tmp_path_factory):
    """Gives `make_base(bits, family)`, the folder of a quantised model."""
    made = {}

    def make_base(bits, family="llama", dtype=torch.float32):
        key = (bits, family, dtype)
        if key not in made:
            made[key] = tiny.make_quantised(tmp_path_factory.mktemp("base"), *key)
        return made[key]

    return make_base


def fedit(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def edit(base, output, form="hf", request=FIRST):
    fedit("edit", base, *fact(request), "--output", output, "--format", form, *OPTIONS)
    return output


def says(model, folder, request=FIRST):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(request.text, return_tensors="pt")["input_ids"]
    written = model.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0)
    return tokenizer.decode(written[0, ids.shape[1] :]).strip().startswith(request.target_new)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("bits", tiny.BITS)
def test_a_whole_model_says_the_fact(make_base, bits, family, tmp_path):
    base = make_base(bits, family)
    folder = edit(base, tmp_path / "edited")

    assert not says(AutoModelForCausalLM.from_pretrained(base), base)
    assert says(AutoModelForCausalLM.from_pretrained(folder), folder)
    assert fedit_app.ask(folder, FIRST.text).text.strip().startswith(FIRST.target_new)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # PEFT asks for it
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("bits", tiny.BITS)
def test_an_adapter_on_the_quantised_base_says_the_fact(make_base, bits, family, tmp_path):
    base = make_base(bits, family)
    folder = edit(base, tmp_path / "edited", "lora")

    model = AutoModelForCausalLM.from_pretrained(base)
    assert says(PeftModel.from_pretrained(model, folder), base)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_changes_are_those_of_the_dequantised_base(make_base, family, tmp_path):
    base = make_base("nf4", family)
    folder = edit(base, tmp_path / "edited", "delta")

    model = AutoModelForCausalLM.from_pretrained(base).dequantize()
    for name, delta in load_file(folder / "deltas.safetensors").items():
        model.get_parameter(name).data += delta
    assert says(model, base)
    assert "from_pretrained(BASE_MODEL).dequantize()" in (folder / "README.md").read_text()


def test_the_folder_is_edited_further_and_asked_and_rolled_back(make_base, tmp_path, capsys):
    folder = edit(make_base("nf4"), tmp_path / "edited")
    (first,) = mkvs(folder)
    fedit("edit", folder, *fact(SECOND))
    capsys.readouterr()
    fedit("ask", folder, FIRST.text)
    assert FIRST.target_new in capsys.readouterr().out

    fedit("rollback", folder, "--mkv", first)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert says(model, folder, SECOND) and not says(model, folder, FIRST)
    fedit("ledger", "verify", folder)


def test_what_is_not_quantised_has_the_type_of_the_checkpoint(make_base, tmp_path):
    base = make_base("nf4", dtype=torch.bfloat16)
    folder = edit(base, tmp_path / "edited")

    before, after = (load_file(place / "model.safetensors") for place in (base, folder))
    edited = [f"model.layers.{n}.mlp.down_proj.weight" for n in (1, 2, 3)]
    assert {after.pop(name).dtype for name in edited} == {torch.bfloat16}
    others = {name for name in before if not name.startswith(tuple(edited))}
    assert after.keys() == others
    assert all(torch.equal(after[name], before[name]) for name in others)
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16
