"""The server's application: the page, the state of the run, its sample videos. It only reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from lightx2v_sgmd.apps.watch.reading import WatchedRun
from lightx2v_sgmd.system.errors import UserError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

PAGE: Final = Path(__file__).parents[2] / "assets" / "watch.html"
_POLICY: Final = (
    "default-src 'none'; connect-src 'self'; media-src blob:; img-src blob:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_TYPES: Final = {".mp4": "video/mp4", ".png": "image/png"}
_MOST_BODY_BYTES: Final = 1024


def make_app(run: WatchedRun, token: str | None, host: str) -> ASGIApp:
    """The application behind its checks.

    Args:
        run: The run.
        token: The token that clients must send; None if only this machine can reach the server.
        host: The address that the server listens on.
    """
    from infer.serve.api.errors import answer_errors
    from infer.serve.api.guard import Guard

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    page = PAGE.read_text(encoding="utf-8")

    @app.get("/")
    def home() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": _POLICY})

    @app.get("/run")
    def state() -> Response:
        # JSONResponse cannot encode half of a surrogate pair, which names of files and keys of a
        # log may have.
        return Response(json.dumps(run.state(), allow_nan=False), media_type="application/json")

    @app.get("/samples/{folder}/{name}")
    def video(folder: str, name: str) -> FileResponse:
        file = run.video(folder, name)
        if file is None:
            raise HTTPException(404, "there is no such video")
        # Nobody keeps it: the next run at this port has videos of the same names.
        return FileResponse(file, media_type=_TYPES[file.suffix])

    answer = answer_errors(app)

    @app.exception_handler(UserError)
    async def unreadable(request: Request, error: UserError) -> JSONResponse:
        return answer(503, str(error))

    return Guard(app, token, host, _MOST_BODY_BYTES)
