"""Every parser of bytes from outside takes or refuses 1,000 inputs or more, and none costs much."""

import pytest
from fuzz.conftest import EXAMPLES
from fuzz.parsers import FOUND, tried

EACH = max(EXAMPLES, 1_000)


@pytest.mark.parametrize("name", FOUND)
def test_a_parser_takes_or_refuses_and_neither_costs_much(name, tmp_path, record_property):
    found = tried(name, tmp_path, EACH)
    for what, number in found.items():
        record_property(what, number)
    assert found["inputs"] >= EACH
    assert (found["slow"], found["large"]) == (0, 0), found
