"""SDXL as its authors published it, to examine jobs without weights.

The values are those of the parts' configurations on the hub
(``stabilityai/stable-diffusion-xl-base-1.0``); what is not here is the default of diffusers' and
transformers' classes. The U-Net is in ``families/sources/configs``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from lightx2v_sgmd.families.sd3 import published as sd3

VAE_CONFIG: Final[Mapping[str, Any]] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}

CLIP_L: Final[Mapping[str, Any]] = {**sd3.CLIP_L, "architectures": ["CLIPTextModel"]}
CLIP_G: Final[Mapping[str, Any]] = sd3.CLIP_G

SCHEDULER_CONFIG: Final[Mapping[str, Any]] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "trained_betas": None,
}
"""The noise schedule of the model's training."""

TOKENS: Final = 77
"""Text tokens of a prompt."""
SIDE: Final = 1024
"""Height and width of the images that the model was made for."""
