"""The sizes of a network that each program fixes in its code, and what an export then cannot run.

A program that takes a size from the weights or from a configuration runs any size; one that has it
in its code fails on another, or runs and is silently wrong. The sizes are those of all published
Wan models, so this concerns small models such as the bundled one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

PATCH: Final = (1, 2, 2)
TEXT_WIDTH: Final = 4096


@dataclass(frozen=True)
class Program:
    """A program that runs exports, and the sizes that are fixed in its code.

    Attributes:
        name: The name as its authors write it.
        fixed: The values that it runs, by key of diffusers' configuration of the network.
    """

    name: str
    fixed: Mapping[str, tuple[Any, ...]]


# ComfyUI (comfy/model_detection.py) counts layers and reads widths from the weights, and takes the
# rest from here; the number of heads is the width over 128. Its text encoder and VAE are Wan's own.
# 48 latent channels are those of Wan2.2-TI2V-5B; 1280 is the width of an image's rows in CLIP.
COMFYUI: Final = Program(
    "ComfyUI",
    {
        "patch_size": (PATCH,),
        "attention_head_dim": (128,),
        "text_dim": (TEXT_WIDTH,),
        "freq_dim": (256,),
        "out_channels": (16, 48),
        "image_dim": (None, 1280),
    },
)
# LightX2V (models/networks/wan/infer/post_infer.py, models/schedulers/wan/scheduler.py): the patch;
# its text encoder, CLIP and VAE are Wan's own. Heads and time embedding follow the configuration.
# Its runners for few steps (``wan_distill_runner.py``) are for the latents of Wan2.1's VAE.
LIGHTX2V: Final = Program(
    "LightX2V",
    {
        "patch_size": (PATCH,),
        "text_dim": (TEXT_WIDTH,),
        "out_channels": (16,),
        "image_dim": (None, 1280),
    },
)

_WORDS: Final = {
    "patch_size": "the patch",
    "attention_head_dim": "the width of a head",
    "text_dim": "the width of the text embeddings",
    "freq_dim": "the width of the time embedding",
    "out_channels": "the number of latent channels",
    "image_dim": "the width of an image's rows",
}


def differing_sizes(program: Program, config: Mapping[str, Any]) -> list[str]:
    """Lists the sizes of a network that a program does not run; empty if it runs the network.

    Args:
        program: The program.
        config: diffusers' configuration of the network.
    """
    found = []
    for key, known in program.fixed.items():
        own: Any = config.get(key)
        if key == "out_channels":
            own = own or config["in_channels"]
        own = tuple(own) if isinstance(known[0], tuple) else own
        if own not in known:
            wanted = " or ".join(_text(size) for size in known if size is not None)
            found.append(f"{_WORDS[key]} is {_text(own)}, not {wanted}")
    return found


def refusal(program: Program, config: Mapping[str, Any]) -> str | None:
    """A sentence that says why a program does not run a student; None if it runs it.

    A program may run the same network in the teacher's many steps, as LightX2V runs Wan2.2-TI2V-5B.
    """
    differing = differing_sizes(program, config)
    if not differing:
        return None
    return (
        f"{program.name} does not run this student: its code fixes sizes of Wan2.1 "
        f"({'; '.join(differing)})"
    )


def section(program: Program, config: Mapping[str, Any], text: str) -> str:
    """A card's section on a program, or in its place the reason why the export does not run there.

    Args:
        program: The program.
        config: diffusers' configuration of the network.
        text: The section, with its heading in the first line.
    """
    reason = refusal(program, config)
    if reason is None:
        return text
    heading = text.partition("\n")[0]
    return f"{heading}\n\n{reason}. Run it in lightx2v-sgmd or diffusers.\n"


def _text(size: Any) -> str:
    return "x".join(map(str, size)) if isinstance(size, tuple) else str(size)
