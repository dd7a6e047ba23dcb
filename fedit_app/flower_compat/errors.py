"""What Flower's error codes mean to somebody who reads a run's report."""

from __future__ import annotations

from flwr.app import Error

# By the names of Flower's `ErrorCode`; tests/flower_compat/test_contract.py holds them together.
MEANINGS = {
    1: "the node could not load the app; see its log",  # LOAD_CLIENT_APP_EXCEPTION
    2: "the app failed on the node; see its log",  # CLIENT_APP_RAISED_EXCEPTION
    3: "the message expired before the node took it",  # MESSAGE_UNAVAILABLE
    4: "the answer expired before the server took it",  # REPLY_MESSAGE_UNAVAILABLE
    5: "the node is not connected",  # NODE_UNAVAILABLE
    7: "the node refused the app's files",  # INVALID_FAB
    8: "the app crashed on the node; see its log",  # CLIENT_APP_CRASHED
}


def meaning(error: Error) -> str:
    """An error of Flower's in words; its own text is left out, as it may quote an exception."""
    found = MEANINGS.get(error.code, "see Flower's ErrorCode")
    return f"Flower error code {error.code}: {found}"
