"""The server's socket, token and browser."""

import contextlib
import functools
import html
import os
import pathlib
import secrets
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Iterator
from typing import NamedTuple

import uvicorn

from usam_jax.utils import console
from usam_jax.utils.errors import UsageError
from usam_jax.viewer.case import Model, Paths
from usam_jax.viewer.desk import Desk
from usam_jax.viewer.server import make_app
from usam_jax.viewer.worker import Worker

HOST = "127.0.0.1"
TOKEN_BYTES = 32


class Settings(NamedTuple):
    """What a viewer serves: volumes by name with their files, classes and, if any, the model."""

    names: tuple[str, ...]
    paths: tuple[Paths, ...]
    classes: tuple[str, ...]
    model: Model | None = None
    checkpoint: pathlib.Path | None = None
    points: pathlib.Path | None = None
    series: str | None = None
    fresh: bool = False
    port: int = 0
    browser: bool = True


def serve(settings: Settings) -> None:
    """Serve the viewer until Ctrl-C.

    Raises UsageError if the port is in use, and UserError if the first volume cannot be opened.
    """
    with bind(settings.port) as bound:
        desk = make_desk(settings)
        try:
            desk.open_first()
            token = secrets.token_urlsafe(TOKEN_BYTES)
            address = f"http://{HOST}:{bound.getsockname()[1]}/#token={token}"
            console.info(f"open {address}\nCtrl-C stops the viewer")
            server = uvicorn.Server(make_config(desk, token))
            with opened(address) if settings.browser and has_screen() else contextlib.nullcontext():
                server.run(sockets=[bound])
        finally:
            desk.close()


def make_desk(settings: Settings) -> Desk:
    """Return the work list of the settings, with a worker that loads the model."""
    load_fn = None
    if settings.checkpoint:
        from usam_jax.viewer.model import load_predictor  # imports JAX

        load_fn = functools.partial(load_predictor, settings.checkpoint)
    return Desk(
        settings.names,
        settings.paths,
        settings.classes,
        Worker(load_fn),
        settings.model,
        settings.series,
        settings.fresh,
        settings.points,
    )


def make_config(desk: Desk, token: str) -> uvicorn.Config:
    """Return the settings of uvicorn."""
    return uvicorn.Config(
        make_app(desk, token),
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=1,  # an open request does not keep Ctrl-C waiting
    )


def bind(port: int) -> socket.socket:
    """Return a socket on the loopback interface. Raises UsageError if the port is in use."""
    # Only with this protocol number does asyncio set TCP_NODELAY; each reply would take 40 ms more.
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((HOST, port))
        bound.listen()  # a browser that is faster than the server then waits
    except OSError as error:
        bound.close()
        raise UsageError(
            f"--port: got {port}, which cannot be used ({error.strerror}). Leave it out for a free one."
        ) from error
    return bound


def has_screen() -> bool:
    """Whether there is a screen for a browser with windows: others would take over the terminal."""
    return sys.platform != "linux" or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )


@contextlib.contextmanager
def opened(address: str) -> Iterator[None]:
    """Open an address in the browser through a file that only this user can read.

    The address on the browser's command line would show the token to all users of the machine.
    """
    descriptor, name = tempfile.mkstemp(".html", "usam-view-")  # of mode 0600
    path = pathlib.Path(name)
    try:
        with os.fdopen(descriptor, "w") as file:
            escaped = html.escape(address, quote=True)
            file.write(f'<meta http-equiv="refresh" content="0; url={escaped}">\n')
        webbrowser.open(path.as_uri())
        yield
    finally:
        path.unlink(missing_ok=True)
