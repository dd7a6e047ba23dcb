"""Which answers have arrived, asked before any of them is fetched.

Flower's grid has one call for both: it asks for the answers to some messages, and fetches those
that have arrived one after the other. Whoever wants each fetched on its own has to ask for each on
its own, which keeps a SuperLink with many nodes busy with questions whose answer is no.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from functools import partial
from typing import Any, cast

from flwr.app import Message
from flwr.serverapp import Grid

from fedit_app.flower_compat.contract import require

with require("asking which answers have arrived"):
    from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
    from flwr.supercore.runtime import RuntimeHttpClient
    from flwr.superlink.grid import HttpGrid

Fetch = Callable[[], Iterable[Message]]
"""Fetches an answer; nothing if it has not arrived. It is called once."""


def arrived(grid: Grid, ids: Sequence[str]) -> list[tuple[str, Fetch]]:
    """Ask which messages have been answered. A SuperLink is asked one question for all of them.

    Args:
        grid: Flower's. One without a SuperLink behind it is asked for each answer as it is fetched.
        ids: Flower's ids of the messages. Those whose answers have arrived may not be asked for
            again: the SuperLink takes them for fetched.

    Returns:
        The id of each message that has been, or may have been, answered, and how to fetch that.

    Raises:
        httpx.HTTPStatusError: the SuperLink refuses to say.
    """
    if not isinstance(grid, HttpGrid):
        return [(id_, partial(grid.pull_messages, [id_])) for id_ in ids]
    told = grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=ids))
    found: list[tuple[str, Fetch]] = []
    for head, tree in zip(told.messages_list, told.message_object_trees, strict=True):
        id_ = head.metadata.reply_to_message_id
        one = PullAppMessagesResponse(messages_list=[head], message_object_trees=[tree])
        found.append((id_, partial(_told(grid, one).pull_messages, [id_])))
    return found


def _told(grid: HttpGrid, answer: PullAppMessagesResponse) -> HttpGrid:
    """A grid that knows what the SuperLink says when it is asked for answers."""
    view = copy(grid)
    view._client = cast(RuntimeHttpClient, _Told(grid._runtime_client, answer))
    return view


class _Told:
    """Flower's client of the SuperLink, with the answer to one question."""

    def __init__(self, client: RuntimeHttpClient, answer: PullAppMessagesResponse) -> None:
        self._client, self._answer = client, answer

    def PullMessages(self, request: PullAppMessagesRequest) -> PullAppMessagesResponse:  # noqa: N802
        """What the SuperLink has said."""
        return self._answer

    def __getattr__(self, name: str) -> Any:
        """All other requests are made."""
        return getattr(self._client, name)
