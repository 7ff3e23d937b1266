"""The application that trains students: ``trainer.py`` has the loop."""

from __future__ import annotations

from pathlib import Path

from lightx2v_sgmd.job.schema import Job

__all__ = ["distill"]


def distill(job: Job, *, resume: str = "auto", nproc: int = 1, quiet: bool = False) -> Path:
    """Distils a student.

    Runs in this process, in ``nproc`` new ones, or as one of those that a launcher (``torchrun``,
    ``deepspeed``) has started.

    Args:
        job: The job to train.
        resume: ``auto`` goes on from the newest whole checkpoint in the job's ``output.dir``, if
            there is one; ``never`` refuses a folder that holds a run; a path goes on from that
            run or checkpoint.
        nproc: Processes to start on this machine.
        quiet: Show nothing.

    Returns:
        The run folder: metrics, samples and checkpoints.

    Raises:
        UserError: the job or this machine does not allow it; the message says what to change.
        KeyboardInterrupt: it was asked to stop (Ctrl-C, SIGTERM, SIGUSR1), and has saved a
            checkpoint.
        RunError: a process has died, hangs or never came; names it.
    """
    from distill.running.launch import launch

    return launch(job, resume, nproc, quiet)
