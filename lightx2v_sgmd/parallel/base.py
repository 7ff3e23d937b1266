"""A strategy owns networks, optimizers and their layout over processes.

The training loop says what is computed in terms of roles; a strategy says where. A new strategy is
one module with one class, named in ``parallel.open_strategy``.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

import torch
from torch import Tensor, nn

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.conditioning import Conditioning
from lightx2v_sgmd.files.tensors.dtypes import torch_type
from lightx2v_sgmd.interpolants import Interpolant
from lightx2v_sgmd.job.schema import AdapterSettings, Job, Optimizer
from lightx2v_sgmd.methods.base import (
    DISCRIMINATOR,
    FAKE_SCORE,
    PIXEL_DISCRIMINATOR,
    STUDENT,
    TEACHER,
    expert_role,
)
from lightx2v_sgmd.networks.gradient_checkpointing import Checkpointing
from lightx2v_sgmd.networks.vision_encoder import vision_widths
from lightx2v_sgmd.parallel.ranks import Ranks

# B batch, C channels, T latent frames, h, w latent height and width

ScoreLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A loss ``(x0, x_t, prediction of the fake score at x_t) -> scalar``."""


NO_OWN: Final[Mapping[str, Model]] = MappingProxyType({})
"""All roles start from the teacher, none from a model of its own."""

DISCRIMINATOR_BETAS = (0.0, 0.99)
"""Betas of the discriminator's AdamW (arXiv 2507.18569, App. B.5)."""


@dataclass(frozen=True)
class HeadSettings:
    """The shape of a discriminator's heads.

    Attributes:
        every: Number of teacher blocks for each head.
        channels: Channels inside a head.
        seed: Random seed of the heads' initial weights.
        frame_widths: Widths of the vision encoder's layers; empty if there is no encoder.
    """

    every: int
    channels: int
    seed: int
    frame_widths: tuple[int, ...] = ()

    @classmethod
    def of(cls, job: Job) -> HeadSettings | None:
        """Reads them from a job; None if its method trains no discriminator."""
        heads, pixels = job.method.discriminator, job.method.pixel_discriminator
        if heads is None:
            return None
        widths = () if pixels is None else vision_widths(pixels.vision_encoder)
        return cls(heads.head_every, heads.head_channels, job.train.seed, widths)


@dataclass(frozen=True)
class StrategySettings:
    """The settings of a job that a strategy needs.

    Attributes:
        optimizers: The optimizer of each trained role, the student's first.
        clip: Largest norm of a role's gradient.
        micro_batch: Videos per rank and forward pass.
        accumulation: Micro-batches per update.
        ema: Decay of the student's moving average; 0 keeps none.
        dtype: Element type of the teacher's weights and of the trained networks' computation. The
            master weights are always float32.
        offload: The state in CPU memory: ``none``, ``optimizer``, ``all``, or ``nvme``, which is
            all of it, with the optimizer's state in files.
        offload_dir: Folder of these files.
        checkpointing: The activations that are computed again in the backward pass.
        compile: ``auto``, ``always`` or ``never``: see ``compiler.compiles``.
        fp8_storage: True if the frozen teacher's blocks are stored in 8 bits.
        heads: Heads of the discriminator, if the method trains one.
        adapters: The adapters of each role that trains them in place of its network's weights.
        seed: Random seed of the adapters' initial values.
    """

    optimizers: Mapping[str, Optimizer]
    clip: float
    micro_batch: int
    accumulation: int
    ema: float
    dtype: torch.dtype
    offload: str
    offload_dir: Path | None
    checkpointing: Checkpointing
    heads: HeadSettings | None
    adapters: Mapping[str, AdapterSettings]
    seed: int
    compile: str = "never"
    fp8_storage: bool = False

    @property
    def networks(self) -> list[str]:
        """The roles that are whole networks, trained or frozen."""
        heads = (DISCRIMINATOR, PIXEL_DISCRIMINATOR)
        trained = [role for role in self.optimizers if role not in heads]
        return [*trained, TEACHER]

    def trained(self, experts: int) -> tuple[str, ...]:
        """The roles that are trained, one for each expert of each network, the student's first."""
        heads = (DISCRIMINATOR, PIXEL_DISCRIMINATOR)
        return tuple(
            expert_role(role, expert)
            for role in self.optimizers
            for expert in range(1 if role in heads else experts)
        )

    @classmethod
    def of(cls, job: Job) -> StrategySettings:
        """Reads them from a job."""
        heads = HeadSettings.of(job)
        optimizers = {STUDENT: job.student.optimizer, FAKE_SCORE: job.fake_score.optimizer}
        if job.method.discriminator is not None:
            adamw = Optimizer(lr=job.method.discriminator.lr, betas=DISCRIMINATOR_BETAS)
            optimizers |= {DISCRIMINATOR: adamw, PIXEL_DISCRIMINATOR: adamw}
        roles = {STUDENT: job.student.adapters, FAKE_SCORE: job.fake_score.adapters}
        return cls(
            optimizers={role: optimizers[role] for role in job.method.roles},
            clip=job.train.clip,
            micro_batch=job.train.micro_batch,
            accumulation=job.train.accumulation,
            ema=job.train.ema,
            dtype=torch_type(job.teacher.dtype),
            offload=job.parallel.offload,
            offload_dir=job.parallel.offload_dir,
            checkpointing=job.parallel.gradient_checkpointing,
            heads=heads,
            adapters={r: lora for r, lora in roles.items() if lora and r in job.method.roles},
            seed=job.train.seed,
            compile=job.parallel.compile,
            fp8_storage=job.teacher.quantize == "fp8-storage",
        )

    def adapter_seed(self, role: str) -> int:
        """The random seed of a role's adapters; it differs from role to role."""
        return self.seed ^ zlib.crc32(role.encode())


