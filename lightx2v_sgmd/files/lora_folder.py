"""The LoRA file of a folder. Imports no PyTorch, so that options can be read without it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

DIFFUSERS_FILE: Final = "pytorch_lora_weights.safetensors"
"""The name that diffusers looks for; names that end in it will do as well."""
PEFT_FILE: Final = "adapter_model.safetensors"
PEFT_CONFIG: Final = "adapter_config.json"


def lora_file_in(folder: Path) -> Path | None:
    """The file that a folder stands for: one that ``export`` or PEFT wrote, or the only one in it.

    An export has its adapters twice, once for PEFT; the file for the other programs holds more.
    """
    files = sorted(folder.glob("*.safetensors"))
    for wanted in (
        [path for path in files if path.name.endswith(DIFFUSERS_FILE)],
        [path for path in files if path.name == PEFT_FILE],
        files,
    ):
        if len(wanted) == 1:
            return wanted[0]
    return None
