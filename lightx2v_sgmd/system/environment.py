"""Checks of environment variables that launchers and libraries read as numbers."""

from __future__ import annotations

import os
from typing import Final

from lightx2v_sgmd.system.errors import UserError, short_line

_NUMBERS: Final = (
    "RANK",
    "LOCAL_RANK",
    "GROUP_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_PORT",
)
_SECONDS: Final = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")
"""Variables of huggingface_hub, which reads them when it is imported."""
_JOINING: Final = ("RANK", "MASTER_ADDR", "MASTER_PORT")


def check_environment() -> None:
    """Raises if a variable that must be a number is none, or if a launcher's variables disagree.

    Raises:
        UserError: names the variable, and says how to remove it.
    """
    for name in _NUMBERS:
        value = os.environ.get(name)
        if value is not None and not (value.isascii() and value.isdecimal() and len(value) < 10):
            raise UserError(
                f"{name}: {short_line(repr(value), 60)} in the environment is not a whole number; "
                f"start with torchrun, or unset {name}"
            )
    for name in _SECONDS:
        value = os.environ.get(name)
        if value and not (value.isascii() and value.isdecimal() and len(value) < 10):
            raise UserError(
                f"{name}: {short_line(repr(value), 60)} in the environment is not a whole number "
                f"of seconds; set it to 10, or unset {name}"
            )
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if "RANK" not in os.environ or size == 1:
        return
    if not int(os.environ["RANK"]) < size:
        raise UserError(
            f"RANK: {os.environ['RANK']} in the environment is not below WORLD_SIZE, {size}; "
            "start with torchrun, or unset both"
        )


def check_joining() -> None:
    """Raises if this is one of several processes and has no address for joining the others.

    Raises:
        UserError: names the variable.
    """
    for name in _JOINING:
        if not os.environ.get(name):
            raise UserError(
                f"{name}: is missing from the environment, but the other variables of a launcher "
                "are there; start with torchrun, or unset RANK and WORLD_SIZE"
            )
