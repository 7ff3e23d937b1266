"""A trace is written when its block has ended, and replaces nothing."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from infer.batch.profiling import profiled
from lightx2v_sgmd.system.errors import UserError


def test_a_trace_names_what_ran(tmp_path: Path) -> None:
    path = tmp_path / "trace.json.gz"
    with profiled(path):
        torch.ones(3).cumsum(0)
        assert not path.exists()
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert any(event.get("name") == "aten::cumsum" for event in events)
    assert list(tmp_path.iterdir()) == [path]


def test_no_path_records_nothing(tmp_path: Path) -> None:
    with profiled(None):
        pass
    assert not list(tmp_path.iterdir())


def test_a_file_that_appeared_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with pytest.raises(UserError, match="appeared meanwhile and is not replaced"):
        with profiled(path):
            path.write_text("mine")
    assert path.read_text() == "mine"
