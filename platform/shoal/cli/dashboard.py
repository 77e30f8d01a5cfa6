"""`shoal dashboard`: runs as a page that is live while they are."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from shoal.cli.status import Storage
from shoal.printable import printable

__all__ = ["EPILOG", "dashboard"]

EPILOG = """Examples: shoal dashboard shows the run last active; shoal dashboard my-run --open
opens the browser; shoal dashboard s3://bucket/runs shows runs on a store. From another machine:
ssh -L 8400:localhost:8400 HOST, and there shoal dashboard --port 8400."""


def dashboard(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN|STORAGE]",
            help="A run's id, folder or s3:// address; or where runs lie. By default the run last active.",
        ),
    ] = None,
    storage: Storage = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 0,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. On any but this machine's own (127.0.0.1) whoever opens the page needs the "
            "token in the printed URL, and what is shown crosses the network in clear."
        ),
    ] = "127.0.0.1",
    open_: Annotated[bool, typer.Option("--open", help="Open the page in this machine's browser.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print url, host, port, storage and run as JSON.")] = False,
) -> None:
    """Show runs on a page: cells and nodes, curves, what happened, several runs laid over each other; live.

    Reads their records alone, so it also shows runs that have ended, and needs no cluster. It writes nothing to them.
    Ends with Ctrl-C."""
    from shoal.dashboard.desk import opened
    from shoal.dashboard.server import Server

    desk = opened(target, storage)
    server = Server(desk, host, port)
    desk.read_ahead()
    if server.token is not None:
        print(
            f"shoal: {printable(host)} can be reached from elsewhere, and the page is not encrypted. Whoever has the "
            "URL sees these runs; anybody else is refused.",
            file=sys.stderr,
            flush=True,
        )
    try:  # Ctrl-C ends it from the moment on that it says so
        if as_json:
            told = {"url": server.url, "host": host, "port": server.server_address[1], "storage": desk.storage}
            print(json.dumps(told | {"run": None if desk.asked is None else desk.asked.name}), flush=True)
        else:
            print(f"{printable(server.url)}\n(Ctrl-C ends it)", flush=True)
        if open_:
            import webbrowser

            webbrowser.open(server.url)
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.over.set()
        server.server_close()
