"""An update's loss terms, and what stops a run when one is not a number any more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lightx2v_sgmd.methods import Losses
from lightx2v_sgmd.parallel import Ranks
from lightx2v_sgmd.system.errors import UserError


@dataclass(frozen=True)
class Place:
    """Which update of a run.

    Attributes:
        iteration: From 0.
        update: Of the iteration, from 0.
        draw: Number of the global batch that it draws.
    """

    iteration: int
    update: int
    draw: int


@dataclass(frozen=True, order=True)
class Video:
    """One of the global batch.

    Attributes:
        sample: Its number there.
        prompt: Which prompt it has.
        sigma: Its score time.
    """

    sample: int
    prompt: int
    sigma: float


class NotFiniteError(UserError):
    """A loss or a gradient is not a number any more; the message says which and where.

    Attributes:
        place: In which update.
        videos: By loss term, those that it is not finite for.
        gradient: The role whose gradient is not finite, if it is not a loss.
    """

    def __init__(
        self,
        problem: str,
        place: Place,
        videos: Mapping[str, Sequence[Video]],
        gradient: str | None = None,
    ) -> None:
        super().__init__(problem)
        self.place, self.videos, self.gradient = place, videos, gradient

    @classmethod
    def of_gradient(cls, role: str, norm: float, place: Place) -> NotFiniteError:
        """The gradient of ``role`` is not finite."""
        return cls(f"step {place.iteration + 1}: the gradient of {role} is {norm}", place, {}, role)

    def to_dict(self) -> dict[str, Any]:
        """What a replay needs, and a reader."""
        videos = {name: [asdict(video) for video in found] for name, found in self.videos.items()}
        return {
            "problem": str(self),
            **asdict(self.place),
            "gradient": self.gradient,
            "videos": videos,
        }


class Means(Protocol):
    """Where an update's terms go; see ``updates.Iteration``."""

    losses: dict[str, float]
    updates: dict[str, int]


class MicroBatch(Protocol):
    """What a term's values are of."""

    @property
    def samples(self) -> Sequence[int]:
        """Numbers in the global batch."""
        ...

    @property
    def prompts(self) -> Sequence[int]:
        """Which prompt each has."""
        ...

    @property
    def sigma(self) -> Tensor:
        """``[B]``, the score time of each."""
        ...


class Terms:
    """The loss terms of one update, until they are averaged over the global batch.

    Args:
        ranks: Who shares it.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._values: dict[str, list[Tensor]] = {}
        self._batches: dict[str, list[MicroBatch]] = {}

    def total(self, losses: Losses, batch: MicroBatch) -> Tensor:
        """The sum of the terms, averaged over the batch; notes each term."""
        for name, values in losses.items():
            self._values.setdefault(name, []).append(values.detach())
            self._batches.setdefault(name, []).append(batch)
        return torch.stack([values.mean() for values in losses.values()]).sum()

    def add_to(self, result: Means, place: Place) -> None:
        """Averages each term over the global batch, and forgets it.

        A term that several updates of an iteration have is the mean over those.

        Raises:
            NotFiniteError: a term is not finite; names the prompts.
        """
        terms = {name: torch.cat(values) for name, values in self._values.items()}
        batches, self._values, self._batches = self._batches, {}, {}
        summed = self._ranks.sum(torch.stack([values.mean() for values in terms.values()]))
        means = (summed / self._ranks.size).tolist()
        if not all(math.isfinite(mean) for mean in means):
            raise self._explained(place, terms, batches)
        for name, mean in zip(terms, means, strict=True):
            count = result.updates[name] = result.updates.get(name, 0) + 1
            before = result.losses.get(name, 0.0)
            result.losses[name] = before + (mean - before) / count

    def _explained(
        self, place: Place, terms: dict[str, Tensor], batches: dict[str, list[MicroBatch]]
    ) -> NotFiniteError:
        """Which terms are not finite, and for which videos of any rank."""
        bad = {}
        for name, values in terms.items():
            videos = [video for batch in batches[name] for video in _videos(batch)]
            broken = (~values.isfinite()).nonzero().flatten().tolist()
            bad[name] = [videos[index] for index in broken]
        everywhere: dict[str, set[Video]] = {}
        for found in self._ranks.gather(bad):
            for name, which in found.items():
                everywhere.setdefault(name, set()).update(which)
        named = {name: sorted(which) for name, which in everywhere.items() if which}
        step = f"step {place.iteration + 1}"
        problem = "; ".join(
            f"{step}: the loss {name} is not finite for the prompts "
            f"{sorted({video.prompt for video in which})}"
            for name, which in named.items()
        )
        return NotFiniteError(
            problem or f"{step}: the sum of finite losses is not finite", place, named
        )


def _videos(batch: MicroBatch) -> list[Video]:
    rows = zip(batch.samples, batch.prompts, batch.sigma.tolist(), strict=True)
    return [Video(*row) for row in rows]
