"""A trace of a run, for chrome://tracing or ui.perfetto.dev."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from lightx2v_sgmd.outputs import appearing, clean_temporaries
from lightx2v_sgmd.system.errors import UserError


@contextmanager
def profiled(path: Path | None) -> Iterator[None]:
    """Records what PyTorch does in a block, on the CPU and on a GPU, and writes it by rename.

    Args:
        path: File of the trace; ``.gz`` at its end compresses it; None records nothing.
    """
    if path is None:
        yield
        return
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as recorded:
        yield
    clean_temporaries(path.parent, path.name)
    try:
        with appearing(path, replace=False, suffix="".join(path.suffixes[-2:])) as temporary:
            recorded.export_chrome_trace(str(temporary))
    except FileExistsError as error:
        raise UserError(
            f"--profile: {path} appeared meanwhile and is not replaced; name a new file"
        ) from error
