"""The server's application: gives raters the page and its videos, and keeps what they send.

It serves the files that the key names and nothing else: no part of a request becomes a path.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from lightx2v_sgmd.apps.study.key import StudyKey
from lightx2v_sgmd.apps.study.store import StoreFull, VoteStore
from lightx2v_sgmd.apps.study.votes import most_bytes, parse_submission

if TYPE_CHECKING:
    from starlette.types import ASGIApp

_POLICY: Final = (
    "default-src 'none'; connect-src 'self'; media-src 'self'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_KEPT: Final = {"cache-control": "private, max-age=86400"}
"""Videos never change, and a rater looks at one several times."""


def make_app(
    study: StudyKey, files: dict[str, Path], store: VoteStore, host: str, base: str = ""
) -> ASGIApp:
    """The application behind its checks.

    Args:
        study: The study.
        files: From ``page_files``.
        store: The database of votes.
        host: The address that the server listens on.
        base: The beginning of every path: ``""``, or ``/`` and a word.
    """
    from infer.serve.api.errors import answer_errors
    from infer.serve.api.guard import Guard

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    page = files["index.html"].read_text(encoding="utf-8")

    @app.get(f"{base}/")
    def home() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": _POLICY})

    @app.get(f"{base}/videos/{{name}}")
    def video(name: str) -> FileResponse:
        file = files.get(f"videos/{name}")
        if file is None:
            raise HTTPException(404, "there is no such video")
        return FileResponse(file, media_type="video/mp4", headers=_KEPT)

    @app.get(f"{base}/collector")
    def collector() -> dict[str, str]:
        return {"study": study.study}

    @app.post(f"{base}/votes")
    async def votes(request: Request) -> dict[str, int]:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise HTTPException(415, "Content-Type: send application/json")
        try:
            found = parse_submission(await request.body(), study)
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        await run_in_threadpool(store.add, found)
        return {"votes": len(found.votes)}

    answer = answer_errors(app)

    @app.exception_handler(StoreFull)
    async def full(request: Request, error: StoreFull) -> JSONResponse:
        return answer(503, "no more votes are taken; tell the person who asked you")

    @app.exception_handler(sqlite3.Error)
    async def storage(request: Request, error: sqlite3.Error) -> JSONResponse:
        return answer(503, "votes cannot be written now; try again later")

    return Guard(app, None, host, most_bytes(study))
