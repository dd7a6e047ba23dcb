"""The checks of `fedit doctor` on a node's folder."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import psutil
import torch
from safetensors import safe_open

from fedit_app.deployment.certificates import expires
from fedit_app.deployment.findings import FAIL, GIGABYTE, OK, WARN, Finding, attempt
from fedit_app.deployment.foreground import is_running
from fedit_app.deployment.node_folder import NodeFolder
from fedit_app.deployment.node_setup import handover
from fedit_app.deployment.reaching import check_clock, clock_offset
from fedit_app.deployment.serving import SOON
from fedit_app.facts.jsonl import read_requests
from fedit_app.flower_compat.fleet import is_registered
from fedit_app.ledger.verify import verify
from fedit_app.mkv.federation_key import FederationKey
from fedit_app.mkv.node_key import (
    key_fingerprint,
    openssh_line,
    read_private_key,
    read_public_key,
)
from fedit_app.models.checkpoint import DTYPES, check_checkpoint, weight_files
from fedit_app.models.fingerprint import model_fingerprint
from fedit_app.models.loading import resolve_device, resolve_model
from fedit_app.models.quantised import PACKED
from fedit_app.node.adoption import texts_of
from fedit_app.node.peers import read_peers
from fedit_app.support.addresses import is_free
from fedit_app.support.files import cache_dir, check_private
from fedit_app.support.formats import plural

# Room for the weights, the covariance factors, copies of the edited layers and a batch.
_ROOM = 1.3


def node(found: NodeFolder) -> list[Finding]:
    """Check key, data, policy, state, model, memory and port, and the registration at the server.

    Args:
        found: the node's folder.
    """
    return [
        *attempt("key", lambda: _key(found)),
        *attempt("federation key", lambda: _federation_key(found)),
        *attempt("data", lambda: _data(found)),
        *attempt("ledger", lambda: _ledger(found)),
        *attempt("policy", lambda: _policy(found)),
        *attempt("apps", lambda: _apps(found)),
        *attempt("state", lambda: _state(found)),
        *attempt("model", lambda: _model(found)),
        *attempt("port", lambda: _port(found)),
        *attempt("server", lambda: _server(found)),
    ]


def _key(found: NodeFolder) -> Iterable[Finding]:
    private, public = read_private_key(found.node_key), read_public_key(found.public_key)
    check_private(found.node_key)
    if openssh_line(private.public_key()) == public:
        yield Finding(OK, "key", f"{found.public_key.name} {key_fingerprint(public)}")
    else:
        text = f"{found.public_key} does not belong to {found.node_key}; make a new pair: "
        yield Finding(FAIL, "key", f"{text}fedit keys rotate DIR")
    if found.ca_cert is not None:
        left = expires(found.ca_cert) - datetime.now(UTC)
        if left < SOON:
            text = f"{found.ca_cert} expires in {left.days} days; get a new one from the server"
            yield Finding(WARN, "key", text)


def _federation_key(found: NodeFolder) -> Iterable[Finding]:
    file = found.federation_key
    if file is not None:
        key = FederationKey.read(file)
        text = f"{file.name}: id {key.id}; must be the same on all nodes, and not on the server"
        yield Finding(OK, "federation key", text)
    elif found.policy.unsealed:
        text = "none: the server can read what this node sends, as its policy allows"
        yield Finding(WARN, "federation key", text)
    else:
        text = (
            "none, and the policy forbids runs that are not sealed; name the file of the key as "
            "federation-key in node.toml"
        )
        yield Finding(FAIL, "federation key", text)


def _data(found: NodeFolder) -> Iterable[Finding]:
    requests = read_requests(found.data_path)
    slots = Counter(request.slot or 1 for request in requests)
    shown = ", ".join(f"slot {slot}: {count}" for slot, count in sorted(slots.items()))
    yield Finding(OK, "data", f"{found.data_path.name}: {len(requests)} edit requests ({shown})")


def _ledger(found: NodeFolder) -> Iterable[Finding]:
    """Whether the facts of the edited model that the node takes along are in its data."""
    if not found.settings.ledger:
        return
    folder = found.path(found.settings.ledger)
    asked = {request.fact for request in read_requests(found.data_path)}
    known = [request.fact for request in read_requests(texts_of(folder, "ledger"))]
    count = sum(fact in asked for fact in known)
    text = f"{folder}: {count} of its {len(known)} facts are in the data and are used as they are"
    yield Finding(OK if count else WARN, "ledger", text)


def _policy(found: NodeFolder) -> Iterable[Finding]:
    policy = found.policy
    parts = ["uploads its MKVs" if policy.upload else "receives only"]
    if policy.unsealed:
        parts.append("lets servers read what it sends")
    if policy.most_accepted_per_slot is not None:
        parts.append(f"accepts at most {policy.most_accepted_per_slot} a slot")
    if policy.trusted_nodes is not None:
        parts.append(f"trusts {', '.join(policy.trusted_nodes) or 'nobody'}")
    if policy.screening != 1:
        bounds = f"with {policy.screening:g} times the bounds" if policy.screening else "off"
        parts.append(f"screening {bounds}")
    if policy.peers:
        peers = ", ".join(sorted(read_peers(Path(policy.peers))))
        parts.append(f"asks for the signatures of {peers or 'nobody'}")
    if policy.probes:
        probes = len(read_requests(Path(policy.probes)))
        parts.append(f"{probes} probes, of which {policy.probe_budget:.0%} may be lost")
    yield Finding(OK, "policy", "; ".join(parts))


def _apps(found: NodeFolder) -> Iterable[Finding]:
    apps = found.settings.apps
    if apps is None:
        text = "any that the server's operator starts; `fedit node allow` lists those that may run"
    else:
        text = f"{plural(len(apps), 'app')} may run here, by hash"
    yield Finding(OK, "apps", text)


def _state(found: NodeFolder) -> Iterable[Finding]:
    folder = found.state_dir
    if not folder.is_dir():
        yield Finding(OK, "state", f"{folder} will be made by the first run")
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        yield Finding(
            FAIL, "state", f"{folder} is not writable for this user; change its owner or mode"
        )
    ledgers = sorted(folder.glob("**/ledger/index.json"))
    public, entries = read_public_key(found.public_key), 0
    for index in ledgers:
        verdict = verify(index.parent, public_key=public)
        entries += verdict.mkvs
        for damage in verdict.damages:
            yield Finding(FAIL, "state", f"{index.parent}: {damage}")
    yield Finding(OK, "state", f"{folder}: {len(ledgers)} ledgers with {entries} MKVs")


def _model(found: NodeFolder) -> Iterable[Finding]:
    device = resolve_device(found.settings.device)
    model = found.model()
    if model is None:
        text = "the run names it; name it in node.toml to have it checked here"
        yield Finding(WARN, "model", text)
        return
    folder = resolve_model(model)
    shape = check_checkpoint(folder)
    fingerprint = model_fingerprint(folder, cache_dir() / "fingerprints.json")
    text = f"{shape.model_type} of {shape.n_layers} layers, fingerprint {fingerprint[:12]}"
    yield Finding(OK, "model", f"{text}; must be the same on all nodes")
    yield _room(folder, device, found.settings.dtype)


def _room(folder: Path, device: torch.device, dtype: str) -> Finding:
    """Whether the weights and the memory that editing needs fit on the device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = psutil.virtual_memory().available
    size = _weights_bytes(folder, device, dtype)
    text = (
        f"weights {size / GIGABYTE:.1f} GB, {free / GIGABYTE:.1f} GB free on {device}; another "
        f"{_ROOM - 1:.0%} and more is needed to edit them"
    )
    if size > free:
        return Finding(FAIL, "memory", f"{text}: use dtype = bfloat16, device-map, or a larger GPU")
    return Finding(WARN if size * _ROOM > free else OK, "memory", text)


