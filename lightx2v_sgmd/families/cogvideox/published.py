"""CogVideoX-2b and -5b as their authors published them, so that jobs are examined without weights.

The values are those of the parts' configurations on the hub (``zai-org/CogVideoX-2b`` and ``-5b``)
and of diffusers' ``scripts/convert_cogvideox_to_diffusers.py``, which made them; what is not here
is the default of diffusers' and transformers' classes. The transformers are in ``configs/``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

VAE_SCALING: Final[Mapping[str, float]] = {
    "zai-org/CogVideoX-2b": 1.15258426,
    "zai-org/CogVideoX-5b": 0.7,
}
"""``scaling_factor`` of the VAE; all else of ``AutoencoderKLCogVideoX`` is the class's default."""

SNR_SHIFT: Final[Mapping[str, float]] = {
    "zai-org/CogVideoX-2b": 3.0,
    "zai-org/CogVideoX-5b": 1.0,
}
"""``snr_shift_scale`` of the scheduler; the script above states both values."""

VAE_CONFIG: Final[Mapping[str, Any]] = {
    "block_out_channels": [128, 256, 256, 512],
    "latent_channels": 16,
    "temporal_compression_ratio": 4,
}

SCHEDULER_CONFIG: Final[Mapping[str, Any]] = {
    "_class_name": "CogVideoXDDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True,
}

FPS: Final = 8.0
"""Frames per second of their videos (arXiv 2408.06072)."""
FRAMES: Final = 49
"""Number of frames of their videos, which last 6 seconds."""
