"""``lightx2v-sgmd doctor``: reports what this machine has and what it lacks."""

from __future__ import annotations

from lightx2v_sgmd.cli.options import PROG, Json, print_result

EXAMPLES = f"\b\nExample:\n  {PROG} doctor --json"


def doctor_command(as_json: Json = False) -> None:
    """Report what this machine has and what it lacks.

    Each missing thing comes with the command that adds it.
    """
    from lightx2v_sgmd.cli.doctor import checks

    report = checks.run()
    print_result(report.to_dict(), report.text(), as_json)
