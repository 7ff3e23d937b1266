"""``study collect``: checks everything, then serves a study until it is stopped."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lightx2v_sgmd.apps.study.key import NAME, PAGE, StudyKey, read_key
from lightx2v_sgmd.apps.study.store import VoteStore
from lightx2v_sgmd.files.video import check_writable
from lightx2v_sgmd.outputs import locked_file, refuse_overlap, resolved
from lightx2v_sgmd.system.errors import UserError

VOTES: Final = "votes.sqlite"
_WORD: Final = re.compile(r"[A-Za-z0-9_-]{16,128}")


@dataclass(frozen=True)
class CollectOptions:
    """The options of the server.

    Attributes:
        votes: The database; by default ``votes.sqlite`` in the study's folder.
        host: The address that it listens on.
        port: The port; 0 takes a free one.
        word: A word in the page's address, without which the server answers nothing; None: a random
            one if other machines can reach the server, else none.
        most: The most submissions that are kept.
    """

    votes: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8100
    word: str | None = None
    most: int = 100_000

    def __post_init__(self) -> None:
        if self.word is not None and not _WORD.fullmatch(self.word):
            raise UserError(
                "--word: use 16 to 128 letters, digits, _ and -, or leave it out for a random one"
            )


def collect(
    folder: Path,
    options: CollectOptions | None = None,
    on_start: Callable[[str, Path], None] = lambda url, votes: None,
) -> None:
    """Serves a study until the process is told to stop.

    Args:
        folder: The folder that ``study create`` wrote.
        options: Address, database, limits.
        on_start: Called with the page's address and the database when raters can begin.

    Raises:
        UserError: packages are missing, or the folder, address or database cannot be used.
        KeyboardInterrupt: Ctrl-C.
    """
    from infer.serve.listening import listen, need_packages, sigterm_as_interrupt, url_of
    from infer.serve.options import is_loopback

    options = options or CollectOptions()
    need_packages("study collect", ("fastapi", "uvicorn"))
    study = read_key(folder / NAME)
    files = page_files(folder, study)
    votes = options.votes or folder / VOTES
    refuse_overlap(resolved(votes, "--votes"), {"the page": folder / PAGE}, "--votes")
    if resolved(votes, "--votes") == (folder / NAME).resolve():
        raise UserError(f"--votes: {votes} is the study's key; name another file")
    check_writable(votes)
    word = options.word
    if word is None and not is_loopback(options.host):
        word = secrets.token_urlsafe(16)
    base = f"/{word}" if word else ""
    with closing(listen(options.host, options.port)) as listening:
        with locked_file(resolved(votes, "--votes"), "study collect", quiet=True):
            with closing(VoteStore(votes, options.most)) as store:
                import uvicorn

                from lightx2v_sgmd.apps.study.api import make_app

                config = uvicorn.Config(
                    make_app(study, files, store, options.host, base),
                    log_level="warning",
                    access_log=False,
                    server_header=False,
                    limit_concurrency=500,
                    h11_max_incomplete_event_size=2**16,
                    timeout_graceful_shutdown=5,
                )
                on_start(f"{url_of(options.host, listening)}{base}/", votes)
                with sigterm_as_interrupt():
                    uvicorn.Server(config).run(sockets=[listening])


def page_files(folder: Path, study: StudyKey) -> dict[str, Path]:
    """The files of a study's page, by the names that a request may ask for.

    Raises:
        UserError: one is missing, or is a link: what it leads to may be nobody's business.
    """
    names = [f"videos/{name}" for pair in study.pairs for name in pair.videos]
    files = {name: folder / PAGE / name for name in ["index.html", *names]}
    missing = [str(file) for file in files.values() if not file.is_file()]
    if missing:
        raise UserError(
            f"{missing[0]}: is missing ({len(missing)} files are); copy the study's folder again"
        )
    if links := [str(file) for file in files.values() if file.is_symlink()]:
        raise UserError(
            f"{links[0]}: is a link, and raters would get what it leads to; put the video itself "
            "there, as `study create` does"
        )
    return files
