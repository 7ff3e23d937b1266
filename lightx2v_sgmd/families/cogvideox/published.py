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
"""``snr_shift_scale`` of the scheduler."""

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

TEXT_ENCODER_CONFIG: Final[Mapping[str, Any]] = {
    "model_type": "t5",
    "architectures": ["T5EncoderModel"],
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-6,
    "dropout_rate": 0.1,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "tie_word_embeddings": False,
}
"""``google/t5-v1_1-xxl``."""

FPS: Final = 8.0
"""Frames per second of their videos (arXiv 2408.06072; 49 frames are 6 seconds)."""
