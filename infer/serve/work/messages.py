"""The order that starts a worker, and the messages between it and the server."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from infer.options import Options
from infer.serve.options import Served


@dataclass(frozen=True)
class Order:
    """The order that a worker is started with.

    Attributes:
        worker: The name of this start.
        weights: The students by name.
        engine: The engine's options.
        batch_size: Videos of one size made together; None leaves it to the engine.
        folder: The server's folder.
        loras: The files of the LoRAs that requests may name.
        nproc: The number of processes that make a video together.
    """

    worker: str
    weights: dict[str, Path]
    engine: Options
    batch_size: int | None
    folder: Path
    loras: dict[str, Path] = field(default_factory=dict)
    nproc: int = 1


@dataclass(frozen=True)
class Opened:
    """The weights are whole and can run here."""

    served: tuple[Served, ...]


@dataclass(frozen=True)
class Ready:
    """The weights are loaded."""


@dataclass(frozen=True)
class Refused:
    """The weights or options cannot be used; the message is for the user."""

    message: str


class ServerStopped(Exception):
    """The server said stop."""
