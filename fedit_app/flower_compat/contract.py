"""One error for a Flower that lacks what FedEdit uses of it beyond the public API.

A server's node registry, its gate and a node's own registration have no public API in Flower. The
modules of this package import what they need in a `require` block;
`tests/flower_compat/test_contract.py` lists it and says what of it the installed Flower has.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager

from fedit_app.support.errors import FedEditError

SUPPORTED = ">=1.41,<1.42"
"""The versions of Flower whose private parts are known, as in pyproject.toml."""


@contextmanager
def require(purpose: str) -> Iterator[None]:
    """Use private parts of Flower.

    Args:
        purpose: what they are needed for.

    Raises:
        FedEditError: the installed Flower lacks one of them.
    """
    try:
        yield
    except (ImportError, AttributeError, TypeError) as error:
        installed = importlib.metadata.version("flwr")
        raise FedEditError(
            f"flwr {installed}: {purpose} needs a part of Flower that this version lacks "
            f"({error}); FedEdit supports flwr{SUPPORTED}: pip install 'flwr{SUPPORTED}'"
        ) from error
