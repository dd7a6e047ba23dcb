"""v* is that of kmeng01/memit itself: values which its code computed for real records."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from fedit_app.editing.editors import EDITORS
from fedit_app.editing.settings import edit_settings
from fedit_app.facts.counterfact import read_counterfact
from fedit_app.models.embedded import embedded_model
from fedit_app.models.loading import loaded_model

DATA = Path(__file__).parents[3] / "shared" / "data"
VALUES, RECORDS = DATA / "memit_reference_values.npz", DATA / "counterfact_1500.json"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not VALUES.exists(), reason="the published values are not there"),
]


@pytest.fixture(scope="module")
def published():
    with np.load(VALUES) as stored:
        return {name: stored[name] for name in stored.files}


@pytest.fixture(scope="module")
def exact_model(users_cache):
    """SmolLM2 in float64, its norms too: transformers rounds them to float32."""

    def exact(norm, hidden):
        mean = hidden.pow(2).mean(-1, keepdim=True)
        return norm.weight * (hidden * torch.rsqrt(mean + norm.variance_epsilon))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaRMSNorm, "forward", exact)
        folder = str(embedded_model())
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        yield loaded_model(model, AutoTokenizer.from_pretrained(folder))


def test_memit_learns_the_values_of_its_published_code(exact_model, published):
    requests = read_counterfact(str(RECORDS), limit=len(published["case_id"]))
    assert [int(request.id) for request in requests] == published["case_id"].tolist()
    settings = edit_settings(
        "llama",
        exact_model.n_layers,
        exact_model.d_model,
        layers=(4, 5, 6, 7, 8),
        learning_rate=1.0,
        steps=25,
        kl_weight=0.0625,
        subject_weight=0.0,
        weight_decay=0.5,
        clamp=0.75,
        stop_after=0,
        norm_guard=0.0,
    )
    templates = [str(context) for context in published["contexts"]]
    found = EDITORS["memit"].values(exact_model, requests, templates, settings)
    assert found.steps.tolist() == published["passes"].tolist()
    for name in ("h0", "v_star"):
        ours, theirs = getattr(found, name)[:, 0].numpy(), published[name]
        away = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
        assert away.max() < 1e-9, (name, away)
    assert np.allclose(found.loss.numpy(), published["loss"], rtol=1e-9)
