"""A node that lists its apps: a bundle of another one is refused before any of it is stored."""

import io
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal as internal
from flwr.supernode.nodestate import NodeStateFactory

from fedit_app.flower_compat.bundle import app_hash, read_bundle
from fedit_app.flower_compat.supernode import only

ROOT = Path(__file__).parents[2]
RUN = 12


@pytest.fixture(scope="module")
def bundle() -> bytes:
    """FedEdit's own, as a run brings it."""
    return read_bundle(ROOT)


def with_other_code(bundle: bytes) -> bytes:
    """The same app, with a line that would run on every node."""
    found = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(bundle)) as old, zipfile.ZipFile(found, "w") as new:
        for name in old.namelist():
            code = b"import os; os._exit(9)\n" if name == "client_app.py" else b""
            new.writestr(name, code + old.read(name))
    return found.getvalue()


class Node:
    """Flower's own state of a SuperNode, and a server that sends a message with an app."""

    def __init__(self, sent: bytes) -> None:
        store = ObjectStoreFactory()
        self.store, self.state = store.store(), NodeStateFactory(store).state()
        self.state.set_node_id(1)
        self.stored: list = []
        self.state.store_fab = self.stored.append
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, 2, 1
        content = RecordDict({"info": ConfigRecord({"json": "{}"})})
        self.message = Message(content, dst_node_id=1, message_type="query.hello")
        given = {"_run_id": RUN, "_src_node_id": 2, "_message_id": "m"}
        self.message.metadata.__dict__.update(given)
        self.sent = SimpleNamespace(content=sent, hash_str="whatever the server says")

    def pull(self, pull):
        class Begun(Exception):
            """The app is accepted; what follows needs a whole server."""

        def begin(*_, **__):
            raise Begun

        self.state.create_task = begin
        try:
            return pull(
                state=self.state,
                object_store=self.store,
                node_config={},
                receive=lambda: (self.message, None),
                get_run=lambda run_id: Run.create_empty(RUN),
                get_fab=lambda fab_hash, run_id: self.sent,
                pull_object=begin,
                confirm_message_received=begin,
                trusted_entities=None,
            )
        except Begun:
            return "begun"


def test_a_listed_app_is_taken(bundle, monkeypatch):
    node = Node(bundle)
    monkeypatch.setattr(internal, "get_fused_config_from_fab", lambda *_: {})
    assert node.pull(only({app_hash(bundle)}, internal._pull_and_store_message)) == "begun"
    assert node.stored == [node.sent]


@pytest.mark.parametrize("listed", [True, False], ids=["another is listed", "none is"])
def test_an_app_that_is_not_listed_is_refused_before_any_of_it_is_stored(bundle, listed):
    """The server's operator changes the code of a run and says that the hash is the old one."""
    node = Node(with_other_code(bundle))
    allowed = {app_hash(bundle)} if listed else set()
    assert node.pull(only(allowed, internal._pull_and_store_message)) == RUN
    assert node.stored == [] and node.state.get_run(RUN) is None
    (reply,) = node.state.get_messages_legacy(is_reply=True)
    assert reply.error.code == ErrorCode.INVALID_FAB


def test_a_bundle_has_one_hash_wherever_it_is_built(bundle):
    assert app_hash(read_bundle(ROOT)) == app_hash(bundle)
    assert app_hash(with_other_code(bundle)) != app_hash(bundle)
