"""The HTTP API: OpenAI's videos API as open engines speak it. Imports no PyTorch.

Endpoints that only ask the queue are plain functions, which FastAPI runs in threads; nothing here
waits for a video but ``/v1/videos/sync``, which asks the queue again and again.
"""

from __future__ import annotations

import asyncio
import math
import sqlite3
import time
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from fastapi import FastAPI, Query, Request
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from infer.serve.api.answers import (
    DeletedAnswer,
    Health,
    ModelList,
    VideoAnswer,
    VideoPage,
    error_answers,
    model_answer,
)
from infer.serve.api.errors import answer_errors
from infer.serve.api.metrics import CONTENT_TYPE, metrics_text
from infer.serve.api.reference import NAME as REFERENCE
from infer.serve.api.request import RequestProblem, VideoRequest, parse_body, read_request
from infer.serve.backend import Backend, not_found
from infer.serve.jobs import QueueFull, VideoJob
from lightx2v_sgmd import __version__

_POLL_S: Final = 0.05
_MOST_RETRY_S: Final = 3600
_JSON: Final = "application/json"
_FORMS: Final = ("multipart/form-data", "application/x-www-form-urlencoded")
PAGE: Final = Path(__file__).with_name("page.html")
API_PAGE: Final = Path(__file__).with_name("docs.html")

_Id = Annotated[
    str, PathParameter(pattern=r"^video_[0-9a-f]{32}$", description="The job's id.", alias="id")
]
_KINDS: Final[dict[str, Any]] = {"video/mp4": {}, "image/png": {}}
_VIDEO_FILE: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": _KINDS, "description": "The mp4 file, or the PNG file of an image."}
}


def make_app(backend: Backend) -> FastAPI:
    """The application, without the checks of ``guard``."""
    app = FastAPI(
        title="lightx2v-sgmd",
        version=__version__,
        description="Videos from a distilled student, in OpenAI's videos API.",
        docs_url=None,  # FastAPI's page would load scripts from elsewhere; ours is API_PAGE
        redoc_url=None,
        responses=error_answers(400, 401, 403, 413, 500, 503),
    )
    app.state.backend = backend
    _add_errors(app)
    _add_videos(app, backend)
    _add_content(app, backend)
    _add_server(app, backend)
    described = app.openapi

    def openapi() -> dict[str, Any]:
        schema = described()
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)  # ours are 400
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def _add_videos(app: FastAPI, backend: Backend) -> None:
    """Jobs: create, list, look, delete."""

    @app.post(
        "/v1/videos",
        summary="Create a video job",
        responses=error_answers(404, 415, 429),
        openapi_extra=_request_body(),
    )
    async def create(request: Request) -> VideoAnswer:
        wanted, upload = await _read(request, backend)
        return await run_in_threadpool(lambda: backend.answer(backend.accept(wanted, upload)))

    @app.get("/v1/videos", summary="List videos")
    def page(
        limit: Annotated[int, Query(ge=1, le=100, description="Videos on a page.")] = 20,
        after: Annotated[
            str | None, Query(max_length=64, description="Last id of the page before.")
        ] = None,
        order: Annotated[
            Literal["asc", "desc"], Query(description="Oldest or newest first.")
        ] = "desc",
    ) -> VideoPage:
        try:
            jobs, more = backend.store.page(limit, after, order == "desc")
        except KeyError:
            raise RequestProblem(f"after: there is no video {after!r}") from None
        data = [backend.answer(job) for job in jobs]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return VideoPage(data=data, first_id=first, last_id=last, has_more=more)

    @app.get("/v1/videos/{id}", summary="Look at a video job", responses=error_answers(404))
    def retrieve(name: _Id) -> VideoAnswer:
        return backend.answer(backend.job(name))

    @app.delete("/v1/videos/{id}", summary="Cancel or delete", responses=error_answers(404))
    def delete(name: _Id) -> DeletedAnswer:
        if not backend.delete(name):
            raise not_found(name)
        return DeletedAnswer(id=name)


