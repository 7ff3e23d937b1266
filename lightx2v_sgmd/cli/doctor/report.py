"""The findings of ``lightx2v-sgmd doctor``, as JSON and as a table."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import Any, Literal

CheckState = Literal["ok", "missing", "broken", "info"]


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: The thing that was checked.
        state: ``ok``; ``missing``, which limits some features; ``broken``, which stops
            the main job; ``info``.
        detail: The result of the check.
        remedy: The command that corrects it, or "".
    """

    name: str
    state: CheckState
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class DoctorReport:
    """All findings, and the kernel that ``generate`` would choose."""

    checks: tuple[Check, ...]
    attention: str

    @property
    def ok(self) -> bool:
        """True if nothing stops the main job: train, export and generate on this machine."""
        return all(check.state != "broken" for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values, for ``--json``."""
        return {
            "ok": self.ok,
            "attention": self.attention,
            "checks": [asdict(check) for check in self.checks],
        }

    def text(self) -> str:
        """The report as a table."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        colours = {"ok": "green", "missing": "yellow", "broken": "red", "info": "cyan"}
        table = Table(box=None, pad_edge=False)
        for heading in ("", "", ""):
            table.add_column(heading, overflow="fold")
        for check in self.checks:
            detail = check.detail + (f"\n  add it: {check.remedy}" if check.remedy else "")
            state = Text(check.state, style=colours[check.state])
            table.add_row(Text(check.name), state, Text(detail))
        console = Console(width=None if sys.stdout.isatty() else 120)
        with console.capture() as capture:
            console.print(table)
        verdict = "ready" if self.ok else "not ready: see what is broken above"
        last = f"generate would choose attention {self.attention}; {verdict}"
        return f"{capture.get().strip()}\n\n{last}"


def pip(package: str, command: str = "install") -> str:
    """The command that adds a Python package to this environment, or removes it."""
    return f"{sys.executable} -m pip {command} {package}"