def _weights_bytes(folder: Path, device: torch.device, dtype: str) -> int:
    """Bytes of a checkpoint's weights in memory, from the headers of its files."""
    total, chosen = 0, DTYPES.get(dtype, torch.float32 if device.type == "cpu" else None)
    for file in weight_files(folder):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():
                part = tensors.get_slice(name)
                stored = part.get_dtype()
                if stored in PACKED:
                    each = 1
                else:
                    each = chosen.itemsize if chosen else 4 if stored in ("F32", "F64") else 2
                total += math.prod(part.get_shape()) * each
    return total


def _port(found: NodeFolder) -> Iterable[Finding]:
    port = found.settings.runtime_port
    if port and not is_running(found.home) and not is_free("127.0.0.1", port):
        yield Finding(FAIL, "port", f"runtime-port {port} is taken; set it to 0 in node.toml")


def _server(found: NodeFolder) -> Iterable[Finding]:
    name, server = found.settings.name, found.settings.superlink
    ahead = clock_offset(found.superlink)
    check_clock(ahead)
    yield Finding(OK, "server", f"{server} answers over TLS; clocks differ by {abs(ahead):.0f} s")
    if is_running(found.home):
        yield Finding(OK, "server", f"{name} is running")
    elif is_registered(found.superlink, read_private_key(found.node_key), found.registration):
        yield Finding(OK, "server", f"knows the key of {name}")
    else:
        yield Finding(FAIL, "server", f"does not know the key of {name}. {handover(found)}")