def _add_content(app: FastAPI, backend: Backend) -> None:
    """Files: download, and make one while the client waits."""

    @app.get(
        "/v1/videos/{id}/content",
        summary="Download a video; ranges are served",
        response_class=FileResponse,
        responses={
            **error_answers(404, 409),
            **_VIDEO_FILE,
            206: {"content": _KINDS, "description": "A part of the file."},
            416: {"content": {"text/plain": {}}, "description": "No such part."},
        },
    )
    def content(
        name: _Id, variant: Annotated[Literal["video"], Query(description="Only video.")] = "video"
    ) -> FileResponse:
        return _file(backend, backend.job(name))

    @app.get(
        "/v1/videos/{id}/preview",
        summary="See an unfinished video: the data prediction of its last step, roughly decoded",
        response_class=Response,
        responses={
            **error_answers(404),
            200: {"content": {"image/webp": {}}, "description": "An animated picture."},
        },
    )
    def preview(name: _Id) -> Response:
        file = backend.results.preview(backend.job(name).id)
        try:
            return Response(file.read_bytes(), media_type="image/webp")
        except FileNotFoundError:
            raise RequestProblem(
                f"video {name} has no preview now; previews are there between two steps, and "
                "after the server's first video",
                404,
            ) from None

    @app.post(
        "/v1/videos/sync",
        summary="Make a video and wait for it",
        response_class=FileResponse,
        responses={**error_answers(404, 415, 429, 504), **_VIDEO_FILE},
        openapi_extra=_request_body(),
    )
    async def sync(request: Request) -> Response:
        wanted, upload = await _read(request, backend)
        job = await run_in_threadpool(backend.accept, wanted, upload)
        until = time.monotonic() + backend.options.sync_limit_s
        try:
            while job.status in ("queued", "in_progress"):
                await asyncio.sleep(_POLL_S)
                if await request.is_disconnected():
                    raise RequestProblem("the client is gone", 499)
                if time.monotonic() > until:
                    raise RequestProblem(
                        f"the video was not made within {backend.options.sync_limit_s:g} s and was "
                        "cancelled; use POST /v1/videos",
                        504,
                        "server_error",
                    )
                job = await run_in_threadpool(backend.job, job.id)
        except BaseException:
            await run_in_threadpool(backend.delete, job.id)
            raise
        if job.status == "failed":
            raise RequestProblem(str(job.error), 500, "server_error")
        return await run_in_threadpool(_file, backend, job)


def _add_server(app: FastAPI, backend: Backend) -> None:
    """The server itself: page, models, health, figures."""
    policy = (
        "default-src 'none'; connect-src 'self'; media-src blob:; img-src data: blob:; "
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )
    page, described = (file.read_text(encoding="utf-8") for file in (PAGE, API_PAGE))

    @app.get("/", include_in_schema=False)
    def home() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": policy})

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(described, headers={"content-security-policy": policy})

    @app.get("/v1/models", summary="The served students")
    def models() -> ModelList:
        return ModelList(data=[model_answer(served) for served in backend.served])

    @app.get("/health", summary="Is the worker ready?", responses={503: {"model": Health}})
    def health() -> JSONResponse:
        state = backend.state()
        ready = state == "ready"
        body = Health(status="ok" if ready else "unavailable", worker=state)
        return JSONResponse(body.model_dump(), status_code=200 if ready else 503)

    @app.get("/metrics", summary="Figures for Prometheus", response_class=PlainTextResponse)
    def metrics() -> PlainTextResponse:
        text = metrics_text(
            backend.store,
            backend.state() == "ready",
            backend.restarts(),
            backend.options.queue_limit,
        )
        return PlainTextResponse(text, media_type=CONTENT_TYPE)


