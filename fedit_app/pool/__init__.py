"""The MKV pool that the server keeps: a LanceDB table, and the selection from it.

Knows no Flower, no torch and no model.
"""

from fedit_app.pool.blocks import SignatureBlock
from fedit_app.pool.nearest import Match
from fedit_app.pool.pool import MKVPool
from fedit_app.pool.selection import POLICIES, Ranked, SelectionConfig, select

__all__ = [
    "POLICIES",
    "MKVPool",
    "Match",
    "Ranked",
    "SelectionConfig",
    "SignatureBlock",
    "select",
]
