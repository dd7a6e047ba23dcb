"""Flower's entry to the server side; the code is in `fedit_app.federation.server`."""

from fedit_app.federation.server import app

__all__ = ["app"]
