"""The server process: checks everything, starts the worker, runs the API until it is stopped."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from infer.options import Options
from infer.serve.jobs import JobStore
from infer.serve.listening import listen, need_packages, sigterm_as_interrupt, url_of
from infer.serve.names import named_weights
from infer.serve.options import Served, ServeOptions
from infer.serve.queue_check import check_queue
from infer.serve.results import Results
from infer.serve.supervisor import Supervisor, retire_regularly
from lightx2v_sgmd.outputs import locked_folder, refuse_overlap
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.optional_packages import required

if TYPE_CHECKING:
    from infer.cluster.serving import RayWorkers

_RETIRE_S: Final = 30.0


def serve(
    weights: Path | Mapping[str, Path],
    options: ServeOptions | None = None,
    engine: Options | None = None,
    on_start: Callable[[str, tuple[Served, ...]], None] = lambda url, served: None,
) -> None:
    """Serves students until the process is told to stop.

    Accepted requests are kept in the folder ``options.data``: a server that is started on it again
    goes on with them.

    Args:
        weights: As for ``infer.load_student``; or several, by the names that requests give.
        options: Address, folder, limits.
        engine: Precision, device, memory, LoRAs and so on.
        on_start: Called with the server's address and the facts of the weights when requests are
            accepted; the weights may still be loading.

    Raises:
        UserError: the packages are missing, or the address, folder, weights or options cannot be
            used. All are found before weights are loaded.
        KeyboardInterrupt: Ctrl-C, after everything was put away.
    """
    named = named_weights([weights]) if isinstance(weights, Path) else weights
    options, engine = options or ServeOptions(), engine or Options()
    need_packages("serve")
    required("imageio_ffmpeg")
    token = options.token()
    if options.ray and options.nproc > 1:
        raise UserError("--ray: gives each video one GPU; leave --nproc out")
    if options.replicas is not None and not options.ray:
        raise UserError("--replicas: bounds the engines of --ray; add --ray, or leave it out")
    options = replace(options, data=options.data.resolve())
    results = Results(options.data)
    for path in named.values():
        refuse_overlap(options.data, {"the weights": path}, "--data")
    with closing(listen(options.host, options.port)) as listening:
        results.check()
        with locked_folder(options.data, "serve", quiet=True):
            with _queue(results) as store:
                _serve(named, options, engine, token, store, listening, on_start)


@contextmanager
def _queue(results: Results) -> Iterator[JobStore]:
    """Opens the folder's queue; a new one is removed again if nothing could be served."""
    check_queue(results.queue)
    new = unused = not results.queue.exists()
    try:
        with closing(JobStore(results.queue)) as store:
            unused = False
            try:
                yield store
            except Exception:
                unused = new and not store.names()
                raise
    finally:
        if unused:
            results.discard()


def _serve(
    weights: Mapping[str, Path],
    options: ServeOptions,
    engine: Options,
    token: str | None,
    store: JobStore,
    listening: socket.socket,
    on_start: Callable[[str, tuple[Served, ...]], None],
) -> None:
    import uvicorn

    from infer.serve.api.app import make_app
    from infer.serve.api.guard import Guard
    from infer.serve.backend import Backend

    results = Results(options.data)
    store.release(None, died=False)
    results.sweep(store)
    results.sweep_images(store)
    results.retire(store, options)
    ended = threading.Event()
    supervisor = _workers(weights, engine, options, store, ended.set)
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
        app = Guard(make_app(backend), token, options.host, backend.most_body_bytes)
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
        on_start(url_of(options.host, listening), served)
        with sigterm_as_interrupt():
            server.run(sockets=[listening])
    finally:
        over.set()
        supervisor.stop()
    if supervisor.problem is not None:
        raise supervisor.problem


def _workers(
    weights: Mapping[str, Path],
    engine: Options,
    options: ServeOptions,
    store: JobStore,
    on_end: Callable[[], None],
) -> Supervisor | RayWorkers:
    """The workers that make the videos: on this machine, or on the machines of a cluster."""
    if not options.ray:
        return Supervisor(weights, engine, options, store, on_end)
    from infer.cluster.serving import RayWorkers

    return RayWorkers(weights, engine, options, store, on_end)


def _stop_when(ended: threading.Event, server: object) -> None:
    ended.wait()
    server.should_exit = True  # type: ignore[attr-defined]
