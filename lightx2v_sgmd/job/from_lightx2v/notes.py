"""Says which keys of LightX2V's trainer no key of the job stands for, and why."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

from lightx2v_sgmd.job.from_lightx2v.keys import (
    COMMIT,
    MAPPED,
    unmapped,
)
from lightx2v_sgmd.job.from_lightx2v.values import Theirs

_ROLLOUT: Final = (
    "there the fake score is trained on a rollout of its own, here on the student's, which costs "
    "less; --set method.fake_score_rollout=fresh does as there"
)


@dataclass(frozen=True)
class Note:
    """A key of theirs that no key of the job stands for, or not wholly.

    Attributes:
        key: Their key.
        value: The key's value.
        where: ``FILE:LINE``.
        reason: Why it is not mapped.
        differs: True if the student differs from one that their trainer makes because of it.
    """

    key: str
    value: Any
    where: str
    reason: str
    differs: bool

    def __str__(self) -> str:
        return f"{self.key} is {self.value!r}: {self.reason}"


def notes_on(theirs: Theirs) -> list[Note]:
    """The keys of their file that are not mapped, or not wholly, in its order."""
    notes = []
    for key, value in theirs.values.items():
        if key == "training.method" and value == "video_sgmd":
            notes.append(Note(key, value, theirs.where(key).rpartition(" ")[0], _ROLLOUT, True))
        if key in MAPPED or key == "config_path":
            continue
        entry = unmapped(key)
        where = theirs.where(key).rpartition(" ")[0]
        if entry is None:
            near = get_close_matches(key, MAPPED, n=1, cutoff=0.8)
            hint = f"; did you mean {near[0]}?" if near else ""
            reason = f"LightX2V's trainer at {COMMIT} reads no such key{hint}"
            notes.append(Note(key, value, where, reason, differs=True))
        else:
            notes.append(Note(key, value, where, entry.reason, entry.differs(value)))
    return notes
