"""UniPC as Wan's own sampler runs it, for teachers; students are sampled by ``rollout``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from lightx2v_sgmd.rollout import PredictFn
from lightx2v_sgmd.schedule import NUM_TRAIN_TIMESTEPS
from lightx2v_sgmd.system.optional_packages import prepare_libraries


@dataclass(frozen=True)
class UniPC:
    """Wan's own sampler: UniPC of order 2 on shifted, evenly spaced noise levels.

    Attributes:
        shift: Flow shift.
        steps: Number of steps.
    """

    shift: float
    steps: int

    def __len__(self) -> int:
        return self.steps

    def to_dict(self) -> dict[str, Any]:
        """Makes the form that is recorded with pairs and comparisons."""
        return {"solver": "unipc", "shift": self.shift, "steps": self.steps}

    def run(self, velocity: PredictFn, noise: Tensor) -> Tensor:
        """Samples from noise; states are float32, and times whole numbers, as Wan's are.

        Args:
            velocity: The network's velocity, guidance included.
            noise: ``[B, ...]`` standard normal.

        Returns:
            ``x0 [B, ...]`` float32.
        """
        prepare_libraries()
        from diffusers import UniPCMultistepScheduler

        # All else is the default of both classes, diffusers' and Wan's (fm_solvers_unipc.py).
        scheduler = UniPCMultistepScheduler(
            num_train_timesteps=NUM_TRAIN_TIMESTEPS,
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=self.shift,
        )
        # Wan's levels begin at 0.999 before the shift; diffusers' own would begin at 1.
        first = 1 - 1 / NUM_TRAIN_TIMESTEPS
        scheduler.set_timesteps(sigmas=np.linspace(first, 0, self.steps + 1)[:-1])
        scheduler.set_begin_index(0)
        x_t = noise.float()
        for timestep in scheduler.timesteps:
            sigma = (timestep.float() / NUM_TRAIN_TIMESTEPS).to(x_t.device)
            predicted = velocity(x_t, sigma.expand(len(x_t))).float()
            x_t = scheduler.step(predicted, timestep, x_t, return_dict=False)[0]
        return x_t
