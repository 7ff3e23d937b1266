"""Opens a Wan model in every layout: reads its configuration, and no weights.

A model is a folder in one of two layouts, that of ``Wan2.1-T2V-*-Diffusers`` (``transformer/``,
``vae/``, ``text_encoder/``, ``tokenizer/``) or that of the original release (``config.json``,
``diffusion_pytorch_model*``, ``Wan2.1_VAE.pth``, ``models_t5_umt5-xxl-enc-bf16.pth``,
``google/umt5-xxl/``), a hub id of either, one file of a transformer's weights together with such a
model, or a teacher that ships with this package: ``sprites``, or ``motions``, a transformer alone
that has its other parts from ``sprites``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.families.sources.hub_configs import known_transformer_config
from lightx2v_sgmd.families.sources.model_folder import model_folder, read_video_facts
from lightx2v_sgmd.families.sources.parts import Source, without_private
from lightx2v_sgmd.families.wan import original as wan_original
from lightx2v_sgmd.families.wan.model import WanModel
from lightx2v_sgmd.families.wan.sampling import (
    IMAGE_NEGATIVE_PROMPT,
    WAN22_LATENT_CHANNELS,
)
from lightx2v_sgmd.families.wan.sources import (
    check_weights_of_experts,
    find_source,
    is_whole_model,
    low_noise_source,
    network_in,
    networks_of_experts,
)
from lightx2v_sgmd.system.errors import UserError

BUNDLED: Final = "sprites"
SHARING: Final = ("motions",)
"""Shipped teachers that are a transformer alone, over the other parts of ``BUNDLED``."""
WEIGHT_FILES: Final = (".safetensors", ".pth", ".pt")


def bundled_teacher() -> Path:
    """The folder of the small teacher that ships with the package."""
    return Path(__file__).resolve().parents[2] / "assets" / BUNDLED


def _shares_parts(folder: Path) -> bool:
    assets = bundled_teacher().parent
    return folder.name in SHARING and folder.resolve().parent == assets


def open_wan(path: str | Path, base: str | Path | None = None) -> WanModel:
    """Reads a model's configuration without loading weights.

    Args:
        path: A folder in diffusers' or the original layout, a hub id of either
            (``Wan-AI/Wan2.1-T2V-14B-Diffusers``), the name of a shipped teacher, or a
            ``.safetensors`` or ``.pth`` file of a transformer alone, in either naming.
            A folder with a transformer's files alone counts as such a file.
        base: For such a file: the model (anything but a file) that it is a variant of, which gives
            the configuration (unless the folder has its own), the VAE and the text encoder.
            Default: the folder of the file.

    Raises:
        UserError: the path is not a Wan text-to-video model, or the model cannot be trusted.
    """
    file = Path(path)
    try:
        if file.suffix in WEIGHT_FILES and file.is_file():
            return _open_file(file, base)
        if base is not None:
            if not file.is_dir() or is_whole_model(file):
                raise UserError(f"{path} is not a file of weights; leave out teacher.base")
            networks = networks_of_experts(file)
            if networks is not None:
                return _open_experts(file, networks, base)
            return _open_network_folder(file, base)
        model = _open_whole(path)
        if model.low_noise is not None:
            check_weights_of_experts(model.source)
        return model
    except UserError as error:
        raise UserError(f"teacher.path: {error}") from error


def _open_whole(path: str | Path) -> WanModel:
    """Opens a model with all its parts; weights of its networks may be missing."""
    folder = model_folder(path)
    if _shares_parts(folder):
        return _open_over_bundled(folder)
    source, config = find_source(str(folder))
    video, negative = read_video_facts(Path(source.root))
    model = replace(_opened(source, config), video=video)
    if config.get("image_dim") is not None:
        negative = negative or IMAGE_NEGATIVE_PROMPT
    if negative is not None:
        model = replace(model, negative_prompt=negative)
    second = low_noise_source(source, config)
    if second is None:
        return model
    low_noise, boundary = second
    return replace(model, low_noise=replace(model, source=low_noise), boundary=boundary)


def _open_over_bundled(folder: Path) -> WanModel:
    model = _open_network_folder(folder / "transformer", bundled_teacher())
    video, negative = read_video_facts(folder)
    negative = model.negative_prompt if negative is None else negative
    return replace(model, path=str(folder), video=video, negative_prompt=negative)


def _open_file(file: Path, base: str | Path | None) -> WanModel:
    try:
        model = open_wan(file.parent if base is None else base)
    except UserError as error:
        reason = str(error).removeprefix("teacher.path: ")
        raise UserError(
            f"{file} has a transformer alone; set teacher.base to the model that it is a variant "
            f"of, for its VAE and text encoder ({reason})"
        ) from error
    _refuse_half(file, model)
    source = replace(model.source, transformer=(file,))
    return replace(model, path=str(file), source=source)


def _open_network_folder(folder: Path, base: str | Path) -> WanModel:
    files, config = network_in(folder)
    model = open_wan(base)
    _refuse_half(folder, model)
    source = replace(model.source, transformer=tuple(files))
    config = _with_image_rows(config, model) or model.transformer_config
    return replace(model, path=str(folder), source=source, transformer_config=config)


def _with_image_rows(config: dict[str, Any] | None, base: WanModel) -> dict[str, Any] | None:
    """A network's configuration, with the attention to CLIP's rows that its base has.

    The original ``config.json`` does not name it.
    """
    own = base.transformer_config
    if config is None or config["in_channels"] != own["in_channels"]:
        return config
    named = {key: own.get(key) for key in ("image_dim", "added_kv_proj_dim")}
    return config | {key: value for key, value in named.items() if config.get(key) is None}


def _open_experts(
    folder: Path, networks: Sequence[tuple[list[Path], dict[str, Any] | None]], base: str | Path
) -> WanModel:
    """Opens two experts without the model's other parts; see ``networks_of_experts``."""
    model = _open_whole(base)
    if model.low_noise is None:
        raise UserError(
            f"{folder} has two experts, and {model.path} has one network; give the model that the "
            "experts are a variant of"
        )
    opened = []
    for (files, config), own in zip(networks, (model, model.low_noise), strict=True):
        source = replace(own.source, transformer=tuple(files))
        changed = own.transformer_config if config is None else config
        opened.append(replace(own, path=str(folder), source=source, transformer_config=changed))
    high_noise, low_noise = opened
    if high_noise.transformer_config != low_noise.transformer_config:
        raise UserError(f"{folder}: its two experts have two shapes; export them again")
    return replace(high_noise, low_noise=low_noise)


