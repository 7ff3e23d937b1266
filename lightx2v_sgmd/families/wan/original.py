"""The layout of Wan2.1's original release: ``Wan2.1-T2V-1.3B`` and ``Wan2.1-T2V-14B``.

The release's ``config.json`` describes the transformer only. The VAE and the text encoder, which
are the same for all sizes, are described here. Sources: Wan2.1's ``config.json`` and
``wan/configs``, and diffusers' own defaults of ``AutoencoderKLWan``, which are this VAE.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from lightx2v_sgmd.families.t5 import EMBEDDING, EMBEDDING_ALIASES, T5_XXL, one_embedding
from lightx2v_sgmd.families.wan import keys as wan_keys
from lightx2v_sgmd.system.errors import UserError

VAE_STEM: Final = "Wan2.1_VAE"
TEXT_ENCODER_STEM: Final = "models_t5_umt5-xxl-enc-bf16"
TRANSFORMER_STEM: Final = "diffusion_pytorch_model"
TOKENIZER: Final = "google/umt5-xxl"

VAE_CONFIG: Final[Mapping[str, Any]] = {
    "base_dim": 96,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
    "dropout": 0.0,
    # fmt: off
    "latents_mean": [
        -0.7571,
        -0.7089,
        -0.9113,
        0.1075,
        -0.1745,
        0.9653,
        -0.1517,
        1.5508,
        0.4134,
        -0.0715,
        0.5517,
        -0.3632,
        -0.1922,
        -0.9497,
        0.2503,
        -0.2921,
    ],
    "latents_std": [
        2.8184,
        1.4541,
        2.3275,
        2.6558,
        1.2196,
        1.7708,
        2.6052,
        2.0743,
        3.2687,
        2.1526,
        2.8652,
        1.5579,
        1.6382,
        1.1253,
        2.8251,
        1.9160,
    ],
    # fmt: on
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 8,
}

VAE_OF_WAN22_CONFIG: Final[Mapping[str, Any]] = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
    "dropout": 0.0,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    # fmt: off
    "latents_mean": [
        -0.2289,
        -0.0052,
        -0.1323,
        -0.2339,
        -0.2799,
        0.0174,
        0.1838,
        0.1557,
        -0.1382,
        0.0542,
        0.2813,
        0.0891,
        0.1570,
        -0.0098,
        0.0375,
        -0.1825,
        -0.2246,
        -0.1207,
        -0.0698,
        0.5109,
        0.2665,
        -0.2108,
        -0.2158,
        0.2502,
        -0.2055,
        -0.0322,
        0.1109,
        0.1567,
        -0.0729,
        0.0899,
        -0.2799,
        -0.1230,
        -0.0313,
        -0.1649,
        0.0117,
        0.0723,
        -0.2839,
        -0.2083,
        -0.0520,
        0.3748,
        0.0152,
        0.1957,
        0.1433,
        -0.2944,
        0.3573,
        -0.0548,
        -0.1681,
        -0.0667,
    ],
    "latents_std": [
        0.4765,
        1.0364,
        0.4514,
        1.1677,
        0.5313,
        0.4990,
        0.4818,
        0.5013,
        0.8158,
        1.0344,
        0.5894,
        1.0901,
        0.6885,
        0.6165,
        0.8454,
        0.4978,
        0.5759,
        0.3523,
        0.7135,
        0.6804,
        0.5833,
        1.4146,
        0.8986,
        0.5659,
        0.7069,
        0.5338,
        0.4889,
        0.4917,
        0.4069,
        0.4999,
        0.6866,
        0.4093,
        0.5709,
        0.6065,
        0.6415,
        0.4944,
        0.5726,
        1.2042,
        0.5458,
        1.6887,
        0.3971,
        1.0600,
        0.3943,
        0.5537,
        0.5444,
        0.4089,
        0.7468,
        0.7744,
    ],
    # fmt: on
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 16,
}
"""The VAE of Wan2.2-TI2V-5B: one latent position for 16x16 pixels, 48 channels."""

IMAGE_ENCODER_CONFIG: Final[Mapping[str, Any]] = {
    "model_type": "clip_vision_model",
    "architectures": ["CLIPVisionModel"],
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "projection_dim": 1024,
    "image_size": 224,
    "patch_size": 14,
    "num_channels": 3,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
}
"""The image encoder of Wan2.1's image-to-video models: ViT-H/14 of OpenCLIP."""

TEXT_ENCODER_CONFIG: Final[Mapping[str, Any]] = {
    **T5_XXL,
    "model_type": "umt5",
    "architectures": ["UMT5EncoderModel"],
    "vocab_size": 256384,
    # The file holds the embedding once, under its first name.
    "tie_word_embeddings": True,
}

_DEFAULTS: Final[Mapping[str, Any]] = {
    "model_type": "t2v",
    "patch_size": [1, 2, 2],
    "text_len": 512,
    "text_dim": 4096,
    "window_size": [-1, -1],
    "qk_norm": True,
    "cross_attn_norm": True,
    "eps": 1e-6,
    "freq_dim": 256,
}
"""Values of the keys that a configuration may leave out, as the release's own files do."""
_FIXED: Final = ("text_len", "window_size", "qk_norm")
IN_DIFFUSERS_ALONE: Final = (
    "this model takes an image and is read in diffusers' layout alone: give the folder or hub id "
    "that ends in -Diffusers"
)
"""The end of the refusal of a whole model in the original layout, for want of a map of its CLIP."""
_NEEDED: Final = ("dim", "ffn_dim", "in_dim", "out_dim", "num_heads", "num_layers")


