"""What an export says is what the edited model says, read by the public libraries alone."""

import errno
import json
import re
from datetime import UTC, datetime

import pytest
import tiny
import torch
from inprocess import federate
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from fedit_app.cli.main import main
from fedit_app.config.folders import ledger_folder
from fedit_app.config.run_config import RunConfig
from fedit_app.editing.workbench import workbench_for
from fedit_app.ledger.ledger import Ledger
from fedit_app.ledger.lora import Adapter, adapter
from fedit_app.models.checkpoint import stored_dtype

pytestmark = pytest.mark.long

TEXT = "The head office of Reuters is located in the city of"
FAMILIES = ("llama", "gpt2", *tiny.later("gptj", "gpt_neox"))


def short_run(folder, model):
    """A run of two nodes: (config, model folder, run folder)."""
    config = {
        "model": str(model),
        "layers": "1-2",
        "contexts": 1,
        "value-steps": 5,
        "covariance-tokens": 400,
        "covariance-weight": 0.05,
        "num-slots": 1,
        "requests-per-slot": 2,
        "output-dir": str(folder / "run"),
    }
    federate(config, 2)
    return RunConfig.parse(config), model, folder / "run"


@pytest.fixture(scope="module", params=FAMILIES)
def run(request, tmp_path_factory):
    """A short run with a model of a family."""
    folder = tmp_path_factory.mktemp(request.param)
    return short_run(folder, tiny.make_model(folder / "model", request.param))


@pytest.fixture
def exported(run, tmp_path, capsys):
    """Gives `exported(form, ...)`: the folder that `fedit export` makes, and what it says."""

    def exported(form, *more):
        output = tmp_path / "out" / form
        arguments = ["export", str(run[2]), "--node", "bank", "--format", form]
        status = main([*arguments, "--output", str(output), *map(str, more)])
        said = capsys.readouterr()
        assert status == 0, said.err
        return output, said.out

    return exported


def opened(run):
    bench = workbench_for(run[0])
    return bench, Ledger.open(ledger_folder(run[0], 0, "bank"), bench.fingerprint)


def base_model(run):
    return AutoModelForCausalLM.from_pretrained(run[1], dtype=torch.float32)


@torch.no_grad()
def logits(model, run):
    ids = AutoTokenizer.from_pretrained(run[1])(TEXT, return_tensors="pt")["input_ids"]
    return model.eval()(ids).logits


@pytest.fixture
def expected(run):
    """Logits of the edited model, which are not those of the base model."""
    bench, ledger = opened(run)
    with bench.edited(ledger) as edited:
        found = logits(edited.model, run)
    assert (found - logits(base_model(run), run)).abs().max() > 0.05
    return found


def test_a_hugging_face_folder(run, exported, expected):
    folder, _ = exported("hf")
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    assert torch.equal(logits(model, run), expected)
    assert tokenizer(TEXT) == AutoTokenizer.from_pretrained(run[1])(TEXT)
    assert [file.suffix for file in folder.glob("model*")] == [".safetensors"]
    (said,) = pipeline("text-generation", str(folder))(TEXT, max_new_tokens=2, do_sample=False)
    assert said["generated_text"].startswith(TEXT)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # PEFT asks for it
def test_an_adapter(run, exported, expected):
    folder, said = exported("lora")
    bench, ledger = opened(run)
    rank = json.loads((folder / "adapter_config.json").read_text())["r"]
    assert rank == len(ledger) == 4
    assert "Rank 4, exact" in said

    adapted = PeftModel.from_pretrained(base_model(run), folder)
    assert torch.allclose(logits(adapted, run), expected, atol=1e-4)
    found = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.allclose(logits(found, run), expected, atol=1e-4), "the base model by its name"
    merged = adapted.merge_and_unload()
    assert torch.allclose(logits(merged, run), expected, atol=1e-4)


def test_the_deltas(run, exported, expected):
    folder, _ = exported("delta")
    model = base_model(run)
    with torch.no_grad():
        for name, delta in load_file(folder / "deltas.safetensors").items():
            model.get_parameter(name).add_(delta)
    assert torch.allclose(logits(model, run), expected, atol=1e-4)
    with safe_open(folder / "deltas.safetensors", "pt") as file:
        assert file.metadata()["journal"] == opened(run)[1].head


def test_a_truncated_adapter_says_what_it_lacks(run, exported):
    folder, said = exported("lora", "--rank", 2)
    bench, ledger = opened(run)
    names, tensors = (
        bench.model.module_names((1, 2)),
        load_file(folder / "adapter_model.safetensors"),
    )
    told = dict(re.findall(r"^\| (\d|all) \| (\d\.\d\de[-+]\d\d) \|$", said, re.MULTILINE))
    misses, sizes = [], []
    for layer, delta in bench.deltas(ledger).items():
        a, b = (
            tensors[f"base_model.model.{names[layer]}.lora_{part}.weight"].double() for part in "AB"
        )
        assert a.shape[0] == b.shape[1] == 2
        best = torch.linalg.svdvals(delta)[2:].norm()
        assert torch.isclose((b @ a - delta).norm(), best, rtol=1e-4)
        assert float(told[str(layer)]) == pytest.approx(float(best / delta.norm()), rel=0.01)
        misses.append(best)
        sizes.append(delta.norm())
    overall = float(torch.stack(misses).norm() / torch.stack(sizes).norm())
    assert float(told["all"]) == pytest.approx(overall, rel=0.01)
    assert "truncated" in said and f"{told['all']}" in (folder / "README.md").read_text()