def _refuse_half(path: Path, base: WanModel) -> None:
    if base.low_noise is not None:
        raise UserError(
            f"{path} has one transformer, and {base.path} needs two experts; give a folder with "
            "both of them"
        )


def _opened(source: Source, config: dict[str, Any]) -> WanModel:
    if source.layout == "original":
        return WanModel(
            source.root,
            config,
            dict(wan_original.VAE_CONFIG),
            source,
            text_encoder_config=dict(wan_original.TEXT_ENCODER_CONFIG),
        )
    if not Path(source.root).is_dir() and known_transformer_config(source.root) is not None:
        # The VAEs of the models on the hub are known: nothing is downloaded to look at a job.
        newer = config["out_channels"] == WAN22_LATENT_CHANNELS
        published = wan_original.VAE_OF_WAN22_CONFIG if newer else wan_original.VAE_CONFIG
        return WanModel(source.root, config, dict(published), source, holds_first_frame=newer)
    vae = source.config("vae") or {}
    if vae.get("_class_name") != "AutoencoderKLWan":
        raise UserError(
            f"{source.root}: vae/config.json describes a {vae.get('_class_name')}, not an "
            "AutoencoderKLWan; copy the model's own"
        )
    vae = {"num_res_blocks": 2, **without_private(vae)}
    model = WanModel(source.root, config, vae, source)
    if model.latent_channels != int(vae.get("z_dim", 16)):
        raise UserError(
            f"{source.root}: the transformer gives {model.latent_channels} channels and the VAE "
            f"decodes {vae.get('z_dim', 16)}; give the two of one model"
        )
    return replace(model, holds_first_frame=bool(source.model_index().get("expand_timesteps")))
