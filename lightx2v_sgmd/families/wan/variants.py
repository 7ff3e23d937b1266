"""Variants of Wan's text-to-video network, known by the layers that only they have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from lightx2v_sgmd.files.tensors.safetensors_files import Header
from lightx2v_sgmd.system.errors import UserError, shortened

IMAGE_TO_VIDEO: Final = re.compile(
    r"(?:^|[._])(?:k_img|v_img|norm_k_img|img_emb|add_k_proj|add_v_proj|norm_added_k|norm_added_q"
    r"|image_embedder)(?:[._]|$)"
)
"""Matches names of the layers that an image-to-video model adds, in every spelling."""

_VARIANTS: Final = (
    (IMAGE_TO_VIDEO, "an image-to-video model (Wan2.1-I2V)"),
    (re.compile(r"to_gate_compress"), "a model with video sparse attention (VSA, of FastVideo)"),
    (re.compile(r"vace_(blocks|patch_embedding)"), "a VACE model"),
    (re.compile(r"control_adapter|ref_conv"), "a Fun-Control model"),
    (re.compile(r"audio_(encoder|injector|proj)|cond_encoder"), "a speech-to-video model"),
    (re.compile(r"face_adapter|pose_patch_embedding|motion_encoder"), "an Animate model"),
    (
        re.compile(r"_(cls_pred_branch|gan_ca_blocks|register_tokens)"),
        "a discriminator with GAN heads",
    ),
    (re.compile(r"double_blocks|single_blocks|single_transformer_blocks"), "another architecture"),
)


def variant_of(names: Iterable[str]) -> str | None:
    """The variant that a name of a weight belongs to, in words; None if no name tells.

    Args:
        names: Names that the plain text-to-video network does not have.
    """
    for name in names:
        for pattern, variant in _VARIANTS:
            if pattern.search(name):
                return variant
    return None


def refuse_variant(header: Header, expected: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Raises if weights have layers of a variant that is not supported; the message names it.

    Args:
        header: The weights under diffusers' names.
        expected: The shapes of the plain network's weights.
        what: The weights, for the message.

    Raises:
        UserError: they do.
    """
    strange = [name for name in header.tensors if name not in expected]
    variant = variant_of(strange)
    from_image = any(IMAGE_TO_VIDEO.search(name) for name in expected)
    if from_image and not any(IMAGE_TO_VIDEO.search(name) for name in header.tensors):
        raise UserError(
            f"{what}: holds weights without the layers of an image-to-video model, which its "
            "configuration describes; give the config.json, or the base model, that belongs to "
            "these weights"
        )
    if variant is not None and IMAGE_TO_VIDEO.search(strange[0]) and not from_image:
        raise UserError(
            f"{what}: holds weights of {variant}, such as {shortened(strange[0])}, and its "
            "configuration describes a text-to-video model; give the config.json, or the base "
            "model, that belongs to these weights"
        )
    if variant is not None:
        raise UserError(
            f"{what}: holds weights of {variant}, such as {shortened(strange[0])}; use a "
            "network of the model that the configuration describes"
        )
