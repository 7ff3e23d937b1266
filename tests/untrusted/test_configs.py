"""The limits admit every published model, with room, and nothing above them."""

from __future__ import annotations

from typing import Any

import pytest

from lightx2v_sgmd.families.sources.hub_configs import known_hub_ids, known_transformer_config
from lightx2v_sgmd.families.wan import original as wan_original
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted.configs import (
    TEXT_ENCODER,
    TRANSFORMER,
    VAE,
    check_image_encoder,
    check_image_processor,
    check_model_index,
    check_scheduler,
    check_text_encoder,
    check_transformer,
    check_vae,
    check_vision_encoder,
)

WAN = known_hub_ids("WanTransformer3DModel")
DINOV2_GIANT = {
    "model_type": "dinov2",
    "architectures": ["Dinov2Model"],
    "hidden_size": 1536,
    "num_hidden_layers": 40,
    "num_attention_heads": 24,
    "image_size": 518,
    "patch_size": 14,
    "mlp_ratio": 4,
    "use_swiglu_ffn": True,
}
SAM_HUGE = {
    "model_type": "sam",
    "vision_config": {"hidden_size": 1280, "num_hidden_layers": 32, "image_size": 1024},
    "prompt_encoder_config": {"image_embedding_size": 64, "hidden_size": 256},
}
CLIP_BIG = {
    "model_type": "clip",
    "text_config": {"hidden_size": 1280, "vocab_size": 49408, "eos_token_id": 49407},
    "vision_config": {"hidden_size": 1664, "num_hidden_layers": 48, "intermediate_size": 8192},
}


def test_published_models_are_admitted() -> None:
    for name in WAN:
        config = known_transformer_config(name)
        assert config is not None
        check_transformer(config)
    check_vae(dict(wan_original.VAE_CONFIG))
    check_vae(dict(wan_original.VAE_OF_WAN22_CONFIG))
    check_image_encoder(dict(wan_original.IMAGE_ENCODER_CONFIG))
    check_image_processor({"size": {"shortest_edge": 224}, "resample": 3})
    check_text_encoder(dict(wan_original.TEXT_ENCODER_CONFIG))
    for encoder in (DINOV2_GIANT, SAM_HUGE, CLIP_BIG):
        check_vision_encoder(encoder)
    check_scheduler({"_class_name": "UniPCMultistepScheduler", "flow_shift": 5.0})
    check_model_index(
        {
            "_class_name": "WanPipeline",
            "boundary_ratio": 0.875,
            "expand_timesteps": True,
            "transformer_2": [None, None],
            "vae": ["diffusers", "AutoencoderKLWan"],
        }
    )


def test_there_is_room_above_the_largest() -> None:
    largest: list[tuple[Any, str, int]] = [
        (TRANSFORMER, "num_layers", 2 * 60),
        (TRANSFORMER, "num_attention_heads", 2 * 48),
        (TRANSFORMER, "ffn_dim", 4 * 16384),
        (VAE, "base_dim", 4 * 256),
        (VAE, "z_dim", 4 * 48),
        (TEXT_ENCODER, "vocab_size", 3 * 256384),
        (TEXT_ENCODER, "d_model", 3 * 4096),
        (TEXT_ENCODER, "d_ff", 4 * 10240),
    ]
    for fields, key, size in largest:
        assert fields[key].allows(size), key


@pytest.mark.parametrize("key", ["num_layers", "ffn_dim", "freq_dim", "rope_max_seq_len"])
@pytest.mark.parametrize("value", [0, -1, 2**31, True, 1.0, "1", None, [1], float("nan")])
def test_a_size_that_is_none(key: str, value: Any) -> None:
    config = {**(known_transformer_config(WAN[0]) or {}), key: value}
    with pytest.raises(UserError, match=f"^{key} is .*, not a whole number from 1 to"):
        check_transformer(config)
