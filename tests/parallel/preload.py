"""What ranks need, imported once for all of them; see ``ranks``."""

import contextlib
import importlib

for name in (
    "diffusers.models.transformers.transformer_wan",
    "transformers.models.umt5.modeling_umt5",
    "lightx2v_sgmd.parallel.sequence",
    "distill.running.run",
    "deepspeed.runtime.zero.stage3",
):
    with contextlib.suppress(ImportError):  # without DeepSpeed, its tests are skipped
        importlib.import_module(name)
