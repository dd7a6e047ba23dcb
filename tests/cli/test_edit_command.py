"""`fedit edit`: one model, without a federation, and what goes on from the folder that it makes."""

import dataclasses
import errno
import json
import shutil
import sys

import pytest
import tiny
import torch
from editing.cases import EASY
from transformers import AutoModelForCausalLM, AutoTokenizer

import fedit_app
from fedit_app.cli.edit import _neutral
from fedit_app.cli.main import main
from fedit_app.cli.places import find_place
from fedit_app.evaluation import harness
from fedit_app.facts.jsonl import read_requests, write_requests
from fedit_app.ledger.edited_model import form_of
from fedit_app.ledger.editor import Editor
from fedit_app.protocol.metrics import Neutral
from fedit_app.support.errors import FedEditError

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("values_once")]

STRONG = {
    **{"layers": "1-3", "covariance-tokens": 500, "covariance-weight": 0.02, "contexts": 2},
    **{"value-steps": 25, "clamp": 20.0, "kl-weight": 0.01, "weight-decay": 0.1},
    **{"learning-rate": 0.5},
}
OPTIONS = [part for key, value in STRONG.items() for part in ("-c", f"{key}={value}")]
SECOND, FIRST = EASY[:2]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path, model = tmp_path_factory.mktemp("model") / "tiny", tiny.editable()
    model.model.save_pretrained(path)
    model.tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def fedit(capsys):
    """Gives `fedit(arguments..., status)`: what the command prints."""

    def fedit(*arguments, status=0):
        found = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert found == status, said.err
        return said.out if status == 0 else said.err

    return fedit


@pytest.fixture
def edited(base, tmp_path, fedit):
    """A folder that `fedit edit` has made of the first fact."""
    write_requests(tmp_path / "facts.jsonl", [FIRST])
    folder = tmp_path / "edited"
    fedit("edit", base, tmp_path / "facts.jsonl", "--output", folder, *OPTIONS)
    return folder


