"""The names of tensors in LoRA files: which layer, which kind of tensor, which program's spelling.

Programs name the same layer differently (``transformer.blocks.0.attn1.to_q``,
``diffusion_model.blocks.0.self_attn.q``, ``lora_unet_blocks_0_self_attn_q``) and call the factors
``lora_A`` and ``lora_B`` or ``lora_down`` and ``lora_up``. A name is looked up among all spellings
of the network's own layers, so a file may hold any part of them, in any mix of spellings.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from lightx2v_sgmd.families.sdxl.keys import original_names
from lightx2v_sgmd.families.wan.keys import transformer_to_original
from lightx2v_sgmd.system.errors import UserError

DOWN: Final = "down"
UP: Final = "up"
UP_BIAS: Final = "up_bias"
ALPHA: Final = "alpha"
DIFFERENCE: Final = "difference"
_ENDINGS: Final = (
    # A name after lora_A is that of PEFT's adapter, such as "default".
    (r"\.(?:lora_A|lora_down|lora\.down|lora_linear_layer\.down)(?:\.[\w-]+)?\.weight", DOWN),
    (r"\.(?:lora_B|lora_up|lora\.up|lora_linear_layer\.up)(?:\.[\w-]+)?\.weight", UP),
    (r"\.lora_B(?:\.[\w-]+)?\.bias", UP_BIAS),
    (r"\.alpha", ALPHA),
    (r"\.(diff|diff_b|diff_m)", DIFFERENCE),
)
_KINDS: Final = tuple((re.compile(rf"(.+?){ending}", re.ASCII), kind) for ending, kind in _ENDINGS)
_UNSUPPORTED: Final = (
    (re.compile(r"\.(dora_scale|lora_magnitude_vector)\b"), "a DoRA file"),
    (re.compile(r"\.lokr_"), "a LoKr file"),
    (re.compile(r"\.hada_"), "a LoHa file"),
    (re.compile(r"\.(oft_|boft_)"), "an OFT file"),
    (re.compile(r"\.ia3_|\.(on_input|ia3_l)$"), "an IA3 file"),
    (re.compile(r"\.lora_mid\."), "a Tucker-decomposed LoRA (LoCon) file"),
    (re.compile(r"\.modules_to_save\."), "a PEFT file with whole layers (modules_to_save)"),
    (re.compile(r"^(lora_te\d?_|text_encoder)"), "a LoRA with text encoder layers"),
)
_PREFIXES: Final = (
    "base_model.model.",
    "diffusion_model.",
    "transformer.",
    "model.",
    "module.",
    "pipe.dit.",
    "dit.",
    "unet.",
    "net.",
    "generator.",
    "lora_unet_",
    "lora_transformer_",
    "lycoris_",
)
_WRAPPERS: Final = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PROGRAMS: Final = (
    (r"base_model\.model\.", "PEFT"),
    (r"(transformer|unet)\.", "diffusers"),
    (r"lora_unet_", "kohya or musubi-tuner"),
    (r"lora_transformer_", "OneTrainer"),
    (r"lycoris_", "LyCORIS"),
    (r"(model\.)?diffusion_model\.", "ComfyUI or LightX2V"),
    (r".*\.lora_[AB]\.default\.", "DiffSynth-Studio"),
)


def is_lora_key(key: str) -> bool:
    """True if a tensor's name is one that only LoRAs, supported or not, have."""
    return any(pattern.fullmatch(key) for pattern, _ in _KINDS) or any(
        pattern.search(key) for pattern, _ in _UNSUPPORTED
    )


def unsupported_kind(keys: Iterable[str]) -> tuple[str, str] | None:
    """The kind of a file that is no plain LoRA, such as ``a DoRA file``, and a key that tells it.

    Returns:
        None for a plain LoRA.
    """
    for key in keys:
        for pattern, kind in _UNSUPPORTED:
            if pattern.search(key):
                return kind, key
    return None


def lora_kind(keys: Iterable[str]) -> str | None:
    """The kind of LoRA that has these tensors, in words; None if it is none."""
    keys = list(keys)
    found = unsupported_kind(keys)
    if found is not None:
        return f"{found[0]}, which is not supported"
    return "a LoRA" if any(is_lora_key(key) for key in keys) else None


def programs_of(names: Iterable[str]) -> str:
    """The programs whose spelling a file's names have, the most frequent first."""
    kinds = Counter(
        next((kind for pattern, kind in _PROGRAMS if re.match(pattern, name)), "no prefix")
        for name in names
    )
    return ", ".join(kind for kind, _ in kinds.most_common())


def taken_apart(key: str) -> tuple[str, str, str]:
    """A key's layer without prefixes, what the tensor is ("" if no part of a LoRA), and its kind.

    The kind is that of a difference: ``diff``, ``diff_b`` or ``diff_m``.
    """
    for pattern, kind in _KINDS:
        match = pattern.fullmatch(key)
        if match:
            return without_prefixes(match[1]), kind, match[2] if kind == DIFFERENCE else ""
    return key, "", ""


def without_prefixes(name: str) -> str:
    """A layer's name without the prefixes that programs put before it."""
    name = _WRAPPERS.sub("", name)
    while prefix := next((p for p in _PREFIXES if name.startswith(p)), ""):
        name = name.removeprefix(prefix)
    return name


def spellings(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """The network's layers, and its parameters outside layers, by every name that files use."""
    known: dict[str, str] = {}
    unet = original_names({_layer(parameter) for parameter in shapes})
    for parameter in shapes:
        ours = _layer(parameter)
        for name in (ours, unet.get(ours) or _layer(_original(parameter))):
            known[name] = known[name.replace(".", "_")] = ours
    return known


def _original(parameter: str) -> str:
    """Wan's own name of a parameter; other transformers have diffusers' name alone."""
    try:
        return transformer_to_original(parameter)
    except UserError:
        return parameter


def _layer(parameter: str) -> str:
    return parameter.removesuffix(".weight").removesuffix(".bias")


def parameter_of(
    stored: str, what: str, known: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> str | None:
    """The parameter that a difference is added to.

    Modulation has two names for the same, for two programs: ``X.diff_m``, ``X.modulation.diff``.
    """
    if what == "diff_m":
        return known.get(f"{stored}.modulation") or known.get(f"{stored}_modulation")
    layer = known.get(stored)
    ending = "bias" if what == "diff_b" else "weight"
    for name in (f"{layer}.{ending}", layer):
        if name is not None and name in shapes:
            return name
    return None
