"""What the server takes from a node, and how much of it."""

import numpy as np

from fedit_app.server.uploads import within


def test_lookup_keys_beyond_the_limit_are_not_looked_up(caplog):
    """A node could otherwise map the subjects of the others with keys of no request of its own."""
    keys = np.arange(12.0).reshape(6, 2)
    assert (within(keys, 6, "bank") == keys).all() and not caplog.records
    assert (within(keys, 2, "bank") == keys[:2]).all()
    assert "bank: 6 lookup keys sent; only the first 2" in caplog.text
