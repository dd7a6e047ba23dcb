"""Values found on disk are bit for bit those that would be computed, and no others."""

import dataclasses
import multiprocessing

import pytest
import tiny
import torch
from editing.cases import EASY, ODD, REQUESTS, SETTINGS, TEMPLATES

from fedit_app.editing import optimise, value_store
from fedit_app.editing.editors import EDITORS
from fedit_app.editing.value_store import ValueStore

ALONE = dataclasses.replace(SETTINGS, batch=1, steps=4)


@pytest.fixture
def computed(monkeypatch):
    """How many requests each batch had that was really optimised."""
    batches = []
    plain = optimise._minimise_in_memory

    def count(model, rows, *others):
        batches.append(len(rows))
        return plain(model, rows, *others)

    monkeypatch.setattr(optimise, "_minimise_in_memory", count)
    return batches


def values(folder, requests=EASY, editor="memit", settings=ALONE, starts=None, templates=TEMPLATES):
    store = None if folder is None else ValueStore(folder)
    found = EDITORS[editor].values(
        tiny.editable(), requests, templates, settings, starts, store=store
    )
    return found, store.found if store else 0


def same(one, other):
    return all(
        torch.equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True)
    )


@pytest.mark.parametrize("editor", ["memit", "pmet", *tiny.later("memit-fe")])
@pytest.mark.parametrize("batch", [*tiny.later(1, 0), 2])
def test_what_is_found_is_what_would_be_computed(tmp_path, computed, editor, batch):
    requests, settings = EASY + REQUESTS + ODD, dataclasses.replace(ALONE, batch=batch)
    plain, _ = values(None, requests, editor, settings)
    first, before = values(tmp_path, requests, editor, settings)
    done = len(computed)
    again, found = values(tmp_path, requests, editor, settings)
    assert same(plain, first) and same(plain, again)
    assert (before, found) == (0, len(requests)) and len(computed) == done


def test_alone_a_request_is_found_in_whatever_company_it_is_asked_for(tmp_path, computed):
    values(tmp_path, EASY + ODD)
    computed.clear()
    renamed = [dataclasses.replace(r, id=f"node-2/{r.id}", slot=3) for r in (ODD[2], EASY[1])]
    plain, _ = values(None, [REQUESTS[0], *renamed])
    computed.clear()
    mixed, found = values(tmp_path, [REQUESTS[0], *renamed])
    assert same(plain, mixed) and (found, computed) == (2, [1])


def test_a_batch_is_found_as_a_whole_only(tmp_path, computed):
    settings = dataclasses.replace(ALONE, batch=0)
    values(tmp_path, EASY, settings=settings)
    _, found = values(tmp_path, EASY[:2], settings=settings)
    assert (found, computed) == (0, [3, 2])
    assert values(tmp_path, EASY[::-1], settings=settings)[1] == 3, "the order does not matter"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"settings": dataclasses.replace(ALONE, clamp=3.0)}, 0),
        ({"settings": dataclasses.replace(ALONE, learning_rate=0.4)}, 0),
        ({"settings": dataclasses.replace(ALONE, layers=(1, 2))}, 0),
        ({"settings": dataclasses.replace(ALONE, layers=(2, 3))}, 3),
        ({"settings": dataclasses.replace(ALONE, covariance_weight=9.0, l2=1.0)}, 3),
        ({"editor": "alphaedit"}, 3),  # its values are MEMIT's
        ({"editor": "pmet"}, 0),
        ({"templates": TEMPLATES[:2]}, 0),
        ({"starts": [None, torch.ones(tiny.D_MODEL), None]}, 2),
        ({"requests": [dataclasses.replace(r, target_new="Paris") for r in EASY]}, 0),
        ({"requests": [dataclasses.replace(r, target_true="Paris") for r in EASY]}, 3),
    ],
)
def test_what_a_value_depends_on(tmp_path, change, found):
    values(tmp_path)
    assert values(tmp_path, **change)[1] == found


def test_an_edited_model_has_values_of_its_own(tmp_path):
    model = tiny.editable()
    values(tmp_path)
    delta = torch.zeros(model.d_model, model.d_ff)
    with model.edited({1: delta}):
        assert values(tmp_path)[1] == 3, "nothing is changed yet"
    with model.edited({1: delta + 0.1}):
        assert values(tmp_path)[1] == 0
        with model.edited({1: delta, 2: delta}):
            assert values(tmp_path)[1] == 3, "the edit is undone inside"
        assert values(tmp_path)[1] == 3
    assert model.edits_hash() == "" and values(tmp_path)[1] == 3


def test_other_numerics_and_another_precision_have_values_of_their_own(tmp_path, monkeypatch):
    values(tmp_path)
    store = ValueStore(tmp_path)
    given = (EASY, TEMPLATES, ALONE)
    EDITORS["memit"].values(tiny.editable(double=True), *given, store=store)
    assert store.found == 0
    monkeypatch.setattr(value_store, "NUMERICS_VERSION", 0)
    assert values(tmp_path)[1] == 0


def test_a_damaged_file_is_computed_anew(tmp_path, log):
    plain, _ = values(tmp_path)
    files = sorted(tmp_path.rglob("*.safetensors"))
    files[0].write_bytes(files[0].read_bytes()[:50])
    files[1].write_bytes(b"")
    again, found = values(tmp_path)
    assert same(plain, again) and found == 1
    assert log.text.count("computing it again") == 2
    assert values(tmp_path)[1] == 3


def test_the_files_hold_no_text(tmp_path):
    values(tmp_path, REQUESTS)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == len(REQUESTS)
    held = b"".join(file.name.encode() + file.read_bytes() for file in files)
    for request in REQUESTS:
        assert request.subject.encode() not in held and request.target_new.encode() not in held


def _in_a_process(folder, queue):
    torch.set_num_threads(1)
    queue.put([part.numpy() for part in vars(values(folder)[0]).values()])


@pytest.mark.slow
def test_two_processes_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_in_a_process, args=(tmp_path, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [queue.get(timeout=600) for _ in workers]
    for worker in workers:
        worker.join()
    plain = [part.numpy() for part in vars(values(None)[0]).values()]
    assert all((a == b).all() for one in found for a, b in zip(one, plain, strict=True))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    assert not list(tmp_path.rglob("*.tmp"))
