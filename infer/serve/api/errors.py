"""Errors as answers: the same body in every server of this project, and never a traceback."""

from __future__ import annotations

from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from infer.serve.api.guard import BodyTooLarge, error_body, kind_of


class Answer(Protocol):
    """Makes the answer that reports an error."""

    def __call__(
        self, status: int, message: str, kind: str | None = None, headers: Any = None
    ) -> JSONResponse:
        """The answer.

        Args:
            status: The HTTP status.
            message: The mistake, in a sentence.
            kind: The type of the error; by default that of the status.
            headers: More headers.
        """
        ...


def answer_errors(app: FastAPI) -> Answer:
    """Answers the errors that every application has, each as ``{"error": {"type", "message"}}``.

    Returns:
        What makes such answers, for the application's own errors.
    """

    def answer(
        status: int, message: str, kind: str | None = None, headers: Any = None
    ) -> JSONResponse:
        body = error_body(message, kind or kind_of(status))
        return JSONResponse(body, status_code=status, headers=headers)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        return answer(error.status_code, str(error.detail), headers=error.headers)

    @app.exception_handler(BodyTooLarge)
    async def too_large(request: Request, error: BodyTooLarge) -> JSONResponse:
        return answer(413, str(error))

    @app.exception_handler(Exception)
    async def internal(request: Request, error: Exception) -> JSONResponse:
        return answer(500, "internal error; the server's log says more")

    return answer
