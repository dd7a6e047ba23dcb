"""The public `Editor`: what is promised to somebody who edits one model in a notebook."""

import dataclasses

import pytest
import tiny
import torch
from editing.cases import EASY
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import fedit_app
from fedit_app import Editor, FedEditError
from fedit_app.facts.jsonl import write_requests

pytestmark = pytest.mark.usefixtures("values_once")

STRONG = {
    "layers": "1-3",
    "covariance_tokens": 500,
    "covariance_weight": 0.02,
    "contexts": 2,
    "value_steps": 25,
    "clamp": 20.0,
    "kl_weight": 0.01,
    "weight_decay": 0.1,
    "learning_rate": 0.5,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model on disk whose weights are so large that any target can be learned."""
    path, model = tmp_path_factory.mktemp("model") / "tiny", tiny.editable()
    model.model.save_pretrained(path)
    model.tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def editor(folder):
    return Editor.from_pretrained(folder, **STRONG)


def says(answer, request):
    return answer.text.strip().startswith(request.target_new)


def test_an_edit_is_reported_asked_and_rolled_back(editor):
    report = editor.edit(EASY[:2])
    assert report.decoded == 2 and [fact.mkv for fact in report.facts] == list(
        editor.ledger.fulfilled().values()
    )
    assert "2 of 2 facts decoded" in str(report) and "Reuters" not in str(report)
    asked = editor.ask(EASY[0].text)
    assert says(asked.after, EASY[0]) and not says(asked.before, EASY[0])
    assert "before" in str(asked) and "after" in str(asked)
    editor.rollback(["e1"])
    assert not says(editor.ask(EASY[0].text).after, EASY[0])
    assert says(editor.ask(EASY[1].text).after, EASY[1])
    with pytest.raises(FedEditError, match="'e1': not in the ledger; its requests are: e2"):
        editor.rollback(["e1"])


def test_a_later_edit_of_a_fact_replaces_the_earlier_one_and_rollback_restores_it(editor):
    first = EASY[0]
    second = dataclasses.replace(first, id="e9", target_new="published")
    editor.edit([first])
    assert editor.edit([second]).decoded == 1
    assert len(editor.ledger) == 1 and len(editor.ledger.entries) == 2
    assert editor.ledger.fulfilled().keys() == {"e9"}
    editor.rollback(["e9"])
    assert says(editor.ask(first.text).after, first)


def test_a_rollback_of_a_correction_brings_the_corrected_fact_back_into_the_books(folder, tmp_path):
    first, place = EASY[0], tmp_path / "ledger"
    corrected = dataclasses.replace(first, id="e9", target_new="published")
    Editor.from_pretrained(folder, ledger=place, **STRONG).edit([first])
    Editor.from_pretrained(folder, ledger=place, **STRONG).edit([corrected])
    editor = Editor.from_pretrained(folder, ledger=place, **STRONG)
    assert editor.requests == [corrected]
    taken = dataclasses.replace(EASY[1], id=first.id)
    with pytest.raises(
        FedEditError, match="'e1': .*, which a later one has replaced; give the new"
    ):
        editor.edit([taken])
    editor.rollback(["e9"])
    assert editor.requests == [first] and editor.ledger.fulfilled().keys() == {"e1"}
    again = Editor.from_pretrained(folder, ledger=place, **STRONG)
    assert again.requests == [first] and says(again.ask(first.text).after, first)
    again.rollback(["e1"])
    assert again.requests == [] and len(again.ledger) == 0
    left = b"".join(file.read_bytes() for file in place.rglob("*.jsonl") if file.stem != "journal")
    assert left == b"", "the texts leave the disk with their facts"
    again.edit([taken])


def test_a_corrected_fact_comes_back_with_its_own_text_though_the_id_is_the_same(editor):
    old, other = EASY[:2]
    new = dataclasses.replace(old, target_new="published")
    editor.edit([old, other])
    (fact,) = editor.edit([new]).facts
    assert editor.requests == [new, other]
    editor.rollback([fact.mkv])
    assert sorted(editor.requests, key=lambda one: one.id) == [old, other]


def test_the_same_facts_twice_change_nothing(editor):
    editor.edit(EASY[:1])
    weights = editor.bench.deltas(editor.ledger)
    editor.edit(EASY[:1])
    editor.edit([dataclasses.replace(EASY[0], id="again")])
    again = editor.bench.deltas(editor.ledger)
    assert all(torch.equal(weights[layer], again[layer]) for layer in weights)
    assert editor.ledger.fulfilled().keys() == {"e1", "again"}


def test_a_second_fact_about_a_subject_is_learned_with_the_first_also_by_another_editor(
    folder, tmp_path
):
    first = Editor.from_pretrained(folder, ledger=tmp_path / "ledger", **STRONG)
    first.edit(EASY[:1])
    second = Editor.from_pretrained(folder, ledger=tmp_path / "ledger", **STRONG)
    another = dataclasses.replace(EASY[0], id="e9", prompt=f"{EASY[0].prompt} is", target_new="in")
    second.edit([another])
    fulfilled = second.ledger.fulfilled()
    assert fulfilled["e1"] == fulfilled["e9"] and len(second.ledger) == 1
    second.rollback(["e9"])
    assert second.ledger.fulfilled().keys() == {"e1"}


def test_edits_where_the_caller_wants_no_gradients(editor):
    """As in a notebook that begins with torch.no_grad() or set_grad_enabled(False)."""
    with torch.no_grad():
        assert editor.edit(EASY[:1]).decoded == 1


def test_a_fact_is_rolled_back_without_the_one_that_shares_its_value(folder):
    editor = Editor.from_pretrained(folder, **STRONG)
    another = dataclasses.replace(EASY[0], id="e9", prompt=f"{EASY[0].prompt} is", target_new="in")
    editor.edit([EASY[0], another])
    assert len(editor.ledger) == 1
    editor.rollback(["e1"])
    assert editor.ledger.fulfilled().keys() == {"e9"} and len(editor.ledger) == 1
    assert [request.id for request in editor.requests] == ["e9"]


def test_a_saved_folder_is_continued(folder, tmp_path):
    first = Editor.from_pretrained(folder, **STRONG)
    first.edit(EASY[:1])
    first.save_pretrained(tmp_path / "edited")
    second = Editor.from_pretrained(tmp_path / "edited")
    assert second.requests == EASY[:1] and second.ledger.head == first.ledger.head
    with pytest.raises(FedEditError, match="was edited with another layers"):
        Editor.from_pretrained(tmp_path / "edited", layers="1-2")
    second.edit(EASY[1:2])
    assert Editor.from_pretrained(tmp_path / "edited").requests == EASY[:1], "until it is saved"


def test_of_two_edits_of_one_folder_at_a_time_neither_is_lost(folder, tmp_path):
    edited = tmp_path / "edited"
    begun = Editor.from_pretrained(folder, **STRONG)
    begun.edit(EASY[:1])
    begun.save_pretrained(edited)
    first, second = (Editor.from_pretrained(edited) for _ in range(2))
    first.edit(EASY[1:2])
    first.save_pretrained(edited, replace=True)
    for late in (second, begun):
        late.edit(EASY[2:3])
        with pytest.raises(FedEditError, match="another process has changed it"):
            late.save_pretrained(edited, replace=True)
    assert Editor.from_pretrained(edited).requests == EASY[:2]
    assert [path.name for path in tmp_path.glob(".*")] == []
    first.edit(EASY[2:3])
    first.save_pretrained(edited, replace=True)
    assert Editor.from_pretrained(edited).requests == EASY[:3]


def test_an_id_of_another_fact_is_refused_and_the_earlier_fact_stays_in_the_books(editor):
    editor.edit(EASY[:1])
    reused = dataclasses.replace(EASY[1], id="e1")
    told = "request 'e1': this id names another fact of the ledger, 'The head office of Reuters'"
    with pytest.raises(FedEditError, match=told):
        editor.edit([reused])
    assert editor.requests == EASY[:1]
    corrected = dataclasses.replace(EASY[0], target_new="published")
    assert editor.edit([corrected]).decoded == 1 and editor.requests == [corrected]
    editor.rollback(["e1"])
    editor.edit([reused])
    assert editor.requests == [reused]


def test_an_id_whose_text_is_lost_is_refused_and_not_taken_for_learned(folder, tmp_path):
    Editor.from_pretrained(folder, ledger=tmp_path / "ledger", **STRONG).edit(EASY[:1])
    (tmp_path / "ledger" / "requests.jsonl").unlink()
    again = Editor.from_pretrained(folder, ledger=tmp_path / "ledger", **STRONG)
    with pytest.raises(FedEditError, match="request 'e1': .* whose text is not in its requests"):
        again.edit([dataclasses.replace(EASY[1], id="e1")])
    assert again.edit(EASY[1:2]).decoded == 1


def test_of_two_targets_for_one_prompt_the_later_one_counts_and_the_other_is_named(editor, caplog):
    first = dataclasses.replace(EASY[0], id="e9", target_new="London")
    report = editor.edit([first, *EASY[:2]])
    assert [fact.request.id for fact in report.facts] == ["e1", "e2"] and report.decoded == 2
    assert editor.requests == EASY[:2]
    assert "request e9 is left out: e1 asks the same with another target" in caplog.text


def test_one_id_for_two_requests_is_refused(editor):
    with pytest.raises(FedEditError, match="'e1' is used more than once"):
        editor.edit([EASY[0], dataclasses.replace(EASY[1], id="e1")])


def test_a_loaded_model_is_edited_inside_the_block_only_and_stays_usable(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    editor = Editor(model, tokenizer, **STRONG)
    editor.edit(EASY[:1])
    with editor.edited() as edited:
        assert edited is model
        write = pipeline("text-generation", model=edited, tokenizer=tokenizer)
        text = write(EASY[0].text, max_new_tokens=2, do_sample=False)[0]["generated_text"]
    assert text.removeprefix(EASY[0].text).strip().startswith(EASY[0].target_new)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_fingerprint_of_a_loaded_model_depends_on_its_weights(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    models = [AutoModelForCausalLM.from_pretrained(folder) for _ in range(3)]
    with torch.no_grad():
        models[2].get_input_embeddings().weight[0, 0] += 1
    prints = [Editor(model, tokenizer, **STRONG).bench.model.fingerprint for model in models]
    assert prints[0] == prints[1] != prints[2]


def test_a_ledger_on_disk_is_continued(folder, tmp_path):
    first = Editor.from_pretrained(folder, ledger=tmp_path / "ledger", **STRONG)
    first.edit(EASY[:1])
    second = Editor.from_pretrained(folder, ledger=tmp_path / "ledger", **STRONG)
    assert says(second.ask(EASY[0].text).after, EASY[0])
    second.edit(EASY[1:2])
    second.rollback(["e1"])
    assert second.ledger.fulfilled().keys() == {"e2"}
    with pytest.raises(FedEditError, match="fingerprint"):
        Editor.from_pretrained(folder, ledger=tmp_path / "ledger", **{**STRONG, "layers": "1-2"})


def test_one_call_turns_a_file_of_facts_into_a_folder_that_transformers_loads(folder, tmp_path):
    write_requests(tmp_path / "facts.jsonl", EASY[:1])
    output = tmp_path / "edited"
    report = fedit_app.edit(folder, tmp_path / "facts.jsonl", output, **STRONG)
    assert report.decoded == 1
    assert says(fedit_app.ask(output, EASY[0].text), EASY[0])
    assert (output / "README.md").exists()
    with pytest.raises(FedEditError, match="exists already"):
        fedit_app.edit(folder, EASY[:1], output, **STRONG)


def test_a_setting_that_does_not_exist_is_refused_by_name(folder):
    with pytest.raises(FedEditError, match="value-stepz"):
        Editor.from_pretrained(folder, value_stepz=3)


def test_what_the_model_cannot_take_is_refused_or_left_out_before_it_is_learned(folder, caplog):
    long = dataclasses.replace(EASY[1], id="long", target_new="of " * 99)
    with pytest.raises(FedEditError, match="1 request cannot be edited with this model"):
        Editor.from_pretrained(folder, **STRONG).edit([EASY[0], long])
    editor = Editor.from_pretrained(folder, **STRONG, on_bad_request="skip")
    report = editor.edit([EASY[0], long])
    assert [fact.request.id for fact in report.facts] == ["e1"]
    assert "request long: target_new has 99 tokens" in caplog.text
    with pytest.raises(FedEditError, match="cannot be edited"):
        editor.edit([long])
