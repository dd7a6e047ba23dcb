"""The fingerprint: one hash of everything that an MKV's vectors depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping


def fingerprint_of(components: Mapping[str, str]) -> str:
    """Hash the parts of a fingerprint into one.

    Args:
        components: what the vectors depend on, such as the model's hash and the editor's name.

    Returns:
        32 hex digits.
    """
    text = json.dumps(dict(components), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
