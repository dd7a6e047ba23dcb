"""A few thousand of the inputs that `tests/fuzz` tries, in every `make test`."""

import pytest
from fuzz.parsers import FOUND, tried

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("name", FOUND)
def test_what_a_parser_refuses_is_an_error_that_says_so(name, tmp_path):
    found = tried(name, tmp_path, 100)
    assert (found["slow"], found["large"]) == (0, 0), found
