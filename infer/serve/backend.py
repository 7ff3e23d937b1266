"""The server behind the HTTP API: the queue, the files and the facts of the weights.

It imports no web package.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from infer.serve.api.answers import MediaType, VideoAnswer, video_answer
from infer.serve.api.reference import MOST_BODY, fingerprint, reference_of
from infer.serve.api.request import (
    RequestProblem,
    VideoRequest,
    check_image_wanted,
    pick,
    settle,
)
from infer.serve.jobs import JobStore, VideoJob, new_name
from infer.serve.options import Served, ServeOptions, State
from infer.serve.results import Results


@dataclass(frozen=True)
class Backend:
    """The parts of a running server that the API uses.

    Attributes:
        store: The queue.
        results: The folder of the videos.
        served: The weights; requests that name none get the first.
        options: The server's options.
        state: Returns the worker's state.
        restarts: Returns how often the worker was started again.
    """

    store: JobStore
    results: Results
    served: tuple[Served, ...]
    options: ServeOptions
    state: Callable[[], State]
    restarts: Callable[[], int]

    def answer(self, job: VideoJob) -> VideoAnswer:
        """The answer that describes a job to a client."""
        ahead = self.store.ahead_of(job) if job.status == "queued" else None
        shown = job.status == "in_progress" and self.results.preview(job.id).is_file()
        kind = self.media_type(job)
        return video_answer(job, ahead, self.options.keep_hours, kind, shown)

    def media_type(self, job: VideoJob) -> MediaType:
        """The kind of file that a job becomes; of weights that are not served now, as it is."""
        served = next((one for one in self.served if one.name == job.model), None)
        file = self.results.found(job.id) if job.status == "completed" else None
        suffix = file.suffix if file else served.rules.suffix if served else ".mp4"
        return "image/png" if suffix == ".png" else "video/mp4"

    def job(self, name: str) -> VideoJob:
        """Returns the job with that name.

        Raises:
            RequestProblem: there is no such job.
        """
        job = self.store.get(name)
        if job is None:
            raise not_found(name)
        return job

    @property
    def most_body_bytes(self) -> int:
        """The largest body of a request: more where it may hold an image."""
        takes = any(served.takes_image != "never" for served in self.served)
        return MOST_BODY if takes else self.options.most_body_bytes

    def accept(self, request: VideoRequest, upload: bytes | None = None) -> VideoJob:
        """Puts a request into the queue; its image, if it has one, is on the disk before it.

        Args:
            request: The request.
            upload: The content of the image file that a form brought.

        Raises:
            RequestProblem: the model cannot make that video.
            QueueFull: as many jobs wait as may wait.
        """
        given = upload is not None or bool(request.input_reference)
        check_image_wanted(pick(self.served, request.model), given)  # before it is decoded
        content = reference_of(request, upload)
        image = None if content is None else fingerprint(content)
        wanted = settle(request, self.served, self.options.most_prompt, image)
        name = new_name()
        try:
            if content is not None:
                self.results.keep_image(name, content)
            return self.store.add(wanted, self.options.queue_limit, name)
        except OSError as error:
            self.results.remove_sources(name)
            print(f"serve: an image cannot be written: {error}", file=sys.stderr, flush=True)
            message = "the image cannot be written now; try again later"
            raise RequestProblem(message, 503, "server_error") from None
        except BaseException:
            self.results.remove_sources(name)
            raise

    def delete(self, name: str) -> bool:
        """Removes a job and its file; a job that is being made stops after its current step."""
        if self.store.delete(name) is None:
            return False
        self.results.remove(name)
        return True


def not_found(name: str) -> RequestProblem:
    """The refusal of a name that no job has."""
    return RequestProblem(f"there is no video {name[:60]!r}", 404)
