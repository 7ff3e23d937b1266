"""Key maps of Wan2.1's weights between diffusers and the original release.

Only names differ: every tensor has the same shape and the same values in both layouts. The maps
cover the text-to-video transformer (``WanTransformer3DModel``), the video VAE
(``AutoencoderKLWan``, ``Wan2.1_VAE.pth``) and the text encoder (``UMT5EncoderModel``,
``models_t5_umt5-xxl-enc-bf16.pth``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from lightx2v_sgmd.families.t5 import EMBEDDING, EMBEDDING_ALIASES
from lightx2v_sgmd.system.errors import UserError

VAE_RES_BLOCKS: Final = 2
"""Residual blocks in each level of the published VAE's encoder; the decoder has one more."""


class _Templates:
    """Pairs of name templates; ``{n}`` stands for a number, ``{rest}`` for a weight's last parts.

    Args:
        pairs: ``(diffusers, original)``; both sides hold the same fields.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        pairs = list(pairs)
        self._to_original = [(_pattern(ours), theirs) for ours, theirs in pairs]
        self._to_diffusers = [(_pattern(theirs), ours) for ours, theirs in pairs]

    def to_original(self, name: str) -> str | None:
        return _renamed(name, self._to_original)

    def to_diffusers(self, name: str) -> str | None:
        return _renamed(name, self._to_diffusers)


_FIELDS: Final = {"n": r"0|[1-9][0-9]{0,3}", "rest": "weight|bias", "norm": "norm_q|norm_k"}


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(
        re.sub(r"\\{(\w+)\\}", lambda m: f"(?P<{m[1]}>{_FIELDS[m[1]]})", re.escape(template)),
        re.ASCII,
    )


def _renamed(name: str, patterns: Iterable[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, template in patterns:
        match = pattern.fullmatch(name)
        if match:
            return template.format(**match.groupdict())
    return None


def _known(new: str | None, old: str, what: str) -> str:
    if new is None:
        raise UserError(f"{old}: is not the name of a weight of {what}; give weights of one")
    return new


_EMBEDDERS: Final = "condition_embedder"
_TRANSFORMER: Final = _Templates(
    [
        ("patch_embedding.{rest}", "patch_embedding.{rest}"),
        (f"{_EMBEDDERS}.text_embedder.linear_1.{{rest}}", "text_embedding.0.{rest}"),
        (f"{_EMBEDDERS}.text_embedder.linear_2.{{rest}}", "text_embedding.2.{rest}"),
        (f"{_EMBEDDERS}.time_embedder.linear_1.{{rest}}", "time_embedding.0.{rest}"),
        (f"{_EMBEDDERS}.time_embedder.linear_2.{{rest}}", "time_embedding.2.{rest}"),
        (f"{_EMBEDDERS}.time_proj.{{rest}}", "time_projection.1.{rest}"),
        *(
            (f"{_EMBEDDERS}.image_embedder.{ours}.{{rest}}", f"img_emb.proj.{theirs}.{{rest}}")
            for ours, theirs in (("norm1", 0), ("ff.net.0.proj", 1), ("ff.net.2", 3), ("norm2", 4))
        ),
        ("blocks.{n}.attn2.add_k_proj.{rest}", "blocks.{n}.cross_attn.k_img.{rest}"),
        ("blocks.{n}.attn2.add_v_proj.{rest}", "blocks.{n}.cross_attn.v_img.{rest}"),
        ("blocks.{n}.attn2.norm_added_k.weight", "blocks.{n}.cross_attn.norm_k_img.weight"),
        ("scale_shift_table", "head.modulation"),
        ("proj_out.{rest}", "head.head.{rest}"),
        ("blocks.{n}.scale_shift_table", "blocks.{n}.modulation"),
        # The one norm with weights is the second that diffusers builds and the third in the
        # original, which counts in the order of use.
        ("blocks.{n}.norm2.{rest}", "blocks.{n}.norm3.{rest}"),
        ("blocks.{n}.ffn.net.0.proj.{rest}", "blocks.{n}.ffn.0.{rest}"),
        ("blocks.{n}.ffn.net.2.{rest}", "blocks.{n}.ffn.2.{rest}"),
        *(
            (f"blocks.{{n}}.{ours}.{our_part}", f"blocks.{{n}}.{theirs}.{their_part}")
            for ours, theirs in (("attn1", "self_attn"), ("attn2", "cross_attn"))
            for our_part, their_part in (
                ("to_q.{rest}", "q.{rest}"),
                ("to_k.{rest}", "k.{rest}"),
                ("to_v.{rest}", "v.{rest}"),
                ("to_out.0.{rest}", "o.{rest}"),
                ("{norm}.weight", "{norm}.weight"),
            )
        ),
    ]
)


def transformer_to_original(name: str) -> str:
    """The original name of a weight of ``WanTransformer3DModel``.

    Raises:
        UserError: a text-to-video transformer has no weight of this name.
    """
    return _known(_TRANSFORMER.to_original(name), name, "Wan's text-to-video transformer")


def transformer_to_diffusers(name: str) -> str:
    """The diffusers name of a transformer's original name; see ``transformer_to_original``.

    Raises:
        UserError: a text-to-video transformer has no weight of this name.
    """
    return _known(_TRANSFORMER.to_diffusers(name), name, "Wan's text-to-video transformer")


_T5_BLOCK: Final = "encoder.block.{n}.layer"
_TEXT_ENCODER: Final = _Templates(
    [
        ("shared.weight", "token_embedding.weight"),
        ("encoder.final_layer_norm.weight", "norm.weight"),
        (f"{_T5_BLOCK}.0.layer_norm.weight", "blocks.{n}.norm1.weight"),
        *(
            (f"{_T5_BLOCK}.0.SelfAttention.{part}.weight", f"blocks.{{n}}.attn.{part}.weight")
            for part in ("q", "k", "v", "o")
        ),
        # umT5 has a position bias in every block, where T5 has it in the first alone.
        (
            f"{_T5_BLOCK}.0.SelfAttention.relative_attention_bias.weight",
            "blocks.{n}.pos_embedding.embedding.weight",
        ),
        (f"{_T5_BLOCK}.1.layer_norm.weight", "blocks.{n}.norm2.weight"),
        # wi_0 is the half that goes through GELU.
        (f"{_T5_BLOCK}.1.DenseReluDense.wi_0.weight", "blocks.{n}.ffn.gate.0.weight"),
        (f"{_T5_BLOCK}.1.DenseReluDense.wi_1.weight", "blocks.{n}.ffn.fc1.weight"),
        (f"{_T5_BLOCK}.1.DenseReluDense.wo.weight", "blocks.{n}.ffn.fc2.weight"),
    ]
)


def text_encoder_to_original(name: str) -> str:
    """The original name of a weight of ``UMT5EncoderModel``.

    The embedding's second name, ``encoder.embed_tokens.weight``, is accepted too.

    Raises:
        UserError: umT5's encoder has no weight of this name.
    """
    main = EMBEDDING if name in EMBEDDING_ALIASES else name
    return _known(_TEXT_ENCODER.to_original(main), name, "umT5's encoder")


def text_encoder_to_diffusers(name: str) -> str:
    """The transformers name of a text encoder's original name.

    Raises:
        UserError: umT5's encoder has no weight of this name.
    """
    return _known(_TEXT_ENCODER.to_diffusers(name), name, "umT5's encoder")


_RESNET: Final = (
    ("norm1.gamma", "residual.0.gamma"),
    ("conv1.{rest}", "residual.2.{rest}"),
    ("norm2.gamma", "residual.3.gamma"),
    ("conv2.{rest}", "residual.6.{rest}"),
    ("conv_shortcut.{rest}", "shortcut.{rest}"),
)
_SAMPLER: Final = tuple((part, part) for part in ("resample.1.{rest}", "time_conv.{rest}"))
_ATTENTION: Final = tuple((part, part) for part in ("norm.gamma", "to_qkv.{rest}", "proj.{rest}"))


def _vae_templates() -> Iterable[tuple[str, str]]:
    yield "quant_conv.{rest}", "conv1.{rest}"
    yield "post_quant_conv.{rest}", "conv2.{rest}"
    for half in ("encoder", "decoder"):
        yield f"{half}.conv_in.{{rest}}", f"{half}.conv1.{{rest}}"
        yield f"{half}.norm_out.gamma", f"{half}.head.0.gamma"
        yield f"{half}.conv_out.{{rest}}", f"{half}.head.2.{{rest}}"
        for ours, theirs in _RESNET:
            yield f"{half}.mid_block.resnets.0.{ours}", f"{half}.middle.0.{theirs}"
            yield f"{half}.mid_block.resnets.1.{ours}", f"{half}.middle.2.{theirs}"
        for ours, theirs in _ATTENTION:
            yield f"{half}.mid_block.attentions.0.{ours}", f"{half}.middle.1.{theirs}"
    # Both layouts count the encoder's blocks in one row; the decoder's are counted below.
    for ours, theirs in (*_RESNET, *_SAMPLER, *_ATTENTION):
        yield f"encoder.down_blocks.{{n}}.{ours}", f"encoder.downsamples.{{n}}.{theirs}"


_VAE: Final = _Templates(_vae_templates())
_DECODER_RESNET: Final = _Templates(_RESNET)
_DECODER_SAMPLER: Final = _Templates(_SAMPLER)
_UP_BLOCK: Final = re.compile(
    r"decoder\.up_blocks\.(0|[1-9]\d{0,2})\.(resnets|upsamplers)\.(0|[1-9]\d{0,2})\.(.+)", re.ASCII
)
_UPSAMPLE: Final = re.compile(r"decoder\.upsamples\.(0|[1-9]\d{0,2})\.(.+)", re.ASCII)


def vae_to_original(name: str, res_blocks: int = VAE_RES_BLOCKS) -> str:
    """The original name of a weight of ``AutoencoderKLWan``.

    Args:
        name: The name in diffusers.
        res_blocks: ``num_res_blocks`` of the configuration: diffusers counts the decoder's blocks
            by level, the original in one row.

    Raises:
        UserError: Wan2.1's VAE has no weight of this name.
    """
    new = _VAE.to_original(name)
    match = _UP_BLOCK.fullmatch(name)
    if match:
        level, kind, index, rest = int(match[1]), match[2], int(match[3]), match[4]
        is_resnet = kind == "resnets"
        part = (_DECODER_RESNET if is_resnet else _DECODER_SAMPLER).to_original(rest)
        position = index if is_resnet else res_blocks + 1
        if part is not None and index <= (res_blocks if is_resnet else 0):
            new = f"decoder.upsamples.{level * (res_blocks + 2) + position}.{part}"
    return _known(new, name, "Wan2.1's VAE")


def vae_to_diffusers(name: str, res_blocks: int = VAE_RES_BLOCKS) -> str:
    """The diffusers name of a VAE's original name; see ``vae_to_original``.

    Raises:
        UserError: Wan2.1's VAE has no weight of this name.
    """
    new = _VAE.to_diffusers(name)
    match = _UPSAMPLE.fullmatch(name)
    if match:
        level, position = divmod(int(match[1]), res_blocks + 2)
        is_resnet = position <= res_blocks
        part = (_DECODER_RESNET if is_resnet else _DECODER_SAMPLER).to_diffusers(match[2])
        if part is not None:
            where = f"resnets.{position}" if is_resnet else "upsamplers.0"
            new = f"decoder.up_blocks.{level}.{where}.{part}"
    return _known(new, name, "Wan2.1's VAE")
