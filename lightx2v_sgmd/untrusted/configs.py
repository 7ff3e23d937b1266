"""The limits of a model's configurations: sizes well above those of every published model.

The largest published sizes, for comparison: Wan2.1-14B has 40 layers and a width of 5,120, the
VAE of Wan2.2 a width of 256 times 4, umT5-XXL 256,384 tokens, 24 layers and a width of 4,096,
DINOv2-giant 40 layers and a width of 1,536.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted.fields import (
    Choice,
    Either,
    Field,
    Flag,
    Null,
    Real,
    Several,
    Text,
    Whole,
    first_problem,
    optional,
    shown,
)

_SHARE: Final = Real(0, 1)
_LAYERS: Final = Whole(1, 256)
_TOKEN: Final = Whole(0, 2**20)

TRANSFORMER: Final[Mapping[str, Field]] = MappingProxyType(
    {
        "num_attention_heads": Whole(1, 1024),
        "attention_head_dim": Whole(1, 1024),
        "num_layers": _LAYERS,
        "ffn_dim": Whole(1, 2**20),
        "text_dim": Whole(1, 2**16),
        "freq_dim": Whole(1, 2**16),
        "in_channels": Whole(1, 1024),
        "out_channels": Whole(1, 1024),
        "patch_size": Several(Whole(1, 16), 3, 3),
        "cross_attn_norm": Flag(),
        "qk_norm": optional(Choice(("rms_norm_across_heads", "rms_norm", "layer_norm"))),
        "eps": _SHARE,
        "image_dim": optional(Whole(1, 2**16)),
        "added_kv_proj_dim": optional(Whole(1, 2**16)),
        "rope_max_seq_len": Whole(1, 2**14),
        "pos_embed_seq_len": optional(Whole(1, 2**16)),
    }
)
_TRANSFORMER_NEEDED: Final = frozenset(list(TRANSFORMER)[:9])

VAE: Final[Mapping[str, Field]] = MappingProxyType(
    {
        "base_dim": Whole(1, 2048),
        "decoder_base_dim": optional(Whole(1, 2048)),
        "z_dim": Whole(1, 1024),
        "dim_mult": Several(Whole(1, 64), 1, 8),
        "num_res_blocks": Whole(1, 16),
        "attn_scales": Several(Real(0, 1024), 0, 8),
        "temperal_downsample": Several(Flag(), 0, 8),
        "dropout": _SHARE,
        "latents_mean": Several(Real(-1e4, 1e4), 1, 1024),
        "latents_std": Several(Real(1e-6, 1e4), 1, 1024),
        "is_residual": Flag(),
        "in_channels": Whole(1, 1024),
        "out_channels": Whole(1, 1024),
        "patch_size": optional(Whole(1, 16)),
        "scale_factor_temporal": optional(Whole(1, 64)),
        "scale_factor_spatial": optional(Whole(1, 64)),
    }
)

TEXT_ENCODER: Final[Mapping[str, Field]] = MappingProxyType(
    {
        "vocab_size": Whole(1, 2**20),
        "d_model": Whole(1, 2**14),
        "d_kv": Whole(1, 1024),
        "d_ff": Whole(1, 2**17),
        "num_layers": _LAYERS,
        "num_decoder_layers": optional(_LAYERS),
        "num_heads": Whole(1, 1024),
        "relative_attention_num_buckets": Whole(4, 4096),
        "relative_attention_max_distance": Whole(4, 2**16),
        "dropout_rate": _SHARE,
        "layer_norm_epsilon": _SHARE,
        "initializer_factor": Real(0, 100),
        "feed_forward_proj": Choice(
            ("gated-gelu", "gated-gelu_new", "gated-silu", "gated-relu", "relu", "gelu", "silu")
        ),
        "is_encoder_decoder": Flag(),
        "use_cache": Flag(),
        "pad_token_id": optional(_TOKEN),
        "eos_token_id": Either((_TOKEN, Several(_TOKEN, 1, 16), Null())),
        "decoder_start_token_id": optional(_TOKEN),
        "classifier_dropout": _SHARE,
        "is_decoder": Flag(),
        "tie_word_embeddings": Flag(),
    }
)
_WEIGHTS_MOST: Final = 2**34
"""The most elements of one weight: umT5-XXL's embedding has 2^30."""

