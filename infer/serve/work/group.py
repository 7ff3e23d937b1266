"""A worker of several processes that make each video together, one on each GPU.

The first process has the queue and leads: it tells the others, through pipes, each thing that all
of them do. They wait in a pipe, not in a collective, so an idle group has no timeout. Whether a
video is still wanted is the first one's to know; after each step they agree on it. Anything else
that goes wrong in one of them ends the process, and the server then ends the group and starts a new
one.

C channels, T latent frames, h, w latent height and width.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from infer.options import Options
from infer.serve.work.students import Fit, Students
from lightx2v_sgmd.families.size_rules import Size
from lightx2v_sgmd.system.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from infer.engine import Student
    from infer.stopping import OnStep
    from lightx2v_sgmd.families.base import Model
    from lightx2v_sgmd.families.conditioning import Embedding
    from lightx2v_sgmd.files.video import Frames
    from lightx2v_sgmd.parallel.ranks import Ranks
    from lightx2v_sgmd.schedule import Schedule

BROKEN: Final = 4
"""The exit code of a process that cannot go on with the others."""


@contextmanager
def leading(device: Any, followers: Sequence[Connection]) -> Iterator[Ranks]:
    """The first process of a group; opens the store where they meet.

    Raises:
        UserError: this machine has fewer GPUs than processes.
    """
    from lightx2v_sgmd.parallel.rendezvous import host_store

    _check_devices(device, len(followers) + 1)
    store = host_store()
    for pipe in followers:
        pipe.send(store.port)
    with _joined(device, store, 0, len(followers) + 1) as ranks:
        yield ranks


def follow(
    weights: Mapping[str, Path],
    engine: Options,
    loras: Mapping[str, Path],
    batch: int,
    leader: Connection,
    rank: int,
    size: int,
) -> None:
    """The whole life of another process: does what the first one says until it says stop.

    Args:
        weights: As for ``Students``.
        engine: As for ``Students``.
        loras: As for ``Students``.
        batch: As for ``Students``.
        leader: The pipe from the first process, which says what to do.
        rank: The number of this process.
        size: The number of processes.
    """
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", leader.recv(), is_master=False)
    with _joined(engine.device, store, rank, size) as ranks:
        students = Students(weights, engine, loras, batch, ranks)
        check_after(students, leader, rank)
        obey(students, leader, ranks)


def check_after(students: Students, leader: Connection, rank: int) -> None:
    """Checks the weights, and lets the first process be the one that says why they are refused.

    The server takes the end of any process for a death, so a process that refuses the weights must
    not end before the first one has said so.

    Raises:
        UserError: the weights or options cannot be used.
    """
    try:
        students.check()
    except UserError as error:
        with suppress(EOFError):  # the first process refuses them as well, and ends
            leader.recv()
            print(f"serve: process {rank} of the worker: {error}", file=sys.stderr, flush=True)
        raise


def obey(students: Students, leader: Connection, ranks: Ranks) -> None:
    """Does what the first process says until it says stop."""
    student: Student | None = None
    rows: Sequence[Embedding] = ()
    latents: Tensor | None = None

    def on_step(step: int, x_t: Tensor) -> None:
        if ranks.any(False):
            raise _Unwanted

    while (order := leader.recv()) is not None:
        name, values = order
        try:
            if name == "get":
                student, latents = None, None
                student = _get_together(students, ranks, values)
            assert student is not None, "a student is got before it does anything"
            if name == "encode":
                rows = student.encode(values[0], quiet=True)
            elif name == "denoise":
                latents = student.denoise(rows, values[0], values[1], on_step)
            elif name == "decode":
                assert latents is not None, "videos are denoised before they are decoded"
                for chunks in student.decode_each(latents):
                    deque(chunks, maxlen=0)  # this process's tiles
        except _Unwanted:
            pass
        except UserError:
            if name not in ("get", "encode"):  # these fail on all processes, or on none
                raise


class Leader:
    """The students of a group, for the process that leads it.

    Args:
        students: This process's part of them.
        ranks: The processes.
        followers: The pipes to the others, which are told what to do.
    """

    def __init__(self, students: Students, ranks: Ranks, followers: Sequence[Connection]) -> None:
        self.students, self.ranks, self._followers = students, ranks, followers

    def check(self) -> dict[str, Fit]:
        """Checks all weights, as ``Students.check`` does; the others check them by themselves."""
        return self.students.check()

    def get(
        self, model: str, lora: str | None, size: Size | None = None, count: int = 1
    ) -> GroupStudent:
        """The student of that name, on all processes.

        Raises:
            UserError: one of them could not load it.
        """
        values = (model, lora, size, count)
        self.tell("get", values)
        return GroupStudent(self, _get_together(self.students, self.ranks, values))

    def batch_for(self, model: str, size: Size) -> int:
        """The number of videos of a size that are made together."""
        return self.students.batch_for(model, size)

    def tell(self, name: str, values: tuple[Any, ...] = ()) -> None:
        """Tells all others what to do."""
        for pipe in self._followers:
            pipe.send((name, values))

    def stop(self) -> None:
        """Tells all others to stop."""
        for pipe in self._followers:
            pipe.send(None)


class GroupStudent:
    """A student on all processes, as far as a worker needs it."""

    def __init__(self, leader: Leader, student: Student) -> None:
        self._leader, self._student = leader, student

    @property
    def schedule(self) -> Schedule:
        """The steps it runs."""
        return self._student.schedule

    @property
    def model(self) -> Model:
        """The model that it runs as."""
        return self._student.model

    @property
    def suffix(self) -> str:
        """The suffix of the files that show what it makes."""
        return self._student.suffix

    def latent_shape(self, height: int, width: int, num_frames: int) -> tuple[int, int, int, int]:
        """``(C, T, h, w)`` of a video's latents."""
        return self._student.latent_shape(height, width, num_frames)

    def noise(self, seed: int, shape: tuple[int, int, int, int]) -> Tensor:
        """The start of one video, ``[C, T, h, w]`` float32."""
        return self._student.noise(seed, shape)

    def encode(self, prompts: Sequence[str], quiet: bool = False) -> list[Embedding]:
        """Each prompt's embedding, as ``Student.encode`` gives it."""
        self._leader.tell("encode", (list(prompts),))
        with _or_end(UserError):
            return self._student.encode(prompts, quiet)

    def with_images(
        self,
        rows: Sequence[Embedding],
        images: Sequence[tuple[Path | None, Size]],
        quiet: bool = True,
        cached: bool = True,
    ) -> Sequence[Embedding]:
        """Refuses images: the others would need them too."""
        raise UserError(
            "input_reference: is not taken where several processes share a video; leave it out"
        )

    def denoise(
        self, rows: Sequence[Embedding], seeds: Sequence[int], size: Size, on_step: OnStep
    ) -> Tensor:
        """Latents, as ``Student.denoise`` gives them; an exception of ``on_step`` stops all."""
        ranks = self._leader.ranks
        stopped: list[BaseException] = []

        def agree(step: int, x_t: Tensor) -> None:
            try:
                on_step(step, x_t)
            except BaseException as error:
                stopped.append(error)
            if ranks.any(bool(stopped)):
                raise _Unwanted

        self._leader.tell("denoise", (list(seeds), size))
        with _or_end(_Unwanted):
            try:
                return self._student.denoise(rows, seeds, size, agree)
            except _Unwanted:
                pass
        raise stopped[0]

    def decode_each(self, latents: Tensor) -> Iterator[Iterator[Frames]]:
        """Each video's frames, chunk by chunk.

        What the caller leaves of a video is decoded all the same, since the others send their
        tiles to the end.
        """
        self._leader.tell("decode")
        videos = self._student.decode_each(latents)
        try:
            for chunks in videos:
                try:
                    yield self._guarded(chunks)
                finally:
                    self._drain(chunks)
        finally:
            for chunks in videos:
                self._drain(chunks)

    def _guarded(self, chunks: Iterator[Frames]) -> Iterator[Frames]:
        while True:
            with _or_end():
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    def _drain(self, chunks: Iterator[Frames]) -> None:
        with _or_end():
            deque(chunks, maxlen=0)


