"""What many tests share: tiny models, loaded once."""

import os
from pathlib import Path

import pytest
import tiny
import torch

from fedit_app.models.loading import load_model

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Contexts, covariances and fingerprints of tiny models do not go into the user's cache."""
    before = os.environ.get("FEDIT_CACHE")
    os.environ["FEDIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["FEDIT_CACHE"]
    else:
        os.environ["FEDIT_CACHE"] = before


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A tiny Llama model on disk."""
    return tiny.make_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_model(tiny_folder):
    """The tiny Llama model in memory."""
    model = load_model(str(tiny_folder), "cpu", "float32")
    return model


@pytest.fixture(scope="session", autouse=True)
def _two_threads():
    torch.set_num_threads(min(2, torch.get_num_threads()))
