"""Flower's entry to the client side; the code is in `fedit_app.federation.client`."""

from fedit_app.federation.client import app

__all__ = ["app"]