class FakeScoreQuery(Protocol):
    """The fake score at one x_t, for one of the two updates or for both, in this order."""

    def generator_gradient(
        self, loss: ScoreLoss, through: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Computes the loss's gradient with respect to x0 and x_t.

        An entry is None if the loss does not depend on it. No weights receive a gradient: not the
        fake score's, nor the teacher's, nor the discriminator's.

        Args:
            loss: The loss; it may call ``predict`` of the teacher and ``logits``.
            through: Let the prediction that the loss takes carry gradient to x_t.
        """
        ...

    def backward(self, loss: ScoreLoss) -> None:
        """Adds the loss's gradient to the fake score's weights; x0 and x_t receive nothing."""
        ...


class Strategy(Protocol):
    """Networks, optimizers and their layout over processes.

    Attributes:
        settings: The job's settings.
        ranks: This process and the others.
        interpolant: The networks' path from data to noise, and what they predict on it.
        networks: Modules by role, for hooks and names only; forwards go through ``predict``.
        shapes: The shape of each of the student's trained weights: all of the network's under
            diffusers' names, or its adapters' (see ``networks.adapters``). Experts have the same.
        trained: The roles that are trained, the student first.

    A model with experts has a role for each expert's network: ``student`` and ``student_2``.
    ``predict`` and ``fake_score_at`` take the plain role and choose the expert by time; all times
    of a batch are one expert's. Everything else takes the role of one network.
    """

    settings: StrategySettings
    ranks: Ranks
    interpolant: Interpolant
    trained: tuple[str, ...]
    networks: Mapping[str, nn.Module]
    shapes: Mapping[str, torch.Size]

    def predict(self, role: str, x_t: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        """Computes a role's prediction ``[B, C, T, h, w]`` at the times ``[B]``."""
        ...

    def fake_score_at(
        self, x0: Tensor, x_t: Tensor, time: Tensor, conditioning: Conditioning
    ) -> FakeScoreQuery:
        """Prepares the fake score at ``x_t``; neither tensor carries gradient out of the query."""
        ...

    def logits(self, x_t: Tensor, time: Tensor, conditioning: Conditioning, update: bool) -> Tensor:
        """Computes the discriminator's logits ``[B, L]`` by heads on the frozen teacher's blocks.

        Args:
            x_t: ``[B, C, T, h, w]``.
            time: ``[B]``.
            conditioning: The batch's conditioning.
            update: If True, only the heads receive gradient; if False, only ``x_t`` does, in a
                loss of ``generator_gradient``.
        """
        ...

    def frame_logits(self, features: Sequence[Tensor], update: bool) -> Tensor:
        """Computes the discriminator's logits ``[N, L]`` by heads on a vision encoder's layers.

        Args:
            features: Feature maps ``[N, D, h, w]``.
            update: The same as in ``logits``.
        """
        ...

    def gradient(self, loss: Callable[[Tensor], Tensor], x0: Tensor) -> Tensor:
        """Computes the gradient with respect to ``x0`` of a loss that may call ``logits``.

        No weights receive a gradient.
        """
        ...

    def backward(self, role: str, loss: Tensor) -> None:
        """Adds a micro-batch's gradient, divided by the accumulation, to a role's weights."""
        ...

    def gradient_norm(self, role: str) -> float:
        """Computes the norm that ``step`` would return, and changes nothing."""
        ...

    def step(self, role: str, lr: float) -> float:
        """Clips the gradient, updates a role's weights and clears the gradient.

        Returns:
            The gradient's norm over all ranks before clipping. If it is not finite, the weights
            stay as they are.
        """
        ...

    def update_average(self, decay: float, role: str = STUDENT) -> None:
        """Updates the EMA weights: ``decay * average + (1 - decay) * student``.

        Args:
            decay: Decay of this update; 0 makes the average equal to the student.
            role: The student's role, of the expert that was trained.
        """
        ...

    def averaged_student(self) -> AbstractContextManager[None]:
        """Inside, the student's prediction is that of its EMA weights, if the run has them."""
        ...

    def whole_tensors(
        self, role: str, averaged: bool = False, to: Mapping[str, int] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Gives a role's trained weights, float32 on the CPU, in the order of ``shapes``.

        This is a collective: every rank runs it to its end.

        Args:
            role: The role.
            averaged: Give the student's EMA weights.
            to: The one rank that gets each weight; by default all ranks get all weights.
        """
        ...

    def save_slices(self, role: str) -> dict[str, Tensor]:
        """Copies this rank's slices of the state that resuming needs beyond the student's weights.

        These are flat float32 tensors on the CPU: ``{weight}/exp_avg``, ``{weight}/exp_avg_sq``
        and, for other roles than the student, ``{weight}/master``. See ``shards``.
        """
        ...

    def load(self, checkpoint: Path, updates: Mapping[str, int]) -> None:
        """Loads the state of a checkpoint folder.

        Args:
            checkpoint: The folder.
            updates: Number of updates of each role that led to the state.
        """
        ...

    def close(self) -> None:
        """Releases networks and processes; nothing else may be called after it."""
        ...
