"""Flower's entry to the client side; the code is in `fedit_app.node.app`."""

from fedit_app.node.app import app

__all__ = ["app"]