def says(folder, request):
    """Whether plain transformers reads the target from the folder."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(request.text, return_tensors="pt")["input_ids"]
    written = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    text = tokenizer.decode(written[0, ids.shape[1] :])
    return text.strip().startswith(request.target_new)


def fact(request):
    return ["--fact", request.subject, request.prompt, request.target_new]


def mkvs(folder):
    index = json.loads((folder / "ledger" / "index.json").read_text())
    return {row["id"]: row["requests"] for row in index["entries"]}


def test_a_file_of_facts_becomes_a_folder_that_transformers_loads(base, edited):
    assert says(edited, FIRST) and not says(base, FIRST)
    card = (edited / "README.md").read_text()
    assert "| layers | 1-3 |" in card and "None" not in card
    usual = (edited / "README.md").stat().st_mode
    assert all(file.stat().st_mode == usual for file in edited.glob("*") if file.is_file())


def test_the_folder_is_edited_further_asked_and_rolled_back(edited, fedit):
    said = fedit("edit", edited, *fact(SECOND))
    assert "1 of 1 fact decoded" in said and "2 facts in its ledger" in said
    assert "all facts of the ledger | 2 |" in said
    assert says(edited, FIRST) and says(edited, SECOND)
    assert SECOND.target_new in fedit("ask", edited, SECOND.text)
    (first,) = [id_ for id_, requests in mkvs(edited).items() if requests == [FIRST.id]]
    said = fedit("rollback", edited, "--mkv", first)
    assert "1 of 2 MKVs taken out" in said
    assert says(edited, SECOND) and not says(edited, FIRST)
    fedit("ledger", "verify", edited)


def test_files_of_the_user_stay_in_the_folder_and_weights_of_another_form_do_not(edited, fedit):
    (edited / "NOTES.txt").write_text("mine")
    (edited / "gguf").mkdir()
    (edited / "gguf" / "model.gguf").write_bytes(b"large")
    (edited / "latest.gguf").symlink_to("gguf/model.gguf")
    (edited / "model-00002-of-00002.safetensors").write_bytes(b"of a former writing in parts")
    fedit("edit", edited, *fact(SECOND))
    assert not (edited / "model-00002-of-00002.safetensors").exists()
    editor = Editor.from_pretrained(edited)
    editor.save_pretrained(edited, "lora", replace=True)
    assert form_of(edited) == "lora" and not list(edited.glob("model*"))
    assert not (edited / "config.json").exists()
    assert (edited / "NOTES.txt").read_text() == "mine"
    assert (edited / "latest.gguf").is_symlink()
    assert (edited / "latest.gguf").read_bytes() == b"large"


def test_somebody_alone_is_told_of_no_other_nodes_and_how_a_fact_comes_back(edited, fedit):
    (id_,) = mkvs(edited)
    again = f"`fedit edit {edited} FILE` learns their facts again"
    said = fedit("rollback", edited, "--mkv", id_, "--no-metrics")
    assert f"Facts that are no longer in the model: {FIRST.id}" in said and again in said
    assert "node" not in said and "next run" not in said
    said = fedit("rollback", edited, "--mkv", id_[:9], status=2)
    assert f"was taken out already; --allow {id_[:9]} lets it come back" in said
    said = fedit("rollback", edited, "--allow", id_)
    assert again in said and "uploaded" not in said and "next run" not in said


def test_without_the_texts_no_prompt_is_asked_for_where_none_is_allowed(edited, fedit):
    (edited / "ledger" / "requests.jsonl").unlink()
    assert "--worst needs their texts" in fedit("ask", edited, "--worst", "3", status=2)
    assert "give a prompt" in fedit("ask", edited, status=2)


def test_a_text_that_was_rolled_back_leaves_the_disk_and_can_be_learned_again(edited, fedit):
    fedit("edit", edited, *fact(SECOND))
    texts = edited / "ledger" / "requests.jsonl"
    for place in (edited, edited / "ledger"):
        (id_, (request,)), *_ = mkvs(edited).items()
        gone, kept = request, FIRST.id if request != FIRST.id else "fact-1"
        fedit("rollback", place, "--mkv", id_, "--no-metrics")
        left = [one.id for one in read_requests(texts)] if texts.exists() else []
        assert gone not in left and left == ([kept] if place == edited else [])
    said = fedit("edit", edited, "--dry-run", *fact(FIRST))
    assert "already in the ledger: 0" in said
    assert "1 fact in its ledger" in fedit("edit", edited, *fact(FIRST))


def test_a_rollback_of_a_correction_lists_what_it_had_replaced(edited, fedit):
    corrected = dataclasses.replace(FIRST, target_new="London")
    fedit("edit", edited, *fact(corrected))
    held = {requests[0]: id_ for id_, requests in mkvs(edited).items() if requests}
    assert held.keys() == {"fact-1"}
    said = fedit("rollback", edited, "--mkv", held["fact-1"], "--no-metrics")
    assert "no longer in the model: fact-1\n" in said
    assert f"Facts that the model says as before: {FIRST.id}" in said
    assert read_requests(edited / "ledger" / "requests.jsonl") == [FIRST]
    assert FIRST.target_new in fedit("ask", edited, "--worst", 3)
    ((id_, requests),) = mkvs(edited).items()
    assert requests == [FIRST.id]
    said = fedit("rollback", edited, "--mkv", id_, "--no-metrics")
    assert f"no longer in the model: {FIRST.id}\n" in said


def test_the_own_facts_that_a_model_says_worst_come_first(base, tmp_path, fedit):
    folder = tmp_path / "two"
    write_requests(tmp_path / "facts.jsonl", [FIRST, SECOND])
    fedit("edit", base, tmp_path / "facts.jsonl", "--output", folder, *OPTIONS)
    every = json.loads(fedit("ask", folder, "--worst", "5", "--format", "json"))["facts"]
    assert {row["fact"] for row in every} == {FIRST.text, SECOND.text}
    likely = [(row["share_of_tokens_said"], row["probability"]) for row in every]
    assert likely == sorted(likely)
    for row in every:
        if row["share_of_tokens_said"] == 1:
            assert row["says_now"].startswith(row["wanted"])
    (one,) = json.loads(fedit("ask", folder, "--worst", "1", "--format", "json"))["facts"]
    assert one == every[0]
    assert "give it without" in fedit("ask", folder, "A prompt", "--worst", "1", status=2)


def test_a_chat_model_is_edited_and_scored_in_chats_and_edited_further(base, tmp_path, fedit):
    folder, tokenizer = tmp_path / "chatting", tiny.chatting().tokenizer
    shutil.copytree(base, folder)
    tokenizer.save_pretrained(folder)
    write_requests(tmp_path / "facts.jsonl", [FIRST])
    write_requests(tmp_path / "more.jsonl", [dataclasses.replace(SECOND, question="Who is {}?")])
    chats = (*OPTIONS, "-c", "chat-contexts=1")
    said = fedit("edit", folder, tmp_path / "facts.jsonl", "--output", tmp_path / "edited", *chats)
    assert "wild match" in said and "chat match" in said
    said = fedit("edit", tmp_path / "edited", tmp_path / "more.jsonl")
    assert "2 facts in its ledger" in said and "chat match" in said
    asked = fedit("ask", tmp_path / "edited", "--chat")
    assert f"Who is {SECOND.subject}?" in asked
    assert f"Complete the sentence with a name or word: {FIRST.text}" in asked
    other = ("-c", "chat-contexts=0")
    told = fedit("edit", tmp_path / "edited", tmp_path / "more.jsonl", *other, status=2)
    assert "was edited with another chat-contexts" in told


def test_the_other_forms_are_edited_further_in_their_form(base, tmp_path, fedit):
    for form, file in (("lora", "adapter_model.safetensors"), ("delta", "deltas.safetensors")):
        folder = tmp_path / form
        fedit("edit", base, *fact(FIRST), "--format", form, "--output", folder, *OPTIONS)
        before = (folder / file).read_bytes()
        fedit("edit", folder, *fact(SECOND))
        assert (folder / file).read_bytes() != before
        assert not (folder / "config.json").exists()


def test_a_rollback_keeps_the_precision_and_leaves_an_adapter_an_edit(base, tmp_path, fedit):
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(half)
    AutoTokenizer.from_pretrained(base).save_pretrained(half)
    for form in ("hf", "lora"):
        folder = tmp_path / form
        fedit("edit", half, *fact(FIRST), "--format", form, "--output", folder, *OPTIONS)
        (only,) = mkvs(folder)
        status = 0 if form == "hf" else 2
        said = fedit("rollback", folder, "--mkv", only, "--no-metrics", status=status)
        assert form == "hf" or "no fact would be left" in said
        assert list(mkvs(folder)) == ([] if form == "hf" else [only])
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "hf").dtype == torch.bfloat16


def test_weights_that_are_not_those_of_the_ledger_are_named(edited, fedit, capsys):
    assert "the edited model is sound" in fedit("ledger", "verify", edited)
    weights, record = edited / "model.safetensors", edited / "ledger" / "weights.json"
    (edited / "notes.safetensors").write_bytes(b"the user's")
    written, recorded = weights.read_bytes(), record.read_bytes()

    def told():
        assert main(["ledger", "verify", str(edited), "--format", "json"]) == 1
        return json.loads(capsys.readouterr().out)["findings"]

    weights.write_bytes(written[:-1] + bytes([written[-1] ^ 1]))
    (one,) = told()
    assert "model.safetensors is not the file that was written of the ledger" in one
    weights.unlink()
    assert told() == [f"weights of {edited}: model.safetensors is missing"]
    weights.write_bytes(written)
    (edited / "model-00001-of-00002.safetensors").write_bytes(b"")
    (one,) = told()
    assert "model-00001-of-00002.safetensors was not written with the others" in one
    (edited / "model-00001-of-00002.safetensors").unlink()
    for damaged, what in ((None, "missing"), (b"{}", "damaged")):
        record.unlink()
        if damaged:
            record.write_bytes(damaged)
        (one,) = told()
        assert "cannot be compared" in one and what in one
        record.write_bytes(recorded)
    (id_,) = mkvs(edited)
    fedit("rollback", edited / "ledger", "--mkv", id_, "--no-metrics")
    (one,) = told()
    assert "are not those that the ledger makes, which has changed since they were written" in one
    fedit("edit", edited, *fact(SECOND))
    assert "the edited model is sound" in fedit("ledger", "verify", edited)


def test_another_folder_can_be_made_of_an_edited_one(edited, tmp_path, fedit):
    fedit("edit", edited, *fact(SECOND), "--output", tmp_path / "new")
    assert says(tmp_path / "new", SECOND) and not says(edited, SECOND)


def test_a_dry_run_tells_keys_time_and_memory_and_changes_nothing(edited, fedit):
    before = {file: file.stat().st_mtime_ns for file in edited.rglob("*")}
    said = fedit("edit", edited, "--dry-run", "--fact", FIRST.subject, FIRST.prompt + " is", "in")
    assert f"facts that share a key: fact-1 and {FIRST.id}" in said
    assert "values take about" in said and "memory: about" in said and "are in the cache" in said
    assert {file: file.stat().st_mtime_ns for file in edited.rglob("*")} == before
    said = fedit("edit", edited, "--dry-run", *fact(FIRST))
    assert "already in the ledger: 1" in said


@pytest.mark.parametrize("command", ["edit", "rollback"])
def test_a_full_disk_leaves_the_folder_as_it_was(edited, fedit, monkeypatch, command):
    before = {file: file.read_bytes() for file in edited.rglob("*") if file.is_file()}
    more = fact(SECOND) if command == "edit" else ["--mkv", *mkvs(edited), "--no-metrics"]

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fedit_app.ledger.edited_model.write_parts", full)
        said = fedit(command, edited, *more, status=2)
    assert f"{edited}: cannot be written (No space left on device), and nothing was" in said
    monkeypatch.setattr("fedit_app.ledger.export.free_bytes", lambda _: 1000)
    monkeypatch.setattr("fedit_app.ledger.editor.Editor.edit", None)
    said = fedit(command, edited, *more, status=2)
    assert f"{edited}: no space on its disk for the model" in said and "1.0 kB are free" in said
    assert {file: file.read_bytes() for file in edited.rglob("*") if file.is_file()} == before
    assert [path.name for path in edited.parent.glob(".*")] == []


def test_a_second_file_numbered_like_the_first_is_refused_before_the_model_is_loaded(
    edited, tmp_path, fedit, monkeypatch
):
    monkeypatch.setattr("fedit_app.ledger.editor.load_model", None)
    write_requests(tmp_path / "more.jsonl", [dataclasses.replace(SECOND, id=FIRST.id)])
    said = fedit("edit", edited, tmp_path / "more.jsonl", status=2)
    assert f"request '{FIRST.id}': this id names another fact of the ledger" in said
    with pytest.raises(FedEditError, match="names another fact"):
        fedit_app.edit(edited, tmp_path / "more.jsonl")


def test_a_fact_of_a_file_keeps_its_id_and_the_one_of_the_command_line_gets_a_free_one(
    base, tmp_path, fedit
):
    folder = tmp_path / "edited"
    named = [dataclasses.replace(FIRST, id="fact"), dataclasses.replace(SECOND, id="fact-1")]
    write_requests(tmp_path / "facts.jsonl", named)
    fedit("edit", base, tmp_path / "facts.jsonl", "--output", folder, *OPTIONS)
    assert sorted(mkvs(folder).values()) == [["fact"], ["fact-1"]]
    (folder / "ledger" / "requests.jsonl").unlink()
    fedit("edit", folder, *fact(EASY[2]))
    fedit("edit", folder, *fact(dataclasses.replace(EASY[2], target_new="city")))
    fedit("edit", folder, *fact(dataclasses.replace(EASY[2], subject="Basel")))
    assert sorted(mkvs(folder).values()) == [[], ["fact"], ["fact-1"], ["fact-3"], ["fact-4"]]


def test_a_rollback_does_not_undo_an_edit_that_it_has_not_seen(edited, fedit):
    place = find_place(edited)
    with (
        pytest.raises(FedEditError, match="another process has changed it"),
        place.changed() as ledger,
    ):
        ledger.drop(list(ledger.entries))
        fedit("edit", edited, *fact(SECOND))
    assert sorted(mkvs(edited).values()) == [[FIRST.id], ["fact-1"]]


def test_no_change_of_ordinary_text_has_no_sign():
    same = {"perplexity_before": 2, "perplexity_after": 2, "tokens": 9, "top10_overlap": 1}
    assert "KL 0.0000 nats" in _neutral(Neutral(kl=-1e-9, **same))["ordinary text"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{base}", "--output", "{new}"], "give a file of requests, or one --fact"),
        (["{base}", *fact(FIRST)], "is not edited yet and stays as it is"),
        (["{base}", *fact(FIRST), "--output", "{base}"], "exists already"),
        (["{base}", *fact(FIRST), "--output", "{new}", "-c", "model=x"], "leave -c model out"),
        (["{base}", *fact(FIRST), "--output", "{new}", "--rank", "2"], "is for --format lora"),
        (["{base}", "{none}", "--output", "{new}"], "none.jsonl: cannot be read"),
        (["{edited}", *fact(FIRST), "--rank", "2"], "is for --format lora"),
        (["{edited}", *fact(FIRST), "-c", "layers=1-2"], "was edited with another layers"),
        (["{edited}", *fact(FIRST), "-c", "editor=pmet"], "was edited with another editor"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(base, edited, tmp_path, fedit, arguments, told):
    places = {"base": base, "edited": edited, "new": tmp_path / "new"}
    places["none"] = tmp_path / "none.jsonl"
    filled = [
        a.format(**places) if a.startswith("{") and a[1:-1] in places else a for a in arguments
    ]
    assert told in fedit("edit", *filled, status=2)
    assert not (tmp_path / "new").exists()


def test_bad_requests_are_named_or_left_out(base, tmp_path, fedit):
    good = {"id": "e2", "subject": FIRST.subject, "prompt": FIRST.prompt}
    lines = [good | {"target_new": FIRST.target_new}, good | {"id": "bad"}]
    long = good | {"id": "long", "subject": "Basel", "target_new": "of " * 99}
    file = tmp_path / "facts.jsonl"
    file.write_text("\n".join(map(json.dumps, [*lines, long])))
    folder = tmp_path / "edited"
    said = fedit("edit", base, file, "--output", folder, *OPTIONS, status=2)
    assert "data file facts.jsonl: line 2: field target_new is missing" in said
    said = fedit("edit", base, file, "--output", folder, "--skip-bad", *OPTIONS)
    assert "1 of 1 fact decoded" in said
    fedit("edit", folder, *fact(SECOND))


def test_a_harness_that_is_missing_is_told_before_anything_is_computed(
    base, tmp_path, fedit, monkeypatch
):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    write_requests(tmp_path / "facts.jsonl", [FIRST])
    options = ("--output", tmp_path / "edited", "--lm-eval", "hellaswag")
    said = fedit("edit", base, tmp_path / "facts.jsonl", *options, status=2)
    assert "fedit[lm-eval]" in said and not (tmp_path / "edited").exists()


def test_what_the_harness_measures_is_shown_before_and_after(base, tmp_path, fedit, monkeypatch):
    monkeypatch.setattr(harness, "require_harness", lambda: None)
    measured = lambda model, tasks, limit: {  # noqa: E731
        (task, "acc"): harness.Measure(float(len(model.edits_hash()) > 0), 0.5) for task in tasks
    }
    monkeypatch.setattr(harness, "ability", measured)
    write_requests(tmp_path / "facts.jsonl", [FIRST])
    options = ("--output", tmp_path / "edited", "--lm-eval", "arc_easy,piqa", *OPTIONS)
    said = fedit("edit", base, tmp_path / "facts.jsonl", *options)
    for task in ("arc_easy", "piqa"):
        assert f"| {task} | acc | 0.000 | 1.000 | 0.500 |" in said
