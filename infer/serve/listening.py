"""A server's socket, its address, and how it ends; shared by the servers of the project."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterable
from contextlib import suppress
from types import FrameType
from typing import Final

from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.optional_packages import is_installed

PACKAGES: Final = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "python_multipart": "python-multipart",
}
"""The packages of the extra ``serve``: module and name."""


def need_packages(command: str, modules: Iterable[str] = tuple(PACKAGES)) -> None:
    """Raises if a package of the extra ``serve`` is missing.

    Args:
        command: The command that needs them, for the message.
        modules: The modules that it needs, of ``PACKAGES``.

    Raises:
        UserError: names the missing packages and the command that installs them.
    """
    missing = [PACKAGES[module] for module in modules if not is_installed(module)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(
            f"{command}: needs {', '.join(missing)}, which {verb} not installed; "
            "pip install 'lightx2v-sgmd[serve]'"
        )


def listen(host: str, port: int) -> socket.socket:
    """A socket that nobody else listens on.

    Raises:
        UserError: the address is none of this machine, or is in use.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, _, _, address = found[0]
        listening = socket.socket(family, kind)
        with suppress(OSError):
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(256)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"--host {host} --port {port}: cannot be listened on ({reason}); choose another port "
            "or address"
        ) from error
    return listening


def url_of(host: str, listening: socket.socket) -> str:
    """The address of a listening socket as a browser takes it."""
    port = listening.getsockname()[1]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Terminated(SystemExit):
    """SIGTERM: the server was told to stop, which is no failure."""


class sigterm_as_interrupt:
    """SIGTERM ends the block by an exception, so that everything is put away."""

    def __enter__(self) -> None:
        def stop(number: int, frame: FrameType | None) -> None:
            raise Terminated(0)

        self._before = signal.signal(signal.SIGTERM, stop)

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGTERM, self._before)
