"""What stands before the subject is computed once, and is what a plain full pass computes."""

import pytest
import tiny
import torch
from editing import reference
from editing.cases import ODD, REQUESTS, relative

from fedit_app.editing import prefixes
from fedit_app.editing.prefixes import trace_from_lookup
from fedit_app.models.tokens import TokenRow, subject_row

FIRST = 2


def random_ids(generator, count):
    return tuple(torch.randint(2, 300, (count,), generator=generator).tolist())


def rows_of_groups(*groups):
    """Random rows, and the number of each one's group.

    Args:
        groups: (tokens that all of a group begin with, tokens before the lookup one behind them).
    """
    generator = torch.Generator().manual_seed(3)
    rows, numbers = [], []
    for number, (shared, lengths) in enumerate(groups):
        beginning = random_ids(generator, shared)
        for i, own in enumerate(lengths):
            before = beginning + random_ids(generator, own)
            target = len(before) + 1 + i % 3
            ids = before + random_ids(generator, 2 + i % 4 + i % 3)
            with_target = i % 5 != 4
            ids = ids if with_target else ids[: target + 1]
            rows.append(TokenRow(ids, len(before), target if with_target else len(ids)))
            numbers.append(number)
    return rows, numbers


@torch.no_grad()
def compare(model, rows, groups):
    """Every state from the lookup token on, row by row."""
    found = trace_from_lookup(model, rows, groups, FIRST)
    assert found.first == FIRST and found.last == model.n_layers - 1
    final = found.run(found.hidden, FIRST, model.n_layers - 1)
    watched = [model.layers[FIRST - 1], model.layers[-1]]
    for number, row in enumerate(rows):
        _, outputs = reference.forward(model, row.ids, watched)
        width = len(row.ids) - row.lookup - (row.target < len(row.ids))
        for states, expected in zip((found.hidden, final), outputs, strict=True):
            wanted = expected[row.lookup : row.lookup + width]
            assert relative(states[number, :width], wanted) < 1e-9, number
        assert found.hidden.shape[1] >= width


@pytest.fixture
def passes(monkeypatch):
    """The rows of every forward pass."""
    seen, plain = [], prefixes.trace

    def trace(model, first, last, inputs, **kept):
        seen.append(len(inputs["input_ids"]))
        return plain(model, first, last, inputs, **kept)

    monkeypatch.setattr(prefixes, "trace", trace)
    return seen


@pytest.mark.parametrize("family", tiny.every(*tiny.FAMILIES, *tiny.VARIANTS))
def test_prefixes_of_all_lengths(family, passes):
    lengths = (0, 17, 1, 9, 2, 30, 3, 10)
    rows, groups = rows_of_groups((0, lengths), (5, lengths), (12, lengths), (3, lengths), (7, [0]))
    compare(tiny.editable(family, double=True), rows, groups)
    assert sum(passes[1:-1]) == len(rows) and len(passes) > 4, "one chunk only"
    assert passes[0] == 5, "the beginnings of the groups"


@pytest.mark.parametrize("family", tiny.every(*tiny.FAMILIES, *tiny.VARIANTS))
def test_subjects_at_the_very_start_alone(family, passes):
    rows, groups = rows_of_groups((0, [0] * 20))
    compare(tiny.editable(family, double=True), rows, groups)
    assert passes == [20], "there is nothing to compute first"


@pytest.mark.parametrize(
    "groups",
    [
        pytest.param([(0, [0] * 20), (0, [6])], id="many at the start and one far from it"),
        pytest.param([(0, [0]), (9, [4] * 20)], id="one at the start and many far from it"),
        pytest.param([(4, [0] * 20)], id="nothing behind what is shared"),
        pytest.param([(4, [0] * 20), (4, [0, 1])], id="hardly anything behind what is shared"),
        pytest.param([(0, [1] * 17 + [2] * 17 + [40])], id="one long row behind many short ones"),
        pytest.param([(0, [3])], id="a single row"),
    ],
)
@pytest.mark.parametrize(
    "family", ["llama", "gpt2", *tiny.later("gemma2", "bloom", "falcon-alibi", "opt")]
)
def test_empty_prefixes_beside_long_ones(family, groups):
    compare(tiny.editable(family, double=True), *rows_of_groups(*groups))


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_rows_of_real_requests_in_any_order(family, bos):
    model = tiny.editable(family, bos=bos, double=True)
    templates = ("{}", "Therefore, it is said. {}", "You know. {}")
    rows = [
        subject_row(model, request, template, request.target_new)
        for request in REQUESTS + ODD
        for template in templates
    ]
    groups = [0, 1, 2] * len(REQUESTS + ODD)
    compare(model, rows, groups)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1)).tolist()
    compare(model, [rows[i] for i in order], [groups[i] for i in order])


@pytest.mark.parametrize(
    "family", ["mistral-window", "gemma2-window", "qwen2-window", "gpt_neo-window"]
)
def test_sliding_windows_do_not_count_what_is_padded(family):
    lengths = (0, 17, 1, 9, 2, 30, 3, 10)
    rows, groups = rows_of_groups((0, lengths), (5, lengths), (12, lengths), (3, lengths), (7, [0]))
    compare(tiny.editable(family, double=True), rows, groups)
