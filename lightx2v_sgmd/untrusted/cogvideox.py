"""CogVideoX: the limits of its configurations, and its networks built within them.

The largest published sizes, for comparison: CogVideoX-5b has 42 layers and 48 heads of 64 channels,
its VAE a width of 512, T5-XXL 32,128 tokens, 24 layers and a width of 4,096.
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
from lightx2v_sgmd.untrusted.fields import Choice, Field, Flag, Null, Real, Several, Whole, optional

_SHARE: Final = Real(0, 1)
_CHANNELS: Final = Whole(1, 1024)
_ACTIVATIONS: Final = Choice(("silu", "gelu", "gelu-approximate", "swish", "mish"))
_BLOCKS: Final = 8

TRANSFORMER: Final[Mapping[str, Field]] = MappingProxyType(
    {
        "num_attention_heads": Whole(1, 1024),
        "attention_head_dim": Whole(1, 1024),
        "num_layers": Whole(1, 256),
        "in_channels": _CHANNELS,
        "out_channels": optional(_CHANNELS),
        "patch_size": Whole(1, 16),
        "sample_width": Whole(1, 2048),
        "sample_height": Whole(1, 2048),
        "sample_frames": Whole(1, 4096),
        "text_embed_dim": Whole(1, 2**16),
        "time_embed_dim": Whole(1, 2**14),
        "max_text_seq_length": Whole(1, 4096),
        "temporal_compression_ratio": Whole(1, 64),
        "patch_size_t": Null(),
        "ofs_embed_dim": Null(),
        "flip_sin_to_cos": Flag(),
        "freq_shift": Real(0, 1),
        "dropout": _SHARE,
        "attention_bias": Flag(),
        "activation_fn": _ACTIVATIONS,
        "timestep_activation_fn": _ACTIVATIONS,
        "norm_elementwise_affine": Flag(),
        "norm_eps": _SHARE,
        "spatial_interpolation_scale": Real(1e-3, 1e3),
        "temporal_interpolation_scale": Real(1e-3, 1e3),
        "use_rotary_positional_embeddings": Flag(),
        "use_learned_positional_embeddings": Flag(),
        "patch_bias": Flag(),
    }
)
_TABLE_MOST: Final = 2**29
"""The most numbers in the table of positions: CogVideoX-2b's has 34 million."""

VAE: Final[Mapping[str, Field]] = MappingProxyType(
    {
        "in_channels": Whole(1, 64),
        "out_channels": Whole(1, 64),
        "down_block_types": Several(Choice(("CogVideoXDownBlock3D",)), 1, _BLOCKS),
        "up_block_types": Several(Choice(("CogVideoXUpBlock3D",)), 1, _BLOCKS),
        "block_out_channels": Several(Whole(1, 4096), 1, _BLOCKS),
        "latent_channels": _CHANNELS,
        "layers_per_block": Whole(1, 16),
        "act_fn": _ACTIVATIONS,
        "norm_eps": _SHARE,
        "norm_num_groups": Whole(1, 1024),
        "temporal_compression_ratio": Real(1, 64),
        "sample_height": Whole(1, 2**14),
        "sample_width": Whole(1, 2**14),
        "scaling_factor": Real(1e-4, 1e4),
        "shift_factor": optional(Real(-1e4, 1e4)),
        "latents_mean": optional(Several(Real(-1e4, 1e4), 1, 1024)),
        "latents_std": optional(Several(Real(1e-6, 1e4), 1, 1024)),
        "force_upcast": Flag(),
        "use_quant_conv": Flag(),
        "use_post_quant_conv": Flag(),
        "invert_scale_latents": Flag(),
    }
)
SCHEDULER: Final[Mapping[str, Field]] = MappingProxyType(
    {
        "num_train_timesteps": Whole(1000, 1000),
        "beta_start": Real(1e-8, 0.5),
        "beta_end": Real(1e-8, 0.5),
        "beta_schedule": Choice(("scaled_linear",)),
        "prediction_type": Choice(("v_prediction",)),
        "rescale_betas_zero_snr": Flag(),
        "set_alpha_to_one": Flag(),
        "snr_shift_scale": Real(1e-3, 1e3),
        "trained_betas": Null(),
    }
)


def check_transformer(config: Mapping[str, Any]) -> None:
    """Refuses a network with sizes out of range, or one that is not text-to-video.

    Args:
        config: The arguments of ``CogVideoXTransformer3DModel``.

    Raises:
        UserError: a value is refused; the message names the key, the value and the limits.
    """
    refuse_code(config)
    if config.get("patch_size_t") is not None:
        raise UserError(
            "patch_size_t is set, as CogVideoX1.5 does; use CogVideoX-2b or CogVideoX-5b"
        )
    wide = config.get("in_channels", 16) != (config.get("out_channels") or 16)
    if wide or config.get("use_learned_positional_embeddings"):
        raise UserError("describes an image-to-video model; use a text-to-video model")
    check_sizes(config, TRANSFORMER)
    if config.get("use_rotary_positional_embeddings") and config.get("attention_head_dim", 64) % 16:
        raise UserError("attention_head_dim is not divisible by 16, as rotary positions need it")
    width = config.get("num_attention_heads", 30) * config.get("attention_head_dim", 64)
    if not config.get("use_rotary_positional_embeddings") and width * _rows(config) > _TABLE_MOST:
        raise UserError(f"describes a table of positions of more than {_TABLE_MOST} numbers")


def _rows(config: Mapping[str, Any]) -> int:
    """Rows of the table of positions, which diffusers computes while it builds the network."""
    patch = config.get("patch_size", 2)
    patches = (config.get("sample_width", 90) // patch) * (config.get("sample_height", 60) // patch)
    ratio = config.get("temporal_compression_ratio", 4)
    frames = (config.get("sample_frames", 49) - 1) // ratio + 1
    return int(config.get("max_text_seq_length", 226) + patches * frames)


def check_vae(config: Mapping[str, Any]) -> None:
    """Checks the arguments of ``AutoencoderKLCogVideoX``; raises as ``check_transformer``."""
    refuse_code(config)
    check_class(config, "_class_name", ("AutoencoderKLCogVideoX",))
    check_sizes(config, VAE)
    if config.get("invert_scale_latents"):
        raise UserError(
            "invert_scale_latents is set, as CogVideoX1.5 does; use the VAE of CogVideoX-2b or "
            "CogVideoX-5b"
        )


def check_scheduler(config: Mapping[str, Any]) -> None:
    """Checks the noise schedule of the model's training; raises as ``check_transformer``."""
    refuse_code(config)
    known = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")
    check_class(config, "_class_name", known)
    check_sizes(config, SCHEDULER)


def build_transformer(config: Mapping[str, Any]) -> Any:
    """Builds a ``CogVideoXTransformer3DModel`` with random weights, or none on the meta device.

    Raises:
        UserError: the configuration contradicts itself.
    """
    prepare_libraries()
    from diffusers import CogVideoXTransformer3DModel

    build = CogVideoXTransformer3DModel.from_config
    return build_checked(build, config, TRANSFORMER, "transformer")


def build_vae(config: Mapping[str, Any]) -> Any:
    """Builds an ``AutoencoderKLCogVideoX``; raises as ``build_transformer``."""
    prepare_libraries()
    from diffusers import AutoencoderKLCogVideoX

    return build_checked(AutoencoderKLCogVideoX.from_config, config, VAE, "vae")