class _Unwanted(Exception):
    """The first process said that a batch is not wanted any more."""


@contextmanager
def _or_end(*expected: type[Exception]) -> Iterator[None]:
    """Ends the process at any other exception: the others wait for this one and cannot go on."""
    try:
        yield
    except expected:
        raise
    except Exception:
        traceback.print_exc()
        os._exit(BROKEN)


def _get_together(students: Students, ranks: Ranks, values: tuple[Any, ...]) -> Student:
    loaded: list[Student] = []

    def get() -> None:
        loaded.append(students.get(*values))

    ranks.each(get)
    return loaded[0]


@contextmanager
def _joined(device: Any, store: Any, rank: int, size: int) -> Iterator[Ranks]:
    """This process among the others, as torchrun would start it."""
    import torch.distributed as dist

    from infer.engine_plan import device_of
    from infer.multi_gpu import processes

    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": store.port}
    os.environ.update({name: str(value) for name, value in here.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    backend = "nccl" if device_of(device).type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        with processes(device) as ranks:
            yield ranks
    finally:
        dist.destroy_process_group()


def _check_devices(device: Any, size: int) -> None:
    import torch

    from infer.engine_plan import device_of

    if device_of(device).type == "cuda" and torch.cuda.device_count() < size:
        raise UserError(
            f"--nproc: {size} processes need a GPU each, and there are "
            f"{torch.cuda.device_count()}; start as many as there are GPUs"
        )
