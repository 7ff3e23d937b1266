"""SD3-Medium and SD3.5-Large as their authors published them, to examine jobs without weights.

The values are those of the parts' configurations on the hub; what is not here is the default of
diffusers' and transformers' classes. The transformers are in ``families/sources/configs``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

VAE_CONFIG: Final[Mapping[str, Any]] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 16,
    "norm_num_groups": 32,
    "sample_size": 1024,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}

CLIP_L: Final[Mapping[str, Any]] = {
    "model_type": "clip_text_model",
    "architectures": ["CLIPTextModelWithProjection"],
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}

CLIP_G: Final[Mapping[str, Any]] = {
    **CLIP_L,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "projection_dim": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
}

SHIFT: Final = 3.0
"""Flow shift of the published schedulers, and of students here."""
CLIP_TOKENS: Final = 77
T5_TOKENS: Final = 256
"""``max_sequence_length`` of the stock pipeline."""
SIDE: Final = 1024
"""Height and width of the images that the models were made for."""