def diffusers_config(original: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``WanTransformer3DModel`` for an original ``config.json``.

    The file does not say if a network that takes an image attends to CLIP's rows; those of Wan2.2
    do not, and here it is left out.

    Raises:
        UserError: the model is of another kind, or a key is missing or unknown.
    """
    given = {key: value for key, value in original.items() if not key.startswith("_")}
    unknown = sorted(given.keys() - {*_DEFAULTS, *_NEEDED})
    missing = [key for key in _NEEDED if key not in given]
    if unknown or missing:
        label, keys = ("has the unknown key", unknown) if unknown else ("lacks the key", missing)
        raise UserError(f"{label} {keys[0]!r}; give the config.json that came with the weights")
    config = {**_DEFAULTS, **given}
    kind = config["model_type"]
    if kind == "ti2v" or (kind == "i2v" and config["in_dim"] == config["out_dim"]):
        raise UserError(f"has model_type {kind!r}; {IN_DIFFUSERS_ALONE}")
    if kind not in ("t2v", "i2v"):
        raise UserError(f"has model_type {kind!r}; use a model of the type 't2v' or 'i2v'")
    for key in _FIXED:
        if config[key] != _DEFAULTS[key]:
            raise UserError(
                f"has {key} {config[key]!r}; use one of Wan's own models, which have "
                f"{_DEFAULTS[key]!r}"
            )
    dim, heads = config["dim"], config["num_heads"]
    if not (isinstance(dim, int) and isinstance(heads, int) and heads > 0 and dim % heads == 0):
        raise UserError(f"has {heads!r} heads for a width of {dim!r}, which they must divide")
    return {
        "patch_size": config["patch_size"],
        "num_attention_heads": heads,
        "attention_head_dim": dim // heads,
        "in_channels": config["in_dim"],
        "out_channels": config["out_dim"],
        "text_dim": config["text_dim"],
        "freq_dim": config["freq_dim"],
        "ffn_dim": config["ffn_dim"],
        "num_layers": config["num_layers"],
        "cross_attn_norm": config["cross_attn_norm"],
        "qk_norm": "rms_norm_across_heads",
        "eps": config["eps"],
        "image_dim": None,
        "added_kv_proj_dim": None,
        "rope_max_seq_len": 1024,
    }


_WRAPPERS: Final = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
"""Parts that torch.compile, FSDP and checkpointing put into names, anywhere."""
_ANCHOR: Final = re.compile(r"(.*\.|)patch_embedding\.weight")


def transformer_prefix(stored: Iterable[str]) -> str:
    """The prefix of every name of a transformer: ComfyUI's prefix, a wrapper's, a trainer's.

    Where a file has several networks, EMA weights come before others, and a generator before the
    networks that only its training needs.
    """
    found = [match[1] for name in stored if (match := _ANCHOR.fullmatch(_unwrapped(name)))]
    return min(found, key=_preference, default="")


def _preference(prefix: str) -> tuple[bool, bool, int, str]:
    words = re.split(r"[._]", prefix.lower())
    student = not {"generator", "student", "net"}.isdisjoint(words)
    return "ema" not in words, not (student or prefix == ""), len(prefix), prefix


def _unwrapped(name: str) -> str:
    return _WRAPPERS.sub("", name)


def transformer_names(stored: Iterable[str]) -> dict[str, str]:
    """Maps each stored name to diffusers' name, for files in either layout, behind any prefix.

    Where names have a prefix, those without it are of other networks and left out. A name of
    neither layout stays as it is, so that a comparison of keys reports it as unexpected.
    """
    stored = list(stored)
    prefix = transformer_prefix(stored)
    plain = {name: _unwrapped(name) for name in stored}
    short = {name: n.removeprefix(prefix) for name, n in plain.items() if n.startswith(prefix)}
    if any(name.startswith("condition_embedder.") for name in short.values()):
        return short
    return {name: _or_itself(wan_keys.transformer_to_diffusers, n) for name, n in short.items()}


def vae_names(stored: Iterable[str], res_blocks: int) -> dict[str, str]:
    """Maps the VAE's stored names to diffusers' names; see ``transformer_names``."""
    stored = list(stored)
    if any(name.startswith("post_quant_conv.") for name in stored):
        return {name: name for name in stored}
    return {
        name: _or_itself(lambda n: wan_keys.vae_to_diffusers(n, res_blocks), name)
        for name in stored
    }


def text_encoder_names(stored: Iterable[str]) -> dict[str, str]:
    """Maps the text encoder's stored names to transformers' names; see ``transformer_names``.

    The embedding is named ``shared.weight``. If a file has both of its names, the result has the
    one with which the encoder computes.
    """
    stored = list(stored)
    if EMBEDDING in stored or {*EMBEDDING_ALIASES} & {*stored}:
        return one_embedding(stored)
    return {name: _or_itself(wan_keys.text_encoder_to_diffusers, name) for name in stored}


def _or_itself(rename: Any, name: str) -> str:
    try:
        return str(rename(name))
    except UserError:
        return name
