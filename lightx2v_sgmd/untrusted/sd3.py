"""Stable Diffusion 3: the limits of its configurations, and its networks built within them.

The largest published sizes, for comparison: SD3.5-Large has 38 layers and 38 heads of 64 channels,
its VAE a width of 512, CLIP-G 32 layers and a width of 1,280, T5-XXL 24 layers of 4,096.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.optional_packages import prepare_libraries
from lightx2v_sgmd.untrusted.building import build_checked
from lightx2v_sgmd.untrusted.configs import (
    check_class,
    check_sizes,
    refuse_code,
)
from lightx2v_sgmd.untrusted.fields import Choice, Field, Flag, Real, Several, Whole, optional

_SHARE: Final = Real(0, 1)
_CHANNELS: Final = Whole(1, 1024)
_LAYERS: Final = Whole(1, 256)
_TOKEN: Final = Whole(0, 2**20)
_TABLE_MOST: Final = 2**29
"""The most numbers in the table of positions: SD3.5-Large's has 90 million."""

TRANSFORMER: Final[Mapping[str, Field]] = MappingProxyType(
    {
        "sample_size": Whole(1, 4096),
        "patch_size": Whole(1, 16),
        "in_channels": _CHANNELS,
        "out_channels": optional(_CHANNELS),
        "num_layers": _LAYERS,
        "attention_head_dim": Whole(1, 1024),
        "num_attention_heads": Whole(1, 1024),
        "joint_attention_dim": Whole(1, 2**16),
        "caption_projection_dim": Whole(1, 2**16),
        "pooled_projection_dim": Whole(1, 2**16),
        "pos_embed_max_size": Whole(1, 1024),
        "dual_attention_layers": Several(Whole(0, 255), 0, 256),
        "qk_norm": optional(Choice(("rms_norm",))),
    }
)
VAE: Final[Mapping[str, Field]] = MappingProxyType(
    {
        "in_channels": Whole(1, 64),
        "out_channels": Whole(1, 64),
        "down_block_types": Several(Choice(("DownEncoderBlock2D",)), 1, 8),
        "up_block_types": Several(Choice(("UpDecoderBlock2D",)), 1, 8),
        "block_out_channels": Several(Whole(1, 4096), 1, 8),
        "layers_per_block": Whole(1, 16),
        "act_fn": Choice(("silu", "swish", "gelu", "mish")),
        "latent_channels": _CHANNELS,
        "norm_num_groups": Whole(1, 1024),
        "sample_size": Whole(1, 2**14),
        "scaling_factor": Real(1e-4, 1e4),
        "shift_factor": optional(Real(-1e4, 1e4)),
        "latents_mean": optional(Several(Real(-1e4, 1e4), 1, 1024)),
        "latents_std": optional(Several(Real(1e-6, 1e4), 1, 1024)),
        "force_upcast": Flag(),
        "use_quant_conv": Flag(),
        "use_post_quant_conv": Flag(),
        "mid_block_add_attention": Flag(),
    }
)
CLIP: Final[Mapping[str, Field]] = MappingProxyType(
    {
        "vocab_size": Whole(1, 2**20),
        "hidden_size": Whole(1, 2**14),
        "intermediate_size": Whole(1, 2**17),
        "projection_dim": Whole(1, 2**14),
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": Whole(1, 1024),
        "max_position_embeddings": Whole(1, 4096),
        "hidden_act": Choice(("quick_gelu", "gelu")),
        "layer_norm_eps": _SHARE,
        "attention_dropout": _SHARE,
        "initializer_range": Real(0, 100),
        "initializer_factor": Real(0, 100),
        "pad_token_id": optional(_TOKEN),
        "bos_token_id": optional(_TOKEN),
        "eos_token_id": optional(_TOKEN),
    }
)
SCHEDULER: Final[Mapping[str, Field]] = MappingProxyType(
    {"num_train_timesteps": Whole(1000, 1000), "shift": Real(1e-2, 100)}
)


def check_transformer(config: Mapping[str, Any]) -> None:
    """Refuses a network with sizes out of range.

    Args:
        config: The arguments of ``SD3Transformer2DModel``.

    Raises:
        UserError: a value is refused; the message names the key, the value and the limits.
    """
    refuse_code(config)
    check_class(config, "_class_name", ("SD3Transformer2DModel",))
    check_sizes(config, TRANSFORMER)
    channels = config.get("in_channels", 16)
    if channels != (config.get("out_channels") or channels):
        raise UserError(
            f"takes {channels} channels and gives {config['out_channels']}; use a text-to-image "
            "model"
        )
    width = config.get("num_attention_heads", 18) * config.get("attention_head_dim", 64)
    if config.get("caption_projection_dim", 1152) != width:
        raise UserError(f"caption_projection_dim is not {width}, the width of its heads")
    if width * config.get("pos_embed_max_size", 96) ** 2 > _TABLE_MOST:
        raise UserError(f"describes a table of positions of more than {_TABLE_MOST} numbers")


def check_vae(config: Mapping[str, Any]) -> None:
    """Checks the arguments of ``AutoencoderKL``; raises as ``check_transformer``."""
    refuse_code(config)
    check_class(config, "_class_name", ("AutoencoderKL",))
    check_sizes(config, VAE)


def check_clip(config: Mapping[str, Any]) -> None:
    """Checks the arguments of ``CLIPTextConfig``; raises as ``check_transformer``."""
    refuse_code(config)
    check_class(config, "architectures", ("CLIPTextModelWithProjection", "CLIPTextModel"))
    check_sizes(config, CLIP)


def check_scheduler(config: Mapping[str, Any]) -> None:
    """Checks ``scheduler_config.json``; raises as ``check_transformer``."""
    refuse_code(config)
    check_class(config, "_class_name", ("FlowMatchEulerDiscreteScheduler",))
    check_sizes(config, SCHEDULER)


def build_transformer(config: Mapping[str, Any]) -> Any:
    """Builds an ``SD3Transformer2DModel`` with random weights, or none on the meta device.

    Raises:
        UserError: the configuration contradicts itself.
    """
    prepare_libraries()
    from diffusers import SD3Transformer2DModel

    return build_checked(SD3Transformer2DModel.from_config, config, TRANSFORMER, "transformer")


def build_vae(config: Mapping[str, Any]) -> Any:
    """Builds an ``AutoencoderKL``; raises as ``build_transformer``."""
    prepare_libraries()
    from diffusers import AutoencoderKL

    return build_checked(AutoencoderKL.from_config, config, VAE, "vae")


def build_clip(config: Mapping[str, Any]) -> Any:
    """Builds a ``CLIPTextModelWithProjection``; raises as ``build_transformer``."""
    prepare_libraries()
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    def build(known: dict[str, Any]) -> Any:
        return CLIPTextModelWithProjection(CLIPTextConfig(**known))

    return build_checked(build, config, CLIP, "text_encoder")
