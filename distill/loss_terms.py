"""The loss terms of an update, and the error that stops a run when one is not finite any more."""

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
class UpdateIndex:
    """The position of an update in a run.

    Attributes:
        iteration: Counts from 0.
        update: Counts from 0 in each iteration.
        batch_index: Index in the run of the global batch that the update uses.
    """

    iteration: int
    update: int
    batch_index: int


@dataclass(frozen=True, order=True)
class SampleInfo:
    """One sample of the global batch.

    Attributes:
        sample: The index of the sample there.
        prompt: The index of its prompt.
        time: The score time of the sample.
    """

    sample: int
    prompt: int
    time: float


class NotFiniteError(UserError):
    """A loss or a gradient is not finite any more; the message says which and where.

    Attributes:
        index: The update.
        videos: By loss term, the samples for which it is not finite.
        gradient: The role whose gradient is not finite, if it is not a loss.
    """

    def __init__(
        self,
        problem: str,
        index: UpdateIndex,
        videos: Mapping[str, Sequence[SampleInfo]],
        gradient: str | None = None,
    ) -> None:
        super().__init__(problem)
        self.index, self.videos, self.gradient = index, videos, gradient

    @classmethod
    def of_gradient(cls, role: str, norm: float, index: UpdateIndex) -> NotFiniteError:
        """The error for a gradient of ``role`` that is not finite."""
        return cls(f"step {index.iteration + 1}: the gradient of {role} is {norm}", index, {}, role)

    def to_dict(self) -> dict[str, Any]:
        """The content of a failure's file, for a replay and for a reader."""
        videos = {
            name: [asdict(sample) for sample in samples] for name, samples in self.videos.items()
        }
        return {
            "problem": str(self),
            **asdict(self.index),
            "gradient": self.gradient,
            "videos": videos,
        }


class Means(Protocol):
    """The record that takes an update's terms, such as ``updates.Iteration``."""

    losses: dict[str, float]
    updates: dict[str, int]


class MicroBatch(Protocol):
    """The micro-batch that the values of a term belong to."""

    @property
    def samples(self) -> Sequence[int]:
        """The samples' indices in the global batch."""
        ...

    @property
    def prompts(self) -> Sequence[int]:
        """The index of each sample's prompt."""
        ...

    @property
    def time(self) -> Tensor:
        """The score times ``[B]``."""
        ...


class LossAccumulator:
    """The loss terms of one update, until they are averaged over the global batch.

    Args:
        ranks: The ranks that share the update.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._values: dict[str, list[Tensor]] = {}
        self._batches: dict[str, list[MicroBatch]] = {}

    def total(self, losses: Losses, batch: MicroBatch) -> Tensor:
        """The sum of the terms, averaged over the batch; remembers each term."""
        for name, values in losses.items():
            self._values.setdefault(name, []).append(values.detach())
            self._batches.setdefault(name, []).append(batch)
        return torch.stack([values.mean() for values in losses.values()]).sum()

    def means(self, index: UpdateIndex) -> dict[str, float]:
        """Averages each term over the global batch, and forgets it.

        Raises:
            NotFiniteError: a term is not finite; names the prompts.
        """
        terms = {name: torch.cat(values) for name, values in self._values.items()}
        batches, self._values, self._batches = self._batches, {}, {}
        summed = self._ranks.sum(torch.stack([values.mean() for values in terms.values()]))
        means = (summed / self._ranks.size).tolist()
        if not all(math.isfinite(mean) for mean in means):
            raise self._explained(index, terms, batches)
        return dict(zip(terms, means, strict=True))

    def add_to(self, result: Means, index: UpdateIndex) -> None:
        """Adds the means of an update's terms to the record of its iteration.

        A term that several updates of an iteration have is the mean over those.

        Raises:
            NotFiniteError: a term is not finite; names the prompts.
        """
        for name, mean in self.means(index).items():
            count = result.updates[name] = result.updates.get(name, 0) + 1
            before = result.losses.get(name, 0.0)
            result.losses[name] = before + (mean - before) / count

    def _explained(
        self, index: UpdateIndex, terms: dict[str, Tensor], batches: dict[str, list[MicroBatch]]
    ) -> NotFiniteError:
        """The error that names the terms that are not finite, and the samples of any rank."""
        bad = {}
        for name, values in terms.items():
            videos = [video for batch in batches[name] for video in _videos(batch)]
            broken = (~values.isfinite()).nonzero().flatten().tolist()
            bad[name] = [videos[index] for index in broken]
        everywhere: dict[str, set[SampleInfo]] = {}
        for found in self._ranks.gather(bad):
            for name, which in found.items():
                everywhere.setdefault(name, set()).update(which)
        named = {name: sorted(which) for name, which in everywhere.items() if which}
        step = f"step {index.iteration + 1}"
        problem = "; ".join(
            f"{step}: the loss {name} is not finite for the prompts "
            f"{sorted({video.prompt for video in which})}"
            for name, which in named.items()
        )
        return NotFiniteError(
            problem or f"{step}: the sum of finite losses is not finite", index, named
        )


def _videos(batch: MicroBatch) -> list[SampleInfo]:
    rows = zip(batch.samples, batch.prompts, batch.time.tolist(), strict=True)
    return [SampleInfo(*row) for row in rows]
