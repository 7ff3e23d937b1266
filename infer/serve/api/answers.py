"""The bodies of the API's answers, as its OpenAPI description gives them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from infer.serve.jobs import Status, VideoJob
from infer.serve.options import Served, State
from lightx2v_sgmd.families.features import TakesImage

MediaType = Literal["video/mp4", "image/png"]
"""The kind of file that a job becomes."""


class Problem(BaseModel):
    """An error."""

    type: str
    message: str


class ErrorAnswer(BaseModel):
    """The answer to a request that was refused or failed."""

    error: Problem


class JobError(BaseModel):
    """The reason why a video was not made."""

    code: str
    message: str


class VideoAnswer(BaseModel):
    """A video job."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Status
    progress: int = Field(description="Percent of the steps that are done.")
    created_at: int = Field(description="Unix time in seconds.")
    completed_at: int | None = Field(description="Unix time in seconds.")
    expires_at: int | None = Field(description="Unix time after which the video is removed.")
    prompt: str
    size: str = Field(description="WIDTHxHEIGHT in pixels.")
    seconds: str = Field(description="Length of the video.")
    media_type: MediaType = Field(description="Kind of its file: a video, or a student's image.")
    seed: int
    width: int
    height: int
    num_frames: int
    fps: float
    lora: str | None = Field(description="The LoRA that it is made with.")
    starts_from_image: bool = Field(description="True if an input_reference was given.")
    preview: str | None = Field(description="Where the unfinished video can be seen, if it can.")
    queue_position: int | None = Field(description="Queued jobs before this one.")
    inference_time_s: float | None = Field(description="Seconds that the video took to make.")
    error: JobError | None


class VideoPage(BaseModel):
    """A page of the list of videos."""

    object: Literal["list"] = "list"
    data: list[VideoAnswer]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedAnswer(BaseModel):
    """A video that was removed."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool = True


class ModelAnswer(BaseModel):
    """A served student."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "lightx2v-sgmd"
    steps: int
    size: str | None = Field(description="WIDTHxHEIGHT that it was trained for.")
    num_frames: int | None
    fps: float
    images: bool = Field(description="True if it makes images, as PNG files.")
    loras: list[str] = Field(description="Names of the LoRAs that a request may give.")
    takes_image: TakesImage = Field(description="Tells if its videos start from an image.")


class ModelList(BaseModel):
    """The list of models, the default first."""

    object: Literal["list"] = "list"
    data: list[ModelAnswer]


class Health(BaseModel):
    """The state of the server."""

    status: Literal["ok", "unavailable"]
    worker: State


def video_answer(
    job: VideoJob,
    ahead: int | None,
    keep_hours: float,
    media_type: MediaType = "video/mp4",
    has_preview: bool = False,
) -> VideoAnswer:
    """A job as clients see it.

    Args:
        job: The job.
        ahead: Queued jobs before it, if it waits.
        keep_hours: Hours that a finished video is kept.
        media_type: The kind of its file.
        has_preview: True if the unfinished video can be seen.
    """
    done = job.completed_at
    failed = None if job.error is None else JobError(code="generation_failed", message=job.error)
    return VideoAnswer(
        id=job.id,
        model=job.model,
        status=job.status,
        progress=job.progress,
        created_at=int(job.created_at),
        completed_at=None if done is None else int(done),
        expires_at=None if done is None else int(done + 3600 * keep_hours),
        prompt=job.prompt,
        size=f"{job.width}x{job.height}",
        seconds=f"{job.num_frames / job.fps:.4g}",
        media_type=media_type,
        seed=job.seed,
        width=job.width,
        height=job.height,
        num_frames=job.num_frames,
        fps=job.fps,
        lora=job.lora,
        starts_from_image=job.image is not None,
        preview=f"/v1/videos/{job.id}/preview" if has_preview else None,
        queue_position=ahead,
        inference_time_s=None if job.seconds is None else round(job.seconds, 3),
        error=failed,
    )


def model_answer(served: Served) -> ModelAnswer:
    """Served weights as clients see them."""
    trained = served.trained
    return ModelAnswer(
        id=served.name,
        created=0,
        steps=served.steps,
        size=f"{trained[1]}x{trained[0]}" if trained else None,
        num_frames=trained[2] if trained else None,
        fps=served.fps,
        images=served.rules.images,
        loras=list(served.loras),
        takes_image=served.takes_image,
    )


def error_answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The description of errors, for the OpenAPI page."""
    return {status: {"model": ErrorAnswer} for status in statuses}
