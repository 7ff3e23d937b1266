"""SGMD distillation of video diffusion models into 4-step students: the library and its public API.

Everything below is loaded on first use, so ``import lightx2v_sgmd`` is quick and pulls in no torch:

- ``load_job(path, overrides)`` reads and checks a job;
- ``distill(job)`` trains a student and returns its run folder;
- ``export(source, format, out)`` writes weights that other programs load;
- ``load_student(path)`` opens exported weights in the engine;
- ``generate(weights, prompts, out)`` writes 4-step videos.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from distill import distill
    from infer import generate, load_student
    from lightx2v_sgmd.job.schema import Job, load_job
    from lightx2v_sgmd.system.errors import UserError
    from weights import export

__version__ = "0.2.0.dev0"

__all__ = ["Job", "UserError", "distill", "export", "generate", "load_job", "load_student"]

_HOMES: Final = {
    "Job": "lightx2v_sgmd.job.schema",
    "UserError": "lightx2v_sgmd.system.errors",
    "distill": "distill",
    "export": "weights",
    "generate": "infer",
    "load_job": "lightx2v_sgmd.job.schema",
    "load_student": "infer",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