SCHEDULER: Final[Mapping[str, Field]] = MappingProxyType(
    {
        "num_train_timesteps": Whole(1, 100_000),
        "shift": optional(Real(0, 100)),
        "flow_shift": optional(Real(0, 100)),
    }
)

VIDEO: Final[Mapping[str, Field]] = MappingProxyType(
    {
        "height": Whole(1, 2**14),
        "width": Whole(1, 2**14),
        "num_frames": Whole(1, 2**14),
        "fps": Real(0.1, 1000),
        "negative_prompt": Text(20_000),
    }
)

VISION_TYPES: Final = frozenset(
    {
        "aimv2",
        "aimv2_vision_model",
        "beit",
        "chinese_clip",
        "chinese_clip_vision_model",
        "clip",
        "clip_vision_model",
        "data2vec-vision",
        "deit",
        "dinov2",
        "dinov2_with_registers",
        "dinov3_vit",
        "ijepa",
        "metaclip_2",
        "sam",
        "sam_hq",
        "sam_hq_vision_model",
        "sam_vision_model",
        "siglip",
        "siglip_vision_model",
        "vit",
        "vit_msn",
    }
)
"""Model types of transformers whose layers return tokens or a map of one width."""
VISION: Final[Mapping[str, Field]] = MappingProxyType(
    {
        "hidden_size": Whole(1, 2**14),
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": Whole(1, 1024),
        "intermediate_size": Whole(1, 2**17),
        "mlp_dim": optional(Whole(1, 2**17)),
        "mlp_ratio": Real(0.01, 64),
        "image_size": Whole(1, 4096),
        "patch_size": Whole(1, 256),
        "num_channels": Whole(1, 64),
        "window_size": Whole(0, 4096),
        "output_channels": Whole(1, 2**14),
        "vocab_size": Whole(1, 2**20),
        "max_position_embeddings": Whole(1, 2**20),
        "projection_dim": Whole(1, 2**14),
        "num_pos_feats": Whole(1, 2**14),
        "num_register_tokens": Whole(0, 1024),
        "layer_norm_eps": _SHARE,
    }
)
_VISION_NUMBER: Final = Real(-(2**31), 2**31)

_CODE_KEYS: Final = ("auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code")
_LIBRARIES: Final = (None, "diffusers", "transformers")


def refuse_code(config: Mapping[str, Any]) -> None:
    """Raises if a configuration asks for a class that is not the libraries' own.

    Raises:
        UserError: the configuration does; the message names the key.
    """
    for key in _CODE_KEYS:
        if config.get(key):
            raise UserError(
                f"{key} names code that comes with the model, and such code is never run; "
                f"remove {key}, or use a model of transformers' and diffusers' own classes"
            )
    for key, value in config.items():
        names = value if isinstance(value, list) else [value]
        for name in names[:16]:
            if isinstance(name, str) and name.lower().endswith((".py", ".pyc", ".so")):
                raise UserError(
                    f"{shown(key)} names the program {shown(name)}, and code that comes with a "
                    "model is never run; remove it"
                )


def check_class(config: Mapping[str, Any], key: str, known: tuple[str, ...]) -> None:
    """Raises if a configuration names a class that is not known.

    Raises:
        UserError: the class is not known; the message names the known ones.
    """
    named = config.get(key)
    names = named if isinstance(named, list) else [named]
    for name in names:
        if named is not None and name not in known:
            raise UserError(f"{key} is {shown(name)}, not {' or '.join(known)}")


_MASK_CHANNELS: Final = 4
"""Channels that say which frames are given: one for each frame of a latent frame."""


