"""Warnings of a run: signs that its student gets worse, each said once.

Each says in a line what it means and what to do. docs/when-to-stop.md says more, and shows the
runs in which it happens.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.parallel import FAKE_SCORE
from lightx2v_sgmd.system.console import note
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted.json_text import read_log

WINDOW: Final = 25
"""Iterations whose mean is compared: a single one is noise."""
GROWTH: Final = 2.0
"""Times the first window's mean from which a loss term has grown."""
GRADIENT_GROWTH: Final = 1.2
"""Times the first window's mean from which the fake score's gradient has grown.

A fake score that keeps up has a level gradient, even where its loss grows with what the student
makes.
"""
DRIFT: Final = 0.15
"""The relative difference from the teacher's samples from which brightness has drifted."""
LEAST_MOTION: Final = 0.6
"""The part of the teacher's motion below which the samples move too little."""
_FAKE_TERMS: Final = ("rc", "fake")
"""Names of the fake score's loss."""
_KEYS: Final = ("step", "nr", "grad_norm", *_FAKE_TERMS, "samples", "teacher_samples", "warnings")
_GRADIENT: Final = "gradient"
_EARLIER: Final = "export an earlier checkpoint, and lower"
"""The first words of what most warnings tell the user to do."""


class RunWarnings:
    """Looks at each line of ``metrics.jsonl``, and says what is new.

    Args:
        job: The job.
        quiet: Do not print the warnings.
    """

    def __init__(self, job: Job, quiet: bool = True) -> None:
        self._quiet = quiet
        self._later: dict[str, str] = {}
        self._warmup = job.train.warmup
        self._said: set[str] = set()
        self._recent: dict[str, list[float]] = {}
        self._first: dict[str, float] = {}
        self._samples: list[Mapping[str, float]] = []

    def replay(self, log: Path) -> None:
        """Looks at the lines of an earlier part of the run, and says nothing.

        A log that cannot be read leaves it as it was.
        """
        try:
            lines = read_log(log, _KEYS)
        except (UserError, ValueError):
            return
        quiet, self._quiet = self._quiet, True
        for line in lines:
            self.losses(line)
            self.samples(line)
        self._said = {name for line in lines for name in line.get("warnings", {})}
        self._quiet = quiet

    def losses(self, line: Mapping[str, Any], later: bool = False) -> dict[str, str]:
        """The new warnings of an iteration's loss terms, by name.

        Args:
            line: The iteration's line of ``metrics.jsonl``.
            later: Leave them for the next call of ``samples``, which then returns them too.
        """
        if line["step"] <= self._warmup:
            return {}
        norm = line.get("grad_norm", {}).get(FAKE_SCORE)
        values = {**line, _GRADIENT: norm}
        for key in (_GRADIENT, "nr", *_FAKE_TERMS):
            if isinstance(values.get(key), int | float):
                recent = self._recent.setdefault(key, [])
                recent.append(abs(values[key]))
                if len(recent) == WINDOW:
                    self._first.setdefault(key, sum(recent) / WINDOW)
                del recent[:-WINDOW]
        found = {}
        lags = (self._growth(_GRADIENT) or 0) > GRADIENT_GROWTH
        for key in _FAKE_TERMS:
            if lags and (times := self._growth(key) or 0) > GROWTH:
                found["fake score"] = (
                    f"its loss {key} is {times:.1f} times that of the first iterations, and its "
                    "gradient grows: the fake score lags behind the student, which then learns "
                    "wrong; raise fake_score.optimizer.lr, or lower student.optimizer.lr"
                )
        if lags and (times := self._growth("nr") or 0) > GROWTH:
            found["nr"] = (
                f"the term nr is {times:.1f} times that of the first iterations, and the fake "
                "score's gradient grows: the student runs ahead of the fake score; raise "
                "fake_score.optimizer.lr, or lower student.optimizer.lr and then method.lambda"
            )
        new = self._new(found)
        self._later = new if later else {}
        return {} if later else new

    def samples(self, line: Mapping[str, Any]) -> dict[str, str]:
        """The new warnings of a sample step's measures beside the teacher's, by name."""
        ours, theirs = line.get("samples"), line.get("teacher_samples")
        later, self._later = self._later, {}
        if not ours or not theirs:
            return later
        parts = {key: ours[key] / theirs[key] for key in theirs if key in ours and theirs[key] > 0}
        before = self._samples[-1] if self._samples else {}
        self._samples = [parts]
        found = {}
        for key in ("brightness", "saturation"):
            now, then = abs(parts.get(key, 1) - 1), abs(before.get(key, 1) - 1)
            if now > DRIFT and then > DRIFT and now >= then:
                sign = "+" if parts[key] > 1 else "-"
                found[key] = (
                    f"the samples' {key} is {ours[key]:.3g} and the teacher's {theirs[key]:.3g} "
                    f"({sign}{100 * now:.0f} %), and comes no nearer: the student drifts away "
                    f"from the teacher; {_EARLIER} teacher.guidance_scale or student.optimizer.lr"
                )
        now, then = parts.get("optflow", 1), before.get("optflow", 1)
        if now < LEAST_MOTION and then < LEAST_MOTION and now <= then:
            found["motion"] = (
                f"the samples move {ours['optflow']:.3g} pixels per frame, {100 * now:.0f} % of "
                f"the teacher's {theirs['optflow']:.3g}, and no more than before: the student "
                f"learns to move less; {_EARLIER} student.optimizer.lr or sgmd's method.lambda"
            )
        return later | self._new(found)

    def _mean(self, key: str) -> float:
        recent = self._recent.get(key, [])
        return sum(recent) / max(1, len(recent))

    def _growth(self, key: str) -> float | None:
        """The mean of the last iterations over that of the first; None before there are enough."""
        first = self._first.get(key)
        return None if not first else self._mean(key) / first

    def _new(self, found: dict[str, str]) -> dict[str, str]:
        new = {name: text for name, text in found.items() if name not in self._said}
        self._said |= set(new)
        for name, text in new.items():
            note(f"warning, {name}: {text}", self._quiet)
        return new
