"""Serves the page of a run on this machine: live while the run goes on, then its report."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path
from typing import Final

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from fedit_app.report.html import render_report
from fedit_app.report.live import render_live, render_now
from fedit_app.report.progress import PROGRESS_FILE, RunProgress, load_progress
from fedit_app.report.results import Results, load_results
from fedit_app.support.errors import FedEditError
from fedit_app.support.formats import printable

LOOPBACK: Final = "127.0.0.1"
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_RELOAD = 205


def watch_app(folder: Path, token: str) -> Starlette:
    """The pages of a run folder, under `/TOKEN/`; every other path is not found.

    A request has to name this machine as its host: a page of somebody else that a browser here
    shows cannot ask under a name of its own.

    Args:
        folder: the run folder.
        token: what the address has to begin with.
    """

    def page(request: Request) -> Response:
        if not _is(request, token):
            return Response(status_code=404)
        progress, results = _found(folder)
        if progress is not None and progress.status == "running":
            text = render_live(progress, results, secrets.token_urlsafe(16))
        else:
            text = _report(folder, results)
        return HTMLResponse(text, headers=_HEADERS)

    def now(request: Request) -> Response:
        if not _is(request, token):
            return Response(status_code=404)
        progress, results = _found(folder)
        if progress is None or progress.status != "running":
            return Response(status_code=_RELOAD, headers=_HEADERS)
        return HTMLResponse(render_now(progress, results), headers=_HEADERS)

    return Starlette(
        routes=[Route("/{token}/", page), Route("/{token}/now", now)],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[LOOPBACK, "localhost"])],
        exception_handlers={FedEditError: _said},
    )


def listen(port: int) -> socket.socket:
    """A socket of this machine alone; 0 takes any port that is free.

    Raises:
        FedEditError: the port is not free.
    """
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((LOOPBACK, port))
        listening.listen()  # who comes before the server has started is kept waiting
    except (OSError, OverflowError) as error:
        listening.close()
        raise FedEditError(
            f"--port {port}: cannot be listened on ({error}); choose another"
        ) from None
    return listening


def server_of(app: Starlette) -> uvicorn.Server:
    """What serves the pages; its `run` ends when the process is interrupted."""
    # An access log would write down the token.
    return uvicorn.Server(
        uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, ws="none")
    )


def check_run_folder(folder: Path) -> None:
    """Raises FedEditError unless a run has begun to write there."""
    if not (folder / PROGRESS_FILE).is_file() and not (folder / "results.json").is_file():
        raise FedEditError(
            f"{folder}: no run has begun there; give the folder that `fedit run` writes to, "
            "in a deployment on the server"
        )


def _said(_: Request, error: Exception) -> Response:
    return PlainTextResponse(f"fedit watch: {printable(str(error))}", 500, headers=_HEADERS)


def _is(request: Request, token: str) -> bool:
    given: str = request.path_params["token"]
    return secrets.compare_digest(given.encode(), token.encode())


def _found(folder: Path) -> tuple[RunProgress | None, Results | None]:
    file = folder / "results.json"
    return load_progress(folder), load_results(file) if file.is_file() else None


def _report(folder: Path, results: Results | None) -> str:
    file = folder / "report.html"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    if results is None:
        raise FedEditError(f"{folder}: the run has left neither report.html nor results.json")
    return render_report(results)
