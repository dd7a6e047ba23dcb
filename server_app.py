"""Flower's entry to the server side; the code is in `fedit_app.server.app`."""

from fedit_app.server.app import app

__all__ = ["app"]
