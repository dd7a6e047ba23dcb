"""What the tests of editing share."""

import logging

import pytest


@pytest.fixture
def log(caplog, monkeypatch):
    """What the library logs, also after a test of the command has set up logging."""
    monkeypatch.setattr(logging.getLogger("fedit_app"), "propagate", True)
    caplog.set_level(logging.INFO, logger="fedit_app")
    return caplog
