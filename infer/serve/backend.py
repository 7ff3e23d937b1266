"""The server behind the HTTP API: the queue, the files and the facts of the weights.

It imports no web package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from infer.serve.api.answers import VideoAnswer, video_answer
from infer.serve.api.request import RequestProblem, VideoRequest, settle
from infer.serve.jobs import JobStore, VideoJob
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
        return video_answer(job, ahead, self.options.keep_hours, shown)

    def job(self, name: str) -> VideoJob:
        """Returns the job with that name.

        Raises:
            RequestProblem: there is no such job.
        """
        job = self.store.get(name)
        if job is None:
            raise not_found(name)
        return job

    def accept(self, request: VideoRequest) -> VideoJob:
        """Puts a request into the queue.

        Raises:
            RequestProblem: the model cannot make that video, or the queue is full.
        """
        wanted = settle(request, self.served, self.options.most_prompt)
        return self.store.add(wanted, self.options.queue_limit)

    def delete(self, name: str) -> bool:
        """Removes a job and its file; a job that is being made stops after its current step."""
        if self.store.delete(name) is None:
            return False
        self.results.remove(name)
        return True


def not_found(name: str) -> RequestProblem:
    """The refusal of a name that no job has."""
    return RequestProblem(f"there is no video {name[:60]!r}", 404)
