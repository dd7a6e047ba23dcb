"""What many tests share: tiny models, loaded once.

The process that hands tests to others loads this file too, and they wait for it: libraries of
models are imported where they are used.
"""

import gc
import logging
import os
import re
import signal
import uuid
from pathlib import Path

import numpy as np
import pytest

from fedit_app.mkv import DEFAULT_PRECISION, MKV, PRECISIONS, create

_USERS_CACHE = os.environ.get("FEDIT_CACHE")


def _use_cache(folder: str | None) -> None:
    if folder is None:
        os.environ.pop("FEDIT_CACHE", None)
    else:
        os.environ["FEDIT_CACHE"] = folder


# Folders whose tests all have a marker; elsewhere a decorator sets it (see CONTRIBUTING.md).
_MARKED_FOLDERS = {"integration": "integration", "fuzz": "slow", "benchmarks": "slow"}
_MARKED_FILE = re.compile(r"^pytestmark = \[?pytest\.mark\.(\w+)", re.MULTILINE)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Look for garbage only afterwards: modules stay, and going through them takes seconds."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave a folder or file unread whose marker `-m "not MARKER"` leaves out as a whole."""
    left_out = re.findall(r"\bnot (\w+)", config.option.markexpr)
    marked = [_MARKED_FOLDERS.get(collection_path.name)]
    if left_out and collection_path.suffix == ".py":
        marked = _MARKED_FILE.findall(collection_path.read_text(encoding="utf-8"))
    return True if set(left_out).intersection(marked) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their folder, and let the files that take minutes come first."""
    for item in items:
        for folder, marker in _MARKED_FOLDERS.items():
            if folder in item.path.parent.parts:
                item.add_marker(marker)
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    items.sort(key=lambda item: item.get_closest_marker("integration") is None)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="module")
def users_cache():
    """The user's own cache: the embedded model and its covariance are made once on a machine."""
    tests_own = os.environ.get("FEDIT_CACHE")
    _use_cache(_USERS_CACHE)
    yield
    _use_cache(tests_own)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Contexts, covariances and fingerprints of tiny models do not go into the user's cache."""
    _use_cache(str(tmp_path_factory.mktemp("cache")))
    yield
    _use_cache(_USERS_CACHE)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A tiny Llama model on disk."""
    import tiny

    return tiny.make_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_model(tiny_folder):
    """The tiny Llama model in memory."""
    from fedit_app.models.loading import load_model

    return load_model(str(tiny_folder), "cpu", "float32")


@pytest.fixture(scope="session")
def _found_values(tmp_path_factory):
    from fedit_app.editing.value_store import ValueStore

    return ValueStore(tmp_path_factory.mktemp("values"))


@pytest.fixture
def values_once(_found_values, monkeypatch):
    """What was optimised once is found again, bit for bit: for tests of what is done with it."""
    from fedit_app.editing.workbench import Workbench

    compute = Workbench.compute

    def found(self, requests, ledger, node, slot, starts=None, store=None):
        return compute(self, requests, ledger, node, slot, starts, store or _found_values)

    monkeypatch.setattr(Workbench, "compute", found)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Tiny models gain nothing from threads, and on a busy machine the threads wait in turns."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_process():
    """What a command sets for its process, its log, signals and umask, ends with the test."""
    logger = logging.getLogger("fedit_app")
    handling = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    umask = os.umask(0o022)
    # pytest puts handlers of its own on a logger that does not propagate
    logger.handlers, logger.propagate = [], True
    yield
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)
    for number, handler in handling.items():
        signal.signal(number, handler)
    os.umask(umask)


@pytest.fixture
def log(caplog, monkeypatch):
    """What FedEdit writes to its log, also after a test has set up logging."""
    monkeypatch.setattr(logging.getLogger("fedit_app"), "propagate", True)
    caplog.set_level(logging.INFO, logger="fedit_app")
    return caplog


@pytest.fixture(scope="session")
def _object_storage():
    """A server on loopback that speaks S3: (its URL, how to make a bucket)."""
    import boto3  # here, since few tests need it
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}", boto3
    server.stop()


@pytest.fixture
def bucket(_object_storage, monkeypatch) -> str:
    """URI of an empty bucket of one's own, which the environment says how to reach."""
    url, boto3 = _object_storage
    values = {
        "AWS_ENDPOINT": url,
        "AWS_ENDPOINT_URL": url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{uuid.uuid4().hex}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


FINGERPRINT = "model-a"


@pytest.fixture(scope="session")
def make_mkvs():
    """Returns `make(n, seed, ...)`, which gives `n` random MKVs, the same for the same arguments.

    Their v* share a common direction, as those of a real model do.
    """

    def make(
        n: int,
        seed: int = 0,
        node: str = "clinic",
        slot: int = 1,
        fingerprint: str = FINGERPRINT,
        layers: int = 2,
        d_ff: int = 12,
        d_model: int = 8,
        precision: str = DEFAULT_PRECISION,
    ) -> list[MKV]:
        random = np.random.default_rng(seed)
        return [
            create(
                node=node,
                slot=slot,
                fingerprint=fingerprint,
                keys=random.standard_normal((layers, d_ff)),
                shifts=random.standard_normal((layers, d_model)) * 1e-3,
                v_star=random.standard_normal(d_model) * 50 + 60,
                h0=random.standard_normal(d_model) * 50,
                precision=precision,
            )
            for _ in range(n)
        ]

    return make


@pytest.fixture(params=PRECISIONS)
def precision(request) -> str:
    """Every precision in turn."""
    return request.param


@pytest.fixture
def pool_uri(tmp_path) -> str:
    return str(tmp_path / "pool")
