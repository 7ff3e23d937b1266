"""Errors that are the user's to mend.

House rule: a message is one line that says which key or file, which value, why it will not do and
what would: ``parallel.sequence: 8 does not divide the 12 attention heads of wan2.1-t2v-1.3b; use
1, 2, 3, 4, 6 or 12``. The command line prints it to stderr and exits with 2.
"""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user gave us: a job, a file, an option.

    The message is one line, or one line for each mistake where several were found at once.
    """


class RunError(RuntimeError):
    """What stopped a run from outside: a process that died or hangs, a machine that is gone.

    Nobody's mistake in the job: the message is one line as of a UserError, the exit code is 1.
    """
