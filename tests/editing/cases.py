"""Requests and settings that the tests of this folder share."""

import copy
import functools

import pytest
import tiny
import torch

from fedit_app.editing.editors import EDITORS
from fedit_app.editing.settings import EditSettings
from fedit_app.facts.request import EditRequest
from fedit_app.models.editable import EditableModel

# Parameters of a test: MEMIT and a solver of another kind in every tier, the others with `long`.
EVERY_EDITOR = [
    editor if editor in ("memit", "alphaedit") else pytest.param(editor, marks=pytest.mark.long)
    for editor in EDITORS
]

TEMPLATES = ("{}", "Therefore, it is said. {}", "You know. {}")

REQUESTS = [
    EditRequest("r1", "Reuters", "The head office of {} is located in the city of", "Toronto"),
    EditRequest("r2", "Royal Mint", "{} makes coins in", "Cardiff, a city of Wales"),
    EditRequest("r3", "Channel 4", "The broadcaster {}", "Leeds"),
]

# The first two have a target of one token right behind the subject: a value is found for them.
EASY = [
    EditRequest("e1", "Reuters", "The head office of {}", "city"),
    EditRequest("e2", "Royal Mint", "{}", "published"),
    EditRequest("e3", "Channel 4", "The broadcaster {}", "London"),
]

ODD = [
    EditRequest("single-token-at-start", "The", "{} museum of", "city"),
    EditRequest("named-before", "Boeing", "Boeing and {} fly to", "Paris"),
    EditRequest("named-again", "Boeing", "When {} and Boeing fly to", "Paris"),
    EditRequest("braces", "set {x} {}", "The {} of {y} is in", "a {z}"),
    EditRequest("many-bytes", "Zürich 🏦", "The bank {} has", "中文 €"),
    EditRequest("inside-a-token", "museu", "The {}m of", "city"),
]

SETTINGS = EditSettings(
    layers=(1, 2, 3),
    covariance_weight=3.0,
    learning_rate=0.5,
    steps=12,
    stop_after=0,
    weight_decay=2.0,
    kl_weight=0.1,
    subject_weight=0.0,
    clamp=4.0,
    norm_guard=2.0,
    max_condition=1e7,
)


def relative(found, expected) -> float:
    """|found - expected| / |expected|."""
    return float((found - expected).norm() / expected.norm())


@functools.cache
def outlier_model():
    """GPT-2 whose states at the first token of a text are far longer than elsewhere."""
    model = copy.deepcopy(tiny.editable("gpt2").model)
    with torch.no_grad():
        model.transformer.wpe.weight[0] *= 150
    return EditableModel(
        tiny.in_double(model), tiny.make_tokenizer(), "tiny with an outlier", "1" * 32
    )
