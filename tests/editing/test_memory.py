"""As many requests at once as fit in memory, and fewer when they do not."""

from types import SimpleNamespace

import pytest
import tiny
import torch
from editing.cases import EASY, ODD, REQUESTS, SETTINGS, TEMPLATES, relative

from fedit_app.editing import optimise
from fedit_app.editing.editors import EDITORS
from fedit_app.editing.optimise import batch_that_fits
from fedit_app.editing.values import ValueProblem, key_rows
from fedit_app.support.errors import FedEditError

pytestmark = pytest.mark.long

MANY = EASY + REQUESTS + ODD


@pytest.fixture(scope="module")
def model():
    return tiny.editable(double=True)


@pytest.fixture
def room(monkeypatch):
    """Gives `room(n, passes)`: a device where a batch of more than n fails after some passes."""

    def room(most, passes=0):
        plain, done = ValueProblem.evaluate, []

        def evaluate(self, delta):
            n = len(self.states)
            done.append(n)
            if n > most and len(done) > passes:
                raise torch.OutOfMemoryError("out of memory")
            return plain(self, delta)

        monkeypatch.setattr(ValueProblem, "evaluate", evaluate)
        return done

    return room


def agree(found, expected):
    assert torch.equal(found.steps, expected.steps)
    for name in ("v_star", "h0", "loss"):
        assert relative(getattr(found, name), getattr(expected, name)) < 1e-8, name


@pytest.mark.parametrize("passes", [0, 3])
@pytest.mark.parametrize("editor", ["memit", "pmet"])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(model, room, log, editor, passes):
    expected = EDITORS[editor].values(model, MANY, TEMPLATES, SETTINGS)
    sizes = room(3, passes)
    found = EDITORS[editor].values(model, MANY, TEMPLATES, SETTINGS)
    agree(found, expected)
    warnings = [record.message for record in log.records if record.levelname == "WARNING"]
    assert warnings == [
        "v*: 12 facts at once do not fit in memory, trying 6",
        "v*: 6 facts at once do not fit in memory, trying 3",
    ]
    assert set(sizes[passes + 2 :]) == {3}, "once known, the size that fits is kept"


def test_the_halves_of_an_odd_rest_are_done_as_well(model, room):
    expected = EDITORS["memit"].values(model, MANY[:7], TEMPLATES, SETTINGS)
    room(2)
    agree(EDITORS["memit"].values(model, MANY[:7], TEMPLATES, SETTINGS), expected)


def test_memory_that_runs_out_while_a_batch_is_prepared(model, monkeypatch):
    expected = EDITORS["memit"].values(model, EASY, TEMPLATES, SETTINGS)
    plain = ValueProblem.of

    def prepare(model, requests, site):
        if len(requests) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return plain(model, requests, site)

    monkeypatch.setattr(ValueProblem, "of", prepare)
    agree(EDITORS["memit"].values(model, EASY, TEMPLATES, SETTINGS), expected)


def test_one_request_that_does_not_fit_is_an_error_with_a_remedy(model, room):
    room(0)
    with pytest.raises(FedEditError, match="out of memory .* a single value; .*fewer contexts"):
        EDITORS["memit"].values(model, EASY, TEMPLATES, SETTINGS)


def test_the_batch_grows_with_the_free_memory(model, monkeypatch):
    rows = [key_rows(model, [request], TEMPLATES) for request in MANY]
    free = SimpleNamespace(available=0)
    monkeypatch.setattr(optimise.psutil, "virtual_memory", lambda: free)
    found = []
    for free.available in (0, 10**6, 10**7, 2 * 10**7, 4 * 10**7, 10**8, 10**15):
        found.append(batch_that_fits(model, rows, 2))
    assert found == sorted(found)
    assert found[0] == 1 and found[-1] == 32
    assert len(set(found)) > 3, "it is either one or as many as possible"


def test_longer_requests_and_lower_sites_leave_room_for_fewer(model, monkeypatch):
    short, long = (
        [key_rows(model, [request], TEMPLATES) for request in requests]
        for requests in (EASY, REQUESTS)
    )
    free = SimpleNamespace(available=10**7)
    monkeypatch.setattr(optimise.psutil, "virtual_memory", lambda: free)
    assert batch_that_fits(model, long, 2) < batch_that_fits(model, short, 2)
    assert batch_that_fits(model, long, 0) < batch_that_fits(model, long, 3)
    contexts = [key_rows(model, [request], TEMPLATES * 2) for request in REQUESTS]
    assert batch_that_fits(model, contexts, 2) < batch_that_fits(model, long, 2)
    copies = [key_rows(model, [request], TEMPLATES, with_copy=True) for request in REQUESTS]
    assert batch_that_fits(model, copies, 2) < batch_that_fits(model, long, 2)