def check_transformer(config: Mapping[str, Any]) -> None:
    """Refuses a transformer with sizes out of range, or one of an unknown kind.

    Known are text-to-video networks and those that start a video from an image: they take the image
    as more channels, and those of Wan2.1 by a second cross-attention too.

    Args:
        config: The arguments of ``WanTransformer3DModel``.

    Raises:
        UserError: a value is refused; the message names the key, the value and the limits.
    """
    refuse_code(config)
    _refuse(first_problem(config, TRANSFORMER, _TRANSFORMER_NEEDED))
    taken, given = config["in_channels"], config["out_channels"]
    from_image = 2 * given + _MASK_CHANNELS
    if taken not in (given, from_image):
        raise UserError(
            f"takes {taken} channels and gives {given}, as no model does that makes videos from "
            f"text ({given}) or from text and a first frame ({from_image})"
        )
    image, added = config.get("image_dim"), config.get("added_kv_proj_dim")
    if (image is None) != (added is None):
        raise UserError("has one of image_dim and added_kv_proj_dim without the other")
    if image is None:
        return
    if taken != from_image:
        raise UserError(
            f"attends to an image but takes {taken} channels, not the {from_image} of a model that "
            "starts from an image"
        )
    width = config["num_attention_heads"] * config["attention_head_dim"]
    if added != width:
        raise UserError(f"added_kv_proj_dim is {added}, not the network's width {width}")
    if config.get("pos_embed_seq_len") is not None:
        raise UserError(
            "describes a model that starts from a first and a last frame, which is not supported; "
            "use one that starts from a first frame"
        )


def check_vae(config: Mapping[str, Any]) -> None:
    """Checks the arguments of ``AutoencoderKLWan``; raises as ``check_transformer``."""
    refuse_code(config)
    check_class(config, "_class_name", ("AutoencoderKLWan",))
    _refuse(first_problem(config, VAE))
    levels = len(config.get("dim_mult", (1, 2, 4, 4)))
    if len(config.get("temperal_downsample", (False, True, True))) != levels - 1:
        raise UserError(
            f"temperal_downsample is not a list of {levels - 1}, one less than dim_mult"
        )
    channels = int(config.get("z_dim", 16))
    for key in ("latents_mean", "latents_std"):
        if len(config.get(key, range(16))) != channels:
            raise UserError(f"{key} is not a list of {channels}, as z_dim says")
    width = max(int(config.get("base_dim", 96)), int(config.get("decoder_base_dim") or 0))
    if width * max(config.get("dim_mult", (4,))) > 2**13:
        raise UserError(f"base_dim times dim_mult is more than {2**13} channels")


def check_text_encoder(config: Mapping[str, Any]) -> None:
    """Checks the arguments of ``UMT5Config``; raises as ``check_transformer``."""
    refuse_code(config)
    check_class(config, "architectures", ("UMT5EncoderModel", "UMT5ForConditionalGeneration"))
    check_t5_sizes(config)


def check_t5_sizes(config: Mapping[str, Any]) -> None:
    """Checks the sizes of a T5 or umT5 encoder; raises as ``check_transformer``."""
    check_sizes(config, TEXT_ENCODER)
    buckets = config.get("relative_attention_num_buckets", 32)
    if config.get("relative_attention_max_distance", 128) <= buckets // 2:
        raise UserError("relative_attention_max_distance is not above half of the buckets")
    for first, second in (("vocab_size", "d_model"), ("d_model", "d_ff")):
        if config.get(first, 1) * config.get(second, 1) > _WEIGHTS_MOST:
            raise UserError(f"{first} times {second} is more than {_WEIGHTS_MOST}")


def check_t5(config: Mapping[str, Any]) -> None:
    """Checks the arguments of ``T5Config``; raises as ``check_transformer``."""
    refuse_code(config)
    check_class(config, "architectures", ("T5EncoderModel", "T5ForConditionalGeneration"))
    check_t5_sizes(config)


