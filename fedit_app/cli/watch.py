"""`fedit watch`: the page of a run, live while it goes on."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated

import typer

from fedit_app.cli.options import until_terminated
from fedit_app.cli.output import say


def watch(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a run.")],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on this machine; 0: any that is free.")
    ] = 0,
) -> int:
    """Show a run in the browser while it goes on, then its report. Only this machine can see it."""
    from fedit_app.report.watch import LOOPBACK, check_run_folder, listen, server_of, watch_app

    check_run_folder(run_dir)
    token = secrets.token_urlsafe(24)
    listening = listen(port)
    say(f"http://{LOOPBACK}:{listening.getsockname()[1]}/{token}/\nend: Ctrl-C")
    server = server_of(watch_app(run_dir, token))

    def serve() -> int:
        server.run(sockets=[listening])
        return 0

    return until_terminated(serve)