@pytest.mark.parametrize("form", ["hf", "lora", "delta"])
def test_others_may_read_what_is_exported(run, exported, form):
    folder, _ = exported(form)
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o644}


def test_an_adapter_says_what_vllm_needs_for_its_rank():
    def served(rank):
        return Adapter(rank, True, {}, {}, 0.0).served

    assert served(16) == ""
    assert "--max-lora-rank 64 " in served(33)
    assert "up to rank 512: export with --format hf" in served(513)


@pytest.mark.parametrize("form", ["hf", "lora", "delta"])
def test_the_model_card(run, exported, form):
    folder, _ = exported(form)
    card = (folder / "README.md").read_text()
    _, ledger = opened(run)

    assert all(f"`{mkv.id}`" in card for mkv in ledger.holding)
    assert ledger.head in card and ledger.fingerprint in card
    assert str(run[1]) in card and datetime.now(UTC).strftime("%Y-%m") in card
    assert "| of this node's own requests they fulfil | `2` |" in card
    assert "| bank | 1 | 2 |" in card and "| hospital | 1 | 2 |" in card
    assert "| covariance-weight | 0.05 |" in card
    for text in [*tiny.DEMO.glob("*.jsonl")]:
        for line in text.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            assert record["id"] not in card and record["subject"] not in card
            assert record["target_new"] not in card


def test_the_precision_of_the_checkpoint_is_kept(tmp_path, capsys):
    whole = tiny.make_model(tmp_path / "whole")
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(whole, dtype=torch.bfloat16).save_pretrained(half)
    AutoTokenizer.from_pretrained(whole).save_pretrained(half)
    run = short_run(tmp_path, half)
    output = tmp_path / "exported"
    arguments = ["export", str(run[2]), "--node", "bank", "--format", "hf"]
    assert main([*arguments, "--output", str(output)]) == 0, capsys.readouterr().err

    before, after = (
        AutoModelForCausalLM.from_pretrained(folder, dtype="auto") for folder in (half, output)
    )
    assert before.dtype == after.dtype == torch.bfloat16
    bench, ledger = opened(run)
    deltas, names = bench.deltas(ledger), bench.model.module_names((1, 2))
    edited = {f"{names[layer]}.weight": delta for layer, delta in deltas.items()}
    for name, weight in before.named_parameters():
        wanted = (weight.double() + edited.get(name, 0)).to(torch.bfloat16)
        assert torch.equal(after.get_parameter(name), wanted)


def test_dtype_of_a_checkpoint_whose_config_does_not_say_it(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    save_file({"a": torch.zeros(2, dtype=torch.int64)}, tmp_path / "model.safetensors")
    assert stored_dtype(tmp_path) == "float32"
    save_file({"b": torch.zeros(2, dtype=torch.float16)}, tmp_path / "model.safetensors")
    assert stored_dtype(tmp_path) == "float16"


def test_more_mkvs_than_the_matrix_has_rows():
    torch.manual_seed(0)
    shifts = torch.randn(30, 1, 8)
    delta = shifts[:, 0].T.double() @ torch.randn(30, 12, dtype=torch.float64)
    found = adapter({3: delta}, shifts)
    assert found.rank == 8 and found.exact and found.error < 1e-6
    assert [tuple(part.shape) for part in found.factors[3]] == [(8, 8), (8, 12)]
    assert adapter({3: delta}, shifts, 99).rank == 8


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--format", "delta", "--rank", "2"], "--rank 2: is for --format lora"),
        (["--format", "lora", "--rank", "0"], "--rank 0"),
    ],
)
def test_options_that_do_not_fit(run, tmp_path, capsys, more, told):
    arguments = ["export", str(run[2]), "--node", "bank", "--output", str(tmp_path / "new"), *more]
    assert main(arguments) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_what_is_there_is_not_overwritten(run, tmp_path, capsys):
    arguments = ["export", str(run[2]), "--node", "bank", "--output", str(tmp_path)]
    assert main([*arguments, "--format", "delta"]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["hf", "lora", "delta"])
def test_a_full_disk_leaves_nothing_of_an_export(run, tmp_path, monkeypatch, capsys, form):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fedit_app.ledger.export.save_file", full)
    monkeypatch.setattr("fedit_app.ledger.lora.save_file", full)
    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    arguments = ["export", str(run[2]), "--node", "bank", "--output", str(tmp_path / "new")]
    assert main([*arguments, "--format", form]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "fedit: error" in line)
    assert f"{tmp_path / 'new'}: cannot be written (No space left on device), and nothing" in line
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_the_disk_has_no_room_for_is_refused_before_it_is_made(
    run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("fedit_app.ledger.export.free_bytes", lambda _: 1000)
    monkeypatch.setattr("fedit_app.cli.places.workbench_for", None)
    arguments = ["export", str(run[2]), "--node", "bank", "--output", str(tmp_path / "new")]
    assert main([*arguments, "--format", "hf"]) == 2
    told = capsys.readouterr().err
    assert f"{tmp_path / 'new'}: no space on its disk" in told and "nothing was changed" in told
