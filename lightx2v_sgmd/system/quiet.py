"""Context managers that silence the messages and progress bars of libraries."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_warnings(logger: str) -> Iterator[None]:
    """Mutes warnings of a logger (diffusers calls every choice of a kernel experimental)."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


@contextmanager
def no_logging() -> Iterator[None]:
    """Mutes all messages below an error, for imports of libraries that log while they load."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def no_library_bars() -> Iterator[None]:
    """Silences the progress bars that diffusers and transformers show for every file they load."""
    from lightx2v_sgmd.system.optional_packages import prepare_libraries

    prepare_libraries()
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    shown = [log for log in (of_diffusers, of_transformers) if log.is_progress_bar_enabled()]
    for log in shown:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()
