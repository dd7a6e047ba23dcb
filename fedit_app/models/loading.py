"""From a model's name in the run config to an `EditableModel` in memory."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import time
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fedit_app.config.model import ModuleNames
from fedit_app.models.architectures import (
    ARCHITECTURES,
    NO_NAMES,
    Architecture,
    architecture_of,
)
from fedit_app.models.checkpoint import (
    DTYPES,
    check_checkpoint,
    check_finite,
    config_file,
    first_line,
)
from fedit_app.models.editable import EditableModel
from fedit_app.models.embedded import EMBEDDED_MODEL, embedded_model
from fedit_app.models.fingerprint import memory_fingerprint, model_fingerprint
from fedit_app.models.name_check import verify_model
from fedit_app.models.quantised import is_quantised, prepare, silence
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import cache_dir

logger = logging.getLogger(__name__)

DEVICE_MAPS = ("auto", "balanced", "sequential")
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
        return config_file(folder).parent
    if folder.is_file():
        raise FedEditError(
            f"model: {folder} is a file; name a Hugging Face folder, with config.json, "
            "*.safetensors and tokenizer.json"
        )
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


def read_device_map(
    device_map: str | None, device: str = "auto"
) -> str | dict[str, int | str] | None:
    """What the run config's `device-map` stands for, as transformers wants it.

    Args:
        device_map: None for one device, "auto", "balanced" or "sequential", or a JSON file: an
            object from module paths to devices, such as {"model.layers.0": 0, "lm_head": "cpu"}.
        device: the run config's `device`; a device map excludes another one than "auto".

    Raises:
        FedEditError: none of these, the file does not hold such an object, or a device is given
            as well.
    """
    if device_map and device != "auto":
        raise FedEditError(
            f"run config: device = {device!r} and device-map = {device_map!r} are both set; leave "
            "device at auto with a device map"
        )
    if device_map is None or device_map in DEVICE_MAPS:
        return device_map
    file = Path(device_map).expanduser()
    if not file.is_absolute() or not file.is_file():
        raise FedEditError(
            f"run config: device-map = {device_map!r} is neither {', '.join(DEVICE_MAPS)}, nor the "
            "absolute path of a JSON file that exists"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FedEditError(f"device-map: {file} is not JSON ({error})") from None
    if not isinstance(content, dict) or not content or not all(map(_is_device, content.values())):
        raise FedEditError(
            f"device-map: {file} must hold an object from module paths to devices: GPU numbers, "
            '"cpu" or "disk", such as {"model.embed_tokens": 0, "model.layers.0": 1}'
        )
    return content


def _is_device(value: object) -> bool:
    return type(value) is int or (isinstance(value, str) and bool(value))


def load_model(
    name: str,
    device: str = "auto",
    dtype: str = "auto",
    names: ModuleNames = NO_NAMES,
    device_map: str | None = None,
) -> EditableModel:
    """Load a model, or hand out the one that this process loaded before.

    The model is shared: whoever edits it does so inside `EditableModel.edited`.

    Args:
        name: see `resolve_model`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: "float32", "bfloat16", "float16", or "auto": float32 on a CPU, else the
            checkpoint's own.
        names: module names that the run config gives; they win over the table of families.
        device_map: spreads the model over several devices, see `read_device_map`; `device` has to
            be "auto" then.

    Raises:
        FedEditError: see `resolve_model`, `resolve_device`, `read_device_map`, `check_checkpoint`,
            `check_finite`, `verify_model` and `EditableModel`.
    """
    places = json.dumps(read_device_map(device_map, device))
    return _load(str(resolve_model(name)), name, resolve_device(device), dtype, names, places)


def loaded_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, names: ModuleNames = NO_NAMES
) -> EditableModel:
    """A model that the caller has loaded, ready to be edited. It is put in evaluation mode.

    Args:
        model: the causal language model, unedited.
        tokenizer: its fast tokenizer.
        names: module names; they win over the table of families.

    Raises:
        FedEditError: it is quantised; see also `EditableModel`, `check_finite` and `verify_model`.
    """
    if any(map(is_quantised, model.modules())):
        raise FedEditError(
            f"model {name_of(model)!r}: it is quantised, and what passes through it may have "
            "changed its weights; save model and tokenizer (save_pretrained) and load the folder "
            "with Editor.from_pretrained"
        )
    check_finite(model, name_of(model))
    fingerprint = memory_fingerprint(model, tokenizer)
    loaded = EditableModel(model, tokenizer, name_of(model), fingerprint, names)
    verify_model(loaded)
    return loaded


def name_of(model: PreTrainedModel) -> str:
    """What a model in memory is called: where it was loaded from, or else its family."""
    return model.name_or_path or f"{model.config.model_type} in memory"


@functools.lru_cache(maxsize=1)
def _load(
    folder: str, name: str, device: torch.device, dtype: str, names: ModuleNames, places: str
) -> EditableModel:
    started = time.perf_counter()
    model_type = check_checkpoint(Path(folder), names).model_type
    fingerprint = _with_names(
        model_fingerprint(Path(folder), cache_dir() / "fingerprints.json"),
        model_type,
        architecture_of(model_type, names),
    )
    tokenizer = _read_tokenizer(folder)
    chosen = DTYPES.get(dtype, torch.float32 if device.type == "cpu" else "auto")
    device_map = json.loads(places)
    silence()
    model: PreTrainedModel
    if device_map is None:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=chosen, device_map=device)
    else:
        model = _load_spread(folder, chosen, device_map)
    prepare(model)
    check_finite(model, name, Path(folder))
    loaded = EditableModel(model, tokenizer, name, fingerprint, names)
    if loaded.device.type == "meta":
        raise FedEditError(
            "device-map: the input embeddings are offloaded; give them a device in the device map"
        )
    verify_model(loaded)
    logger.info(
        "model %s: loaded on %s as %s in %.1f s (fingerprint %s)",
        name,
        device if device_map is None else "several devices",
        str(model.dtype).removeprefix("torch."),
        time.perf_counter() - started,
        fingerprint[:12],
    )
    return loaded


def _read_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False
        )
    except Exception as error:  # whatever damaged files do in the tokenizer's code
        raise FedEditError(
            f"model: the tokenizer in {folder} cannot be loaded ({first_line(error)}); copy the "
            "base model's tokenizer.json and tokenizer_config.json into the folder"
        ) from None
    return found


def _load_spread(
    folder: str, dtype: torch.dtype | str, device_map: str | dict[str, int | str]
) -> PreTrainedModel:
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map=device_map)
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FedEditError(
            f"device-map: transformers cannot place the model ({reason}); see `device-map` in the "
            "run config"
        ) from error


def _with_names(fingerprint: str, model_type: str, architecture: Architecture) -> str:
    """MKVs of another W_out mean nothing to this one, so names beside the table's count."""
    if architecture == ARCHITECTURES.get(model_type):
        return fingerprint
    text = json.dumps([fingerprint, dataclasses.asdict(architecture)])
    return hashlib.sha256(text.encode()).hexdigest()[: len(fingerprint)]