def _add_errors(app: FastAPI) -> None:
    """Every error as ``{"error": {"type", "message"}}``, without a traceback."""
    answer = answer_errors(app)

    @app.exception_handler(RequestProblem)
    async def refused(request: Request, error: RequestProblem) -> JSONResponse:
        return answer(error.status, str(error), error.kind)

    @app.exception_handler(QueueFull)
    async def full(request: Request, error: QueueFull) -> JSONResponse:
        backend: Backend = request.app.state.backend
        wait_s = await run_in_threadpool(backend.store.wait_s, 1)
        retry = min(max(1, math.ceil(wait_s)), _MOST_RETRY_S)
        message = f"the queue is full: {error}; try again in {retry} s"
        return answer(429, message, headers={"retry-after": str(retry)})

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where, name = first["loc"][0], first["loc"][-1]
        if where == "path":
            return answer(404, "there is no such video")
        return answer(400, f"{name}: {first['msg'][:200]}")

    @app.exception_handler(sqlite3.Error)
    async def storage(request: Request, error: sqlite3.Error) -> JSONResponse:
        return answer(503, "the queue cannot be written now; try again later")


async def _read(request: Request, backend: Backend) -> tuple[VideoRequest, bytes | None]:
    """The fields of a request, JSON or a form; and the image file of a form."""
    kind = request.headers.get("content-type", _JSON).partition(";")[0].strip().lower()
    if kind == _JSON:
        values = parse_body(await request.body())
        return read_request(values, backend.served, form=False), None
    if kind not in _FORMS:
        raise RequestProblem(
            f"Content-Type: {kind[:80]} is not read; send {_JSON} or {_FORMS[0]}", 415
        )
    try:
        most = backend.most_body_bytes
        form = await request.form(max_files=1, max_fields=64, max_part_size=most)
    except (MultiPartException, HTTPException) as error:
        reason = error.message if isinstance(error, MultiPartException) else error.detail
        raise RequestProblem(f"body: is not a readable form: {reason}") from None
    fields: dict[str, Any] = {}
    upload: bytes | None = None
    try:
        for key, value in form.multi_items():
            if key in fields or (key == REFERENCE and upload is not None):
                raise RequestProblem(f"{key[:60]}: is given twice; give it once")
            if isinstance(value, UploadFile) and key == REFERENCE:
                upload = await value.read()
                continue
            if not isinstance(value, str) and key in VideoRequest.model_fields:
                raise RequestProblem(f"{key}: is a file; send text")
            fields[key] = value
    finally:
        await form.close()
    return read_request(fields, backend.served, form=True), upload


def _file(backend: Backend, job: VideoJob) -> FileResponse:
    """A job's video.

    Raises:
        RequestProblem: it is not there, or not yet.
    """
    if job.status in ("queued", "in_progress"):
        raise RequestProblem(f"video {job.id} is {job.status}; ask again when it is completed", 409)
    if job.status == "failed":
        raise RequestProblem(f"video {job.id} was not made: {job.error}", 404)
    file = backend.results.found(job.id)
    if file is None:
        raise not_found(job.id)
    return FileResponse(
        file,
        media_type=backend.media_type(job),
        filename=file.name,
        content_disposition_type="inline",
        headers={"x-video-id": job.id},
    )


def _request_body() -> dict[str, Any]:
    schema = VideoRequest.model_json_schema()
    fields, parts = schema["properties"], schema.pop("$defs")
    for field in fields.values():  # a body's description stands alone
        if "anyOf" in field:
            field["anyOf"] = [
                parts[kind["$ref"].rpartition("/")[2]] if "$ref" in kind else kind
                for kind in field["anyOf"]
            ]
    file = {"type": "string", "format": "binary", "description": "A PNG, JPEG or WebP file."}
    form = {**schema, "properties": {**fields, REFERENCE: file}}
    return {
        "requestBody": {
            "required": True,
            "content": {_JSON: {"schema": schema}, _FORMS[0]: {"schema": form}},
        }
    }
