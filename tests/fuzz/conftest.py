"""How much is tried: 200 inputs a test, or as many as FEDIT_FUZZ_EXAMPLES says."""

import os

import pytest
import tiny
from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("FEDIT_FUZZ_EXAMPLES", "200"))

settings.register_profile(
    "fedit",
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES <= 200,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("fedit")


@pytest.fixture(scope="session")
def small(tiny_folder) -> dict:
    """Run-config values with which a message is answered in a moment."""
    return {
        "model": str(tiny_folder),
        **tiny.RUN_CONFIG,
        "value-steps": 1,
    }
