"""A server's application without a worker, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fastapi.testclient import TestClient

    from infer.serve.backend import Backend


@pytest.fixture
def backend(tmp_path: Path) -> Backend:
    from tests.infer.serve.standin import make_backend

    return make_backend(tmp_path / "data", sync_limit_s=0.05, queue_limit=50)


@pytest.fixture
def client(backend: Backend) -> Iterator[TestClient]:
    from tests.infer.serve.api.clients import client_of

    with client_of(backend) as client:
        yield client
