"""A federation strategy of one's own: a node is served at most five MKVs per slot.

Copied to `fedit_app/server/frugal.py`, it is run by
`fedit run -c strategy=fedit_app.server.frugal:Frugal`.
"""

from fedit_app.server.fedit import FedEdit


class Frugal(FedEdit):
    """FedEdit with a short ranking: the most similar MKVs only."""

    most = 5

    def select(self, own):
        """Which MKVs of the pool every node is served, the most similar first."""
        return {node: ranking[: self.most] for node, ranking in super().select(own).items()}
