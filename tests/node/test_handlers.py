"""What the handlers answer before a node does anything."""

import pytest

from fedit_app.mkv.numerics import NUMERICS_VERSION
from fedit_app.node import handlers
from fedit_app.protocol.messages import VERSION, pack
from fedit_app.support.errors import FedEditError


@pytest.mark.parametrize(
    ("protocol", "numerics", "said"),
    [
        (VERSION + 1, NUMERICS_VERSION, f"protocol version {VERSION + 1}, numerics version"),
        (VERSION, NUMERICS_VERSION + 1, f"numerics version {NUMERICS_VERSION + 1}; this node"),
        (3, None, "protocol version 3, numerics version None"),
    ],
)
def test_a_server_of_another_version_is_told_both_versions(protocol, numerics, said):
    asked = pack({"version": protocol, "numerics": numerics, "first_slot": 1})
    here = f"has protocol version {VERSION}, numerics version {NUMERICS_VERSION}: install the same"
    with pytest.raises(FedEditError, match=said) as error:
        handlers.hello(asked, None)
    assert here in str(error.value)
