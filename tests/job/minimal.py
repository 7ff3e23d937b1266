"""The smallest job that is complete, and the lines that refuse one."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.system.errors import UserError

MINIMAL = """\
teacher:
  path: sprites
  guidance_scale: 3.0
data:
  prompts: captions.txt
video:
  height: 32
  width: 48
  num_frames: 17
train:
  iterations: 10
output:
  dir: runs/x
"""


def mistakes(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_job(path, overrides)
    return str(caught.value).splitlines()


def mistake(path: Path, *overrides: str) -> str:
    lines = mistakes(path, *overrides)
    assert len(lines) == 1, lines
    return lines[0]
