"""Fixtures that several folders of tests use."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import make_tiny_wan


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny Wan model; not to be written to."""
    return make_tiny_wan(tmp_path_factory.mktemp("teacher") / "tiny")
