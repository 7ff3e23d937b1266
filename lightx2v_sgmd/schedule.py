"""The schedule of a student's few steps, for training and inference, saved with the weights.

Weights distilled on one list of timesteps give blur on another, so the schedule travels inside
the weights' metadata and the engine refuses what it would not run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor

from lightx2v_sgmd.flow import shift_sigma
from lightx2v_sgmd.system.errors import UserError, joined

NUM_TRAIN_TIMESTEPS = 1000
MOST_STEPS = 1000

SolverName = Literal["euler", "ddim", "renoise"]
"""The way from one step of a student to the next, with the data prediction of the first.

``euler``: along the straight line of flow matching (arXiv 2605.30116, Sec. 4.1). ``ddim``: along
the probability flow of a variance-preserving diffusion (arXiv 2010.02502). ``renoise``: the data
prediction with new noise, in any interpolant, as DMD2 (arXiv 2405.14867, Sec. 4.4) and FastWan do.
"""
SOLVERS: Final[tuple[str, ...]] = get_args(SolverName)
_COMFYUI_SAMPLERS: Final[Mapping[str, str]] = {"euler": "euler", "renoise": "lcm"}


def even_timesteps(steps: int) -> tuple[float, ...]:
    """Timesteps spaced evenly from 1000 down, before the shift: 1000, 750, 500, 250 for 4."""
    return tuple(NUM_TRAIN_TIMESTEPS * (steps - i) / steps for i in range(steps))


def evenly_spaced(timesteps: Sequence[float], tolerance: float = 1e-6) -> bool:
    """True if unshifted timesteps are ``even_timesteps``, each to within ``tolerance``."""
    even = even_timesteps(len(timesteps))
    return all(abs(a - b) < tolerance for a, b in zip(timesteps, even, strict=True))


@dataclass(frozen=True)
class Schedule:
    """A student's steps; by default 1000, 960, 888.889 and 727.273.

    The default is flow shift 8 of ``1000, 750, 500, 250``.

    Args:
        base: Unshifted timesteps in (0, 1000], falling.
        shift: Flow shift, at least 1.
        solver: The way from one step to the next; see ``SolverName``.
    """

    base: tuple[float, ...] = (1000.0, 750.0, 500.0, 250.0)
    shift: float = 8.0
    solver: SolverName = "euler"

    def __post_init__(self) -> None:
        if len(self.base) > MOST_STEPS:
            raise UserError(f"schedule.base: has {len(self.base)} steps; use at most {MOST_STEPS}")
        falling = all(a > b for a, b in zip(self.base, self.base[1:], strict=False))
        if not self.base or not falling or not 0 < self.base[-1] <= self.base[0] <= 1000:
            raise UserError(
                f"schedule.base: [{joined(self.base)}] is not a falling list of timesteps in "
                "(0, 1000]; write it as [1000, 750, 500, 250]"
            )
        if self.shift < 1:
            raise UserError(f"schedule.shift: {self.shift} is below 1; use 1 (no shift) or more")
        if self.solver not in SOLVERS:
            raise UserError(
                f"schedule.solver: {self.solver!r} is unknown; use {', '.join(SOLVERS)}"
            )

    @cached_property
    def times(self) -> Tensor:
        """The time before each step, then 0: ``[n + 1]`` float32."""
        u = torch.tensor(self.base, dtype=torch.float64) / NUM_TRAIN_TIMESTEPS
        return torch.cat([shift_sigma(u, self.shift), torch.zeros(1)]).float()

    @property
    def timesteps(self) -> Tensor:
        """The timestep that the network takes at each step: ``[n]`` float32."""
        return self.times[:-1] * NUM_TRAIN_TIMESTEPS

    def __len__(self) -> int:
        return len(self.base)

    def to_dict(self) -> dict[str, Any]:
        """Makes the form that is saved with weights (manifest and safetensors metadata)."""
        return {
            "timesteps": [_short(t) for t in self.timesteps.tolist()],
            "shift": self.shift,
            "base": [_short(t) for t in self.base],
            "solver": self.solver,
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Schedule:
        """Reads the saved form; without a solver, as older files are, it is Euler's.

        Raises:
            UserError: a field is missing, or the timesteps are not the shift of the base.
        """
        missing = [key for key in ("timesteps", "shift", "base") if key not in saved]
        if missing:
            raise UserError(f"schedule: {', '.join(missing)} missing; export the weights again")
        try:
            base = tuple(float(t) for t in saved["base"])
            solver: Any = str(saved.get("solver", "euler"))
            schedule = cls(base, float(saved["shift"]), solver)
            timesteps = torch.tensor([float(t) for t in saved["timesteps"]])
        except (TypeError, ValueError, OverflowError) as error:
            reason = str(error).removeprefix("schedule.")
            raise UserError(f"schedule: cannot be read: {reason}; export it again") from error
        if len(timesteps) != len(schedule) or not torch.allclose(
            timesteps, schedule.timesteps, atol=1e-2
        ):
            raise UserError(
                f"schedule.timesteps: {joined(saved['timesteps'])} are not shift "
                f"{schedule.shift:g} of {joined(saved['base'])} (that gives "
                f"{joined(schedule.to_dict()['timesteps'])}), so two schedules were mixed; export "
                "the weights again"
            )
        return schedule

    def diffusers_config(self) -> dict[str, Any]:
        """Makes arguments with which stock ``FlowMatchEulerDiscreteScheduler`` takes these steps.

        The scheduler spaces its sigmas evenly between shifted ends, then stretches the last one to
        ``shift_terminal``; the shift below makes the inner ones equal to ours.

        Raises:
            UserError: the steps cannot be expressed that way: they are not evenly spaced from
                1000, there are many of them and their shift is large, or they are those of
                another scheduler.
        """
        n = len(self)
        if self.solver == "ddim":
            raise UserError("schedule.solver: ddim is not for flow matching; use euler")
        if not evenly_spaced(self.base):
            raise UserError(
                "schedule.base: diffusers' scheduler spaces steps evenly; use "
                f"{list(even_timesteps(n))} "
                f"instead of {list(self.base)}"
            )
        config: dict[str, Any] = {"num_train_timesteps": NUM_TRAIN_TIMESTEPS, "shift": self.shift}
        if self.solver == "renoise":
            config["stochastic_sampling"] = True
        if n > 1:
            config["shift_terminal"] = float(self.times[n - 1])
        if n > 2:  # of two steps, both are ends
            shift = _diffusers_shift(n, self.shift)
            if shift is None:
                raise UserError(
                    f"schedule.shift: diffusers' scheduler cannot take {n} steps of shift "
                    f"{self.shift:g}; use fewer steps or a smaller shift"
                )
            config["shift"] = shift
        return config

    def comfyui_sampler(self) -> str:
        """The name of ComfyUI's sampler; its ``lcm`` adds new noise to each data prediction.

        Raises:
            UserError: ComfyUI has none for the solver.
        """
        if self.solver not in _COMFYUI_SAMPLERS:
            known = ", ".join(_COMFYUI_SAMPLERS)
            raise UserError(
                f"schedule.solver: ComfyUI runs {known}, not {self.solver}; use --format diffusers"
            )
        return _COMFYUI_SAMPLERS[self.solver]


def _diffusers_shift(n: int, shift: float) -> float | None:
    """Finds the scheduler shift ``s`` that gives ``n`` > 2 even steps of another shift.

    The scheduler shifts 1/1000 by ``s``, spaces ``n`` numbers evenly from 1 to that, shifts these
    and stretches the last one to the terminal sigma. A shift is ``(a u + b) / (c u + d)``, and so
    are both lists of sigmas, so all agree if the first, the second and the last do. They do if
    ``(q - 1) s^2 + 999 q (n - 2) / (n - 1) s = 999 (1 - q / (n - 1))``, with ``q / (n - 1)``
    the first distance of our sigmas over the distance of their ends.

    Returns:
        The smaller solution, whose steps are the less uneven, or None if there is none.
    """
    q = (n + shift - 1) / (n + (shift - 1) * (n - 1))
    most = NUM_TRAIN_TIMESTEPS - 1
    square, linear = q - 1, most * q * (n - 2) / (n - 1)
    constant = most * (q / (n - 1) - 1)
    discriminant = linear**2 - 4 * square * constant
    if discriminant < 0:
        return None
    return 2 * constant / -(linear + math.sqrt(discriminant))


def _short(value: float) -> float | int:
    rounded = round(value, 3)
    return int(rounded) if rounded == int(rounded) else rounded
