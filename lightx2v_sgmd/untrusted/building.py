"""Builds networks from checked configurations, with the arguments that ``configs.py`` knows alone.

transformers takes any key of a configuration as an attribute; some keys name files, adapters or
kernels that it would fetch. So only keys that have limits in ``configs.py`` are passed on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from lightx2v_sgmd.system.errors import UserError, named_line
from lightx2v_sgmd.system.optional_packages import prepare_libraries
from lightx2v_sgmd.untrusted.configs import TEXT_ENCODER, TRANSFORMER, VAE
from lightx2v_sgmd.untrusted.fields import Field


def build_transformer(config: Mapping[str, Any]) -> Any:
    """Builds a ``WanTransformer3DModel`` with random weights, or none on the meta device.

    Raises:
        UserError: the configuration contradicts itself.
    """
    prepare_libraries()
    from diffusers import WanTransformer3DModel

    return build_checked(WanTransformer3DModel.from_config, config, TRANSFORMER, "transformer")


def build_vae(config: Mapping[str, Any]) -> Any:
    """Builds an ``AutoencoderKLWan``; raises as ``build_transformer``."""
    prepare_libraries()
    from diffusers import AutoencoderKLWan

    return build_checked(AutoencoderKLWan.from_config, config, VAE, "vae")


def build_text_encoder(config: Mapping[str, Any]) -> Any:
    """Builds a ``UMT5EncoderModel``; raises as ``build_transformer``."""
    prepare_libraries()
    from transformers import UMT5Config, UMT5EncoderModel

    def build(known: dict[str, Any]) -> Any:
        return UMT5EncoderModel(UMT5Config(**known))

    return build_checked(build, config, TEXT_ENCODER, "text_encoder")


def build_t5(config: Mapping[str, Any]) -> Any:
    """Builds a ``T5EncoderModel``; raises as ``build_transformer``."""
    prepare_libraries()
    from transformers import T5Config, T5EncoderModel

    def build(known: dict[str, Any]) -> Any:
        return T5EncoderModel(T5Config(**known))

    return build_checked(build, config, TEXT_ENCODER, "text encoder")


def build_checked(
    build: Callable[[dict[str, Any]], Any],
    config: Mapping[str, Any],
    fields: Mapping[str, Field],
    part: str,
) -> Any:
    """Builds a network with those arguments of a configuration that have limits.

    Args:
        build: Function that builds it from its arguments.
        config: The configuration; a check of its values came before.
        fields: The limits, by argument.
        part: The network, for the message.

    Raises:
        UserError: the configuration contradicts itself.
    """
    known = {key: value for key, value in config.items() if key in fields}
    return _built(build, known, part)


def _built(build: Callable[[dict[str, Any]], Any], config: dict[str, Any], part: str) -> Any:
    try:
        return build(config)
    except Exception as error:  # what the libraries do not check themselves can raise anything
        raise UserError(
            f"the {part} cannot be built from its config.json ({named_line(error)}); "
            "give the config.json that came with the weights"
        ) from error


_VISION_TEXTS: Final = ("hidden_act", "activation_function", "model_type")


def vision_config(config: Mapping[str, Any]) -> Any:
    """Builds the configuration of a vision encoder that ``check_vision_encoder`` accepted.

    Raises:
        UserError: the configuration contradicts itself.
    """
    prepare_libraries()
    from transformers import AutoConfig

    known = _plain(config)
    kind = known.pop("model_type")

    def build(arguments: dict[str, Any]) -> Any:
        return AutoConfig.for_model(kind, **arguments)

    return _built(build, known, "vision encoder")


def empty_vision_encoder(config: Any) -> Any:
    """Builds the model of a ``vision_config`` without weights, on the meta device."""
    prepare_libraries()
    import torch
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    with torch.device("meta"):
        return _built(lambda _: MODEL_MAPPING[type(config)](config), {}, "vision encoder")


def build_vision_encoder(config: Any, state: dict[str, Any]) -> Any:
    """Builds the model of a ``vision_config`` from weights that were read; fetches nothing.

    Raises:
        UserError: the weights do not fit, or a layer lacks some.
    """
    prepare_libraries()
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    def build(_: dict[str, Any]) -> Any:
        loaded = MODEL_MAPPING[type(config)].from_pretrained(
            None, config=config, state_dict=state, output_loading_info=True, trust_remote_code=False
        )
        return loaded

    model, about = _built(build, {}, "vision encoder")
    inner = ("text_model.", "mask_decoder.", "prompt_encoder.")  # parts that are not used
    missing = sorted(k for k in about["missing_keys"] if "layer" in k and not k.startswith(inner))
    if missing:
        raise UserError(
            f"the vision encoder's weights lack {missing[0]} and {len(missing) - 1} more; "
            "give the weights that go with its config.json"
        )
    return model


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a configuration's sizes and switches, without names of files or kernels."""
    plain: dict[str, Any] = {}
    for key, value in config.items():
        if key.startswith("_") or key in ("id2label", "label2id", "quantization_config"):
            continue
        if isinstance(value, dict):
            plain[key] = _plain(value)
        elif value is None or isinstance(value, bool | int | float) or key in _VISION_TEXTS:
            plain[key] = value
        elif isinstance(value, list) and all(isinstance(x, bool | int | float) for x in value):
            plain[key] = value
    return plain
