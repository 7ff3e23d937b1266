"""Imports once for all ranks what they need; see ``ranks``.

A rank that imports these itself takes some seconds more.
"""

import contextlib
import gc
import importlib

for name in (
    "diffusers.models.autoencoders.autoencoder_kl_wan",
    "diffusers.models.transformers.transformer_wan",
    "transformers.models.umt5.modeling_umt5",
    "lightx2v_sgmd.parallel.sequence",
    "lightx2v_sgmd.parallel.zero3.strategy",
    "distill.running.run",
    "imageio.v3",
    "torch.utils.cpp_extension",
    "torch.utils.tensorboard",
    "deepspeed.runtime.zero.stage3",
):
    with contextlib.suppress(ImportError):  # without DeepSpeed, its tests are skipped
        importlib.import_module(name)

# Collections in a rank then look at what the rank makes, not at a million objects of libraries.
gc.collect()
gc.freeze()
