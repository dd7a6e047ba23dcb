"""From a model's name in the run config to an `EditableModel` in memory."""

from __future__ import annotations

import functools
import logging
import time
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig
from transformers.utils.logging import disable_progress_bar

from fedit_app.errors import FedEditError
from fedit_app.files import cache_dir
from fedit_app.models.architectures import architecture_of
from fedit_app.models.editable import EditableModel
from fedit_app.models.embedded import EMBEDDED_MODEL, embedded_model
from fedit_app.models.fingerprint import model_fingerprint

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def resolve_model(name: str) -> Path:
    """The local folder of a model, fetched if it is not there yet.

    Args:
        name: "smollm2-135m" (embedded), a Hugging Face folder, or a Hugging Face hub id.

    Raises:
        FedEditError: no such folder, or the hub does not have or give the model.
    """
    if name == EMBEDDED_MODEL:
        return embedded_model()
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise FedEditError(
                f"model: {folder} has no config.json; name a Hugging Face model folder"
            )
        return folder
    remedy = f"use {EMBEDDED_MODEL!r}, an existing Hugging Face folder, or a hub id"
    if name.startswith(("/", ".", "~")):
        raise FedEditError(f"model: folder {name} does not exist; {remedy}")
    try:
        return Path(snapshot_download(name, allow_patterns=_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FedEditError(
            f"model: cannot get {name!r} from the hub ({reason}); {remedy}"
        ) from None


def read_model_config(folder: Path) -> PretrainedConfig:
    """The config.json of a model folder.

    Raises:
        FedEditError: it is damaged, or of a model family that transformers does not know.
    """
    try:
        return AutoConfig.from_pretrained(folder)
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise FedEditError(f"model: {folder}/config.json cannot be used ({reason})") from None


def resolve_device(device: str) -> torch.device:
    """The torch device for the run config's `device`; "auto" is CUDA if there is one.

    Raises:
        FedEditError: a CUDA device is asked for that is not there, or the name is none of torch's.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise FedEditError(f"device: {device!r} is not one; use auto, cpu or cuda:N") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise FedEditError(
            f"device: {device!r} asked for, but {torch.cuda.device_count()} CUDA devices are "
            "visible; use auto, or give the client a GPU (client-resources-num-gpus)"
        )
    return chosen


def load_model(name: str, device: str = "auto", dtype: str = "auto") -> EditableModel:
    """Load a model, or hand out the one that this process loaded before.

    The model is shared: whoever edits it does so inside `EditableModel.edited`.

    Args:
        name: see `resolve_model`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: "float32", "bfloat16", "float16", or "auto": float32 on a CPU, else the
            checkpoint's own.

    Raises:
        FedEditError: see `resolve_model`, `resolve_device` and `EditableModel`.
    """
    return _load(str(resolve_model(name)), name, resolve_device(device), dtype)


@functools.lru_cache(maxsize=1)
def _load(folder: str, name: str, device: torch.device, dtype: str) -> EditableModel:
    started = time.perf_counter()
    config = read_model_config(Path(folder))
    architecture_of(config.model_type)
    disable_progress_bar()  # its bars would tear the log lines apart
    fingerprint = model_fingerprint(Path(folder), cache_dir() / "fingerprints.json")
    chosen = DTYPES.get(dtype, torch.float32 if device.type == "cpu" else "auto")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=chosen).to(device)
    loaded = EditableModel(model, AutoTokenizer.from_pretrained(folder), name, fingerprint)
    logger.info(
        "model %s: loaded on %s as %s in %.1f s (fingerprint %s)",
        name,
        device,
        str(model.dtype).removeprefix("torch."),
        time.perf_counter() - started,
        fingerprint[:12],
    )
    return loaded
