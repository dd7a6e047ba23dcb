"""Settings of the editing: the editor, its hyperparameters, and what it learns from the model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator

from fedit_app.config.model import ModelSettings
from fedit_app.config.run import Seeded
from fedit_app.config.settings import key

_MEMIT = "MEMIT, arXiv 2210.07229"
_ALPHAEDIT = "AlphaEdit, arXiv 2410.02355"
_OF_MODEL = "the model's default"
_OF_BOTH = "the model's and editor's default"


def read_layers(given: object) -> tuple[int, ...]:
    """Layer numbers of "4-8" (inclusive), "4,6,8", 4, or a list of numbers.

    Raises:
        ValueError: anything else, or numbers that do not rise.
    """
    layers: tuple[int, ...] = ()
    text = str(given).strip() if isinstance(given, (str, int)) else ""
    if bounds := re.fullmatch(r"(\d+)\s*-\s*(\d+)", text):
        layers = tuple(range(int(bounds[1]), int(bounds[2]) + 1))
    elif re.fullmatch(r"\d+\s*(,\s*\d+\s*)*", text):
        layers = tuple(int(part) for part in text.split(","))
    elif isinstance(given, (list, tuple)) and all(type(part) is int for part in given):
        layers = tuple(given)
    if not layers or any(a >= b for a, b in zip((-1, *layers), layers, strict=False)):
        raise ValueError('is not a range or list of rising layer numbers; write "4-8" or "4,6,8"')
    return layers


def layers_text(layers: Sequence[int]) -> str:
    """Layers as `read_layers` reads them: "4-8" or "4,6,8"."""
    if len(layers) > 1 and list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}-{layers[-1]}"
    return ",".join(map(str, layers))


Layers = Annotated[tuple[int, ...], BeforeValidator(read_layers)]


class EditingSettings(Seeded):
    """How MKVs are computed: all that they depend on beside the model."""

    editor: str = key(
        "memit",
        "locate-then-edit method that computes the MKVs: memit, pmet, alphaedit, memit-fe, blue, "
        "encore or betaedit",
    )
    layers: Layers | None = key(
        None, 'edited layers, such as "4-8" or "4,6,8"', absent=_OF_MODEL, source=_MEMIT
    )
    covariance_weight: float | None = key(
        None,
        "lambda, the weight of the covariance in the solve",
        absent=_OF_MODEL,
        source=_MEMIT,
        gt=0,
    )
    covariance_source: str = key(
        "sample",
        "text behind the covariance: sample (from the model itself), a text file, "
        "hub:DATASET[:CONFIG[:SPLIT]] (column text, split train), or a .safetensors file of "
        "`fedit stats --save`",
        path="existing",
    )
    covariance_tokens: int | None = key(
        None,
        "tokens behind the covariance",
        absent="10 x d_ff",
        source="FastMEMIT found 10 x d_ff to be enough",
        unit="tokens",
        ge=1,
    )
    learning_rate: float | None = key(
        None, "Adam's step size for v*", absent=_OF_MODEL, source=_MEMIT, gt=0, le=10
    )
    value_steps: int | None = key(
        None, "most steps of the v* optimisation", absent=_OF_BOTH, source=_MEMIT, ge=1, le=1000
    )
    stop_after: int = key(
        2,
        "stop a v* after its target was the argmax in every context for so many steps beyond the "
        "first; 0: never",
        source="ENCORE, EMNLP Findings 2025",
        ge=0,
    )
    weight_decay: float = key(0.5, "weight of |v* - h0| / |h0|^2 in the loss", source=_MEMIT, ge=0)
    kl_weight: float | None = key(
        None,
        'weight of the KL term that keeps the essence, read at the subject of "SUBJECT is a"; 0: '
        "no such term",
        absent=_OF_BOTH,
        source=_MEMIT,
        ge=0,
    )
    subject_weight: float = key(
        1.0,
        "weight of the KL term that keeps the subject's name, read where a text copies it; 0: no "
        "such term",
        source="1 was measured to keep the score; 4 costs 0.03 of it (benchmarks/README.md)",
        ge=0,
    )
    clamp: float | None = key(
        None,
        "largest norm of v* - h0",
        absent=_OF_BOTH,
        source=_MEMIT,
        unit="norms of h0",
        gt=0,
    )
    norm_guard: float = key(
        2.0,
        "for the clamp, the norm of h0 counts at most as so many times its median over the "
        "contexts (a subject at the very start of a text has an outlier); 0: no limit",
        ge=0,
    )
    max_condition: float = key(
        1e7, "largest condition number of lambda C; above it a ridge is added", ge=1000
    )
    null_space_threshold: float | None = key(
        None,
        "alphaedit, betaedit: eigenvalues of C below it belong to the null space",
        absent=_OF_MODEL,
        source=_ALPHAEDIT,
        gt=0,
    )
    l2: float | None = key(
        None,
        "alphaedit, betaedit, encore: weight of |Delta|^2",
        absent=_OF_MODEL,
        source=_ALPHAEDIT,
        gt=0,
    )
    mkv_precision: Literal["int8", "float16", "float32"] = key(
        "int8",
        "numbers to which MKVs are rounded when they are made, and in which they travel and are "
        "kept",
        source="int8, one byte an element, was measured to cost no score (benchmarks/README.md)",
    )
    same_key_threshold: float = key(
        0.98,
        "cosine of first-layer keys from which two keys count as one: the facts of a key share one "
        "MKV, whose value says all of them",
        ge=0.5,
        le=1,
    )
    contexts: int = key(5, "sampled context prefixes beside the bare prompt", source=_MEMIT, ge=0)
    chat_contexts: int = key(
        0,
        "turns of a chat among the contexts, where the tokenizer has a chat template: the user "
        "asks for the fact, and the target is the whole answer",
        source="1 was measured to answer more questions, to keep fewer names and to take 2.6 "
        "times as long, and to do harm with pmet (benchmarks/README.md)",
        ge=0,
        le=1,
    )
    edit_batch: int | None = key(
        None,
        "requests whose v* are optimised together",
        absent="as many as fit in memory",
        ge=1,
    )


class WorkbenchSettings(EditingSettings, ModelSettings):
    """All that a model in memory, with what editing it needs, depends on."""
