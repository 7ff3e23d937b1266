"""``lightx2v-sgmd watch``: checks everything, then serves the page until it is stopped."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from lightx2v_sgmd.apps.watch.reading import WatchedRun


def watch(
    run: Path,
    host: str = "127.0.0.1",
    port: int = 8200,
    token_file: Path | None = None,
    on_start: Callable[[str], None] = lambda url: None,
) -> None:
    """Serves the page of a run until the process is told to stop.

    Args:
        run: The run's folder.
        host: The address to listen on.
        port: The port; 0 takes a free one.
        token_file: The file with the token that clients must send.
        on_start: Called with the page's address when it can be opened.

    Raises:
        UserError: packages are missing, or the folder, token or address cannot be used.
        KeyboardInterrupt: Ctrl-C.
    """
    from infer.serve.listening import listen, need_packages, sigterm_as_interrupt, url_of
    from infer.serve.options import ServeOptions

    need_packages("watch", ("fastapi", "uvicorn"))
    token = ServeOptions(host=host, token_file=token_file).token()
    watched = WatchedRun.open(run)
    with closing(listen(host, port)) as listening:
        import uvicorn

        from lightx2v_sgmd.apps.watch.api import make_app

        config = uvicorn.Config(
            make_app(watched, token, host),
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=200,
            h11_max_incomplete_event_size=2**16,
            timeout_graceful_shutdown=5,
        )
        on_start(f"{url_of(host, listening)}/")
        with sigterm_as_interrupt():
            uvicorn.Server(config).run(sockets=[listening])
