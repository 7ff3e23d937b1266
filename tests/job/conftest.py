from __future__ import annotations

from pathlib import Path

import pytest

from tests.job.minimal import MINIMAL


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A minimal job's file."""
    path = tmp_path / "job.yaml"
    path.write_text(MINIMAL)
    return path
