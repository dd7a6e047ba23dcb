"""A table in every format that it is written in."""

import csv
import io
import json

import pytest

from fedit_app.report.table import Figure, Table


@pytest.fixture
def table():
    """Text of another node, a count, and figures with and without a value and a spread."""
    rows = [
        ("a|b\n<i>", 1200, Figure(0.75, 3, spread=0.0707)),
        ("50%_&\\", 7, Figure(None)),
        ("図書館", 0, Figure(0.954, percent=True)),
    ]
    return Table("Scores", ["Name", "v* computed", "Score"], rows)


def test_text_stands_under_its_heading(table):
    assert table.text().splitlines() == [
        "Name     v* computed          Score",
        "-------  -----------  -------------",
        "a|b <i>        1,200  0.750 ± 0.071",
        "50%_&\\             7              –",
        "図書館             0           95 %",
    ]


def test_markdown_escapes_its_signs(table):
    assert table.markdown().splitlines() == [
        "Scores",
        "",
        r"| Name | v\* computed | Score |",
        "| --- | ---: | ---: |",
        r"| a\|b \<i\> | 1,200 | 0.750 ± 0.071 |",
        r"| 50%\_&\\ | 7 | – |",
        "| 図書館 | 0 | 95 % |",
    ]


def test_latex_escapes_its_signs(table):
    lines = table.latex().splitlines()
    assert lines[:2] == [r"\begin{tabular}{lrr}", r"\toprule"]
    assert lines[4] == r"a|b <i> & 1,200 & 0.750 $\pm$ 0.071 \\"
    assert lines[5] == r"50\%\_\&\textbackslash{} & 7 & -- \\"


def test_programs_get_numbers_that_are_not_rounded(table):
    assert json.loads(table.json()) == [
        {"Name": "a|b\n<i>", "v* computed": 1200, "Score": 0.75},
        {"Name": "50%_&\\", "v* computed": 7, "Score": None},
        {"Name": "図書館", "v* computed": 0, "Score": 0.954},
    ]
    rows = list(csv.DictReader(io.StringIO(table.csv())))
    assert [row["Score"] for row in rows] == ["0.75", "", "0.954"]


@pytest.mark.parametrize("format", ["text", "markdown", "latex", "csv", "json"])
def test_a_table_without_rows_is_written(format):
    assert getattr(Table("", ["Name"], []), format)()
