"""What ranks need, imported once for all of them; see ``ranks``."""

import torch
from diffusers import WanTransformer3DModel

import lightx2v_sgmd.parallel.sequence

__all__ = ["WanTransformer3DModel", "lightx2v_sgmd", "torch"]