def check_vision_encoder(config: Mapping[str, Any]) -> None:
    """Checks a vision encoder's ``config.json``; raises as ``check_transformer``."""
    refuse_code(config)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in VISION_TYPES:
        raise UserError(
            f"model_type is {shown(kind)}, not a vision encoder that is known here "
            "(sam, dinov2, vit, clip, siglip and others of their kind)"
        )
    named_classes = config.get("architectures") or []
    if not isinstance(named_classes, list):
        raise UserError(f"architectures is {shown(named_classes)}, not a list of classes")
    for named in named_classes:
        if not isinstance(named, str) or not re.fullmatch(r"[A-Za-z0-9_]{1,80}", named):
            raise UserError(
                f"architectures has {shown(named)}, which is not a class of transformers"
            )
    inner = [value for value in config.values() if isinstance(value, dict)]
    for part in (config, *inner):
        refuse_code(part)
        _refuse(first_problem(part, VISION))
        for key, value in part.items():
            if type(value) in (int, float) and not _VISION_NUMBER.allows(value):
                raise UserError(f"{shown(key)} is {shown(value)}, not {_VISION_NUMBER.wanted}")


def check_image_encoder(config: Mapping[str, Any]) -> None:
    """Checks CLIP's image encoder's ``config.json``; raises as ``check_transformer``."""
    check_vision_encoder(config)
    if config["model_type"] != "clip_vision_model":
        raise UserError(f"model_type is {shown(config['model_type'])}, not clip_vision_model")


def check_scheduler(config: Mapping[str, Any]) -> None:
    """Checks ``scheduler_config.json``; raises as ``check_transformer``."""
    refuse_code(config)
    named = config.get("_class_name")
    if named is not None and not (
        isinstance(named, str) and re.fullmatch(r"[A-Z][A-Za-z0-9]{1,60}Scheduler", named)
    ):
        raise UserError(f"_class_name is {shown(named)}, which is not a scheduler of diffusers")
    _refuse(first_problem(config, SCHEDULER))


IMAGE_PROCESSOR: Final[Mapping[str, Field]] = MappingProxyType(
    {
        "do_resize": Flag(),
        "do_center_crop": Flag(),
        "do_rescale": Flag(),
        "do_normalize": Flag(),
        "do_convert_rgb": Flag(),
        "resample": Whole(0, 5),
        "rescale_factor": Real(1e-6, 1),
        "image_mean": Several(Real(-10, 10), 3, 3),
        "image_std": Several(Real(1e-3, 10), 3, 3),
    }
)
_SIDE: Final = Whole(1, 2048)


def check_image_processor(config: Mapping[str, Any]) -> None:
    """Checks CLIP's ``preprocessor_config.json``; raises as ``check_transformer``."""
    refuse_code(config)
    _refuse(first_problem(config, IMAGE_PROCESSOR))
    for key in ("size", "crop_size"):
        sides = config.get(key, {})
        values = list(sides.values()) if isinstance(sides, dict) else [sides]
        if not (values and all(_SIDE.allows(value) for value in values)) and key in config:
            raise UserError(f"{key} is {shown(sides)}, not sides of at most 2048 pixels")


def check_video(video: Mapping[str, Any]) -> None:
    """Checks ``video.json``: size, length and frame rate, and optionally a negative prompt."""
    refuse_code(video)
    _refuse(first_problem(video, VIDEO, frozenset(VIDEO) - {"negative_prompt"}))


def check_model_index(index: Mapping[str, Any]) -> None:
    """Checks ``model_index.json``, which names the library and the class of each part."""
    refuse_code(index)
    for key, value in index.items():
        pair = isinstance(value, list) and len(value) == 2
        if pair and not (value[0] in _LIBRARIES and isinstance(value[1], str | None)):
            raise UserError(
                f"{shown(key)} is {shown(value)}, which is not a class of diffusers or "
                "transformers, and code that comes with a model is never run; use a model of "
                "their own classes"
            )
        if isinstance(value, list | dict) and not pair:
            raise UserError(f"{shown(key)} is {shown(value)}, not a library and a class")


def check_sizes(config: Mapping[str, Any], fields: Mapping[str, Field]) -> None:
    """Checks the values of those keys that have limits; raises as ``check_transformer``."""
    _refuse(first_problem(config, fields))


def _refuse(problem: str | None) -> None:
    if problem is not None:
        raise UserError(problem)
