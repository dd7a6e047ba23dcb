"""What FedEdit uses of Flower beyond its public API: what of it the installed version still has.

A failing line here says what an update of Flower has changed; `contract.SUPPORTED` and the
requirement in pyproject.toml are raised once all of them hold again.
"""

import importlib
import importlib.metadata
import inspect
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.common.constant import ErrorCode
from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode
from packaging.requirements import Requirement

from fedit_app.deployment import joining, serving
from fedit_app.deployment.node_setup import init_node
from fedit_app.deployment.server_setup import init_server
from fedit_app.flower_compat.contract import SUPPORTED, require
from fedit_app.flower_compat.errors import MEANINGS
from fedit_app.flower_compat.fleet import MOST_AHEAD, MOST_BEHIND
from fedit_app.flower_compat.gate import _CONTROL, _FLEET, _HEALTH
from fedit_app.flower_compat.held import OBJECT_PATH, PULL_PATH, PUSH_PATH
from fedit_app.support.errors import FedEditError

# Module, name, and the arguments with which it is called.
CALLED = [
    ("flwr.superlink.main", "create_app", ["config", "superlink_lifespan_class"]),
    ("flwr.superlink.cli", "flower_superlink", []),
    ("flwr.superlink.cli.flower_superlink", "SuperLinkLifespan.startup", ["self"]),
    ("flwr.superlink.cli.flower_superlink", "SuperLinkLifespan.shutdown", ["self"]),
    (
        "flwr.superlink.cli.flower_superlink",
        "SuperLinkLifespan._start_superexec_if_needed",
        ["self"],
    ),
    ("flwr.supercore.interceptors", "RuntimeVersionHttpInterceptor", ["component_name"]),
    ("flwr.supercore.primitives.asymmetric", "bytes_to_public_key", 1),
    ("flwr.supercore.primitives.asymmetric", "public_key_to_bytes", 1),
    ("flwr.supercore.primitives.asymmetric", "verify_signature", 3),
    ("flwr.superlink.dependencies.linkstate", "get_linkstate", 1),
    ("flwr.supernode.node_auth_http_interceptor", "NodeAuthHttpInterceptor", 2),
    ("flwr.supercore.control", "ControlHttpClient.from_server_address", 4),
    ("flwr.supercore.control", "ControlHttpClient.ListNodes", 2),
    ("flwr.supercore.control", "ControlHttpClient.RegisterNode", 2),
    ("flwr.supercore.control", "ControlHttpClient.UnregisterNode", 2),
    ("flwr.cli.build", "build_fab_from_disk", 1),
    ("flwr.supernode.cli", "flower_supernode", []),
    ("flwr.supernode.start_client_internal", "_insert_message", 3),
    (
        "flwr.supernode.start_client_internal",
        "_pull_and_store_message",
        [
            *("state", "object_store", "node_config", "receive", "get_run", "get_fab"),
            *("pull_object", "confirm_message_received", "trusted_entities"),
        ],
    ),
    ("flwr.supercore.corestate.sql_corestate", "SqlCoreState._cleanup_expired_task_tokens", 1),
    ("flwr.supercore.runtime", "RuntimeHttpClient.PullMessages", 2),
    ("flwr.superlink.grid", "HttpGrid.pull_messages", 2),
    ("uvicorn", "Server.shutdown", 2),
    ("flwr.supernode.fleet_http_client", "FleetHttpClient.from_server_address", 4),
    ("flwr.supernode.fleet_http_client", "FleetHttpClient.ActivateNode", 2),
    ("flwr.supernode.fleet_http_client", "FleetHttpClient.DeactivateNode", 2),
]
# Protobuf message, and the fields that are written or read.
FIELDS = [
    ("flwr.proto.control_pb2", "RegisterNodeRequest", ["public_key", "name"]),
    ("flwr.proto.control_pb2", "UnregisterNodeRequest", ["node_id"]),
    ("flwr.proto.control_pb2", "ListNodesRequest", []),
    ("flwr.proto.control_pb2", "ListNodesResponse", ["nodes_info"]),
    ("flwr.proto.node_pb2", "NodeInfo", ["node_id", "name", "status", "public_key"]),
    ("flwr.proto.runtime_pb2", "PullAppMessagesRequest", ["message_ids"]),
    (
        "flwr.proto.runtime_pb2",
        "PullAppMessagesResponse",
        ["messages_list", "message_object_trees"],
    ),
    ("flwr.proto.runtime_pb2", "PushAppMessagesRequest", ["messages_list"]),
    ("flwr.proto.runtime_pb2", "PushAppMessagesResponse", ["objects_to_push", "session_id"]),
    ("flwr.proto.message_pb2", "PushObjectRequest", ["session_id", "object_id"]),
    ("flwr.proto.fleet_pb2", "PullMessagesRequest", ["node"]),
    ("flwr.proto.fleet_pb2", "ActivateNodeRequest", ["public_key", "heartbeat_interval"]),
    ("flwr.proto.fleet_pb2", "ActivateNodeResponse", ["node_id"]),
    ("flwr.proto.fleet_pb2", "DeactivateNodeRequest", ["node_id"]),
]


