"""Stable Diffusion XL: the limits of its configurations, and its networks built within them.

The largest published sizes, for comparison: SDXL's U-Net has three levels, the widest of 1,280
channels with 10 transformer blocks in a row, its VAE a width of 512, CLIP-G 32 layers and a width
of 1,280.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.optional_packages import prepare_libraries
from lightx2v_sgmd.untrusted import sd3
from lightx2v_sgmd.untrusted.building import build_checked
from lightx2v_sgmd.untrusted.configs import check_class, check_sizes, refuse_code
from lightx2v_sgmd.untrusted.fields import (
    Choice,
    Field,
    Flag,
    Null,
    Real,
    Several,
    Whole,
    first_problem,
    optional,
)

_CHANNELS: Final = Whole(1, 1024)
_LEVELS: Final = 8
"""The most levels of a U-Net."""
_BLOCKS_MOST: Final = 512
"""The most transformer blocks on the way down and up, if each level had some; SDXL has 65."""

UNET: Final[Mapping[str, Field]] = MappingProxyType(
    {
        "block_out_channels": Several(Whole(1, 8192), 1, _LEVELS),
        "down_block_types": Several(Choice(("DownBlock2D", "CrossAttnDownBlock2D")), 1, _LEVELS),
        "up_block_types": Several(Choice(("UpBlock2D", "CrossAttnUpBlock2D")), 1, _LEVELS),
        "transformer_layers_per_block": Several(Whole(1, 64), 1, _LEVELS),
        "attention_head_dim": Several(Whole(1, 1024), 1, _LEVELS),
        "layers_per_block": Whole(1, 16),
        "in_channels": _CHANNELS,
        "out_channels": _CHANNELS,
        "cross_attention_dim": Whole(1, 2**16),
        "addition_time_embed_dim": Whole(1, 2**14),
        "projection_class_embeddings_input_dim": Whole(1, 2**17),
        "addition_embed_type": Choice(("text_time",)),
        "mid_block_type": Choice(("UNetMidBlock2DCrossAttn",)),
        "sample_size": Whole(1, 4096),
        "norm_num_groups": Whole(1, 1024),
        "norm_eps": Real(0, 1),
        "act_fn": Choice(("silu", "swish", "gelu", "mish")),
        "addition_embed_type_num_heads": Whole(1, 1024),
        "center_input_sample": Flag(),
        "class_embed_type": Null(),
        "class_embeddings_concat": Flag(),
        "conv_in_kernel": Whole(3, 3),
        "conv_out_kernel": Whole(3, 3),
        "cross_attention_norm": Null(),
        "downsample_padding": Whole(1, 1),
        "dropout": Real(0, 0),
        "dual_cross_attention": Flag(),
        "encoder_hid_dim": Null(),
        "encoder_hid_dim_type": Null(),
        "flip_sin_to_cos": Flag(),
        "freq_shift": Real(0, 1),
        "mid_block_only_cross_attention": Null(),
        "mid_block_scale_factor": Real(1e-3, 1e3),
        "num_attention_heads": Null(),
        "num_class_embeds": Null(),
        "only_cross_attention": Flag(),
        "resnet_out_scale_factor": Real(1e-3, 1e3),
        "resnet_skip_time_act": Flag(),
        "resnet_time_scale_shift": Choice(("default",)),
        "reverse_transformer_layers_per_block": Null(),
        "time_cond_proj_dim": Null(),
        "time_embedding_act_fn": Null(),
        "time_embedding_dim": Null(),
        "time_embedding_type": Choice(("positional",)),
        "timestep_post_act": Null(),
        "upcast_attention": optional(Flag()),
        "use_linear_projection": Flag(),
        "attention_type": Choice(("default",)),
    }
)
_NEEDED: Final = frozenset(list(UNET)[:13])
_BY_LEVEL: Final = tuple(list(UNET)[1:5])

SCHEDULER: Final[Mapping[str, Field]] = MappingProxyType(
    {
        "num_train_timesteps": Whole(1000, 1000),
        "beta_start": Real(1e-8, 0.5),
        "beta_end": Real(1e-8, 0.5),
        "beta_schedule": Choice(("scaled_linear",)),
        "prediction_type": Choice(("epsilon",)),
        "trained_betas": Null(),
    }
)
_SCHEDULERS: Final = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "PNDMScheduler",
    "DDPMScheduler",
    "UniPCMultistepScheduler",
)


def check_unet(config: Mapping[str, Any]) -> None:
    """Refuses a network with sizes out of range, or one that is not SDXL's for text-to-image.

    Args:
        config: The arguments of ``UNet2DConditionModel``.

    Raises:
        UserError: a value is refused; the message names the key, the value and the limits.
    """
    refuse_code(config)
    check_class(config, "_class_name", ("UNet2DConditionModel",))
    if config.get("addition_embed_type") is None:
        raise UserError(
            "has no addition_embed_type, as Stable Diffusion 1 and 2 have none; use SDXL, or a "
            "model without a U-Net"
        )
    taken, given = config.get("in_channels"), config.get("out_channels")
    if taken != given:
        raise UserError(f"takes {taken} channels and gives {given}; use a text-to-image model")
    problem = first_problem(config, UNET, _NEEDED)
    if problem is not None:
        raise UserError(problem)
    levels = len(config["block_out_channels"])
    for key in _BY_LEVEL:
        if len(config[key]) != levels:
            raise UserError(f"{key} is not a list of {levels}, one for each level")
    blocks = (2 * config["layers_per_block"] + 1) * sum(config["transformer_layers_per_block"])
    if blocks > _BLOCKS_MOST:
        raise UserError(
            f"describes {blocks} transformer blocks (layers_per_block, "
            f"transformer_layers_per_block), more than {_BLOCKS_MOST}"
        )
    times = 6 * config["addition_time_embed_dim"]
    if config["projection_class_embeddings_input_dim"] <= times:
        raise UserError(
            "projection_class_embeddings_input_dim leaves nothing to the pooled text beside six "
            f"numbers of {config['addition_time_embed_dim']} channels each"
        )


def check_vae(config: Mapping[str, Any]) -> None:
    """Checks the arguments of ``AutoencoderKL``; raises as ``check_unet``."""
    sd3.check_vae(config)
    for key in ("latents_mean", "latents_std"):
        if config.get(key) is not None:
            raise UserError(f"{key} is set, but SDXL's latents have a scaling_factor alone")


def check_scheduler(config: Mapping[str, Any]) -> None:
    """Checks the noise schedule of the model's training; raises as ``check_unet``."""
    refuse_code(config)
    check_class(config, "_class_name", _SCHEDULERS)
    if config.get("rescale_betas_zero_snr"):
        raise UserError(
            "rescale_betas_zero_snr is set, and a network that predicts noise cannot start where "
            "there is noise alone; give the model's own scheduler"
        )
    check_sizes(config, SCHEDULER)


def build_unet(config: Mapping[str, Any]) -> Any:
    """Builds a ``UNet2DConditionModel`` with random weights, or none on the meta device.

    Raises:
        UserError: the configuration contradicts itself.
    """
    prepare_libraries()
    from diffusers import UNet2DConditionModel

    return build_checked(UNet2DConditionModel.from_config, config, UNET, "U-Net")


def build_first_clip(config: Mapping[str, Any]) -> Any:
    """Builds a ``CLIPTextModel``, which has no projection; raises as ``build_unet``."""
    prepare_libraries()
    from transformers import CLIPTextConfig, CLIPTextModel

    def build(known: dict[str, Any]) -> Any:
        return CLIPTextModel(CLIPTextConfig(**known))

    return build_checked(build, config, sd3.CLIP, "text_encoder")
