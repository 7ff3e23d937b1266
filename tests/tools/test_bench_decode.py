from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from infer.vae.decoder import DecodeSettings
from lightx2v_sgmd.families.wan.opening import open_wan
from tools.benchmarks import bench_decode


def test_turns_are_compared_in_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 6.0, 6.0, 8.0, 8.0, 9.0, 9.0, 14.0])  # A 6, B 2; B 1, A 5
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    vae = open_wan("sprites").load_vae()
    found = bench_decode.measure(vae, torch.randn(1, 16, 3, 4, 4), DecodeSettings(), 2, "ABBA")
    assert found["seconds"] == {"diffusers": [6, 5], "engine": [2, 1]}
    assert found["ratio"] == 4  # between 3 and 5
    assert found["largest_difference"] <= 1 and found["share_that_differs"] < 1e-3


def test_records_are_appended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "decode.json"
    command = ["x", "--sprites", "--size", "32", "32", "9", "--turns", "BA", "--out", str(out)]
    monkeypatch.setattr("sys.argv", command)
    bench_decode.main()
    bench_decode.main()
    records = json.loads(out.read_text())
    assert [record["size"] for record in records] == 2 * [[32, 32, 9]]
    monkeypatch.setattr("sys.argv", ["x", "--turns", "AAB"])
    with pytest.raises(SystemExit):
        bench_decode.main()
