"""The server process: checks everything, starts the worker, runs the API until it is stopped."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Final

from infer.options import Options
from infer.serve.jobs import JobStore
from infer.serve.options import Served, ServeOptions
from infer.serve.results import Results
from infer.serve.supervisor import Supervisor, retire_regularly
from lightx2v_sgmd.outputs import locked_folder, refuse_overlap
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.optional_packages import is_installed

_PACKAGES: Final = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "python_multipart": "python-multipart",
}
_RETIRE_S: Final = 30.0


def serve(
    weights: Path,
    options: ServeOptions | None = None,
    engine: Options | None = None,
    on_start: Callable[[str, Served], None] = lambda url, served: None,
) -> None:
    """Serves a student until the process is told to stop.

    Accepted requests are kept in the folder ``options.data``: a server that is started on it again
    goes on with them.

    Args:
        weights: As for ``infer.load_student``.
        options: Address, folder, limits.
        engine: Precision, device, memory, LoRAs and so on.
        on_start: Called with the server's address and the facts of the weights when requests are
            accepted; the weights may still be loading.

    Raises:
        UserError: the packages are missing, or the address, folder, weights or options cannot be
            used. All are found before weights are loaded.
        KeyboardInterrupt: Ctrl-C, after everything was put away.
    """
    options, engine = options or ServeOptions(), engine or Options()
    _need_packages()
    token = options.token()
    options = replace(options, data=options.data.resolve())
    results = Results(options.data)
    refuse_overlap(options.data, {"the weights": weights}, "--data")
    with closing(_listen(options.host, options.port)) as listening:
        results.check()
        with locked_folder(options.data, "serve", quiet=True):
            with _queue(results) as store:
                _serve(weights, options, engine, token, store, listening, on_start)


@contextmanager
def _queue(results: Results) -> Iterator[JobStore]:
    """Opens the folder's queue; a new one is removed again if nothing could be served."""
    new, unused = not results.queue.exists(), False
    try:
        with closing(JobStore(results.queue)) as store:
            try:
                yield store
            except UserError:
                unused = new and not store.names()
                raise
    finally:
        if unused:
            results.discard()


def _serve(
    weights: Path,
    options: ServeOptions,
    engine: Options,
    token: str | None,
    store: JobStore,
    listening: socket.socket,
    on_start: Callable[[str, Served], None],
) -> None:
    import uvicorn

    from infer.serve.api import make_app
    from infer.serve.backend import Backend
    from infer.serve.guard import Guard

    results = Results(options.data)
    store.release(None, died=False)
    results.sweep(store)
    results.retire(store, options)
    ended = threading.Event()
    supervisor = Supervisor(weights, engine, options, store, ended.set)
    over = threading.Event()
    try:
        served = supervisor.open()
        backend = Backend(
            store,
            results,
            served,
            options,
            state=lambda: supervisor.state,
            restarts=lambda: supervisor.restarts,
        )
        app = Guard(make_app(backend), token, options.host, options.most_body_bytes)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=1000,
            h11_max_incomplete_event_size=2**16,
            timeout_graceful_shutdown=5,
        )
        server = uvicorn.Server(config)
        threading.Thread(target=_stop_when, args=(ended, server), daemon=True).start()
        threading.Thread(
            target=retire_regularly,
            args=(lambda: results.retire(store, options), over, _RETIRE_S),
            daemon=True,
        ).start()
        on_start(_url(options.host, listening), served)
        with _sigterm_as_interrupt():
            server.run(sockets=[listening])
    finally:
        over.set()
        supervisor.stop()
    if supervisor.problem is not None:
        raise supervisor.problem


class Terminated(SystemExit):
    """SIGTERM: the server was told to stop, which is no failure."""


class _sigterm_as_interrupt:
    """SIGTERM ends the block by an exception, so that everything is put away."""

    def __enter__(self) -> None:
        def stop(number: int, frame: FrameType | None) -> None:
            raise Terminated(0)

        self._before = signal.signal(signal.SIGTERM, stop)

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGTERM, self._before)


def _stop_when(ended: threading.Event, server: object) -> None:
    ended.wait()
    server.should_exit = True  # type: ignore[attr-defined]


def _need_packages() -> None:
    missing = [name for module, name in _PACKAGES.items() if not is_installed(module)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(
            f"serve: needs {', '.join(missing)}, which {verb} not installed; "
            "pip install 'lightx2v-sgmd[serve]'"
        )


def _listen(host: str, port: int) -> socket.socket:
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


def _url(host: str, listening: socket.socket) -> str:
    port = listening.getsockname()[1]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
