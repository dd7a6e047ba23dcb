"""Small random MKVs for the tests of this folder."""

import numpy as np
import pytest

from fedit_app.mkv import DEFAULT_PRECISION, MKV, PRECISIONS, create

FINGERPRINT = "model-a"


@pytest.fixture
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
