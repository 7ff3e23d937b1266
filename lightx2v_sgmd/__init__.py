"""SGMD distillation of video diffusion models into 4-step students: the library and its public API.

Everything below is loaded on first use, so ``import lightx2v_sgmd`` is quick and pulls in no torch:

- ``load_job(path, overrides)`` reads and checks a job;
- ``distill(job)`` trains a student and returns its run folder;
- ``export(source, format, out)`` writes weights that other programs load;
- ``load_student(path)`` opens exported weights in the engine;
- ``generate(weights, prompts, out)`` writes 4-step videos.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lightx2v_sgmd.system.lazy import lazy_names

if TYPE_CHECKING:
    from distill import distill
    from infer import generate, load_student
    from lightx2v_sgmd.job.loading import load_job
    from lightx2v_sgmd.job.schema import Job
    from lightx2v_sgmd.system.errors import UserError
    from weights import export

__version__ = "0.3.0.dev0"

__all__ = ["Job", "UserError", "distill", "export", "generate", "load_job", "load_student"]

_HOMES: Final = {
    "Job": "lightx2v_sgmd.job.schema",
    "UserError": "lightx2v_sgmd.system.errors",
    "distill": "distill",
    "export": "weights",
    "generate": "infer",
    "load_job": "lightx2v_sgmd.job.loading",
    "load_student": "infer",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES, globals())
