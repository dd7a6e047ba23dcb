"""Whether a checkpoint folder can be edited: what its small files and its headers tell.

Everything here takes a few seconds at most, however large the weights are: no weight is read. What
transformers would load all the same, and silently wrong, is refused: random weights in the place
of missing ones, an adapter on top, numbers that stand for others.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import Parameter
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from fedit_app.config.model import ModuleNames
from fedit_app.models.architectures import ARCHITECTURES, NO_NAMES, architecture_of, unknown_family
from fedit_app.models.modules import find_layers, find_module, projection_weight
from fedit_app.models.quantised import (
    check_quantisation,
    has_scales,
    holds,
    quantised_weight,
    scales,
)
from fedit_app.support.errors import FedEditError
from fedit_app.support.formats import plural

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_ADAPTER, _BASE = "adapter_config.json", "base_model_name_or_path"
# Files any one of which transformers makes a tokenizer of.
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
_MERGE = "Merge it into the weights (PEFT: merge_and_unload, then save_pretrained)"
_AGAIN = "download it again"
_NAMED = 3


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


def check_checkpoint(folder: Path, names: ModuleNames = NO_NAMES) -> ModelShape:
    """Check that a checkpoint is whole and can be edited, without reading its weights.

    Args:
        folder: Hugging Face model folder.
        names: module names that the run config gives.

    Raises:
        FedEditError: a file is missing, damaged or not complete; an adapter lies beside the
            weights; the weights are not those of config.json; see also `model_shape`.
    """
    shape = model_shape(folder, names)
    for file in weight_files(folder):
        _check_header(file)
    _check_weights(folder)
    _check_tokenizer(folder)
    return shape


def read_model_config(folder: Path) -> PretrainedConfig:
    """The config.json of a model folder.

    Raises:
        FedEditError: it is missing or damaged, of a model family that transformers does not know,
            or of weights that are quantised, see `check_quantisation`; or the folder holds an
            adapter.
    """
    file = config_file(folder)
    if (folder / _ADAPTER).exists():
        raise FedEditError(
            f"model: {folder / _ADAPTER}: an adapter lies beside the weights, and it is not said "
            f"which of the two is meant. {_MERGE}, or move its files out of the folder to edit the "
            "model without it"
        )
    content = _read_object(file)
    family = content.get("model_type")
    if not isinstance(family, str):
        raise FedEditError(f"model: {file} names no model_type; {_AGAIN}")
    if "auto_map" in content and family not in CONFIG_MAPPING:
        raise FedEditError(
            f"model: {file} wants code from its own folder to be run (auto_map), which FedEdit "
            "does not do; use a model of a family that transformers knows"
        )
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever wrong values do in a family's code
        raise FedEditError(f"model: {file} cannot be used ({first_line(error)})") from None
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        check_quantisation(quantised, file)
    return config


def config_file(folder: Path) -> Path:
    """The config.json of a model folder.

    Raises:
        FedEditError: it is missing.
    """
    file, adapter = folder / "config.json", folder / _ADAPTER
    if file.exists():
        return file
    if adapter.exists():
        raise FedEditError(
            f"model: {folder} holds an adapter of {_read_object(adapter).get(_BASE)!r}, not a "
            f"model. {_MERGE}, or name the base model"
        )
    raise FedEditError(f"model: {folder} has no config.json; name a Hugging Face model folder")


def first_line(error: Exception) -> str:
    """What an error of another library says first."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        reason = "it is empty" if not file.stat().st_size else first_line(error)
        raise FedEditError(f"model: {file} cannot be read ({reason}); {_AGAIN}") from None
    if not isinstance(content, dict):
        raise FedEditError(f"model: {file} holds no JSON object; {_AGAIN}")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The files of the weights that transformers loads, whatever else is in the folder.

    Raises:
        FedEditError: there are none, or one that the index names is missing.
    """
    if (folder / _WEIGHTS).exists():
        return [folder / _WEIGHTS]
    index = folder / _INDEX
    if not index.exists():
        raise FedEditError(
            f"model: {folder} has no {_WEIGHTS} and no {_INDEX}; convert the checkpoint with "
            "save_pretrained (transformers writes safetensors), or download it again"
        )
    places = _read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise FedEditError(f"model: {index} holds no weight_map; {_AGAIN}")
    files = [folder / str(name) for name in sorted(set(places.values()))]
    missing = [file.name for file in files if not file.is_file() or file.parent != folder]
    if missing:
        raise FedEditError(
            f"model: {index} names {plural(len(files), 'file')}, of which {_listed(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not in the folder; download the rest"
        )
    return files


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _check_header(file: Path) -> None:
    """A file that is cut off is shorter than its header says."""
    try:
        with safe_open(file, "pt"):
            return
    except (SafetensorError, OSError) as error:
        reason = first_line(error)
    with file.open("rb") as stream:
        if stream.read(8) == b"version ":
            raise FedEditError(
                f"model: {file} is not the weights but a pointer of Git LFS to them; run `git lfs "
                "pull` in the folder"
            )
    raise FedEditError(f"model: {file} is damaged or not complete ({reason}); {_AGAIN}")


def _check_weights(folder: Path) -> None:
    """Compare the tensors of the files with those that the model has, by names and shapes.

    Quantised ones are compared with those that they stand for.
    """
    config = read_model_config(folder)
    quantised = config.__dict__.pop("quantization_config", {})
    with _quiet():
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                device_map="meta",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                trust_remote_code=False,
            )
        except Exception as error:
            reason = first_line(error)
            raise FedEditError(f"model: {folder} cannot be loaded ({reason}); {_AGAIN}") from None
    found: dict[str, Any] = loaded[1]
    missing, unknown = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    mismatched = sorted(found["mismatched_keys"])
    if quantised:
        types = _stored_types(folder)
        packed = {name for name, *shapes in mismatched if holds(quantised, *shapes)}
        mismatched = [found for found in mismatched if found[0] not in packed]
        packed |= {name for name, stored in types.items() if stored == "I8"}
        names = {*types, *unknown}
        missing += sorted(f"scales of {name}" for name in packed if not has_scales(name, names))
        unknown = [name for name in unknown if not quantised_weight(name)]
    if missing:
        raise FedEditError(
            f"model: {folder} lacks {plural(len(missing), 'weight')} ({_listed(missing)}), which "
            "would be random numbers; download it again, or save the whole model with "
            "save_pretrained"
        )
    if mismatched:
        name, stored, wanted = mismatched[0]
        raise FedEditError(
            f"model: {folder}: its files hold {name} of shape {tuple(stored)}, its config.json "
            f"asks for {tuple(wanted)}; take config.json and weights of one model"
        )
    if unknown:
        logger.warning(
            "model: %s: %s of its files %s not used by the family (%s)",
            folder,
            plural(len(unknown), "weight"),
            "is" if len(unknown) == 1 else "are",
            _listed(unknown),
        )


def _stored_types(folder: Path) -> dict[str, str]:
    """Name of a tensor of a checkpoint -> its type."""
    found = {}
    for file in weight_files(folder):
        with safe_open(file, "pt") as tensors:
            found.update({name: tensors.get_slice(name).get_dtype() for name in tensors.keys()})
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' report and progress bar; what they tell is said in FedEdit's words."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()  # its bars would tear the log lines apart
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def _check_tokenizer(folder: Path) -> None:
    if not any((folder / name).exists() for name in _TOKENIZERS):
        raise FedEditError(
            f"model: {folder} has no tokenizer.json; copy the base model's tokenizer into it "
            "(tokenizer.json and tokenizer_config.json)"
        )
    file = folder / _TOKENIZERS[0]
    if file.exists():
        try:
            Tokenizer.from_file(str(file))
        except Exception as error:  # of the library's Rust code
            reason = first_line(error)
            raise FedEditError(f"model: {file} cannot be read ({reason}); {_AGAIN}") from None


def check_finite(model: PreTrainedModel, name: str, folder: Path | None = None) -> None:
    """Check that no weight of a loaded model is NaN or infinite.

    Args:
        model: the model.
        name: what the user called it.
        folder: where it was loaded from.

    Raises:
        FedEditError: one is.
    """
    for path, parameter in (*model.named_parameters(), *scales(model)):
        packed = type(parameter) not in (Tensor, Parameter)
        if packed or parameter.is_meta or not parameter.is_floating_point():
            continue
        if not all(bool(end.isfinite()) for end in torch.aminmax(parameter.detach())):
            file = _file_of(path, folder) if folder else None
            half = parameter.dtype == torch.float16
            raise FedEditError(
                f"model {name!r}: {path}{f' in {file}' if file else ''} holds numbers that are NaN "
                "or infinite"
                + (" in float16; use dtype = bfloat16 or float32" if half else f"; {_AGAIN}")
            )


def _file_of(tensor: str, folder: Path) -> Path:
    for file in weight_files(folder):
        with safe_open(file, "pt") as tensors:
            if tensor in tensors.keys():
                return file
    return folder


def stored_dtype(folder: Path) -> str:
    """The name in `DTYPES` of the type in which a checkpoint keeps its weights.

    Args:
        folder: Hugging Face model folder.

    Raises:
        FedEditError: see `read_model_config` and `weight_files`.
    """
    named = {f"torch.{name}": name for name in DTYPES}
    said = str(read_model_config(folder).dtype)
    if said in named:
        return named[said]
    for file in weight_files(folder):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():
                found = {"F16": "float16", "BF16": "bfloat16"}.get(
                    tensors.get_slice(name).get_dtype()
                )
                if found:
                    return found
    return "float32"


def model_shape(folder: Path, names: ModuleNames = NO_NAMES) -> ModelShape:
    """The sizes of a model that can be edited, from its config.json alone.

    Args:
        folder: Hugging Face model folder.
        names: module names that the run config gives.

    Raises:
        FedEditError: see `read_model_config`; an unknown family, a module name that the model does
            not have, or an output projection that cannot be written to.
    """
    config = read_model_config(folder)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # whatever wrong sizes do in a family's code
        raise FedEditError(
            f"model: {folder}/config.json is not a causal language model's ({first_line(error)})"
        ) from None
    if not names.given():
        _require_known(model, config.model_type, folder / "config.json")
    architecture = architecture_of(config.model_type, names)
    layers = find_layers(model, architecture)
    projection = find_module(layers[0], "mlp_output", architecture.mlp_output)
    return ModelShape(config.model_type, len(layers), projection_weight(projection).shape[0])


def _require_known(model: torch.nn.Module, family: str, file: Path) -> None:
    """Ask for the module names of an unknown family, unless it is a mixture of experts."""
    if family in ARCHITECTURES:
        return
    experts = [path for path, _ in model.named_modules() if path.endswith("experts")]
    if not experts:
        raise unknown_family(family, f"{file}: ")
    raise FedEditError(
        f"model: {file}: family {family!r} is a mixture of experts ({experts[0]}): the output "
        "projections differ from token to token, so none can take an edit. Use a dense model; or, "
        "if all tokens of every layer share one, name it (module-mlp-output) with module-layers "
        "and module-final-norm"
    )
