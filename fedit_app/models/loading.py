"""From a model's name in the run config to an `EditableModel` in memory."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from fedit_app.config.model import ModuleNames
from fedit_app.models.architectures import (
    ARCHITECTURES,
    NO_NAMES,
    Architecture,
    architecture_of,
)
from fedit_app.models.editable import EditableModel
from fedit_app.models.embedded import EMBEDDED_MODEL, embedded_model
from fedit_app.models.fingerprint import memory_fingerprint, model_fingerprint
from fedit_app.models.modules import find_layers, find_module, projection_weight
from fedit_app.models.name_check import verify_names
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import cache_dir

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
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
        config: PretrainedConfig = AutoConfig.from_pretrained(folder)
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise FedEditError(f"model: {folder}/config.json cannot be used ({reason})") from None
    return config


def stored_dtype(folder: Path) -> str:
    """The name in `DTYPES` of the type in which a checkpoint keeps its weights.

    Args:
        folder: Hugging Face model folder.

    Raises:
        FedEditError: see `read_model_config`.
    """
    named = {f"torch.{name}": name for name in DTYPES}
    said = str(read_model_config(folder).dtype)
    if said in named:
        return named[said]
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():
                found = {"F16": "float16", "BF16": "bfloat16"}.get(
                    tensors.get_slice(name).get_dtype()
                )
                if found:
                    return found
    return "float32"


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


@dataclass(frozen=True)
class ModelShape:
    """What settings depend on.

    Attributes:
        model_type: `config.model_type`.
        n_layers: number of decoder layers.
        d_model: width of the residual stream.
    """

    model_type: str
    n_layers: int
    d_model: int


def model_shape(folder: Path, names: ModuleNames = NO_NAMES) -> ModelShape:
    """Check that a model can be edited, and take its sizes, without reading its weights.

    Args:
        folder: Hugging Face model folder.
        names: module names that the run config gives.

    Raises:
        FedEditError: unknown family, a module name that the model does not have, or an output
            projection that cannot be written to.
    """
    config = read_model_config(folder)
    architecture = architecture_of(config.model_type, names)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise FedEditError(f"model: {folder} is not a causal language model ({reason})") from None
    layers = find_layers(model, architecture)
    projection = find_module(layers[0], "mlp_output", architecture.mlp_output)
    return ModelShape(config.model_type, len(layers), projection_weight(projection).shape[0])


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
        FedEditError: see `resolve_model`, `resolve_device`, `read_device_map`, `model_shape` and
            `EditableModel`.
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
        FedEditError: see `EditableModel`.
    """
    fingerprint = memory_fingerprint(model, tokenizer)
    return EditableModel(model, tokenizer, name_of(model), fingerprint, names)


def name_of(model: PreTrainedModel) -> str:
    """What a model in memory is called: where it was loaded from, or else its family."""
    return model.name_or_path or f"{model.config.model_type} in memory"


@functools.lru_cache(maxsize=1)
def _load(
    folder: str, name: str, device: torch.device, dtype: str, names: ModuleNames, places: str
) -> EditableModel:
    started = time.perf_counter()
    model_type = model_shape(Path(folder), names).model_type
    disable_progress_bar()  # its bars would tear the log lines apart
    fingerprint = _with_names(
        model_fingerprint(Path(folder), cache_dir() / "fingerprints.json"),
        model_type,
        architecture_of(model_type, names),
    )
    chosen = DTYPES.get(dtype, torch.float32 if device.type == "cpu" else "auto")
    device_map = json.loads(places)
    model: PreTrainedModel
    if device_map is None:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=chosen)
        torch.nn.Module.to(model, device)
    else:
        model = _load_spread(folder, chosen, device_map)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loaded = EditableModel(model, tokenizer, name, fingerprint, names)
    if loaded.device.type == "meta":
        raise FedEditError(
            "device-map: the input embeddings are offloaded; give them a device in the device map"
        )
    if names.given():
        verify_names(loaded)
    logger.info(
        "model %s: loaded on %s as %s in %.1f s (fingerprint %s)",
        name,
        device if device_map is None else "several devices",
        str(model.dtype).removeprefix("torch."),
        time.perf_counter() - started,
        fingerprint[:12],
    )
    return loaded


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
