"""A table in every format that it is written in."""

import pytest

from fedit_app.support.tables import Change, Figure, Shown, Table


@pytest.fixture
def table():
    """Text of another node, a count, and figures with and without a value and a spread."""
    rows = [
        ("a|b\n<i>", 1200, Figure(0.75, 3, spread=0.0707)),
        ("50%_&\\", 7, Figure(None)),
        ("図書館", 0, Figure(0.954, percent=True)),
    ]
    return Table(["Name", "v* computed", "Score"], rows, "Scores")


def test_text_stands_under_its_heading(table):
    assert table.text().splitlines() == [
        "Scores",
        "Name      v* computed           Score",
        "─────────────────────────────────────",
        "a|b <i>         1,200   0.750 ± 0.071",
        "50%_&\\              7               –",
        "図書館              0            95 %",
    ]


def test_markdown_escapes_its_signs(table):
    assert table.markdown().splitlines() == [
        "Scores",
        "",
        r"| Name | v\* computed | Score |",
        "| --- | ---: | ---: |",
        r"| a\|b \<i> | 1,200 | 0.750 ± 0.071 |",
        r"| 50%\_&\\ | 7 | – |",
        "| 図書館 | 0 | 95 % |",
    ]


def test_latex_escapes_its_signs(table):
    lines = table.latex().splitlines()
    assert lines[:2] == [r"\begin{tabular}{lrr}", r"\toprule"]
    assert lines[4] == r"a|b \textless{}i\textgreater{} & 1,200 & 0.750 $\pm$ 0.071 \\"
    (change,) = Table(["Score"], [(Change(0.36, 0.87),)]).latex().splitlines()[4:5]
    assert change == r"0.36 $\to$ 0.87 \\"
    assert lines[5] == r"50\%\_\&\textbackslash{} & 7 & -- \\"


def test_programs_get_values_that_are_not_rounded():
    cells = [("a", Change(0.123, None)), ("b", Shown(1e-9, "tiny")), ("c", Figure(0.954))]
    assert Table(["Name", "score on probes"], cells).records() == [
        {"name": "a", "score_on_probes": {"before": 0.123, "after": None}},
        {"name": "b", "score_on_probes": 1e-9},
        {"name": "c", "score_on_probes": 0.954},
    ]


def test_every_kind_of_cell_has_words():
    cells = (None, True, False, 0.126, Change(0.36, 0.87), Change(None, None))
    shown = ["–", "yes", "no", "0.13", "0.36 -> 0.87", "–"]
    assert Table(list("abcdef"), [cells]).texts == [shown]


def test_what_others_sent_is_not_obeyed():
    table = Table(["[red]name"], [("[bold]\x1b[31mevil\u202e[/bold]",)])
    assert table.text().splitlines()[-1] == "[bold] [31mevil [/bold]"


def test_code_is_marked_and_cannot_be_left():
    table = Table(["key", "of"], [("a|`b", "a_b"), ("", "_b_")], code=["key"])
    assert table.markdown().splitlines()[2:] == [r"| `a\|b` | a_b |", r"|  | \_b\_ |"]


@pytest.mark.parametrize("format", ["text", "markdown", "latex", "records"])
def test_a_table_without_rows_is_written(format):
    getattr(Table(["Name"], []), format)()


def test_some_columns_of_a_table_in_another_order(table):
    short = table.only(["Score", "nothing of it", "Name"])
    assert short.columns == ["Score", "Name"] and short.title == table.title
    assert short.texts == [[row[2], row[0]] for row in table.texts]