@pytest.mark.parametrize(("module", "name", "given"), CALLED)
def test_what_is_called_takes_the_same_arguments(module, name, given):
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    arguments = ((None,) * given, {}) if isinstance(given, int) else ((), dict.fromkeys(given))
    inspect.signature(found).bind(*arguments[0], **arguments[1])


@pytest.mark.parametrize(("module", "message", "fields"), FIELDS)
def test_messages_of_its_apis_have_the_same_fields(module, message, fields):
    found = getattr(importlib.import_module(module), message)
    assert set(fields) <= set(found.DESCRIPTOR.fields_by_name)


def test_the_superlink_starts_its_superexec_as_a_process_that_can_be_watched():
    lifespan = importlib.import_module("flwr.superlink.cli.flower_superlink").SuperLinkLifespan
    assert "self.superexec_process" in inspect.getsource(lifespan.__init__)


def test_the_superlinks_paths_are_those_that_the_gate_and_the_held_questions_know():
    from flwr.superlink.main import create_app

    paths = set(create_app().openapi()["paths"])
    assert {_HEALTH, PULL_PATH, PUSH_PATH, OBJECT_PATH} <= paths
    for prefix in (_FLEET, _CONTROL):
        assert any(path.startswith(prefix) for path in paths)


def test_the_command_lines_are_understood(tmp_path):
    server = init_server(tmp_path / "server", ["fedit.example.org"])
    node = init_node(tmp_path / "node", "bank", "fedit.example.org:8000", server.ca_cert)
    rest = serving._command(server)
    options = rest[rest.index("--host") :]
    assert _parse_args_run_superlink().parse_args(options).enable_supernode_auth
    apps = (f"sha256:{'0' * 64}",)
    listing = replace(node, settings=node.settings.model_copy(update={"apps": apps}))
    for one in (node, listing):
        command = joining._command(one)
        options = command[command.index("--superlink") :]
        assert _parse_args_run_supernode().parse_args(options).superlink == node.settings.superlink
    before = command[: command.index("--superlink")]
    assert before[1:] == ["-m", "fedit_app.flower_compat.supernode", "--allow-app", *apps]


def test_error_codes_mean_what_the_report_says():
    names = {code: name for name, code in vars(ErrorCode).items() if name.isupper()}
    assert {code: names[code] for code in MEANINGS} == {
        1: "LOAD_CLIENT_APP_EXCEPTION",
        2: "CLIENT_APP_RAISED_EXCEPTION",
        3: "MESSAGE_UNAVAILABLE",
        4: "REPLY_MESSAGE_UNAVAILABLE",
        5: "NODE_UNAVAILABLE",
        7: "INVALID_FAB",
        8: "CLIENT_APP_CRASHED",
    }


def test_clocks_may_differ_by_seconds_and_minutes():
    assert (MOST_AHEAD, MOST_BEHIND) == (4, 300)


def test_the_versions_are_those_of_the_requirement():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (required,) = (
        wanted for wanted in map(Requirement, project["dependencies"]) if wanted.name == "flwr"
    )
    assert set(SUPPORTED.split(",")) == set(str(required.specifier).split(","))
    assert required.specifier.contains(importlib.metadata.version("flwr"))


def test_a_flower_that_lacks_a_part_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "flwr.supercore.control", None)
    installed = importlib.metadata.version("flwr")
    told = f"flwr {installed}: the registry needs .*control.* supports flwr>=1.*pip install 'flwr>="
    with pytest.raises(FedEditError, match=told), require("the registry"):
        importlib.import_module("flwr.supercore.control")
