"""Opens SDXL: reads a model's configuration without loading weights."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lightx2v_sgmd.families.sdxl import published
from lightx2v_sgmd.families.sdxl.model import EMPTY_IS_ZERO, SDXLModel
from lightx2v_sgmd.families.sources.hub_configs import known_transformer_config
from lightx2v_sgmd.families.sources.model_folder import model_folder, read_video_facts
from lightx2v_sgmd.families.sources.parts import (
    INDEX,
    UNET,
    diffusers_source,
    read_json,
    without_private,
)
from lightx2v_sgmd.files.manifest import VideoFacts
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted import sdxl as untrusted
from lightx2v_sgmd.untrusted.sd3 import check_clip

_CHECKS: Final = {
    "transformer": untrusted.check_unet,
    "vae": untrusted.check_vae,
    "text_encoder": check_clip,
    "text_encoder_2": check_clip,
    "scheduler": untrusted.check_scheduler,
}


def open_sdxl(path: str | Path) -> SDXLModel:
    """Reads a model's configuration without loading weights.

    Args:
        path: A folder in diffusers' layout, or a hub id
            (``stabilityai/stable-diffusion-xl-base-1.0``).

    Raises:
        UserError: the path is not an SDXL model, or cannot be trusted.
    """
    try:
        source = diffusers_source(str(model_folder(path)), _CHECKS, UNET)
        root = Path(source.root)
        video, negative = read_video_facts(root)
        known = None if root.is_dir() else known_transformer_config(source.root)
        if known is not None:  # nothing is downloaded to look at a job
            config, vae = known, dict(published.VAE_CONFIG)
            scheduler, index = dict(published.SCHEDULER_CONFIG), {}
            video = VideoFacts(published.SIDE, published.SIDE, 1, 1.0)
        else:
            config = without_private(source.config("transformer") or {})
            vae = without_private(source.config("vae") or {})
            scheduler = without_private(source.scheduler())
            index = read_json(root / INDEX) if root.is_dir() else source.model_index()
        empty_is_zero = index.get(EMPTY_IS_ZERO, True)
        if not isinstance(empty_is_zero, bool):
            raise UserError(
                f"{path}: {EMPTY_IS_ZERO} in {INDEX} is not true or false; copy the model's own "
                "file"
            )
        if config["in_channels"] != vae.get("latent_channels", 4):
            raise UserError(
                f"{path}: the U-Net takes {config['in_channels']} channels and the VAE gives "
                f"{vae.get('latent_channels', 4)}; copy the model again"
            )
    except UserError as error:
        raise UserError(f"teacher.path: {error}") from error
    return SDXLModel(
        str(path),
        config,
        vae,
        source,
        video,
        negative or "",
        scheduler=scheduler,
        empty_is_zero=empty_is_zero,
    )
