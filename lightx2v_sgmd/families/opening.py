"""Opens a model, whatever family it is of."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.cogvideox.model import NETWORK as COGVIDEOX
from lightx2v_sgmd.families.cogvideox.model import open_cogvideox
from lightx2v_sgmd.families.sd3.model import NETWORK as SD3
from lightx2v_sgmd.families.sd3.model import open_sd3
from lightx2v_sgmd.families.sdxl.model import NETWORK as SDXL
from lightx2v_sgmd.families.sdxl.opening import open_sdxl
from lightx2v_sgmd.families.sources.model_folder import model_folder
from lightx2v_sgmd.families.sources.parts import network_class
from lightx2v_sgmd.families.wan.opening import BUNDLED, WEIGHT_FILES, bundled_teacher, open_wan

__all__ = ["BUNDLED", "LIBRARY_CLASSES", "WEIGHT_FILES", "bundled_teacher", "open_model"]

_EULER: Final = "FlowMatchEulerDiscreteScheduler"
LIBRARY_CLASSES: Final = {
    "Wan": {
        "diffusers": (
            "WanTransformer3DModel",
            "AutoencoderKLWan",
            _EULER,
            "UniPCMultistepScheduler",
            "WanPipeline",
            "WanImageToVideoPipeline",
        ),
        "transformers": ("UMT5EncoderModel", "AutoTokenizer", "CLIPVisionModel"),
    },
    "CogVideoX": {
        "diffusers": (
            COGVIDEOX,
            "AutoencoderKLCogVideoX",
            "CogVideoXDDIMScheduler",
            "CogVideoXPipeline",
        ),
        "transformers": ("T5EncoderModel", "T5Tokenizer"),
    },
    "SD3": {
        "diffusers": (SD3, "AutoencoderKL", _EULER, "StableDiffusion3Pipeline"),
        "transformers": ("CLIPTextModelWithProjection", "T5EncoderModel", "CLIPTokenizer"),
    },
    "SDXL": {
        "diffusers": (SDXL, "AutoencoderKL", "DDIMScheduler", "StableDiffusionXLPipeline"),
        "transformers": ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPTokenizer"),
    },
}
"""The classes of diffusers and transformers that a family needs, its stock pipeline's included."""


def open_model(path: str | Path, base: str | Path | None = None) -> Model:
    """Reads a model's configuration without loading weights.

    Args:
        path: A folder in a layout that a family knows, a hub id, ``sprites``, or a file of a
            network's weights alone; ``families.wan.opening`` has the layouts of Wan. Other families
            are read in diffusers' layout alone.
        base: For such a file: the model that it is a variant of, which gives the configuration, the
            VAE and the text encoder. Default: the folder of the file.

    Raises:
        UserError: the path is a model of no known family, or the model cannot be trusted.
    """
    kind = None if base is not None else network_class(str(model_folder(path)))
    if kind == COGVIDEOX:
        return open_cogvideox(path)
    if kind == SD3:
        return open_sd3(path)
    if kind == SDXL:
        return open_sdxl(path)
    return open_wan(path, base)
