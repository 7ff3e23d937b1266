"""ODE pairs and vision encoders that several tests train with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.pairs import collect, make_encoder


@pytest.fixture(scope="session")
def pairs(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    collect(tiny_teacher, folder, folder / "pairs")
    return folder / "pairs"


@pytest.fixture(scope="session", params=["sam", "dinov2"])
def encoder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(request.param, tmp_path_factory.mktemp(request.param))
