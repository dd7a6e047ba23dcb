"""Whom the gate lets send large bodies: who signs as a registered node, as Flower does it."""

from datetime import timedelta
from types import SimpleNamespace

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode import node_auth_http_interceptor
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedit_app.flower_compat.superlink import is_of_known_node

KEY, OTHER = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))


def headers(key=KEY) -> dict[str, str]:
    """What a SuperNode signs a request with."""
    request = httpx.Request("POST", "https://x/v1/fleet/push-object", content=b"x")
    sent = SimpleNamespace(request=request)
    NodeAuthHttpInterceptor(key, key.public_key()).intercept(sent, lambda context: None)
    return dict(request.headers)


def is_known(given: dict[str, str], registered=KEY) -> bool:
    ids = {public_key_to_bytes(registered.public_key()): 7}
    state = SimpleNamespace(get_node_id_by_public_key=ids.get)
    factory = SimpleNamespace(state=lambda: state)
    app = SimpleNamespace(state=SimpleNamespace(linkstate_factory=factory))
    raw = [(name.encode(), value.encode()) for name, value in given.items()]
    return is_of_known_node({"type": "http", "app": app, "headers": raw})


def test_a_registered_node_is_known_by_what_it_signs():
    assert is_known(headers())


def test_a_key_that_is_not_registered_is_a_strangers():
    assert not is_known(headers(OTHER)) and not is_known(headers(), registered=OTHER)


@pytest.mark.parametrize("name", ["flwr-public-key", "flwr-signature", "flwr-timestamp"])
@pytest.mark.parametrize("value", [None, "", "x", "AAAA", "é", "2026-01-01", "9" * 9999])
def test_headers_that_are_no_signature(name, value):
    given = headers()
    assert given.pop(name)
    assert not is_known(given if value is None else given | {name: value})


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_a_signature_of_another_time_is_none(monkeypatch, seconds):
    then = now() + timedelta(seconds=seconds)
    monkeypatch.setattr(node_auth_http_interceptor, "now", lambda: then)
    assert not is_known(headers())
